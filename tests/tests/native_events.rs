//! A container that no runtime tells of is given its files because the kernel says that it
//! starts, and not because a scan came by.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use lxcfs_tests::container::Shape;
use lxcfs_tests::serve::eventually;
use lxcfs_tests::{Container, Lxcfs, TestCgroup};
use lxcfs_user::agent::{Agent, AgentOptions, AgentPolicy};
use lxcfs_user::observe::metrics::{Metrics, Source};

const LIMIT: &str = "MemTotal:          65536 kB";

fn agent(lxcfs: &Lxcfs, cgroup: &TestCgroup, events: bool) -> Agent {
    Agent::start(AgentOptions {
        mountpoint: lxcfs.mountpoint(),
        host_mountpoint: lxcfs.mountpoint(),
        policy: AgentPolicy {
            cgroups: vec![format!("*{}*", cgroup.path())],
            ..AgentPolicy::default()
        },
        nri: None,
        docker: None,
        events,
        // The first scan is at the start, the second is not in this test.
        scan_interval: Some(Duration::from_secs(3600)),
        ..AgentOptions::default()
    })
    .unwrap()
}

fn attached(agent: &Agent, method: &str) -> u64 {
    let source: std::sync::Arc<dyn Source> = agent.attacher();
    let text = Metrics::new(vec![source]).text();
    let metric = format!("lxcfs_attached_total{{method=\"{method}\",outcome=\"ok\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&metric));
    line.map_or(0, |count| count.parse().unwrap())
}

fn bare() -> Shape {
    Shape {
        files: Vec::new(),
        ..Shape::default()
    }
}

#[test]
fn a_container_is_attached_when_it_starts_and_not_when_a_scan_finds_it() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new("announced");
    cgroup.limit_memory(64 << 20);
    let agent = agent(&lxcfs, &cgroup, true);
    let ready = agent.is_ready();
    eventually("the first scan is over", ready);
    eventually("the kernel tells", || agent.has_events());

    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &bare());
    eventually("it has its files", || {
        container.read("/proc/meminfo").starts_with(LIMIT)
    });
    // Counted when all its files are there.
    eventually("the event is counted", || attached(&agent, "event") > 0);
    assert_eq!(attached(&agent, "scan"), 0);
    drop(agent);
    lxcfs.stop();
}

#[test]
fn without_events_it_waits_for_a_scan() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new("unannounced");
    cgroup.limit_memory(64 << 20);
    let agent = agent(&lxcfs, &cgroup, false);
    eventually("the first scan is over", agent.is_ready());
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &bare());
    assert!(!agent.has_events());
    assert!(!container.read("/proc/meminfo").starts_with(LIMIT));
    assert_eq!(attached(&agent, "event") + attached(&agent, "scan"), 0);
    drop(container);
    drop(agent);
    lxcfs.stop();
}
