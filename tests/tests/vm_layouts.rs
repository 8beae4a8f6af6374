//! Containers as others build them: Debian's LXC with its unchanged lxcfs hook, user namespaces,
//! and a container inside a container.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "vm-tests")]
// vm: 6.12/v2 6.1/v1

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lxcfs_tests::cgroup::{Layout, layout};
use lxcfs_tests::container::Shape;
use lxcfs_tests::{Container, Lxcfs, TestCgroup, stdout_of};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const LIMIT_KIB: u64 = 256 << 10;
/// Where Debian's hook looks.
const MOUNTPOINT: &str = "/var/lib/lxcfs";

/// `lxcfs /var/lib/lxcfs`, as Debian's unit starts it.
struct Installed(Child);

impl Installed {
    fn start() -> Self {
        fs::create_dir_all(MOUNTPOINT).unwrap();
        let child = Command::new(lxcfs_tests::lxcfs_binary())
            .arg(MOUNTPOINT)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut installed = Self(child);
        wait_for("lxcfs serves", || {
            assert_eq!(installed.0.try_wait().unwrap(), None, "lxcfs ended");
            Path::new(MOUNTPOINT).join("proc/meminfo").exists()
        });
        installed
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let _ = self.0.wait();
        let _ = umount2(MOUNTPOINT, MntFlags::MNT_DETACH);
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "waited a minute in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// An LXC container over this machine's /usr, configured as `lxc-create` would.
struct Lxc {
    directory: TempDir,
    name: String,
}

impl Lxc {
    fn start(name: &str, more: &str) -> Self {
        let directory = TempDir::with_prefix("lxcfs-lxc-").unwrap();
        let root = directory.path().join("rootfs");
        for place in [
            "usr",
            "etc",
            "proc",
            "sys",
            "dev",
            "tmp",
            "run",
            "root",
            "var/lib/lxcfs",
        ] {
            fs::create_dir_all(root.join(place)).unwrap();
        }
        for link in ["bin", "lib", "lib64", "sbin"] {
            std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link)).unwrap();
        }
        let mut config = format!(
            "lxc.include = /usr/share/lxc/config/common.conf\n\
             lxc.uts.name = {name}\n\
             lxc.rootfs.path = dir:{}\n\
             lxc.mount.entry = /usr usr none ro,rbind 0 0\n\
             lxc.mount.entry = /etc etc none ro,bind 0 0\n\
             lxc.net.0.type = empty\n\
             lxc.init.cmd = /usr/bin/sleep infinity\n\
             lxc.apparmor.profile = unconfined\n",
            root.display(),
        );
        config += if layout() == Layout::V2 {
            "lxc.cgroup2.memory.max = 256M\nlxc.cgroup2.cpu.max = 50000 100000\n"
        } else {
            "lxc.cgroup.memory.limit_in_bytes = 256M\nlxc.cgroup.cpu.cfs_period_us = 100000\n\
             lxc.cgroup.cpu.cfs_quota_us = 50000\n"
        };
        let _ = writeln!(config, "{more}");
        let file = directory.path().join("config");
        fs::write(&file, config).unwrap();
        // A user namespace's root owns its root file system and must get there.
        let everyone = PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path(), everyone).unwrap();
        if more.contains("lxc.idmap") {
            stdout_of(
                Command::new("chown")
                    .args(["-R", "100000:100000"])
                    .arg(&root),
            );
        }
        let lxc = Self {
            directory,
            name: name.to_owned(),
        };
        let output = Command::new("lxc-start")
            .args(["--name", name, "--rcfile"])
            .arg(&file)
            .args(["--logpriority", "INFO", "--logfile"])
            .arg(lxc.directory.path().join("log"))
            .stdin(Stdio::null())
            .output()
            .expect("lxc-start: the root image has it");
        assert!(output.status.success(), "{}", lxc.failure(&output));
        lxc
    }

    fn failure(&self, output: &Output) -> String {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        format!(
            "{}\n{}\n{log}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
    }

    fn stdout(&self, arguments: &[&str]) -> String {
        let output = Command::new("lxc-attach")
            .args(["--name", &self.name, "--"])
            .args(arguments)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            self.failure(&output)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Lxc {
    fn drop(&mut self) {
        let _ = Command::new("lxc-stop")
            .args(["--kill", "--name", &self.name])
            .status();
    }
}

/// The first number in the line of `text` that starts with `head`.
fn number(text: &str, head: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(head));
    let line = line.unwrap_or_else(|| panic!("no line {head:?} in:\n{text}"));
    let mut words = line[head.len()..].split_whitespace();
    words.next().unwrap().parse().unwrap()
}

fn check_lxc(lxc: &Lxc) {
    assert_eq!(number(&lxc.stdout(&["free", "-k"]), "Mem:"), LIMIT_KIB);
    assert_eq!(lxc.stdout(&["getconf", "_NPROCESSORS_ONLN"]).trim(), "1");
    let mounts = lxc.stdout(&["cat", "/proc/self/mounts"]);
    for file in [
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/loadavg",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
        "/sys/devices/system/cpu",
        "/var/lib/lxcfs",
    ] {
        let bound = format!(" {file} fuse.lxcfs ");
        assert!(mounts.contains(&bound), "{file} is not bound:\n{mounts}");
    }
    let age: f64 = lxc
        .stdout(&["cat", "/proc/uptime"])
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let host = fs::read_to_string("/proc/uptime").unwrap();
    let host: f64 = host.split(' ').next().unwrap().parse().unwrap();
    assert!(age < host, "the container is younger than the machine");
    assert!(lxc.stdout(&["uptime"]).contains("load average"));
}

#[test]
fn debians_lxc_hook_binds_our_files() {
    let hook = fs::read_to_string("/usr/share/lxc/config/common.conf.d/00-lxcfs.conf").unwrap();
    assert!(hook.contains("/usr/share/lxcfs/lxc.mount.hook"), "{hook}");
    let _installed = Installed::start();
    let lxc = Lxc::start("plain", "");
    check_lxc(&lxc);
}

#[test]
fn debians_lxc_hook_binds_our_files_in_a_user_namespace() {
    let _installed = Installed::start();
    let lxc = Lxc::start(
        "unprivileged",
        "lxc.include = /usr/share/lxc/config/userns.conf\n\
         lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 100000 65536",
    );
    let map = lxc.stdout(&["cat", "/proc/self/uid_map"]);
    assert!(map.split_whitespace().eq(["0", "100000", "65536"]), "{map}");
    check_lxc(&lxc);
}

#[test]
fn a_user_namespace_sees_the_container() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new("userns");
    cgroup.limit_memory(LIMIT_KIB << 10);
    cgroup.limit_cpu(50_000, 100_000);
    let shape = Shape {
        user_namespace: true,
        ..Shape::default()
    };
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &shape);
    let own = stdout_of(Command::new("readlink").arg("/proc/self/ns/user"));
    assert_ne!(container.stdout(&["readlink", "/proc/self/ns/user"]), own);
    assert_eq!(
        number(&container.stdout(&["free", "-k"]), "Mem:"),
        LIMIT_KIB
    );
    assert_eq!(
        container.stdout(&["getconf", "_NPROCESSORS_ONLN"]).trim(),
        "1"
    );
    // Its own pids: the newest one is small.
    let load = container.read("/proc/loadavg");
    let newest: u64 = load.split_whitespace().last().unwrap().parse().unwrap();
    assert!(newest < 1000, "a pid of the container: {load}");
    lxcfs.stop();
}

/// Both see themselves; the inner one also what the outer one's limits leave it.
fn nested(outer_kib: u64, inner_kib: u64) {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let around = TestCgroup::new("nested");
    around.limit_memory(outer_kib << 10);
    around.limit_cpu(100_000, 100_000);
    // v2 has no processes beside children: the outer container lives in a leaf, as under systemd.
    let beside = around.child("init.scope");
    let inside = around.child("inner");
    inside.limit_memory(inner_kib << 10);
    if layout() == Layout::V2 {
        // v1 refuses an inner quota above the outer one.
        inside.limit_cpu(200_000, 100_000);
    }
    let mountpoint = lxcfs.mountpoint();
    let outer = Container::start(&beside, &mountpoint, &Shape::default());
    // Started by the outer one, from its namespaces, with the files it sees itself.
    let script: String = inside
        .dirs()
        .iter()
        .map(|dir| format!("echo $$ >'{}/cgroup.procs' || exit 97; ", dir.display()))
        .collect();
    let script = format!(
        "{script}exec nsenter --target {} --pid --mount --uts --ipc --cgroup -- \
         unshare --pid --mount --uts --ipc --cgroup --fork --mount-proc -- sh -c \
         'for file in meminfo cpuinfo stat uptime loadavg swaps; do \
            mount --bind {}/proc/$file /proc/$file || exit 98; done; \
          mount --bind {1}/sys/devices/system/cpu /sys/devices/system/cpu || exit 98; \
          free -k; getconf _NPROCESSORS_ONLN; readlink /proc/self/ns/pid; cat /proc/loadavg; cat /proc/uptime'",
        outer.init_pid(),
        mountpoint.display(),
    );
    // The inner one starts later than the outer one by more than uptime's resolution.
    std::thread::sleep(Duration::from_millis(500));
    let text = stdout_of(
        Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::null()),
    );
    assert_eq!(number(&text, "Mem:"), outer_kib.min(inner_kib), "{text}");
    let rest: Vec<&str> = text.lines().skip(3).collect();
    assert_eq!(rest[0], "1", "the outer quota is tighter: {text}");
    let pid_namespace = outer.stdout(&["readlink", "/proc/self/ns/pid"]);
    assert_ne!(rest[1], pid_namespace.trim());
    let newest: u64 = rest[2].split_whitespace().last().unwrap().parse().unwrap();
    assert!(newest < 100, "a pid of the inner container: {text}");
    let age = |text: &str| text.split(' ').next().unwrap().parse::<f64>().unwrap();
    let outer_age = age(&outer.read("/proc/uptime"));
    assert!(
        age(rest[3]) + 0.4 < outer_age,
        "{text} in a container of {outer_age} s"
    );
    // The outer one sees its own limit, whatever the inner one's is.
    assert_eq!(number(&outer.stdout(&["free", "-k"]), "Mem:"), outer_kib);
    lxcfs.stop();
}

#[test]
fn an_inner_container_sees_its_own_tighter_limit() {
    nested(LIMIT_KIB, LIMIT_KIB / 2);
}

#[test]
fn an_inner_container_sees_the_outer_ones_tighter_limit() {
    nested(LIMIT_KIB, LIMIT_KIB * 2);
}
