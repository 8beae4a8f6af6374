//! What answers on this machine: the engine, and eBPF, which comes when it has been loaded.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Result;

use super::ebpf::{self, Tasks};
use crate::bpf::{self, FeatureState};
use crate::collect::live::{LiveEngine, LiveOptions};

fn lock(mutex: &Mutex<bool>) -> MutexGuard<'_, bool> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The engine of this machine, and what plugs into it.
pub struct Parts {
    /// Answers.
    pub engine: Arc<LiveEngine>,
    ebpf: OnceLock<Ebpf>,
    loaded: (Mutex<bool>, Condvar),
}

/// What eBPF gives.
struct Ebpf {
    /// What it can do here, with reason and remedy.
    features: Arc<Vec<FeatureState>>,
    collector: Arc<bpf::Collector>,
    tasks: Option<(Arc<Tasks>, Arc<bpf::Collector>)>,
}

impl Parts {
    /// Finds the machine's cgroups. Answers come from files until [`load`](Self::load).
    ///
    /// # Errors
    /// When the host cannot be seen from here.
    pub fn new(options: &LiveOptions) -> Result<Self> {
        Ok(Self {
            engine: Arc::new(LiveEngine::start(options)?),
            ebpf: OnceLock::new(),
            loaded: Default::default(),
        })
    }

    /// Loads what eBPF the machine allows. Takes a while: nobody should wait for it.
    pub fn load(&self, ebpf: bool) {
        let engine = &self.engine;
        let (collector, features) = bpf::Collector::start(&bpf::Options {
            enabled: ebpf,
            ..bpf::Options::default()
        });
        let collector = Arc::new(collector);
        let present = engine.collector().sources();
        let fallback = crate::collect::source::Sources {
            tasks: Arc::clone(&present.tasks),
            cpu_time: present.cpu_time.clone(),
            io_times: present.io_times.clone(),
        };
        let (sources, tasks) = ebpf::sources(&collector, fallback);
        engine.collector().set_sources(sources);
        let counts = collector.has(bpf::Feature::TaskCounts);
        // Loaded once.
        let _ = self.ebpf.set(Ebpf {
            features: Arc::new(features),
            tasks: counts.then(|| (tasks, Arc::clone(&collector))),
            collector,
        });
        *lock(&self.loaded.0) = true;
        self.loaded.1.notify_all();
    }

    /// Waits until eBPF has been loaded, or cannot be; at most as long as that.
    pub(super) fn wait_for_ebpf(&self, patience: Option<Duration>) {
        let (loaded, changed) = &self.loaded;
        let waiting = |loaded: &mut bool| !*loaded;
        match patience {
            Some(patience) => drop(changed.wait_timeout_while(lock(loaded), patience, waiting)),
            None => drop(changed.wait_while(lock(loaded), waiting)),
        }
    }

    /// The collector, once it is there.
    pub(super) fn bpf(&self) -> Option<&bpf::Collector> {
        Some(&*self.ebpf.get()?.collector)
    }

    /// What eBPF can do, once that is known.
    pub(super) fn shared_features(&self) -> Option<Arc<Vec<FeatureState>>> {
        Some(Arc::clone(&self.ebpf.get()?.features))
    }

    /// The task walk, if eBPF does it and has been loaded.
    pub(super) fn tasks(&self) -> Option<&(Arc<Tasks>, Arc<bpf::Collector>)> {
        self.ebpf.get()?.tasks.as_ref()
    }

    /// Empty until eBPF has been loaded, or not.
    pub(super) fn features(&self) -> &[FeatureState] {
        self.ebpf.get().map_or(&[], |ebpf| &ebpf.features)
    }
}
