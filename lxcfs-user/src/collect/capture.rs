//! Records a container of a running machine as a directory tree, and makes snapshots from
//! such a tree: golden tests see what real kernels of every layout say.
//!
//! ```text
//! facts.toml                  kernel, time, page size, who the caller is
//! root/proc/{meminfo,stat,…}  the host's templates; self/mountinfo holds cgroup mounts only
//! root/proc/TID/…             the caller and every task of the container
//! root/sys/…                  CPU lists, huge page sizes
//! root/sys/fs/cgroup/…        the container's cgroups, their ancestors, their descendants
//! ```
//! The tree is read by the same code as the machine: only the root differs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cgroup::layout::{Hierarchy, Layout};
use crate::cgroup::parse;
use crate::cgroup::reader::below;
use crate::container::Container;
use crate::container::boundary::{self, Boundary, CallerFacts, Paths};
use crate::container::resolve::{Caller, Cgroups, StartError, View};
use crate::engine::AnswerError;
use crate::fallback::Fallbacks;
use crate::host::reader::{HostError, HostReader};
use crate::policy::ViewPolicy;
use crate::snapshot::{Inputs, Origin, Snapshot};
use crate::units::{Bytes, Nsec};

use super::collector::{Clock, Collector, INIT_STAT};
use super::live::LiveEngine;
use super::source::Sources;
use super::store::Start;
use super::tasks::ProcTasks;

/// A capture cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A file of the capture.
    #[error("{path}")]
    File {
        /// Which.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// `facts.toml` does not have the documented form.
    #[error("{path} is not a capture's facts")]
    Facts {
        /// Which.
        path: String,
        /// The cause.
        #[source]
        source: toml::de::Error,
    },
    /// The facts cannot be written as TOML.
    #[error("writing the facts")]
    Write(#[from] toml::ser::Error),
    /// The caller is a process of the host, or cannot be told.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// The tree's `/proc` or `/sys`.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The tree's cgroups.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The facts name a cgroup that the tree does not have.
    #[error(transparent)]
    Read(#[from] crate::cgroup::reader::ReadError),
    /// No rule makes the caller a container's.
    #[error("process {0} belongs to the host: there is no container to capture")]
    NoContainer(u32),
}

/// `facts.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// What the capture shows, in words.
    pub case: String,
    /// `uname -r`.
    pub kernel: String,
    /// `v1`, `hybrid` or `v2`.
    pub layout: String,
    /// The caller's thread id on the host.
    pub pid: u32,
    /// Bytes.
    pub page_size: u64,
    /// Ticks per second.
    pub user_hz: u64,
    /// `CLOCK_BOOTTIME` of the capture, in nanoseconds.
    pub now: u64,
    /// When the container's init started, on the same clock; without it the oldest
    /// process of the tree tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<u64>,
    /// Boottime offset of the caller's time namespace, in nanoseconds.
    #[serde(default)]
    pub timens_offset: i64,
    /// The caller's place in every hierarchy.
    pub hierarchies: Vec<Place>,
}

/// The caller's place in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Where the hierarchy is mounted.
    pub mount_point: String,
    /// The caller's cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The root of its cgroup namespace, if that is not the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroupns_root: Option<String>,
    /// The cgroup of its PID namespace's init, if that is not the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pidns_init: Option<String>,
}

impl Facts {
    fn caller(&self, layout: &Layout) -> CallerFacts {
        let pick = |which: fn(&Place) -> &Option<String>| -> Paths {
            let of = |mount_point: &Path| {
                let place = self
                    .hierarchies
                    .iter()
                    .find(|place| Path::new(&place.mount_point) == mount_point)?;
                which(place).as_deref().map(Into::into)
            };
            layout
                .hierarchies
                .iter()
                .map(|hierarchy| of(&hierarchy.mount_point))
                .collect()
        };
        let known = |paths: Paths| paths.iter().any(Option::is_some).then_some(paths);
        CallerFacts {
            paths: pick(|place| &place.path),
            cgroupns_root: known(pick(|place| &place.cgroupns_root)),
            pidns_init: known(pick(|place| &place.pidns_init)),
        }
    }
}

/// A recorded container, ready to be looked at.
#[derive(Debug)]
pub struct Capture {
    /// Its facts.
    pub facts: Facts,
    cgroups: Cgroups,
    collector: Collector,
}

impl Capture {
    /// Reads the capture in `dir`.
    ///
    /// # Errors
    /// When it is incomplete.
    pub fn load(dir: &Path) -> Result<Self, CaptureError> {
        let path = dir.join("facts.toml");
        let text = fs::read_to_string(&path).map_err(|source| file_error(&path, source))?;
        let facts: Facts = toml::from_str(&text).map_err(|source| CaptureError::Facts {
            path: path.display().to_string(),
            source,
        })?;
        let root = dir.join("root");
        let host = Arc::new(HostReader::tree(&root)?);
        let mountinfo = host
            .read_proc("self/mountinfo", str::to_owned)
            .map_err(|source| file_error(&root.join("proc/self/mountinfo"), source))?;
        let cgroups = Cgroups::detect(&mountinfo, &root, 4096)?;
        let machine = host.facts(Bytes(facts.page_size), facts.user_hz);
        let sources = Sources {
            tasks: Arc::new(ProcTasks::new(host.clone())),
            cpu_time: None,
            io_times: None,
        };
        let clock = Clock::Fixed(Nsec(facts.now));
        let collector = Collector::new(
            host,
            machine,
            sources,
            Arc::new(Fallbacks::default()),
            clock,
        );
        Ok(Self {
            facts,
            cgroups,
            collector,
        })
    }

    /// The container that the boundary rules find for the recorded caller.
    #[must_use]
    pub fn boundary(&self, policy: &ViewPolicy) -> Option<Boundary> {
        boundary::decide(&self.facts.caller(&self.cgroups.layout), policy.boundary)
    }

    /// A snapshot with the given parts, at the recorded time.
    ///
    /// # Errors
    /// When the rules find no container, or the tree lacks a file that must be there.
    pub fn snapshot(&self, inputs: Inputs, policy: &ViewPolicy) -> Result<Snapshot, CaptureError> {
        let boundary = self
            .boundary(policy)
            .ok_or(CaptureError::NoContainer(self.facts.pid))?;
        let container =
            Container::open(&self.cgroups.reader, &self.cgroups.layout, &boundary, None)?;
        let start = self.facts.start.map(|start| Start {
            at: Nsec(start),
            origin: Origin::Host(INIT_STAT),
        });
        let _ = self.collector.state(&container).start(|| start);
        let caller = Caller {
            container: Arc::new(container),
            timens_offset: self.facts.timens_offset,
        };
        Ok(self.collector.snapshot(&caller, inputs, policy)?)
    }
}

fn file_error(path: &Path, source: io::Error) -> CaptureError {
    CaptureError::File {
        path: path.display().to_string(),
        source,
    }
}

/// Files of a cgroup that are recorded, by the controllers' prefixes.
const CGROUP_FILES: &[&str] = &[
    "cgroup.controllers",
    "cgroup.events",
    "cgroup.procs",
    "cgroup.subtree_control",
    "cgroup.threads",
    "cgroup.type",
    "notify_on_release",
    "tasks",
];
const CGROUP_PREFIXES: &[&str] = &[
    "memory.max",
    "memory.high",
    "memory.current",
    "memory.stat",
    "memory.swap.",
    "memory.zswap.",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.memsw.",
    "memory.use_hierarchy",
    "memory.pressure",
    "cpu.max",
    "cpu.stat",
    "cpu.weight",
    "cpu.cfs_",
    "cpu.pressure",
    "cpuacct.",
    "cpuset.cpus",
    "cpuset.effective_cpus",
    "io.stat",
    "io.pressure",
    "irq.pressure",
    "blkio.throttle.io_service",
    "hugetlb.",
];

/// Records the container of `pid` into `dir`, which must not exist yet.
///
/// # Errors
/// When `pid` is in no container, or `dir` cannot be written.
pub fn record(engine: &LiveEngine, pid: u32, dir: &Path, case: &str) -> Result<(), CaptureError> {
    let root = dir.join("root");
    fs::create_dir(dir).map_err(|source| file_error(dir, source))?;
    let cgroups = engine.resolver().cgroups();
    let (caller, timens_offset) = engine.resolver().caller_facts(pid)?;
    let boundary = boundary::decide(&caller, engine.policy().boundary)
        .ok_or(CaptureError::NoContainer(pid))?;
    let View::Container(caller_seen) = engine.resolver().resolve(pid)? else {
        return Err(CaptureError::NoContainer(pid));
    };
    let age = engine
        .collector()
        .snapshot(&caller_seen, Inputs::AGE, &engine.policy())?
        .age;
    let now = engine.collector().now();
    record_host(engine, &root)?;
    let mut tasks = vec![pid];
    for (at, hierarchy) in cgroups.layout.hierarchies.iter().enumerate() {
        let mount_point = cgroups.reader.mount_point(at);
        let Some(path) = boundary.paths.get(at).and_then(Option::as_deref) else {
            continue;
        };
        let to = below(&root, &hierarchy.mount_point);
        record_ancestors(mount_point, &to, path)?;
        let own = below(mount_point, Path::new(path));
        if path != "/" {
            record_descendants(&own, &below(&to, Path::new(path)), &mut tasks)?;
        }
    }
    tasks.sort_unstable();
    tasks.dedup();
    for tid in tasks {
        record_task(tid, &below(&root, Path::new("/proc")).join(tid.to_string()))?;
    }
    let machine = engine.collector().facts();
    let facts = Facts {
        case: case.to_owned(),
        kernel: read_text(Path::new("/proc/sys/kernel/osrelease"))
            .unwrap_or_default()
            .trim()
            .to_owned(),
        layout: cgroups.layout.name().to_owned(),
        pid,
        page_size: machine.page_size.0,
        user_hz: machine.user_hz,
        now: now.0,
        start: age
            .filter(|age| age.origin == Origin::Host(INIT_STAT))
            .map(|age| age.start.0),
        timens_offset,
        hierarchies: places(&cgroups.layout, &caller),
    };
    write(&dir.join("facts.toml"), &toml::to_string(&facts)?)
}

fn places(layout: &Layout, caller: &CallerFacts) -> Vec<Place> {
    let text = |paths: Option<&Paths>, at: usize| {
        let path = paths?.get(at)?.as_deref()?;
        Some(path.to_owned())
    };
    let place = |(at, hierarchy): (usize, &Hierarchy)| Place {
        mount_point: hierarchy.mount_point.display().to_string(),
        path: text(Some(&caller.paths), at),
        cgroupns_root: text(caller.cgroupns_root.as_ref(), at),
        pidns_init: text(caller.pidns_init.as_ref(), at),
    };
    layout.hierarchies.iter().enumerate().map(place).collect()
}

fn write(path: &Path, text: &str) -> Result<(), CaptureError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(|source| file_error(parent, source))?;
    fs::write(path, text).map_err(|source| file_error(path, source))
}

/// The text of a file, or `None` for one that cannot be read: absent on this kernel,
/// write-only, or gone meanwhile.
fn read_text(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn copy(from: &Path, to: &Path) -> Result<(), CaptureError> {
    read_text(from).map_or(Ok(()), |text| write(to, &text))
}

fn record_host(engine: &LiveEngine, root: &Path) -> Result<(), CaptureError> {
    let host = engine.collector().host();
    for name in [
        "meminfo",
        "stat",
        "cpuinfo",
        "diskstats",
        "vmstat",
        "uptime",
        "loadavg",
        "swaps",
        "sys/kernel/osrelease",
        "pressure/cpu",
        "pressure/memory",
        "pressure/io",
        "pressure/irq",
    ] {
        if let Ok(text) = host.read_proc(name, str::to_owned) {
            write(&root.join("proc").join(name), &text)?;
        }
    }
    let heading = |text: &str| text.split_inclusive('\n').take(2).collect::<String>();
    if let Ok(text) = host.read_proc("slabinfo", heading) {
        write(&root.join("proc/slabinfo"), &text)?;
    }
    if let Ok(mounts) = host.read_proc("self/mountinfo", cgroup_mounts) {
        write(&root.join("proc/self/mountinfo"), &mounts)?;
    }
    for name in [
        "devices/system/cpu/online",
        "devices/system/cpu/possible",
        "devices/system/cpu/present",
        "devices/system/cpu/kernel_max",
        "devices/system/node/online",
    ] {
        if let Some(text) = host.sys_text(name) {
            write(&root.join("sys").join(name), &text)?;
        }
    }
    for size in host.huge_page_sizes() {
        let name = format!("sys/kernel/mm/hugepages/hugepages-{}kB", size.to_kib().0);
        // A file stands for the directory, which git would not keep empty.
        write(&root.join(name), "")?;
    }
    Ok(())
}

/// The lines of a mountinfo that are cgroup mounts: the others say too much about the
/// machine and nothing about cgroups.
fn cgroup_mounts(mountinfo: &str) -> String {
    mountinfo
        .split_inclusive('\n')
        .filter(|line| line.contains(" - cgroup ") || line.contains(" - cgroup2 "))
        .collect()
}

fn is_recorded(name: &str) -> bool {
    CGROUP_FILES.contains(&name) || CGROUP_PREFIXES.iter().any(|start| name.starts_with(start))
}

fn record_dir(from: &Path, to: &Path, with_tasks: bool) -> Result<(), CaptureError> {
    let entries = fs::read_dir(from).map_err(|source| file_error(from, source))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_list = matches!(name, "cgroup.procs" | "cgroup.threads" | "tasks");
        if is_recorded(name) && (with_tasks || !is_list) {
            copy(&entry.path(), &to.join(name))?;
        }
    }
    Ok(())
}

/// The root and every ancestor, without their tasks, which are not the container's.
fn record_ancestors(mount_point: &Path, to: &Path, path: &str) -> Result<(), CaptureError> {
    record_dir(mount_point, to, false)?;
    let mut from = mount_point.to_owned();
    let mut to = to.to_owned();
    for component in path.split('/').filter(|component| !component.is_empty()) {
        from.push(component);
        to.push(component);
        record_dir(&from, &to, false)?;
    }
    Ok(())
}

fn record_descendants(own: &Path, to: &Path, tasks: &mut Vec<u32>) -> Result<(), CaptureError> {
    let mut pending: Vec<(PathBuf, PathBuf)> = vec![(own.to_owned(), to.to_owned())];
    while let Some((from, to)) = pending.pop() {
        record_dir(&from, &to, true)?;
        for list in ["cgroup.procs", "cgroup.threads", "tasks"] {
            tasks.extend(parse::pids(
                &read_text(&from.join(list)).unwrap_or_default(),
            ));
        }
        let entries = fs::read_dir(&from).map_err(|source| file_error(&from, source))?;
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push((entry.path(), to.join(entry.file_name())));
            }
        }
    }
    Ok(())
}

fn record_task(tid: u32, to: &Path) -> Result<(), CaptureError> {
    let from = PathBuf::from(format!("/proc/{tid}"));
    for name in ["stat", "status", "cgroup", "timens_offsets"] {
        copy(&from.join(name), &to.join(name))?;
    }
    for kind in ["pid", "cgroup", "time"] {
        let Ok(target) = fs::read_link(from.join("ns").join(kind)) else {
            continue;
        };
        let link = to.join("ns").join(kind);
        let parent = link.parent().unwrap_or(to);
        fs::create_dir_all(parent).map_err(|source| file_error(parent, source))?;
        std::os::unix::fs::symlink(target, &link).map_err(|source| file_error(&link, source))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
