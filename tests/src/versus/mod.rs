//! Ours beside Debian's C lxcfs, read by one container: every line that differs is explained in
//! the last table of `docs/virtual-files.md`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod compare;
mod facts;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use compare::{Difference, Documented, differences, missing_from, no_longer_there};
use facts::{Facts, facts};
use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;

use crate::container::Shape;
use crate::{Burner, Container, Lxcfs, TestCgroup};

/// A value moves while it is read; a line differs only when it does in every one of these.
const READINGS: usize = 5;

/// Debian's C lxcfs on a directory of its own, with its load average and CPU view turned on.
struct Peer {
    child: Child,
    directory: TempDir,
}

impl Peer {
    fn start(program: &str) -> Self {
        let directory = TempDir::with_prefix("lxcfs-peer-").unwrap();
        let mountpoint = directory.path().join("mnt");
        std::fs::create_dir(&mountpoint).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let child = Command::new(program)
            .args(["-f", "-l", "--enable-cfs", "-p"])
            .arg(directory.path().join("pid"))
            .arg(&mountpoint)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}; the root image has it"));
        let mut peer = Self { child, directory };
        let end = Instant::now() + Duration::from_secs(60);
        while !mountpoint.join("proc/meminfo").exists() {
            let ended = peer.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < end,
                "{program} does not serve ({ended:?}):\n{}",
                std::fs::read_to_string(peer.directory.path().join("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        peer
    }

    fn mountpoint(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = umount2(&self.mountpoint(), MntFlags::MNT_DETACH);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Memory of every kind that the files tell apart, held until the container ends: 24 MiB
/// anonymous, 16 MiB mapped from a file, 8 MiB dirty, 12 MiB shared of which 4 MiB are locked,
/// and a read that reaches the disk.
const WORKLOAD: &str = r#"
import ctypes, mmap, os, time
anon = bytearray(os.urandom(1 << 20)) * 24
def filled(path, mib):
    file = open(path, "w+b")
    for _ in range(mib):
        file.write(os.urandom(1 << 20))
    file.flush()
    return file
mapped = filled("/var/tmp/lxcfs-mapped", 16)
os.fsync(mapped.fileno())
view = mmap.mmap(mapped.fileno(), 16 << 20, mmap.MAP_SHARED, mmap.PROT_READ)
sum(view[at] for at in range(0, 16 << 20, 4096))
shared = mmap.mmap(-1, 12 << 20)
shared.write(b"x" * (12 << 20))
libc = ctypes.CDLL(None, use_errno=True)
base = ctypes.addressof(ctypes.c_char.from_buffer(shared))
assert libc.mlock(ctypes.c_void_p(base), ctypes.c_size_t(4 << 20)) == 0
dirty = filled("/var/tmp/lxcfs-dirty", 8)
direct = os.open("/var/tmp/lxcfs-mapped", os.O_RDONLY | os.O_DIRECT)
os.readv(direct, [mmap.mmap(-1, 1 << 20)])
print("ready", flush=True)
time.sleep(100000)
"#;

struct Workload(Child);

impl Workload {
    fn start(container: &Container, cgroup: &TestCgroup) -> Self {
        // Written pages stay dirty while they are looked at.
        for (setting, value) in [
            ("dirty_writeback_centisecs", "0"),
            ("dirty_expire_centisecs", "360000"),
        ] {
            std::fs::write(format!("/proc/sys/vm/{setting}"), value).unwrap();
        }
        let enter: String = cgroup
            .dirs()
            .iter()
            .map(|dir| format!("echo $$ >'{}/cgroup.procs' && ", dir.display()))
            .collect();
        let inside = format!(
            "{enter}exec nsenter --target {} --pid --mount --uts --ipc --cgroup -- python3 -c \"$0\"",
            container.init_pid()
        );
        let mut child = Command::new("sh")
            .args(["-c", &inside, WORKLOAD])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        let stdout = child.stdout.as_mut().unwrap();
        std::io::Read::read_exact(stdout, &mut ready)
            .unwrap_or_else(|error| panic!("the workload ended early: {error}"));
        Self(child)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Walks the mounts it is given, one after the other, in one process.
const READER: &str = r#"
import os, sys, time
for mountpoint in sys.argv[2:]:
    sys.stdout.write("\x02")
    os.chdir(mountpoint)
    for place, directories, names in os.walk(sys.argv[1]):
        for name in sorted(names):
            path = os.path.join(place, name)
            if os.path.islink(path):
                continue
            try:
                mode = os.stat(path).st_mode & 0o7777
                with open(path, "rb") as file:
                    text = file.read().decode("utf-8", "replace")
            except OSError:
                text = ""
            sys.stdout.write("\x01%s %o\n%s" % (path, mode, text))
    time.sleep(0.3)
"#;

/// What differs below `part` as a process inside reads it: ours, between two walks of the peer's,
/// in each of `readings`.
fn look(
    container: &Container,
    peer: &Path,
    ours: &Path,
    part: &str,
    readings: usize,
) -> BTreeSet<Difference> {
    let [peer, ours] = [peer, ours].map(|path| path.to_str().unwrap());
    let mut arguments = vec!["/usr/bin/python3", "-c", READER, part, peer];
    for _ in 0..readings {
        arguments.extend([ours, peer]);
    }
    let text = container.stdout(&arguments);
    let walks = text.split('\u{2}').skip(1).map(|walk| {
        let files = walk.split('\u{1}');
        facts(files.filter_map(|file| file.split_once('\n')))
    });
    let walks: Vec<Facts> = walks.collect();
    assert_eq!(walks.len(), 2 * readings + 1);
    let mut each = walks
        .windows(3)
        .step_by(2)
        .map(|walks| differences(&walks[0], &walks[1], &walks[2]));
    let mut found = each.next().unwrap();
    for now in each {
        found.retain(|one| now.contains(one));
    }
    found
}

/// Fails for every difference from C lxcfs that the table does not have, and for every entry of
/// the table that is none any more.
///
/// `version` is how the table names it, as in `5.0.3 v2`.
///
/// # Panics
/// With those lines; and when either of both does not serve.
pub fn compare_with(program: &str, version: &str) {
    let cgroup = TestCgroup::new("versus");
    cgroup.limit_memory(192 << 20);
    cgroup.limit_swap(192 << 20, 64 << 20);
    cgroup.limit_cpu(100_000, 100_000);
    // C lxcfs looks for swap accounting in existing cgroups when it starts.
    let peer = Peer::start(program);
    let ours = Lxcfs::start::<&str>(&[]);
    let shape = Shape {
        files: Vec::new(),
        ..Shape::default()
    };
    let container = Container::start(&cgroup, &ours.mountpoint(), &shape);
    // C lxcfs counts from the first read on.
    for mountpoint in [peer.mountpoint(), ours.mountpoint()] {
        for file in ["stat", "loadavg"] {
            container.read(mountpoint.join("proc").join(file).to_str().unwrap());
        }
    }
    let _workload = Workload::start(&container, &cgroup);
    // Use inside, and use outside the container that must not show inside.
    let elsewhere = TestCgroup::new("elsewhere");
    let burners = [
        Burner::start(&cgroup, Some(1)),
        Burner::start(&elsewhere, Some(0)),
    ];
    std::thread::sleep(Duration::from_secs(12));
    drop(burners);

    let (theirs, own) = (peer.mountpoint(), ours.mountpoint());
    let mut found = look(&container, &theirs, &own, "proc", READINGS);
    found.extend(look(&container, &theirs, &own, "sys", 1));
    assert!(
        found.iter().any(|one| one.file == "proc/meminfo"),
        "no line of meminfo differs: was the same mount read twice?"
    );

    let documented = Documented::parse(include_str!("../../../docs/virtual-files.md"));
    let unexplained = missing_from(&documented, version, &found);
    assert!(
        unexplained.is_empty(),
        "not in the table \"Differences from C lxcfs\" of docs/virtual-files.md for {version}:\n{}",
        unexplained.join("\n")
    );
    let stale = no_longer_there(&documented, version, &found);
    assert!(
        stale.is_empty(),
        "in that table for {version}, and the same now:\n{}",
        stale.join("\n")
    );
    ours.stop();
}
