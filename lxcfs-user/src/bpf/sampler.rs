//! The thread that samples all tasks when the kernel does, every 5 s, and keeps the load averages, and that
//! listens to the event ring meanwhile.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{
    BpfError, CgroupEvent, CgroupId, Collector, EventStream, TaskCounts, TaskSample, clock, lock,
    read_lock, write_lock,
};
use crate::history::loadavg::LoadAverage;
use crate::history::loads::{Grid, LoadTable};
use crate::units::Nsec;

/// Called for each event, on the sampler's thread; must not block.
pub type EventHandler = Box<dyn Fn(CgroupEvent) + Send>;

/// Load and task counts of every cgroup, kept up to date until dropped.
pub struct Sampler {
    shared: Arc<Shared>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    collector: Arc<Collector>,
    loads: RwLock<LoadTable<CgroupId>>,
    latest: RwLock<Arc<TaskSample>>,
    /// Held while a sample for [`Sampler::fresh`] is taken, so that one serves all who wait.
    refreshing: Mutex<()>,
    failures: std::sync::atomic::AtomicU64,
    /// Samples accounted.
    samples: std::sync::atomic::AtomicU64,
}

/// What is known of one cgroup with everything below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CgroupLoadState {
    /// Tasks at the last sample.
    pub counts: TaskCounts,
    /// 1, 5 and 15 minute averages with 11 fractional bits.
    pub avenrun: [u64; 3],
}

impl Sampler {
    /// Takes the first sample at once and starts the thread. `restored` is what
    /// [`Self::export`] of an earlier daemon of the same boot gave.
    ///
    /// # Errors
    /// When the first sample fails, for instance because the feature is off.
    pub fn start(
        collector: Arc<Collector>,
        restored: impl IntoIterator<Item = (CgroupId, LoadAverage)>,
        on_event: EventHandler,
    ) -> Result<Self, BpfError> {
        let first = collector.sample_tasks()?;
        let timer_list = std::fs::read_to_string("/proc/timer_list").unwrap_or_default();
        let grid = Grid::new(tick(), &timer_list);
        let now = grid.last(clock(libc::CLOCK_MONOTONIC));
        let mut loads = LoadTable::default();
        for (cgroup, load) in restored {
            loads.restore(cgroup, load, now);
        }
        let events = collector.take_events();
        let shared = Arc::new(Shared {
            collector,
            loads: RwLock::new(loads),
            latest: RwLock::default(),
            refreshing: Mutex::new(()),
            failures: Default::default(),
            samples: Default::default(),
        });
        shared.account(now, first);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let system = |error: nix::Error| io::Error::from(error);
        let stop = EventFd::from_flags(flags)
            .map_err(system)
            .map_err(BpfError::system("making an eventfd"))?;
        let stop = Arc::new(stop);
        let thread = {
            let (shared, stop) = (Arc::clone(&shared), Arc::clone(&stop));
            std::thread::Builder::new()
                .name("lxcfs-load".to_owned())
                .stack_size(256 * 1024)
                .spawn(move || shared.run(grid, events, &stop, &on_event))
                .map_err(BpfError::system("starting the sampler"))?
        };
        Ok(Self {
            shared,
            stop,
            thread: Some(thread),
        })
    }

    /// Load and counts of a cgroup as of the last sample, at most 5 s old. A cgroup that had
    /// no task then has zero of everything.
    #[must_use]
    pub fn state(&self, cgroup: CgroupId) -> CgroupLoadState {
        CgroupLoadState {
            counts: self.latest().counts(cgroup),
            avenrun: read_lock(&self.shared.loads)
                .avenrun(cgroup)
                .unwrap_or_default(),
        }
    }

    /// The last sample.
    #[must_use]
    pub fn latest(&self) -> Arc<TaskSample> {
        Arc::clone(&read_lock(&self.shared.latest))
    }

    /// A sample that is [fresh enough](TaskSample::is_fresh), taken now if need be; the
    /// averages keep to their grid.
    ///
    /// # Errors
    /// When a sample has to be taken and fails.
    pub fn fresh(&self) -> Result<Arc<TaskSample>, BpfError> {
        let latest = self.latest();
        if latest.is_fresh() {
            return Ok(latest);
        }
        self.fresh_if(TaskSample::is_fresh)
    }

    /// A sample later than `seen`, which has no task of a cgroup that must have one: of a
    /// container that is younger than the sample.
    ///
    /// # Errors
    /// When a sample has to be taken and fails.
    pub fn later_than(&self, seen: &TaskSample) -> Result<Arc<TaskSample>, BpfError> {
        self.fresh_if(|latest| latest.generation > seen.generation)
    }

    fn fresh_if(&self, will_do: impl Fn(&TaskSample) -> bool) -> Result<Arc<TaskSample>, BpfError> {
        let _one_at_a_time = lock(&self.shared.refreshing);
        let latest = self.latest();
        if will_do(&latest) {
            return Ok(latest);
        }
        let sample = Arc::new(self.shared.collector.sample_tasks()?);
        *write_lock(&self.shared.latest) = Arc::clone(&sample);
        Ok(sample)
    }

    /// Samples that the averages have taken in; they change with nothing else.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.shared
            .samples
            .load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Samples that failed since the start.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.shared
            .failures
            .load(std::sync::atomic::Ordering::Relaxed)
    }

    /// All averages, for a later daemon of the same boot.
    #[must_use]
    pub fn export(&self) -> Vec<(CgroupId, LoadAverage)> {
        read_lock(&self.shared.loads)
            .iter()
            .map(|(id, load)| (id, *load))
            .collect()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // Full means that it is already told.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed by its own hook.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(
        &self,
        grid: Grid,
        mut events: Option<EventStream>,
        stop: &EventFd,
        on_event: &EventHandler,
    ) {
        let mut online = online_cpus();
        loop {
            let deadline = grid.next(clock(libc::CLOCK_MONOTONIC));
            if self.listen_until(deadline, events.as_mut(), stop, on_event) {
                return;
            }
            let now = grid.last(clock(libc::CLOCK_MONOTONIC));
            match self.collector.sample_tasks() {
                Ok(sample) => self.account(now, sample),
                Err(error) => {
                    self.failures
                        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    tracing::warn!(%error, "counting the tasks failed; the last counts stay");
                }
            }
            self.collector.release_cgroup();
            self.collector.forward_log();
            if let Err(error) = self.collector.sweep_block() {
                tracing::warn!(%error, "block counters of removed cgroups stay where they are");
            }
            let now_online = online_cpus();
            if now_online != online {
                // Off is no failure: then nothing reads per-CPU times.
                let _ = self.collector.refresh_cpus();
                online = now_online;
            }
        }
    }

    fn account(&self, now: Nsec, sample: TaskSample) {
        let active = sample
            .iter()
            .map(|(cgroup, counts)| (cgroup, counts.active()));
        write_lock(&self.loads).advance(now, active);
        self.samples
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        *write_lock(&self.latest) = Arc::new(sample);
    }

    /// Handles events until the deadline; true when told to stop.
    fn listen_until(
        &self,
        deadline: Nsec,
        mut events: Option<&mut EventStream>,
        stop: &EventFd,
        on_event: &EventHandler,
    ) -> bool {
        loop {
            let left = deadline.less(clock(libc::CLOCK_MONOTONIC));
            // Rounded up, so that the deadline has passed when poll times out.
            let milliseconds = left.0.div_ceil(1_000_000);
            if milliseconds == 0 {
                return false;
            }
            let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
            if let Some(events) = &events {
                fds.push(PollFd::new(events.as_fd(), PollFlags::POLLIN));
            }
            let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX);
            if poll(&mut fds, timeout).is_err() {
                // A signal; any other failure ends at the deadline.
                continue;
            }
            let told = |fd: Option<&PollFd<'_>>| {
                fd.and_then(PollFd::revents)
                    .is_some_and(|revents| !revents.is_empty())
            };
            if told(fds.first()) {
                return true;
            }
            let waiting = told(fds.get(1));
            drop(fds);
            if waiting && let Some(events) = events.as_deref_mut() {
                while let Some(event) = events.next_event() {
                    self.note(&event);
                    on_event(event);
                }
            }
        }
    }

    fn note(&self, event: &CgroupEvent) {
        let CgroupEvent::Removed { cgroup } = event else {
            return;
        };
        self.collector.note_removed(cgroup);
        if let Some(id) = self.collector.counted_id(cgroup) {
            write_lock(&self.loads).forget(id);
        }
    }
}

/// The kernel's tick: the resolution of its coarse clocks.
fn tick() -> Nsec {
    let mut tick = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is valid; the clock exists on every supported kernel.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut tick) };
    Nsec(u64::try_from(tick.tv_nsec).unwrap_or(0))
}

fn online_cpus() -> Option<String> {
    std::fs::read_to_string("/sys/devices/system/cpu/online").ok()
}
