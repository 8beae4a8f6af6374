//! What happens to the holder: words and deaths of workers, signals, clients.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::backoff::{FRUITLESS, pause};
use super::{Holder, Outcome, upgrade};
use crate::channel::{self, Order, Report};
use crate::control::{Request, answer};
use crate::layout::Cause;
use crate::log::say;
use crate::spawn::{End, Phase, Worker};

/// So many unexplained ends are remembered; a server tells of the latest.
const MAX_SUSPECTS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Active,
    Standby,
    Candidate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Signal,
    Message(Role),
    Death(Role),
    Left,
    Accept,
    Client(usize),
    Knock,
    Visitor(usize),
    Survivor,
}

impl Holder {
    /// Waits for something to happen; returns which descriptors are readable.
    pub(super) fn wait(&self) -> Vec<Event> {
        let mut watched: Vec<(Event, BorrowedFd<'_>)> = vec![(Event::Signal, self.signals.as_fd())];
        let workers = [
            (Role::Active, self.active.as_ref()),
            (Role::Standby, self.standby.as_ref()),
            (
                Role::Candidate,
                self.upgrade.as_ref().and_then(upgrade::Upgrade::candidate),
            ),
        ];
        for (role, worker) in workers {
            if let Some(worker) = worker {
                // Messages first: what a worker said before it died counts.
                if !worker.hung_up {
                    watched.push((Event::Message(role), worker.channel.as_fd()));
                }
                watched.push((Event::Death(role), worker.pidfd.as_fd()));
            }
        }
        for worker in &self.leaving {
            watched.push((Event::Left, worker.pidfd.as_fd()));
        }
        if let Some(control) = &self.control {
            watched.push((Event::Accept, control.listener().as_fd()));
            for (index, client) in control.clients().iter().enumerate() {
                watched.push((Event::Client(index), client.as_fd()));
            }
        }
        if let Some(gate) = &self.gate {
            watched.push((Event::Knock, gate.listener().as_fd()));
            for (index, visitor) in gate.visitors().enumerate() {
                watched.push((Event::Visitor(index), visitor.as_fd()));
            }
            for (_, pidfd) in &self.survivors {
                watched.push((Event::Survivor, pidfd.as_fd()));
            }
        }
        let now = Instant::now();
        let next = self
            .deadlines()
            .min()
            .map_or(Duration::from_secs(60), |at| {
                // Rounded up, so that we do not spin through the last millisecond.
                at.saturating_duration_since(now) + Duration::from_millis(1)
            });
        let timeout =
            PollTimeout::try_from(next.min(Duration::from_secs(60))).unwrap_or(PollTimeout::MAX);
        let mut polled: Vec<PollFd<'_>> = watched
            .iter()
            .map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN))
            .collect();
        if poll(&mut polled, timeout).is_err() {
            return Vec::new();
        }
        let happened = polled
            .iter()
            .map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        watched
            .iter()
            .zip(happened)
            .filter(|(_, yes)| *yes)
            .map(|((event, _), _)| *event)
            .collect()
    }

    pub(super) fn react(&mut self, events: Vec<Event>) -> Option<Outcome> {
        // A client may be dropped while handling: highest index first keeps the others valid.
        for event in events.iter().rev() {
            if let Event::Client(index) = event
                && self.client(*index)
            {
                return Some(Outcome::Stop);
            }
            if let Event::Visitor(index) = event {
                self.visitor(*index);
            }
        }
        // A role may change hands while handling; a stale event then finds nothing and the
        // next poll reports it again.
        for event in events {
            match event {
                Event::Signal => {
                    if self.signal() {
                        return Some(Outcome::Stop);
                    }
                }
                Event::Message(role) => {
                    if self.messages(role) {
                        return Some(Outcome::Lost);
                    }
                    if std::mem::take(&mut self.said_deserted) && self.state.is_deserted() {
                        // Its last words may tell that the connection is gone.
                        if self.messages(Role::Active) {
                            return Some(Outcome::Lost);
                        }
                        if let Some(active) = &mut self.active {
                            active.hung_up = true;
                        }
                        if self.relieve() {
                            self.deaths_told += 1;
                            break;
                        }
                    } else if role == Role::Active && self.relieve() {
                        break;
                    }
                }
                Event::Death(role) => {
                    self.death(role);
                    break;
                }
                Event::Left => self.reap_leaving(),
                Event::Accept => {
                    if let Some(control) = &mut self.control {
                        control.accept();
                    }
                }
                Event::Knock => {
                    if let Some(gate) = &mut self.gate {
                        gate.accept();
                    }
                }
                Event::Survivor => self.forget_ended_survivors(),
                Event::Client(_) | Event::Visitor(_) => {}
            }
        }
        None
    }

    pub(super) fn worker(&mut self, role: Role) -> Option<&mut Worker> {
        match role {
            Role::Active => self.active.as_mut(),
            Role::Standby => self.standby.as_mut(),
            Role::Candidate => self
                .upgrade
                .as_mut()
                .and_then(upgrade::Upgrade::candidate_mut),
        }
    }

    /// Returns true when the connection is gone.
    pub(super) fn messages(&mut self, role: Role) -> bool {
        loop {
            let Some(worker) = self.worker(role) else {
                return false;
            };
            let text = match channel::hear(&worker.channel, false) {
                Ok(Some(text)) => text,
                Ok(None) => {
                    // Not watched any more: it would stay readable until the process is gone.
                    worker.hung_up = true;
                    return false;
                }
                Err(_) => return false,
            };
            match Report::from_text(&text) {
                // It was told to serve before it was ready.
                Some(Report::Ready) if worker.phase == Phase::Activated => {}
                Some(Report::Ready) => {
                    worker.enter(Phase::Ready);
                    if role == Role::Standby {
                        self.standby_failures = 0;
                        self.standby_after = Instant::now();
                        crate::trim::drop_text();
                        // Serve at once; do not wait for the next turn of the loop.
                        self.cover();
                    }
                    if role == Role::Candidate {
                        self.switch_to_candidate();
                        return false;
                    }
                }
                Some(Report::Serving { replayed, poisoned }) => {
                    worker.enter(Phase::Serving);
                    self.served_by = worker.server;
                    self.down = None;
                    self.complaint.forget();
                    self.start_deadline = super::START_DEADLINE;
                    self.orphans_answered = false;
                    let header = self.state.header();
                    header.replayed.fetch_add(replayed, Ordering::Relaxed);
                    header.poisoned.fetch_add(poisoned, Ordering::Relaxed);
                    if poisoned > 0 {
                        say(&format!(
                            "gave up {poisoned} requests that crash every worker"
                        ));
                    }
                    self.next_probe = Instant::now() + self.options.probe_interval;
                    self.upgrade_serves();
                }
                Some(Report::Deserted) => self.said_deserted = true,
                Some(Report::Probed(result)) => self.probed(result),
                Some(Report::Answer(result)) => {
                    if !self.asking.is_empty() {
                        answer(&self.asking.remove(0), &result);
                    }
                }
                Some(Report::Unmounted) => return true,
                None => say(&format!("worker {} says {text:?}", worker.pid)),
            }
        }
    }

    /// Lets the next worker take over from one whose channel was closed, before the whole process
    /// is gone: a process closes its descriptors after its last thread left the kernel's read of
    /// a request, but may need milliseconds more to end. Returns false where it matters how it
    /// ended; then its death is awaited.
    fn relieve(&mut self) -> bool {
        let answered = self.state.answers() != self.answers_before;
        let enough = answered && self.announced && !self.state.replaying();
        if !enough || !self.active.as_ref().is_some_and(|w| w.hung_up && !w.stuck) {
            return false;
        }
        self.last_death = self.active.as_ref().map(|worker| worker.pid);
        self.leaving.extend(self.active.take());
        self.disappoint();
        self.deaths += 1;
        self.down = Some((Instant::now(), Cause::Killed));
        self.orphans_answered = false;
        self.fruitless = 0;
        self.spawn_after = Instant::now();
        self.upgrade_lost_active();
        self.cover();
        true
    }

    /// Tells those whose question died with the worker. The next one's answers are not for them.
    pub(super) fn disappoint(&mut self) {
        for client in self.asking.drain(..) {
            let why = "the worker ended before it answered; ask again";
            answer(&client, &Err(why.to_owned()));
        }
    }

    /// Collects workers that were relieved and have ended.
    fn reap_leaving(&mut self) {
        let crashed = |end: End| end.cause() == Cause::Crashed;
        for worker in self.leaving.extract_if(.., |worker| worker.ended()) {
            let end = worker.reap();
            if crashed(end) {
                say(&format!("worker {} {end}", worker.pid));
            }
        }
    }

    pub(super) fn death(&mut self, role: Role) {
        // Its last words may tell that the connection is gone, or that it served.
        self.messages(role);
        let worker = match role {
            Role::Active => self.active.take(),
            Role::Standby => self.standby.take(),
            Role::Candidate => return self.candidate_died(),
        };
        let Some(worker) = worker else { return };
        let end = worker.reap();
        if role == Role::Standby {
            self.probing = None;
            self.standby_failures = self.standby_failures.saturating_add(1);
            let delay = Duration::from_millis(50 << self.standby_failures.min(8));
            self.standby_after = Instant::now() + delay;
            if self.active.is_none() {
                // Nobody serves and the one that was to start did not make it.
                self.fell_short(&end.to_string());
            } else if self.standby_failures == 3 {
                say(&format!(
                    "standby worker {} {end}; trying on, more slowly",
                    worker.pid
                ));
            }
            return;
        }
        self.disappoint();
        self.deaths += 1;
        self.last_death = Some(worker.pid);
        if end == End::Unknown && self.state.replaying() {
            if self.suspects.len() >= MAX_SUSPECTS {
                self.suspects.remove(0);
            }
            self.suspects.push(worker.pid);
        }
        let cause = if worker.stuck {
            Cause::Crashed
        } else {
            end.cause()
        };
        self.down = Some((Instant::now(), cause));
        self.orphans_answered = false;
        let answered = self.state.answers() != self.answers_before;
        if !answered && (cause == Cause::Crashed || !self.announced) {
            self.fell_short(&end.to_string());
        } else {
            self.fruitless = 0;
            self.spawn_after = Instant::now();
        }
        if cause == Cause::Crashed && self.announced {
            say(&format!("worker {} {end}", worker.pid));
        }
        self.upgrade_lost_active();
        self.cover();
    }

    /// A worker ended without having answered anything.
    pub(super) fn fell_short(&mut self, how: &str) {
        self.fruitless = self.fruitless.saturating_add(1);
        self.spawn_after = Instant::now() + pause(self.fruitless, self.announced);
        if !self.announced && self.complaint.is_new(how) {
            say(&format!(
                "the worker {how} before it served; trying again, ever more slowly"
            ));
        }
        if self.fruitless == FRUITLESS {
            if self.announced {
                say(&format!(
                    "{FRUITLESS} workers in a row ended before they answered anything (the last {how}); slowing down"
                ));
            }
            if let Some(good) = self.last_good.take() {
                say(&format!(
                    "falling back to {}, which served before",
                    good.path.display()
                ));
                self.image = good;
                if let Some(standby) = self.standby.take() {
                    standby.kill_and_wait();
                }
            }
        }
    }

    /// Returns true when the signal says stop.
    pub(super) fn signal(&mut self) -> bool {
        while let Ok(Some(info)) = self.signals.read_signal() {
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGUSR1) => self.start_upgrade(Path::new(""), None),
                Ok(Signal::SIGUSR2) => {
                    if let Some(active) = &self.active {
                        active.tell(&Order::Command("toggle-host-view".to_owned()));
                    }
                }
                _ => return true,
            }
        }
        false
    }

    /// Returns true when the client says stop.
    pub(super) fn client(&mut self, index: usize) -> bool {
        let Some((request, client)) = self.control.as_mut().and_then(|c| c.read(index)) else {
            return false;
        };
        match request {
            Err(error) => answer(&client, &Err(error)),
            Ok(Request::Status) => answer(&client, &Ok(self.status())),
            Ok(Request::Stop) => {
                answer(&client, &Ok("stopping".to_owned()));
                return true;
            }
            Ok(Request::Upgrade(path)) => self.start_upgrade(&path, Some(client)),
            Ok(Request::Command(text)) => match &self.active {
                Some(active) => {
                    active.tell(&Order::Command(text));
                    self.asking.push(client);
                    // One that never answers must not collect descriptors here.
                    if self.asking.len() > 16 {
                        answer(&self.asking.remove(0), &Err("no answer".to_owned()));
                    }
                }
                None => answer(&client, &Err("no worker runs".to_owned())),
            },
        }
        false
    }

    pub(super) fn status(&self) -> String {
        let header = self.state.header();
        let waiting =
            std::fs::read_to_string(format!("/sys/fs/fuse/connections/{}/waiting", self.number));
        let pid = |worker: Option<&Worker>| worker.map_or(0, |w| w.pid);
        let serving = self
            .active
            .as_ref()
            .is_some_and(|w| w.phase == Phase::Serving);
        let standby_ready = self
            .standby
            .as_ref()
            .is_some_and(|w| w.phase == Phase::Ready);
        let lines = [
            ("mountpoint", self.point.display().to_string()),
            ("connection", self.number.to_string()),
            (
                "waiting",
                waiting.map_or_else(|_| "unknown".to_owned(), |w| w.trim().to_owned()),
            ),
            ("holder", std::process::id().to_string()),
            ("worker", pid(self.active.as_ref()).to_string()),
            ("serving", u8::from(serving).to_string()),
            (
                "serving_since_nsec",
                header
                    .serving_since_nsec
                    .load(Ordering::Relaxed)
                    .to_string(),
            ),
            (
                "server",
                self.served_by.map_or(0, |server| server.pid).to_string(),
            ),
            ("standby", pid(self.standby.as_ref()).to_string()),
            ("standby_ready", u8::from(standby_ready).to_string()),
            ("program", self.image.path.display().to_string()),
            ("loops", self.state.loops().to_string()),
            ("answers", self.state.answers().to_string()),
            ("worker_deaths", self.deaths.to_string()),
            ("deaths_told_by_standby", self.deaths_told.to_string()),
            ("stuck_workers", self.stuck.to_string()),
            ("upgrades", self.upgrades.to_string()),
            (
                "replayed_requests",
                header.replayed.load(Ordering::Relaxed).to_string(),
            ),
            (
                "poisoned_requests",
                header.poisoned.load(Ordering::Relaxed).to_string(),
            ),
        ];
        lines
            .iter()
            .map(|(key, value)| format!("{key}={value}\n"))
            .collect()
    }
}
