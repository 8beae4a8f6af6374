//! What others run and wrote for C lxcfs, to the letter: systemd units, the start script of their
//! DaemonSets, `docker run -v` lines, the script that mounts again after a restart.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "vm-tests")]
// vm: 6.12/v2 systemd

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};

use lxcfs_tests::serve::eventually;
use lxcfs_tests::{Podman, TestCgroup, lxcfs_binary, stdout_of};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const UNIT_FILE: &str = "/usr/lib/systemd/system/lxcfs.service";
/// The binary where the units look for it, in place of Debian's own.
struct Installed;

impl Installed {
    fn new() -> Self {
        let none: Option<&str> = None;
        let flags = MsFlags::MS_BIND;
        mount(Some(lxcfs_binary()), "/usr/bin/lxcfs", none, flags, none).unwrap();
        Self
    }

    /// A unit as its users install it.
    fn unit(&self, text: &str) -> Unit {
        systemctl(&["unmask", "lxcfs"]);
        let before = fs::read_to_string(UNIT_FILE).unwrap();
        fs::write(UNIT_FILE, text).unwrap();
        systemctl(&["daemon-reload"]);
        Unit(before)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = umount2("/usr/bin/lxcfs", MntFlags::MNT_DETACH);
    }
}

struct Unit(String);

impl Drop for Unit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut journal = Command::new("journalctl");
            let _ = journal.args(["--no-pager", "-u", "lxcfs"]).status();
        }
        let _ = Command::new("systemctl").args(["stop", "lxcfs"]).status();
        let _ = fs::write(UNIT_FILE, &self.0);
        let _ = Command::new("systemctl").arg("daemon-reload").status();
    }
}

fn systemctl(arguments: &[&str]) -> String {
    stdout_of(Command::new("systemctl").args(arguments))
}

fn main_pid() -> i32 {
    let pid = systemctl(&["show", "--property=MainPID", "--value", "lxcfs"]);
    pid.trim().parse().unwrap()
}

fn serves(mountpoint: &str) -> bool {
    fs::read_to_string(Path::new(mountpoint).join("proc/meminfo")).is_ok()
}

fn is_mounted(mountpoint: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    places.any(|place| place == mountpoint)
}

fn script(path: &str, text: &str) {
    fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

fn mem_total(podman: &Podman) -> String {
    let meminfo = podman.read("/proc/meminfo");
    meminfo.lines().next().unwrap().to_owned()
}

/// `docker run` lines, without the image and the program.
const RUN_AT_VAR_LIB_LXCFS: &str = "-m 256m --memory-swap 256m \
    -v /var/lib/lxcfs/proc/cpuinfo:/proc/cpuinfo:rw \
    -v /var/lib/lxcfs/proc/diskstats:/proc/diskstats:rw \
    -v /var/lib/lxcfs/proc/meminfo:/proc/meminfo:rw \
    -v /var/lib/lxcfs/proc/stat:/proc/stat:rw \
    -v /var/lib/lxcfs/proc/loadavg:/proc/loadavg:rw \
    -v /var/lib/lxcfs/proc/swaps:/proc/swaps:rw \
    -v /var/lib/lxcfs/proc/uptime:/proc/uptime:rw \
    -v /var/lib/lxcfs/proc/slabinfo:/proc/slabinfo:rw";
const RUN_WITH_THE_PARENT: &str = "-m 128m --cpu-period 100000 --cpu-quota 100000 \
    -v /var/lib/lxc/lxcfs/proc/cpuinfo:/proc/cpuinfo:rw \
    -v /var/lib/lxc/lxcfs/proc/diskstats:/proc/diskstats:rw \
    -v /var/lib/lxc/lxcfs/proc/meminfo:/proc/meminfo:rw \
    -v /var/lib/lxc/lxcfs/proc/stat:/proc/stat:rw \
    -v /var/lib/lxc/lxcfs/proc/swaps:/proc/swaps:rw \
    -v /var/lib/lxc/lxcfs/proc/loadavg:/proc/loadavg:rw \
    -v /var/lib/lxc/lxcfs/proc/uptime:/proc/uptime:rw \
    -v /var/lib/lxc/lxcfs/sys/devices/system/cpu/online:/sys/devices/system/cpu/online:rw \
    -v /var/lib/lxc:/var/lib/lxc:rshared";
const RUN_WITH_THE_PARENT_SHARED: &str = "-m 128m -v /var/lib/lxc/:/var/lib/lxc/:shared \
    -v /var/lib/lxc/lxcfs/proc/uptime:/proc/uptime \
    -v /var/lib/lxc/lxcfs/proc/swaps:/proc/swaps \
    -v /var/lib/lxc/lxcfs/proc/stat:/proc/stat \
    -v /var/lib/lxc/lxcfs/proc/diskstats:/proc/diskstats \
    -v /var/lib/lxc/lxcfs/proc/meminfo:/proc/meminfo \
    -v /var/lib/lxc/lxcfs/proc/cpuinfo:/proc/cpuinfo";

fn run(runtime: &str, line: &str) -> Podman {
    Podman::start(runtime, &line.split_whitespace().collect::<Vec<_>>())
}

#[test]
fn a_plain_unit_serves_the_docker_lines_and_returns_after_a_crash() {
    let installed = Installed::new();
    let _unit = installed.unit(
        "[Unit]\nDescription=lxcfs\n\n[Service]\nExecStart=/usr/bin/lxcfs -f /var/lib/lxcfs\n\
         Restart=on-failure\n#ExecReload=/bin/kill -s SIGHUP $MAINPID\n\n\
         [Install]\nWantedBy=multi-user.target\n",
    );
    fs::create_dir_all("/var/lib/lxcfs").unwrap();
    systemctl(&["start", "lxcfs"]);
    eventually("the unit serves", || serves("/var/lib/lxcfs"));
    for runtime in ["runc", "crun"] {
        let podman = run(runtime, RUN_AT_VAR_LIB_LXCFS);
        assert_eq!(mem_total(&podman), "MemTotal:         262144 kB");
        let swaps = podman.read("/proc/swaps");
        assert_eq!(swaps.lines().count(), 1, "no swap beside memory: {swaps}");
        assert!(
            podman
                .read("/proc/slabinfo")
                .starts_with("slabinfo - version")
        );
        for file in ["cpuinfo", "diskstats", "loadavg", "stat", "uptime"] {
            podman.run(&["cat", &format!("/proc/{file}")]);
        }
    }
    let podman = run("runc", RUN_AT_VAR_LIB_LXCFS);
    let first = main_pid();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    eventually("the unit serves again", || {
        main_pid() != first && main_pid() != 0 && serves("/var/lib/lxcfs")
    });
    eventually("the container reads again", || {
        podman.run(&["cat", "/proc/meminfo"]).status.success()
    });
    assert_eq!(mem_total(&podman), "MemTotal:         262144 kB");
    systemctl(&["stop", "lxcfs"]);
    assert!(!is_mounted("/var/lib/lxcfs"));
    let result = systemctl(&["show", "--property=Result", "--value", "lxcfs"]);
    assert_eq!(result, "success\n");
}

#[test]
fn a_unit_that_mounts_again_by_a_script_keeps_containers_reading() {
    let installed = Installed::new();
    // The script asks docker; podman answers the same words.
    fs::create_dir_all("/var/lib/lxc/lxcfs").unwrap();
    script(
        "/usr/local/bin/remount_lxcfs.sh",
        r#"#!/bin/sh

LXCFS="/var/lib/lxc/lxcfs"

containers=$(docker ps --format {{.Names}}|grep -v "k8s_POD")
for c in $containers;do
	echo "Remounting lxcfs for $c"
	PID=$(docker inspect $c --format '{{.State.Pid}}')
	for file in meminfo cpuinfo stat uptime swaps diskstats;do
                nsenter --target ${PID} --mount test -e $LXCFS/proc/$file
                [ $? -eq 0 ] || continue 
		nsenter --target ${PID} --mount -- mount -B "$LXCFS/proc/$file" "/proc/$file"
	done
done
"#,
    );
    let _unit = installed.unit(
        "[Unit]\nDescription=FUSE filesystem for LXC\nConditionVirtualization=!container\n\
         Before=lxc.service\nDocumentation=man:lxcfs(1)\n\n[Service]\n\
         ExecStart=/usr/bin/lxcfs /var/lib/lxc/lxcfs/\nKillMode=process\nRestart=always\n\
         #ExecStopPost=-/bin/fusermount -u /var/lib/lxc/lxcfs\nDelegate=yes\n\
         ExecStartPost=/usr/local/bin/remount_lxcfs.sh\n\n[Install]\nWantedBy=multi-user.target\n",
    );
    systemctl(&["restart", "lxcfs"]);
    systemctl(&["enable", "lxcfs"]);
    eventually("the unit serves", || serves("/var/lib/lxc/lxcfs"));
    let podman = run("runc", RUN_WITH_THE_PARENT_SHARED);
    assert_eq!(mem_total(&podman), "MemTotal:         131072 kB");
    let pid = podman.init_pid();
    script(
        "/usr/local/bin/docker",
        &format!("#!/bin/sh\ncase $1 in ps) echo c ;; inspect) echo {pid} ;; esac\n"),
    );
    for crash in [false, true] {
        let before = main_pid();
        if crash {
            kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
        } else {
            systemctl(&["restart", "lxcfs"]);
        }
        eventually("the unit serves again", || {
            let state = systemctl(&["show", "--property=ActiveState", "--value", "lxcfs"]);
            main_pid() != before && state == "active\n" && serves("/var/lib/lxc/lxcfs")
        });
        eventually("the container reads again", || {
            podman.run(&["cat", "/proc/meminfo"]).status.success()
        });
        assert_eq!(mem_total(&podman), "MemTotal:         131072 kB");
        assert_eq!(podman.run(&["uptime"]).status.code(), Some(0));
    }
    drop(podman);
    systemctl(&["stop", "lxcfs"]);
    assert!(!is_mounted("/var/lib/lxc/lxcfs"));
    systemctl(&["disable", "lxcfs"]);
}

/// A start script of DaemonSets, run as their container does: privileged, in the host's PID
/// namespace, with a mount namespace and a cgroup of its own.
struct StartScript {
    child: Child,
    cgroup: Option<TestCgroup>,
}

impl StartScript {
    fn run(place: &str, options: &str) -> Self {
        fs::create_dir_all("/lxcfs").unwrap();
        fs::copy(lxcfs_binary(), "/lxcfs/lxcfs").unwrap();
        for library in ["liblxcfs.so", "liblxcfs.la"] {
            fs::write(Path::new("/lxcfs").join(library), "").unwrap();
        }
        let escaped = place.replace('/', "\\/");
        script(
            "/start.sh",
            &format!(
                r#"#!/bin/bash

# Cleanup
nsenter -m/proc/1/ns/mnt fusermount -u {place} 2> /dev/null || true
nsenter -m/proc/1/ns/mnt [ -L /etc/mtab ] || \
        sed -i "/^lxcfs {escaped} fuse.lxcfs/d" /etc/mtab

# Prepare
mkdir -p /usr/local/lib/lxcfs {place}

# Update lxcfs
cp -f /lxcfs/lxcfs /usr/local/bin/lxcfs
cp -f /lxcfs/liblxcfs.so /usr/local/lib/lxcfs/liblxcfs.so
cp -f /lxcfs/liblxcfs.la /usr/local/lib/lxcfs/liblxcfs.la


# Mount
exec nsenter -m/proc/1/ns/mnt /usr/local/bin/lxcfs {place}/{options}
"#
            ),
        );
        let mut start = Command::new("unshare");
        start.args(["--mount", "--propagation=slave", "/start.sh"]);
        let started = Self {
            child: start.spawn().unwrap(),
            cgroup: Some(TestCgroup::new("daemonset")),
        };
        started.cgroup.as_ref().unwrap().add(started.child.id());
        eventually("the start script serves", || serves(place));
        started
    }

    /// Ends it as kubelet does; whether it ended well.
    fn stop(mut self) -> bool {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().success()
    }

    /// Kills all of it, as a runtime does with a container.
    fn crash(mut self) {
        drop(self.cgroup.take());
        self.child.wait().unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for StartScript {
    fn drop(&mut self) {
        let _ = kill(self.pid(), Signal::SIGTERM);
        let _ = self.child.wait();
        let _ = fs::remove_file("/usr/local/bin/lxcfs");
    }
}

#[test]
fn the_start_scripts_of_daemonsets_serve_and_leave_nothing() {
    for (place, options, line, total) in [
        (
            "/var/lib/lxcfs",
            " --enable-cfs -l",
            RUN_AT_VAR_LIB_LXCFS,
            "MemTotal:         262144 kB",
        ),
        (
            "/var/lib/lxc/lxcfs",
            "",
            RUN_WITH_THE_PARENT,
            "MemTotal:         131072 kB",
        ),
    ] {
        let started = StartScript::run(place, options);
        let podman = run("runc", line);
        assert_eq!(mem_total(&podman), total);
        drop(podman);
        // Killed, it leaves a dead mount, which its next start clears away.
        started.crash();
        let started = StartScript::run(place, options);
        let podman = run("crun", line);
        assert_eq!(mem_total(&podman), total);
        drop(podman);
        assert!(started.stop(), "SIGTERM");
        assert!(!is_mounted(place), "{place} is left behind");
    }
}
