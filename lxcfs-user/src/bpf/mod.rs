//! The eBPF collector: per-cgroup task counts, per-CPU time, containers, events and block
//! times, as the kernel itself keeps them.
//!
//! The only importer of aya. Nothing outside sees one of its types, and nothing here is
//! needed for the daemon to run: each [`Feature`] that is off has a fallback in cgroup files.
//! `docs/kernel-support.md` says which kernel gives what.
//!
//! Layers: [`btf`], [`layout`], [`plan`], [`rollup`] are pure; `probe` gathers facts, `load`
//! puts programs into the kernel, the rest reads.

mod block;
pub mod btf;
mod containers;
mod cpu;
mod error;
mod events;
mod feature;
mod kfunc;
pub mod layout;
mod load;
mod log;
pub mod plan;
mod probe;
pub mod rollup;
mod sampler;
mod sys;
mod tasks;
mod tree;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use aya::Ebpf;
use aya::maps::{Array, MapData};
use lxcfs_common::bpf::LossCounter;

pub use block::DeviceTimes;
pub use containers::ContainerInit;
pub use error::BpfError;
pub use events::{CgroupEvent, EventCgroup, EventStream};
pub use feature::{Feature, FeatureState};
pub use load::ProgramCost;
pub use rollup::{CgroupId, LastPid, TaskCounts};
pub use sampler::{CgroupLoadState, EventHandler, Sampler};
pub use sys::{iterator_link, walk};
pub use tasks::TaskSample;

use crate::snapshot::PerCpuTime;
use crate::units::Nsec;

/// How the collector is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// False: load nothing (`--no-ebpf`).
    pub enabled: bool,
    /// Load these features alone; `None` for all.
    pub only: Option<&'static [Feature]>,
    /// The kernel's type information.
    pub btf: PathBuf,
    /// Sets of cgroups (`css_set`) whose tasks can be counted: about one per leaf cgroup.
    /// Tasks in further ones are lost, counted and logged.
    pub task_sets: u32,
    /// Tasks that one run of the loop over them counts; nothing else gets its CPU meanwhile.
    pub tasks_per_run: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            enabled: true,
            only: None,
            btf: PathBuf::from("/sys/kernel/btf/vmlinux"),
            task_sets: 32_768,
            // About a millisecond.
            tasks_per_run: 4096,
        }
    }
}

/// The collector. Any thread may call any method; calls of one kind wait for each other.
pub struct Collector {
    inner: Inner,
    v1_controller: Option<&'static str>,
    /// Its number in `/proc/cgroups`.
    v1_hierarchy: Option<u32>,
    /// Number of the io controller's hierarchy; 0 is v2.
    block_hierarchy: u32,
}

/// What is running; all `None` when nothing is.
#[derive(Default)]
struct Inner {
    tasks: Option<Mutex<tasks::TaskWalk>>,
    containers: Option<containers::ContainerWalk>,
    cpu: Option<Mutex<cpu::CpuReader>>,
    events: Mutex<Option<EventStream>>,
    block: Option<Mutex<block::BlockTable>>,
    losses: Option<Array<MapData, u64>>,
    log: Option<Mutex<log::ProgramLog>>,
    /// Programs and the maps nobody took; last, so that the readers go first.
    ebpf: Option<Ebpf>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the mutexes guard stays usable after a panic elsewhere.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_lock<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write_lock<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Time on one of the kernel's clocks.
fn clock(id: libc::clockid_t) -> Nsec {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is valid; the clocks asked for exist on every supported kernel.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    Nsec(
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(nanoseconds),
    )
}

fn boottime() -> Nsec {
    clock(libc::CLOCK_BOOTTIME)
}

impl Collector {
    /// Loads what this machine allows. Never fails: what cannot be had is in the states,
    /// one per [`Feature`], with reason and remedy.
    #[must_use]
    pub fn start(options: &Options) -> (Self, Vec<FeatureState>) {
        let facts = probe::facts(!options.enabled, &options.btf);
        let mut plan = plan::plan(&facts);
        if let Some(only) = options.only {
            plan.keep(only);
        }
        let mut collector = Self {
            inner: Inner::default(),
            v1_controller: plan.v1_controller,
            v1_hierarchy: plan.v1_controller.and_then(probe::v1_hierarchy),
            block_hierarchy: probe::v1_hierarchy("blkio").unwrap_or(0),
        };
        let states = if let Some(states) = load::nothing_to_load(&plan) {
            states
        } else {
            raise_memlock(facts.kernel);
            let attach_points = facts.types.map_or(Vec::new(), |types| types.attach_points);
            match load::load(&plan, &attach_points, options.task_sets) {
                Ok(loaded) => collector.take(loaded, &plan, options),
                Err(reason) => load::all_off(&reason, load::remedy_for(&reason, facts.kernel)),
            }
        };
        // Parsing BTF takes some 25 MB for a moment; give them back.
        // SAFETY: malloc_trim has no preconditions.
        #[cfg(target_env = "gnu")]
        unsafe {
            libc::malloc_trim(0)
        };
        (collector, states)
    }

    /// Distributes the loaded object over the readers; one that cannot start turns its
    /// feature off.
    fn take(
        &mut self,
        mut loaded: load::Loaded,
        plan: &plan::Plan,
        options: &Options,
    ) -> Vec<FeatureState> {
        self.inner.losses = loaded
            .map("LOSSES")
            .and_then(|map| Array::try_from(map).ok());
        let mut failed = Vec::new();
        if loaded.has(Feature::TaskCounts) {
            let v1 = self.v1_controller.is_some();
            match tasks::TaskWalk::new(&mut loaded, v1, options.tasks_per_run) {
                Ok(walk) => self.inner.tasks = Some(Mutex::new(walk)),
                Err(error) => failed.push((Feature::TaskCounts, error)),
            }
        }
        if loaded.has(Feature::ContainerInits) {
            match containers::ContainerWalk::new(&loaded) {
                Ok(walk) => self.inner.containers = Some(walk),
                Err(error) => failed.push((Feature::ContainerInits, error)),
            }
        }
        if loaded.has(Feature::CgroupCpu) {
            match cpu::CpuReader::new(&mut loaded, plan) {
                Ok(reader) => self.inner.cpu = Some(Mutex::new(reader)),
                Err(error) => failed.push((Feature::CgroupCpu, error)),
            }
        }
        if loaded.has(Feature::CgroupEvents) || loaded.has(Feature::ContainerExec) {
            match EventStream::new(&mut loaded) {
                Ok(stream) => self.inner.events = Mutex::new(Some(stream)),
                Err(error) => failed.push((Feature::CgroupEvents, error)),
            }
        }
        if loaded.has(Feature::BlockTimes) {
            match block::BlockTable::new(&mut loaded) {
                Ok(table) => self.inner.block = Some(Mutex::new(table)),
                Err(error) => failed.push((Feature::BlockTimes, error)),
            }
        }
        let load::Loaded {
            mut ebpf,
            mut states,
        } = loaded;
        match log::ProgramLog::open(&mut ebpf) {
            Ok(log) => self.inner.log = Some(Mutex::new(log)),
            Err(error) => tracing::warn!(%error, "log lines of eBPF programs are lost"),
        }
        self.inner.ebpf = Some(ebpf);
        for (feature, error) in failed {
            for state in states.iter_mut().filter(|state| state.name == feature) {
                *state = FeatureState::off(feature, with_causes(&error), "");
            }
        }
        states
    }

    /// Whether a feature works.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        match feature {
            Feature::TaskCounts => self.inner.tasks.is_some(),
            Feature::ContainerInits => self.inner.containers.is_some(),
            Feature::CgroupCpu | Feature::RemovedCgroupTimes => self.inner.cpu.is_some(),
            Feature::CgroupEvents | Feature::ContainerExec => lock(&self.inner.events).is_some(),
            Feature::BlockTimes => self.inner.block.is_some(),
        }
    }

    /// The v1 controller whose hierarchy [`CgroupId::V1`] ids belong to, if any is counted.
    #[must_use]
    pub const fn v1_controller(&self) -> Option<&'static str> {
        self.v1_controller
    }

    /// The id under which the cgroup of an event is counted; `None` for a hierarchy that is
    /// not counted.
    #[must_use]
    pub fn counted_id(&self, cgroup: &EventCgroup) -> Option<CgroupId> {
        match cgroup.hierarchy {
            0 => Some(CgroupId::V2(cgroup.id)),
            number if Some(number) == self.v1_hierarchy => Some(CgroupId::V1(cgroup.id)),
            _ => None,
        }
    }

    /// Counts the tasks of all cgroups: about 0.3 µs per thread of the machine.
    ///
    /// Source: `bpf_iter_task_next` where the kernel has it (6.7), `iter/task` elsewhere.
    ///
    /// # Errors
    /// [`BpfError::Off`], or a failed system call.
    pub fn sample_tasks(&self) -> Result<TaskSample, BpfError> {
        let (Some(walk), Some(ebpf)) = (&self.inner.tasks, &self.inner.ebpf) else {
            return Err(BpfError::Off(Feature::TaskCounts));
        };
        let mut sample = lock(walk).sample(ebpf)?;
        if let Some(losses) = &self.inner.losses {
            sample.lost_tasks = losses.get(&(LossCounter::Tasks as u32), 0).unwrap_or(0);
        }
        Ok(sample)
    }

    /// CPU time on each possible CPU of a v2 cgroup with everything below it, removed
    /// children included. `directory` is the cgroup's directory, open for reading (not
    /// `O_PATH`). The sum over CPUs of user + system is `cpu.stat`'s `usage_usec`.
    ///
    /// Source: the per-CPU counters of rstat, brought up to date by reading `cpu.stat`.
    ///
    /// # Errors
    /// [`BpfError::Off`], or a failed system call, for instance because the cgroup is gone
    /// or `directory` is not on the v2 hierarchy.
    pub fn cgroup_cpu(&self, directory: BorrowedFd<'_>) -> Result<Vec<PerCpuTime>, BpfError> {
        cpu::flush(directory).map_err(BpfError::system("reading cpu.stat"))?;
        self.cgroup_cpu_flushed(directory)
    }

    /// [`Self::cgroup_cpu`] for callers that have just read `cpu.stat` of the same cgroup.
    ///
    /// # Errors
    /// As there.
    pub fn cgroup_cpu_flushed(
        &self,
        directory: BorrowedFd<'_>,
    ) -> Result<Vec<PerCpuTime>, BpfError> {
        let off = BpfError::Off(Feature::CgroupCpu);
        let (Some(reader), Some(ebpf)) = (&self.inner.cpu, &self.inner.ebpf) else {
            return Err(off);
        };
        lock(reader).read(ebpf, directory)
    }

    /// Lets go of the cgroup that [`Self::cgroup_cpu`] read last, so that a removed one does
    /// not stay in memory. To be called now and then.
    pub fn release_cgroup(&self) {
        if let Some(reader) = &self.inner.cpu {
            lock(reader).release();
        }
    }

    /// Looks again for CPUs that came online. Returns how many are known.
    ///
    /// # Errors
    /// [`BpfError::Off`], or the program failed.
    pub fn refresh_cpus(&self) -> Result<u32, BpfError> {
        let off = BpfError::Off(Feature::CgroupCpu);
        let (Some(reader), Some(ebpf)) = (&self.inner.cpu, &self.inner.ebpf) else {
            return Err(off);
        };
        lock(reader).find_cpus(ebpf)
    }

    /// Whether this CPU's times are read; false for one that was offline at the last look.
    #[must_use]
    pub fn knows_cpu(&self, cpu: u32) -> bool {
        self.inner
            .cpu
            .as_ref()
            .is_some_and(|reader| lock(reader).knows(cpu))
    }

    /// The inits of all PID namespaces but the host's.
    ///
    /// Source: `iter/task`.
    ///
    /// # Errors
    /// [`BpfError::Off`], or a failed system call.
    pub fn containers(&self) -> Result<Vec<ContainerInit>, BpfError> {
        self.inner
            .containers
            .as_ref()
            .ok_or(BpfError::Off(Feature::ContainerInits))?
            .read()
    }

    /// The event stream; there is one, so the second call gets `None`.
    #[must_use]
    pub fn take_events(&self) -> Option<EventStream> {
        lock(&self.inner.events).take()
    }

    /// Merges and times of a cgroup with everything below it, removed children included, on
    /// these devices (major and minor number), since the collector started. A device it did
    /// not use is left out. `directory` is the cgroup's directory on the hierarchy of the io
    /// (v1: blkio) controller.
    ///
    /// Source: `block_rq_issue`, `block_rq_requeue`, `block_rq_complete`,
    /// `block_bio_backmerge`, `block_bio_frontmerge`.
    ///
    /// # Errors
    /// [`BpfError::Off`], or a failed system call.
    pub fn block_times(
        &self,
        directory: BorrowedFd<'_>,
        devices: &[(u32, u32)],
    ) -> Result<DeviceTimes, BpfError> {
        let table = self.block_table()?;
        let cgroups = tree::ids(directory).map_err(BpfError::system("listing child cgroups"))?;
        lock(table).times(&cgroups, devices)
    }

    fn block_table(&self) -> Result<&Mutex<block::BlockTable>, BpfError> {
        let off = BpfError::Off(Feature::BlockTimes);
        self.inner.block.as_ref().ok_or(off)
    }

    /// Tells of a removed cgroup, so that its block counters go to its parent.
    fn note_removed(&self, cgroup: &EventCgroup) {
        if cgroup.hierarchy == self.block_hierarchy
            && let Ok(table) = self.block_table()
        {
            lock(table).removed(cgroup.id, cgroup.parent);
        }
    }

    /// Hands block counters of removed cgroups on.
    fn sweep_block(&self) -> Result<(), BpfError> {
        match self.block_table() {
            Ok(table) => lock(table).sweep(),
            // Off is no failure: then there is nothing to hand on.
            Err(_) => Ok(()),
        }
    }

    /// What could not be recorded since the start, because a table or the ring was full, by
    /// the name used in metrics.
    #[must_use]
    pub fn losses(&self) -> Vec<(&'static str, u64)> {
        let Some(losses) = &self.inner.losses else {
            return Vec::new();
        };
        let of = |what: LossCounter| losses.get(&(what as u32), 0).unwrap_or(0);
        let handed_on = self.block_table().map_or(0, |table| lock(table).lost());
        vec![
            ("tasks", of(LossCounter::Tasks)),
            ("deep_cgroups", of(LossCounter::Depth)),
            ("removed_cgroup_times", of(LossCounter::Carried)),
            ("events", of(LossCounter::Events)),
            (
                "block_requests",
                of(LossCounter::Block).saturating_add(handed_on),
            ),
        ]
    }

    /// Passes what the programs have logged on to this process's log. Returns the number of
    /// lines. To be called now and then, off the path of requests.
    pub fn forward_log(&self) -> u64 {
        let log = self.inner.log.as_ref();
        log.map_or(0, |log| lock(log).forward())
    }

    /// What each loaded program costs the kernel.
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramCost> {
        self.inner
            .ebpf
            .as_ref()
            .map(load::costs)
            .unwrap_or_default()
    }
}

/// Before 5.11 maps and programs count as locked memory; raise the limit if that is allowed.
fn raise_memlock(kernel: (u32, u32)) {
    if kernel < (5, 11) {
        let unlimited = libc::rlimit {
            rlim_cur: libc::RLIM_INFINITY,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: the pointer is valid. When it is refused, loading says so.
        unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
