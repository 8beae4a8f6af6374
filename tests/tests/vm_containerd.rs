//! Kubernetes' containers: containerd 2 with NRI, pods made through its CRI as kubelet makes
//! them, and `lxcfs agent` beside it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "vm-tests")]
// vm: 6.12/v2 swap=512 append=psi=1

use std::path::PathBuf;

use lxcfs_tests::Lxcfs;
use lxcfs_tests::containerd::{ASK, Containerd, Pod};
use lxcfs_tests::node::{
    Agent, FILES, WATCH, becomes_its_own, connections, daemon, is_of_the_container,
    is_of_the_machine, machine_age, never_failed, number, pod, read, seconds,
};
use lxcfs_tests::serve::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn a_restricted_pod_without_a_shell_sees_itself_from_its_first_instruction() {
    let lxcfs = daemon();
    let mut containerd = Containerd::start();
    let _agent = Agent::start(&lxcfs, &containerd);
    for runtime in ["runc", "crun"] {
        let born = machine_age();
        let pod = containerd.run(&Pod {
            runtime,
            ..pod(&format!("restricted-{runtime}"))
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
    let loaded = containerd.run(&pod("loaded"));
    is_of_the_container(&loaded.first_look(), 128 << 10);
    for _ in 0..3 {
        agent.kill();
        loaded.reads_on();
        agent = Agent::start(&lxcfs, &containerd);
        loaded.reads_on();
    }
    // Without an agent a pod starts all the same; the next agent makes up for it.
    agent.kill();
    let missed = containerd.run(&pod("missed"));
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
    let fresh = containerd.run(&pod("fresh"));
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
    let pod = containerd.run(&pod("meanwhile"));
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
    let pod = containerd.run(&pod("early"));
    is_of_the_machine(&pod.first_look());
    let lxcfs = daemon();
    let _agent = Agent::start(&lxcfs, &containerd);
    becomes_its_own(&containerd, &pod);
    pod.reads_on();
    never_failed(&pod);
}
