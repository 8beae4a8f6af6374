//! Kills workers at random moments while readers check every byte.

use std::fmt::Write as _;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::serve::{Readers, Seen, Served};

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
    let mut dice = Dice(crate::serve::monotonic_nsec() | 1);
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
