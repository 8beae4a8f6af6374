//! Podman's containers, made by runc and by crun: both ways to a view, `-v` and the OCI hook,
//! show the container's limits.
// vm: 6.12/v2
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use lxcfs_tests::podman::volumes;
use lxcfs_tests::{Lxcfs, Podman, lxcfs_binary, stdout_of};

/// The real clients see the limits of `podman run` through the files that are bound by `-v`.
fn bound_files_show_the_limits(runtime: &str) {
    let lxcfs = Lxcfs::start::<&str>(&["--no-heal"]);
    let volumes = volumes(&lxcfs.mountpoint());
    let mut arguments = vec!["--memory=256m", "--cpu-period=100000", "--cpu-quota=50000"];
    arguments.extend(volumes.iter().map(String::as_str));
    let podman = Podman::start(runtime, &arguments);
    shows_the_limits(&podman);
    drop(podman);
    lxcfs.stop();
}

fn shows_the_limits(podman: &Podman) {
    let free = podman.stdout(&["free", "-k"]);
    let total = free.lines().nth(1).unwrap().split_whitespace().nth(1);
    assert_eq!(total, Some("262144"), "{free}");
    assert_eq!(
        podman.read("/proc/cpuinfo").matches("processor\t").count(),
        1
    );
    let age = |text: &str| text.split(' ').next().unwrap().parse::<f64>().unwrap();
    let machine = std::fs::read_to_string("/proc/uptime").unwrap();
    assert!(age(&podman.read("/proc/uptime")) < age(&machine));
}

/// The OCI hook binds also what runc refuses in a spec, before the program's first instruction.
fn hook_comes_before_the_first_instruction(runtime: &str) {
    let lxcfs = Lxcfs::start::<&str>(&["--no-heal"]);
    let hooks = tempfile::TempDir::with_prefix("lxcfs-hooks-").unwrap();
    let mut print = Command::new(lxcfs_binary());
    print.args(["hook", "--print", "--mount"]);
    let hook = stdout_of(print.arg(lxcfs.mountpoint()));
    std::fs::write(hooks.path().join("lxcfs.json"), hook).unwrap();
    let look = "cat /proc/self/mountinfo /proc/meminfo >/seen; exec sleep infinity";
    let podman = Podman::start_with(
        runtime,
        Some(hooks.path()),
        &[
            "--annotation=lxcfs/inject=true",
            "--memory=256m",
            "--cpu-period=100000",
            "--cpu-quota=50000",
        ],
        &["sh", "-c", look],
    );
    let seen = podman.read("/seen");
    assert!(seen.contains("MemTotal:         262144 kB\n"), "{seen}");
    for file in ["/proc/meminfo", "/proc/vmstat", "/proc/stat"] {
        let bound = seen
            .lines()
            .filter(|line| line.contains(&format!(" {file} ")) && line.contains(" - fuse.lxcfs "));
        assert_eq!(bound.count(), 1, "{file} in {seen}");
    }
    shows_the_limits(&podman);
    drop(podman);
    lxcfs.stop();
}

#[test]
fn runc() {
    bound_files_show_the_limits("runc");
    hook_comes_before_the_first_instruction("runc");
}

/// On this machine crun may lack rights that runc does without; a virtual machine has them all.
#[test]
#[cfg(feature = "vm-tests")]
fn crun() {
    bound_files_show_the_limits("crun");
    hook_comes_before_the_first_instruction("crun");
}
