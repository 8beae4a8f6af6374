//! A daemon that is killed, reloaded, upgraded and stopped, and what `bpftool` lists meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use lxcfs_user::config::holder_socket;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kernel_bpf::Listing;
use crate::serve::{Status, eventually};
use crate::{Lxcfs, lxcfs_binary};

/// A daemon and what `bpftool` lists of it.
struct Daemon {
    lxcfs: Lxcfs,
    /// Kind and name of what its workers hold.
    names: BTreeSet<(&'static str, String)>,
    /// How much of each worker and standby hold after the start.
    first: BTreeMap<String, usize>,
}

impl Daemon {
    /// Starts one, and waits until worker and standby have loaded their programs, if they can.
    fn start(loads: bool) -> Self {
        let mut daemon = Self {
            lxcfs: Lxcfs::start::<&str>(&[]),
            names: BTreeSet::new(),
            first: BTreeMap::new(),
        };
        eventually("worker and standby hold the same", || {
            let [_, worker, standby] = daemon.serving();
            let listing = Listing::take();
            let [one, other] = [worker, standby].map(|pid| listing.held_by(&[pid]));
            daemon.names = listing.names(&one);
            daemon.first = listing.census(&one.union(&other).copied().collect());
            daemon.names.iter().any(|(kind, _)| *kind == "link") == loads
                && listing.census(&one) == listing.census(&other)
                && daemon.lxcfs.log().contains("INFO serving ")
        });
        for kind in ["prog", "map", "link"] {
            let known = daemon.names.iter().any(|name| name.0 == kind);
            assert_eq!(known, loads, "{kind}: {:?}", daemon.names);
        }
        daemon
    }

    fn status(&self) -> Option<Status> {
        Status::of(&holder_socket(self.lxcfs.runtime_dir()))
    }

    /// Holder, worker and standby; 0 for who is missing just now.
    fn processes(&self) -> [i32; 3] {
        let status = self.status();
        ["holder", "worker", "standby"].map(|who| {
            let pid = status.as_ref().map_or(0, |status| status.number(who));
            i32::try_from(pid).expect("a pid")
        })
    }

    /// The same when nobody is missing.
    fn serving(&self) -> [i32; 3] {
        let mut processes = [0; 3];
        eventually("holder, worker and standby", || {
            processes = self.processes();
            processes.iter().all(|pid| *pid > 0)
        });
        processes
    }

    /// What the kernel holds for it, and what nobody holds that has the name of ours.
    fn census(&self) -> BTreeMap<String, usize> {
        let listing = Listing::take();
        let pinned = listing.pinned(&self.names);
        assert!(pinned.is_empty(), "pinned: {pinned:?}");
        listing.census(&listing.of(&self.names, &self.processes()))
    }

    /// Waits until another worker than `old` serves and the kernel holds as much as at first: it
    /// frees what a dead process held a little later.
    fn settles_after(&self, what: &str, old: i32) {
        eventually(&format!("after {what}, another worker serves"), || {
            let worker = self.processes()[1];
            worker > 0 && worker != old
        });
        let mut now = BTreeMap::new();
        for _ in 0..1200 {
            now = self.census();
            if now == self.first {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(now, self.first, "after {what}");
    }
}

/// Asserts that after each of these the kernel holds as many programs, maps and links as at
/// first, that none is pinned, and that after the last it holds none. `loads` says whether
/// the daemon can load any here; if not, it must hold none at any time.
///
/// # Panics
/// When something leaks or is lost.
pub fn kill_reload_upgrade_and_stop(loads: bool) {
    let before = Listing::take();
    let daemon = Daemon::start(loads);
    let [holder, ..] = daemon.serving();

    // One worker dies, then worker and standby together, then one again.
    for victims in [1..2, 1..3, 1..2] {
        let processes = daemon.serving();
        for victim in &processes[victims] {
            let _already_dead = kill(Pid::from_raw(*victim), Signal::SIGKILL);
        }
        daemon.settles_after("a kill", processes[1]);
    }
    let [_, worker, _] = daemon.serving();
    daemon.lxcfs.signal(Signal::SIGUSR1);
    daemon.settles_after("SIGUSR1", worker);
    let [_, worker, _] = daemon.serving();
    let upgrade = Command::new(lxcfs_binary())
        .args(["upgrade", "--runtime-dir"])
        .arg(daemon.lxcfs.runtime_dir())
        .output()
        .expect("lxcfs");
    assert!(upgrade.status.success(), "{upgrade:?}");
    daemon.settles_after("an upgrade", worker);
    assert_eq!(daemon.serving()[0], holder);

    let Daemon { lxcfs, names, .. } = daemon;
    lxcfs.stop();
    let mut left = Vec::new();
    let before = before.of(&names, &[]);
    for _ in 0..1200 {
        left = Listing::take()
            .of(&names, &[])
            .difference(&before)
            .copied()
            .collect();
        if left.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(left.is_empty(), "left in the kernel: {left:?}");
}
