//! A node that loses power: its disk is as it was, everything that ran is gone, and the pods are
//! back before the daemon is.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "vm-tests")]
// vm: 6.12/v2 append=psi=1 reboots

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lxcfs_tests::containerd::{Containerd, open};
use lxcfs_tests::node::{
    Agent, becomes_its_own, is_of_the_container, is_of_the_machine, never_failed, pod,
};
use lxcfs_tests::{Lxcfs, Place, lxcfs_binary};

/// On the disk, which survives.
const KEPT: &str = "/var/lib/lxcfs-reboot";

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap()
}

fn daemon() -> Lxcfs {
    let place = Place::Kept(Path::new(KEPT).join("lxcfs"));
    let lxcfs = Lxcfs::start_in::<&str>(place, Command::new(lxcfs_binary()), &[]);
    // As /var/lib/lxcfs: the users of pods may pass.
    open(Path::new(KEPT));
    open(lxcfs.runtime_dir());
    lxcfs
}

fn containerd() -> Containerd {
    Containerd::start_in(Place::Kept(Path::new(KEPT).join("containerd")))
}

#[test]
fn pods_that_are_back_before_the_daemon_are_attached_and_what_the_old_one_left_is_in_nobodys_way() {
    fs::create_dir_all(KEPT).unwrap();
    let note = Path::new(KEPT).join("boot");
    let Ok(before) = fs::read_to_string(&note) else {
        return until_the_power_fails(&note);
    };
    assert_ne!(before, boot_id(), "the machine did not reboot");
    let left = fs::read_dir(Path::new(KEPT).join("lxcfs/mnt")).unwrap();
    assert_eq!(left.count(), 0, "something is below the mountpoint");
    // What a node has in memory: /run.
    fs::remove_dir_all(Path::new(KEPT).join("containerd/state")).unwrap();

    let mut containerd = containerd();
    let first = containerd.run(&pod("first"));
    is_of_the_machine(&first.first_look());
    let lxcfs = daemon();
    let _agent = Agent::start(&lxcfs, &containerd);
    becomes_its_own(&containerd, &first);
    let later = containerd.run(&pod("later"));
    is_of_the_container(&later.first_look(), 128 << 10);
    for pod in [&first, &later] {
        pod.reads_on();
        never_failed(pod);
    }
}

/// Does not return.
fn until_the_power_fails(note: &Path) {
    let lxcfs = daemon();
    let mut containerd = containerd();
    let _agent = Agent::start(&lxcfs, &containerd);
    let pod = containerd.run(&pod("before"));
    is_of_the_container(&pod.first_look(), 128 << 10);
    fs::write(note, boot_id()).unwrap();
    // For the machine's own scripts: this is no panic.
    fs::write("/var/lib/lxcfs-vm.reboots", "").unwrap();
    nix::unistd::sync();
    // At once: nothing is stopped, nothing unmounted.
    lxcfs_tests::stdout_of(Command::new("busybox").args(["reboot", "-f"]));
    std::thread::sleep(Duration::from_secs(60));
    panic!("the machine does not reboot");
}
