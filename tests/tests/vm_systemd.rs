//! The unit under a real systemd: no reader in a container notices a restart, the death of the
//! main process or a new program, and the sandboxing takes nothing away.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "vm-tests")]
// vm: 6.12/v2 systemd timeout=900

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use lxcfs_tests::container::Shape;
use lxcfs_tests::serve::{comm, eventually};
use lxcfs_tests::steady::Steady;
use lxcfs_tests::{Container, Lxcfs, TestCgroup, lxcfs_binary, stdout_of};

const UNIT: &str = include_str!("../../deploy/systemd/lxcfs.service");
const UNIT_FILE: &str = "/etc/systemd/system/lxcfs.service";
const PROGRAM: &str = "/usr/bin/lxcfs";
const MOUNTPOINT: &str = "/var/lib/lxcfs";
const LIMIT: u64 = 64 << 20;

fn systemctl(arguments: &[&str]) -> String {
    stdout_of(Command::new("systemctl").args(arguments))
}

fn journal() -> String {
    stdout_of(Command::new("journalctl").args(["--unit=lxcfs", "--no-pager", "--output=cat"]))
}

/// Puts the build under test where the unit expects it, as a package does: by a rename.
fn install_program() {
    let fresh = format!("{PROGRAM}.new");
    fs::copy(lxcfs_binary(), &fresh).unwrap();
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&fresh, PROGRAM).unwrap();
}

fn is_mounted() -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(MOUNTPOINT))
}

/// The installed and started unit; gone with the guard, with what systemd keeps for it.
struct Service;

impl Service {
    fn start() -> Self {
        install_program();
        // The machine's image masks the distribution's unit with a link of this name.
        let _was_not_there = fs::remove_file(UNIT_FILE);
        fs::write(UNIT_FILE, UNIT).unwrap();
        systemctl(&["daemon-reload"]);
        let service = Self;
        // Wanted by a target, the unit stays in systemd's memory while it is stopped, and its
        // descriptors with it. See the last test.
        systemctl(&["enable", "--now", "lxcfs"]);
        service
    }

    fn property(&self, name: &str) -> String {
        let text = systemctl(&["show", "--value", "--property", name, "lxcfs"]);
        text.trim().to_owned()
    }

    fn main_pid(&self) -> i32 {
        self.property("MainPID").parse().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- journal of the unit\n{}", journal());
        }
        for arguments in [
            vec!["stop", "lxcfs"],
            vec!["clean", "--what=fdstore", "lxcfs"],
            vec!["disable", "lxcfs"],
        ] {
            let _reported_by_the_test = Command::new("systemctl").args(arguments).status();
        }
        let _gone = fs::remove_file(UNIT_FILE);
        let _gone = Command::new("systemctl").arg("daemon-reload").status();
    }
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let _service = Service::start();
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", UNIT_FILE])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(!text.contains("lxcfs.service"), "{text}");
}

#[test]
fn restart_death_and_upgrade_are_not_noticed_and_stop_is_clean() {
    let service = Service::start();
    let cgroup = TestCgroup::new("systemd");
    cgroup.limit_memory(LIMIT);
    let container = Container::start(&cgroup, Path::new(MOUNTPOINT), &Shape::default());
    std::thread::scope(|scope| {
        let reading = Steady::start(scope, &container, &[LIMIT >> 10]);
        let goes_on = |after: &str| {
            reading.goes_on(after);
            assert!(is_mounted(), "no mount after {after}");
        };
        goes_on("start");
        for round in 1..=3 {
            let before = service.main_pid();
            systemctl(&["restart", "lxcfs"]);
            assert_ne!(service.main_pid(), before);
            goes_on(&format!("restart {round}"));
        }
        for round in 1..=3 {
            let before = service.main_pid();
            assert_eq!(comm(before).as_deref(), Some("lxcfs-holder"));
            systemctl(&["kill", "--kill-whom=main", "--signal=KILL", "lxcfs"]);
            eventually("systemd starts it again", || {
                service.property("ActiveState") == "active" && service.main_pid() != before
            });
            goes_on(&format!("death {round} of the main process"));
        }
        for round in 1..=2 {
            let before = service.main_pid();
            install_program();
            let wanted = fs::metadata(PROGRAM).unwrap().ino();
            systemctl(&["reload", "lxcfs"]);
            eventually("the new program runs", || {
                fs::metadata(format!("/proc/{before}/exe")).is_ok_and(|exe| exe.ino() == wanted)
            });
            assert_eq!(service.main_pid(), before, "upgraded in place");
            goes_on(&format!("upgrade {round}"));
        }
        // Reads wait for the next start.
        systemctl(&["stop", "lxcfs"]);
        assert!(!is_mounted());
        assert_eq!(service.property("NFileDescriptorStore"), "3");
        std::thread::sleep(std::time::Duration::from_secs(2));
        systemctl(&["start", "lxcfs"]);
        goes_on("stop and start");
        reading.stop();
    });
    drop(container);
    let workers = service.main_pid();
    systemctl(&["stop", "lxcfs"]);
    assert!(!is_mounted(), "{}", journal());
    assert_eq!(service.property("Result"), "success", "{}", journal());
    assert_eq!(service.property("ExecMainStatus"), "0");
    assert_eq!(service.property("ExecMainCode"), "1", "exited, not killed");
    assert_eq!(comm(workers), None);
}

/// systemd forgets a stopped unit that no other unit refers to, and closes what it kept for it,
/// whatever FileDescriptorStorePreserve= says. Nobody is told; the next start heals the containers.
#[test]
fn a_unit_that_is_not_enabled_loses_its_descriptors_by_a_stop_and_the_next_start_heals() {
    let service = Service::start();
    let cgroup = TestCgroup::new("forgotten");
    cgroup.limit_memory(LIMIT);
    let container = Container::start(&cgroup, Path::new(MOUNTPOINT), &Shape::default());
    let wanted = format!("MemTotal:{:>15} kB", LIMIT >> 10);
    assert!(container.read("/proc/meminfo").starts_with(&wanted));
    systemctl(&["disable", "lxcfs"]);
    systemctl(&["restart", "lxcfs"]);
    assert!(
        container.read("/proc/meminfo").starts_with(&wanted),
        "restart keeps them"
    );
    systemctl(&["stop", "lxcfs"]);
    eventually("systemd forgets the unit", || {
        let output = container.run(&["cat", "/proc/meminfo"]);
        String::from_utf8_lossy(&output.stderr).contains("Transport endpoint is not connected")
    });
    assert_eq!(service.property("NFileDescriptorStore"), "0");
    systemctl(&["start", "lxcfs"]);
    eventually("the start heals the container", || {
        let output = container.run(&["cat", "/proc/meminfo"]);
        output.status.success() && output.stdout.starts_with(wanted.as_bytes())
    });
}

/// Name and state of every feature of the daemon in `runtime_dir`, once it knows them.
fn features(runtime_dir: &str) -> Vec<(String, bool, String)> {
    let mut known = Vec::new();
    eventually("the features are known", || {
        known = features_so_far(runtime_dir);
        !known.is_empty()
    });
    known
}

fn features_so_far(runtime_dir: &str) -> Vec<(String, bool, String)> {
    let text =
        stdout_of(Command::new(PROGRAM).args(["status", "--json", "--runtime-dir", runtime_dir]));
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = status["features"].as_array().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    rows.iter()
        .map(|row| {
            let on = row["on"].as_bool().unwrap_or_default();
            (text(&row["name"]), on, text(&row["reason"]))
        })
        .collect()
}

#[test]
fn the_sandbox_takes_no_feature_and_no_attaching_away() {
    let _service = Service::start();
    let plain = Lxcfs::start::<&str>(&[]);
    let all = features(plain.runtime_dir().to_str().unwrap());
    assert!(
        all.iter().any(|(name, on, _)| name == "task_counts" && *on),
        "{all:?}"
    );
    assert_eq!(features("/run"), all);
    println!("{all:?}");

    let cgroup = TestCgroup::new("attached");
    cgroup.limit_memory(LIMIT);
    let shape = Shape {
        files: Vec::new(),
        ..Shape::default()
    };
    let container = Container::start(&cgroup, Path::new(MOUNTPOINT), &shape);
    let wanted = format!("MemTotal:{:>15} kB", LIMIT >> 10);
    assert!(!container.read("/proc/meminfo").starts_with(&wanted));
    // The command, and the agent in the worker, attach by the same engine.
    let mut command = Command::new("systemd-run");
    command.args(["--wait", "--pipe", "--quiet", "--collect"]);
    let prefixes = [
        "Capability",
        "NoNew",
        "Lock",
        "MemoryDeny",
        "Restrict",
        "SystemCall",
        "UMask",
    ];
    let sandbox: Vec<&str> = UNIT
        .lines()
        .filter(|line| prefixes.iter().any(|prefix| line.starts_with(prefix)))
        .collect();
    assert!(sandbox.len() >= prefixes.len(), "{sandbox:?}");
    command.args(sandbox.iter().map(|line| format!("--property={line}")));
    let pid = container.init_pid().to_string();
    let output = command
        .args([PROGRAM, "attach", "--verbose", "--deadline-ms", "60000"])
        .args(["--pid", &pid])
        .output()
        .unwrap();
    let report = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{report}");
    assert!(
        container.read("/proc/meminfo").starts_with(&wanted),
        "{report}"
    );
}
