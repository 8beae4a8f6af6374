//! Many readers, changing limits, small buffers, other users and dying containers: every read
//! gets an answer, and never the host's.
// vm: 6.12/v2
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::process::{Command, Stdio};

use lxcfs_common::catalogue::{CATALOGUE, Kind};
use lxcfs_tests::container::Shape;
use lxcfs_tests::{Burner, Container, Lxcfs, TestCgroup, stdout_of};

/// Every catalogue file that this kernel has, as served below `lxcfs`.
fn files(lxcfs: &Lxcfs) -> Vec<&'static str> {
    let files = CATALOGUE
        .iter()
        .filter(|entry| matches!(entry.kind, Kind::File(_)));
    files
        .map(|entry| entry.path)
        .filter(|path| lxcfs.file(path).exists())
        .collect()
}

/// A shell loop that reads MemTotal `rounds` times in `readers` processes at once and prints
/// every different value once.
fn totals_script(readers: u32, rounds: u32) -> String {
    format!(
        "for r in $(seq {readers}); do \
           (i=0; while [ $i -lt {rounds} ]; do \
              read -r _ total _ </proc/meminfo && echo $total || echo failed; i=$((i+1)); \
            done) & \
         done | sort -u; wait"
    )
}

#[test]
fn sixty_four_readers_see_only_the_limits_that_were_set() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let sizes_mib = [64_u64, 96, 128];
    std::thread::scope(|scope| {
        for number in 0..4 {
            let lxcfs = &lxcfs;
            scope.spawn(move || {
                let cgroup = TestCgroup::new(&format!("readers-{number}"));
                cgroup.limit_memory(sizes_mib[0] << 20);
                let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
                let script = totals_script(16, 40);
                std::thread::scope(|inner| {
                    let reader = inner.spawn(|| container.stdout(&["sh", "-c", &script]));
                    let mut next = 0;
                    while !reader.is_finished() {
                        next += 1;
                        cgroup.limit_memory(sizes_mib[next % sizes_mib.len()] << 20);
                        // Readers shall find time to read between two changes.
                        std::thread::sleep(std::time::Duration::from_millis(2));
                    }
                    let seen = reader.join().unwrap();
                    assert!(!seen.is_empty());
                    for total in seen.lines() {
                        let kib: u64 = total.parse().unwrap_or_else(|_| panic!("{seen}"));
                        assert!(
                            sizes_mib.contains(&(kib >> 10)),
                            "{kib} kB was never set: {seen}"
                        );
                    }
                });
            });
        }
    });
    lxcfs.stop();
}

#[test]
fn any_buffer_size_reads_one_consistent_text() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    for path in files(&lxcfs) {
        let file = File::open(lxcfs.file(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut whole = vec![0; 4 << 20];
        let length = file
            .read_at(&mut whole, 0)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        // The kernel's procfs: nothing at and behind the end, and no error.
        let mut byte = [0; 1];
        for behind in [1, 4096, 1 << 30] {
            assert_eq!(
                file.read_at(&mut byte, length as u64 + behind).unwrap(),
                0,
                "{path}"
            );
        }
        for size in [1, 7, 512, 4096] {
            let file = File::open(lxcfs.file(path)).unwrap();
            let mut text = Vec::new();
            let mut buffer = vec![0; size];
            loop {
                match file.read_at(&mut buffer, text.len() as u64).unwrap() {
                    0 => break,
                    got => text.extend_from_slice(&buffer[..got]),
                }
            }
            assert!(
                text.is_empty() || text.ends_with(b"\n"),
                "{path} torn at size {size}"
            );
            assert_eq!(
                text.iter().filter(|b| **b == b'\n').count() > 0,
                length > 0,
                "{path}"
            );
        }
    }
}

#[test]
fn a_kept_descriptor_is_fresh_at_offset_zero() {
    let lxcfs = Lxcfs::start(&["--cache-ttl-ms", "0"]);
    let file = File::open(lxcfs.file("proc/uptime")).unwrap();
    let read = || {
        let mut buffer = [0; 64];
        let length = file.read_at(&mut buffer, 0).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let first = read();
    let changed = (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        read() != first
    });
    assert!(changed, "the clock stands still: {first}");
}

#[test]
fn another_user_may_read_and_write_what_procfs_allows() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    // A path that anybody may walk to.
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let bound = place.path().join("proc");
    std::fs::create_dir(&bound).unwrap();
    let script = format!(
        "mount --bind '{}' '{}' && exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -c \
         'cd {1}; cat meminfo >/dev/null && echo read; cat slabinfo >/dev/null 2>&1 || echo refused; \
         (echo x >meminfo) 2>/dev/null || echo refused; (: >>stat) 2>/dev/null || echo refused'",
        lxcfs.mountpoint().join("proc").display(),
        bound.display(),
    );
    let text = stdout_of(Command::new("unshare").args(["--mount", "sh", "-c", &script]));
    assert_eq!(text, "read\nrefused\nrefused\nrefused\n");
}

#[test]
fn root_cannot_write_what_is_not_a_trigger() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    for path in ["proc/meminfo", "proc/stat", "sys/devices/system/cpu/online"] {
        let error = std::fs::write(lxcfs.file(path), "x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{path}");
    }
    for error in [
        std::fs::File::create(lxcfs.file("proc/new")).unwrap_err(),
        std::fs::remove_file(lxcfs.file("proc/meminfo")).unwrap_err(),
        std::fs::create_dir(lxcfs.file("sys/new")).unwrap_err(),
        std::fs::rename(lxcfs.file("proc/stat"), lxcfs.file("proc/other")).unwrap_err(),
    ] {
        assert!(
            error.raw_os_error().is_some_and(|errno| errno != libc::EIO),
            "{error}"
        );
    }
}

#[test]
fn listings_name_every_entry_once_and_each_can_be_read() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let mut directories = vec![lxcfs.mountpoint()];
    let mut files = 0;
    while let Some(directory) = directories.pop() {
        let mut names = std::collections::BTreeSet::new();
        for entry in std::fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            assert!(names.insert(entry.file_name()), "{:?} twice", entry.path());
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
            } else {
                files += 1;
                std::fs::read(entry.path())
                    .unwrap_or_else(|error| panic!("{}: {error}", entry.path().display()));
            }
        }
    }
    assert!(files > 20, "only {files} files");
}

#[test]
fn containers_that_die_while_reading_harm_nobody() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let witness = TestCgroup::new("witness");
    witness.limit_memory(64 << 20);
    let container = Container::start(&witness, &lxcfs.mountpoint(), &Shape::default());
    for round in 0..20 {
        let cgroup = TestCgroup::new(&format!("dying-{round}"));
        cgroup.limit_memory(32 << 20);
        let dying = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
        let readers: Vec<_> = (0..4)
            .map(|_| {
                Command::new("nsenter")
                    .args([
                        "--target",
                        &dying.init_pid().to_string(),
                        "--pid",
                        "--mount",
                        "--",
                    ])
                    .args(["sh", "-c", "while :; do cat /proc/meminfo /proc/stat; done"])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        let total = container.stdout(&["sh", "-c", "grep MemTotal /proc/meminfo"]);
        assert_eq!(total.split_whitespace().nth(1), Some("65536"), "{total}");
        drop(dying);
        drop(cgroup);
        for mut reader in readers {
            // The kernel killed those inside the PID namespace; the waiter ends with them.
            let _ = reader.kill();
            let _ = reader.wait();
        }
    }
    let total = container.stdout(&["sh", "-c", "grep MemTotal /proc/meminfo"]);
    assert_eq!(total.split_whitespace().nth(1), Some("65536"), "{total}");
    lxcfs.stop();
}

#[test]
fn two_thousand_cgroups_below_a_container_are_served() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new("crowd");
    cgroup.limit_memory(512 << 20);
    let directories: Vec<_> = (0..2000)
        .flat_map(|number| {
            let children = cgroup
                .dirs()
                .into_iter()
                .map(move |d| d.join(format!("c{number}")));
            children.collect::<Vec<_>>()
        })
        .collect();
    for directory in &directories {
        std::fs::create_dir(directory).unwrap();
    }
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
    let _burner = Burner::start(&cgroup, None);
    for path in ["meminfo", "stat", "loadavg", "uptime", "cpuinfo", "swaps"] {
        assert!(
            !container.read(&format!("/proc/{path}")).is_empty(),
            "{path}"
        );
    }
    let total = container.stdout(&["grep", "MemTotal", "/proc/meminfo"]);
    assert_eq!(total.split_whitespace().nth(1), Some("524288"), "{total}");
    drop(container);
    for directory in directories.iter().rev() {
        std::fs::remove_dir(directory).unwrap();
    }
}

#[test]
fn a_container_a_hundred_levels_down_has_the_limits_at_the_top() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let mut levels = vec![TestCgroup::new("deep")];
    levels[0].limit_memory(96 << 20);
    levels[0].limit_cpu(50_000, 100_000);
    for _ in 0..100 {
        let below = levels[levels.len() - 1].child("n");
        levels.push(below);
    }
    let leaf = &levels[levels.len() - 1];
    let container = Container::start(leaf, &lxcfs.mountpoint(), &Shape::default());
    let total = container.stdout(&["grep", "MemTotal", "/proc/meminfo"]);
    assert_eq!(total.split_whitespace().nth(1), Some("98304"), "{total}");
    assert_eq!(container.read("/sys/devices/system/cpu/online"), "0\n");
    // The tighter limit in the middle wins, as soon as it is there.
    levels[50].limit_memory(64 << 20);
    let total = container.stdout(&["grep", "MemTotal", "/proc/meminfo"]);
    assert_eq!(total.split_whitespace().nth(1), Some("65536"), "{total}");
    drop(container);
    lxcfs.stop();
}

#[test]
fn a_frozen_container_can_be_read_from_outside_and_thaws() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new("frozen");
    cgroup.limit_memory(64 << 20);
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
    let (file, frozen, thawed) = if cgroup.is_v1("freezer") {
        ("freezer.state", "FROZEN", "THAWED")
    } else {
        ("cgroup.freeze", "1", "0")
    };
    let directory = if cgroup.is_v1("freezer") {
        cgroup.dir("freezer")
    } else {
        cgroup
            .dirs()
            .into_iter()
            .find(|d| d.join("cgroup.freeze").exists())
            .unwrap()
    };
    std::fs::write(directory.join(file), frozen).unwrap();
    let pid = container.init_pid().to_string();
    let shown = stdout_of(
        Command::new(lxcfs_tests::lxcfs_binary()).args(["show", "--pid", &pid, "meminfo"]),
    );
    std::fs::write(directory.join(file), thawed).unwrap();
    assert!(
        shown.starts_with("MemTotal:          65536 kB\n"),
        "{shown}"
    );
    assert!(
        container
            .read("/proc/meminfo")
            .starts_with("MemTotal:          65536 kB\n")
    );
}
