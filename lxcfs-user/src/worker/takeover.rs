//! Taking the connection over from a worker that is dead: its open files, its triggers, and the
//! requests that it left unanswered.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lxcfs_holder::channel::Report;
use lxcfs_holder::layout::{Cause, Orphan};

use super::{HistoryStore, OnTakeover, Worker, WorkerError, store};
use crate::fuse::{self, ServeError};

impl Worker {
    /// Takes the connection over: nothing of the previous worker runs any more.
    pub(super) fn activate(
        self,
        cause: Cause,
        on_takeover: Option<OnTakeover>,
    ) -> Result<Self, WorkerError> {
        let mut phases = Phases::new();
        store::adopt(&self.state);
        if let Some(on_takeover) = on_takeover {
            on_takeover(&HistoryStore::new(self.state.clone()));
        }
        phases.end("history");
        if let Some(table) = &self.table {
            table.recover();
        }
        phases.end("open files");
        for unique in self.state.harvest(cause) {
            self.refuse(unique);
        }
        self.server.adopt_slots();
        phases.end("slots");
        // Before the first request: a poll must find its trigger.
        self.triggers.recover(&*self.engine);
        phases.end("triggers");
        let (replayed, poisoned) = self.replay_all();
        phases.end("replay");
        self.server.go_live(&self.device)?;
        phases.end("loops");
        self.report(&Report::Serving { replayed, poisoned });
        self.calm_down();
        // Not before: writing a line may take longer than all of it.
        phases.log(replayed);
        Ok(self)
    }

    /// Answers what dead workers left; returns how many requests, and how many it gave up.
    fn replay_all(&self) -> (u64, u64) {
        let (mut replayed, mut poisoned) = (0, 0);
        let mut asked = Vec::new();
        // Those that nothing is known against together, on as many loops; the others alone,
        // so that it shows which of them ends workers.
        let (suspect, fresh) = self
            .state
            .backlog()
            .into_iter()
            .partition::<Vec<_>, _>(|unique| self.state.is_suspect(*unique));
        let groups = fresh.chunks(self.state.loops()).chain(suspect.chunks(1));
        for group in groups {
            for unique in group {
                match self.state.start(*unique) {
                    Some(Orphan::Replay(request)) => match self.server.ask(&request) {
                        Ok(()) => asked.push(*unique),
                        Err(error) => self.give_up(*unique, &error),
                    },
                    Some(Orphan::Poison) => {
                        poisoned += 1;
                        self.refuse(*unique);
                        self.state.finish(*unique);
                    }
                    None => {}
                }
            }
            replayed += asked.len() as u64;
            while !asked.is_empty() {
                match self.server.reply() {
                    Ok(reply) => {
                        let unique = fuse::unique_of(&reply);
                        // A late one, to a request that was given up, is nobody's any more.
                        if let Some(at) = asked.iter().position(|one| Some(*one) == unique) {
                            self.pass_on(&reply);
                            self.state.finish(asked.swap_remove(at));
                        }
                    }
                    Err(error) => {
                        for unique in asked.drain(..) {
                            self.give_up(unique, &error);
                        }
                    }
                }
            }
        }
        (replayed, poisoned)
    }

    fn give_up(&self, unique: u64, error: &ServeError) {
        tracing::error!(%error, unique, "replaying a request");
        self.refuse(unique);
        self.state.finish(unique);
    }

    /// Gives up the priority that the holder gave us to start, for all threads so far.
    fn calm_down(&self) {
        let Some(nice) = self
            .state
            .header()
            .serving_nice
            .load(Ordering::Relaxed)
            .checked_sub(21)
        else {
            return;
        };
        let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten();
        let ids = threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        for id in ids {
            // SAFETY: plain integers. Raising the value needs no privilege.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, id, nice.cast_signed()) };
        }
    }

    fn pass_on(&self, reply: &[u8]) {
        if let Err(error) = fuse::answer(&self.device, reply) {
            tracing::error!(%error, "passing a replayed answer on");
        }
    }

    fn refuse(&self, unique: u64) {
        self.pass_on(&fuse::error_reply(unique, libc::EIO));
    }
}

/// What the time from the order to serve went into.
struct Phases {
    began: Instant,
    ends: [Option<(&'static str, Duration)>; 6],
}

impl Phases {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            ends: [None; 6],
        }
    }

    /// The phase up to now has this name.
    fn end(&mut self, name: &'static str) {
        if let Some(free) = self.ends.iter_mut().find(|end| end.is_none()) {
            *free = Some((name, self.began.elapsed()));
        }
    }

    fn log(&self, replayed: u64) {
        let mut text = String::new();
        let mut before = Duration::ZERO;
        for (name, end) in self.ends.iter().flatten() {
            let usec = end.saturating_sub(before).as_micros();
            let _ = write!(text, ", {name} {usec} us");
            before = *end;
        }
        tracing::debug!(
            replayed,
            "serving {} us after the order{text}",
            before.as_micros()
        );
    }
}
