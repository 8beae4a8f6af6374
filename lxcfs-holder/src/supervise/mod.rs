//! The holder's life: one `poll` loop over workers, signals and the control socket.
//!
//! Nothing here may block: a file system request of our own mount would wait for the worker
//! that we have to replace. The watchdog's reads are therefore done by the standby worker.

mod admit;
mod backoff;
mod deadlines;
mod events;
mod start;
mod upgrade;

use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::channel::Order;
use crate::control::{Control, answer};
use crate::gate::Gate;
use crate::image::Image;
use crate::layout::{Cause, State};
use crate::log::say;
use crate::notify::{self, Manager};
use crate::options::HolderOptions;
use crate::outside::ServerId;
use crate::spawn::{Phase, Worker};
use crate::{HOLDER_COMM, fd, mount};

/// A worker must be prepared, and an activated one must serve, within this time. It doubles
/// with each that is late, until one serves: on a starved machine the next would be just as late.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// The deadline grows no further than this.
const LONGEST_START: Duration = Duration::from_secs(320);
/// Readers that have a file open when we are told to stop may read for so long.
const LAST_READERS_MSEC: u16 = 200;
/// Stuck workers in a row after which the connection itself is given up.
const HOPELESS: u32 = 20;

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
    /// Where workers come to; `None` if we start them.
    gate: Option<Gate>,
    /// A procfs for workers that cannot make their own.
    proc: Option<OwnedFd>,
    /// Our own score before we lowered it; workers get it back.
    oom_score_adj: Option<String>,
    image: Image,
    /// What served before the last upgrade; the fallback of a crash loop.
    last_good: Option<Image>,
    active: Option<Worker>,
    standby: Option<Worker>,
    /// Workers that have been relieved and not ended yet.
    leaving: Vec<Worker>,
    upgrade: Option<upgrade::Upgrade>,
    survivors: Vec<(u32, OwnedFd)>,
    /// Clients that wait for the daemon's answer to a command, oldest first.
    asking: Vec<OwnedFd>,
    /// The server whose worker served last.
    served_by: Option<ServerId>,
    /// The worker that died last while it served.
    last_death: Option<u32>,
    /// Workers of a server that ended while they replayed, nobody has said how.
    suspects: Vec<u32>,
    /// Since when nobody serves, and whom the next worker blames.
    down: Option<(Instant, Cause)>,
    /// A standby says that nothing of the active worker runs any more.
    said_deserted: bool,
    orphans_answered: bool,
    /// Answers counted when the active worker took over.
    answers_before: u64,
    fruitless: u32,
    complaint: backoff::Complaint,
    standby_failures: u32,
    start_deadline: Duration,
    spawn_after: Instant,
    standby_after: Instant,
    next_probe: Instant,
    probing: Option<Instant>,
    probe_complaint: bool,
    watchdog: Option<Duration>,
    next_sign: Instant,
    deaths: u64,
    /// Those that a standby told of before the channel was closed.
    deaths_told: u64,
    stuck: u64,
    /// Stuck workers since the watchdog last read something.
    stuck_in_a_row: u32,
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

/// Puts us first on the CPU: we run for moments only, while readers wait. Where that is not
/// allowed it merely takes longer. Returns what a serving worker does about its own nice value.
fn hurry() -> u32 {
    // SAFETY: no memory involved; -1 may be a value or an error, and is then no harm.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    // The kernel's sched_param. Not by the C library: musl's call only fails, and its
    // structure is larger.
    let first: libc::c_int = 1;
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the parameter outlives the calls.
    unsafe {
        if libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const first) != 0 {
            libc::setpriority(libc::PRIO_PROCESS, 0, crate::FIRST_NICE);
        }
    }
    nice.clamp(0, 19).unsigned_abs() + 21
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
        let serving_nice = hurry();
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
        let gate = options.outside.as_ref();
        let gate = gate.map(|path| Gate::listen(path, options.outside_uid));
        let sockets = control
            .transpose()
            .and_then(|control| Ok((control, gate.transpose()?)));
        let (control, gate) = match sockets {
            Ok(sockets) => sockets,
            Err(error) => {
                if active.is_none() && connection.survivors.is_empty() {
                    let number = connection.state.header().connection.load(Ordering::Relaxed);
                    mount::unmount(&point, number);
                }
                return Err(format!("cannot listen: {error}"));
            }
        };
        let header = connection.state.header();
        header
            .holder_pid
            .store(std::process::id(), Ordering::Relaxed);
        header.serving_nice.store(serving_nice, Ordering::Relaxed);
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
            proc: gate.as_ref().and_then(|_| fd::detached_proc().ok()),
            gate,
            oom_score_adj,
            image,
            last_good: adopt.last_good.and_then(|fd| Image::adopt(fd).ok()),
            active,
            standby,
            leaving: Vec::new(),
            upgrade: None,
            survivors: connection.survivors,
            asking: Vec::new(),
            served_by: None,
            last_death: None,
            suspects: Vec::new(),
            down,
            said_deserted: false,
            orphans_answered: false,
            fruitless: 0,
            complaint: backoff::Complaint::default(),
            standby_failures: 0,
            start_deadline: START_DEADLINE,
            spawn_after: now,
            standby_after: now,
            next_probe: now,
            probing: None,
            probe_complaint: false,
            watchdog,
            next_sign: now,
            deaths: 0,
            deaths_told: 0,
            stuck: 0,
            stuck_in_a_row: 0,
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
        if self.gate.is_some() {
            // Readers wait for a server that others start, perhaps after us.
            self.tell_ready(ready, "waiting for a server");
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
                self.tell_ready(ready, "serving");
            }
            let events = self.wait();
            if let Some(outcome) = self.react(events) {
                return self.finish(&outcome, ready);
            }
            self.check_deadlines();
            if self.stuck_in_a_row >= HOPELESS {
                // The last resort: closing every descriptor aborts the connection. Readers get
                // errors instead of waiting for ever, and our successor heals the mounts.
                say(&format!(
                    "{HOPELESS} workers in a row got stuck; giving the connection up"
                ));
                return self.finish(&Outcome::Lost, ready);
            }
        }
    }

    fn tell_ready(&self, ready: &mut Option<OwnedFd>, what: &str) {
        announce(ready, "ok");
        crate::trim::drop_text();
        let text = format!(
            "READY=1\nMAINPID={}\nSTATUS={what} {}",
            std::process::id(),
            self.point.display()
        );
        if let Err(error) = self.manager.notify(&text, &[]) {
            say(&format!("cannot notify the service manager: {error}"));
        }
    }

    fn spawn(&self, image: &Image) -> Result<Worker, String> {
        let args = self.options.worker.get(1..).unwrap_or_default();
        let score = self.oom_score_adj.as_deref();
        let state = self.state.fd().as_raw_fd();
        Worker::spawn(image, args, self.fuse.as_fd(), state, score).map_err(|error| {
            let path = image.path.display();
            format!("cannot start a worker from {path}: {error}")
        })
    }

    /// Starts a worker that stands by; says so if that fails in a new way.
    fn spawn_standby(&mut self) {
        match self.spawn(&self.image) {
            Ok(worker) => self.standby = Some(worker),
            Err(error) => {
                if self.complaint.is_new(&error) {
                    say(&error);
                }
            }
        }
    }

    /// Makes sure that somebody serves and that somebody stands by.
    fn cover(&mut self) {
        let now = Instant::now();
        let spawns = self.gate.is_none();
        if spawns && self.active.is_none() && self.standby.is_none() && now >= self.spawn_after {
            self.spawn_standby();
            if self.standby.is_none() {
                self.spawn_after = now + Duration::from_millis(500);
            } else if self.announced && self.fruitless == 0 && self.survivors.is_empty() {
                // This program has served: no need to hear that it is ready.
                self.activate_standby();
            }
        }
        if self.active.is_none()
            && self
                .standby
                .as_ref()
                .is_some_and(|w| w.phase == Phase::Ready)
        {
            self.retire_survivors();
            self.activate_standby();
        }
        let serving = self
            .active
            .as_ref()
            .is_some_and(|w| w.phase == Phase::Serving);
        if spawns
            && serving
            && self.options.standby
            && self.standby.is_none()
            && self.upgrade.is_none()
            && now >= self.standby_after
        {
            self.spawn_standby();
            self.standby_after = now + Duration::from_millis(500);
        }
    }

    /// Tells the standby to serve.
    fn activate_standby(&mut self) {
        if let Some(worker) = self.standby.take() {
            self.activate(worker);
        }
    }

    /// Makes `worker` the one that serves; nobody else does.
    fn activate(&mut self, mut worker: Worker) {
        let cause = self.down.map_or(Cause::Killed, |(_, cause)| cause);
        // In this order: whoever is without us in the middle of it knows whose turn it is.
        let header = self.state.header();
        header.worker_pid.store(worker.pid, Ordering::Release);
        self.state.expect_signatures();
        worker.tell(&Order::Activate(cause));
        worker.enter(Phase::Activated);
        self.answers_before = self.state.answers();
        self.probing = None;
        self.active = Some(worker);
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

    /// Where no container has our files any more, a reader may still have one open: the kernel
    /// ends the connection, and with it the worker, when the last one is closed.
    fn let_readers_finish(&self) {
        if let Some(active) = &self.active {
            let mut one = [PollFd::new(active.pidfd.as_fd(), PollFlags::POLLIN)];
            let _ended_or_bound = poll(&mut one, LAST_READERS_MSEC);
        }
    }

    fn finish(mut self, outcome: &Outcome, ready: &mut Option<OwnedFd>) -> ExitCode {
        let _no_manager = self.manager.notify("STOPPING=1", &[]);
        let still_mounted = matches!(
            mount::topmost(&self.point),
            Ok(Some(m)) if m.minor == self.number && m.fs_type == mount::FS_TYPE
        );
        mount::unmount(&self.point, self.number);
        if matches!(outcome, Outcome::Stop) {
            self.let_readers_finish();
        }
        self.retire_survivors();
        let candidate = self
            .upgrade
            .take()
            .and_then(upgrade::Upgrade::into_candidate);
        let others = [self.active.take(), self.standby.take(), candidate];
        for worker in others.into_iter().flatten().chain(self.leaving.drain(..)) {
            worker.kill_and_wait();
        }
        if let Some(control) = self.control.take() {
            control.close();
        }
        if let Some(own_dir) = &self.options.own_dir {
            remove_sockets(own_dir);
        }
        if let Some(gate) = self.gate.take() {
            gate.close();
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

/// Removes what nobody listens on any more.
fn remove_sockets(directory: &Path) {
    use std::os::unix::fs::FileTypeExt as _;
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            let _already_gone = std::fs::remove_file(entry.path());
        }
    }
}

/// Descriptors that an exec of a new holder program keeps.
fn keep_open(fds: &[RawFd], open: bool) {
    for number in fds {
        if let Err(error) = fd::set_inheritable(*number, open) {
            say(&format!("cannot pass descriptor {number} on: {error}"));
        }
    }
}
