//! Inits of PID namespaces, and events as they happen.

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use lxcfs_user::bpf::{CgroupEvent, CgroupId, Collector, Feature};

use lxcfs_tests::scratch::{Cgroup, collector_with, wait_until};

/// A process that is init of a PID namespace of its own, inside a cgroup namespace rooted
/// at `cgroup`; killed when dropped.
struct Container {
    /// `unshare`, which waits for the init.
    outer: std::process::Child,
    init: u32,
}

impl Container {
    fn start(cgroup: &Cgroup) -> Self {
        let script = format!(
            "echo 0 > {}/cgroup.procs && exec unshare --pid --cgroup --fork --kill-child sleep 1000",
            cgroup.path.display()
        );
        let outer = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .spawn()
            .expect("sh starts");
        let mut init = 0;
        wait_until("unshare has its child", || {
            let path = format!("/proc/{0}/task/{0}/children", outer.id());
            let children = std::fs::read_to_string(path).unwrap_or_default();
            init = children.trim().parse().unwrap_or(0);
            let command = std::fs::read_to_string(format!("/proc/{init}/comm"));
            command.is_ok_and(|command| command.trim() == "sleep")
        });
        Self { outer, init }
    }

    fn namespace(&self, kind: &str) -> u64 {
        std::fs::metadata(format!("/proc/{}/ns/{kind}", self.init))
            .expect("namespace")
            .ino()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // --kill-child takes the init along.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

#[test]
fn an_init_is_found_with_its_cgroup_and_namespaces() {
    let collector = collector_with(&[Feature::ContainerInits]);
    let cgroup = Cgroup::new("container");
    let container = Container::start(&cgroup);
    let inits = collector.containers().expect("containers");
    let found = inits
        .iter()
        .find(|init| init.pid == container.init)
        .unwrap_or_else(|| panic!("{} is not among {inits:?}", container.init));
    assert_eq!(found.cgroup_v2, Some(cgroup.id()));
    assert_eq!(found.cgroup_ns_root_v2, Some(cgroup.id()));
    assert_eq!(u64::from(found.pid_ns), container.namespace("pid"));
    assert_eq!(u64::from(found.cgroup_ns), container.namespace("cgroup"));
    assert_eq!((found.pid_ns_level, found.last_pid), (1, Some(1)));
    let start_ticks = start_ticks(container.init);
    assert!(found.start.0.abs_diff(start_ticks * 10_000_000) <= 10_000_000);

    let init = container.init;
    drop(container);
    wait_until("the init is gone", || {
        let inits = collector.containers().expect("containers");
        inits.iter().all(|found| found.pid != init)
    });
}

/// Field 22 of `/proc/PID/stat`, at 100 ticks a second.
fn start_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let after = stat.rsplit(") ").next().expect("fields");
    after
        .split(' ')
        .nth(19)
        .and_then(|field| field.parse().ok())
        .expect("start time")
}

type Matcher = Box<dyn Fn(&CgroupEvent) -> bool>;

/// Acts, and waits until each of the matchers has seen its event.
fn next_matching(collector: &Collector, act: impl FnOnce(), mut wanted: Vec<Matcher>) {
    let mut events = collector.take_events().expect("the stream is there once");
    assert!(collector.take_events().is_none());
    act();
    let mut seen = Vec::new();
    for _ in 0..100 {
        while let Some(event) = events.next_event() {
            wanted.retain(|matches| !matches(&event));
            seen.push(event);
        }
        if wanted.is_empty() {
            return;
        }
        events.wait(Duration::from_millis(100)).expect("poll");
    }
    panic!("{} events are missing among {seen:?}", wanted.len());
}

#[test]
fn making_removing_and_starting_are_told() {
    let collector = collector_with(&[Feature::CgroupEvents, Feature::ContainerExec]);
    let parent = Cgroup::new("events");
    let CgroupId::V2(parent_id) = parent.id() else {
        unreachable!("made on v2")
    };
    let child = parent.child("inner");
    let CgroupId::V2(child_id) = child.id() else {
        unreachable!("made on v2")
    };
    drop(child);
    next_matching(
        &collector,
        || {
            let again = parent.child("inner");
            let container = Container::start(&again);
            drop(container);
            drop(again);
        },
        vec![
            Box::new(move |event| {
                matches!(event, CgroupEvent::Created { cgroup }
                    if cgroup.parent == parent_id && cgroup.hierarchy == 0 && cgroup.id > child_id)
            }),
            Box::new(move |event| {
                matches!(event, CgroupEvent::Removed { cgroup }
                    if cgroup.parent == parent_id && cgroup.hierarchy == 0 && cgroup.id > child_id)
            }),
            Box::new(move |event| {
                matches!(event, CgroupEvent::ContainerExec { cgroup_v2, pid, .. }
                    if *cgroup_v2 > child_id && *pid > 0)
            }),
        ],
    );
}
