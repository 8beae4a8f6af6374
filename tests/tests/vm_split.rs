//! A server in a container as Kubernetes makes them: in a cgroup namespace of its own.
#![cfg(feature = "vm-tests")]
// vm: 6.12/v2
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lxcfs_tests::TestCgroup;
use lxcfs_tests::serve::eventually;
use lxcfs_tests::split::{Held, container_reads};

#[test]
fn a_server_in_its_own_cgroup_namespace_sees_every_container_right() {
    let held = Held::start();
    let pod = TestCgroup::new("server");
    let enter = format!(
        "echo $$ > {}/cgroup.procs && exec unshare --cgroup -- \"$@\"",
        pod.dir("memory").display()
    );
    let server = held.serve(&["sh", "-c", &enter, "sh"]);
    eventually("it serves", || held.status().number("serving") == 1);
    let inside = std::fs::read_link(format!("/proc/{}/ns/cgroup", server.pid())).unwrap();
    let ours = std::fs::read_link("/proc/self/ns/cgroup").unwrap();
    assert_ne!(inside, ours);
    let (total, uptime) = container_reads(&held.path("mnt"));
    assert_eq!(total, "MemTotal:         131072 kB\n");
    assert!(uptime.trim().parse::<u64>().unwrap() < 60, "{uptime}");
    // A process of the host's still reads the host's values.
    let host = std::fs::read_to_string("/proc/meminfo").unwrap();
    let seen = std::fs::read_to_string(held.path("mnt").join("proc/meminfo")).unwrap();
    assert_eq!(host.lines().next(), seen.lines().next());
    server.stop();
}
