//! Kills workers at random moments while readers check every byte.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::serve::{Readers, Seen, Served, eventually, monotonic_nsec};

/// How to torment.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Workers to kill.
    pub kills: u32,
    /// Longest pause between the recovery from one kill and the next kill.
    pub pause: Duration,
    /// Reader processes.
    pub processes: usize,
    /// Reader threads in each.
    pub threads: usize,
    /// Also send SIGUSR1 to the readers, and kill one more reader process now and then.
    pub hurt_readers: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What the readers saw.
    pub seen: Seen,
    /// Kill to serving, when no standby was ready.
    pub cold: Vec<Duration>,
    /// Kill to serving, when a standby was ready.
    pub warm: Vec<Duration>,
    /// Requests that were answered for a dead worker.
    pub replayed: u64,
}

impl Outcome {
    /// Some lines for people.
    pub fn summary(&self) -> String {
        let seen = &self.seen;
        let mut text = format!(
            "kills {}  texts {}  errors {}  wrong {}  replayed {}  worst read {:?}\n",
            self.warm.len() + self.cold.len(),
            seen.texts,
            seen.errors,
            seen.wrong,
            self.replayed,
            seen.worst
        );
        for (name, values) in [("warm", &self.warm), ("cold", &self.cold)] {
            if let (Some(p50), Some(p99)) = (percentile(values, 50), percentile(values, 99)) {
                let count = values.len();
                let _ = writeln!(
                    text,
                    "kill to serving, {name} ({count}): p50 {p50:?}  p99 {p99:?}"
                );
            }
        }
        text
    }
}

/// How long readers wait for the next worker, by load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Reader threads beside the one that takes the time.
    pub readers: usize,
    /// What each does between two texts.
    pub rest: Duration,
}

/// Kill to serving, and kill to the next worker's first answer that a reader gets, sorted.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    /// The worker began to serve.
    pub serving: Vec<Duration>,
    /// A reader that reads all the time had an answer of that worker.
    pub answered: Vec<Duration>,
}

/// Kills `kills` workers under `load`, each when things have calmed down: with a standby that is
/// ready, or without any if `served` keeps none.
pub fn waits(served: &Served, load: Load, kills: u32) -> Waits {
    let warm = served.option("standby=0").is_none();
    let readers = (load.readers > 0)
        .then(|| Readers::start_resting(&served.mount(), load.readers, load.rest));
    let watch = Watch::start(&served.file("proc/meminfo"), load.rest);
    let mut dice = Dice(monotonic_nsec() | 1);
    let mut waits = Waits::default();
    for _ in 0..kills {
        std::thread::sleep(Duration::from_micros(5000 + dice.below(25_000)));
        if warm {
            eventually("a standby", || served.status().number("standby_ready") == 1);
        }
        watch.forget();
        let killed_at = monotonic_nsec();
        let (serving, _) = served.kill_worker();
        let since = killed_at + serving.as_nanos() as u64;
        let mut answered = None;
        eventually("an answer", || {
            answered = watch.first_after(since);
            answered.is_some()
        });
        waits.serving.push(serving);
        let after = answered.unwrap_or(since).saturating_sub(killed_at);
        waits.answered.push(Duration::from_nanos(after));
    }
    drop(watch);
    if let Some(readers) = readers {
        served.assert_unharmed(&readers.finish());
    }
    waits.serving.sort_unstable();
    waits.answered.sort_unstable();
    waits
}

/// A thread that reads all the time and notes when each answer came.
struct Watch {
    ends: Arc<Mutex<Vec<u64>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(path: &Path, rest: Duration) -> Self {
        let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (ends, stop) = (
            Arc::<Mutex<Vec<u64>>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (noted, told) = (ends.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !told.load(Ordering::Relaxed) {
                file.read_at(&mut buffer, 0)
                    .unwrap_or_else(|error| panic!("a reader saw {error}"));
                let now = monotonic_nsec();
                noted
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(now);
                std::thread::sleep(rest);
            }
        });
        Self {
            ends,
            stop,
            thread: Some(thread),
        }
    }

    fn forget(&self) {
        self.ends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn first_after(&self, since: u64) -> Option<u64> {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.iter().copied().find(|end| *end >= since)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the reader that takes the time failed");
        }
    }
}

/// Numbers that look random; the seed is in the name of nothing, runs differ.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }
}

/// Carries `plan` out on `served`.
pub fn run(served: &Served, plan: Plan) -> Outcome {
    let mut dice = Dice(monotonic_nsec() | 1);
    let mut outcome = Outcome::default();
    let readers: Vec<Readers> = (0..plan.processes)
        .map(|_| Readers::start(&served.mount(), plan.threads))
        .collect();
    let mut victim = None;
    for index in 0..plan.kills {
        std::thread::sleep(Duration::from_nanos(
            dice.below(plan.pause.as_nanos() as u64),
        ));
        if plan.hurt_readers {
            for reader in &readers {
                let _gone = kill(Pid::from_raw(reader.pid()), Signal::SIGUSR1);
            }
            if index % 8 == 0 {
                let next = Readers::start(&served.mount(), 4);
                if let Some(old) = victim.replace(next) {
                    Readers::kill(old);
                }
            }
        }
        let (took, warm) = served.kill_worker();
        if warm {
            &mut outcome.warm
        } else {
            &mut outcome.cold
        }
        .push(took);
    }
    if let Some(victim) = victim {
        victim.kill();
    }
    outcome.seen = readers
        .into_iter()
        .map(Readers::finish)
        .fold(Seen::default(), Seen::plus);
    outcome.replayed = served.status().number("replayed_requests");
    outcome.cold.sort_unstable();
    outcome.warm.sort_unstable();
    outcome
}

/// The value below which `percent` of the sorted `values` lie.
pub fn percentile(values: &[Duration], percent: usize) -> Option<Duration> {
    values
        .get((values.len() * percent / 100).min(values.len().checked_sub(1)?))
        .copied()
}
