//! Plugs the eBPF collector into the engine, field by field: what it cannot tell stays with
//! cgroup files and procfs.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::bpf::{BpfError, CgroupId, Collector, Feature, Sampler, TaskSample};
use crate::cgroup::layout::Version;
use crate::cgroup::reader::Dir;
use crate::collect::source::{
    CpuTimeSource, DeviceTimes, IoTimeSource, Sources, TaskCounts, TaskSource,
};
use crate::container::Container;
use crate::snapshot::{Controller, Origin, PerCpuTime};

/// The sources of `collector`, over `fallback` where it has nothing.
#[must_use]
pub fn sources(collector: &Arc<Collector>, fallback: Sources) -> (Sources, Arc<Tasks>) {
    let v1 = collector.v1_controller().and_then(controller_named);
    let tasks = Arc::new(Tasks {
        collector: Arc::clone(collector),
        sampler: OnceLock::new(),
        last: Mutex::default(),
        v1,
        fallback: Arc::clone(&fallback.tasks),
    });
    let cpu_time: Option<Arc<dyn CpuTimeSource>> = if collector.has(Feature::CgroupCpu) {
        Some(Arc::new(CpuTime(Arc::clone(collector))))
    } else {
        fallback.cpu_time
    };
    let io_times: Option<Arc<dyn IoTimeSource>> = if collector.has(Feature::BlockTimes) {
        Some(Arc::new(BlockTimes(Arc::clone(collector))))
    } else {
        fallback.io_times
    };
    let sources = Sources {
        tasks: if collector.has(Feature::TaskCounts) {
            Arc::<Tasks>::clone(&tasks)
        } else {
            fallback.tasks
        },
        cpu_time,
        io_times,
    };
    (sources, tasks)
}

fn controller_named(name: &str) -> Option<Controller> {
    Controller::ALL
        .into_iter()
        .filter(|controller| *controller != Controller::Unified)
        .find(|controller| crate::cgroup::layout::v1_name(*controller) == name)
}

/// Task counts from the walk over all tasks.
pub struct Tasks {
    collector: Arc<Collector>,
    /// Runs in the active worker only.
    sampler: OnceLock<Sampler>,
    /// The last walk while no sampler runs.
    last: Mutex<Arc<TaskSample>>,
    v1: Option<Controller>,
    fallback: Arc<dyn TaskSource>,
}

impl Tasks {
    /// Lets the running sampler's walks serve requests, too.
    pub fn use_sampler(&self, sampler: Sampler) {
        // A second one would only be dropped, which ends it.
        let _ = self.sampler.set(sampler);
    }

    /// The sampler, once it runs.
    #[must_use]
    pub fn sampler(&self) -> Option<&Sampler> {
        self.sampler.get()
    }

    /// Held while walking, so that one walk serves all who wait.
    fn sample_alone(&self) -> Result<Arc<TaskSample>, BpfError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !last.is_fresh() {
            *last = Arc::new(self.collector.sample_tasks()?);
        }
        Ok(Arc::clone(&last))
    }

    fn sample(&self) -> Option<Arc<TaskSample>> {
        let sample = match self.sampler.get() {
            Some(sampler) => sampler.fresh(),
            None => self.sample_alone(),
        };
        match sample {
            Ok(sample) => Some(sample),
            Err(error) => {
                tracing::debug!(%error, "the walk over all tasks failed");
                None
            }
        }
    }

    fn counts(
        &self,
        sample: &TaskSample,
        containers: &[Arc<Container>],
    ) -> Vec<Option<TaskCounts>> {
        containers
            .iter()
            .map(|container| {
                let Some(id) = self.id(container) else {
                    return self.fallback.count(std::slice::from_ref(container)).pop()?;
                };
                let counts = sample.counts(id);
                Some(TaskCounts {
                    running: counts.running,
                    uninterruptible: counts.uninterruptible,
                    threads: counts.threads,
                    // The host's namespace counts the host's forks.
                    own_last_pid: counts
                        .last_pid
                        .filter(|last| last.ns_level > 0)
                        .map(|last| last.pid),
                    newest_pid: counts.last_pid.map(|last| last.pid),
                    avenrun: self.sampler.get().map(|sampler| sampler.state(id).avenrun),
                })
            })
            .collect()
    }

    /// The container's id in a hierarchy that is counted and that tells it apart.
    fn id(&self, container: &Container) -> Option<CgroupId> {
        if let Some(dir) = container.v2_dir().filter(|dir| !dir.is_root()) {
            return Some(CgroupId::V2(dir.inode()));
        }
        let dir = container.dir(self.v1?).filter(|dir| !dir.is_root())?;
        Some(match dir.version() {
            Version::V1 => CgroupId::V1(dir.inode()),
            Version::V2 => CgroupId::V2(dir.inode()),
        })
    }
}

impl TaskSource for Tasks {
    fn origin(&self) -> Origin {
        Origin::Bpf("load_tasks")
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn count(&self, containers: &[Arc<Container>]) -> Vec<Option<TaskCounts>> {
        match self.sample() {
            Some(sample) => self.counts(&sample, containers),
            None => self.fallback.count(containers),
        }
    }

    fn recent(&self, containers: &[Arc<Container>]) -> Vec<Option<TaskCounts>> {
        match self.sampler.get() {
            Some(sampler) => self.counts(&sampler.latest(), containers),
            None => self.count(containers),
        }
    }
}

/// Per-CPU time from the kernel's rstat counters.
struct CpuTime(Arc<Collector>);

impl CpuTimeSource for CpuTime {
    fn origin(&self) -> Origin {
        Origin::Bpf("cgroup_cpu")
    }

    fn per_cpu(&self, cgroup: &Dir) -> Option<Vec<PerCpuTime>> {
        self.0.cgroup_cpu_flushed(cgroup.fd()).ok()
    }
}

/// Merges and times of block requests.
struct BlockTimes(Arc<Collector>);

impl IoTimeSource for BlockTimes {
    fn origin(&self) -> Origin {
        Origin::Bpf("block_rq_complete")
    }

    fn times(&self, container: &Container) -> Option<Vec<DeviceTimes>> {
        let dir = container.dir(Controller::Io)?;
        let times = self.0.block_times(dir.fd()).ok()?;
        Some(times.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_known_by_their_v1_names() {
        assert_eq!(controller_named("cpuacct"), Some(Controller::Cpuacct));
        assert_eq!(controller_named("blkio"), Some(Controller::Io));
        assert_eq!(controller_named("freezer"), None);
    }
}
