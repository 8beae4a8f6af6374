//! What the collector can do on this kernel, and what to do about what it cannot.

use std::fmt;

/// One independent ability. Each has its own fallback; see `docs/kernel-support.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Running, uninterruptible and all threads per cgroup: load averages and counts.
    TaskCounts,
    /// Inits of PID namespaces with their cgroups.
    ContainerInits,
    /// CPU time of a v2 cgroup on each CPU.
    CgroupCpu,
    /// CPU time of removed child cgroups, on kernels that forget it.
    RemovedCgroupTimes,
    /// Cgroups made and removed, as they happen.
    CgroupEvents,
    /// Container inits started, as they happen.
    ContainerExec,
    /// Requests, times and merges per disk and cgroup.
    BlockTimes,
}

impl Feature {
    /// All of them, in the order they are reported.
    pub const ALL: [Self; 7] = [
        Self::TaskCounts,
        Self::ContainerInits,
        Self::CgroupCpu,
        Self::RemovedCgroupTimes,
        Self::CgroupEvents,
        Self::ContainerExec,
        Self::BlockTimes,
    ];

    /// The name used in logs, metrics and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TaskCounts => "task_counts",
            Self::ContainerInits => "container_inits",
            Self::CgroupCpu => "cgroup_cpu",
            Self::RemovedCgroupTimes => "removed_cgroup_times",
            Self::CgroupEvents => "cgroup_events",
            Self::ContainerExec => "container_exec",
            Self::BlockTimes => "block_times",
        }
    }

    /// What is shown instead while the feature is off.
    #[must_use]
    pub const fn fallback(self) -> &'static str {
        match self {
            Self::TaskCounts => "tasks are counted from cgroup.threads and /proc, less often",
            Self::ContainerInits => "containers are found when they first ask",
            Self::CgroupCpu => "cpu.stat totals are spread evenly over the container's CPUs",
            Self::RemovedCgroupTimes => {
                "times of removed children are spread over CPUs like those of the living"
            }
            Self::CgroupEvents => "removed cgroups are noticed at the next sample",
            Self::ContainerExec => "a container is tracked from its first sample on",
            Self::BlockTimes => "diskstats shows 0 for times and merges",
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a feature works, and if not, why and what would help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureState {
    /// Which one.
    pub name: Feature,
    /// Whether it works.
    pub on: bool,
    /// How it works, or why it does not.
    pub reason: String,
    /// What the administrator can do; empty when nothing has to be done.
    pub remedy: String,
}

impl FeatureState {
    pub(super) fn on(name: Feature, how: impl Into<String>) -> Self {
        Self {
            name,
            on: true,
            reason: how.into(),
            remedy: String::new(),
        }
    }

    pub(super) fn off(name: Feature, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            on: false,
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for FeatureState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.on { "on" } else { "off" };
        write!(f, "{}: {state}, {}", self.name, self.reason)?;
        if !self.on {
            write!(f, "; {}", self.name.fallback())?;
        }
        if !self.remedy.is_empty() {
            write!(f, ". To change it: {}", self.remedy)?;
        }
        Ok(())
    }
}
