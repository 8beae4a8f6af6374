//! From a thread id to its container, remembered.
//!
//! Three tables. `threads`: what was found of a thread seen before.
//! *Callers*: threads of one cgroup and the same namespaces are in the same container.
//! *Containers*: one object per cgroup, however it was found.
//!
//! No key can be recycled: cgroup ids never are, namespace numbers are held by an open
//! descriptor as long as they are in a table.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use crate::cgroup::layout::{Layout, LayoutError};
use crate::cgroup::reader::{ReadError, Reader, read_all};
use crate::engine::AnswerError;
use crate::fallback::{Fallback, Fallbacks};
use crate::host::position::{HostNamespaces, Place, PositionError};
use crate::host::reader::HostReader;
use crate::policy::BoundaryPolicy;

use super::boundary::{self, Boundary, CallerFacts, Paths, Rule};
use super::facts::{self, InitSource, Namespaces, Pin, Task};
use super::threads::{Seen, Threads, Witness, hash_of};
use super::{CgroupKey, Container, pidfd};

/// How long a thread's namespaces are taken as unchanged; its cgroup is always asked.
const RECHECK: Duration = Duration::from_secs(1);
/// Combinations of cgroup and namespaces remembered.
const MAX_CALLERS: usize = 8192;

/// Ticks that a kept cgroup file may go unread before it is closed.
const IDLE_TICKS: u64 = 6;
/// Ticks between two sweeps where removed cgroups are told: asking a thousand containers
/// whether they still exist is most of what an idle daemon does.
const TICKS_APART: u64 = 6;

/// Whose view a caller gets.
#[derive(Clone, Debug)]
pub enum View {
    /// The host's own text.
    Host,
    /// A container's.
    Container(Caller),
}

/// A caller inside a container.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its container.
    pub container: Arc<Container>,
    /// Boottime offset of its time namespace, in nanoseconds.
    pub timens_offset: i64,
}

/// Why the resolver cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No usable cgroup hierarchy.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The daemon's own namespaces are unknown.
    #[error(transparent)]
    Position(#[from] PositionError),
    /// A hierarchy cannot be opened.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// mountinfo cannot be read.
    #[error("reading /proc/self/mountinfo")]
    Mountinfo(#[source] io::Error),
}

/// The cgroup side of the machine at one time: replaced as a whole when the mounts change.
#[derive(Debug)]
pub struct Cgroups {
    /// Which hierarchies there are.
    pub layout: Layout,
    /// Their kept directories.
    pub reader: Reader,
}

impl Cgroups {
    /// Finds and opens the hierarchies of `mountinfo`, mounted below `root`; `read_from` as
    /// for [`Layout::detect_from`].
    ///
    /// # Errors
    /// When there are none or they cannot be opened.
    pub fn detect(
        mountinfo: &str,
        read_from: Option<&str>,
        root: &Path,
        descriptors: usize,
    ) -> Result<Self, StartError> {
        let layout = Layout::detect_from(read_from, mountinfo, |mount_point| {
            let path = crate::cgroup::reader::below(root, mount_point);
            std::fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default()
        })?;
        let reader = Reader::new(&layout, root, descriptors)?;
        Ok(Self { layout, reader })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct CallerKey {
    cgroups: Paths,
    namespaces: Namespaces,
}

#[derive(Debug)]
struct Known {
    view: View,
    /// Keeps the namespace numbers of the key from being re-used.
    pins: Vec<Arc<Pin>>,
}

/// Resolves callers.
pub struct Resolver {
    host: Arc<HostReader>,
    own: HostNamespaces,
    /// Root of our own cgroup namespace in the v2 tree, if that is not the host's.
    read_from: Option<String>,
    root: PathBuf,
    descriptors: usize,
    cgroups: RwLock<Arc<Cgroups>>,
    policy: BoundaryPolicy,
    /// Cleared for good when the kernel has no `PIDFD_GET_INFO`.
    has_pidfd_info: AtomicBool,
    /// How long a move of a thread to another cgroup may go unnoticed.
    grace: Duration,
    threads: Threads,
    callers: Mutex<HashMap<CallerKey, Known>>,
    containers: Mutex<HashMap<CgroupKey, Arc<Container>>>,
    pins: Mutex<HashMap<u64, std::sync::Weak<Pin>>>,
    fallbacks: Arc<Fallbacks>,
    /// Somebody calls [`Resolver::note_removed`].
    is_told: AtomicBool,
    /// A container that is tracked was removed.
    has_removed: AtomicBool,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Resolver {
    /// For the machine whose files are below `root` (`/`), with at most about
    /// `descriptors` kept cgroup files. A thread that moves to another cgroup may be taken
    /// for where it was during `grace`.
    ///
    /// # Errors
    /// When the cgroups cannot be read. Whether `place` is the right one is
    /// [`crate::host::position::check`]'s to say.
    pub fn new(
        host: Arc<HostReader>,
        place: Place,
        root: &Path,
        policy: BoundaryPolicy,
        descriptors: usize,
        grace: Duration,
        fallbacks: Arc<Fallbacks>,
    ) -> Result<Self, StartError> {
        let own = place.namespaces;
        let read_from = place.cgroup_root;
        let mountinfo = host
            .read_proc("self/mountinfo", str::to_owned)
            .map_err(StartError::Mountinfo)?;
        let cgroups = Cgroups::detect(&mountinfo, read_from.as_deref(), root, descriptors)?;
        Ok(Self {
            host,
            own,
            read_from,
            root: root.to_owned(),
            descriptors,
            cgroups: RwLock::new(Arc::new(cgroups)),
            policy,
            has_pidfd_info: AtomicBool::new(true),
            grace,
            threads: Threads::default(),
            callers: Mutex::default(),
            containers: Mutex::default(),
            pins: Mutex::default(),
            fallbacks,
            is_told: AtomicBool::new(false),
            has_removed: AtomicBool::new(false),
        })
    }

    /// The daemon's own namespaces.
    #[must_use]
    pub const fn own_namespaces(&self) -> &HostNamespaces {
        &self.own
    }

    /// The present hierarchies.
    #[must_use]
    pub fn cgroups(&self) -> Arc<Cgroups> {
        self.cgroups
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn count(&self, fallback: Fallback) {
        self.fallbacks.count(fallback);
    }

    /// Whose view the thread `tid` gets.
    ///
    /// # Errors
    /// [`AnswerError::Caller`] when it cannot be told.
    pub fn resolve(&self, tid: u32) -> Result<View, AnswerError> {
        if tid == 0 {
            return Err(AnswerError::Caller {
                tid,
                reason: "it is in a PID namespace that the mount's does not contain",
            });
        }
        if let Some(seen) = self.threads.get(tid)
            && seen.still_holds(self.grace)
            && seen.age() < RECHECK
        {
            return Ok(seen.view.clone());
        }
        self.resolve_new(tid)
    }

    fn resolve_new(&self, tid: u32) -> Result<View, AnswerError> {
        let failed = |reason: &'static str| {
            move |error: io::Error| AnswerError::Caller {
                tid,
                reason: match error.raw_os_error() {
                    Some(libc::ENOENT | libc::ESRCH) => "it has exited",
                    Some(libc::EACCES | libc::EPERM) => {
                        "reading its /proc files is forbidden; the daemon needs CAP_SYS_PTRACE \
                         and, under AppArmor or SELinux, leave to trace"
                    }
                    Some(libc::ENAMETOOLONG) => "the path of its cgroup is too long",
                    _ => reason,
                },
            }
        };
        let cgroups = self.cgroups();
        let task = Task::open(&self.host, tid).map_err(failed("opening /proc/TID"))?;
        let pidfd_witness = self.pidfd_witness(tid, &cgroups.layout);
        let file = task
            .open_file("cgroup")
            .map_err(failed("opening /proc/TID/cgroup"))?;
        let (paths, hash) = read_all(&file, false, |text| {
            (cgroups.layout.paths(text), hash_of(text))
        })
        .map_err(failed("reading /proc/TID/cgroup"))?;
        let namespaces = task.namespaces().map_err(failed("reading /proc/TID/ns"))?;
        let view = self
            .view_of(&cgroups, &task, paths, namespaces)
            .map_err(|error| AnswerError::Gone {
                path: error.to_string(),
            })?;
        let (witness, pidfd) = match pidfd_witness {
            Some(witness) => (witness, None),
            None => (Witness::File(file, hash), pidfd::open(tid).ok()),
        };
        // The pidfd was opened by number: it is of the same task if that still has it.
        if task.stat().is_ok() {
            self.threads
                .insert(tid, Seen::new(witness, pidfd, view.clone()));
        }
        Ok(view)
    }

    fn pidfd_witness(&self, tid: u32, layout: &Layout) -> Option<Witness> {
        if !layout.is_pure_v2() || !self.has_pidfd_info.load(Ordering::Relaxed) {
            return None;
        }
        let fd = pidfd::open(tid).ok()?;
        match pidfd::info(&fd) {
            Ok(info) => Some(Witness::Pidfd(fd, info.cgroup_id)),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => None,
            Err(_) => {
                self.has_pidfd_info.store(false, Ordering::Relaxed);
                self.count(Fallback::NoPidfdInfo);
                None
            }
        }
    }

    fn view_of(
        &self,
        cgroups: &Cgroups,
        task: &Task,
        paths: Paths,
        namespaces: Namespaces,
    ) -> Result<View, ReadError> {
        let key = CallerKey {
            cgroups: paths,
            namespaces,
        };
        let known = lock(&self.callers)
            .get(&key)
            .map(|known| known.view.clone());
        match known {
            Some(View::Host) => return Ok(View::Host),
            Some(View::Container(caller)) if caller.container.is_alive() => {
                return Ok(View::Container(caller));
            }
            Some(View::Container(caller)) => self.forget(&caller.container),
            None => {}
        }
        let (facts, pins, pid_namespace) = self.facts(cgroups, task, &key);
        let view = match boundary::decide(&facts, self.policy) {
            None => View::Host,
            Some(boundary) => {
                let [.., foreign_time] = facts::is_foreign(&self.own, &namespaces);
                let timens_offset = if foreign_time {
                    task.boottime_offset().unwrap_or(0)
                } else {
                    0
                };
                View::Container(Caller {
                    container: self.intern(cgroups, &boundary, pid_namespace)?,
                    timens_offset,
                })
            }
        };
        let known = Known {
            view: view.clone(),
            pins,
        };
        let mut callers = lock(&self.callers);
        if callers.len() >= MAX_CALLERS {
            callers.clear();
        }
        callers.insert(key, known);
        Ok(view)
    }

    /// Everything the boundary rules want to know, and what must stay open meanwhile.
    fn facts(
        &self,
        cgroups: &Cgroups,
        task: &Task,
        key: &CallerKey,
    ) -> (CallerFacts, Vec<Arc<Pin>>, Option<Arc<Pin>>) {
        let layout = &cgroups.layout;
        let mut facts = CallerFacts {
            paths: key.cgroups.clone(),
            ..CallerFacts::default()
        };
        let mut pins = Vec::new();
        let mut pid_namespace = None;
        let [foreign_cgroup, foreign_pid, foreign_time] =
            facts::is_foreign(&self.own, &key.namespaces);
        if foreign_cgroup && let Ok(pin) = self.pin(task, "cgroup", key.namespaces.cgroup) {
            let root = facts::cgroup_namespace_root(task, &pin, layout, &key.cgroups).or_else(
                |_not_allowed| facts::cgroup_namespace_root_by_mounts(task, layout, &key.cgroups),
            );
            match root {
                Ok(root) => facts.cgroupns_root = Some(root),
                Err(_) => self.count(Fallback::CgroupnsUnknown),
            }
            pins.push(pin);
        }
        if foreign_pid && let Ok(pin) = self.pin(task, "pid", key.namespaces.pid) {
            match facts::namespace_init(&self.host, task, &pin) {
                Ok((init, source)) => {
                    match source {
                        InitSource::Ioctl => {}
                        InitSource::Ancestors => self.count(Fallback::InitByAncestors),
                        InitSource::Scan => self.count(Fallback::InitByScan),
                    }
                    facts.pidns_init = Task::open(&self.host, init)
                        .and_then(|init| init.cgroups(layout))
                        .ok();
                }
                Err(_) => self.count(Fallback::InitUnknown),
            }
            pid_namespace = Some(pin.clone());
            pins.push(pin);
        }
        if foreign_time
            && let Some(inode) = key.namespaces.time
            && let Ok(pin) = self.pin(task, "time", inode)
        {
            pins.push(pin);
        }
        (facts, pins, pid_namespace)
    }

    fn pin(&self, task: &Task, kind: &str, inode: u64) -> io::Result<Arc<Pin>> {
        let mut pins = lock(&self.pins);
        if let Some(pin) = pins.get(&inode).and_then(std::sync::Weak::upgrade) {
            return Ok(pin);
        }
        let pin = Arc::new(task.pin(kind, inode)?);
        pins.retain(|_, pin| pin.strong_count() > 0);
        pins.insert(inode, Arc::downgrade(&pin));
        Ok(pin)
    }

    fn intern(
        &self,
        cgroups: &Cgroups,
        boundary: &Boundary,
        pid_namespace: Option<Arc<Pin>>,
    ) -> Result<Arc<Container>, ReadError> {
        let container = Container::open(&cgroups.reader, &cgroups.layout, boundary, pid_namespace)?;
        let mut containers = lock(&self.containers);
        // Callers that share the naming cgroup but not the others (a runtime that moved
        // them in one hierarchy only) are kept apart: the newest is the one tracked.
        Ok(match containers.entry(container.key) {
            Entry::Occupied(mut known) => {
                if known.get().paths == container.paths
                    && (known.get().pid_namespace.is_some() || container.pid_namespace.is_none())
                {
                    known.get().clone()
                } else {
                    let container = Arc::new(container);
                    known.insert(container.clone());
                    container
                }
            }
            Entry::Vacant(free) => free.insert(Arc::new(container)).clone(),
        })
    }

    /// The container at a cgroup path, for `show --cgroup`: a path below a hierarchy's
    /// root, or a directory below its mount point.
    ///
    /// # Errors
    /// [`AnswerError::Gone`] when no hierarchy has it.
    pub fn container_at(&self, path: &str) -> Result<Arc<Container>, AnswerError> {
        let cgroups = self.cgroups();
        let relative = cgroups
            .layout
            .hierarchies
            .iter()
            .enumerate()
            .filter_map(|(at, _)| {
                let rest = Path::new(path)
                    .strip_prefix(cgroups.reader.mount_point(at))
                    .ok()?;
                Some(format!("/{}", rest.to_str()?.trim_end_matches('/')))
            })
            // The longest mount point: `/sys/fs/cgroup/memory` and not a tree above it.
            .min_by_key(String::len)
            .unwrap_or_else(|| format!("/{}", path.trim_matches('/')));
        let paths: Paths = (0..cgroups.layout.hierarchies.len())
            .map(|at| {
                let dir = cgroups.reader.dir(at, &relative).ok()?;
                Some(dir.path().into())
            })
            .collect();
        let boundary = Boundary {
            rule: Rule::Given,
            paths,
        };
        self.intern(&cgroups, &boundary, None)
            .map_err(|error| match error {
                ReadError::Gone { .. } => AnswerError::Gone { path: relative },
                ReadError::Io { path, source } => AnswerError::Io { path, source },
            })
    }

    /// Every container known now.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.containers).values().cloned().collect()
    }

    /// Drops everything that refers to a container, because its cgroup is gone.
    pub fn forget(&self, container: &Arc<Container>) {
        let is_it = |view: &View| matches!(view, View::Container(caller) if Arc::ptr_eq(&caller.container, container));
        self.threads.retain(|seen| !is_it(&seen.view));
        lock(&self.callers).retain(|_, known| !is_it(&known.view));
        let mut containers = lock(&self.containers);
        if containers
            .get(&container.key)
            .is_some_and(|known| Arc::ptr_eq(known, container))
        {
            containers.remove(&container.key);
        }
        drop(containers);
        let cgroups = self.cgroups();
        container
            .own_dirs()
            .for_each(|dir| cgroups.reader.forget(dir));
    }

    /// From now on every removal of a cgroup is told by [`Resolver::note_removed`].
    pub fn expect_removals(&self) {
        self.is_told.store(true, Ordering::Relaxed);
    }

    /// Tells that the cgroup with this id was removed, on whatever hierarchy.
    pub fn note_removed(&self, inode: u64) {
        let hierarchies = self.cgroups().layout.hierarchies.len();
        let containers = lock(&self.containers);
        let mut keys = (0..hierarchies).map(|hierarchy| CgroupKey { hierarchy, inode });
        if keys.any(|key| containers.contains_key(&key)) {
            self.has_removed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it is time to [`sweep`](Self::sweep), `ticks` ticks after the last time: at
    /// every tick, or where removals are told after one, and now and then.
    pub fn wants_sweep(&self, ticks: u64) -> bool {
        self.has_removed.swap(false, Ordering::Relaxed)
            || ticks >= TICKS_APART
            || !self.is_told.load(Ordering::Relaxed)
    }

    /// Lets go of exited threads, removed cgroups and descriptors nobody uses, and notices
    /// changed mounts. To be called when [`wants_sweep`](Self::wants_sweep) says so, with the
    /// same number. Returns the containers gone.
    pub fn sweep(&self, ticks: u64) -> Vec<CgroupKey> {
        self.threads.sweep();
        let mut gone = Vec::new();
        for container in self.containers() {
            if !container.is_alive() {
                gone.push(container.key);
                self.forget(&container);
            }
        }
        self.forget_callers();
        self.cgroups().reader.sweep(ticks, IDLE_TICKS);
        self.notice_mounts();
        gone
    }

    /// Lets go of callers of removed cgroups, and of namespaces held for processes of the
    /// host only. Those of the containers still tracked have just been seen alive.
    fn forget_callers(&self) {
        let tracked = |container: &Arc<Container>| {
            lock(&self.containers)
                .get(&container.key)
                .is_some_and(|known| Arc::ptr_eq(known, container))
        };
        let untracked: Vec<_> = lock(&self.callers)
            .iter()
            .filter_map(|(key, known)| match &known.view {
                View::Container(caller) if !tracked(&caller.container) => {
                    Some((key.clone(), caller.container.clone()))
                }
                _ => None,
            })
            .collect();
        let gone: Vec<_> = untracked
            .into_iter()
            .filter(|(_, container)| !container.is_alive())
            .map(|(key, _)| key)
            .collect();
        let mut callers = lock(&self.callers);
        for key in gone {
            callers.remove(&key);
        }
        callers
            .retain(|_, known| known.pins.is_empty() || matches!(known.view, View::Container(_)));
    }

    /// A hierarchy mounted or unmounted while the daemon runs changes where controllers
    /// are; everything cached belongs to the old layout then.
    fn notice_mounts(&self) {
        let Ok(mountinfo) = self.host.read_proc("self/mountinfo", str::to_owned) else {
            return;
        };
        let from = self.read_from.as_deref();
        let Ok(now) = Cgroups::detect(&mountinfo, from, &self.root, self.descriptors) else {
            return;
        };
        if now.layout == self.cgroups().layout {
            return;
        }
        self.count(Fallback::LayoutChanged);
        *self.cgroups.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(now);
        self.threads.retain(|_| false);
        lock(&self.callers).clear();
        lock(&self.containers).clear();
    }

    /// How many threads, callers and containers are remembered.
    #[must_use]
    pub fn sizes(&self) -> [usize; 3] {
        [
            self.threads.len(),
            lock(&self.callers).len(),
            lock(&self.containers).len(),
        ]
    }
}
