//! The one background thread: on the kernel's 5 s grid it counts tasks for the load
//! averages, and lets go of what is gone.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::container::Container;
use crate::history::loadavg::LOAD_PERIOD;
use crate::units::Nsec;

use super::live::LiveEngine;

/// Periods between two samples that only stand by.
const PERIODS_APART: u64 = 6;

/// A running sampler; it ends when this is dropped.
#[derive(Debug)]
pub struct LoadSampler {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl LoadSampler {
    /// Starts the thread for `engine`.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(engine: &Arc<LiveEngine>) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let engine: Weak<LiveEngine> = Arc::downgrade(engine);
        let thread = std::thread::Builder::new()
            .name("lxcfs-sampler".to_owned())
            .spawn(move || {
                let mut next = None;
                let mut ticks = 0;
                loop {
                    let wait = {
                        let Some(engine) = engine.upgrade() else {
                            return;
                        };
                        let now = engine.collector().now();
                        let at = next_on_grid(next, now);
                        next = Some(at);
                        Duration::from_nanos(at.less(now).0)
                    };
                    match stopped.recv_timeout(wait) {
                        Err(RecvTimeoutError::Timeout) => {}
                        _ => return,
                    }
                    let Some(engine) = engine.upgrade() else {
                        return;
                    };
                    ticks += 1;
                    if tick(&engine, ticks) {
                        ticks = 0;
                    }
                }
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for LoadSampler {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// The next moment to sample: one period after the last, or after now when that is past
/// (the machine was suspended).
fn next_on_grid(last: Option<Nsec>, now: Nsec) -> Nsec {
    let next = last.map_or(now, |last| last.plus(LOAD_PERIOD));
    if next < now {
        now.plus(LOAD_PERIOD)
    } else {
        next
    }
}

/// One round: let go of what is gone, then count. `ticks` is how many periods ago that was
/// looked for last; whether it was now.
pub(super) fn tick(engine: &LiveEngine, ticks: u64) -> bool {
    let collector = engine.collector();
    let swept = engine.resolver().wants_sweep(ticks);
    if swept {
        collector.store.forget(&engine.resolver().sweep(ticks));
    }
    let dropped = collector.store.drop_answers();
    collector.refresh_facts();
    sample(engine);
    if swept || dropped {
        // What a burst of readers left in the heap goes back to the kernel.
        crate::host::memory::trim();
    }
    swept
}

fn sample(engine: &LiveEngine) {
    let collector = engine.collector();
    let sources = collector.sources();
    let now = collector.now();
    // eBPF keeps the averages itself; these are for the day it is gone, and then stand in for
    // a few periods at once.
    if sources.tasks.is_cheap() && !(now.0 / LOAD_PERIOD.0).is_multiple_of(PERIODS_APART) {
        return;
    }
    let containers: Vec<Arc<Container>> = engine
        .resolver()
        .containers()
        .into_iter()
        .filter(|container| sources.tasks.is_cheap() || collector.state(container).wants_load(now))
        .collect();
    if containers.is_empty() {
        return;
    }
    for (container, counts) in containers.iter().zip(sources.tasks.recent(&containers)) {
        if let Some(counts) = counts {
            let state = collector.state(container);
            collector
                .store
                .account(container.key, &state, collector.now(), counts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_keep_to_the_grid_and_skip_what_was_slept_through() {
        let first = next_on_grid(None, Nsec(100));
        assert_eq!(first, Nsec(100));
        let second = next_on_grid(Some(first), Nsec(200));
        assert_eq!(second, Nsec(100).plus(LOAD_PERIOD));
        let late = Nsec(LOAD_PERIOD.0 * 10);
        assert_eq!(next_on_grid(Some(second), late), late.plus(LOAD_PERIOD));
    }
}
