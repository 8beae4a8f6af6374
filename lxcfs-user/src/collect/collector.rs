//! Makes a [`Snapshot`] of a container: only the parts asked for, each with its origin, and
//! every lesser source counted.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::cgroup::reader::{Chain, ReadError};
use crate::cgroup::source;
use crate::container::facts::{Task, namespace_init};
use crate::container::resolve::Caller;
use crate::container::{Container, boundary};
use crate::engine::AnswerError;
use crate::fallback::{Fallback, Fallbacks};
use crate::host::reader::{HostReader, ProcFile};
use crate::policy::ViewPolicy;
use crate::snapshot::{
    Age, Controller, CpuTime, Decided, Host, Inputs, IoDevice, MachineFacts, Origin, Snapshot,
    Tasks,
};
use crate::units::{Bytes, Nsec};

use super::source::Sources;
use super::store::{Start, State, Store, lock};
use super::tasks::oldest_process;

/// How long a host file is kept of which only names or constants are used.
const TEMPLATE_FOR: Duration = Duration::from_secs(1);
/// How old a count of tasks may be before a request takes a new one.
const COUNT_FOR: Nsec = Nsec(1_000_000_000);
/// A container with more threads than this is counted by the sampler only, unless counting
/// is cheap.
const COUNT_INLINE: u32 = 512;

/// What gives the start of a container whose PID namespace has its init inside.
pub const INIT_STAT: &str = "/proc/PID/stat of the container's init";

/// Where the time comes from.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// `CLOCK_BOOTTIME`.
    Boottime,
    /// A captured moment.
    Fixed(Nsec),
}

impl Clock {
    /// Nanoseconds of boot time.
    #[must_use]
    pub fn now(self) -> Nsec {
        match self {
            Self::Fixed(now) => now,
            Self::Boottime => {
                let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
                    .unwrap_or_else(|_| nix::sys::time::TimeSpec::new(0, 0));
                let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
                let nsec = u64::try_from(time.tv_nsec()).unwrap_or(0);
                Nsec(seconds.saturating_mul(1_000_000_000).saturating_add(nsec))
            }
        }
    }
}

/// A host file's text and when it was read.
type Template = (Arc<str>, Instant);

/// Gathers snapshots.
#[derive(Debug)]
pub struct Collector {
    host: Arc<HostReader>,
    facts: RwLock<Arc<MachineFacts>>,
    huge_pages: Vec<Bytes>,
    templates: Mutex<[Option<Template>; 9]>,
    /// What has memory.
    pub store: Store,
    sources: RwLock<Arc<Sources>>,
    fallbacks: Arc<Fallbacks>,
    clock: Clock,
}

fn answer_error(error: ReadError) -> AnswerError {
    match error {
        ReadError::Gone { path } => AnswerError::Gone { path },
        ReadError::Io { path, source } => AnswerError::Io { path, source },
    }
}

impl Collector {
    /// A collector over `host`, with the machine's facts and the sources to start with.
    #[must_use]
    pub fn new(
        host: Arc<HostReader>,
        facts: MachineFacts,
        sources: Sources,
        fallbacks: Arc<Fallbacks>,
        clock: Clock,
    ) -> Self {
        Self {
            huge_pages: host.huge_page_sizes(),
            host,
            facts: RwLock::new(Arc::new(facts)),
            templates: Mutex::default(),
            store: Store::default(),
            sources: RwLock::new(Arc::new(sources)),
            fallbacks,
            clock,
        }
    }

    /// The host's files.
    #[must_use]
    pub const fn host(&self) -> &Arc<HostReader> {
        &self.host
    }

    /// The present time.
    #[must_use]
    pub fn now(&self) -> Nsec {
        self.clock.now()
    }

    /// The machine's facts.
    #[must_use]
    pub fn facts(&self) -> Arc<MachineFacts> {
        let facts = self.facts.read().unwrap_or_else(PoisonError::into_inner);
        facts.clone()
    }

    /// Reads again which CPUs are online.
    pub fn refresh_facts(&self) {
        let old = self.facts();
        let new = self.host.facts(old.page_size, old.user_hz);
        if new != *old {
            *self.facts.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        }
    }

    /// The sources in use.
    #[must_use]
    pub fn sources(&self) -> Arc<Sources> {
        let sources = self.sources.read().unwrap_or_else(PoisonError::into_inner);
        sources.clone()
    }

    /// Replaces the sources, when eBPF comes or goes.
    pub fn set_sources(&self, sources: Sources) {
        *self.sources.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(sources);
    }

    /// The memory of a container.
    #[must_use]
    pub fn state(&self, container: &Container) -> Arc<State> {
        self.store.state(container.key, self.now())
    }

    /// Gathers what `inputs` asks for.
    ///
    /// # Errors
    /// [`AnswerError::Gone`] when the cgroup is gone, [`AnswerError::Io`] when a file that
    /// must be there cannot be read.
    pub fn snapshot(
        &self,
        caller: &Caller,
        inputs: Inputs,
        policy: &ViewPolicy,
    ) -> Result<Snapshot, AnswerError> {
        let container = &*caller.container;
        let facts = self.facts();
        let mut snapshot = Snapshot {
            host: self.host_texts(inputs)?,
            cgroup_paths: container.paths.clone(),
            memory: None,
            swap: None,
            hugetlb: None,
            cpus: None,
            cpu_time: None,
            tasks: None,
            io: None,
            pressure: Default::default(),
            age: None,
            facts,
        };
        self.cgroup_parts(container, inputs, policy, &mut snapshot)
            .map_err(answer_error)?;
        if inputs.has(Inputs::TASKS) {
            snapshot.tasks = self.tasks(&caller.container);
            let unknown = snapshot.tasks.is_some_and(|tasks| tasks.forks.is_none());
            // Of the files that show tasks, only stat shows CPU time and forks.
            self.count_if(
                unknown && inputs.has(Inputs::CPU_TIME),
                Fallback::ForksUnknown,
            );
        }
        if inputs.has(Inputs::AGE) {
            snapshot.age = Some(self.age(container, caller.timens_offset));
        }
        // What was gathered of a cgroup that went meanwhile may be half of it.
        if !container.is_alive() {
            return Err(AnswerError::Gone {
                path: container.path().to_owned(),
            });
        }
        Ok(snapshot)
    }

    fn cgroup_parts(
        &self,
        container: &Container,
        inputs: Inputs,
        policy: &ViewPolicy,
        snapshot: &mut Snapshot,
    ) -> Result<(), ReadError> {
        let page_size = snapshot.facts.page_size;
        let chain = |controller| container.chain(controller);
        if inputs.has(Inputs::SWAP) {
            snapshot.swap = match chain(Controller::Memory) {
                Some(chain) => source::swap(chain, page_size)?,
                None => None,
            };
            self.count_if(snapshot.swap.is_none(), Fallback::SwapUnknown);
        }
        // With memory but no swap counted there is no swap; with neither, nothing is known.
        let no_swap = inputs.has(Inputs::SWAP) && snapshot.swap.is_none();
        if inputs.has(Inputs::MEMORY) || no_swap {
            snapshot.memory = match chain(Controller::Memory) {
                Some(chain) => source::memory(chain, policy.memory_high, page_size)?,
                None => None,
            };
            self.count_if(snapshot.memory.is_none(), Fallback::MemoryFromRoot);
        }
        if inputs.has(Inputs::HUGETLB)
            && let Some(chain) = chain(Controller::Hugetlb)
        {
            let found = source::hugetlb(chain, &self.huge_pages, page_size)?;
            snapshot.hugetlb = (!found.is_empty()).then_some(found);
        }
        if inputs.has(Inputs::CPUS) {
            let cpus = source::cpus(
                chain(Controller::Cpuset),
                chain(Controller::Cpu),
                &snapshot.facts.online_cpus,
            )?;
            let from_host = matches!(cpus.effective.origin, Origin::Host(_));
            self.count_if(from_host, Fallback::CpusetFromHost);
            snapshot.cpus = Some(cpus);
        }
        if inputs.has(Inputs::CPU_TIME) {
            snapshot.cpu_time = match chain(Controller::Cpuacct) {
                Some(chain) => self.cpu_time(chain)?,
                None => None,
            };
            self.count_if(snapshot.cpu_time.is_none(), Fallback::CpuTimeUnknown);
        }
        if inputs.has(Inputs::IO) {
            snapshot.io = match chain(Controller::Io) {
                Some(chain) => source::io(chain)?,
                None => None,
            };
            match &mut snapshot.io {
                None => self.count_if(true, Fallback::IoUnknown),
                Some(io) => self.io_times(container, io),
            }
        }
        if inputs.has(Inputs::PRESSURE)
            && let Some(dir) = container.v2_dir()
        {
            let chain: Chain = Arc::new([dir.clone()]);
            for (kind, text) in snapshot.pressure.iter_mut().enumerate() {
                *text = source::pressure(&chain, kind)?;
            }
        }
        Ok(())
    }

    fn count_if(&self, happened: bool, fallback: Fallback) {
        if happened {
            self.fallbacks.count(fallback);
        }
    }

    fn cpu_time(&self, chain: &Chain) -> Result<Option<CpuTime>, ReadError> {
        let Some(mut time) = source::cpu_time(chain)? else {
            return Ok(None);
        };
        if time.per_cpu.is_none() {
            let sources = self.sources();
            let per_cpu = sources
                .cpu_time
                .as_ref()
                .zip(chain.first())
                .and_then(|(source, dir)| Some((source.per_cpu(dir)?, source.origin())));
            match per_cpu {
                Some((per_cpu, origin)) => {
                    time.per_cpu = Some(per_cpu);
                    time.origin = origin;
                }
                None => self.count_if(true, Fallback::CpuTimeTotalOnly),
            }
        }
        Ok(Some(time))
    }

    fn io_times(&self, container: &Container, io: &mut Decided<Vec<IoDevice>>) {
        if io.value.is_empty() {
            return;
        }
        let devices: Vec<_> = io.value.iter().map(|d| (d.major, d.minor)).collect();
        let sources = self.sources();
        let times = sources
            .io_times
            .as_ref()
            .and_then(|source| source.times(container, &devices));
        let Some(times) = times else {
            self.count_if(true, Fallback::IoTimesUnknown);
            return;
        };
        for device in &mut io.value {
            let key = (device.major, device.minor);
            device.times = times
                .iter()
                .find(|(known, _)| *known == key)
                .map(|(_, times)| *times);
        }
    }

    fn tasks(&self, container: &Arc<Container>) -> Option<Tasks> {
        let now = self.now();
        let state = self.state(container);
        state.ask_load(now);
        let sources = self.sources();
        let last = lock(&state.load).last;
        let is_due = last.is_none_or(|(at, counts)| {
            now.less(at) >= COUNT_FOR
                && (sources.tasks.is_cheap() || counts.threads <= COUNT_INLINE)
        });
        if is_due {
            let counted = sources.tasks.count(std::slice::from_ref(container));
            match counted.first().copied().flatten() {
                Some(counts) => self.store.account(container.key, &state, now, counts),
                None => self.count_if(true, Fallback::TasksUnknown),
            }
        }
        self.count_if(!sources.tasks.is_cheap(), Fallback::TasksByProcfs);
        let load = lock(&state.load);
        let (_, counts) = load.last?;
        Some(Tasks {
            running: counts.running,
            uninterruptible: counts.uninterruptible,
            threads: counts.threads,
            // A process of the host in the container's cgroup (an exec that has not entered
            // yet) hides the namespace for one sample; the count stays.
            forks: Some(load.forks.total()).filter(|total| *total > 0),
            newest_pid: counts.newest_pid,
            avenrun: counts.avenrun.or(Some(load.average.avenrun())),
            origin: sources.tasks.origin(),
        })
    }

    fn age(&self, container: &Container, timens_offset: i64) -> Age {
        let now = self.now();
        let start = self
            .state(container)
            .start(|| self.find_start(container))
            .unwrap_or_else(|| {
                // Not kept: there may be a process at the next read.
                self.count_if(true, Fallback::StartGuessed);
                Start {
                    at: now,
                    origin: Origin::Unavailable("no process in the container"),
                }
            });
        Age {
            start: start.at,
            now,
            timens_offset,
            origin: start.origin,
        }
    }

    /// The start of the PID namespace's init if that is in the container, else of the
    /// oldest process in the container.
    fn find_start(&self, container: &Container) -> Option<Start> {
        let user_hz = self.facts().user_hz;
        if let Ok(start) = self.init_start(container) {
            return Some(Start {
                at: start,
                origin: Origin::Host(INIT_STAT),
            });
        }
        let oldest = container
            .dir(Controller::Unified)
            .and_then(|dir| oldest_process(&self.host, dir));
        oldest.map(|stat| Start {
            at: stat.start(user_hz),
            origin: Origin::Host("/proc/PID/stat of the container's oldest process"),
        })
    }

    fn init_start(&self, container: &Container) -> io::Result<Nsec> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let namespace = container.pid_namespace.as_ref().ok_or_else(missing)?;
        let dir = container.dir(Controller::Unified).ok_or_else(missing)?;
        // Only the kernel's translation is cheap here; the other ways start from a task.
        let own = Task::open(&self.host, std::process::id())?;
        let (pid, _) = namespace_init(&self.host, &own, namespace)?;
        let init = Task::open(&self.host, pid)?;
        let is_inside = init.read("cgroup", |text| {
            text.lines().any(|line| {
                line.splitn(3, ':')
                    .nth(2)
                    .is_some_and(|path| boundary::is_within(path, dir.path()))
            })
        })?;
        if !is_inside {
            return Err(missing());
        }
        Ok(init.stat()?.start(self.facts().user_hz))
    }

    fn host_texts(&self, inputs: Inputs) -> Result<Host, AnswerError> {
        let failed = |file: ProcFile| {
            move |source| AnswerError::Io {
                path: format!("/proc/{}", file.name()),
                source,
            }
        };
        let template = |wanted, file| -> Result<Option<String>, AnswerError> {
            if !inputs.has(wanted) {
                return Ok(None);
            }
            match self.template(file) {
                Ok(text) => Ok(Some(text.to_string())),
                // Not built into this kernel, or readable by root only.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                    ) =>
                {
                    Ok(None)
                }
                Err(error) => Err(failed(file)(error)),
            }
        };
        let meminfo = if inputs.has(Inputs::HOST_MEMINFO) {
            let file = ProcFile::Meminfo;
            let text = self.host.read(file, str::to_owned).map_err(failed(file))?;
            Some(text)
        } else {
            None
        };
        Ok(Host {
            meminfo,
            stat: template(Inputs::HOST_STAT, ProcFile::Stat)?,
            cpuinfo: template(Inputs::HOST_CPUINFO, ProcFile::Cpuinfo)?,
            diskstats: template(Inputs::HOST_DISKSTATS, ProcFile::Diskstats)?,
            vmstat: template(Inputs::HOST_VMSTAT, ProcFile::Vmstat)?,
            slabinfo: template(Inputs::HOST_SLABINFO, ProcFile::Slabinfo)?,
        })
    }

    /// A host file of which names and constants are used, not older than a second:
    /// generating it costs more than all of the container's own files.
    fn template(&self, file: ProcFile) -> io::Result<Arc<str>> {
        if let Some((text, at)) = &lock(&self.templates)[file as usize]
            && at.elapsed() < TEMPLATE_FOR
        {
            return Ok(text.clone());
        }
        let text: Arc<str> = match file {
            // Only the heading; the rest lists the host's caches.
            ProcFile::Slabinfo => self.host.read(file, |text| {
                let heading: String = text.split_inclusive('\n').take(2).collect();
                Arc::from(heading)
            })?,
            // Only the boot time.
            ProcFile::Stat => self.host.read(file, |text| {
                let line = text.lines().find(|line| line.starts_with("btime "));
                Arc::from(format!("{}\n", line.unwrap_or("btime 0")))
            })?,
            _ => self.host.read(file, |text| Arc::<str>::from(text))?,
        };
        lock(&self.templates)[file as usize] = Some((text.clone(), Instant::now()));
        Ok(text)
    }
}
