//! htop inside a container draws the container's CPU and memory. Its screen is driven by tmux.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lxcfs_tests::container::Shape;
use lxcfs_tests::{Container, Lxcfs, TestCgroup};

#[test]
fn htop_draws_one_bar_and_the_limit() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new("htop");
    cgroup.limit_memory(256 << 20);
    cgroup.limit_cpu(50_000, 100_000);
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
    let socket = format!("lxcfs-test-{}", std::process::id());
    let tmux = |arguments: &[&str]| {
        let mut all = vec!["env", "TERM=xterm", "tmux", "-L", &socket];
        all.extend(arguments);
        container.run(&all)
    };
    let started = tmux(&[
        "new-session",
        "-d",
        "-x",
        "120",
        "-y",
        "40",
        "env HTOPRC=/dev/null htop",
    ]);
    assert!(
        started.status.success(),
        "{}",
        String::from_utf8_lossy(&started.stderr)
    );
    let screen = (0..100)
        .map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(200));
            String::from_utf8_lossy(&tmux(&["capture-pane", "-p"]).stdout).into_owned()
        })
        .find(|screen| screen.contains("256M"));
    let last = String::from_utf8_lossy(&tmux(&["capture-pane", "-p"]).stdout).into_owned();
    tmux(&["kill-server"]);
    let screen = screen.unwrap_or_else(|| panic!("no memory bar of 256M on:\n{last}"));
    let bars = screen
        .lines()
        .filter(|line| line.trim_start().starts_with("0["))
        .count();
    assert!(
        bars <= 1 && !screen.contains(" 1["),
        "one CPU bar:\n{screen}"
    );
}
