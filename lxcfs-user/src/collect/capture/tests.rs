use super::*;
use crate::container::boundary::Rule;
use crate::snapshot::Controller;
use crate::units::Limit;

/// A capture written by hand: what the loader does with one, whatever machine runs this.
struct Made(tempfile::TempDir);

impl Made {
    fn new(facts: &str, files: &[(&str, &str)]) -> Self {
        let made = Self(tempfile::tempdir().unwrap());
        made.put("facts.toml", facts);
        for (path, text) in files {
            made.put(&format!("root/{path}"), text);
        }
        made
    }

    fn put(&self, path: &str, text: &str) {
        write(&self.0.path().join(path), text).unwrap();
    }

    fn load(&self) -> Capture {
        Capture::load(self.0.path()).unwrap()
    }
}

const ID: &str = "4c01db0b339c8a1d5c2d2b1f7bb9b5d3a0b7f7f0c3d1e2f4a5b6c7d8e9f0a1b2";
const STAT: &str =
    "7 (a) b) R 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 2 0 500 1000 2 18446744073709551615\n";

fn facts(layout: &str, hierarchies: &str) -> String {
    format!(
        "case = \"by hand\"\nkernel = \"6.12\"\nlayout = \"{layout}\"\npid = 7\n\
         page_size = 4096\nuser_hz = 100\nnow = 9000000000\n{hierarchies}"
    )
}

fn pure_v2() -> Made {
    let place =
        format!("[[hierarchies]]\nmount_point = \"/sys/fs/cgroup\"\npath = \"/pod/{ID}/sub\"\n");
    let cgroup = |file: &str| format!("sys/fs/cgroup/pod/{ID}/{file}");
    let files = [
        ("proc/meminfo".to_owned(), "MemTotal: 1024 kB\n"),
        ("proc/stat".to_owned(), "cpu 1\nbtime 77\n"),
        ("proc/sys/kernel/osrelease".to_owned(), "6.12.1\n"),
        ("proc/7/stat".to_owned(), STAT),
        ("proc/7/status".to_owned(), "NSpid:\t7\t3\n"),
        (
            "proc/self/mountinfo".to_owned(),
            "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        ),
        ("sys/devices/system/cpu/online".to_owned(), "0-3\n"),
        (
            "sys/fs/cgroup/cgroup.controllers".to_owned(),
            "cpuset cpu io memory\n",
        ),
        ("sys/fs/cgroup/cpuset.cpus.effective".to_owned(), "0-3\n"),
        ("sys/fs/cgroup/pod/memory.max".to_owned(), "65536\n"),
        ("sys/fs/cgroup/pod/memory.current".to_owned(), "4096\n"),
        ("sys/fs/cgroup/pod/memory.stat".to_owned(), "anon 4096\n"),
        (cgroup("cpu.max"), "150000 100000\n"),
        (
            cgroup("cpu.stat"),
            "usage_usec 10\nuser_usec 6\nsystem_usec 4\n",
        ),
        (cgroup("cpu.pressure"), "some avg10=0.00\n"),
        (cgroup("io.stat"), "8:0 rbytes=512 wbytes=0 rios=1 wios=0\n"),
        (cgroup("sub/cgroup.procs"), "7\n"),
        (cgroup("sub/cgroup.threads"), "7\n"),
        (cgroup("cgroup.procs"), ""),
        (cgroup("cgroup.threads"), ""),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (p.as_str(), *t)).collect();
    Made::new(&facts("v2", &place), &files)
}

fn all(capture: &Capture) -> Snapshot {
    let policy = ViewPolicy::default();
    capture.snapshot(Inputs(u32::MAX), &policy).unwrap()
}

#[test]
fn a_v2_tree_gives_every_part_of_a_snapshot() {
    let made = pure_v2();
    let capture = made.load();
    let boundary = capture.boundary(&ViewPolicy::default()).unwrap();
    assert!(matches!(boundary.rule, Rule::RuntimeName(_)));
    let snapshot = all(&capture);
    // Memory is not enabled in the container: the pod's limit holds (F11).
    let memory = snapshot.memory.unwrap();
    assert_eq!(memory.limit.value, Limit::Value(Bytes(65536)));
    assert_eq!(
        memory.limit.origin,
        Origin::Cgroup {
            controller: Controller::Memory,
            levels_up: 1,
            file: "memory.max"
        }
    );
    assert_eq!(snapshot.cpus.unwrap().quota.unwrap().value.quota.0, 150_000);
    assert_eq!(snapshot.cpu_time.unwrap().usage, Nsec(10_000));
    let tasks = snapshot.tasks.unwrap();
    assert_eq!((tasks.running, tasks.threads), (1, 1));
    assert_eq!(tasks.newest_pid, Some(3));
    let age = snapshot.age.unwrap();
    assert_eq!(
        (age.start, age.elapsed()),
        (Nsec(5_000_000_000), Nsec(4_000_000_000))
    );
    assert_eq!(snapshot.io.unwrap().value.len(), 1);
    assert_eq!(snapshot.pressure[0].as_deref(), Some("some avg10=0.00\n"));
    assert_eq!(snapshot.pressure[3], None);
    assert_eq!(snapshot.host.stat.as_deref(), Some("btime 77\n"));
    assert!(snapshot.swap.is_none());
}

#[test]
fn a_hybrid_tree_without_v2_controllers_uses_v1_for_figures_and_v2_for_pressure() {
    let places: String = ["memory", "unified", "cpuacct"]
        .iter()
        .map(|name| {
            format!(
                "[[hierarchies]]\nmount_point = \"/sys/fs/cgroup/{name}\"\npath = \"/c\"\ncgroupns_root = \"/c\"\n"
            )
        })
        .collect();
    let made = Made::new(
        &facts("hybrid", &places),
        &[
            ("proc/meminfo", ""),
            ("proc/stat", "btime 1\n"),
            (
                "proc/self/mountinfo",
                "1 1 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                 2 1 0:2 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n\
                 3 1 0:3 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            ),
            ("sys/devices/system/cpu/online", "0-1\n"),
            ("sys/fs/cgroup/unified/cgroup.controllers", "\n"),
            ("sys/fs/cgroup/unified/c/io.pressure", "some\n"),
            ("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "8192\n"),
            ("sys/fs/cgroup/memory/c/memory.usage_in_bytes", "4096\n"),
            ("sys/fs/cgroup/memory/c/memory.stat", "total_rss 4096\n"),
            ("sys/fs/cgroup/cpuacct/c/cpuacct.usage_all", "0 3 4\n"),
        ],
    );
    let capture = made.load();
    let boundary = capture.boundary(&ViewPolicy::default()).unwrap();
    assert_eq!(boundary.rule, Rule::CgroupNamespace);
    let inputs = Inputs(!(Inputs::AGE.0 | Inputs::TASKS.0));
    let snapshot = capture.snapshot(inputs, &ViewPolicy::default()).unwrap();
    let memory = snapshot.memory.unwrap();
    assert_eq!(memory.headroom.unwrap().value, Bytes(4096));
    assert_eq!(snapshot.cpu_time.unwrap().per_cpu.unwrap().len(), 1);
    assert_eq!(snapshot.pressure[2].as_deref(), Some("some\n"));
    // No cpuset hierarchy: what is online, and it says so.
    let cpus = snapshot.cpus.unwrap();
    assert!(matches!(cpus.effective.origin, Origin::Host(_)));
    let paths = &snapshot.cgroup_paths;
    assert_eq!(paths[Controller::Memory as usize].as_deref(), Some("/c"));
    assert_eq!(paths[Controller::Cpuset as usize], None);
}

#[test]
fn a_broken_capture_says_what_is_wrong() {
    let made = pure_v2();
    made.put("facts.toml", "case = 1\n");
    let error = Capture::load(made.0.path()).unwrap_err().to_string();
    assert!(error.contains("facts.toml"), "{error}");
    let missing = Capture::load(Path::new("/nowhere")).unwrap_err();
    assert!(matches!(missing, CaptureError::File { .. }));
}

#[test]
fn only_cgroup_mounts_are_recorded() {
    let text = "1 2 0:1 / / rw - ext4 /dev/vda rw\n3 1 0:2 / /sys/fs/cgroup rw - cgroup2 none rw\n";
    assert_eq!(cgroup_mounts(text).lines().count(), 1);
    assert!(is_recorded("hugetlb.2MB.max") && is_recorded("memory.swap.current"));
    assert!(!is_recorded("memory.reclaim") && !is_recorded("devices.allow"));
}
