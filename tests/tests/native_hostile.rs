//! One container does at once everything that a container can do to lxcfs; another container's
//! reads all succeed with its own values, attaching goes on, and the daemon does not grow.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lxcfs_tests::container::Shape;
use lxcfs_tests::serve::{Status, eventually};
use lxcfs_tests::steady::Steady;
use lxcfs_tests::{Container, Lxcfs, TestCgroup, lxcfs_binary};

const VICTIM: u64 = 64 << 20;
/// What the worker may grow by while it is attacked. It keeps bounded texts of open files, and
/// a bounded table of containers.
const GROWTH_KIB: u64 = 8 << 10;
/// Descriptors that each of the processes that hoard keeps.
const HOARD: u32 = 3000;

/// What the container does, each in a loop that counts its rounds in a file, until told to stop.
const ATTACKS: &[(&str, &str)] = &[
    // Mounts and links of its own over the files that attaching looks for.
    (
        "covers",
        "mount --bind /dev/null /proc/meminfo && mount -t tmpfs covers /proc/driver && \
         ln -s /proc/1/ns /proc/driver/meminfo; umount /proc/driver /proc/meminfo",
    ),
    // A /proc made of links, in a mount namespace that attaching is led into, too.
    (
        "links",
        "unshare --mount bash -c 'mount -t tmpfs links /proc && ln -s /etc/passwd /proc/meminfo \
         && ln -s / /proc/self && sleep 0.05'",
    ),
    (
        "namespaces",
        "unshare --user --map-root-user --mount cat /proc/uptime",
    ),
    (
        "mounts",
        "mkdir -p $D/m && mount -t tmpfs flood $D/m && for i in $(seq 60); do \
         mkdir $D/m/$i && mount -t tmpfs flood $D/m/$i; done; umount -l $D/m",
    ),
    // Processes that end in the middle of a read: their numbers come round again.
    (
        "numbers",
        "for i in $(seq 50); do cat /proc/stat & done; sleep 0.02; kill -9 $(jobs -p); wait",
    ),
    (
        "reads",
        "cat /proc/cpuinfo /proc/diskstats /proc/loadavg /proc/meminfo /proc/stat /proc/swaps \
         /proc/uptime /proc/vmstat /sys/devices/system/cpu/online",
    ),
    ("small", "dd if=/proc/stat bs=1"),
    // Open files by the thousand, each with a text that was begun.
    (
        "hoards",
        "bash -c 'for i in $(seq $HOARD); do exec {f}</proc/stat; read -r -n1 -u $f; done'",
    ),
    (
        "walks",
        "find /proc/pressure /sys/devices/system/cpu -maxdepth 1",
    ),
];
/// Loops of each of these at a time.
const TIMES: &[(&str, u32)] = &[("reads", 8), ("hoards", 3), ("numbers", 2)];

fn script(directory: &Path) -> String {
    let mut text = format!(
        "export D='{}' HOARD={HOARD}; ulimit -n $(ulimit -Hn); cd $D\n",
        directory.display()
    );
    for (name, attack) in ATTACKS {
        let times = TIMES
            .iter()
            .find(|(known, _)| known == name)
            .map_or(1, |(_, times)| *times);
        for number in 0..times {
            text += &format!(
                "(n=0; while [ ! -e stop ]; do {{ {attack}; }} >/dev/null 2>&1; \
                 n=$((n+1)); echo $n >{name}.{number}; done) &\n"
            );
        }
    }
    text + "wait"
}

/// Rounds that every attack has made so far; the smallest.
fn rounds(directory: &Path) -> u64 {
    let of = |name: &str| {
        let text = fs::read_to_string(directory.join(format!("{name}.0"))).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    ATTACKS.iter().map(|(name, _)| of(name)).min().unwrap_or(0)
}

/// Tells the loops to end, also when the test fails.
struct Stop(PathBuf);

impl Drop for Stop {
    fn drop(&mut self) {
        let _room = fs::write(self.0.join("stop"), "");
    }
}

/// Memory of a worker that is its own: what it shares with the holder is of fixed size.
fn own_kib(pid: u64) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse().unwrap()
}

/// The host's mounts in places that attaching knows, or of the file system at `mountpoint`.
fn host_mounts(mountpoint: &Path) -> Vec<String> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let word = |line: &str, at: usize| line.split(' ').nth(at).unwrap_or_default().to_owned();
    let place = |line: &&str| word(line, 4) == mountpoint.to_string_lossy();
    let ours = word(mountinfo.lines().find(place).unwrap(), 2);
    let watched = |line: &&str| {
        let below = ["/proc", "/sys", "/etc"].iter();
        word(line, 2) == ours || below.clone().any(|top| word(line, 4).starts_with(top))
    };
    mountinfo
        .lines()
        .filter(watched)
        .map(str::to_owned)
        .collect()
}

/// Attaches, or tries to; whether all of it was done.
fn attach(lxcfs: &Lxcfs, container: &Container) -> bool {
    let mut attach = Command::new(lxcfs_binary());
    attach.args(["attach", "--deadline-ms", "60000", "--mount"]);
    attach.arg(lxcfs.mountpoint());
    attach.args(["--pid", &container.init_pid().to_string()]);
    attach.output().unwrap().status.success()
}

#[test]
fn a_container_that_does_everything_at_once_harms_nobody_else() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let status = || Status::of(&lxcfs.runtime_dir().join("lxcfs/holder.sock")).unwrap();
    let cgroups = ["victim", "hostile", "late"].map(TestCgroup::new);
    cgroups[0].limit_memory(VICTIM);
    cgroups[1].limit_memory(512 << 20);
    cgroups[2].limit_memory(VICTIM);
    let mountpoint = lxcfs.mountpoint();
    let victim = Container::start(&cgroups[0], &mountpoint, &Shape::default());
    let user_namespace = true;
    let own = Shape {
        user_namespace,
        ..Shape::default()
    };
    let hostile = Container::start(&cgroups[1], &mountpoint, &own);
    let bare = Shape {
        files: Vec::new(),
        ..Shape::default()
    };
    let late = Container::start(&cgroups[2], &mountpoint, &bare);
    let host = host_mounts(&mountpoint);
    let bare_mounts = fs::read_to_string(format!("/proc/{}/mountinfo", late.init_pid())).unwrap();
    let worker = status().number("worker");
    let place = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let steady = Steady::start(scope, &victim, &[VICTIM >> 10]);
        let text = script(place.path());
        let hostile = &hostile;
        let attacks = scope.spawn(move || hostile.run(&["bash", "-c", &text]));
        let stop = Stop(place.path().to_owned());
        let further = |more: u64| {
            let before = rounds(place.path());
            eventually("every attack makes its rounds", || {
                rounds(place.path()) >= before + more
            });
        };
        further(2);
        let before = own_kib(worker);
        for round in 1..=3 {
            steady.goes_on(&format!("attack {round}"));
            // Whoever is being attacked from inside may be left alone, the others not.
            attach(&lxcfs, hostile);
            assert!(attach(&lxcfs, &late), "round {round}");
            let wanted = format!("MemTotal:{:>15} kB", VICTIM >> 10);
            let meminfo = late.read("/proc/meminfo");
            assert!(meminfo.starts_with(&wanted), "{meminfo}");
            let mut detach = Command::new(lxcfs_binary());
            detach.args(["detach", "--pid", &late.init_pid().to_string(), "--mount"]);
            assert!(detach.arg(&mountpoint).output().unwrap().status.success());
            further(2);
        }
        let grown = own_kib(worker).saturating_sub(before);
        println!(
            "the worker had {before} KiB under attack, and {grown} KiB more after 6 rounds of it"
        );
        drop(stop);
        attacks.join().unwrap();
        steady.stop();
        assert!(grown < GROWTH_KIB, "{grown} KiB more than {before} KiB");
    });
    assert_eq!(status().number("worker"), worker, "{}", lxcfs.log());
    assert_eq!(status().number("worker_deaths"), 0, "{}", lxcfs.log());
    let now = host_mounts(&mountpoint);
    assert_eq!(now, host, "attaching wrote outside of containers");
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", late.init_pid())).unwrap();
    assert_eq!(mounts, bare_mounts);
    drop((victim, late));
    lxcfs.stop();
}
