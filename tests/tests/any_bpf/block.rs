//! Disk times per cgroup, against `/proc/diskstats`.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Arc;

use lxcfs_tests::disk::{BLOCKS, Disk, disk};
use lxcfs_tests::scratch::{Cgroup, Child, Work, collector_with, v2_root, wait_until};
use lxcfs_user::bpf::{Collector, Feature, Sampler};
use lxcfs_user::snapshot::IoTimes;

/// Where cgroups with the io controller can be made: the v1 blkio hierarchy, or v2.
fn io_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let v1 = mounts.lines().find(|line| {
        line.rsplit(' ').next().is_some_and(|options| {
            line.contains(" - cgroup ") && options.split(',').any(|option| option == "blkio")
        })
    });
    if let Some(path) = v1.and_then(|line| line.split(' ').nth(4)) {
        return PathBuf::from(path);
    }
    let root = v2_root();
    fs::write(root.join("cgroup.subtree_control"), "+io").expect("the io controller on v2");
    root
}

/// Milliseconds spent reading, the seventh column of diskstats.
fn host_read_ms(disk: &Disk) -> u64 {
    let text = fs::read_to_string("/proc/diskstats").expect("diskstats");
    text.lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&disk.name.as_str()))
        .and_then(|fields| fields.get(6)?.parse().ok())
        .expect("the disk's line in diskstats")
}

/// Reads blocks past the page cache in a child of `cgroup`, to the end.
fn read_disk(cgroup: &Cgroup, disk: &Disk) {
    use std::os::unix::fs::OpenOptionsExt;
    let device = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&disk.source)
        .unwrap_or_else(|error| panic!("{}: {error}", disk.source.display()));
    let child = Child::start(
        cgroup,
        Work::ReadDirect {
            fd: device.as_raw_fd(),
            blocks: BLOCKS,
        },
    );
    wait_until("the blocks are read", || child.state() == 'Z');
}

fn times(collector: &Collector, cgroup: &Cgroup, disk: &Disk) -> IoTimes {
    let directory = File::open(&cgroup.path).expect("cgroup directory");
    let mut devices = collector
        .block_times(directory.as_fd(), &[disk.number])
        .expect("block_times");
    devices.remove(&disk.number).unwrap_or_default()
}

#[test]
fn reads_take_time_at_the_cgroup_that_reads_and_stay_with_its_parent() {
    let collector = Arc::new(collector_with(&[
        Feature::BlockTimes,
        Feature::CgroupEvents,
    ]));
    let sampler = Sampler::start(Arc::clone(&collector), [], Box::new(|_| ())).expect("sampler");
    let disk = disk();
    let top = Cgroup::below(&io_root(), "block");
    // On v2 a cgroup is charged only if its parent hands the controller down.
    if fs::read_to_string(top.path.join("cgroup.controllers")).is_ok_and(|controllers| {
        controllers
            .split_ascii_whitespace()
            .any(|name| name == "io")
    }) {
        top.write("cgroup.subtree_control", "+io");
    }
    let (reading, idle) = (top.child("reading"), top.child("idle"));
    let before = host_read_ms(&disk);
    read_disk(&reading, &disk);
    let host = host_read_ms(&disk) - before;
    let seen = times(&collector, &reading, &disk).read_time.0;
    assert!(seen > 0, "no read time on {}", disk.name);
    // The host's column is cut to milliseconds.
    assert!(
        seen / 1_000_000 <= host + 1,
        "{seen} ns here, {host} ms on the whole host"
    );
    assert_eq!(times(&collector, &idle, &disk), IoTimes::default());
    // One reader, one request at a time: the disk was busy for it while its requests were
    // with the driver, which is a part of the time they took, and nothing is left there.
    let all = times(&collector, &reading, &disk);
    assert!(0 < all.io_time.0 && all.io_time.0 <= seen, "{all:?}");
    assert_eq!(all.in_flight, 0, "{all:?}");
    assert_eq!(times(&collector, &top, &disk).read_time.0, seen);

    drop(reading);
    wait_until("the parent has it", || {
        times(&collector, &top, &disk).read_time.0 == seen
    });
    drop(sampler);
}
