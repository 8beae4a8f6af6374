//! Containers that podman makes with runc, and every way they come to their views: the OCI
//! hook from their first instruction, attaching while they run, healing, detaching.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lxcfs_tests::serve::eventually;
use lxcfs_tests::subject::MarkerFs;
use lxcfs_tests::{Lxcfs, Podman, TestCgroup, lxcfs_binary, stdout_of};

const SERVER: &str = env!("CARGO_BIN_EXE_marker-fs");

/// An image that holds one static program and nothing else, and a directory of hooks.
struct Setup {
    dir: tempfile::TempDir,
    cgroup: TestCgroup,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::TempDir::with_prefix("lxcfs-").expect("temporary directory");
        let cgroup = TestCgroup::new("hook");
        let setup = Self { dir, cgroup };
        for below in ["image/proc", "image/sys", "image/dev", "hooks"] {
            std::fs::create_dir_all(setup.path(below)).expect("image");
        }
        std::fs::copy("/bin/busybox", setup.path("image/busybox"))
            .expect("the static busybox of Debian's busybox-static");
        setup
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// Installs the hook file that `lxcfs hook --print` gives.
    fn install_hook(&self, mountpoint: &Path, more: &[&str]) {
        let mut print = Command::new(lxcfs_binary());
        print
            .args(["hook", "--print", "--mount"])
            .arg(mountpoint)
            .args(more);
        std::fs::write(self.path("hooks/lxcfs.json"), stdout_of(&mut print)).expect("hook file");
    }

    /// Runs a program of the image to its end.
    fn run(&self, options: &[&str], program: &[&str]) -> Output {
        let mut podman = Command::new("podman");
        podman
            .arg("--root")
            .arg(self.path("root"))
            .arg("--runroot")
            .arg(self.path("run"))
            .arg("--tmpdir")
            .arg(self.path("tmp"))
            .arg("--hooks-dir")
            .arg(self.path("hooks"))
            .args(["--runtime", "runc", "--cgroup-manager=cgroupfs"])
            .args(["--events-backend=none", "--storage-driver=vfs"])
            .args(["run", "--rm", "--network=none", "--log-driver=none"])
            .args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"])
            .arg(format!("--cgroup-parent={}", self.cgroup.path()))
            .args(options)
            .arg("--rootfs")
            .arg(self.path("image"))
            .args(program);
        podman.output().expect("podman must be installed")
    }
}

fn text(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const READ: [&str; 6] = [
    "/busybox",
    "cat",
    "/proc/meminfo",
    "/proc/vmstat",
    "/proc/pressure/cpu",
    "/sys/devices/system/cpu/online",
];

#[test]
fn the_hook_attaches_before_the_first_instruction_of_an_image_without_a_shell() {
    let setup = Setup::new();
    let server = MarkerFs::start(SERVER, &setup.path("fs"), "one").unwrap();
    setup.install_hook(&server.mountpoint, &[]);
    // vmstat and pressure are files that runc refuses in a spec.
    let seen = text(&setup.run(&["--annotation=lxcfs/inject=true"], &READ));
    assert_eq!(
        seen,
        "one /proc/meminfo\none /proc/vmstat\none /proc/pressure/cpu\n\
         one /sys/devices/system/cpu/online\n"
    );
}

#[test]
fn files_are_chosen_by_annotation_and_nobody_is_served_unasked() {
    let setup = Setup::new();
    let server = MarkerFs::start(SERVER, &setup.path("fs"), "one").unwrap();
    setup.install_hook(&server.mountpoint, &[]);
    let program = ["/busybox", "head", "-n1", "/proc/meminfo", "/proc/uptime"];
    let some = text(&setup.run(
        &[
            "--annotation=lxcfs/inject=true",
            "--annotation=lxcfs/files=uptime",
        ],
        &program,
    ));
    assert!(
        some.contains("MemTotal:") && some.contains("one /proc/uptime"),
        "{some}"
    );
    let none = text(&setup.run(&[], &program));
    assert!(!none.contains("one "), "{none}");
    setup.install_hook(&server.mountpoint, &["--all"]);
    let all = text(&setup.run(&[], &program));
    assert!(all.contains("one /proc/meminfo"), "{all}");
    let refused = text(&setup.run(&["--annotation=lxcfs/inject=false"], &program));
    assert!(!refused.contains("one "), "{refused}");
}

#[test]
fn a_container_starts_without_the_daemon_and_with_a_dead_one() {
    let setup = Setup::new();
    setup.install_hook(&setup.path("nothing"), &["--all"]);
    let program = ["/busybox", "head", "-n1", "/proc/meminfo"];
    assert!(text(&setup.run(&[], &program)).starts_with("MemTotal:"));
    let mut server = MarkerFs::start(SERVER, &setup.path("fs"), "one").unwrap();
    setup.install_hook(&server.mountpoint, &["--all"]);
    server.kill().unwrap();
    assert!(text(&setup.run(&[], &program)).starts_with("MemTotal:"));
}

#[test]
fn a_container_starts_beside_a_daemon_that_hangs() {
    let setup = Setup::new();
    let server = MarkerFs::start(SERVER, &setup.path("fs"), "one").unwrap();
    setup.install_hook(&server.mountpoint, &["--all"]);
    server.suspend().unwrap();
    // A hook that outlasts the limit in its file would cost the container its start.
    let output = setup.run(&[], &["/busybox", "head", "-n1", "/proc/meminfo"]);
    assert!(text(&output).starts_with("MemTotal:"));
}

fn lxcfs(arguments: &[&str], mountpoint: &Path, pid: u32) -> String {
    let mut command = Command::new(lxcfs_binary());
    command
        .args(arguments)
        .arg("--mount")
        .arg(mountpoint)
        .args(["--pid", &pid.to_string()]);
    stdout_of(&mut command)
}

#[test]
fn a_running_container_is_attached_healed_and_given_back() {
    let setup = Setup::new();
    let mut server = MarkerFs::start(SERVER, &setup.path("fs"), "one").unwrap();
    let podman = Podman::start("runc", &[]);
    let mountinfo = format!("/proc/{}/mountinfo", podman.init_pid());
    let before = std::fs::read_to_string(&mountinfo).unwrap();
    let pid = podman.init_pid();
    assert!(podman.read("/proc/meminfo").starts_with("MemTotal:"));

    lxcfs(&["attach"], &server.mountpoint, pid);
    assert_eq!(podman.read("/proc/meminfo"), "one /proc/meminfo\n");
    assert_eq!(podman.read("/proc/pressure/io"), "one /proc/pressure/io\n");
    let attached = std::fs::read_to_string(&mountinfo).unwrap().lines().count();

    for name in ["two", "three", "four"] {
        server.kill().unwrap();
        drop(server);
        let dead = podman.run(&["cat", "/proc/meminfo"]);
        let error = String::from_utf8_lossy(&dead.stderr).into_owned();
        assert!(
            error.contains("Transport endpoint is not connected"),
            "{error}"
        );
        server = MarkerFs::start(SERVER, &setup.path("fs"), name).unwrap();
        lxcfs(&["heal"], &server.mountpoint, pid);
        assert_eq!(
            podman.read("/proc/meminfo"),
            format!("{name} /proc/meminfo\n")
        );
        let now = std::fs::read_to_string(&mountinfo).unwrap();
        assert_eq!(now.lines().count(), attached, "{now}");
    }

    lxcfs(&["detach"], &server.mountpoint, pid);
    assert!(podman.read("/proc/meminfo").starts_with("MemTotal:"));
    assert_eq!(std::fs::read_to_string(&mountinfo).unwrap(), before);
}

#[test]
fn mounts_of_the_peers_docker_lines_are_healed_where_they_are() {
    let setup = Setup::new();
    let mut server = MarkerFs::start(SERVER, &setup.path("fs"), "one").unwrap();
    // `-v /var/lib/lxcfs/proc/meminfo:/proc/meminfo:rw` and the helper volume beside it.
    let volume = |from: &str, to: &str| {
        format!(
            "--volume={}:{to}:rw",
            server.mountpoint.join(from).display()
        )
    };
    let podman = Podman::start(
        "runc",
        &[
            &volume("proc/meminfo", "/proc/meminfo"),
            &volume("proc/stat", "/proc/stat"),
            &volume(
                "sys/devices/system/cpu/online",
                "/sys/devices/system/cpu/online",
            ),
        ],
    );
    let mountinfo = format!("/proc/{}/mountinfo", podman.init_pid());
    let before = std::fs::read_to_string(&mountinfo).unwrap().lines().count();
    assert_eq!(podman.read("/proc/stat"), "one /proc/stat\n");
    server.kill().unwrap();
    drop(server);
    let server = MarkerFs::start(SERVER, &setup.path("fs"), "two").unwrap();
    lxcfs(&["heal"], &server.mountpoint, podman.init_pid());
    for file in [
        "/proc/meminfo",
        "/proc/stat",
        "/sys/devices/system/cpu/online",
    ] {
        assert_eq!(podman.read(file), format!("two {file}\n"));
    }
    let after = std::fs::read_to_string(&mountinfo).unwrap().lines().count();
    assert_eq!(after, before);
}

#[test]
fn an_attached_container_sees_its_own_limit_from_the_daemon() {
    let daemon = Lxcfs::start::<&str>(&["--no-heal"]);
    let podman = Podman::start("runc", &["--memory=128m"]);
    assert!(
        !podman
            .read("/proc/meminfo")
            .contains("MemTotal:         131072 kB")
    );
    lxcfs(&["attach"], &daemon.mountpoint(), podman.init_pid());
    let meminfo = podman.stdout(&["busybox", "cat", "/proc/meminfo"]);
    assert!(meminfo.contains("MemTotal:         131072 kB"), "{meminfo}");
    lxcfs(&["detach"], &daemon.mountpoint(), podman.init_pid());
    assert!(
        !podman
            .read("/proc/meminfo")
            .contains("MemTotal:         131072 kB")
    );
}

#[test]
fn a_new_daemon_heals_what_a_lost_one_left_and_counts_it() {
    let lost = Lxcfs::start::<&str>(&[]);
    let podman = Podman::start("runc", &["--memory=128m"]);
    lxcfs(&["attach"], &lost.mountpoint(), podman.init_pid());
    lost.stop();
    assert!(!podman.run(&["cat", "/proc/meminfo"]).status.success());

    let daemon = Lxcfs::start::<&str>(&[]);
    let socket = daemon.runtime_dir().join("lxcfs/control.sock");
    let metrics = || {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--unix-socket"]).arg(&socket);
        let output = curl.arg("http://lxcfs/metrics").output();
        let output = output.expect("curl is missing: apt-get install curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    eventually("the start's look at all containers", || {
        metrics().contains("\nlxcfs_stale_mounts 0\n")
    });
    let healed = metrics();
    let healed = healed
        .lines()
        .find_map(|line| line.strip_prefix("lxcfs_heals_total{outcome=\"replaced"))
        .and_then(|rest| rest.rsplit(' ').next()?.parse::<u32>().ok());
    assert!(healed > Some(0), "{}", metrics());
    let meminfo = podman.read("/proc/meminfo");
    assert!(meminfo.contains("MemTotal:         131072 kB"), "{meminfo}");
}
