//! The virtual machines are what `cargo xtask vm` promises: everything else relies on it.
#![cfg(feature = "vm-tests")]
// vm: all/v2 6.1/v1 6.1/hybrid

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

#[test]
fn kernel_is_the_one_asked_for() {
    let wanted = std::env::var("LXCFS_VM_KERNEL").expect("set by guest.sh");
    let release = read("/proc/sys/kernel/osrelease");
    assert!(release.starts_with(&format!("{wanted}.")), "{release}");
}

#[test]
fn cgroups_are_mounted_as_asked_for() {
    let own = read("/proc/self/cgroup");
    let v1_memory = Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists();
    match std::env::var("LXCFS_VM_LAYOUT")
        .expect("set by guest.sh")
        .as_str()
    {
        "v2" => {
            assert_eq!(own, "0::/\n");
            let enabled = read("/sys/fs/cgroup/cgroup.subtree_control");
            for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
                assert!(
                    enabled.split_whitespace().any(|name| name == controller),
                    "{enabled}"
                );
            }
        }
        "v1" => assert!(v1_memory && !own.contains("0::"), "{own}"),
        "hybrid" => {
            assert!(v1_memory && own.contains("0::/\n"), "{own}");
            // crun refuses hybrid cgroups when v2 has any controller.
            assert_eq!(read("/sys/fs/cgroup/unified/cgroup.controllers").trim(), "");
        }
        other => panic!("unknown layout {other}"),
    }
}

#[test]
fn the_fresh_build_comes_first_in_the_path() {
    let path = std::env::var_os("PATH").expect("set by guest.sh");
    let first = std::env::split_paths(&path)
        .map(|place| place.join("lxcfs"))
        .find(|file| file.exists());
    assert_eq!(first.as_deref(), Some(Path::new("/payload/bin/lxcfs")));
}

#[test]
fn every_client_is_installed() {
    for file in [
        "/opt/containerd-sid/usr/bin/containerd",
        "/opt/runc-sid/usr/sbin/runc",
        "/usr/bin/busybox",
        "/usr/bin/crun",
        "/usr/bin/free",
        "/usr/bin/htop",
        "/usr/bin/java",
        "/usr/bin/lxc-start",
        "/usr/bin/mpstat",
        "/usr/bin/node",
        "/usr/bin/podman",
        "/usr/bin/prometheus-node-exporter",
        "/usr/bin/tmux",
        "/usr/local/bin/lxcfs-bookworm",
        "/usr/local/bin/lxcfs-sid",
        "/usr/sbin/bpftool",
        "/usr/sbin/runc",
        "/usr/lib/python3/dist-packages/psutil/__init__.py",
    ] {
        assert!(
            Path::new(file).exists(),
            "{file} is missing from the root image"
        );
    }
}
