//! Every metric family there is, and their text. The figures stay where they arise, as
//! plain atomics; they are gathered only when somebody asks.
//!
//! Labels are `file`, `op`, `source`, `outcome` and their like, with values from fixed
//! tables: never a container, a pid or a path that a container could choose.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// How a family's figures are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while one worker lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts per bucket, their sum and their number.
    Histogram,
}

/// One metric family.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// Name, with its unit, as scraped.
    pub name: &'static str,
    /// How it is to be read.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

macro_rules! families {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: &Family = &Family {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                help: $help,
            };
        )*
        /// All of them, in the order they are printed.
        pub const FAMILIES: &[&Family] = &[$($constant),*];
    };
}

families! {
    BUILD_INFO: Gauge "lxcfs_build_info" ["version"]
        "Always 1; the version is in the label.";
    REQUESTS: Counter "lxcfs_requests_total" ["file", "op", "outcome"]
        "Answers asked of the view engine, by file, operation and outcome.";
    REQUEST_SECONDS: Histogram "lxcfs_request_duration_seconds" ["op"]
        "Time the view engine took for an answer.";
    REQUESTS_IN_FLIGHT: Gauge "lxcfs_requests_in_flight" []
        "Answers being worked on now.";
    REQUEST_OLDEST_SECONDS: Gauge "lxcfs_request_oldest_seconds" []
        "Age of the answer that has been worked on for longest; 0 when none is.";
    FALLBACKS: Counter "lxcfs_fallbacks_total" ["field", "reason"]
        "Values that came from a lesser source than the best one, by what is affected and why.";
    FEATURE: Gauge "lxcfs_feature" ["feature", "state"]
        "Always 1; the state of each feature of the collector is in the labels.";
    BPF_PROGRAMS: Gauge "lxcfs_bpf_programs" []
        "eBPF programs in the kernel now.";
    BPF_VERIFIED: Gauge "lxcfs_bpf_verified_instructions" ["program"]
        "Instructions the verifier went through when the program was loaded (kernel 5.16+).";
    BPF_CODE_BYTES: Gauge "lxcfs_bpf_code_bytes" ["program"]
        "Machine code of the program; 0 without the JIT compiler.";
    BPF_LOSSES: Counter "lxcfs_bpf_losses_total" ["table"]
        "What eBPF could not record because a table or the event ring was full.";
    HOST_VIEW: Gauge "lxcfs_host_view" []
        "1 while SIGUSR2 has switched all views to the host's values.";
    ATTACHED: Counter "lxcfs_attached_total" ["method", "outcome"]
        "Containers given their views while running, by method and outcome.";
    HEALS: Counter "lxcfs_heals_total" ["outcome"]
        "Dead mounts of ours found in containers, by what became of them.";
    SKIPPED: Counter "lxcfs_skipped_total" ["reason"]
        "Containers left alone, by reason.";
    SKIPPED_FILES: Counter "lxcfs_skipped_files_total" ["reason"]
        "Files left alone in containers that were given views, by reason.";
    ATTACH_FAILURES: Counter "lxcfs_attach_failures_total" ["reason"]
        "Containers that did not get all they should, by reason.";
    RUNTIME_CONNECTED: Gauge "lxcfs_runtime_connected" ["runtime"]
        "1 while the runtime tells of its containers.";
    RUNTIME_FAILURES: Counter "lxcfs_runtime_failures_total" ["runtime", "reason"]
        "Times a runtime could not be reached or its connection ended, by reason.";
    STALE_MOUNTS: Gauge "lxcfs_stale_mounts" []
        "Dead mounts of ours seen by the last scan.";
    ANSWERS: Counter "lxcfs_answers_total" []
        "Requests of the kernel answered on this connection, by all its workers.";
    WORKER_DEATHS: Counter "lxcfs_worker_deaths_total" []
        "Workers that ended while they served, upgrades not counted.";
    STUCK_WORKERS: Counter "lxcfs_stuck_workers_total" []
        "Workers replaced because the mount did not answer.";
    UPGRADES: Counter "lxcfs_upgrades_total" []
        "Workers replaced by another binary while serving.";
    REPLAYED: Counter "lxcfs_replayed_requests_total" []
        "Requests of a dead worker that the next one answered.";
    POISONED: Counter "lxcfs_poisoned_requests_total" []
        "Requests given up with EIO because they ended every worker that tried.";
    CONNECTION_WAITING: Gauge "lxcfs_connection_waiting" []
        "Requests the kernel waits for (/sys/fs/fuse/connections/N/waiting).";
    MOUNT_ANSWERS: Gauge "lxcfs_mount_answers" []
        "1 if the last readiness check read the mount through the kernel in time.";
    RESIDENT_BYTES: Gauge "process_resident_memory_bytes" []
        "Resident memory of the worker.";
    CPU_SECONDS: Counter "process_cpu_seconds_total" []
        "CPU time used by the worker, user and system.";
    START_TIME: Gauge "process_start_time_seconds" []
        "Start time of the worker since the epoch.";
}

/// Upper bounds of the latency buckets, in seconds; the last is open.
pub const LATENCY_BOUNDS: [f64; 10] = [
    5e-6, 10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 1e-3, 10e-3, 100e-3, 1.0,
];

/// A histogram's figures: observations per bucket of [`LATENCY_BOUNDS`] and beyond.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distribution {
    /// How many fell into each bucket (not cumulative); the last is beyond every bound.
    pub buckets: [u64; LATENCY_BOUNDS.len() + 1],
    /// Sum of all observations, in seconds.
    pub sum: f64,
}

/// Figures at one moment, in the making.
#[derive(Debug, Default)]
pub struct Figures {
    points: Vec<(&'static Family, Vec<String>, Value)>,
}

#[derive(Debug)]
enum Value {
    Number(f64),
    Whole(u64),
    Distribution(Distribution),
}

impl Value {
    fn encode(&self, out: &mut MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            // As gauges even where they count: the encoder would append a second `_total`,
            // which OpenMetrics wants and Prometheus's own format does not.
            Self::Number(value) => out.encode_gauge(value),
            Self::Whole(value) => out.encode_gauge(value),
            Self::Distribution(value) => {
                let bounds = LATENCY_BOUNDS.iter().copied().chain([f64::INFINITY]);
                let buckets: Vec<(f64, u64)> = bounds.zip(value.buckets).collect();
                let count = value.buckets.iter().sum();
                out.encode_histogram::<NoLabelSet>(value.sum, count, &buckets, None)
            }
        }
    }
}

impl Figures {
    /// Adds a counter's or a whole gauge's value; `labels` in the family's order.
    pub fn count(&mut self, family: &'static Family, labels: &[&str], value: u64) {
        self.push(family, labels, Value::Whole(value));
    }

    /// Adds a value with a fraction.
    pub fn number(&mut self, family: &'static Family, labels: &[&str], value: f64) {
        self.push(family, labels, Value::Number(value));
    }

    /// Adds a histogram.
    pub fn distribution(&mut self, family: &'static Family, labels: &[&str], value: Distribution) {
        self.push(family, labels, Value::Distribution(value));
    }

    fn push(&mut self, family: &'static Family, labels: &[&str], value: Value) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        self.points.push((family, labels, value));
    }
}

/// Whoever has figures to tell.
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Adds the present figures.
    fn figures(&self, out: &mut Figures);
}

/// All sources, printed on demand.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
}

/// Content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Metrics {
    /// Metrics of `sources`, which are asked in this order at every scrape.
    #[must_use]
    pub fn new(sources: Vec<Arc<dyn Source>>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Gather { sources }));
        Self { registry }
    }

    /// The figures in Prometheus's text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[derive(Debug)]
struct Gather {
    sources: Vec<Arc<dyn Source>>,
}

impl Collector for Gather {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut figures = Figures::default();
        for source in &self.sources {
            source.figures(&mut figures);
        }
        for family in FAMILIES {
            let mut points = figures
                .points
                .iter()
                .filter(|(of, ..)| of.name == family.name)
                .peekable();
            if points.peek().is_none() {
                continue;
            }
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut out = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for (family, values, value) in points {
                let labels: Vec<(&str, &str)> = family
                    .labels
                    .iter()
                    .copied()
                    .zip(values.iter().map(String::as_str))
                    .collect();
                if labels.is_empty() {
                    value.encode(&mut out)?;
                } else {
                    let labels = labels.as_slice();
                    value.encode(&mut out.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
