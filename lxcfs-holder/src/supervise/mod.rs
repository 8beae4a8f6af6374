//! The holder's life: one `poll` loop over workers, signals and the control socket.
//!
//! Nothing here may block: a file system request of our own mount would wait for the worker
//! that we have to replace. The watchdog's reads are therefore done by the standby worker.

mod start;
mod upgrade;

use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::channel::{self, Order, Report};
use crate::control::{Control, Request, answer};
use crate::image::Image;
use crate::layout::{Cause, State};
use crate::log::say;
use crate::notify::{self, Manager};
use crate::options::HolderOptions;
use crate::spawn::{Phase, Worker};
use crate::{HOLDER_COMM, fd, mount};

/// A worker must be prepared, and an activated one must serve, within this time.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// Deaths in a row without one answered request after which we slow down and fall back.
const FRUITLESS: u32 = 6;

/// Why the loop ends.
enum Outcome {
    /// We were told to stop.
    Stop,
    /// The connection is gone.
    Lost,
}

struct Holder {
    options: HolderOptions,
    point: PathBuf,
    fuse: OwnedFd,
    state: State,
    tree: Option<OwnedFd>,
    number: u32,
    manager: Manager,
    signals: SignalFd,
    control: Option<Control>,
    /// Our own score before we lowered it; workers get it back.
    oom_score_adj: Option<String>,
    image: Image,
    /// What served before the last upgrade; the fallback of a crash loop.
    last_good: Option<Image>,
    active: Option<Worker>,
    standby: Option<Worker>,
    upgrade: Option<upgrade::Upgrade>,
    survivors: Vec<(u32, OwnedFd)>,
    /// Clients that wait for the daemon's answer to a command, oldest first.
    asking: Vec<OwnedFd>,
    /// Since when nobody serves, and whom the next worker blames.
    down: Option<(Instant, Cause)>,
    orphans_answered: bool,
    /// Answers counted when the active worker took over.
    answers_before: u64,
    fruitless: u32,
    standby_failures: u32,
    spawn_after: Instant,
    standby_after: Instant,
    next_probe: Instant,
    probing: Option<Instant>,
    probe_complaint: bool,
    watchdog: Option<Duration>,
    next_sign: Instant,
    deaths: u64,
    stuck: u64,
    upgrades: u64,
    announced: bool,
}

/// Holds the connection; see [`crate::run`].
pub(crate) fn run(options: HolderOptions) -> ExitCode {
    crate::set_process_name(HOLDER_COMM);
    let mut ready = options.ready_fd.and_then(|fd| fd::inherited(fd).ok());
    let pidfile = options.pidfile.clone();
    let code = match Holder::start(options) {
        Ok(holder) => holder.supervise(&mut ready),
        Err(error) => {
            say(&error);
            announce(&mut ready, &error);
            ExitCode::FAILURE
        }
    };
    if let Some(pidfile) = pidfile {
        let _already_gone = std::fs::remove_file(pidfile);
    }
    code
}

fn announce(ready: &mut Option<OwnedFd>, line: &str) {
    if let Some(fd) = ready.take() {
        let _nobody_waits = std::fs::File::from(fd).write_all(format!("{line}\n").as_bytes());
    }
}

/// Protects us from the OOM killer; returns the score that workers should have.
fn protect() -> Option<String> {
    let path = "/proc/self/oom_score_adj";
    let before = std::fs::read_to_string(path).ok()?.trim().to_owned();
    if before != "-1000"
        && let Err(error) = std::fs::write(path, "-1000")
    {
        say(&format!(
            "cannot protect the holder from the OOM killer ({error}); give it CAP_SYS_RESOURCE or OOMScoreAdjust=-1000"
        ));
        return None;
    }
    // A holder that was started with -1000 must not pass it on either.
    Some(if before == "-1000" {
        "0".to_owned()
    } else {
        before
    })
}

impl Holder {
    fn start(mut options: HolderOptions) -> Result<Self, String> {
        let mut wanted = SigSet::empty();
        for signal in [
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
        ] {
            wanted.add(signal);
        }
        wanted
            .thread_block()
            .map_err(|e| format!("cannot block signals: {e}"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&wanted, flags)
            .map_err(|e| format!("cannot make a signalfd: {e}"))?;
        let oom_score_adj = protect();
        let program = PathBuf::from(options.worker.first().cloned().unwrap_or_default());
        let image = Image::open(&program)
            .map_err(|e| format!("worker program {}: {e}", program.display()))?;
        let point = mount::canonical(&options.mountpoint).map_err(|e| e.to_string())?;
        let connection = start::connect(&options, &point).map_err(|e| e.to_string())?;
        let adopt = options.adopt.take().unwrap_or_default();
        let mut active = None;
        let mut standby = None;
        for (index, (pid, socket)) in adopt.workers.iter().enumerate() {
            match Worker::adopt(*pid, *socket) {
                Ok(mut worker) => {
                    worker.enter(if index == 0 {
                        Phase::Serving
                    } else {
                        Phase::Ready
                    });
                    *(if index == 0 {
                        &mut active
                    } else {
                        &mut standby
                    }) = Some(worker);
                }
                Err(error) => say(&format!("cannot adopt worker {pid}: {error}")),
            }
        }
        let control = match (&options.control, adopt.control) {
            (Some(path), Some(listener)) => Some(Control::adopt(path, listener)),
            (Some(path), None) => Some(Control::listen(path)),
            (None, _) => None,
        };
        let control = match control.transpose() {
            Ok(control) => control,
            Err(error) => {
                if active.is_none() && connection.survivors.is_empty() {
                    let number = connection.state.header().connection.load(Ordering::Relaxed);
                    mount::unmount(&point, number);
                }
                return Err(format!("control socket: {error}"));
            }
        };
        let header = connection.state.header();
        header
            .holder_pid
            .store(std::process::id(), Ordering::Relaxed);
        let number = header.connection.load(Ordering::Relaxed);
        let now = Instant::now();
        if let Some(client) = adopt.client.and_then(|client| fd::inherited(client).ok()) {
            answer(
                &client,
                &Ok("upgraded; holder and workers run the new program".to_owned()),
            );
        }
        let down = active.is_none().then_some((now, Cause::First));
        let watchdog = notify::watchdog_interval();
        Ok(Self {
            answers_before: connection.state.answers(),
            options,
            point,
            fuse: connection.fuse,
            state: connection.state,
            tree: connection.tree,
            number,
            manager: Manager::from_env(),
            signals,
            control,
            oom_score_adj,
            image,
            last_good: None,
            active,
            standby,
            upgrade: None,
            survivors: connection.survivors,
            asking: Vec::new(),
            down,
            orphans_answered: false,
            fruitless: 0,
            standby_failures: 0,
            spawn_after: now,
            standby_after: now,
            next_probe: now,
            probing: None,
            probe_complaint: false,
            watchdog,
            next_sign: now,
            deaths: 0,
            stuck: 0,
            upgrades: 0,
            announced: false,
        })
    }

    fn supervise(mut self, ready: &mut Option<OwnedFd>) -> ExitCode {
        if self.manager.present() {
            let tree = self.tree.as_ref().map(AsRawFd::as_raw_fd);
            let stored =
                self.manager
                    .store(self.fuse.as_raw_fd(), self.state.fd().as_raw_fd(), tree);
            if let Err(error) = stored {
                say(&format!(
                    "cannot store the connection with the service manager: {error}"
                ));
            }
        }
        loop {
            self.cover();
            if !self.announced
                && self
                    .active
                    .as_ref()
                    .is_some_and(|w| w.phase == Phase::Serving)
            {
                self.announced = true;
                announce(ready, "ok");
                let text = format!(
                    "READY=1\nMAINPID={}\nSTATUS=serving {}",
                    std::process::id(),
                    self.point.display()
                );
                if let Err(error) = self.manager.notify(&text, &[]) {
                    say(&format!("cannot notify the service manager: {error}"));
                }
            }
            let events = self.wait();
            if let Some(outcome) = self.react(events) {
                return self.finish(&outcome, ready);
            }
            self.check_deadlines();
        }
    }

    fn spawn(&self, image: &Image) -> Option<Worker> {
        let args = self.options.worker.get(1..).unwrap_or_default();
        let score = self.oom_score_adj.as_deref();
        let state = self.state.fd().as_raw_fd();
        match Worker::spawn(image, args, self.fuse.as_fd(), state, score) {
            Ok(worker) => Some(worker),
            Err(error) => {
                say(&format!(
                    "cannot start a worker from {}: {error}",
                    image.path.display()
                ));
                None
            }
        }
    }

    /// Makes sure that somebody serves and that somebody stands by.
    fn cover(&mut self) {
        let now = Instant::now();
        if self.active.is_none() && self.standby.is_none() && now >= self.spawn_after {
            self.standby = self.spawn(&self.image);
            if self.standby.is_none() {
                self.spawn_after = now + Duration::from_millis(500);
            }
        }
        if self.active.is_none()
            && self
                .standby
                .as_ref()
                .is_some_and(|w| w.phase == Phase::Ready)
        {
            self.retire_survivors();
            let cause = self.down.map_or(Cause::Killed, |(_, cause)| cause);
            if let Some(mut worker) = self.standby.take() {
                worker.tell(&Order::Activate(cause));
                worker.enter(Phase::Activated);
                self.state
                    .header()
                    .worker_pid
                    .store(worker.pid, Ordering::Relaxed);
                self.answers_before = self.state.answers();
                self.probing = None;
                self.active = Some(worker);
            }
        }
        let serving = self
            .active
            .as_ref()
            .is_some_and(|w| w.phase == Phase::Serving);
        if serving
            && self.options.standby
            && self.standby.is_none()
            && self.upgrade.is_none()
            && now >= self.standby_after
        {
            self.standby = self.spawn(&self.image);
            self.standby_after = now + Duration::from_millis(500);
        }
    }

    /// Ends the workers of a dead predecessor; the new worker is ready to continue.
    fn retire_survivors(&mut self) {
        for (_, pidfd) in &self.survivors {
            fd::kill(pidfd);
        }
        for (pid, pidfd) in self.survivors.drain(..) {
            let mut one = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            if !matches!(poll(&mut one, 1000u16), Ok(1)) {
                say(&format!("worker {pid} of the previous holder does not end"));
            }
        }
    }

    fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let starting = [self.active.as_ref(), self.standby.as_ref()]
            .into_iter()
            .flatten()
            .filter(|w| matches!(w.phase, Phase::Starting | Phase::Activated))
            .map(|w| w.since + START_DEADLINE);
        let idle = self.active.is_none() && self.standby.is_none();
        let serving = self.active.is_some();
        let wants_standby = serving && self.standby.is_none() && self.options.standby;
        let orphans = self
            .down
            .filter(|_| !self.orphans_answered)
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
            self.upgrade.as_ref().map(upgrade::Upgrade::deadline),
        ];
        starting.chain(others.into_iter().flatten())
    }

    /// Waits for something to happen; returns which descriptors are readable.
    fn wait(&self) -> Vec<Event> {
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
                watched.push((Event::Message(role), worker.channel.as_fd()));
                watched.push((Event::Death(role), worker.pidfd.as_fd()));
            }
        }
        if let Some(control) = &self.control {
            watched.push((Event::Accept, control.listener().as_fd()));
            for (index, client) in control.clients().iter().enumerate() {
                watched.push((Event::Client(index), client.as_fd()));
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

    fn react(&mut self, events: Vec<Event>) -> Option<Outcome> {
        // A client may be dropped while handling: highest index first keeps the others valid.
        for event in events.iter().rev() {
            if let Event::Client(index) = event
                && self.client(*index)
            {
                return Some(Outcome::Stop);
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
                }
                Event::Death(role) => {
                    self.death(role);
                    break;
                }
                Event::Accept => {
                    if let Some(control) = &mut self.control {
                        control.accept();
                    }
                }
                Event::Client(_) => {}
            }
        }
        None
    }

    fn worker(&mut self, role: Role) -> Option<&mut Worker> {
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
    fn messages(&mut self, role: Role) -> bool {
        loop {
            let Some(worker) = self.worker(role) else {
                return false;
            };
            let Ok(Some(text)) = channel::hear(&worker.channel, false) else {
                return false;
            };
            match Report::from_text(&text) {
                Some(Report::Ready) => {
                    worker.enter(Phase::Ready);
                    if role == Role::Standby {
                        self.standby_failures = 0;
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
                    self.down = None;
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

    fn death(&mut self, role: Role) {
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
                self.fell_short(worker.pid, &end.to_string());
            } else if self.standby_failures == 3 {
                say(&format!(
                    "standby worker {} {end}; trying on, more slowly",
                    worker.pid
                ));
            }
            return;
        }
        self.deaths += 1;
        let cause = if worker.stuck {
            Cause::Crashed
        } else {
            end.cause()
        };
        self.down = Some((Instant::now(), cause));
        self.orphans_answered = false;
        if self.state.answers() == self.answers_before && cause == Cause::Crashed {
            self.fell_short(worker.pid, &end.to_string());
        } else {
            self.fruitless = 0;
            self.spawn_after = Instant::now();
        }
        if cause == Cause::Crashed {
            say(&format!("worker {} {end}", worker.pid));
        }
        self.upgrade_lost_active();
        self.cover();
    }

    /// A worker ended without having answered anything.
    fn fell_short(&mut self, pid: u32, how: &str) {
        self.fruitless = self.fruitless.saturating_add(1);
        if self.fruitless < FRUITLESS {
            return;
        }
        let steps = (self.fruitless - FRUITLESS).min(7);
        self.spawn_after = Instant::now() + Duration::from_millis(10 << steps);
        if self.fruitless == FRUITLESS {
            say(&format!(
                "{FRUITLESS} workers in a row ended before they answered anything (last: {pid} {how}); slowing down"
            ));
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

    fn probed(&mut self, result: Result<(), String>) {
        self.probing = None;
        self.next_probe = Instant::now() + self.options.probe_interval;
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

    fn check_deadlines(&mut self) {
        let now = Instant::now();
        if self.active.is_none() || self.down.is_some() {
            self.answer_orphans(now);
        }
        for role in [Role::Active, Role::Standby] {
            if let Some(worker) = self.worker(role)
                && matches!(worker.phase, Phase::Starting | Phase::Activated)
                && now >= worker.since + START_DEADLINE
                && !worker.stuck
            {
                worker.stuck = true;
                say(&format!(
                    "worker {} does not get ready; replacing it",
                    worker.pid
                ));
                worker.kill();
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
    fn answer_orphans(&mut self, now: Instant) {
        let Some((since, cause)) = self.down else {
            return;
        };
        if self.orphans_answered || now < since + self.options.orphan_bound {
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

    fn refuse(&self, unique: u64) {
        let mut reply = [0; 16];
        reply[..4].copy_from_slice(&16u32.to_ne_bytes());
        reply[4..8].copy_from_slice(&(-libc::EIO).to_ne_bytes());
        reply[8..].copy_from_slice(&unique.to_ne_bytes());
        // ENOENT: the request was answered after all, or its caller was killed.
        let _answered = nix::unistd::write(&self.fuse, &reply);
    }

    fn probe(&mut self, now: Instant) {
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

    /// Returns true when the signal says stop.
    fn signal(&mut self) -> bool {
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
    fn client(&mut self, index: usize) -> bool {
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

    fn status(&self) -> String {
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
            ("standby", pid(self.standby.as_ref()).to_string()),
            ("standby_ready", u8::from(standby_ready).to_string()),
            ("program", self.image.path.display().to_string()),
            ("loops", self.state.loops().to_string()),
            ("answers", self.state.answers().to_string()),
            ("worker_deaths", self.deaths.to_string()),
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

    fn finish(mut self, outcome: &Outcome, ready: &mut Option<OwnedFd>) -> ExitCode {
        let _no_manager = self.manager.notify("STOPPING=1", &[]);
        let still_mounted = matches!(
            mount::topmost(&self.point),
            Ok(Some(m)) if m.minor == self.number && m.fs_type == mount::FS_TYPE
        );
        mount::unmount(&self.point, self.number);
        self.retire_survivors();
        let candidate = self
            .upgrade
            .take()
            .and_then(upgrade::Upgrade::into_candidate);
        for worker in [self.active.take(), self.standby.take(), candidate]
            .into_iter()
            .flatten()
        {
            worker.kill_and_wait();
        }
        if let Some(control) = self.control.take() {
            control.close();
        }
        match outcome {
            Outcome::Stop => ExitCode::SUCCESS,
            Outcome::Lost => {
                self.manager.forget();
                announce(ready, "the connection was lost");
                if still_mounted {
                    say("the connection was aborted");
                    return ExitCode::FAILURE;
                }
                say(&format!("{} was unmounted", self.point.display()));
                ExitCode::SUCCESS
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Active,
    Standby,
    Candidate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Signal,
    Message(Role),
    Death(Role),
    Accept,
    Client(usize),
}

/// Descriptors that an exec of a new holder program keeps.
fn keep_open(fds: &[RawFd], open: bool) {
    for number in fds {
        if let Err(error) = fd::set_inheritable(*number, open) {
            say(&format!("cannot pass descriptor {number} on: {error}"));
        }
    }
}
