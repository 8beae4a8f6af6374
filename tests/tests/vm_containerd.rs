//! Kubernetes' containers: containerd 2 with NRI, pods made through its CRI as kubelet makes
//! them, and `lxcfs agent` beside it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "vm-tests")]
// vm: 6.12/v2 swap=512 append=psi=1

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lxcfs_tests::containerd::{ASK, Containerd, Look, Pod, Started, open};
use lxcfs_tests::serve::eventually;
use lxcfs_tests::{Lxcfs, lxcfs_binary};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a pod reads: files that runc lets a spec mount and files that it does not.
const FILES: [&str; 9] = [
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
const WATCH: [&str; 10] = [
    "watch", FILES[0], FILES[1], FILES[2], FILES[3], FILES[4], FILES[5], FILES[6], FILES[7],
    FILES[8],
];

/// `lxcfs agent` on a runtime's NRI; what a slow machine keeps it from there, a scan repairs.
struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Starts it and waits until the runtime has told it of all containers.
    fn start(lxcfs: &Lxcfs, containerd: &Containerd) -> Self {
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
    fn kill(mut self) {
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

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn connections(log: &Path) -> usize {
    read(log).matches("connected to the runtime's NRI").count()
}

fn daemon() -> Lxcfs {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    // As /var/lib/lxcfs: the users of pods may pass.
    open(lxcfs.runtime_dir());
    lxcfs
}

/// The first number after `head` in a line of `text`.
fn number(text: &str, head: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(head));
    let line = line.unwrap_or_else(|| panic!("no line {head:?} in:\n{text}"));
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn seconds(uptime: &str) -> f64 {
    uptime.split(' ').next().unwrap().parse().unwrap()
}

fn machine_age() -> f64 {
    seconds(&fs::read_to_string("/proc/uptime").unwrap())
}

/// What in a look is not the container's own; `None` when everything is.
fn not_of_the_container(look: &Look, memory_kib: u64) -> Option<String> {
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

fn is_of_the_container(look: &Look, memory_kib: u64) {
    assert_eq!(not_of_the_container(look, memory_kib), None);
}

/// Waits until a running container is attached: an event is not instant.
fn becomes_its_own(containerd: &Containerd, container: &Started) {
    eventually("the running pod is attached", || {
        not_of_the_container(&containerd.look(container, &FILES), 128 << 10).is_none()
    });
}

fn is_of_the_machine(look: &Look) {
    let machine = fs::read_to_string("/proc/meminfo").unwrap();
    assert_eq!(
        number(look.file("/proc/meminfo"), "MemTotal:"),
        number(&machine, "MemTotal:")
    );
    assert!(!look.file("/proc/self/mountinfo").contains("fuse.lxcfs"));
}

/// No read failed since its start.
fn never_failed(container: &Started) {
    let log = container.log();
    let failed: Vec<_> = log.lines().filter(|l| l.starts_with("failed ")).collect();
    assert_eq!(failed, Vec::<&str>::new());
}

#[test]
fn a_restricted_pod_without_a_shell_sees_itself_from_its_first_instruction() {
    let lxcfs = daemon();
    let mut containerd = Containerd::start();
    let _agent = Agent::start(&lxcfs, &containerd);
    for runtime in ["runc", "crun"] {
        let born = machine_age();
        let pod = containerd.run(&Pod {
            name: &format!("restricted-{runtime}"),
            runtime,
            restricted: true,
            annotations: &[ASK],
            arguments: &WATCH,
            ..Pod::default()
        });
        let look = pod.first_look();
        is_of_the_container(&look, 128 << 10);
        let status = look.file("/proc/self/status");
        for (head, value) in [("Uid:", 65532), ("NoNewPrivs:", 1), ("Seccomp:", 2)] {
            assert_eq!(number(status, head), value, "{runtime}: {status}");
        }
        assert!(status.contains("CapBnd:\t0000000000000000\n"), "{status}");
        let age = seconds(look.file("/proc/uptime"));
        assert!(age <= machine_age() - born, "{runtime}: {age} s old");
        containerd.resize(&pod, 192 << 20);
        is_of_the_container(&containerd.look(&pod, &FILES), 192 << 10);
        pod.reads_on();
        never_failed(&pod);
    }
    // Nobody is served unasked.
    let silent = containerd.run(&Pod {
        name: "silent",
        arguments: &WATCH,
        ..Pod::default()
    });
    is_of_the_machine(&silent.first_look());
}

#[test]
fn a_pod_with_users_of_its_own_sees_itself_from_its_first_instruction() {
    let lxcfs = daemon();
    let mut containerd = Containerd::start();
    let _agent = Agent::start(&lxcfs, &containerd);
    for runtime in ["runc", "crun"] {
        let pod = containerd.run(&Pod {
            name: &format!("users-{runtime}"),
            runtime,
            user_namespace: true,
            annotations: &[ASK],
            arguments: &["watch", "/proc/self/uid_map"]
                .into_iter()
                .chain(FILES)
                .collect::<Vec<_>>(),
            ..Pod::default()
        });
        let look = pod.first_look();
        let map = look.file("/proc/self/uid_map");
        assert!(
            map.split_whitespace().eq(["0", "1000000", "65536"]),
            "{map}"
        );
        is_of_the_container(&look, 128 << 10);
        is_of_the_container(&containerd.look(&pod, &FILES), 128 << 10);
        pod.reads_on();
        never_failed(&pod);
    }
}

#[test]
fn no_read_fails_while_agent_and_runtime_are_killed_and_return() {
    let lxcfs = daemon();
    let mut containerd = Containerd::start();
    let mut agent = Agent::start(&lxcfs, &containerd);
    let run = |containerd: &mut Containerd, name: &str| {
        containerd.run(&Pod {
            name,
            restricted: true,
            annotations: &[ASK],
            arguments: &WATCH,
            ..Pod::default()
        })
    };
    let loaded = run(&mut containerd, "loaded");
    is_of_the_container(&loaded.first_look(), 128 << 10);
    for _ in 0..3 {
        agent.kill();
        loaded.reads_on();
        agent = Agent::start(&lxcfs, &containerd);
        loaded.reads_on();
    }
    // Without an agent a pod starts all the same; the next agent makes up for it.
    agent.kill();
    let missed = run(&mut containerd, "missed");
    is_of_the_machine(&missed.first_look());
    let _agent = Agent::start(&lxcfs, &containerd);
    becomes_its_own(&containerd, &missed);

    let log = lxcfs.runtime_dir().join("agent.log");
    let before = connections(&log);
    containerd.restart();
    loaded.reads_on();
    eventually("the agent meets the new containerd", || {
        connections(&log) > before
    });
    let fresh = run(&mut containerd, "fresh");
    is_of_the_container(&fresh.first_look(), 128 << 10);
    // Attached once: no layer came on top.
    let mounts = containerd.look(&loaded, &["/proc/self/mountinfo"]);
    let mounts = mounts.file("/proc/self/mountinfo");
    assert_eq!(mounts.matches(" /proc/meminfo ").count(), 1, "{mounts}");
    for pod in [&loaded, &missed, &fresh] {
        pod.reads_on();
        never_failed(pod);
    }
}

/// The daemon's processes, standing still until this goes.
struct Stopped(Vec<Pid>);

impl Stopped {
    /// Stops the holder, its worker and the standby.
    fn all_of(lxcfs: &Lxcfs) -> Self {
        let holder = lxcfs.pid();
        let children = PathBuf::from(format!("/proc/{holder}/task/{holder}/children"));
        let mut found = Vec::new();
        eventually("a worker and a standby", || {
            let children = read(&children);
            let pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
            found = pids.map(Pid::from_raw).collect();
            found.len() > 1
        });
        found.insert(0, Pid::from_raw(holder.cast_signed()));
        for pid in &found {
            kill(*pid, Signal::SIGSTOP).unwrap();
        }
        Self(found)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill(*pid, Signal::SIGCONT);
        }
    }
}

/// Every read of the mount waits for ever: nothing of that may reach the runtime.
#[test]
fn a_pod_starts_while_the_daemon_hangs_and_is_attached_when_it_goes_on() {
    let lxcfs = daemon();
    let mut containerd = Containerd::start();
    let _agent = Agent::start(&lxcfs, &containerd);
    let stopped = Stopped::all_of(&lxcfs);
    let began = std::time::Instant::now();
    let pod = containerd.run(&Pod {
        name: "meanwhile",
        restricted: true,
        annotations: &[ASK],
        arguments: &WATCH,
        ..Pod::default()
    });
    println!(
        "started in {:?} beside a daemon that hangs",
        began.elapsed()
    );
    is_of_the_machine(&pod.first_look());
    let log = read(&lxcfs.runtime_dir().join("agent.log"));
    assert!(
        log.contains("a mount whose daemon does not answer"),
        "{log}"
    );
    drop(stopped);
    becomes_its_own(&containerd, &pod);
    pod.reads_on();
    never_failed(&pod);
}

/// After a reboot pods may come first.
#[test]
fn pods_that_started_before_the_daemon_are_attached_late() {
    let mut containerd = Containerd::start();
    let pod = containerd.run(&Pod {
        name: "early",
        restricted: true,
        annotations: &[ASK],
        arguments: &WATCH,
        ..Pod::default()
    });
    is_of_the_machine(&pod.first_look());
    let lxcfs = daemon();
    let _agent = Agent::start(&lxcfs, &containerd);
    becomes_its_own(&containerd, &pod);
    pod.reads_on();
    never_failed(&pod);
}
