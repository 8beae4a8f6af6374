//! What must be remembered of a container between reads, by cgroup id: the CPU counters
//! shown, the load averages, when it started. Bounded, and let go when the cgroup is gone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    pub fn set_cpus(&self, cpus: Option<CpuPolicy>) -> bool {
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

    /// Whether the load was asked for within the last quarter of an hour: what the longest
    /// average remembers.
    #[must_use]
    pub fn wants_load(&self, now: Nsec) -> bool {
        let asked = self.load_asked.load(Ordering::Relaxed);
        asked != 0 && (now.0 / SECOND).saturating_sub(asked) < 900
    }

    /// Accounts a count of tasks.
    pub fn account(&self, now: Nsec, counts: TaskCounts) {
        let mut load = lock(&self.load);
        load.average.advance(now, counts.active());
        if let Some(pid) = counts.own_last_pid {
            load.forks.advance(pid);
        }
        load.last = Some((now, counts));
    }
}

/// What is carried from one process to the next, per container: bytes of
/// [`CpuHistory`], [`LoadAverage`] and [`Forks`].
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

/// Every container's memory.
#[derive(Debug, Default)]
pub struct Store {
    states: Mutex<HashMap<CgroupKey, Arc<State>>>,
    /// Bounds the rendered answers of all.
    pub recent: Recent,
    /// Readings and samples that changed what is saved.
    changes: AtomicU64,
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

    /// Notes that some container's history or load has moved on.
    pub fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Changes noted so far: while it stands still, [`Self::save`] gives the same.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Lets go of containers whose cgroup is gone.
    pub fn forget(&self, gone: &[CgroupKey]) {
        let mut states = lock(&self.states);
        for key in gone {
            states.remove(key);
        }
    }

    /// Lets go of rendered answers that nobody can be waiting for.
    pub fn drop_answers(&self) {
        let states: Vec<_> = lock(&self.states).values().cloned().collect();
        states.iter().for_each(|state| state.cells.drop_stale());
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
                Saved {
                    key,
                    cpu: lock(&state.cpu).to_bytes(),
                    load: load.average.to_bytes(),
                    forks: load.forks.to_bytes(),
                    cpus: state.cpus.load(Ordering::Relaxed),
                }
            })
            .collect()
    }

    /// Takes over what a predecessor saved; what is malformed starts afresh.
    pub fn restore(&self, saved: &[Saved], now: Nsec) {
        for saved in saved {
            let state = self.state(saved.key, now);
            *lock(&state.cpu) = CpuHistory::from_bytes(&saved.cpu);
            state.cpus.store(saved.cpus, Ordering::Relaxed);
            let mut load = lock(&state.load);
            load.average = LoadAverage::from_bytes(&saved.load);
            load.forks = Forks::from_bytes(&saved.forks);
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
    fn a_successor_takes_over_and_malformed_bytes_start_afresh() {
        let store = Store::default();
        let counts = TaskCounts {
            running: 3,
            ..TaskCounts::default()
        };
        store.state(key(1), Nsec(5)).account(Nsec(5), counts);
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

    #[test]
    fn load_is_followed_for_a_quarter_of_an_hour() {
        let state = State::default();
        assert!(!state.wants_load(Nsec(1)));
        state.ask_load(Nsec(10 * SECOND));
        assert!(state.wants_load(Nsec(900 * SECOND)));
        assert!(!state.wants_load(Nsec(911 * SECOND)));
    }
}
