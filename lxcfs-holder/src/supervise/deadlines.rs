//! What is due: starting workers, orphans, the watchdog's reads, signs of life.

use std::time::{Duration, Instant};

use super::events::Role;
use super::{Holder, LONGEST_START};
use crate::channel::Order;
use crate::log::say;
use crate::spawn::Phase;

impl Holder {
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let starting = [self.active.as_ref(), self.standby.as_ref()]
            .into_iter()
            .flatten()
            .filter(|w| matches!(w.phase, Phase::Starting | Phase::Activated))
            .map(|w| w.since + self.start_deadline);
        let spawns = self.gate.is_none();
        let idle = spawns && self.active.is_none() && self.standby.is_none();
        let serving = spawns && self.active.is_some();
        let wants_standby = serving && self.standby.is_none() && self.options.standby;
        let orphans = self
            .down
            .filter(|_| !self.orphans_answered && self.survivors.is_empty())
            .map(|(since, _)| since + self.options.orphan_bound);
        let probing = (self.options.probe_interval > Duration::ZERO).then(|| {
            self.probing
                .map_or(self.next_probe, |since| since + self.options.probe_deadline)
        });
        let others = [
            idle.then_some(self.spawn_after),
            wants_standby.then_some(self.standby_after),
            orphans,
            probing,
            self.watchdog.map(|_| self.next_sign),
            self.upgrade
                .as_ref()
                .map(|upgrade| upgrade.deadline(self.start_deadline)),
        ];
        starting.chain(others.into_iter().flatten())
    }

    pub(super) fn probed(&mut self, result: Result<(), String>) {
        self.probing = None;
        self.next_probe = Instant::now() + self.options.probe_interval;
        self.stuck_in_a_row = 0;
        match result {
            Ok(()) => self.probe_complaint = false,
            Err(error) if !self.probe_complaint => {
                self.probe_complaint = true;
                say(&format!(
                    "the watchdog cannot read {}: {error}",
                    self.point.display()
                ));
            }
            Err(_) => {}
        }
    }

    pub(super) fn check_deadlines(&mut self) {
        let now = Instant::now();
        if self.active.is_none() || self.down.is_some() {
            self.answer_orphans(now);
        }
        let deadline = self.start_deadline;
        for role in [Role::Active, Role::Standby] {
            if let Some(worker) = self.worker(role)
                && matches!(worker.phase, Phase::Starting | Phase::Activated)
                && now >= worker.since + deadline
                && !worker.stuck
            {
                worker.stuck = true;
                say(&format!(
                    "worker {} does not get ready within {deadline:?}; replacing it",
                    worker.pid
                ));
                worker.kill();
                self.start_deadline = (deadline * 2).min(LONGEST_START);
            }
        }
        self.check_upgrade(now);
        self.probe(now);
        if let Some(interval) = self.watchdog
            && now >= self.next_sign
            && self.down.is_none_or(|(since, _)| now < since + interval)
        {
            self.next_sign = now + interval / 3;
            let _no_manager = self.manager.notify("WATCHDOG=1", &[]);
        }
    }

    /// Frees readers of requests that a dead worker had read, when no successor came in time:
    /// they cannot even be killed otherwise.
    pub(super) fn answer_orphans(&mut self, now: Instant) {
        let Some((since, cause)) = self.down else {
            return;
        };
        // Survivors of a dead predecessor may be answering just now.
        let answered = self.orphans_answered || !self.survivors.is_empty();
        if answered || now < since + self.options.orphan_bound {
            return;
        }
        self.orphans_answered = true;
        // A worker that was already told to adopt the backlog must not run while we empty it.
        if let Some(worker) = self.active.take() {
            say(&format!(
                "worker {} takes too long to adopt the connection",
                worker.pid
            ));
            worker.kill_and_wait();
            self.disappoint();
        }
        let mut orphans = self.state.harvest(cause);
        orphans.extend(self.state.backlog());
        for unique in &orphans {
            self.refuse(*unique);
            self.state.finish(*unique);
        }
        if !orphans.is_empty() {
            say(&format!(
                "no worker for {:?}: answered {} waiting requests with EIO",
                self.options.orphan_bound,
                orphans.len()
            ));
        }
    }

    pub(super) fn refuse(&self, unique: u64) {
        let mut reply = [0; 16];
        reply[..4].copy_from_slice(&16u32.to_ne_bytes());
        reply[4..8].copy_from_slice(&(-libc::EIO).to_ne_bytes());
        reply[8..].copy_from_slice(&unique.to_ne_bytes());
        // ENOENT: the request was answered after all, or its caller was killed.
        let _answered = nix::unistd::write(&self.fuse, &reply);
    }

    pub(super) fn probe(&mut self, now: Instant) {
        if self.options.probe_interval.is_zero() {
            return;
        }
        if let Some(since) = self.probing {
            if now < since + self.options.probe_deadline {
                return;
            }
            self.probing = None;
            self.next_probe = now + self.options.probe_interval;
            if let Some(active) = &mut self.active
                && active.phase == Phase::Serving
                && !active.stuck
            {
                say(&format!(
                    "worker {} does not answer reads; replacing it",
                    active.pid
                ));
                self.stuck += 1;
                self.stuck_in_a_row += 1;
                active.stuck = true;
                active.kill();
            }
        } else if now >= self.next_probe {
            self.next_probe = now + self.options.probe_interval;
            let serving = self
                .active
                .as_ref()
                .is_some_and(|w| w.phase == Phase::Serving);
            if let Some(standby) = self
                .standby
                .as_ref()
                .filter(|w| serving && w.phase == Phase::Ready)
            {
                standby.tell(&Order::Probe(self.point.to_string_lossy().into_owned()));
                self.probing = Some(now);
            }
        }
    }
}
