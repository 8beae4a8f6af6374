//! The guards make what they promise and leave nothing behind: every other test relies on them.
// vm: all/v2 6.1/v1 6.1/hybrid

use std::fs;
use std::path::Path;

use lxcfs_tests::cgroup::layout;
use lxcfs_tests::container::Shape;
use lxcfs_tests::{Burner, Container, Layout, TestCgroup};

fn without_files() -> Shape {
    Shape {
        files: Vec::new(),
        ..Shape::default()
    }
}

#[test]
fn layout_is_the_machines() {
    if let Ok(wanted) = std::env::var("LXCFS_VM_LAYOUT") {
        let found = match layout() {
            Layout::V2 => "v2",
            Layout::V1 => "v1",
            Layout::Hybrid => "hybrid",
        };
        assert_eq!(found, wanted);
    }
}

#[test]
fn limits_reach_the_kernel() {
    let cgroup = TestCgroup::new("limits");
    cgroup.limit_memory(64 << 20);
    cgroup.limit_cpu(50_000, 100_000);
    cgroup.confine_cpus("0");
    if cgroup.is_v1("memory") {
        assert_eq!(cgroup.read("memory.limit_in_bytes"), "67108864\n");
        assert_eq!(cgroup.read("cpu.cfs_quota_us"), "50000\n");
    } else {
        assert_eq!(cgroup.read("memory.max"), "67108864\n");
        assert_eq!(cgroup.read("cpu.max"), "50000 100000\n");
    }
    assert_eq!(cgroup.read("cpuset.cpus"), "0\n");
}

#[test]
fn a_burner_is_charged_to_its_cgroup_and_dies_with_it() {
    let parent = TestCgroup::new("parent");
    let child = parent.child("child");
    let dirs = child.dirs();
    let burner = Burner::start(&child, Some(0));
    let usage = || {
        if child.is_v1("cpuacct") {
            child.read("cpuacct.usage").trim().parse::<u64>().unwrap() / 1000
        } else {
            let stat = child.read("cpu.stat");
            let line = stat
                .lines()
                .find_map(|line| line.strip_prefix("usage_usec "));
            line.unwrap().parse().unwrap()
        }
    };
    while usage() < 20_000 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(child.pids(), [burner.pid().cast_signed()]);
    let process = format!("/proc/{}", burner.pid());
    assert!(Path::new(&process).exists());
    drop(burner);
    drop(child);
    assert!(!Path::new(&process).exists());
    assert!(dirs.iter().all(|directory| !directory.exists()));
}

#[test]
fn dropping_a_cgroup_kills_what_is_inside() {
    let cgroup = TestCgroup::new("crowded");
    let mut child = std::process::Command::new("sleep")
        .arg("infinity")
        .spawn()
        .unwrap();
    cgroup.add(child.id());
    let dirs = cgroup.dirs();
    // The killed process leaves its cgroup once it is reaped.
    let reaper = std::thread::spawn(move || child.wait());
    drop(cgroup);
    assert!(!reaper.join().unwrap().unwrap().success());
    assert!(dirs.iter().all(|directory| !directory.exists()));
}

#[test]
fn a_container_has_namespaces_and_a_cgroup_of_its_own() {
    let cgroup = TestCgroup::new("container");
    let container = Container::start(&cgroup, Path::new("/"), &without_files());
    for namespace in ["pid", "mnt", "cgroup", "uts", "ipc"] {
        let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(
            link("self"),
            link(&container.init_pid().to_string()),
            "{namespace}"
        );
    }
    assert_eq!(cgroup.pids().len(), 2, "unshare and process 1");
    assert_eq!(
        container.stdout(&["sh", "-c", "echo $PPID"]),
        "0\n",
        "entered from outside"
    );
    let own = container.read("/proc/self/cgroup");
    assert!(
        own.lines()
            .all(|line| line.ends_with(":/") || line.contains("name=")),
        "{own}"
    );
    assert_eq!(
        container.run(&["sh", "-c", "exit 7"]).status.code(),
        Some(7)
    );
    let init = container.init_pid();
    drop(container);
    assert!(!Path::new(&format!("/proc/{init}/exe")).exists());
}

#[test]
fn files_are_bound_from_the_mountpoint() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("proc")).unwrap();
    fs::write(source.path().join("proc/uptime"), "1.00 2.00\n").unwrap();
    let cgroup = TestCgroup::new("bound");
    let shape = Shape {
        files: vec!["proc/uptime".to_owned()],
        ..Shape::default()
    };
    let container = Container::start(&cgroup, source.path(), &shape);
    assert_eq!(container.read("/proc/uptime"), "1.00 2.00\n");
    assert_ne!(fs::read_to_string("/proc/uptime").unwrap(), "1.00 2.00\n");
}
