//! Workers from outside: who is taken, as what, and who has to wait.

use std::os::fd::{AsRawFd as _, RawFd};
use std::time::Instant;

use super::Holder;
use crate::channel::say;
use crate::control::answer;
use crate::gate::{Newcomer, Wish};
use crate::layout::Cause;
use crate::log;
use crate::outside::{BUSY, REPLACED, ServerId, welcome};
use crate::spawn::{Phase, Worker};

/// What becomes of a worker that offers itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It stands by, or serves if nobody does.
    Standby,
    /// It replaces the workers of an older server.
    Candidate,
    /// Not now.
    Wait,
    /// Not while a newer server's workers are here.
    Replaced,
}

/// Who is here already.
#[derive(Clone, Copy, Debug, Default)]
struct Present {
    /// Whose worker serves, or is about to.
    active: Option<ServerId>,
    /// Whether it does by now.
    serving: bool,
    /// Whose worker stands by.
    standby: Option<ServerId>,
    /// Whose workers are about to replace them.
    candidate: Option<ServerId>,
}

/// Where a worker of `server` belongs. Pure.
fn place(server: ServerId, present: Present) -> Place {
    let here = [present.active, present.standby, present.candidate];
    if here.into_iter().flatten().any(|other| other > server) {
        return Place::Replaced;
    }
    if present.candidate.is_some() {
        return Place::Wait;
    }
    match (present.active, present.standby) {
        (Some(active), _) if active < server => {
            if present.serving {
                Place::Candidate
            } else {
                // Readers wait for that one; it serves or is found out.
                Place::Wait
            }
        }
        // An older server's: nothing depends on it.
        (_, Some(standby)) if standby < server => Place::Standby,
        (_, Some(_)) => Place::Wait,
        (_, None) => Place::Standby,
    }
}

impl Holder {
    /// A visitor has said something, or left.
    pub(super) fn visitor(&mut self, index: usize) {
        match self.gate.as_mut().and_then(|gate| gate.read(index)) {
            Some(Wish::Serve(newcomer)) => self.admit(newcomer),
            Some(Wish::Status(channel)) => answer(&channel, &Ok(self.status())),
            None => {}
        }
    }

    fn present(&self) -> Present {
        let server = |worker: Option<&Worker>| worker.and_then(|worker| worker.server);
        let candidate = self.upgrade.as_ref().and_then(|upgrade| upgrade.server());
        Present {
            active: server(self.active.as_ref()),
            serving: self
                .active
                .as_ref()
                .is_some_and(|worker| worker.phase == Phase::Serving),
            standby: server(self.standby.as_ref()),
            candidate,
        }
    }

    fn admit(&mut self, newcomer: Newcomer) {
        let server = newcomer.hello.server;
        for crashed in &newcomer.hello.crashed {
            self.learn_of_crash(*crashed);
        }
        let place = place(server, self.present());
        let refusal = match place {
            Place::Standby | Place::Candidate => None,
            Place::Wait => Some(BUSY),
            Place::Replaced => Some(REPLACED),
        };
        if let Some(word) = refusal {
            let _gone = say(&newcomer.channel, word);
            return;
        }
        // What it sees as the root of all cgroups may be its own.
        let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", newcomer.pid));
        let mut fds: Vec<RawFd> = vec![self.fuse.as_raw_fd(), self.state.fd().as_raw_fd()];
        fds.extend(self.proc.as_ref().map(|proc| proc.as_raw_fd()));
        if welcome(&newcomer.channel, &fds, &cgroups.unwrap_or_default()).is_err() {
            return;
        }
        let worker = Worker::from_outside(newcomer);
        if place == Place::Candidate {
            log::say(&format!(
                "server {} is here to replace server {}",
                server.pid,
                self.present().active.map_or(0, |active| active.pid)
            ));
            self.try_candidate(server, worker);
            return;
        }
        if let Some(older) = self.standby.replace(worker) {
            self.probing = None;
            older.kill();
            self.leaving.push(older);
        }
        let known = self.served_by == Some(server);
        if self.active.is_none() && known && self.fruitless == 0 && self.survivors.is_empty() {
            // Its program has served: no need to hear that it is ready.
            self.activate_standby();
        }
    }

    /// A server tells which of its workers crashed. The next one may serve already: then what the
    /// dead one was replaying is blamed afterwards.
    fn learn_of_crash(&mut self, pid: u32) {
        if let Some((_, cause)) = &mut self.down
            && self.last_death == Some(pid)
        {
            *cause = Cause::Crashed;
        } else if !self.suspects.contains(&pid) || !self.state.was_a_crash() {
            return;
        }
        self.suspects.retain(|suspect| *suspect != pid);
    }

    /// The workers of a dead predecessor that have ended in the meantime are not waited for.
    pub(super) fn forget_ended_survivors(&mut self) {
        let before = self.survivors.len();
        self.survivors
            .retain(|(_, pidfd)| !crate::fd::has_ended(pidfd));
        if before > 0 && self.survivors.is_empty() && self.active.is_none() {
            self.down = Some((Instant::now(), Cause::Killed));
            self.orphans_answered = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: ServerId = ServerId {
        since_nsec: 1,
        pid: 10,
    };
    const NEW: ServerId = ServerId {
        since_nsec: 2,
        pid: 9,
    };

    fn serving(active: ServerId, standby: Option<ServerId>) -> Present {
        Present {
            active: Some(active),
            serving: true,
            standby,
            candidate: None,
        }
    }

    #[test]
    fn one_serves_one_stands_by_and_a_third_waits() {
        assert_eq!(place(OLD, Present::default()), Place::Standby);
        assert_eq!(place(OLD, serving(OLD, None)), Place::Standby);
        assert_eq!(place(OLD, serving(OLD, Some(OLD))), Place::Wait);
    }

    #[test]
    fn a_newer_server_replaces_and_an_older_one_never_returns_beside_it() {
        assert_eq!(place(NEW, serving(OLD, Some(OLD))), Place::Candidate);
        assert_eq!(place(NEW, serving(OLD, None)), Place::Candidate);
        assert_eq!(place(OLD, serving(NEW, None)), Place::Replaced);
        let trial = Present {
            candidate: Some(NEW),
            ..serving(OLD, Some(OLD))
        };
        assert_eq!(place(NEW, trial), Place::Wait);
        assert_eq!(place(OLD, trial), Place::Replaced);
    }

    #[test]
    fn nobody_is_replaced_while_readers_wait_for_it() {
        let starting = Present {
            serving: false,
            ..serving(OLD, None)
        };
        assert_eq!(place(NEW, starting), Place::Wait);
        let only_standby = Present {
            standby: Some(OLD),
            ..Present::default()
        };
        assert_eq!(place(NEW, only_standby), Place::Standby);
        assert_eq!(place(OLD, only_standby), Place::Wait);
    }
}
