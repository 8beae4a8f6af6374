//! A node of Kubernetes without kubelet: `lxcfs agent` beside [`Containerd`], and what its pods see.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::containerd::{ASK, Containerd, Look, Pod, Started, open};
use crate::serve::eventually;
use crate::{Lxcfs, lxcfs_binary};

/// What a pod reads: files that runc lets a spec mount and files that it does not.
pub const FILES: [&str; 9] = [
    "/proc/self/status",
    "/proc/self/mountinfo",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/uptime",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/sys/devices/system/cpu/online",
];
/// Reads all of [`FILES`] at start and then for ever.
pub const WATCH: [&str; 10] = [
    "watch", FILES[0], FILES[1], FILES[2], FILES[3], FILES[4], FILES[5], FILES[6], FILES[7],
    FILES[8],
];

/// `lxcfs agent` on a runtime's NRI; what a slow machine keeps it from there, a scan repairs.
pub struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Starts it and waits until the runtime has told it of all containers.
    pub fn start(lxcfs: &Lxcfs, containerd: &Containerd) -> Self {
        let log = lxcfs.runtime_dir().join("agent.log");
        let before = connections(&log);
        let file = fs::File::options().create(true).append(true).open(&log);
        let file = file.unwrap();
        let child = Command::new(lxcfs_binary())
            .args(["agent", "--docker=off", "--scan-seconds=2", "--mount"])
            .arg(lxcfs.mountpoint())
            .arg("--nri")
            .arg(containerd.nri())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut agent = Self { child, log };
        eventually("the agent meets the runtime", || {
            assert_eq!(agent.child.try_wait().unwrap(), None, "the agent ended");
            connections(&agent.log) > before
        });
        agent
    }

    /// Ends it as the kernel ends a process without memory.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", read(&self.log));
        }
    }
}

/// A file's text; empty when there is none.
pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// How often an agent has met the runtime, by its log.
pub fn connections(log: &Path) -> usize {
    read(log).matches("connected to the runtime's NRI").count()
}

/// A daemon whose files the users of pods may reach.
pub fn daemon() -> Lxcfs {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    // As /var/lib/lxcfs: the users of pods may pass.
    open(lxcfs.runtime_dir());
    lxcfs
}

/// A pod as strict as Pod Security has it, which asks for its views and reads them for ever.
pub fn pod(name: &str) -> Pod<'_> {
    Pod {
        name,
        restricted: true,
        annotations: &[ASK],
        arguments: &WATCH,
        ..Pod::default()
    }
}

/// The first number after `head` in a line of `text`.
pub fn number(text: &str, head: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(head));
    let line = line.unwrap_or_else(|| panic!("no line {head:?} in:\n{text}"));
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// The first figure of `/proc/uptime`.
///
/// # Panics
/// When that is none.
pub fn seconds(uptime: &str) -> f64 {
    uptime.split(' ').next().unwrap().parse().unwrap()
}

/// How long this machine has been up, in seconds.
///
/// # Panics
/// When it does not say.
pub fn machine_age() -> f64 {
    seconds(&fs::read_to_string("/proc/uptime").unwrap())
}

/// What in a look is not the container's own; `None` when everything is.
pub fn not_of_the_container(look: &Look, memory_kib: u64) -> Option<String> {
    if let Some(failure) = look.failures().first() {
        return Some((*failure).to_owned());
    }
    let meminfo = look.file("/proc/meminfo");
    if number(meminfo, "MemTotal:") != memory_kib {
        return Some(meminfo.to_owned());
    }
    // Half a CPU.
    let cpuinfo = look.file("/proc/cpuinfo");
    if cpuinfo.matches("processor\t").count() != 1 {
        return Some(cpuinfo.to_owned());
    }
    let online = look.file("/sys/devices/system/cpu/online");
    if online != "0\n" {
        return Some(format!("online CPUs {online}"));
    }
    let mounts = look.file("/proc/self/mountinfo");
    for file in FILES.iter().skip(2) {
        // The last one is part of the CPU tree, or bound alone.
        let covers =
            |at: &str| at == *file || (at.len() > 5 && file.starts_with(&format!("{at}/")));
        let ours = |line: &str| {
            let at = line.split(' ').nth(4).unwrap_or_default();
            covers(at) && line.contains(" - fuse.lxcfs ")
        };
        if !mounts.lines().any(ours) {
            return Some(format!("{file} is not ours:\n{mounts}"));
        }
    }
    let pressure = ["cpu", "io", "memory"].map(|name| format!("/proc/pressure/{name}"));
    let strange = pressure
        .iter()
        .find(|path| !look.file(path).starts_with("some avg10="));
    strange.map(|path| format!("{path}: {}", look.file(path)))
}

/// Asserts that all files are the container's own.
///
/// # Panics
/// When one is not.
pub fn is_of_the_container(look: &Look, memory_kib: u64) {
    assert_eq!(not_of_the_container(look, memory_kib), None);
}

/// Waits until a running container is attached: an event is not instant.
pub fn becomes_its_own(containerd: &Containerd, container: &Started) {
    eventually("the running pod is attached", || {
        not_of_the_container(&containerd.look(container, &FILES), 128 << 10).is_none()
    });
}

/// Asserts that nothing of ours is there yet.
///
/// # Panics
/// When something is.
pub fn is_of_the_machine(look: &Look) {
    let machine = fs::read_to_string("/proc/meminfo").unwrap();
    assert_eq!(
        number(look.file("/proc/meminfo"), "MemTotal:"),
        number(&machine, "MemTotal:")
    );
    assert!(!look.file("/proc/self/mountinfo").contains("fuse.lxcfs"));
}

/// No read failed since its start.
pub fn never_failed(container: &Started) {
    let log = container.log();
    let failed: Vec<_> = log.lines().filter(|l| l.starts_with("failed ")).collect();
    assert_eq!(failed, Vec::<&str>::new());
}
