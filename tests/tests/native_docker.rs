//! Docker's containers get their views by events: started before the agent and after,
//! across restarts of the daemon, the agent and dockerd.

use std::path::Path;
use std::time::{Duration, Instant};

use lxcfs_tests::docker::Docker;
use lxcfs_tests::subject::MarkerFs;
use lxcfs_user::agent::{Agent, AgentOptions};

const SERVER: &str = env!("CARGO_BIN_EXE_marker-fs");
const ASK: &str = "--label=lxcfs/inject=true";

fn agent(docker: &Docker, mountpoint: &Path) -> Agent {
    Agent::start(AgentOptions {
        mountpoint: mountpoint.to_owned(),
        host_mountpoint: mountpoint.to_owned(),
        docker: Some(docker.socket()),
        nri: None,
        // Other containers of this machine are none of this test's business.
        scan_interval: None,
        reconnect: Duration::from_millis(200),
        ..AgentOptions::default()
    })
    .expect("threads")
}

/// Waits until the container reads `text` there; attaching after an event takes a moment.
fn reads(docker: &Docker, name: &str, file: &str, text: &str) {
    let began = Instant::now();
    loop {
        let found = docker.read(name, file);
        if found.starts_with(text) {
            return;
        }
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{name} still reads {found:?} and not {text:?} in {file}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn containers_are_served_in_any_order_of_starts_and_restarts() {
    let dir = tempfile::TempDir::with_prefix("lxcfs-").unwrap();
    let mut docker = Docker::new();
    docker.run("before", &[ASK]);
    docker.run("silent", &[]);
    let mut server = MarkerFs::start(SERVER, &dir.path().join("fs"), "one").unwrap();
    let first = agent(&docker, &server.mountpoint);

    reads(&docker, "before", "/proc/meminfo", "one ");
    docker.run("after", &[ASK, "--label=lxcfs/files=uptime,pressure"]);
    reads(&docker, "after", "/proc/uptime", "one ");
    reads(&docker, "after", "/proc/pressure/io", "one ");
    assert!(
        docker
            .read("after", "/proc/meminfo")
            .starts_with("MemTotal")
    );
    assert!(
        docker
            .read("silent", "/proc/meminfo")
            .starts_with("MemTotal")
    );

    // A restarted container is a new one for the kernel.
    let restart = docker.docker(&["restart", "-t", "0", "before"]).output();
    assert!(restart.unwrap().status.success());
    reads(&docker, "before", "/proc/meminfo", "one ");

    // The daemon is lost and comes back while no agent runs.
    drop(first);
    server.kill().unwrap();
    drop(server);
    docker.run("during", &[ASK]);
    assert!(
        docker
            .read("during", "/proc/meminfo")
            .starts_with("MemTotal")
    );
    let server = MarkerFs::start(SERVER, &dir.path().join("fs"), "two").unwrap();
    let second = agent(&docker, &server.mountpoint);
    for name in ["before", "during"] {
        reads(&docker, name, "/proc/meminfo", "two ");
    }
    reads(&docker, "after", "/proc/uptime", "two ");

    // dockerd goes away and comes back: the agent finds it again.
    docker.stop();
    docker.start();
    docker.run("again", &[ASK]);
    reads(&docker, "again", "/proc/stat", "two ");
    assert!(second.has_docker());
    drop(second);
}
