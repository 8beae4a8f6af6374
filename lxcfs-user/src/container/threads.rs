//! Threads seen before: a thread is recognised through a kept descriptor that belongs to
//! the task and not to its number, and that tells its present cgroup.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cgroup::reader::read_all;

use super::pidfd;
use super::resolve::View;

/// Threads remembered, each with one descriptor or two.
const MAX_THREADS: usize = 2048;
const SHARDS: usize = 16;

/// What recognises a thread.
#[derive(Debug)]
pub(super) enum Witness {
    /// `PIDFD_GET_INFO` on a pidfd: the v2 cgroup id. Enough where v2 is all there is.
    Pidfd(OwnedFd, u64),
    /// A kept `/proc/TID/cgroup` and the hash of its text.
    File(File, u64),
}

impl Witness {
    fn still_holds(&self) -> bool {
        match self {
            Self::Pidfd(fd, id) => pidfd::info(fd).is_ok_and(|info| info.cgroup_id == *id),
            Self::File(file, hash) => read_all(file, true, hash_of).is_ok_and(|now| now == *hash),
        }
    }
}

pub(super) fn hash_of(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// A thread seen before.
#[derive(Debug)]
pub(super) struct Seen {
    witness: Witness,
    /// Tells cheaply that the task still lives, where the witness is a file.
    pidfd: Option<OwnedFd>,
    pub(super) view: View,
    since: Instant,
    /// When the witness held last, in nanoseconds after `since`.
    held: AtomicU64,
}

impl Seen {
    pub(super) fn new(witness: Witness, pidfd: Option<OwnedFd>, view: View) -> Self {
        Self {
            witness,
            pidfd,
            view,
            since: Instant::now(),
            held: AtomicU64::new(0),
        }
    }

    /// Time since everything about it was asked.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Whether the thread has exited, asked in the cheapest way.
    fn has_exited(&self) -> bool {
        match &self.pidfd {
            Some(pidfd) => !pidfd::is_alive(pidfd),
            None => !self.witness.still_holds(),
        }
    }

    /// Whether the thread is the one remembered, in the cgroup remembered. A move to
    /// another cgroup may go unnoticed for `grace`; another task never does.
    pub(super) fn still_holds(&self, grace: Duration) -> bool {
        let age = self.since.elapsed();
        let held = Duration::from_nanos(self.held.load(Ordering::Relaxed));
        if age.saturating_sub(held) < grace && self.pidfd.as_ref().is_some_and(pidfd::is_alive) {
            return true;
        }
        let holds = self.witness.still_holds();
        if holds {
            let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
            self.held.store(age, Ordering::Relaxed);
        }
        holds
    }
}

type Shard = HashMap<u32, Arc<Seen>>;

/// By thread id; bounded.
#[derive(Debug, Default)]
pub(super) struct Threads([Mutex<Shard>; SHARDS]);

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Threads {
    fn shard(&self, tid: u32) -> MutexGuard<'_, Shard> {
        lock(&self.0[tid as usize % SHARDS])
    }

    /// What is known of `tid`; it may be another task by now.
    pub(super) fn get(&self, tid: u32) -> Option<Arc<Seen>> {
        self.shard(tid).get(&tid).cloned()
    }

    /// Remembers `tid`; the older half makes room where there are too many.
    pub(super) fn insert(&self, tid: u32, seen: Seen) {
        let mut shard = self.shard(tid);
        if shard.len() >= MAX_THREADS / SHARDS {
            make_room(&mut shard);
        }
        shard.insert(tid, Arc::new(seen));
    }

    /// Lets go of those that `keep` does not want.
    pub(super) fn retain(&self, keep: impl Fn(&Seen) -> bool) {
        for shard in &self.0 {
            lock(shard).retain(|_, seen| keep(seen));
        }
    }

    /// Lets go of threads that have exited.
    pub(super) fn sweep(&self) {
        for shard in &self.0 {
            // Asked without the lock: readers go on meanwhile.
            let seen: Vec<_> = lock(shard)
                .iter()
                .map(|(tid, seen)| (*tid, seen.clone()))
                .collect();
            for (tid, seen) in seen {
                if seen.has_exited() {
                    lock(shard).remove(&tid);
                }
            }
        }
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|shard| lock(shard).len()).sum()
    }
}

/// Lets go of the older half.
fn make_room(shard: &mut HashMap<u32, Arc<Seen>>) {
    let mut ages: Vec<_> = shard.values().map(|seen| seen.since).collect();
    ages.sort_unstable();
    if let Some(middle) = ages.get(ages.len() / 2).copied() {
        shard.retain(|_, seen| seen.since > middle);
    }
}
