//! The podman guard makes real containers with real limits and leaves nothing behind.
// vm: all/v2 6.1/v1 6.1/hybrid
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use lxcfs_tests::Podman;

/// A container with limits and with a file mounted over one of `/proc`; then its end.
fn lives_and_dies(runtime: &str) {
    let source = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(source.path(), "1.00 2.00\n").unwrap();
    let volume = format!("--volume={}:/proc/uptime", source.path().display());
    let podman = Podman::start(runtime, &["--memory=64m", &volume]);
    let seen = podman.stdout(&["sh", "-c", "echo $PPID; cat /proc/uptime"]);
    assert_eq!(seen, "0\n1.00 2.00\n");

    let (init, parent) = (podman.init_pid(), podman.parent_cgroup());
    let v1 = parent.is_v1("memory");
    let own = std::fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap();
    let line = own
        .lines()
        .find(|line| line.contains(if v1 { ":memory:" } else { "0::" }));
    let path = line.unwrap().rsplit(':').next().unwrap();
    let below = path.strip_prefix(parent.path()).expect("below its parent");
    let limit = if v1 {
        "memory.limit_in_bytes"
    } else {
        "memory.max"
    };
    let file = parent.dir("memory").join(&below[1..]).join(limit);
    assert_eq!(std::fs::read_to_string(file).unwrap(), "67108864\n");

    let dirs = parent.dirs();
    drop(podman);
    assert!(!Path::new(&format!("/proc/{init}/exe")).exists());
    assert!(dirs.iter().all(|directory| !directory.exists()), "{dirs:?}");
}

#[test]
fn runc() {
    lives_and_dies("runc");
}

/// On this machine crun may lack rights that runc does without; a virtual machine has them all.
#[test]
#[cfg(feature = "vm-tests")]
fn crun() {
    lives_and_dies("crun");
}
