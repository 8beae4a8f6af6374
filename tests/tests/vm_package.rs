//! Installing, upgrading and removing under a real systemd, by the Debian package and by the
//! commands of docs/operations.md: readers in containers notice nothing, and nothing stays.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "vm-tests")]
// It replaces the distribution's lxcfs, which tests that share its machine would miss.
// vm: 6.12/v2 systemd mem=2304 timeout=900

use std::fs;
use std::path::Path;
use std::process::Command;

use lxcfs_tests::container::Shape;
use lxcfs_tests::footprint::{Footprint, assert_restored};
use lxcfs_tests::package::{self, Workshop};
use lxcfs_tests::serve::{comm, eventually};
use lxcfs_tests::steady::Steady;
use lxcfs_tests::{Container, TestCgroup, lxcfs_binary, stdout_of};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const OPERATIONS: &str = include_str!("../../docs/operations.md");
const UNIT: &str = include_str!("../../deploy/systemd/lxcfs.service");
const MOUNTPOINT: &str = "/var/lib/lxcfs";
const LIMIT: u64 = 64 << 20;
/// What programs that install and supervise note for themselves.
const OF_OTHERS: &[&str] = &["/var/lib/dpkg", "/run/systemd/journal", "/run/log"];

fn dpkg(arguments: &[&str]) {
    let mut command = Command::new("dpkg");
    print!("{}", stdout_of(command.args(arguments)));
}

fn systemctl(arguments: &[&str]) -> String {
    stdout_of(Command::new("systemctl").args(arguments))
}

fn property(name: &str) -> String {
    let text = systemctl(&["show", "--value", "--property", name, "lxcfs"]);
    text.trim().to_owned()
}

/// `lxcfs status --json`, empty while nobody answers.
fn status() -> serde_json::Value {
    let output = Command::new("lxcfs").args(["status", "--json"]).output();
    serde_json::from_slice(&output.unwrap().stdout).unwrap_or_default()
}

/// The machine's image has Debian's package, with its unit masked.
fn without_the_distributions() {
    let _not_installed = Command::new("dpkg")
        .args(["--purge", "--force-depends", "lxcfs"])
        .status();
    systemctl(&["unmask", "lxcfs"]);
    systemctl(&["daemon-reload"]);
}

fn footprint(container: &Container) -> Footprint {
    Footprint::take(&[container.init_pid()]).without(OF_OTHERS)
}

/// A container that started before lxcfs was installed.
fn early(cgroup: &TestCgroup) -> Container {
    cgroup.limit_memory(LIMIT);
    let shape = Shape {
        files: Vec::new(),
        ..Shape::default()
    };
    Container::start(cgroup, Path::new(MOUNTPOINT), &shape)
}

fn host_total_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    text.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn attach(container: &Container) {
    let pid = container.init_pid().to_string();
    let mut attach = Command::new("lxcfs");
    stdout_of(attach.args(["attach", "--deadline-ms", "60000", "--pid", &pid]));
    let meminfo = container.read("/proc/meminfo");
    let wanted = format!("MemTotal:{:>15} kB", LIMIT >> 10);
    assert!(meminfo.starts_with(&wanted), "{meminfo}");
}

/// The journal of the unit, when a test fails.
struct Journal;

impl Drop for Journal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut journal = Command::new("journalctl");
            let _ = journal.args(["--no-pager", "-u", "lxcfs"]).status();
        }
    }
}

#[test]
fn a_package_is_installed_upgraded_and_removed_under_readers() {
    let _journal = Journal;
    without_the_distributions();
    let workshop = Workshop::new();
    let old = package::VERSION.to_owned();
    let new = format!("{}9", &old[..old.len() - 1]);
    let packages = [&old, &new].map(|version| workshop.make(version));
    let paths = [0, 1].map(|at| packages[at].to_str().unwrap());
    let cgroup = TestCgroup::new("package");
    let container = early(&cgroup);
    let before = footprint(&container);
    std::thread::scope(|scope| {
        let totals = [LIMIT >> 10, host_total_kib()];
        let steady = Steady::start(scope, &container, &totals);
        dpkg(&["--install", paths[0]]);
        assert_eq!(property("ActiveState"), "active");
        assert_eq!(property("UnitFileState"), "enabled");
        attach(&container);
        steady.goes_on("installation");

        let holder: i32 = property("MainPID").parse().unwrap();
        for (round, version) in [&new, &old, &new].into_iter().enumerate() {
            dpkg(&["--install", paths[(round + 1) % 2]]);
            eventually("the other version serves", || {
                status()["version"].as_str() == Some(version)
            });
            assert_eq!(property("MainPID"), holder.to_string(), "upgraded in place");
            assert_eq!(comm(holder).as_deref(), Some("lxcfs-holder"));
            eventually("the holder is of the same program", || {
                fs::read_link(format!("/proc/{holder}/exe")).unwrap() == Path::new("/usr/bin/lxcfs")
            });
            steady.goes_on(&format!("upgrade to {version}"));
            let worker = status()["worker_pid"].as_i64().unwrap();
            kill(Pid::from_raw(worker as i32), Signal::SIGKILL).unwrap();
            steady.goes_on("death of the new worker");
        }
        // The view is the container's own all the time: no upgrade showed the host's.
        let meminfo = container.read("/proc/meminfo");
        assert!(
            meminfo.contains(&format!("{} kB", LIMIT >> 10)),
            "{meminfo}"
        );

        // A program that cannot serve does not get the readers.
        let broken = workshop.make_broken("0.0.0");
        dpkg(&["--install", "--force-downgrade", broken.to_str().unwrap()]);
        steady.goes_on("an upgrade to a program that does not work");
        assert_eq!(status_of(holder), Some(new.clone()));
        dpkg(&["--install", paths[1]]);
        steady.goes_on("the upgrade after it");

        dpkg(&["--purge", package::NAME]);
        steady.goes_on("removal");
        let total = container.stdout(&["grep", "MemTotal", "/proc/meminfo"]);
        assert!(total.contains(&host_total_kib().to_string()), "{total}");
        steady.stop();
    });
    assert_restored(&before, || footprint(&container));
}

/// The version that a holder's workers tell, asked by the program that it runs.
fn status_of(holder: i32) -> Option<String> {
    let mut ask = Command::new(format!("/proc/{holder}/exe"));
    let output = ask.args(["status", "--json"]).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    status["version"].as_str().map(str::to_owned)
}

/// The first block of commands after a heading of docs/operations.md.
fn commands(heading: &str) -> &'static str {
    let (_, after) = OPERATIONS.split_once(&format!("\n## {heading}\n")).unwrap();
    let (_, block) = after.split_once("\n```\n").unwrap();
    block.split_once("\n```").unwrap().0
}

fn run(text: &str, directory: &Path) {
    println!("{text}");
    let mut shell = Command::new("sh");
    stdout_of(shell.args(["-e", "-c", text]).current_dir(directory));
}

#[test]
fn the_commands_of_the_documentation_install_and_remove() {
    let _journal = Journal;
    without_the_distributions();
    let sources = tempfile::tempdir().unwrap();
    for (below, from) in [("target/release", None), ("deploy/systemd", Some(UNIT))] {
        let directory = sources.path().join(below);
        fs::create_dir_all(&directory).unwrap();
        match from {
            Some(text) => fs::write(directory.join("lxcfs.service"), text).unwrap(),
            None => drop(fs::copy(lxcfs_binary(), directory.join("lxcfs")).unwrap()),
        }
    }
    let cgroup = TestCgroup::new("by-hand");
    let container = early(&cgroup);
    let before = footprint(&container);
    std::thread::scope(|scope| {
        let totals = [LIMIT >> 10, host_total_kib()];
        let steady = Steady::start(scope, &container, &totals);
        run(commands("systemd"), sources.path());
        attach(&container);
        steady.goes_on("installation");
        systemctl(&["restart", "lxcfs"]);
        steady.goes_on("restart");
        run(commands("Removing"), sources.path());
        steady.goes_on("removal");
        steady.stop();
    });
    assert_restored(&before, || footprint(&container));
    assert!(!Path::new("/usr/bin/lxcfs").exists());
}
