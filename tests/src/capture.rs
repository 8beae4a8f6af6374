//! Reads `tests/captures/*/tree`, the text that `record.py` writes, and answers for its
//! containers with the daemon's own readers, collector and views over the recorded files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lxcfs_common::catalogue::Node;
use lxcfs_user::cgroup::layout::Layout;
use lxcfs_user::cgroup::reader::Reader;
use lxcfs_user::collect::collector::{Clock, Collector};
use lxcfs_user::collect::live::host_text;
use lxcfs_user::collect::source::{Sources, TaskCounts, TaskSource};
use lxcfs_user::container::Container;
use lxcfs_user::container::boundary::{self, Boundary, CallerFacts, Rule};
use lxcfs_user::container::resolve::Caller;
use lxcfs_user::engine::AnswerError;
use lxcfs_user::history::cpu::CpuHistory;
use lxcfs_user::host::reader::HostReader;
use lxcfs_user::policy::{BoundaryPolicy, ViewPolicy};
use lxcfs_user::snapshot::{Origin, Snapshot};
use lxcfs_user::units::{Bytes, Nsec};
use lxcfs_user::view::{self, ExplainLine};

/// One recorded container.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name in `record.py`.
    pub name: String,
    pid: u32,
    counts: TaskCounts,
}

/// One recorded machine, its files unpacked.
#[derive(Debug)]
pub struct Capture {
    root: PathBuf,
    facts: BTreeMap<String, String>,
    /// Its containers.
    pub cases: Vec<Case>,
}

/// The task counts of the record; views only print them.
#[derive(Debug)]
struct Recorded(TaskCounts);

impl TaskSource for Recorded {
    fn origin(&self) -> Origin {
        Origin::Derived("record.py")
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn count(&self, containers: &[Arc<Container>]) -> Vec<Option<TaskCounts>> {
        vec![Some(self.0); containers.len()]
    }
}

/// Splits `==> path <==` sections.
fn sections(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split("==> ").skip(1).map(|section| {
        let (path, content) = section.split_once(" <==\n").unwrap_or((section, ""));
        (path, content)
    })
}

impl Capture {
    /// Unpacks the record at `path` into the directory `root`, which is emptied first.
    ///
    /// # Panics
    /// When it cannot be read or is not one.
    #[must_use]
    pub fn load(path: &Path, root: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let _ = fs::remove_dir_all(root);
        let (mut facts, mut cases) = (BTreeMap::new(), Vec::new());
        for (path, content) in sections(&text) {
            match path {
                "facts" => facts.extend(content.lines().filter_map(|line| {
                    let (name, value) = line.split_once(' ')?;
                    Some((name.to_owned(), value.to_owned()))
                })),
                "cases" => cases.extend(content.lines().map(case)),
                _ => {
                    let file = root.join(path.trim_start_matches('/'));
                    let directory = file.parent().expect("a file is in a directory");
                    fs::create_dir_all(directory).expect("a writable temporary directory");
                    fs::write(&file, content).expect("a writable temporary directory");
                }
            }
        }
        assert!(!cases.is_empty(), "{} has no cases", path.display());
        Self {
            root: root.to_owned(),
            facts,
            cases,
        }
    }

    fn fact(&self, name: &str) -> u64 {
        let value = self.facts.get(name).and_then(|value| value.parse().ok());
        value.unwrap_or_else(|| panic!("the record has no number {name}"))
    }

    /// The kernel's release.
    ///
    /// # Panics
    /// When the record does not say.
    #[must_use]
    pub fn release(&self) -> &str {
        self.facts.get("release").expect("the record has a release")
    }

    /// Whether there are hierarchies of cgroup v1, and of v2.
    ///
    /// # Panics
    /// When the record has no mountinfo.
    #[must_use]
    pub fn hierarchies(&self) -> (bool, bool) {
        let mountinfo = self.text("proc/self/mountinfo");
        let has = |kind: &str| mountinfo.contains(&format!(" - {kind} "));
        (has("cgroup"), has("cgroup2"))
    }

    fn text(&self, path: &str) -> String {
        let file = self.root.join(path);
        fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
    }

    /// What a process of the host reads, byte for byte as the kernel wrote it.
    ///
    /// # Errors
    /// As the daemon.
    ///
    /// # Panics
    /// When the record has no such process, or it is taken for a container's.
    pub fn host(&self, node: Node) -> Result<Vec<u8>, AnswerError> {
        let facts = CallerFacts {
            paths: self.layout().paths(&self.text("proc/1/cgroup")),
            ..CallerFacts::default()
        };
        let found = boundary::decide(&facts, BoundaryPolicy::Auto);
        assert_eq!(found, None, "process 1 is the host's");
        let host = HostReader::tree(&self.root).expect("/proc and /sys of the record");
        let mut out = Vec::new();
        host_text(&host, node, &mut out)?;
        Ok(out)
    }

    /// The recorded text of a file, if the kernel had it.
    #[must_use]
    pub fn recorded(&self, path: &str) -> Option<Vec<u8>> {
        fs::read(self.root.join(path)).ok()
    }

    fn layout(&self) -> Layout {
        let root = &*self.root;
        let mountinfo = self.text("proc/self/mountinfo");
        let layout = Layout::detect(&mountinfo, |mount: &Path| {
            let mount: PathBuf = mount.components().skip(1).collect();
            let controllers = root.join(mount).join("cgroup.controllers");
            fs::read_to_string(controllers).unwrap_or_default()
        });
        layout.unwrap_or_else(|e| panic!("cgroup mounts of the record: {e}"))
    }

    /// Everything needed to answer for one of the containers.
    ///
    /// # Panics
    /// When the record lacks what the daemon needs.
    #[must_use]
    pub fn open(&self, case: &Case) -> Recording {
        let root = &*self.root;
        let layout = self.layout();
        let reader = Reader::new(&layout, root, 1000).expect("cgroup roots of the record");
        let boundary = Boundary {
            rule: Rule::Given,
            paths: layout.paths(&self.text(&format!("proc/{}/cgroup", case.pid))),
        };
        let container = Container::open(&reader, &layout, &boundary, None);
        let container = container.unwrap_or_else(|e| panic!("cgroups of {}: {e}", case.name));
        let host = HostReader::tree(root).expect("/proc and /sys of the record");
        let facts = host.facts(Bytes(self.fact("page_size")), self.fact("user_hz"));
        let sources = Sources {
            tasks: Arc::new(Recorded(case.counts)),
            cpu_time: None,
            io_times: None,
        };
        let clock = Clock::Fixed(Nsec(self.fact("now")));
        Recording {
            collector: Collector::new(Arc::new(host), facts, sources, Arc::default(), clock),
            caller: Caller {
                container: Arc::new(container),
                timens_offset: 0,
            },
        }
    }
}

/// `name pid running uninterruptible threads`
fn case(line: &str) -> Case {
    let fields: Vec<&str> = line.split(' ').collect();
    let number = |at: usize| -> u32 {
        let field = fields.get(at).and_then(|field| field.parse().ok());
        field.unwrap_or_else(|| panic!("not a case: {line}"))
    };
    Case {
        name: fields[0].to_owned(),
        pid: number(1),
        counts: TaskCounts {
            running: number(2),
            uninterruptible: number(3),
            threads: number(4),
            own_last_pid: None,
            newest_pid: None,
            avenrun: None,
        },
    }
}

/// A recorded container, ready to be asked.
#[derive(Debug)]
pub struct Recording {
    collector: Collector,
    caller: Caller,
}

impl Recording {
    fn snapshot(&self, node: Node, policy: &ViewPolicy) -> Result<Snapshot, AnswerError> {
        let inputs = view::inputs(node, policy);
        self.collector.snapshot(&self.caller, inputs, policy)
    }

    /// What the container reads in `node` the first time.
    ///
    /// # Errors
    /// As the daemon.
    pub fn render(&self, node: Node, policy: &ViewPolicy) -> Result<String, AnswerError> {
        let snapshot = self.snapshot(node, policy)?;
        let mut out = Vec::new();
        view::render(
            node,
            &snapshot,
            &mut CpuHistory::default(),
            policy,
            &mut out,
        )?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    /// Where its lines come from.
    ///
    /// # Errors
    /// As the daemon.
    pub fn explain(
        &self,
        node: Node,
        policy: &ViewPolicy,
    ) -> Result<Vec<ExplainLine>, AnswerError> {
        let snapshot = self.snapshot(node, policy)?;
        view::explain(node, &snapshot, &CpuHistory::default(), policy)
    }
}
