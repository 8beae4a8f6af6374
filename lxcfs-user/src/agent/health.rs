//! Owns what the agent tells about itself: which runtimes it hears, why it does not hear
//! one, and whether its loops go on.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::known::Known;
use crate::observe::metrics::{self, Figures};

/// Between two signs of life of the scan, beside its own interval. One look at a thousand
/// containers that all hang takes a minute or two.
const PATIENCE: Duration = Duration::from_secs(300);

/// A runtime that tells of its containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Runtime {
    /// By its NRI socket.
    Nri,
    /// dockerd.
    Docker,
    /// The kernel itself, by eBPF: a container starts.
    Kernel,
}

impl Runtime {
    /// The metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Nri => "nri",
            Self::Docker => "docker",
            Self::Kernel => "kernel",
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Runtimes that are followed.
    followed: Vec<Runtime>,
    failures: BTreeMap<(Runtime, &'static str), u64>,
    /// Threads that ended by a panic.
    ended: Vec<&'static str>,
    /// The scan's last sign of life and its interval; `None` without a scan.
    scan: Option<(Instant, Duration)>,
}

/// The agent's health.
#[derive(Debug)]
pub struct Health {
    known: Arc<Known>,
    state: Mutex<State>,
}

impl Health {
    /// Nothing is followed yet.
    pub fn new(known: Arc<Known>) -> Self {
        Self {
            known,
            state: Mutex::default(),
        }
    }

    /// A runtime will be followed.
    pub fn follows(&self, runtime: Runtime) {
        self.lock().followed.push(runtime);
    }

    /// A runtime could not be reached, or its connection ended, for this reason.
    pub fn failed(&self, runtime: Runtime, reason: &'static str) {
        *self.lock().failures.entry((runtime, reason)).or_default() += 1;
    }

    /// The scan lives and will look again after `interval`.
    pub fn beat(&self, now: Instant, interval: Duration) {
        self.lock().scan = Some((now, interval));
    }

    /// A thread ended by a panic.
    pub fn ended(&self, thread: &'static str) {
        self.lock().ended.push(thread);
    }

    /// Whether every loop goes on. A runtime that is away is no reason to restart the agent.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn live(&self, now: Instant) -> Result<(), String> {
        let state = self.lock();
        if let Some(thread) = state.ended.first() {
            return Err(format!("the thread {thread} has ended; the log says why"));
        }
        if let Some((last, interval)) = state.scan {
            let silent = now.saturating_duration_since(last);
            if silent > interval + PATIENCE {
                let silent = silent.as_secs();
                return Err(format!(
                    "the look at all containers has not moved for {silent} s"
                ));
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl metrics::Source for Health {
    fn figures(&self, out: &mut Figures) {
        let state = self.lock();
        for runtime in &state.followed {
            let connected = match runtime {
                Runtime::Nri => &self.known.nri,
                Runtime::Docker => &self.known.docker,
                Runtime::Kernel => &self.known.events,
            };
            let connected = u64::from(connected.load(Ordering::Relaxed));
            out.count(metrics::RUNTIME_CONNECTED, &[runtime.label()], connected);
        }
        for (&(runtime, reason), &count) in &state.failures {
            out.count(metrics::RUNTIME_FAILURES, &[runtime.label(), reason], count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::Metrics;

    const TEN: Duration = Duration::from_secs(10);

    #[test]
    fn a_scan_that_does_not_move_and_a_thread_that_ended_are_told() {
        let health = Health::new(Arc::default());
        let start = Instant::now();
        assert_eq!(health.live(start), Ok(()), "without a scan nothing is late");
        health.beat(start, TEN);
        assert_eq!(health.live(start + TEN + PATIENCE), Ok(()));
        let late = start + TEN + PATIENCE + Duration::from_secs(1);
        assert!(health.live(late).unwrap_err().contains("311 s"));
        health.beat(late, TEN);
        assert_eq!(health.live(late), Ok(()));
        health.ended("lxcfs-nri");
        assert!(health.live(late).unwrap_err().contains("lxcfs-nri"));
    }

    #[test]
    fn runtimes_are_told_with_their_state_and_their_failures() {
        let known = Arc::new(Known::default());
        let health = Arc::new(Health::new(Arc::clone(&known)));
        health.follows(Runtime::Nri);
        health.failed(Runtime::Nri, "socket");
        health.failed(Runtime::Nri, "socket");
        let text = |health: &Arc<Health>| Metrics::new(vec![Arc::clone(health) as _]).text();
        let absent = text(&health);
        assert!(absent.contains("lxcfs_runtime_connected{runtime=\"nri\"} 0\n"));
        assert!(
            absent.contains("lxcfs_runtime_failures_total{runtime=\"nri\",reason=\"socket\"} 2\n"),
            "{absent}"
        );
        assert!(!absent.contains("docker"), "nobody follows it");
        known.nri.store(true, Ordering::Relaxed);
        assert!(text(&health).contains("lxcfs_runtime_connected{runtime=\"nri\"} 1\n"));
    }
}
