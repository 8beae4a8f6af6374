//! Plugs the eBPF collector into the engine, field by field: what it cannot tell stays with
//! cgroup files and procfs.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::bpf::{BpfError, CgroupId, Collector, Feature, LastPid, Sampler, TaskSample};
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

/// The newest PID as a container sees it; `None` when only processes of the host are in its
/// cgroup just now, though it has a PID namespace of its own: a PID of the host is not its.
fn newest_pid(last: Option<LastPid>, has_own_namespace: bool) -> Option<u32> {
    last.filter(|last| last.ns_level > 0 || !has_own_namespace)
        .map(|last| last.pid)
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
    fn sample_alone(
        &self,
        will_do: impl Fn(&TaskSample) -> bool,
    ) -> Result<Arc<TaskSample>, BpfError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !will_do(&last) {
            *last = Arc::new(self.collector.sample_tasks()?);
        }
        Ok(Arc::clone(&last))
    }

    /// A fresh sample. Somebody in the container asks, so one without a task of it was taken
    /// before its birth, however fresh, and another is taken.
    fn sample(&self, containers: &[Arc<Container>]) -> Option<Arc<TaskSample>> {
        let sampler = self.sampler.get();
        let fresh = match sampler {
            Some(sampler) => sampler.fresh(),
            None => self.sample_alone(TaskSample::is_fresh),
        };
        let sample = fresh.and_then(|sample| {
            if self.knows(&sample, containers) {
                return Ok(sample);
            }
            match sampler {
                Some(sampler) => sampler.later_than(&sample),
                None => self.sample_alone(|last| last.generation > sample.generation),
            }
        });
        match sample {
            Ok(sample) => Some(sample),
            Err(error) => {
                tracing::debug!(%error, "the walk over all tasks failed");
                None
            }
        }
    }

    /// Whether there is a task of each of the containers that are counted.
    fn knows(&self, sample: &TaskSample, containers: &[Arc<Container>]) -> bool {
        let mut ids = containers.iter().filter_map(|container| self.id(container));
        ids.all(|id| sample.counts(id).threads > 0)
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
                    newest_pid: newest_pid(counts.last_pid, container.pid_namespace.is_some()),
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
        match self.sample(containers) {
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

    fn times(&self, container: &Container, devices: &[(u32, u32)]) -> Option<Vec<DeviceTimes>> {
        let dir = container.dir(Controller::Io)?;
        let times = self.0.block_times(dir.fd(), devices).ok()?;
        Some(times.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_of_the_host_is_none_of_a_containers_with_a_namespace_of_its_own() {
        let last = |ns_level| Some(LastPid { pid: 7, ns_level });
        assert_eq!(newest_pid(last(1), true), Some(7));
        assert_eq!(newest_pid(last(0), true), None);
        // One that shares the host's, or of which no caller has told yet.
        assert_eq!(newest_pid(last(0), false), Some(7));
        assert_eq!(newest_pid(last(2), false), Some(7));
        assert_eq!(newest_pid(None, false), None);
    }

    #[test]
    fn controllers_are_known_by_their_v1_names() {
        assert_eq!(controller_named("cpuacct"), Some(Controller::Cpuacct));
        assert_eq!(controller_named("blkio"), Some(Controller::Io));
        assert_eq!(controller_named("freezer"), None);
    }
}
