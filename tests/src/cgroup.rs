//! A cgroup of the test's own, in every hierarchy this machine has, v1, hybrid or v2.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How cgroups are mounted on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// cgroup v2 on /sys/fs/cgroup.
    V2,
    /// Every controller in a v1 hierarchy.
    V1,
    /// v1 hierarchies, and v2 without their controllers on /sys/fs/cgroup/unified.
    Hybrid,
}

/// One mounted hierarchy.
#[derive(Clone, Debug)]
struct Hierarchy {
    mountpoint: PathBuf,
    /// v1 controllers; empty for v2 and named hierarchies.
    controllers: Vec<String>,
    is_v2: bool,
}

const CONTROLLERS: &[&str] = &[
    "cpu", "cpuacct", "cpuset", "memory", "blkio", "pids", "devices", "freezer",
];

/// A cgroup with the same path in every hierarchy. Dropping it kills what runs inside and
/// below and removes it.
#[derive(Debug)]
pub struct TestCgroup {
    path: String,
    hierarchies: Vec<Hierarchy>,
}

/// The layout of this machine.
///
/// # Panics
/// When no cgroup hierarchy is mounted.
pub fn layout() -> Layout {
    let found = hierarchies();
    let v1 = found
        .iter()
        .any(|hierarchy| !hierarchy.controllers.is_empty());
    let v2 = found.iter().any(|hierarchy| hierarchy.is_v2);
    match (v1, v2) {
        (false, true) => Layout::V2,
        (true, false) => Layout::V1,
        (true, true) => Layout::Hybrid,
        (false, false) => panic!("no cgroup hierarchy is mounted"),
    }
}

impl TestCgroup {
    /// Makes `/lxcfs-test-PID-N-NAME` at the top of every hierarchy.
    ///
    /// # Panics
    /// When not root, or the kernel refuses.
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        crate::require_root();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = format!("/lxcfs-test-{}-{number}-{name}", std::process::id());
        Self::make(path, hierarchies())
    }

    /// Makes a cgroup below this one, with the controllers enabled for it.
    ///
    /// # Panics
    /// When the kernel refuses; v2 does while this cgroup itself holds processes.
    pub fn child(&self, name: &str) -> Self {
        Self::make(format!("{}/{name}", self.path), self.hierarchies.clone())
    }

    fn make(path: String, hierarchies: Vec<Hierarchy>) -> Self {
        let cgroup = Self { path, hierarchies };
        for hierarchy in &cgroup.hierarchies {
            let directory = cgroup.below(hierarchy);
            let parent = directory
                .parent()
                .unwrap_or(&hierarchy.mountpoint)
                .to_owned();
            if hierarchy.is_v2 {
                enable_controllers(&parent);
            }
            fs::create_dir(&directory)
                .unwrap_or_else(|error| panic!("cannot make {}: {error}", directory.display()));
            if hierarchy.controllers.iter().any(|name| name == "cpuset") {
                // A fresh v1 cpuset is empty and takes no process.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    write(&directory.join(file), read(&parent.join(file)).trim());
                }
            }
        }
        cgroup
    }

    /// The path as `/proc/PID/cgroup` shows it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The directory that holds `controller`'s files.
    ///
    /// # Panics
    /// When no hierarchy has the controller.
    pub fn dir(&self, controller: &str) -> PathBuf {
        let v1 = |hierarchy: &&Hierarchy| hierarchy.controllers.iter().any(|c| c == controller);
        let hierarchy = self
            .hierarchies
            .iter()
            .find(v1)
            .or_else(|| self.hierarchies.iter().find(|hierarchy| hierarchy.is_v2))
            .unwrap_or_else(|| panic!("no cgroup hierarchy has {controller}"));
        self.below(hierarchy)
    }

    /// Every directory of this cgroup.
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.hierarchies
            .iter()
            .map(|hierarchy| self.below(hierarchy))
            .collect()
    }

    /// Whether `controller` sits in a v1 hierarchy.
    pub fn is_v1(&self, controller: &str) -> bool {
        self.hierarchies
            .iter()
            .any(|hierarchy| hierarchy.controllers.iter().any(|c| c == controller))
    }

    /// Reads a file such as `memory.stat`; its controller is the part before the dot.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn read(&self, file: &str) -> String {
        read(&self.dir(controller_of(file)).join(file))
    }

    /// Writes a file such as `cpu.max`; its controller is the part before the dot.
    ///
    /// # Panics
    /// When the kernel refuses the value.
    pub fn write(&self, file: &str, value: &str) {
        write(&self.dir(controller_of(file)).join(file), value);
    }

    /// Limits memory, in bytes (`memory.max` or `memory.limit_in_bytes`).
    pub fn limit_memory(&self, bytes: u64) {
        let v1 = self.is_v1("memory");
        self.write(
            if v1 {
                "memory.limit_in_bytes"
            } else {
                "memory.max"
            },
            &bytes.to_string(),
        );
    }

    /// Limits swap on its own, in bytes, after memory was limited to `memory_bytes`.
    pub fn limit_swap(&self, memory_bytes: u64, swap_bytes: u64) {
        if self.is_v1("memory") {
            let both = memory_bytes + swap_bytes;
            self.write("memory.memsw.limit_in_bytes", &both.to_string());
        } else {
            self.write("memory.swap.max", &swap_bytes.to_string());
        }
    }

    /// Limits CPU time to `quota_usec` per `period_usec`, in microseconds.
    pub fn limit_cpu(&self, quota_usec: u64, period_usec: u64) {
        if self.is_v1("cpu") {
            self.write("cpu.cfs_period_us", &period_usec.to_string());
            self.write("cpu.cfs_quota_us", &quota_usec.to_string());
        } else {
            self.write("cpu.max", &format!("{quota_usec} {period_usec}"));
        }
    }

    /// Confines to the CPUs of a list such as `0` or `0-2,5`.
    pub fn confine_cpus(&self, list: &str) {
        self.write("cpuset.cpus", list);
    }

    /// Moves a process here, in every hierarchy.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn add(&self, pid: u32) {
        for directory in self.dirs() {
            write(&directory.join("cgroup.procs"), &pid.to_string());
        }
    }

    /// Processes in this cgroup itself, by any hierarchy.
    pub fn pids(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self.dirs().iter().flat_map(|dir| pids_in(dir)).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    fn below(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.mountpoint.join(&self.path[1..])
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let left: Vec<PathBuf> = self
                .dirs()
                .into_iter()
                .filter(|dir| !cleared(dir))
                .collect();
            if left.is_empty() {
                return;
            }
            if Instant::now() > end {
                eprintln!("cannot remove {left:?}: something keeps running inside");
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Kills what runs in a cgroup and below it and removes both; returns whether all is gone.
fn cleared(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else {
        return true;
    };
    for entry in entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
    {
        cleared(&entry.path());
    }
    for pid in pids_in(directory) {
        if pid == std::process::id().cast_signed() {
            // A test moved its own process in: back to the top.
            if let Some(top) = directory
                .ancestors()
                .find(|above| !above.join("../cgroup.procs").exists())
            {
                let _ = fs::write(top.join("cgroup.procs"), pid.to_string());
            }
        } else {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    fs::remove_dir(directory).is_ok()
}

fn pids_in(directory: &Path) -> Vec<i32> {
    let list = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    list.lines().filter_map(|line| line.parse().ok()).collect()
}

fn controller_of(file: &str) -> &str {
    match file.split('.').next().unwrap_or(file) {
        // Core files are the same everywhere; memory is in every layout the tests use.
        "cgroup" => "memory",
        "io" => "blkio",
        name => name,
    }
}

fn hierarchies() -> Vec<Hierarchy> {
    read(Path::new("/proc/self/mounts"))
        .lines()
        .filter_map(parse_mount)
        .collect()
}

fn parse_mount(line: &str) -> Option<Hierarchy> {
    let mut fields = line.split(' ').skip(1);
    let (mountpoint, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
    if !mountpoint.starts_with("/sys/fs/cgroup") || !kind.starts_with("cgroup") {
        return None;
    }
    let controllers = options
        .split(',')
        .filter(|option| CONTROLLERS.contains(option));
    let is_v2 = kind == "cgroup2";
    Some(Hierarchy {
        mountpoint: mountpoint.into(),
        controllers: controllers.map(str::to_owned).filter(|_| !is_v2).collect(),
        is_v2,
    })
}

/// Enables for the children of `parent` what `parent` itself has.
fn enable_controllers(parent: &Path) {
    let file = parent.join("cgroup.subtree_control");
    for controller in read(&parent.join("cgroup.controllers")).split_whitespace() {
        if ["cpu", "cpuset", "io", "memory", "pids"].contains(&controller) {
            write(&file, &format!("+{controller}"));
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

fn write(path: &Path, value: &str) {
    fs::write(path, value)
        .unwrap_or_else(|error| panic!("cannot write {value:?} to {}: {error}", path.display()));
}
