//! Without a service manager: a holder that was killed is replaced by its worker's doing, and a
//! container that reads all the time notices nothing.
// vm: 6.12/v2
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use lxcfs_tests::container::Shape;
use lxcfs_tests::serve::{Status, comm, eventually};
use lxcfs_tests::{Container, Lxcfs, TestCgroup};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The daemon; its guard knows the first holder only.
struct Daemon(Lxcfs);

impl Daemon {
    fn holder(&self) -> Option<i32> {
        let text = fs::read_to_string(self.0.runtime_dir().join("lxcfs.pid")).ok()?;
        let pid = text.trim().parse().ok()?;
        (comm(pid).as_deref() == Some("lxcfs-holder")).then_some(pid)
    }

    fn stop(&self) {
        if let Some(holder) = self.holder() {
            kill(Pid::from_raw(holder), Signal::SIGTERM).unwrap();
            eventually("the successor ends", || {
                comm(holder).is_none_or(|name| name != "lxcfs-holder")
            });
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("lxcfs's log:\n{}", self.0.log());
        }
        self.stop();
    }
}

fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Ends the reading, also when the test fails.
struct Stop<'a>(&'a Path);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        fs::write(self.0, "").unwrap();
    }
}

#[test]
fn a_killed_holder_is_replaced_and_readers_do_not_notice() {
    let daemon = Daemon(Lxcfs::start::<&str>(&[]));
    let cgroup = TestCgroup::new("successor");
    let container = Container::start(&cgroup, &daemon.0.mountpoint(), &Shape::default());
    let stop = daemon.0.runtime_dir().join("stop");
    let script = format!(
        "n=0; while [ ! -e '{}' ]; do cat /proc/meminfo /proc/stat >/dev/null || exit 9; \
         n=$((n+1)); done; echo $n",
        stop.display()
    );
    std::thread::scope(|scope| {
        let stopping = Stop(&stop);
        let reader = scope.spawn(|| container.run(&["sh", "-c", &script]));
        for round in 0..6 {
            let before = daemon.holder().expect("a holder with a pidfile");
            let mut workers = children(before);
            assert!(!workers.is_empty());
            // Every other time as soon as the last workers are gone: those of this holder may not
            // know yet that they are to serve. Else with the worker that serves.
            if round % 2 == 1 {
                let socket = daemon.0.runtime_dir().join("lxcfs/holder.sock");
                eventually("one serves, one stands by", || {
                    Status::of(&socket).is_some_and(|status| {
                        status.number("serving") == 1 && status.number("standby_ready") == 1
                    })
                });
                let worker = Status::of(&socket).unwrap().number("worker");
                workers = children(before);
                kill(Pid::from_raw(worker as i32), Signal::SIGKILL).unwrap();
            }
            kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
            eventually("another holder", || {
                daemon.holder().is_some_and(|pid| pid != before)
            });
            eventually("workers of its own serve", || {
                workers
                    .iter()
                    .all(|pid| comm(*pid).is_none_or(|name| name != "lxcfs-worker"))
            });
        }
        drop(stopping);
        let output = reader.join().unwrap();
        assert!(output.status.success(), "{output:?}");
        let rounds: u64 = String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse()
            .unwrap();
        assert!(rounds > 0);
    });
    drop(container);
    daemon.stop();
    assert!(!daemon.0.is_mounted(), "{}", daemon.0.log());
}
