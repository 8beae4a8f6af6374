//! The command line of the real binary: what it prints, how it ends, what it leaves.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;

use lxcfs_common::catalogue::{CATALOGUE, Kind};
use lxcfs_tests::container::Shape;
use lxcfs_tests::{Container, Lxcfs, TestCgroup, lxcfs_binary, require_root};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A container that starts while another test has a dead mount would inherit it.
static LOSSES: Mutex<()> = Mutex::new(());

fn lxcfs_command(arguments: &[&str]) -> Output {
    lxcfs(arguments)
}

fn lxcfs(arguments: &[&str]) -> Output {
    Command::new(lxcfs_binary())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("cannot start lxcfs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts that `arguments` fail with each of `expected` on stderr and nothing on stdout.
fn refuses(arguments: &[&str], expected: &[&str]) {
    let output = lxcfs(arguments);
    let said = stderr(&output);
    assert!(!output.status.success(), "{arguments:?} succeeded: {said}");
    assert_eq!(stdout(&output), "", "{arguments:?}");
    for words in expected {
        assert!(
            said.contains(words),
            "{arguments:?}: no {words:?} in {said}"
        );
    }
}

/// An argument that keeps the configuration of the machine out of a test.
fn runtime(lxcfs: &Lxcfs) -> String {
    format!("--runtime-dir={}", lxcfs.runtime_dir().display())
}

/// Waits for something that the daemon does on its own time.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("never happened: {what}");
}

#[test]
fn help_and_version_go_to_stdout_and_are_no_failure() {
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["show", "--help"],
        &["attach", "-h"],
    ] {
        let output = lxcfs(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(stdout(&output).contains("Usage: lxcfs"), "{arguments:?}");
        assert_eq!(stderr(&output), "");
    }
    for arguments in [["--version"], ["-v"]] {
        let output = lxcfs(&arguments);
        assert_eq!(output.status.code(), Some(0));
        let version = concat!("lxcfs ", env!("CARGO_PKG_VERSION"), "\n");
        assert_eq!(stdout(&output), version);
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_the_remedy() {
    require_root();
    refuses(&["--frobnicate", "/m"], &["--frobnicate", "--help"]);
    refuses(&["/m", "/n"], &["one mountpoint only"]);
    refuses(&["-o", "frob", "/m"], &["frob", "leave it out"]);
    refuses(&["--cpus", "all", "/m"], &["quota", "cpuset", "host"]);
    refuses(
        &["--config", "/nonexistent.toml", "/m"],
        &["/nonexistent.toml"],
    );
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("lxcfs.toml");
    fs::write(&file, "disable-swop = true\n").unwrap();
    let config = format!("--config={}", file.display());
    refuses(&[&config, "/m"], &["disable-swop", file.to_str().unwrap()]);
    let runtime = format!("--runtime-dir={}", dir.path().display());
    let missing = dir.path().join("missing");
    let missing = missing.to_str().unwrap();
    refuses(&[&runtime, missing], &[missing, "mkdir"]);
    refuses(&["show", "memifno"], &["memifno", "proc/meminfo"]);
}

#[test]
fn a_directory_that_holds_files_is_not_hidden_without_a_word() {
    require_root();
    let dir = TempDir::new().unwrap();
    let mountpoint = dir.path().join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    fs::write(mountpoint.join("letter"), "precious").unwrap();
    let runtime = format!("--runtime-dir={}", dir.path().display());
    let mountpoint = mountpoint.to_str().unwrap();
    refuses(&[&runtime, mountpoint], &[mountpoint, "nonempty"]);
    assert!(
        !dir.path().join("lxcfs.pid").exists(),
        "left a pidfile behind"
    );
}

#[test]
fn a_start_script_of_c_lxcfs_serves_and_every_obsolete_option_gets_its_line() {
    let lxcfs = Lxcfs::start(&[
        "-f",
        "-l",
        "-s",
        "--enable-cfs",
        "--enable-pidfd",
        "--enable-cgroup",
        "--enable-psi-poll",
        "-o",
        "allow_other,direct_io",
    ]);
    assert!(lxcfs.read("proc/meminfo").starts_with("MemTotal:"));
    let log = lxcfs.log();
    for option in [
        "-f:",
        "--enable-loadavg:",
        "-s:",
        "--enable-cfs:",
        "--enable-pidfd:",
        "--enable-cgroup:",
        "--enable-psi-poll:",
        "-o allow_other,direct_io:",
    ] {
        let lines = log.lines().filter(|line| line.contains(option)).count();
        assert_eq!(lines, 1, "{option} in {log}");
    }
    lxcfs.stop();
}

#[test]
fn the_pidfile_names_the_process_and_goes_with_it() {
    let elsewhere = TempDir::new().unwrap();
    let pidfile = elsewhere.path().join("deep/daemon.pid");
    let lxcfs = Lxcfs::start(&["-p", pidfile.to_str().unwrap()]);
    let text = fs::read_to_string(&pidfile).unwrap();
    assert_eq!(text, format!("{}\n", lxcfs.pid()));
    let mode = fs::metadata(&pidfile).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!lxcfs.runtime_dir().join("lxcfs.pid").exists());
    // Asserts exit status 0 and that the mount is gone.
    lxcfs.stop();
    assert!(!pidfile.exists(), "the pidfile is left behind");
}

#[test]
fn a_second_instance_is_refused_and_the_first_one_keeps_its_pidfile() {
    let first = Lxcfs::start::<&str>(&[]);
    let pidfile = first.runtime_dir().join("lxcfs.pid");
    let before = fs::read_to_string(&pidfile).unwrap();
    let other = TempDir::new().unwrap();
    let mountpoint = other.path().to_str().unwrap();
    let pid = first.pid().to_string();
    refuses(
        &[&runtime(&first), mountpoint],
        &["another lxcfs", &pid, "--runtime-dir"],
    );
    assert_eq!(fs::read_to_string(&pidfile).unwrap(), before);
    // Its own pidfile does not help on the same mountpoint.
    let same = first.mountpoint();
    let own = format!("--runtime-dir={mountpoint}");
    refuses(&[&own, same.to_str().unwrap()], &[same.to_str().unwrap()]);
    assert!(first.read("proc/uptime").contains('.'));
    first.stop();
}

#[test]
fn two_instances_with_their_own_run_time_directories_live_side_by_side() {
    let (first, second) = (Lxcfs::start::<&str>(&[]), Lxcfs::start(&["-u"]));
    let swap = |lxcfs: &Lxcfs| {
        let text = lxcfs.read("proc/swaps");
        text.lines().count()
    };
    assert!(swap(&first) >= 1 && swap(&second) == 1);
    first.stop();
    assert!(
        second
            .read("proc/meminfo")
            .contains("SwapTotal:             0 kB")
    );
    second.stop();
}

/// A daemon that may die in a test, with everything it has started.
struct Mortal {
    child: Child,
    mountpoint: PathBuf,
}

impl Mortal {
    fn start(directory: &Path) -> Self {
        let mountpoint = directory.join("mnt");
        let child = Command::new(lxcfs_binary())
            .arg(format!("--runtime-dir={}", directory.display()))
            .arg(&mountpoint)
            .stdin(Stdio::null())
            .stderr(fs::File::create(directory.join("log")).unwrap())
            .spawn()
            .unwrap();
        let mortal = Self { child, mountpoint };
        eventually("it serves", || mortal.read().is_ok());
        mortal
    }

    fn read(&self) -> std::io::Result<Vec<u8>> {
        fs::read(self.mountpoint.join("proc/meminfo"))
    }

    /// Kills all its processes; the holder is stopped first, or it would start new ones.
    fn kill(&mut self) {
        let holder = self.child.id();
        let pid = Pid::from_raw(holder.cast_signed());
        kill(pid, Signal::SIGSTOP).unwrap();
        let children = format!("/proc/{holder}/task/{holder}/children");
        for worker in fs::read_to_string(children).unwrap().split_whitespace() {
            kill(Pid::from_raw(worker.parse().unwrap()), Signal::SIGKILL).unwrap();
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = kill(
                Pid::from_raw(self.child.id().cast_signed()),
                Signal::SIGTERM,
            );
            let _ = self.child.wait();
        }
        let _ = umount2(&self.mountpoint, MntFlags::MNT_DETACH);
    }
}

#[test]
fn directories_that_container_engines_made_for_missing_files_are_covered() {
    require_root();
    let dir = TempDir::new().unwrap();
    for path in ["proc/meminfo", "proc/stat", "sys/devices/system/cpu"] {
        fs::create_dir_all(dir.path().join("mnt").join(path)).unwrap();
    }
    let mortal = Mortal::start(dir.path());
    assert!(mortal.read().unwrap().starts_with(b"MemTotal"));
}

#[test]
fn a_dead_mount_of_ours_is_replaced_at_start() {
    let _alone = LOSSES.lock();
    require_root();
    let dir = TempDir::new().unwrap();
    let mountpoint = dir.path().join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    let mut first = Mortal::start(dir.path());
    first.kill();
    eventually("the mount is dead", || {
        let error = first.read().err();
        error.and_then(|error| error.raw_os_error()) == Some(libc::ENOTCONN)
    });
    let second = Mortal::start(dir.path());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let ours = mounts
        .lines()
        .filter(|line| line.split(' ').nth(1) == mountpoint.to_str());
    assert_eq!(ours.count(), 1, "stacked: {mounts}");
    drop(second);
    assert!(!mountpoint.join("proc").exists(), "still mounted");
    std::mem::forget(first);
}

#[test]
fn usr2_switches_to_the_hosts_values_and_back() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new("cli-usr2");
    cgroup.limit_memory(64 << 20);
    let shape = Shape {
        files: vec!["proc/meminfo".to_owned()],
        ..Shape::default()
    };
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &shape);
    let total = || {
        container
            .read("/proc/meminfo")
            .lines()
            .next()
            .unwrap()
            .to_owned()
    };
    let own = "MemTotal:          65536 kB";
    assert_eq!(total(), own);
    lxcfs.signal(Signal::SIGUSR2);
    let host = fs::read_to_string("/proc/meminfo").unwrap();
    let host = host.lines().next().unwrap();
    eventually("the host's values", || total() == host);
    // The switch outlives the worker that was told.
    let status = || stdout(&lxcfs_command(&["status", "--json", &runtime(&lxcfs)]));
    eventually("the control socket", || status().contains("worker_pid"));
    let text = status();
    let worker = text.split("\"worker_pid\":").nth(1).unwrap();
    let digits: String = worker.chars().take_while(char::is_ascii_digit).collect();
    kill(Pid::from_raw(digits.parse().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(total(), host);
    lxcfs.signal(Signal::SIGUSR2);
    eventually("the container's values", || total() == own);
    drop(container);
    lxcfs.stop();
}

#[test]
fn show_prints_what_the_container_reads_and_explain_says_why() {
    let lxcfs_daemon = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new("cli-show");
    cgroup.limit_memory(96 << 20);
    let container = Container::start(&cgroup, &lxcfs_daemon.mountpoint(), &Shape::default());
    let pid = format!("--pid={}", container.init_pid());
    for name in ["swaps", "proc/swaps", "/proc/swaps"] {
        let output = lxcfs(&["show", &pid, name]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stdout(&output), container.read("/proc/swaps"));
    }
    let shown = stdout(&lxcfs(&["show", &pid, "cpu/online"]));
    assert_eq!(shown, container.read("/sys/devices/system/cpu/online"));
    let output = lxcfs(&["show", &pid, "meminfo", "--explain"]);
    let text = stdout(&output);
    assert!(output.status.success(), "{}", stderr(&output));
    let line = text.lines().find(|line| line.contains("MemTotal")).unwrap();
    assert!(line.contains("98304 kB"), "{line}");
    let limit = if cgroup.is_v1("memory") {
        "memory.limit_in_bytes"
    } else {
        "memory.max"
    };
    assert!(line.contains(limit), "{line}");
    assert!(text.contains(cgroup.path()), "names the cgroup: {text}");
    refuses(&["show", "--pid=999999999", "meminfo"], &["999999999"]);
    drop(container);
    lxcfs_daemon.stop();
}

#[test]
fn every_file_can_be_shown_and_says_where_its_lines_come_from() {
    let cgroup = TestCgroup::new("cli-explain");
    cgroup.limit_memory(96 << 20);
    cgroup.limit_cpu(50_000, 100_000);
    let shape = Shape {
        files: Vec::new(),
        ..Shape::default()
    };
    let container = Container::start(&cgroup, Path::new("/"), &shape);
    let pid = format!("--pid={}", container.init_pid());
    let mut explained = 0;
    for entry in CATALOGUE {
        let Kind::File(_) = entry.kind else { continue };
        let path = entry.path;
        let shown = lxcfs(&["show", &pid, path]);
        let why = lxcfs(&["show", &pid, path, "--explain"]);
        if !Path::new("/").join(path).exists() {
            // Pressure files of this kernel.
            let said = stderr(&shown);
            assert!(!shown.status.success(), "{path}");
            assert!(said.contains("kernel"), "{path}: {said}");
            continue;
        }
        assert!(shown.status.success(), "{path}: {}", stderr(&shown));
        assert!(why.status.success(), "{path}: {}", stderr(&why));
        let text = stdout(&why);
        assert!(
            text.contains(cgroup.path()),
            "{path} names no cgroup:\n{text}"
        );
        let rule = text
            .lines()
            .find_map(|line| line.strip_prefix("whose view: "));
        assert!(rule.is_some_and(|rule| !rule.is_empty()), "{path}:\n{text}");
        // Below the cgroups and an empty line: each line, its source and its rule.
        let (_, lines) = text.split_once("\n\n").unwrap_or_default();
        assert!(!lines.is_empty(), "{path}: no line is explained:\n{text}");
        for line in lines.lines().filter(|line| !line.is_empty()) {
            assert!(line.contains("; "), "{path}: no source or rule:\n{line}");
        }
        explained += 1;
    }
    assert!(explained >= 18, "only {explained} files");
}

#[test]
fn a_file_that_is_switched_off_is_neither_served_nor_attached() {
    let _alone = LOSSES.lock();
    let daemon = Lxcfs::start(&["--disable", "loadavg,pressure,cpu"]);
    let listed = |path: &str| -> Vec<String> {
        let entries = fs::read_dir(daemon.file(path)).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    for gone in [
        "proc/loadavg",
        "proc/pressure/cpu",
        "sys/devices/system/cpu",
    ] {
        let error = fs::metadata(daemon.file(gone)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{gone}");
    }
    assert!(!listed("proc").contains(&"loadavg".to_owned()));
    assert!(listed("proc").contains(&"uptime".to_owned()));
    assert_eq!(listed("sys/devices/system"), ["node"]);

    let cgroup = TestCgroup::new("cli-disable");
    cgroup.limit_memory(96 << 20);
    let shape = Shape {
        files: Vec::new(),
        ..Shape::default()
    };
    let container = Container::start(&cgroup, &daemon.mountpoint(), &shape);
    let pid = format!("--pid={}", container.init_pid());
    let mount = format!("--mount={}", daemon.mountpoint().display());
    let attached = lxcfs(&["attach", &pid, &mount, "--verbose"]);
    let said = (stdout(&attached), stderr(&attached));
    assert!(attached.status.success(), "{}{}", said.0, said.1);
    let mounts = container.read("/proc/self/mountinfo");
    let has = |path: &str| {
        mounts
            .lines()
            .any(|line| line.contains(&format!(" {path} ")))
    };
    assert!(has("/proc/meminfo") && has("/proc/uptime"), "{mounts}");
    for not in [
        "/proc/loadavg",
        "/proc/pressure/cpu",
        "/sys/devices/system/cpu",
    ] {
        assert!(!has(not), "{mounts}");
    }
    assert!(container.read("/proc/meminfo").contains("  98304 kB"));
    // What is bound from before the switch goes on: it is the host's from then on.
    let swaps = stdout(&lxcfs(&["show", &pid, "--disable=vmstat", "vmstat"]));
    let host = fs::read_to_string("/proc/vmstat").unwrap();
    assert_eq!(swaps.lines().count(), host.lines().count());
    drop(container);
    daemon.stop();
    refuses(
        &["--disable", "loadavgs", "/mnt"],
        &["--disable", "loadavgs", "loadavg, "],
    );
}

#[test]
fn the_running_daemon_answers_status_probe_log_level_and_metrics() {
    let daemon = Lxcfs::start(&["--log-level", "info"]);
    let runtime = runtime(&daemon);
    let mountpoint = daemon.mountpoint();
    let mountpoint = mountpoint.to_str().unwrap();
    eventually("the control socket", || {
        lxcfs(&["status", &runtime]).status.success()
    });
    let status = stdout(&lxcfs(&["status", &runtime]));
    assert!(status.contains(mountpoint), "{status}");
    let probe = lxcfs(&["probe", mountpoint]);
    assert_eq!(stdout(&probe), "ok\n", "{}", stderr(&probe));
    refuses(&["probe", "/proc"], &["/proc/proc/uptime"]);
    let output = lxcfs(&["log-level", "debug", &runtime]);
    assert!(output.status.success(), "{}", stderr(&output));
    eventually("the change is logged", || {
        daemon.log().contains("log level changed")
    });
    let metrics = Command::new("curl")
        .args(["-sS", "--unix-socket"])
        .arg(daemon.runtime_dir().join("lxcfs/control.sock"))
        .arg("http://lxcfs/metrics")
        .output()
        .expect("curl is missing: apt-get install curl");
    let metrics = stdout(&metrics);
    for expected in [
        "lxcfs_build_info{version=",
        "lxcfs_mount_answers ",
        "lxcfs_requests_total{file=\"proc/uptime\",op=\"render\",outcome=\"ok\"}",
        "lxcfs_fallbacks_total{",
        "process_resident_memory_bytes ",
    ] {
        assert!(metrics.contains(expected), "{expected} in {metrics}");
    }
    refuses(
        &["status", "--runtime-dir=/nonexistent"],
        &["no daemon answers"],
    );
    daemon.stop();
}

#[test]
fn doctor_tells_of_the_daemon_and_of_a_container() {
    let _alone = LOSSES.lock();
    let daemon = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new("cli-doctor");
    let container = Container::start(&cgroup, &daemon.mountpoint(), &Shape::default());
    let mount = format!("--mount={}", daemon.mountpoint().display());
    let runtime = runtime(&daemon);
    eventually("the control socket", || {
        lxcfs(&["status", &runtime]).status.success()
    });
    let output = lxcfs(&["doctor", &mount, &runtime]);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}{}", stderr(&output));
    for expected in ["Machine", "cgroups", "+ daemon", "+ mount", "files alive"] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    let row = format!("pid {}", container.init_pid());
    assert!(text.contains(&row), "{row} in {text}");
    let json = stdout(&lxcfs(&["doctor", "--json", &mount, &runtime]));
    assert!(json.contains("\"containers\""), "{json}");
    drop(container);
    daemon.stop();
    let output = lxcfs(&["doctor", &mount, &runtime]);
    assert!(!output.status.success(), "nothing runs any more");
    assert!(stdout(&output).contains("! daemon"), "{}", stdout(&output));
}
