//! What must be remembered of a container between reads, by cgroup id: the CPU counters
//! shown, the load averages, when it started. Bounded, and let go when the cgroup is gone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::container::CgroupKey;
use crate::history::cpu::CpuHistory;
use crate::history::forks::Forks;
use crate::history::loadavg::LoadAverage;
use crate::policy::{CpuNumbering, CpuPolicy, ViewPolicy};
use crate::snapshot::Origin;
use crate::units::Nsec;

use super::single_flight::{Cells, Recent};
use super::source::TaskCounts;

/// Containers remembered at most; beyond, those that were read the longest ago go.
const MAX_STATES: usize = 16_384;

/// Nobody can be waiting for an answer this old.
const STALE: Duration = Duration::from_secs(10);

/// When a container started, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// `CLOCK_BOOTTIME`.
    pub at: Nsec,
    /// What gave it.
    pub origin: Origin,
}

/// The last count of a container's tasks and the averages over all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// The kernel's arithmetic.
    pub average: LoadAverage,
    /// Forks, from the PIDs that were given out.
    pub forks: Forks,
    /// The last count and when it was taken.
    pub last: Option<(Nsec, TaskCounts)>,
}

/// One container's memory.
#[derive(Debug, Default)]
pub struct State {
    /// Counters of `/proc/stat`.
    pub cpu: Mutex<CpuHistory>,
    /// Load averages.
    pub load: Mutex<Load>,
    start: Mutex<Option<Start>>,
    /// When its load was asked for last, in seconds of boot time; 0 = never.
    load_asked: AtomicU64,
    /// When anything was asked for last.
    used: AtomicU64,
    /// The CPU policy of this container alone, by [`cpus_code`]; 0: the daemon's.
    cpus: AtomicU8,
    /// Rendered answers.
    pub cells: Cells,
}

/// Locks, whatever happened to an earlier holder: the state is valid at every step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const SECOND: u64 = 1_000_000_000;

/// A policy as a number that is kept from one worker to the next; 0 for none.
const fn cpus_code(cpus: Option<CpuPolicy>) -> u8 {
    match cpus {
        None => 0,
        Some(CpuPolicy::Quota) => 1,
        Some(CpuPolicy::Cpuset) => 2,
        Some(CpuPolicy::Host) => 3,
    }
}

const fn cpus_of(code: u8) -> Option<CpuPolicy> {
    match code {
        1 => Some(CpuPolicy::Quota),
        2 => Some(CpuPolicy::Cpuset),
        3 => Some(CpuPolicy::Host),
        _ => None,
    }
}

impl State {
    /// Counts this container's CPUs by a rule of its own; `None`: by the daemon's again.
    /// Whether that is a change.
    pub(super) fn set_cpus(&self, cpus: Option<CpuPolicy>) -> bool {
        let code = cpus_code(cpus);
        if self.cpus.swap(code, Ordering::Relaxed) == code {
            return false;
        }
        self.cells.clear();
        true
    }

    /// `policy` with what this container has of its own.
    #[must_use]
    pub fn policy(&self, policy: ViewPolicy) -> ViewPolicy {
        let Some(cpus) = cpus_of(self.cpus.load(Ordering::Relaxed)) else {
            return policy;
        };
        let cpu_numbering = match cpus {
            // A quota has no CPU of its own, and so no number of the host's.
            CpuPolicy::Quota => CpuNumbering::Sequential,
            _ => policy.cpu_numbering,
        };
        ViewPolicy {
            cpus,
            cpu_numbering,
            ..policy
        }
    }

    /// The start, found by `find` the first time; a guess is not kept.
    pub fn start(&self, find: impl FnOnce() -> Option<Start>) -> Option<Start> {
        let mut start = lock(&self.start);
        if start.is_none() {
            *start = find();
        }
        *start
    }

    /// Notes that the load was asked for.
    pub fn ask_load(&self, now: Nsec) {
        self.load_asked
            .store((now.0 / SECOND).max(1), Ordering::Relaxed);
    }

    /// What is carried to the next process, of what is given.
    fn saved(&self, key: CgroupKey, cpu: Option<&CpuHistory>, load: Option<&Load>) -> Saved {
        Saved {
            key,
            cpu: cpu.map(CpuHistory::to_bytes).unwrap_or_default(),
            load: load.map(|load| load.average.to_bytes()).unwrap_or_default(),
            forks: load.map(|load| load.forks.to_bytes()).unwrap_or_default(),
            cpus: self.cpus.load(Ordering::Relaxed),
        }
    }

    /// Whether the load was asked for within the last quarter of an hour: what the longest
    /// average remembers.
    #[must_use]
    pub fn wants_load(&self, now: Nsec) -> bool {
        let asked = self.load_asked.load(Ordering::Relaxed);
        asked != 0 && (now.0 / SECOND).saturating_sub(asked) < 900
    }
}

/// What is carried from one process to the next, per container: bytes of
/// [`CpuHistory`], [`LoadAverage`] and [`Forks`]; none where nothing changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Whose.
    pub key: CgroupKey,
    /// [`CpuHistory::to_bytes`].
    pub cpu: Vec<u8>,
    /// [`LoadAverage::to_bytes`].
    pub load: Vec<u8>,
    /// [`Forks::to_bytes`].
    pub forks: Vec<u8>,
    /// A CPU policy of its own, as a number; 0 for none.
    pub cpus: u8,
}

/// Keeps what was shown, so that no successor shows less.
pub trait Journal: Send + Sync {
    /// Called while the container's state is locked, before a reader learns of the change.
    fn append(&self, changed: &Saved);
}

/// Every container's memory.
#[derive(Default)]
pub struct Store {
    states: Mutex<HashMap<CgroupKey, Arc<State>>>,
    /// Bounds the rendered answers of all.
    pub recent: Recent,
    /// Set when this process begins to serve.
    journal: OnceLock<Box<dyn Journal>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// The memory of one container, made at first sight.
    #[must_use]
    pub fn state(&self, key: CgroupKey, now: Nsec) -> Arc<State> {
        let mut states = lock(&self.states);
        if states.len() >= MAX_STATES && !states.contains_key(&key) {
            forget_oldest(&mut states);
        }
        let state = states.entry(key).or_default();
        state.used.store(now.0, Ordering::Relaxed);
        state.clone()
    }

    /// Tells `journal` of every change from now on. Once.
    pub fn use_journal(&self, journal: Box<dyn Journal>) {
        // A second one would be told nothing.
        let _ = self.journal.set(journal);
    }

    /// Accounts a count of tasks.
    pub fn account(&self, key: CgroupKey, state: &State, now: Nsec, mut counts: TaskCounts) {
        let mut load = lock(&state.load);
        let before = (load.average, load.forks);
        // Nobody of the container's own namespace to ask now: it has given out none since, or
        // the next count tells.
        let known = load.last.and_then(|(_, last)| last.newest_pid);
        counts.newest_pid = counts.newest_pid.or(known).or(load.forks.last());
        load.average.advance(now, counts.active());
        if let Some(pid) = counts.own_last_pid {
            load.forks.advance(pid);
        }
        load.last = Some((now, counts));
        if before != (load.average, load.forks)
            && let Some(journal) = self.journal.get()
        {
            journal.append(&state.saved(key, None, Some(&load)));
        }
    }

    /// Lets `render` account CPU time and show it.
    pub fn with_cpu<R>(
        &self,
        key: CgroupKey,
        state: &State,
        render: impl FnOnce(&mut CpuHistory) -> R,
    ) -> R {
        let mut cpu = lock(&state.cpu);
        let rendered = render(&mut cpu);
        if let Some(journal) = self.journal.get() {
            journal.append(&state.saved(key, Some(&cpu), None));
        }
        rendered
    }

    /// Counts a container's CPUs by a rule of its own; `None`: by the daemon's again.
    pub fn set_cpus(&self, key: CgroupKey, state: &State, cpus: Option<CpuPolicy>) {
        if state.set_cpus(cpus)
            && let Some(journal) = self.journal.get()
        {
            journal.append(&state.saved(key, None, None));
        }
    }

    /// Lets go of containers whose cgroup is gone.
    pub fn forget(&self, gone: &[CgroupKey]) {
        let mut states = lock(&self.states);
        for key in gone {
            states.remove(key);
        }
    }

    /// Lets go of rendered answers that nobody can be waiting for; whether there were any.
    pub fn drop_answers(&self) -> bool {
        let stale = self.recent.expire(STALE);
        if stale {
            let states: Vec<_> = lock(&self.states).values().cloned().collect();
            states
                .iter()
                .for_each(|state| state.cells.drop_stale(STALE));
        }
        stale
    }

    /// How many containers are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.states).len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything a successor needs so that no counter goes back.
    #[must_use]
    pub fn save(&self) -> Vec<Saved> {
        let states: Vec<_> = lock(&self.states)
            .iter()
            .map(|(key, state)| (*key, state.clone()))
            .collect();
        states
            .into_iter()
            .map(|(key, state)| {
                let load = *lock(&state.load);
                let cpu = lock(&state.cpu);
                state.saved(key, Some(&cpu), Some(&load))
            })
            .collect()
    }

    /// Takes over what a predecessor saved; what is malformed starts afresh.
    pub fn restore(&self, saved: &[Saved], now: Nsec) {
        for saved in saved {
            let state = self.state(saved.key, now);
            state.cpus.store(saved.cpus, Ordering::Relaxed);
            if !saved.cpu.is_empty() {
                *lock(&state.cpu) = CpuHistory::from_bytes(&saved.cpu);
            }
            let mut load = lock(&state.load);
            if !saved.load.is_empty() {
                load.average = LoadAverage::from_bytes(&saved.load);
            }
            if !saved.forks.is_empty() {
                load.forks = Forks::from_bytes(&saved.forks);
            }
        }
    }
}

/// Lets go of the quarter that was used the longest ago.
fn forget_oldest(states: &mut HashMap<CgroupKey, Arc<State>>) {
    let mut used: Vec<_> = states
        .values()
        .map(|state| state.used.load(Ordering::Relaxed))
        .collect();
    used.sort_unstable();
    if let Some(limit) = used.get(used.len() / 4).copied() {
        states.retain(|_, state| state.used.load(Ordering::Relaxed) > limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn key(inode: u64) -> CgroupKey {
        CgroupKey {
            hierarchy: 0,
            inode,
        }
    }

    #[test]
    fn the_number_of_containers_remembered_is_bounded() {
        let store = Store::default();
        for n in 0..MAX_STATES as u64 * 2 {
            let _ = store.state(key(n), Nsec(n));
        }
        assert!(store.len() <= MAX_STATES);
        let newest = MAX_STATES as u64 * 2 - 1;
        let before = store.len();
        let _ = store.state(key(newest), Nsec(newest));
        assert_eq!(store.len(), before);
    }

    #[test]
    fn ids_of_different_hierarchies_do_not_meet() {
        let store = Store::default();
        let v1 = store.state(key(20), Nsec(1));
        let other = CgroupKey {
            hierarchy: 1,
            inode: 20,
        };
        let v2 = store.state(other, Nsec(1));
        assert!(!Arc::ptr_eq(&v1, &v2));
        store.forget(&[other]);
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn the_newest_pid_stays_while_it_cannot_be_told() {
        let (store, successor) = (Store::default(), Store::default());
        let count = |store: &Store, newest_pid, own_last_pid| {
            let counts = TaskCounts {
                newest_pid,
                own_last_pid,
                ..TaskCounts::default()
            };
            let state = store.state(key(1), Nsec(5));
            store.account(key(1), &state, Nsec(5), counts);
            let (_, kept) = lock(&state.load).last.unwrap();
            kept.newest_pid
        };
        assert_eq!(count(&store, None, None), None);
        assert_eq!(count(&store, Some(40), Some(40)), Some(40));
        assert_eq!(count(&store, None, None), Some(40));
        assert_eq!(count(&store, Some(7), None), Some(7));
        // The last of the namespace is what a successor knows.
        successor.restore(&store.save(), Nsec(6));
        assert_eq!(count(&successor, None, None), Some(40));
    }

    #[test]
    fn a_successor_takes_over_and_malformed_bytes_start_afresh() {
        let store = Store::default();
        let counts = TaskCounts {
            running: 3,
            ..TaskCounts::default()
        };
        store.account(key(1), &store.state(key(1), Nsec(5)), Nsec(5), counts);
        assert!(store.state(key(1), Nsec(5)).set_cpus(Some(CpuPolicy::Host)));
        let mut saved = store.save();
        let successor = Store::default();
        successor.restore(&saved, Nsec(6));
        let average = |store: &Store| lock(&store.state(key(1), Nsec(6)).load).average;
        assert_eq!(average(&successor), average(&store));
        let state = successor.state(key(1), Nsec(6));
        assert_eq!(state.policy(ViewPolicy::default()).cpus, CpuPolicy::Host);
        assert!(state.set_cpus(None), "by the daemon's rule again");
        assert_eq!(state.policy(ViewPolicy::default()), ViewPolicy::default());
        saved[0].load[9] ^= 1;
        let careful = Store::default();
        careful.restore(&saved, Nsec(6));
        assert_eq!(average(&careful), LoadAverage::default());
    }

    /// A journal in memory.
    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<Saved>>>);

    impl Journal for Told {
        fn append(&self, changed: &Saved) {
            lock(&self.0).push(changed.clone());
        }
    }

    #[test]
    fn every_change_is_told_before_it_is_shown_and_makes_a_successor_equal() {
        let (store, told) = (Store::default(), Told::default());
        store.use_journal(Box::new(told.clone()));
        let state = store.state(key(7), Nsec(1));
        let counts = |own_last_pid| TaskCounts {
            running: 1,
            own_last_pid: Some(own_last_pid),
            ..TaskCounts::default()
        };
        store.account(key(7), &state, Nsec(5), counts(100));
        store.account(key(7), &state, Nsec(6), counts(100));
        assert_eq!(lock(&told.0).len(), 1, "nothing new, nothing told");
        store.set_cpus(key(7), &state, Some(CpuPolicy::Cpuset));
        store.with_cpu(key(7), &state, |cpu| {
            cpu.advance(&crate::history::cpu::Reading {
                now: Nsec(9 * SECOND),
                start: Nsec(SECOND),
                shown: &[(0, 0)],
                time: None,
            });
        });
        let successor = Store::default();
        successor.restore(&lock(&told.0), Nsec(10 * SECOND));
        assert_eq!(successor.save(), store.save());
    }

    #[test]
    fn load_is_followed_for_a_quarter_of_an_hour() {
        let state = State::default();
        assert!(!state.wants_load(Nsec(1)));
        state.ask_load(Nsec(10 * SECOND));
        assert!(state.wants_load(Nsec(900 * SECOND)));
        assert!(!state.wants_load(Nsec(911 * SECOND)));
    }
}
