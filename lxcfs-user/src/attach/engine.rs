//! Owns one run over many containers: reading each one's mounts, asking which devices are
//! dead, planning, applying, with bounded parallelism and a deadline per container.
//!
//! A container that does not finish in time costs its worker thread, which is given up and
//! replaced; the number of such threads is bounded, and the rest of the run goes on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::apply::{Entered, Visitor};
use super::discover::{Discovered, MountNs, Scan};
use super::identity::ContainerRef;
use super::plan::{self, Action, Facts, Goal, Liveness};
use super::report::{ContainerReport, Outcome, Report, StepReport, usec};
use super::{AttachError, FS_TYPE, probe};
use crate::mountinfo::{self, Device};

/// Limits of a run.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Containers handled at the same time.
    pub parallelism: usize,
    /// Time one container may take.
    pub deadline: Duration,
    /// Largest mount table that is read, in bytes.
    pub mountinfo_limit: u64,
    /// Use `MOVE_MOUNT_BENEATH` where the kernel has it (6.5).
    pub gapless: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            parallelism: std::thread::available_parallelism().map_or(2, |n| n.get().min(8)),
            deadline: Duration::from_secs(2),
            mountinfo_limit: 32 << 20,
            gapless: true,
            dry_run: false,
        }
    }
}

/// Threads given up in one run before the rest of it is refused.
const MAX_ABANDONED: usize = 16;

/// One container to handle.
#[derive(Clone, Debug)]
pub struct Target {
    /// A process in it.
    pub pid: u32,
    /// The namespace it was found in; checked again before entering.
    pub mnt_ns: Option<MountNs>,
    /// For the report.
    pub container: Option<ContainerRef>,
    /// Directory that will be the container's root, when the process has not moved there
    /// yet: a path without symlinks in the process's own view.
    pub root: Option<PathBuf>,
}

impl Target {
    /// A process named by somebody who knows.
    pub fn process(pid: u32) -> Self {
        Self {
            pid,
            mnt_ns: None,
            container: None,
            root: None,
        }
    }
}

impl From<Discovered> for Target {
    fn from(found: Discovered) -> Self {
        Self {
            pid: found.pid,
            mnt_ns: Some(found.mnt_ns),
            container: found.container,
            root: None,
        }
    }
}

struct Source {
    dir: OwnedFd,
    device: Device,
}

/// Attaches, heals and detaches from one mount of ours.
pub struct Engine {
    source: Option<Source>,
    options: EngineOptions,
    host: Vec<MountNs>,
    host_peers: BTreeSet<u32>,
}

/// Looks for the topmost mount at `path` in this process's own table.
fn own_mount(
    path: &Path,
) -> Result<(mountinfo::MountTable, Option<mountinfo::Mount>), AttachError> {
    let text = std::fs::read("/proc/thread-self/mountinfo")
        .map_err(|err| AttachError::io("/proc/thread-self/mountinfo", err))?;
    let table = mountinfo::parse(&text).map_err(|source| AttachError::Mountinfo {
        pid: std::process::id(),
        source,
    })?;
    let found = table.stack(path).layers.last().copied().cloned();
    Ok((table, found))
}

impl Engine {
    /// Takes hold of the live mount at `mountpoint`.
    ///
    /// # Errors
    /// There is none, it is of another kind, or it is dead.
    pub fn open(mountpoint: &Path, options: EngineOptions) -> Result<Self, AttachError> {
        let not_served = |found: &str| AttachError::NotServed {
            path: mountpoint.to_owned(),
            found: found.to_owned(),
        };
        // Only the parent is resolved: the mount itself may be dead.
        let parent = mountpoint.parent().unwrap_or(Path::new("/"));
        let parent = parent
            .canonicalize()
            .map_err(|err| AttachError::io(parent, err))?;
        let path = mountpoint
            .file_name()
            .map_or_else(|| PathBuf::from("/"), |name| parent.join(name));
        let (_, mount) = own_mount(&path)?;
        let mount = mount.ok_or_else(|| not_served("nothing is mounted there"))?;
        if mount.fs_type != FS_TYPE {
            return Err(not_served(&mount.fs_type));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|err| AttachError::io(&path, err))?;
        let copy = dir
            .try_clone()
            .map_err(|err| AttachError::call("dup of the mountpoint", err))?;
        match probe::liveness(copy, options.deadline) {
            Liveness::Alive => {}
            Liveness::Dead => return Err(not_served("a dead mount: its daemon is gone")),
            Liveness::Unresponsive => {
                return Err(not_served("a mount whose daemon does not answer"));
            }
        }
        let mut engine = Self::without_source(options)?;
        engine.source = Some(Source {
            dir,
            device: mount.device,
        });
        Ok(engine)
    }

    /// For detaching when no daemon runs: only dead mounts count as ours then.
    ///
    /// # Errors
    /// The host's own mounts cannot be read.
    pub fn without_source(options: EngineOptions) -> Result<Self, AttachError> {
        let host = Scan::default().host_namespaces()?;
        let mut host_peers = BTreeSet::new();
        for pid in ["thread-self", "self", "1"] {
            let path = format!("/proc/{pid}/mountinfo");
            match std::fs::read(&path) {
                Ok(text) => {
                    let table =
                        mountinfo::parse(&text).map_err(|source| AttachError::Mountinfo {
                            pid: std::process::id(),
                            source,
                        })?;
                    host_peers.extend(table.mounts().iter().filter_map(|mount| mount.shared));
                }
                Err(err) if pid == "thread-self" => return Err(AttachError::io(path, err)),
                Err(_) => {}
            }
        }
        Ok(Self {
            source: None,
            options,
            host,
            host_peers,
        })
    }

    /// Device of the mount attached from.
    pub fn device(&self) -> Option<Device> {
        self.source.as_ref().map(|source| source.device)
    }

    /// Handles every target. The report has one entry per target, in their order.
    pub fn run(self: &Arc<Self>, targets: Vec<Target>, goal: &Goal) -> Report {
        let began = Instant::now();
        let mut run = Run::new(Arc::clone(self), targets, goal.clone());
        let containers = run.wait();
        Report {
            containers,
            elapsed_usec: usec(began.elapsed()),
        }
    }

    /// Handles one target on the calling thread, without a deadline.
    fn handle(
        &self,
        visitor: &Visitor,
        target: &Target,
        goal: &Goal,
        seen: &Mutex<BTreeMap<Device, Liveness>>,
        cancelled: &AtomicBool,
    ) -> Result<Vec<StepReport>, AttachError> {
        let (mut reports, again) = self.pass(visitor, target, goal, seen, cancelled)?;
        if again {
            let (more, _) = self.pass(visitor, target, goal, seen, cancelled)?;
            // What the first pass did is kept where the second found nothing to do.
            reports.retain(|step| !matches!(step.outcome, Outcome::Skipped(_)));
            let done: BTreeSet<PathBuf> = reports.iter().map(|step| step.path.clone()).collect();
            reports.extend(more.into_iter().filter(|step| {
                !matches!(step.outcome, Outcome::Skipped(_)) || !done.contains(&step.path)
            }));
        }
        Ok(reports)
    }

    /// Reads, plans and applies once; the second value asks for another pass.
    ///
    /// # Errors
    /// The container cannot be read or entered.
    fn pass(
        &self,
        visitor: &Visitor,
        target: &Target,
        goal: &Goal,
        seen: &Mutex<BTreeMap<Device, Liveness>>,
        cancelled: &AtomicBool,
    ) -> Result<(Vec<StepReport>, bool), AttachError> {
        let mut entered = Entered::open(target.pid, target.mnt_ns, &self.host)?;
        let text = entered.read("mountinfo", self.options.mountinfo_limit)?;
        let table = mountinfo::parse(&text).map_err(|source| AttachError::Mountinfo {
            pid: target.pid,
            source,
        })?;
        let table = match &target.root {
            Some(root) => {
                entered.descend(root)?;
                table.below(root)
            }
            None => table,
        };
        let served = self.device();
        let mut liveness = BTreeMap::new();
        for (device, path) in plan::devices_to_probe(&table, served) {
            let known = lock(seen).get(&device).copied();
            let state = known.unwrap_or_else(|| {
                let expected = table.stack(&path).top().map(|mount| mount.id);
                let fd = entered
                    .open_path(&path)
                    .filter(|fd| visitor.mount_id(fd.as_fd()) == expected);
                let Some(fd) = fd else {
                    return Liveness::Unresponsive;
                };
                let state = probe::liveness(fd, self.options.deadline / 4);
                lock(seen).insert(device, state);
                state
            });
            liveness.insert(device, state);
        }
        let facts = Facts {
            served,
            liveness,
            host_peers: self.host_peers.clone(),
        };
        let steps = plan::plan(&table, &facts, goal);
        if self.options.dry_run {
            return Ok((steps.iter().map(StepReport::planned).collect(), false));
        }
        let source = self.source.as_ref().map(|source| source.dir.as_fd());
        let reports = visitor.apply(&entered, source, &steps, self.options.gapless, cancelled)?;
        let acted = steps
            .iter()
            .any(|step| !matches!(step.action, Action::Skip(_)));
        if acted && !entered.is_alive() {
            return Err(AttachError::Gone { pid: target.pid });
        }
        Ok((reports, plan::uncovers(&steps, goal)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the workers of one run share.
struct Shared {
    engine: Arc<Engine>,
    goal: Goal,
    queue: Mutex<VecDeque<(usize, Target)>>,
    /// Devices asked already. Only for one run: the kernel reuses device numbers.
    seen: Mutex<BTreeMap<Device, Liveness>>,
}

enum Event {
    Began(usize, Arc<AtomicBool>),
    Done(usize, ContainerReport),
    /// A worker has nothing left to do, or could not start.
    Left(Option<Why>),
}

struct Run {
    shared: Arc<Shared>,
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
    targets: Vec<Target>,
    reports: Vec<Option<ContainerReport>>,
    busy: BTreeMap<usize, (Instant, Arc<AtomicBool>)>,
    workers: usize,
    abandoned: usize,
}

impl Run {
    fn new(engine: Arc<Engine>, targets: Vec<Target>, goal: Goal) -> Self {
        let (sender, events) = mpsc::channel();
        let reports = targets.iter().map(|_| None).collect();
        let workers = engine.options.parallelism.clamp(1, targets.len().max(1));
        let mut run = Self {
            shared: Arc::new(Shared {
                engine,
                goal,
                queue: Mutex::new(targets.iter().cloned().enumerate().collect()),
                seen: Mutex::default(),
            }),
            events,
            sender,
            targets,
            reports,
            busy: BTreeMap::new(),
            workers: 0,
            abandoned: 0,
        };
        for _ in 0..workers {
            run.spawn();
        }
        run
    }

    fn spawn(&mut self) {
        let (shared, events) = (Arc::clone(&self.shared), self.sender.clone());
        let thread = std::thread::Builder::new().name("lxcfs-attach".into());
        if thread.spawn(move || work(&shared, &events)).is_ok() {
            self.workers += 1;
        }
    }

    /// Collects reports until every target has one.
    fn wait(&mut self) -> Vec<ContainerReport> {
        let mut last_error = ("thread", String::from("no worker thread could be started"));
        while self.workers > 0 && self.reports.iter().any(Option::is_none) {
            let deadline = self.shared.engine.options.deadline;
            let next = self.busy.values().map(|(since, _)| *since + deadline).min();
            let limit = next.map_or(deadline, |at| at.saturating_duration_since(Instant::now()));
            match self.events.recv_timeout(limit) {
                Ok(Event::Began(at, cancelled)) => {
                    self.busy.insert(at, (Instant::now(), cancelled));
                }
                Ok(Event::Done(at, report)) => {
                    self.busy.remove(&at);
                    // A late answer of a given-up worker does not replace the verdict.
                    self.reports[at].get_or_insert(report);
                }
                Ok(Event::Left(error)) => {
                    self.workers -= 1;
                    last_error = error.unwrap_or(last_error);
                }
                Err(_) => self.give_up_late_ones(deadline),
            }
        }
        let late = named(&AttachError::Deadline(self.shared.engine.options.deadline));
        let targets = std::mem::take(&mut self.targets);
        std::mem::take(&mut self.reports)
            .into_iter()
            .zip(targets)
            .map(|(report, target)| {
                report.unwrap_or_else(|| {
                    let why = if self.abandoned > 0 {
                        &late
                    } else {
                        &last_error
                    };
                    unreached(&target, why.clone(), Duration::ZERO)
                })
            })
            .collect()
    }

    fn give_up_late_ones(&mut self, deadline: Duration) {
        let late: Vec<usize> = self
            .busy
            .iter()
            .filter(|(_, (since, _))| since.elapsed() >= deadline)
            .map(|(&at, _)| at)
            .collect();
        for at in late {
            if let Some((since, cancelled)) = self.busy.remove(&at) {
                cancelled.store(true, Ordering::Relaxed);
                let why = named(&AttachError::Deadline(deadline));
                let report = unreached(&self.targets[at], why, since.elapsed());
                self.reports[at].get_or_insert(report);
            }
            // The stuck thread leaves without a word; another one takes its place.
            self.workers -= 1;
            self.abandoned += 1;
            if self.abandoned < MAX_ABANDONED {
                self.spawn();
            }
        }
    }
}

/// A reason as one word and as a sentence.
type Why = (&'static str, String);

fn named(error: &AttachError) -> Why {
    (error.label(), error.to_string())
}

fn unreached(target: &Target, (reason, error): Why, elapsed: Duration) -> ContainerReport {
    ContainerReport {
        pid: target.pid,
        container: target.container.clone(),
        steps: Vec::new(),
        error: Some(error),
        reason: Some(reason),
        elapsed_usec: usec(elapsed),
    }
}

/// A worker thread: takes targets from the queue until it is empty or it was given up.
fn work(shared: &Shared, events: &mpsc::Sender<Event>) {
    // The receiver is gone when the run has ended: nobody is left to be told.
    let tell = |event| drop(events.send(event));
    let visitor = match Visitor::new() {
        Ok(visitor) => visitor,
        Err(err) => return tell(Event::Left(Some(named(&err)))),
    };
    loop {
        let Some((at, target)) = lock(&shared.queue).pop_front() else {
            return tell(Event::Left(None));
        };
        let cancelled = Arc::new(AtomicBool::new(false));
        tell(Event::Began(at, Arc::clone(&cancelled)));
        let began = Instant::now();
        let handled =
            shared
                .engine
                .handle(&visitor, &target, &shared.goal, &shared.seen, &cancelled);
        let elapsed = began.elapsed();
        let stranded = matches!(handled, Err(AttachError::Stranded(_)));
        let report = match handled {
            Ok(steps) => ContainerReport {
                pid: target.pid,
                container: target.container.clone(),
                steps,
                error: None,
                reason: None,
                elapsed_usec: usec(elapsed),
            },
            Err(err) => unreached(&target, named(&err), elapsed),
        };
        tell(Event::Done(at, report));
        if stranded {
            return tell(Event::Left(None));
        }
        // A replacement works on: this one must not come back from the dead.
        if cancelled.load(Ordering::Relaxed) {
            return;
        }
    }
}
