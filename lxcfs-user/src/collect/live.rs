//! The engine: resolve the caller, gather, render, share the answer.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lxcfs_common::catalogue::{CPU_TEMPLATE, FileId, Kind, NODE_TEMPLATE, Node, by_path, path_of};

use crate::cgroup::v2;
use crate::container::resolve::{self, Resolver, StartError, View};
use crate::cpuset::CpuSet;
use crate::engine::{AnswerError, Caller, Engine};
use crate::fallback::{Fallback, Fallbacks};
use crate::host::position::{self, Place, PositionError};
use crate::host::reader::{HostError, HostReader, ProcFile, ProcOrigin, page_size_and_user_hz};
use crate::policy::{CpuPolicy, ViewPolicy};
use crate::snapshot::Inputs;
use crate::view;

use super::collector::{Clock, Collector};
use super::single_flight::Came;
use super::source::Sources;
use super::store::lock;
use super::tasks::ProcTasks;

/// What can be chosen about the engine.
#[derive(Clone, Debug)]
pub struct LiveOptions {
    /// What views show.
    pub policy: ViewPolicy,
    /// How long an answer is shared among readers.
    pub ttl: Duration,
    /// How long a reader waits for another's rendering before it takes an older answer.
    pub patience: Duration,
    /// Cgroup descriptors kept open, about; `None`: half of `RLIMIT_NOFILE`, at most
    /// 16,384.
    pub descriptors: Option<usize>,
    /// Start also where only a part of the host can be seen (tests in namespaces).
    pub any_position: bool,
    /// Where the cgroup mounts are below; `/` on the machine.
    pub root: PathBuf,
    /// A procfs made by somebody who may; `None` to make one.
    pub proc: Option<Arc<OwnedFd>>,
    /// This process's `/proc/PID/cgroup` as the host sees it, for one that is not in the
    /// host's cgroup namespace.
    pub cgroups_as_host: String,
}

impl Default for LiveOptions {
    fn default() -> Self {
        Self {
            policy: ViewPolicy::default(),
            ttl: Duration::from_millis(5),
            patience: Duration::from_millis(200),
            descriptors: None,
            any_position: false,
            root: PathBuf::from("/"),
            proc: None,
            cgroups_as_host: String::new(),
        }
    }
}

/// Why the engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The host's files.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The daemon's own place.
    #[error(transparent)]
    Position(#[from] PositionError),
    /// The cgroups.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Answers from the running machine.
#[derive(Debug)]
pub struct LiveEngine {
    resolver: Resolver,
    collector: Collector,
    policy: ViewPolicy,
    ttl: Duration,
    patience: Duration,
    host_view: AtomicBool,
    fallbacks: Arc<Fallbacks>,
}

/// Raises the soft limit to the hard one, and takes half of it.
fn default_descriptors() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    usize::try_from(limit / 2).unwrap_or(usize::MAX).min(16_384)
}

impl LiveEngine {
    /// Finds the host, the cgroups and the daemon's own place among them, and makes the
    /// cgroup-file sources; eBPF is plugged in by [`Collector::set_sources`].
    ///
    /// # Errors
    /// When the host cannot be seen from here; the message says what to do.
    pub fn start(options: &LiveOptions) -> Result<Self, EngineError> {
        let proc = options.proc.as_ref().and_then(|proc| proc.try_clone().ok());
        let host = Arc::new(HostReader::live_with(proc)?);
        let here = host.read_proc("self/cgroup", str::to_owned);
        let place = Place::own(&host)?.told(&options.cgroups_as_host, &here.unwrap_or_default());
        if !options.any_position {
            position::check(&place.namespaces)?;
        }
        let fallbacks = Arc::new(Fallbacks::default());
        if host.proc_origin() == ProcOrigin::Mounted {
            fallbacks.count(Fallback::ProcMounted);
        }
        let resolver = Resolver::new(
            host.clone(),
            place,
            &options.root,
            options.policy.boundary,
            options.descriptors.unwrap_or_else(default_descriptors),
            options.ttl,
            fallbacks.clone(),
        )?;
        let (page_size, user_hz) = page_size_and_user_hz();
        let sources = Sources {
            tasks: Arc::new(ProcTasks::new(host.clone())),
            cpu_time: None,
            io_times: None,
        };
        let facts = host.facts(page_size, user_hz);
        let collector = Collector::new(host, facts, sources, fallbacks.clone(), Clock::Boottime);
        Ok(Self {
            resolver,
            collector,
            policy: options.policy,
            ttl: options.ttl,
            patience: options.patience,
            host_view: AtomicBool::new(false),
            fallbacks,
        })
    }

    /// Who is who.
    #[must_use]
    pub const fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// What gathers.
    #[must_use]
    pub const fn collector(&self) -> &Collector {
        &self.collector
    }

    /// Counters of every fallback, for export.
    #[must_use]
    pub const fn fallbacks(&self) -> &Arc<Fallbacks> {
        &self.fallbacks
    }

    /// Counts the CPUs of the container of thread `tid` by a rule of its own; `None`: by the
    /// daemon's. Returns the container's path.
    ///
    /// # Errors
    /// [`AnswerError::Caller`] when it cannot be told, or is in no container.
    pub fn set_cpus(&self, tid: u32, cpus: Option<CpuPolicy>) -> Result<String, AnswerError> {
        let View::Container(seen) = self.resolver.resolve(tid)? else {
            return Err(AnswerError::Caller {
                tid,
                reason: "it is in no container",
            });
        };
        let (store, key) = (&self.collector.store, seen.container.key);
        store.set_cpus(key, &self.collector.state(&seen.container), cpus);
        Ok(seen.container.path().to_owned())
    }

    /// The rule that counts the CPUs of the container of thread `tid`.
    ///
    /// # Errors
    /// [`AnswerError::Caller`] when it cannot be told.
    pub fn cpus(&self, tid: u32) -> Result<CpuPolicy, AnswerError> {
        Ok(match self.resolver.resolve(tid)? {
            View::Host => self.policy().cpus,
            View::Container(seen) => {
                let state = self.collector.state(&seen.container);
                state.policy(self.policy()).cpus
            }
        })
    }

    /// Shows everybody the host's text (`true`), or each container its own.
    pub fn set_host_view(&self, on: bool) {
        self.host_view.store(on, Ordering::Relaxed);
    }

    /// Whether everybody sees the host's text.
    #[must_use]
    pub fn host_view(&self) -> bool {
        self.host_view.load(Ordering::Relaxed)
    }

    /// The policy in force.
    #[must_use]
    pub const fn policy(&self) -> ViewPolicy {
        self.policy
    }

    fn view(&self, caller: Caller) -> Result<View, AnswerError> {
        if self.host_view() {
            return Ok(View::Host);
        }
        let view = self.resolver.resolve(caller.tid);
        if view.is_err() {
            self.fallbacks.count(Fallback::CallerUnknown);
        }
        view
    }

    /// Runs `answer` for a container; once more, resolved afresh, when its cgroup turns out
    /// to be gone: another one may have taken its place.
    fn retrying<R>(
        &self,
        caller: Caller,
        mut answer: impl FnMut(&resolve::Caller) -> Result<R, AnswerError>,
        host: impl FnOnce() -> Result<R, AnswerError>,
    ) -> Result<R, AnswerError> {
        let seen = match self.view(caller)? {
            View::Host => return host(),
            View::Container(seen) => seen,
        };
        match answer(&seen) {
            Err(AnswerError::Gone { path }) => {
                self.fallbacks.count(Fallback::CgroupGone);
                self.resolver.forget(&seen.container);
                match self.view(caller) {
                    Ok(View::Container(again)) if again.container.key != seen.container.key => {
                        answer(&again)
                    }
                    Ok(View::Container(again)) if again.container.is_alive() => answer(&again),
                    // It is neither another container's nor the host's: it is on its way
                    // out.
                    _ => Err(AnswerError::Gone { path }),
                }
            }
            answered => answered,
        }
    }

    /// Renders `node` for a container, from the shared answer if there is a recent one.
    fn render_container(
        &self,
        caller: &resolve::Caller,
        node: Node,
        out: &mut Vec<u8>,
    ) -> Result<(), AnswerError> {
        let state = self.collector.state(&caller.container);
        let policy = state.policy(self.policy());
        if view::shows_host(node, &policy) {
            return self.host_text(node, out);
        }
        let start = out.len();
        let file = match node {
            // A time namespace's offset is the caller's own.
            Node::Fixed(entry) if caller.timens_offset == 0 => match entry.kind {
                Kind::File(id) => Some(id as u8),
                Kind::Dir => None,
            },
            _ => None,
        };
        let Some(file) = file else {
            return self.render_now(caller, node, &policy, out);
        };
        let came = state.cells.answer(
            file,
            self.ttl,
            self.patience,
            &self.collector.store.recent,
            out,
            |out| self.render_now(caller, node, &policy, out),
        );
        match came {
            Ok(Came::Fresh) => Ok(()),
            Ok(Came::Stale) => {
                self.fallbacks.count(Fallback::StaleAnswer);
                Ok(())
            }
            Err(AnswerError::Gone { path }) => match state.cells.last(file) {
                Some(bytes) if !caller.container.is_alive() => {
                    self.fallbacks.count(Fallback::LastAnswer);
                    out.truncate(start);
                    out.extend_from_slice(&bytes);
                    Ok(())
                }
                _ => Err(AnswerError::Gone { path }),
            },
            Err(error) => Err(error),
        }
    }

    fn render_now(
        &self,
        caller: &resolve::Caller,
        node: Node,
        policy: &ViewPolicy,
        out: &mut Vec<u8>,
    ) -> Result<(), AnswerError> {
        let inputs = view::inputs(node, policy);
        let snapshot = self.collector.snapshot(caller, inputs, policy)?;
        let state = self.collector.state(&caller.container);
        let mut render = |history: &mut _| view::render(node, &snapshot, history, policy, out);
        if inputs.has(Inputs::CPU_TIME) {
            let store = &self.collector.store;
            store.with_cpu(caller.container.key, &state, render)
        } else {
            render(&mut lock(&state.cpu))
        }
    }

    /// The host's own text, byte for byte.
    pub(super) fn host_text(&self, node: Node, out: &mut Vec<u8>) -> Result<(), AnswerError> {
        host_text(self.collector.host(), node, out)
    }

    fn host_list(&self, path: &str) -> Option<CpuSet> {
        self.collector.host().sys_list(path)
    }
}

/// Appends the host's own text of `node`, byte for byte.
///
/// # Errors
/// [`AnswerError::Absent`] when the kernel has no such file, [`AnswerError::Io`] when it
/// cannot be read.
pub fn host_text(host: &HostReader, node: Node, out: &mut Vec<u8>) -> Result<(), AnswerError> {
    let path = host_path(node).ok_or(AnswerError::Absent("text of a directory"))?;
    let kept = match node {
        Node::Fixed(entry) => match entry.kind {
            Kind::File(id) => kept_file(id),
            Kind::Dir => None,
        },
        _ => None,
    };
    let read = match (kept, path.split_once('/')) {
        (Some(file), _) => host.read(file, |text| out.extend_from_slice(text.as_bytes())),
        (None, Some(("proc", path))) => host
            .open_proc(path)
            .and_then(|mut file| file.read_to_end(out).map(drop)),
        (None, Some(("sys", path))) => host.read_sys(path, out),
        _ => return Err(AnswerError::Absent("a file outside /proc and /sys")),
    };
    read.map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => AnswerError::Absent("the kernel has no such file"),
        // Pressure files of a kernel booted with psi=0.
        _ if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            AnswerError::Absent("the kernel does not measure pressure")
        }
        _ => AnswerError::Io {
            path: format!("/{path}"),
            source,
        },
    })
}

/// The path of the host's own file behind a node, without the leading `/`.
fn host_path(node: Node) -> Option<String> {
    match node {
        Node::Fixed(entry) => match entry.kind {
            Kind::File(id) => Some(path_of(id).to_owned()),
            Kind::Dir => None,
        },
        Node::Cpu(cpu, index) => {
            let entry = CPU_TEMPLATE
                .get(index)
                .filter(|entry| !entry.path.is_empty())?;
            Some(format!("sys/devices/system/cpu/cpu{cpu}/{}", entry.path))
        }
        Node::Numa(number, index) => {
            let entry = NODE_TEMPLATE
                .get(index)
                .filter(|entry| !entry.path.is_empty())?;
            Some(format!(
                "sys/devices/system/node/node{number}/{}",
                entry.path
            ))
        }
    }
}

const fn kept_file(id: FileId) -> Option<ProcFile> {
    Some(match id {
        FileId::Meminfo => ProcFile::Meminfo,
        FileId::Stat => ProcFile::Stat,
        FileId::Cpuinfo => ProcFile::Cpuinfo,
        FileId::Diskstats => ProcFile::Diskstats,
        FileId::Vmstat => ProcFile::Vmstat,
        FileId::Slabinfo => ProcFile::Slabinfo,
        FileId::Uptime => ProcFile::Uptime,
        FileId::Loadavg => ProcFile::Loadavg,
        FileId::Swaps => ProcFile::Swaps,
        _ => return None,
    })
}

/// The cgroup's file behind a pressure file.
const fn pressure_file(id: FileId) -> Option<&'static str> {
    Some(match id {
        FileId::PressureCpu => v2::file::PRESSURE[0],
        FileId::PressureMemory => v2::file::PRESSURE[1],
        FileId::PressureIo => v2::file::PRESSURE[2],
        FileId::PressureIrq => v2::file::PRESSURE[3],
        _ => return None,
    })
}

impl Engine for LiveEngine {
    fn render(&self, caller: Caller, node: Node, out: &mut Vec<u8>) -> Result<(), AnswerError> {
        let start = out.len();
        let mut host_out = false;
        self.retrying(
            caller,
            |seen| {
                out.truncate(start);
                self.render_container(seen, node, out)
            },
            || {
                host_out = true;
                Ok(())
            },
        )?;
        if host_out {
            self.host_text(node, out)?;
        }
        Ok(())
    }

    fn visible_cpus(&self, caller: Caller) -> Result<CpuSet, AnswerError> {
        let policy = self.policy();
        if policy.off.has(Node::Cpu(0, 0)) {
            return Ok(self.possible_cpus());
        }
        self.retrying(
            caller,
            |seen| {
                let inputs = Inputs::CPUS;
                let policy = self.collector.state(&seen.container).policy(policy);
                let snapshot = self.collector.snapshot(seen, inputs, &policy)?;
                Ok(view::cpus::derive(&snapshot, &policy).numbers)
            },
            || Ok(self.possible_cpus()),
        )
    }

    fn visible_nodes(&self, caller: Caller) -> Result<CpuSet, AnswerError> {
        if self.policy().off.has(Node::Numa(0, 0)) {
            return Ok(self.possible_nodes());
        }
        match self.view(caller)? {
            View::Host => Ok(self.possible_nodes()),
            View::Container(_) => Ok(view::node_tree::visible()),
        }
    }

    fn possible_cpus(&self) -> CpuSet {
        // What has a directory: present CPUs, and possible ones where hotplug is prepared.
        self.host_list("devices/system/cpu/present")
            .unwrap_or_else(|| self.collector.facts().possible_cpus.clone())
    }

    fn possible_nodes(&self) -> CpuSet {
        self.host_list("devices/system/node/online")
            .unwrap_or_else(view::node_tree::visible)
    }

    fn exists(&self, node: Node) -> bool {
        let host = self.collector.host();
        match node {
            Node::Fixed(entry) => match entry.path.split_once('/') {
                Some(("proc", path)) => host.has_proc(path),
                Some(("sys", path)) => {
                    // A machine without NUMA still has node 0 for its containers.
                    host.has_sys(path) || path.starts_with("devices/system/node/")
                }
                _ => true,
            },
            Node::Cpu(cpu, index) => match CPU_TEMPLATE.get(index).map(|entry| entry.path) {
                // Only a CPU that can be taken offline has the file; the first often cannot.
                Some("online") => host.has_sys(&format!("devices/system/cpu/cpu{cpu}/online")),
                // Which topology files there are depends on the kernel and not on the CPU; an
                // offline CPU has none at all.
                Some(path) => host.has_sys(&format!("devices/system/cpu/cpu0/{path}")),
                None => false,
            },
            Node::Numa(..) => true,
        }
    }

    fn is_offered(&self, node: Node) -> bool {
        !self.policy().off.has(node)
    }

    fn open_pressure(&self, caller: Caller, id: FileId) -> Result<OwnedFd, AnswerError> {
        let file = pressure_file(id).ok_or(AnswerError::Absent("pressure file"))?;
        if !self.policy().psi_triggers {
            return Err(AnswerError::Invalid("pressure triggers are switched off"));
        }
        if by_path(path_of(id)).is_some_and(|entry| self.policy().off.has(Node::Fixed(entry))) {
            return Err(AnswerError::Invalid("this file is switched off"));
        }
        let absent = AnswerError::Absent("the container's cgroup has no pressure file");
        let View::Container(seen) = self.view(caller)? else {
            return self.open_host_pressure(id);
        };
        let dir = seen.container.v2_dir().filter(|dir| !dir.is_root());
        let Some(dir) = dir else { return Err(absent) };
        dir.open_rw(file).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound if dir.is_alive() => absent,
            std::io::ErrorKind::NotFound => AnswerError::Gone {
                path: dir.path().to_owned(),
            },
            _ => AnswerError::Io {
                path: format!("{}/{file}", dir.path()),
                source,
            },
        })
    }
}

impl LiveEngine {
    fn open_host_pressure(&self, id: FileId) -> Result<OwnedFd, AnswerError> {
        use nix::fcntl::{OFlag, openat};
        let path = path_of(id);
        let relative = path.strip_prefix("proc/").unwrap_or(path);
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let mode = nix::sys::stat::Mode::empty();
        openat(self.collector.host().proc_fd(), relative, flags, mode).map_err(
            |error| match error {
                nix::Error::ENOENT => AnswerError::Absent("the kernel does not measure pressure"),
                error => AnswerError::Io {
                    path: format!("/{path}"),
                    source: error.into(),
                },
            },
        )
    }
}
