//! What a container reads through the whole daemon, while workers die: its own forks, and
//! counters that never go back.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
// vm: 5.10/v2 6.12/v2

use std::process::Command;

use lxcfs_tests::container::Shape;
use lxcfs_tests::scratch::wait_until;
use lxcfs_tests::{Container, Lxcfs, TestCgroup, lxcfs_binary};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn processes(container: &Container) -> u64 {
    let text = container.read("/proc/stat");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("processes "));
    line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

#[test]
fn forks_are_the_containers_own_and_never_go_back() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new("forks");
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
    let host = || {
        let text = std::fs::read_to_string("/proc/stat").unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("processes "));
        line.unwrap().parse::<u64>().unwrap()
    };
    // Files answer before eBPF is loaded.
    wait_until("forks are counted", || processes(&container) > 0);
    let before = processes(&container);
    assert!(
        (1..1000).contains(&before) && before < host(),
        "{before} since the start of a new container"
    );
    // Forks of the host are not the container's.
    for _ in 0..50 {
        assert!(Command::new("true").status().unwrap().success());
    }
    container.stdout(&["sh", "-c", "for i in $(seq 100); do (:); done"]);
    let mut seen = before;
    wait_until("100 forks are counted", || {
        let now = processes(&container);
        assert!(now >= seen, "{now} after {seen}");
        seen = now;
        now >= before + 100
    });
    // Each read of ours is a process in the container as well, and little else is.
    let exact = processes(&container);
    let next = processes(&container);
    assert!(
        exact <= next && next < before + 100 + 700,
        "{before} {next}"
    );
    // A worker that dies takes nothing with it.
    let kept = processes(&container);
    kill(Pid::from_raw(worker(&lxcfs)), Signal::SIGKILL).unwrap();
    let after = processes(&container);
    assert!(
        kept <= after && after < kept + 100,
        "{kept} before, {after} after a worker's death"
    );
    lxcfs.stop();
}

/// The numbers of `/proc/stat` that only grow: user, nice, system and idle of every CPU, and forks.
fn growing(container: &Container) -> Vec<(String, Vec<u64>)> {
    let text = container.read("/proc/stat");
    text.lines()
        .filter(|line| line.starts_with("cpu") || line.starts_with("processes"))
        .map(|line| {
            let (name, numbers) = line.split_once(' ').unwrap();
            let numbers = numbers.split_whitespace().take(4);
            (
                name.to_owned(),
                numbers.map(|n| n.parse().unwrap()).collect(),
            )
        })
        .collect()
}

#[test]
fn no_counter_goes_back_when_workers_die_right_after_an_answer() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new("back");
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
    // From the very first answer on, and with and without a standby that has loaded its eBPF.
    for round in 0..30 {
        let before = growing(&container);
        kill(Pid::from_raw(worker(&lxcfs)), Signal::SIGKILL).unwrap();
        let after = growing(&container);
        assert_eq!(before.len(), after.len());
        for ((name, before), (_, after)) in before.iter().zip(&after) {
            let grows = before
                .iter()
                .zip(after)
                .all(|(before, after)| before <= after);
            assert!(grows, "round {round}: {name} {before:?}, then {after:?}");
        }
        container.stdout(&[
            "sh",
            "-c",
            "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done",
        ]);
    }
    lxcfs.stop();
}

/// The process that answers.
fn worker(lxcfs: &Lxcfs) -> i32 {
    let runtime = format!("--runtime-dir={}", lxcfs.runtime_dir().display());
    let mut found = None;
    wait_until("the daemon tells its worker", || {
        let status = Command::new(lxcfs_binary())
            .args(["status", "--json", &runtime])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        let digits = text.split("\"worker_pid\":").nth(1).map(|rest| {
            rest.trim_start()
                .chars()
                .take_while(char::is_ascii_digit)
                .collect::<String>()
        });
        found = digits.and_then(|digits| digits.parse().ok());
        found.is_some()
    });
    found.unwrap()
}
