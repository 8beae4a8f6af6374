//! What can take the place of cgroup files, field by field: eBPF plugs in here.

use std::sync::Arc;

use crate::cgroup::reader::Dir;
use crate::container::Container;
use crate::snapshot::{IoTimes, Origin, PerCpuTime};

/// Tasks of one container's whole subtree at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskCounts {
    /// Runnable or running.
    pub running: u32,
    /// Uninterruptible as the kernel's load average counts it.
    pub uninterruptible: u32,
    /// Threads.
    pub threads: u32,
    /// The last PID that the container's own PID namespace gave out, where that is known.
    pub own_last_pid: Option<u32>,
    /// The newest PID as the container sees it; `None` keeps the last that was known.
    pub newest_pid: Option<u32>,
    /// The load averages, where the source keeps them from a container's birth on; else
    /// they are kept from first sight.
    pub avenrun: Option<[u64; 3]>,
}

impl TaskCounts {
    /// What the load average samples.
    #[must_use]
    pub const fn active(&self) -> u32 {
        self.running.saturating_add(self.uninterruptible)
    }
}

/// Counts tasks.
pub trait TaskSource: Send + Sync {
    /// What `--explain` names.
    fn origin(&self) -> Origin;

    /// Whether one count of everything costs little, however many tasks there are: then it
    /// is taken within a request, and for containers that nobody has asked about.
    fn is_cheap(&self) -> bool;

    /// Counts each of the containers; `None` for one that could not be counted.
    fn count(&self, containers: &[Arc<Container>]) -> Vec<Option<TaskCounts>>;

    /// The same, of the last count of everything where one is taken every 5 s anyway.
    fn recent(&self, containers: &[Arc<Container>]) -> Vec<Option<TaskCounts>> {
        self.count(containers)
    }
}

/// Tells a v2 cgroup's CPU time apart by CPU.
pub trait CpuTimeSource: Send + Sync {
    /// What `--explain` names.
    fn origin(&self) -> Origin;

    /// Per physical CPU, ascending, of the whole subtree. The caller has just read the
    /// cgroup's `cpu.stat`, which brings the kernel's counters up to date. `None` when it
    /// cannot be told.
    fn per_cpu(&self, cgroup: &Dir) -> Option<Vec<PerCpuTime>>;
}

/// One block device's merges and times.
pub type DeviceTimes = ((u32, u32), IoTimes);

/// Tells a container's merges and times on block devices.
pub trait IoTimeSource: Send + Sync {
    /// What `--explain` names.
    fn origin(&self) -> Origin;

    /// Of the whole subtree on each of `devices` (major and minor number) that it used;
    /// `None` when it cannot be told.
    fn times(&self, container: &Container, devices: &[(u32, u32)]) -> Option<Vec<DeviceTimes>>;
}

/// The sources in use; `None` or the fallback where eBPF has nothing.
pub struct Sources {
    /// Task counts: procfs unless replaced.
    pub tasks: Arc<dyn TaskSource>,
    /// Per-CPU time on v2.
    pub cpu_time: Option<Arc<dyn CpuTimeSource>>,
    /// Merges and times of block I/O.
    pub io_times: Option<Arc<dyn IoTimeSource>>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources")
            .field("tasks", &self.tasks.origin())
            .field("cpu_time", &self.cpu_time.as_ref().map(|s| s.origin()))
            .field("io_times", &self.io_times.as_ref().map(|s| s.origin()))
            .finish()
    }
}
