//! A daemon that was removed as docs/operations.md says leaves mounts, cgroups and files of host
//! and containers as they were, and containers that read meanwhile see no error.
// vm: 6.12/v2 6.1/v1
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Child, Command, Stdio};

use lxcfs_tests::container::Shape;
use lxcfs_tests::footprint::{Footprint, assert_restored};
use lxcfs_tests::serve::{Status, eventually};
use lxcfs_tests::steady::Steady;
use lxcfs_tests::{Container, TestCgroup, lxcfs_binary, stdout_of};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: u64 = 64 << 20;

/// Killed with the guard, should the test not get so far as to stop it.
struct Daemon(Child);

impl Daemon {
    fn start(place: &Path) -> Self {
        let mut command = Command::new(lxcfs_binary());
        command
            .arg("--runtime-dir")
            .arg(place)
            .arg(place.join("mnt"));
        let null = Stdio::null;
        let child = command.stdin(null()).stdout(null()).stderr(null()).spawn();
        let daemon = Self(child.unwrap());
        let socket = place.join("lxcfs/holder.sock");
        eventually("it serves and a worker stands by", || {
            Status::of(&socket).is_some_and(|status| status.number("standby_ready") == 1)
        });
        daemon
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.signal(Signal::SIGTERM);
            let _ended = self.0.wait();
        }
    }
}

fn host_total_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    text.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn lxcfs(arguments: &[&str], mountpoint: &Path) {
    let mut command = Command::new(lxcfs_binary());
    command
        .args(arguments)
        .args(["--deadline-ms", "60000", "--mount"]);
    let report = stdout_of(command.arg(mountpoint));
    println!("{arguments:?}: {}", report.trim());
}

#[test]
fn what_was_removed_has_left_nothing() {
    // In a place that is looked at, so that what is left in it is seen.
    let place = tempfile::Builder::new()
        .prefix("lxcfs-removal-")
        .tempdir_in("/run")
        .unwrap();
    for below in ["mnt", "lxcfs"] {
        std::fs::create_dir(place.path().join(below)).unwrap();
    }
    let mountpoint = place.path().join("mnt");
    let shapes = [false, true].map(|user_namespace| Shape {
        files: Vec::new(),
        user_namespace,
        ..Shape::default()
    });
    let cgroups = [TestCgroup::new("plain"), TestCgroup::new("user")];
    for cgroup in &cgroups {
        cgroup.limit_memory(LIMIT);
    }
    let mut containers = Vec::new();
    for (cgroup, shape) in cgroups.iter().zip(&shapes) {
        containers.push(Container::start(cgroup, &mountpoint, shape));
    }
    let pids: Vec<u32> = containers.iter().map(Container::init_pid).collect();
    let before = Footprint::take(&pids);
    std::thread::scope(|scope| {
        let totals = [LIMIT >> 10, host_total_kib()];
        let steady = Steady::start(scope, &containers[0], &totals);
        let mut daemon = Daemon::start(place.path());
        for pid in &pids {
            lxcfs(&["attach", "--pid", &pid.to_string()], &mountpoint);
        }
        steady.goes_on("attach");
        for container in &containers {
            let meminfo = container.read("/proc/meminfo");
            let wanted = format!("MemTotal:{:>15} kB", LIMIT >> 10);
            assert!(meminfo.starts_with(&wanted), "{meminfo}");
        }
        let changed = Footprint::take(&pids).difference(&before);
        assert!(changed.contains("mounts of host"), "{changed}");
        assert!(
            changed.contains(&format!("container {}", pids[1])),
            "{changed}"
        );

        let socket = place.path().join("lxcfs/holder.sock");
        for signal in [Signal::SIGKILL, Signal::SIGUSR1] {
            let worker = Status::of(&socket).unwrap().number("worker");
            if signal == Signal::SIGKILL {
                kill(Pid::from_raw(worker as i32), signal).unwrap();
            } else {
                daemon.signal(signal);
            }
            eventually("another worker serves, another stands by", || {
                Status::of(&socket).is_some_and(|status| {
                    status.number("serving") == 1
                        && status.number("worker") != worker
                        && status.number("standby_ready") == 1
                })
            });
            steady.goes_on(signal.as_str());
        }

        lxcfs(&["detach", "--all"], &mountpoint);
        daemon.signal(Signal::SIGTERM);
        assert!(daemon.0.wait().unwrap().success());
        steady.goes_on("removal");
        let total = containers[1].stdout(&["grep", "MemTotal", "/proc/meminfo"]);
        assert!(total.contains(&host_total_kib().to_string()), "{total}");
        assert_restored(&before, || Footprint::take(&pids));
        steady.stop();
    });
}
