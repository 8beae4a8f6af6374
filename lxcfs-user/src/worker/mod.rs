//! The worker: prepares everything, waits for the holder's word, adopts the connection and
//! serves until it is killed. There is no orderly end; being killed is the normal one.

mod standalone;
mod standby;
mod store;
mod takeover;

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lxcfs_common::catalogue::{CATALOGUE, Kind, Node};
use lxcfs_holder::channel::{Order, Report, hear, say};
use lxcfs_holder::layout::{Cause, State};
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

/// The holder takes the end of the channel for ours: nothing but our death may close it. And it
/// shall close before all else, for some descriptors (eBPF links) take the kernel a tenth of a
/// second. A dying process lets go of files in the order of their numbers, downwards.
fn hold_until_death(channel: &Arc<OwnedFd>) {
    std::mem::forget(channel.clone());
    // SAFETY: the new descriptor is ours and stays open; without one it only takes longer.
    unsafe { libc::fcntl(channel.as_raw_fd(), libc::F_DUPFD_CLOEXEC, HIGH_FD) };
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
    standby::watch_over(&state, &channel, &activated);
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
