//! Keeps what a worker knows where its successor finds it.
//!
//! What a reader is shown is in the journal before the reader has it. Everything together is
//! saved anew when the journal has grown long, and for the load averages of cgroups that
//! nobody asks for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use super::parts::Parts;
use super::saved::{self, Legacy};
use crate::bpf::{CgroupId, Sampler};
use crate::collect::sampler::LoadSampler;
use crate::collect::store::{Journal, Saved};
use crate::history::loadavg::LoadAverage;
use crate::worker::{Appended, HistoryStore};

/// Between two times that all load averages are saved: a successor makes up for as many
/// samples.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// The state of this worker in the memory that outlives it.
pub(super) struct Keeper {
    /// Nobody has served this mount before.
    pub(super) first: bool,
    /// What the predecessor left for the sampler.
    loads: Mutex<Vec<(CgroupId, LoadAverage)>>,
    kept: Arc<Kept>,
}

struct Kept {
    store: HistoryStore,
    /// The journal has grown long.
    long: AtomicBool,
    saver: OnceLock<Thread>,
}

/// The journal as the engine knows it.
struct Append(Arc<Kept>);

impl Keeper {
    /// Takes over what a predecessor saved, and keeps what is shown from now on; before any
    /// reader can see a counter go back.
    pub(super) fn take_over(parts: &Parts, store: HistoryStore) -> Self {
        let engine = &parts.engine;
        let left = store.load().unwrap_or_default();
        let legacy = Legacy::from_bytes(&left.snapshot);
        let keeper = Self {
            first: legacy.is_none(),
            loads: Mutex::default(),
            kept: Arc::new(Kept {
                store,
                long: AtomicBool::new(false),
                saver: OnceLock::new(),
            }),
        };
        match legacy {
            Some(legacy) => {
                let now = engine.collector().now();
                let changed: Vec<Saved> = left
                    .journal
                    .iter()
                    .filter_map(|record| saved::from_record(record))
                    .collect();
                engine.set_host_view(legacy.host_view);
                let remembered = &engine.collector().store;
                remembered.restore(&legacy.containers, now);
                remembered.restore(&changed, now);
                *keeper.lock_loads() = legacy.loads;
            }
            // A journal needs something that it adds to.
            None => keeper.save(parts),
        }
        let append = Append(Arc::clone(&keeper.kept));
        engine.collector().store.use_journal(Box::new(append));
        keeper
    }

    fn lock_loads(&self) -> MutexGuard<'_, Vec<(CgroupId, LoadAverage)>> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Load averages per cgroup of the predecessor, for whoever goes on with them.
    pub(super) fn loads(&self) -> Vec<(CgroupId, LoadAverage)> {
        std::mem::take(&mut *self.lock_loads())
    }

    /// Saves everything.
    pub(super) fn save(&self, parts: &Parts) {
        self.kept.save(parts);
    }

    /// Starts the thread that saves when it is time; it keeps `sampler` running.
    pub(super) fn start(&self, parts: Arc<Parts>, sampler: LoadSampler) -> std::io::Result<()> {
        let kept = Arc::clone(&self.kept);
        let saver = thread::Builder::new()
            .name("lxcfs-save".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || {
                let _sampler = sampler;
                let mut saved = None;
                loop {
                    // It may have grown long before there was anybody to wake.
                    if !kept.long.load(Ordering::Relaxed) {
                        thread::park_timeout(SAVE_EVERY);
                    }
                    let sampler = parts.tasks().and_then(|(tasks, _)| tasks.sampler());
                    let samples = sampler.map_or(0, Sampler::samples);
                    if kept.long.swap(false, Ordering::Relaxed) || saved != Some(samples) {
                        kept.save(&parts);
                        saved = Some(samples);
                    }
                }
            })?;
        // Started once.
        let _ = self.kept.saver.set(saver.thread().clone());
        Ok(())
    }
}

impl Kept {
    fn save(&self, parts: &Parts) {
        let sampler = parts.tasks().and_then(|(tasks, _)| tasks.sampler());
        let saved = self.store.save(|most| {
            let legacy = Legacy {
                host_view: parts.engine.host_view(),
                containers: parts.engine.collector().store.save(),
                loads: sampler.map(Sampler::export).unwrap_or_default(),
            };
            legacy.to_bytes(most)
        });
        if !saved {
            tracing::debug!("the state is not saved: no room, or no holder");
        }
    }
}

impl Journal for Append {
    fn append(&self, changed: &Saved) {
        let kept = &self.0;
        let long = match kept.store.append(&saved::record(changed)) {
            Appended::Kept => false,
            Appended::KeptAndLong => true,
            Appended::Lost => {
                tracing::debug!("a change is not saved: no room, or no holder");
                true
            }
        };
        if long
            && !kept.long.swap(true, Ordering::Relaxed)
            && let Some(saver) = kept.saver.get()
        {
            saver.unpark();
        }
    }
}
