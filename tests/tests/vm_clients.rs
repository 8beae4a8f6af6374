//! Larger clients than this machine may have: Node, the JVM and node_exporter, inside a
//! container with 256 MiB and half a CPU of a machine with four.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "vm-tests")]
// vm: all/v2 smp=4 timeout=1800

use lxcfs_tests::container::Shape;
use lxcfs_tests::{Container, Lxcfs, TestCgroup};

const LIMIT: u64 = 256 << 20;

fn fixture(name: &str) -> (Container, TestCgroup, Lxcfs) {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new(name);
    cgroup.limit_memory(LIMIT);
    cgroup.limit_cpu(50_000, 100_000);
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
    (container, cgroup, lxcfs)
}

#[test]
fn node_shows_the_container() {
    let (container, _cgroup, _lxcfs) = fixture("node");
    let script = "const os=require('os'); \
        console.log(os.totalmem(), os.cpus().length, os.freemem()<=os.totalmem(), os.loadavg().length)";
    let text = container.stdout(&["node", "-e", script]);
    assert_eq!(text.trim(), format!("{LIMIT} 1 true 3"));
}

/// The JVM never reads `/proc/meminfo`: it reads cgroup files, or without them asks sysinfo(2).
#[test]
fn the_jvm_asks_the_kernel_and_not_a_file() {
    let (container, _cgroup, _lxcfs) = fixture("jvm");
    let text = container.stdout(&[
        "java",
        "-XX:-UseContainerSupport",
        "-XX:+PrintFlagsFinal",
        "-version",
    ]);
    let line = text.lines().find(|line| line.contains(" MaxHeapSize "));
    let heap = line.and_then(|line| line.split_whitespace().nth(3));
    let heap: u64 = heap.unwrap_or_else(|| panic!("{text}")).parse().unwrap();
    // A quarter of what it takes for the machine's memory.
    assert!(heap > LIMIT / 2, "{heap}: from the container's file");
}

#[test]
fn node_exporter_exports_the_container() {
    let (container, _cgroup, _lxcfs) = fixture("exporter");
    let script = "ip link set lo up 2>/dev/null; \
        prometheus-node-exporter --web.listen-address=127.0.0.1:19100 2>/tmp/exporter.log & \
        exporter=$!; \
        for i in $(seq 100); do \
          if busybox wget -q -O /tmp/exporter.out http://127.0.0.1:19100/metrics; then break; fi; \
          sleep 0.5; \
        done; kill $exporter; cat /tmp/exporter.out";
    let text = container.stdout(&["sh", "-c", script]);
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in:\n{text}"));
        line.trim().parse::<f64>().unwrap()
    };
    assert_eq!(value("node_memory_MemTotal_bytes "), LIMIT as f64);
    assert!(value("node_memory_MemAvailable_bytes ") <= LIMIT as f64);
    let idle = "node_cpu_seconds_total{cpu=\"";
    let cpus = text
        .lines()
        .filter(|line| line.starts_with(idle) && line.contains("\"idle\""));
    assert_eq!(cpus.count(), 1, "one CPU");
    assert!(value("node_load1 ") >= 0.0);
}
