//! Counts and times what the engine is asked, at the seam between serving and answering:
//! one wrapper around the [`Engine`], so that neither side knows of metrics.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use lxcfs_common::catalogue::{CATALOGUE, FileId, Kind, Node};

use super::metrics::{
    Distribution, Figures, LATENCY_BOUNDS, REQUEST_OLDEST_SECONDS, REQUEST_SECONDS, REQUESTS,
    REQUESTS_IN_FLIGHT, Source,
};
use crate::cpuset::CpuSet;
use crate::engine::{AnswerError, Caller, Engine};

/// What was asked for.
#[derive(Clone, Copy, Debug)]
enum Op {
    Render,
    List,
    Trigger,
}

const OPS: [&str; 3] = ["render", "list", "trigger"];
const OUTCOMES: [&str; 6] = ["ok", "caller", "gone", "absent", "invalid", "io"];

/// `file` of everything below `cpuN/` and `nodeN/`: one each, whatever N.
const CPU_TREE: &str = "sys/devices/system/cpu/cpuN";
const NODE_TREE: &str = "sys/devices/system/node/nodeN";
const FILES: usize = CATALOGUE.len() + 2;

/// Concurrent requests whose age is known; more are served, but not watched.
const SLOTS: usize = 64;

/// Counters of one worker's life.
#[derive(Debug)]
pub struct Requests {
    outcomes: Vec<[[AtomicU64; OUTCOMES.len()]; OPS.len()]>,
    latency: [Latency; OPS.len()],
    /// Start of the request in each slot, in ns since `born`, plus 1; 0 = free.
    started: [AtomicU64; SLOTS],
    born: Instant,
}

#[derive(Debug, Default)]
struct Latency {
    buckets: [AtomicU64; LATENCY_BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            outcomes: (0..FILES).map(|_| Default::default()).collect(),
            latency: Default::default(),
            started: [const { AtomicU64::new(0) }; SLOTS],
            born: Instant::now(),
        }
    }
}

impl Requests {
    /// How long the request that has been worked on for longest has been so; `None` when
    /// every serving thread is free. This is the heartbeat: a request is bounded, so an
    /// old one means a stuck thread.
    #[must_use]
    pub fn oldest(&self) -> Option<Duration> {
        let now = self.now();
        self.started
            .iter()
            .map(|slot| slot.load(Relaxed))
            .filter(|start| *start != 0)
            .min()
            .map(|start| Duration::from_nanos(now.saturating_sub(start)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_nanos())
            .unwrap_or(u64::MAX - 1)
            .saturating_add(1)
    }

    fn time<T>(
        &self,
        file: usize,
        op: Op,
        answer: impl FnOnce() -> Result<T, AnswerError>,
    ) -> Result<T, AnswerError> {
        let start = self.now();
        let slot = self
            .started
            .iter()
            .find(|slot| slot.compare_exchange(0, start, Relaxed, Relaxed).is_ok());
        let result = answer();
        if let Some(slot) = slot {
            slot.store(0, Relaxed);
        }
        let took = self.now().saturating_sub(start);
        let seconds = took as f64 / 1e9;
        let bucket = LATENCY_BOUNDS.partition_point(|bound| *bound < seconds);
        let latency = &self.latency[op as usize];
        latency.buckets[bucket].fetch_add(1, Relaxed);
        latency.sum_ns.fetch_add(took, Relaxed);
        let outcome = match &result {
            Ok(_) => 0,
            Err(AnswerError::Caller { .. }) => 1,
            Err(AnswerError::Gone { .. }) => 2,
            Err(AnswerError::Absent(_)) => 3,
            Err(AnswerError::Invalid(_)) => 4,
            Err(AnswerError::Io { .. }) => 5,
        };
        self.outcomes[file.min(FILES - 1)][op as usize][outcome].fetch_add(1, Relaxed);
        result
    }
}

fn index_of(node: Node) -> usize {
    match node {
        Node::Fixed(entry) => CATALOGUE
            .iter()
            .position(|known| known.ino == entry.ino)
            .unwrap_or(0),
        Node::Cpu(..) => CATALOGUE.len(),
        Node::Numa(..) => CATALOGUE.len() + 1,
    }
}

fn index_of_file(id: FileId) -> usize {
    CATALOGUE
        .iter()
        .position(|entry| entry.kind == Kind::File(id))
        .unwrap_or(0)
}

fn name_of(index: usize) -> &'static str {
    match CATALOGUE.get(index) {
        Some(entry) => entry.path,
        None if index == CATALOGUE.len() => CPU_TREE,
        None => NODE_TREE,
    }
}

impl Source for Requests {
    fn figures(&self, out: &mut Figures) {
        for (file, ops) in self.outcomes.iter().enumerate() {
            for (op, outcomes) in OPS.iter().zip(ops) {
                for (outcome, count) in OUTCOMES.iter().zip(outcomes) {
                    let count = count.load(Relaxed);
                    if count > 0 {
                        out.count(REQUESTS, &[name_of(file), op, outcome], count);
                    }
                }
            }
        }
        for (op, latency) in OPS.iter().zip(&self.latency) {
            let mut value = Distribution {
                sum: latency.sum_ns.load(Relaxed) as f64 / 1e9,
                ..Distribution::default()
            };
            for (to, from) in value.buckets.iter_mut().zip(&latency.buckets) {
                *to = from.load(Relaxed);
            }
            out.distribution(REQUEST_SECONDS, &[op], value);
        }
        let busy = self.started.iter().filter(|slot| slot.load(Relaxed) != 0);
        out.count(REQUESTS_IN_FLIGHT, &[], busy.count() as u64);
        let oldest = self.oldest().unwrap_or_default();
        out.number(REQUEST_OLDEST_SECONDS, &[], oldest.as_secs_f64());
    }
}

/// An engine whose every answer is counted.
#[derive(Debug)]
pub struct Observed<E> {
    engine: Arc<E>,
    requests: Arc<Requests>,
}

impl<E: Engine> Observed<E> {
    /// Counts what `engine` is asked into `requests`.
    #[must_use]
    pub fn new(engine: Arc<E>, requests: Arc<Requests>) -> Self {
        Self { engine, requests }
    }
}

impl<E: Engine> Engine for Observed<E> {
    fn render(&self, caller: Caller, node: Node, out: &mut Vec<u8>) -> Result<(), AnswerError> {
        self.requests.time(index_of(node), Op::Render, || {
            self.engine.render(caller, node, out)
        })
    }

    fn visible_cpus(&self, caller: Caller) -> Result<CpuSet, AnswerError> {
        self.requests.time(CATALOGUE.len(), Op::List, || {
            self.engine.visible_cpus(caller)
        })
    }

    fn visible_nodes(&self, caller: Caller) -> Result<CpuSet, AnswerError> {
        self.requests.time(CATALOGUE.len() + 1, Op::List, || {
            self.engine.visible_nodes(caller)
        })
    }

    fn possible_cpus(&self) -> CpuSet {
        self.engine.possible_cpus()
    }

    fn possible_nodes(&self) -> CpuSet {
        self.engine.possible_nodes()
    }

    fn exists(&self, node: Node) -> bool {
        self.engine.exists(node)
    }

    fn is_offered(&self, node: Node) -> bool {
        self.engine.is_offered(node)
    }

    fn open_pressure(&self, caller: Caller, id: FileId) -> Result<OwnedFd, AnswerError> {
        self.requests.time(index_of_file(id), Op::Trigger, || {
            self.engine.open_pressure(caller, id)
        })
    }
}

#[cfg(test)]
mod tests {
    use lxcfs_common::catalogue::by_path;

    use super::*;
    use crate::observe::metrics::Metrics;

    /// Answers uptime, and nothing else.
    struct Uptime;

    impl Engine for Uptime {
        fn render(&self, caller: Caller, node: Node, out: &mut Vec<u8>) -> Result<(), AnswerError> {
            match node {
                Node::Fixed(entry) if entry.path == "proc/uptime" => {
                    out.extend_from_slice(b"1.00 1.00\n");
                    Ok(())
                }
                _ => Err(AnswerError::Caller {
                    tid: caller.tid,
                    reason: "test",
                }),
            }
        }
        fn visible_cpus(&self, _: Caller) -> Result<CpuSet, AnswerError> {
            Ok(CpuSet::first(2))
        }
        fn visible_nodes(&self, _: Caller) -> Result<CpuSet, AnswerError> {
            Ok(CpuSet::first(1))
        }
        fn possible_cpus(&self) -> CpuSet {
            CpuSet::first(2)
        }
        fn possible_nodes(&self) -> CpuSet {
            CpuSet::first(1)
        }
        fn exists(&self, _: Node) -> bool {
            true
        }
        fn is_offered(&self, _node: Node) -> bool {
            true
        }
        fn open_pressure(&self, _: Caller, _: FileId) -> Result<OwnedFd, AnswerError> {
            Err(AnswerError::Absent("test"))
        }
    }

    #[test]
    fn every_answer_is_counted_by_file_operation_and_outcome() {
        let requests = Arc::new(Requests::default());
        let engine = Observed::new(Arc::new(Uptime), Arc::clone(&requests));
        let caller = Caller { tid: 1, uid: 0 };
        let fixed = |path| Node::Fixed(by_path(path).unwrap());
        let mut out = Vec::new();
        engine
            .render(caller, fixed("proc/uptime"), &mut out)
            .unwrap();
        engine
            .render(caller, fixed("proc/uptime"), &mut out)
            .unwrap();
        engine
            .render(caller, fixed("proc/meminfo"), &mut out)
            .unwrap_err();
        engine
            .render(caller, Node::Cpu(3, 1), &mut out)
            .unwrap_err();
        engine.visible_cpus(caller).unwrap();
        engine
            .open_pressure(caller, FileId::PressureIo)
            .unwrap_err();
        assert_eq!(out, b"1.00 1.00\n1.00 1.00\n");

        let text = Metrics::new(vec![requests.clone()]).text();
        for line in [
            r#"lxcfs_requests_total{file="proc/uptime",op="render",outcome="ok"} 2"#,
            r#"lxcfs_requests_total{file="proc/meminfo",op="render",outcome="caller"} 1"#,
            r#"lxcfs_requests_total{file="sys/devices/system/cpu/cpuN",op="render",outcome="caller"} 1"#,
            r#"lxcfs_requests_total{file="sys/devices/system/cpu/cpuN",op="list",outcome="ok"} 1"#,
            r#"lxcfs_requests_total{file="proc/pressure/io",op="trigger",outcome="absent"} 1"#,
            r#"lxcfs_request_duration_seconds_count{op="render"} 4"#,
            "lxcfs_requests_in_flight 0",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
        }
        assert_eq!(requests.oldest(), None);
    }

    #[test]
    fn a_request_in_work_has_an_age() {
        let requests = Requests::default();
        let seen = requests.time(0, Op::Render, || {
            std::thread::sleep(Duration::from_millis(2));
            Ok(requests.oldest())
        });
        assert!(seen.unwrap().unwrap() >= Duration::from_millis(2));
        assert_eq!(requests.oldest(), None);
    }
}
