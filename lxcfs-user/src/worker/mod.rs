//! The worker: prepares everything, waits for the holder's word, adopts the connection and
//! serves until it is killed. There is no orderly end; being killed is the normal one.

mod standalone;
mod store;

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lxcfs_common::catalogue::{CATALOGUE, Kind, Node};
use lxcfs_holder::channel::{Order, Report, hear, say};
use lxcfs_holder::layout::{Cause, Orphan, State};
use lxcfs_holder::{CHANNEL_FD, FUSE_FD, STATE_FD, WORKER_COMM, inherited};

pub use standalone::Standalone;
pub use store::{Appended, HistoryStore};

use crate::engine::{AnswerError, Caller, Engine};
use crate::fuse::{self, DeviceWake, Facts, ServeError, Server};
use crate::vfs::psi::Triggers;
use crate::vfs::{OpenFiles, SnapshotTable, Vfs};

/// Why a worker cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A descriptor from the holder is missing or wrong.
    #[error("{what}; a worker is started by the holder, not by hand")]
    Inherited {
        /// Which descriptor.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The connection cannot be adopted.
    #[error("cannot adopt the FUSE connection")]
    Serve(#[from] ServeError),
    /// The engine gave no answer to the self-test.
    #[error("self-test: {path} cannot be rendered")]
    SelfTest {
        /// The file.
        path: &'static str,
        /// The engine's error.
        #[source]
        source: AnswerError,
    },
    /// The self-test's request was refused.
    #[error("self-test: LOOKUP of proc failed with errno {0}")]
    Lookup(i32),
    /// Mounting failed ([`Standalone`] only).
    #[error(transparent)]
    Mount(#[from] lxcfs_holder::MountError),
}

/// Called once, when the worker starts to serve.
pub type OnActive = Box<dyn FnOnce(HistoryStore) + Send>;
/// Called once, right before the first request is answered, with what the last worker saved.
pub type OnTakeover = Box<dyn FnOnce(&HistoryStore) + Send>;
/// Called for each command that reaches the daemon through the holder: `toggle-host-view`, or
/// the text of [`Request::Command`](lxcfs_holder::control::Request::Command). Returns what the
/// client is told.
pub type OnCommand = Box<dyn Fn(&str) -> Result<String, String> + Send>;

/// Called when the holder died without ending its workers.
pub type OnOrphaned = Box<dyn FnOnce() + Send>;
/// Called before the first worker of a connection says that it is ready.
pub type BeforeFirst = Box<dyn FnOnce() + Send>;

/// What the daemon wants to know from its worker.
#[derive(Default)]
pub struct WorkerOptions {
    /// Waits for what the others do without at first: nobody reads yet.
    pub before_first: Option<BeforeFirst>,
    /// Starts samplers and the like; a standby worker must not run them. Called after serving
    /// has begun, on the worker's main thread.
    pub on_active: Option<OnActive>,
    /// Restores what readers could otherwise see going back. Readers wait for it, so it must
    /// be quick.
    pub on_takeover: Option<OnTakeover>,
    /// Handles commands.
    pub on_command: Option<OnCommand>,
    /// Gets a new holder. The worker serves on, and is replaced by the new holder's.
    pub on_orphaned: Option<OnOrphaned>,
    /// A server started this worker, and starts others for the next holder only when it ends.
    pub from_server: bool,
}

/// The lowest number for the copy of the channel that closes first: above those of all else,
/// below the usual limit of descriptors.
const HIGH_FD: libc::c_int = 1000;
/// Between two looks at whether holder and worker are dead.
const SHORTEST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_secs(1);
/// A new holder that has not ended us for so long does not know us.
const MISSED: Duration = Duration::from_secs(600);
/// For a thread that makes two system calls.
const WATCH_STACK_BYTES: usize = 64 * 1024;

/// The holder takes the end of the channel for ours: nothing but our death may close it. And it
/// shall close before all else, for some descriptors (eBPF links) take the kernel a tenth of a
/// second. A dying process lets go of files in the order of their numbers, downwards.
fn hold_until_death(channel: &Arc<OwnedFd>) {
    std::mem::forget(channel.clone());
    // SAFETY: the new descriptor is ours and stays open; without one it only takes longer.
    unsafe { libc::fcntl(channel.as_raw_fd(), libc::F_DUPFD_CLOEXEC, HIGH_FD) };
}

/// Tells the holder when nothing of the worker that serves runs any more: the threads of a dying
/// process are gone long before its descriptors are closed. Without it, that is when it is known.
fn watch_over(state: &Arc<State>, channel: &Arc<OwnedFd>, activated: &Arc<AtomicBool>) {
    let (state, channel, activated) = (state.clone(), channel.clone(), activated.clone());
    let watch = move || {
        if state.wait_until_deserted(&activated) {
            let _holder_gone = say(&*channel, &Report::Deserted.to_text());
        }
    };
    let thread = std::thread::Builder::new().name("watch".to_owned());
    if let Err(error) = thread.stack_size(WATCH_STACK_BYTES).spawn(watch) {
        tracing::debug!(%error, "nobody watches over the worker that serves");
    }
}

/// Takes the calling thread back to the usual priority, if it started above.
pub fn not_urgent() {
    // SAFETY: plain integers; lowering one's own priority needs no privilege.
    unsafe {
        if libc::getpriority(libc::PRIO_PROCESS, 0) < 0 {
            libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        }
    }
}

/// Serves `engine` as the worker of the holder that started this process. Returns only when
/// it cannot start, or was never needed (the holder is gone).
///
/// # Errors
/// See [`WorkerError`]; the connection has not been touched then.
pub fn run(options: WorkerOptions, engine: Arc<dyn Engine>) -> Result<(), WorkerError> {
    lxcfs_holder::set_process_name(WORKER_COMM);
    let take = |fd, what| inherited(fd).map_err(|source| WorkerError::Inherited { what, source });
    let device = take(FUSE_FD, "the FUSE device is missing")?;
    let state = take(STATE_FD, "the state memory is missing")?;
    let channel = Arc::new(take(CHANNEL_FD, "the channel to the holder is missing")?);
    hold_until_death(&channel);
    let state = State::open_whole(state).map_err(|source| WorkerError::Inherited {
        what: "the state memory cannot be used",
        source,
    })?;
    let state = Arc::new(state);
    let activated = Arc::new(AtomicBool::new(false));
    watch_over(&state, &channel, &activated);
    let mut options = options;
    if state.header().serving_since_nsec.load(Ordering::Relaxed) == 0
        && let Some(before_first) = options.before_first.take()
    {
        before_first();
    }
    let worker = Worker::prepare(device, state, channel, engine)?;
    worker.self_test()?;
    // The self-test's request must not get into a slot; the next one comes when nobody else serves.
    worker.server.map_slots()?;
    worker.report(&Report::Ready);
    let cause = match worker.stand_by() {
        Some(cause) => cause,
        None if worker.outlives_the_others(options.from_server) => Cause::Killed,
        None => return Ok(()),
    };
    activated.store(true, Ordering::Release);
    let serving = worker.activate(cause, options.on_takeover.take())?;
    serving.serve(options);
    Ok(())
}

struct Worker {
    device: OwnedFd,
    state: Arc<State>,
    channel: Arc<OwnedFd>,
    engine: Arc<dyn Engine>,
    table: Option<Arc<SnapshotTable>>,
    triggers: Arc<Triggers>,
    server: Box<dyn Server>,
}

impl Worker {
    fn prepare(
        device: OwnedFd,
        state: Arc<State>,
        channel: Arc<OwnedFd>,
        engine: Arc<dyn Engine>,
    ) -> Result<Self, WorkerError> {
        let counter = state.clone();
        let next_handle =
            Box::new(move || counter.header().next_handle.fetch_add(1, Ordering::Relaxed));
        let table =
            store::opens(&state).map(|arena| Arc::new(SnapshotTable::new(arena, next_handle)));
        let opens: Arc<dyn OpenFiles> = match &table {
            Some(table) => table.clone(),
            None => Arc::new(SnapshotTable::private()),
        };
        let duplicate = device
            .try_clone()
            .map_err(|source| WorkerError::Inherited {
                what: "the FUSE device cannot be duplicated",
                source,
            })?;
        let journal = Arc::new(store::Journal::new(state.clone()));
        journal.make_present();
        if let Some(table) = &table {
            table.make_present();
        }
        let triggers = Triggers::new(journal, Arc::new(DeviceWake(duplicate)));
        let vfs = Arc::new(Vfs::new(engine.clone(), opens, triggers.clone()));
        let header = state.header();
        let facts = Facts {
            loops: state.loops(),
            kernel_minor: header.kernel_minor.load(Ordering::Relaxed),
            mounted_at_sec: header.mounted_at_sec.load(Ordering::Relaxed),
        };
        let to_holder = channel.clone();
        let ended = Box::new(move |result: io::Result<()>| {
            if let Err(error) = result {
                tracing::error!(%error, "a serving loop failed");
                process::exit(1);
            }
            let _holder_gone = say(&*to_holder, &Report::Unmounted.to_text());
            process::exit(0);
        });
        let server = fuse::prepare(vfs, facts, Some(state.clone()), ended)?;
        Ok(Self {
            device,
            state,
            channel,
            engine,
            table,
            triggers,
            server,
        })
    }

    fn report(&self, report: &Report) {
        if let Err(error) = say(&*self.channel, &report.to_text()) {
            // Without a holder we serve on: a successor takes the connection over from us.
            tracing::debug!(%error, "the holder does not listen");
        }
    }

    /// One request through fuser, one text through the engine. Neither touches the shared
    /// memory, which belongs to the active worker.
    fn self_test(&self) -> Result<(), WorkerError> {
        let reply = self.server.replay(&fuse::lookup_request("proc"))?;
        let errno = reply
            .get(4..8)
            .map_or(libc::EIO, |e| -bytemuck::pod_read_unaligned::<i32>(e));
        if errno != 0 {
            return Err(WorkerError::Lookup(errno));
        }
        let tested = CATALOGUE.iter().find(|entry| {
            matches!(entry.kind, Kind::File(_)) && self.engine.exists(Node::Fixed(entry))
        });
        if let Some(entry) = tested {
            let caller = Caller {
                tid: process::id(),
                uid: 0,
            };
            self.engine
                .render(caller, Node::Fixed(entry), &mut Vec::new())
                .map_err(|source| WorkerError::SelfTest {
                    path: entry.path,
                    source,
                })?;
        }
        Ok(())
    }

    /// Waits for the word to serve; `None` when the holder is gone.
    fn stand_by(&self) -> Option<Cause> {
        loop {
            let text = hear(&*self.channel, true).ok()??;
            match Order::from_text(&text) {
                Some(Order::Activate(cause)) => return Some(cause),
                Some(Order::Probe(path)) => self.probe(path),
                Some(Order::Command(_)) => {
                    self.report(&Report::Answer(Err(
                        "a standby worker takes no commands".to_owned()
                    )));
                }
                None => tracing::warn!(order = text, "ignoring an order of a newer holder"),
            }
        }
    }

    /// Without a holder: whether this worker has to go on, because nobody serves any more. Waits
    /// for that as long as it takes; a new holder that has its own workers ends us.
    fn outlives_the_others(&self, from_server: bool) -> bool {
        let orphaned = Instant::now();
        let mut unheld = orphaned;
        let mut pause = SHORTEST_LOOK;
        while unheld.elapsed() < MISSED && fuse::is_connected(&self.device) {
            let deserted = self.state.is_deserted_within(LONGEST_LOOK)
                || (!from_server && lxcfs_holder::worker_has_ended(&self.state));
            let held = !from_server && lxcfs_holder::living_holder(&self.state).is_some();
            if !held {
                unheld = Instant::now();
            }
            // Somebody may have unmounted what nobody held.
            let wanted = deserted && !held && fuse::is_connected(&self.device);
            if wanted && self.state.claim() {
                if !from_server {
                    let header = self.state.header();
                    header.worker_pid.store(process::id(), Ordering::Relaxed);
                }
                tracing::warn!("holder and worker died; the worker that stood by goes on");
                return true;
            }
            // A server's next worker waits for our place, to be there for the next holder.
            if from_server && !deserted && orphaned.elapsed() >= LONGEST_LOOK {
                return false;
            }
            if deserted {
                // The holder that died last may look alive for a moment yet.
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_LOOK);
            }
        }
        false
    }

    /// Reads a file of the mount through the kernel, on a thread of its own: it may wait for
    /// ever, or until this very worker takes over.
    fn probe(&self, mountpoint: String) {
        let channel = self.channel.clone();
        let names: Vec<&'static str> = CATALOGUE
            .iter()
            .filter(|entry| {
                let node = Node::Fixed(entry);
                matches!(entry.kind, Kind::File(_))
                    && self.engine.exists(node)
                    && self.engine.is_offered(node)
            })
            .map(|entry| entry.path)
            .take(1)
            .collect();
        let probe = move || {
            let result = names.iter().try_for_each(|name| {
                std::fs::read(format!("{mountpoint}/{name}"))
                    .map(drop)
                    .map_err(|e| e.to_string())
            });
            let _holder_gone = say(&*channel, &Report::Probed(result).to_text());
        };
        if let Err(error) = std::thread::Builder::new()
            .name("probe".to_owned())
            .spawn(probe)
        {
            self.report(&Report::Probed(Err(error.to_string())));
        }
    }

    /// Takes the connection over: nothing of the previous worker runs any more.
    fn activate(self, cause: Cause, on_takeover: Option<OnTakeover>) -> Result<Self, WorkerError> {
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

    fn serve(mut self, options: WorkerOptions) {
        if let Some(on_active) = options.on_active {
            on_active(HistoryStore::new(self.state.clone()));
        }
        // What is mapped when this process dies is what readers wait for.
        lxcfs_holder::drop_text();
        while let Ok(Some(text)) = hear(&*self.channel, true) {
            match Order::from_text(&text) {
                Some(Order::Command(command)) => {
                    let answer = match &options.on_command {
                        Some(on_command) => on_command(&command),
                        None => Err("this daemon takes no commands".to_owned()),
                    };
                    self.report(&Report::Answer(answer));
                }
                Some(Order::Probe(_) | Order::Activate(_)) | None => {
                    tracing::warn!(
                        order = text,
                        "ignoring an order that is not for an active worker"
                    );
                }
            }
        }
        // The holder is gone. Readers need not know; a successor will find us.
        if let Some(on_orphaned) = options.on_orphaned {
            on_orphaned();
        }
        self.server.join();
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
