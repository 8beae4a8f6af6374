//! What the mounted files are like: modes, sizes, offsets, ends, polling; the kernel's own
//! procfs says what is right.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use lxcfs_tests::fixture::{CONSTANT_BYTES, LONG_BYTES, constant_text};
use lxcfs_tests::serve::Served;
use nix::poll::{PollFd, PollFlags, poll};

fn refused(result: std::io::Result<impl Sized>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// What one file says to a series of reads at odd offsets and sizes: lengths and ends.
fn conversation(path: &Path) -> Vec<usize> {
    let mut file = File::open(path).expect("a readable file");
    let length = file.read_to_end(&mut Vec::new()).expect("a readable file");
    let read = |offset: u64, size: usize| {
        file.read_at(&mut vec![0; size], offset)
            .expect("a readable file")
    };
    let length64 = length as u64;
    vec![
        read(0, 1),
        read(0, length),
        read(1, length - 1),
        read(1, 1),
        read(length64 - 1, 1),
        read(length64 - 1, 100),
        read(length64, 100),
        read(length64 + 1, 100),
        read(length64 + 5000, 100),
        read(1 << 40, 100),
        read(0, 0),
    ]
    .into_iter()
    .map(|got| {
        if got == length || got == length - 1 {
            got + 1000 - length
        } else {
            got
        }
    })
    .collect()
}

#[test]
fn offsets_short_reads_and_ends_are_those_of_the_kernels_procfs() {
    let served = Served::start();
    // /proc/version never changes, so its length is a constant, as is our file's.
    let kernel = conversation(Path::new("/proc/version"));
    assert_eq!(conversation(&served.file("proc/meminfo")), kernel);
}

#[test]
fn every_buffer_size_gives_the_same_text() {
    let served = Served::start();
    let text = constant_text(LONG_BYTES);
    for size in [1000, 1024, 4095, 4096, 4097, 65_536, LONG_BYTES, 1 << 20] {
        let mut file = File::open(served.file("proc/cpuinfo")).unwrap();
        let (mut all, mut buffer) = (Vec::new(), vec![0; size]);
        loop {
            let got = file.read(&mut buffer).unwrap();
            if got == 0 {
                break;
            }
            all.extend_from_slice(&buffer[..got]);
        }
        assert_eq!(all, text, "{size}-byte reads");
    }
}

#[test]
fn metadata_is_that_of_the_kernel() {
    let served = Served::start();
    for path in [
        "proc/meminfo",
        "proc/stat",
        "proc/slabinfo",
        "sys/devices/system/cpu/online",
    ] {
        let ours = fs::metadata(served.file(path)).unwrap();
        let Ok(kernels) = fs::metadata(Path::new("/").join(path)) else {
            continue;
        };
        assert_eq!(ours.mode(), kernels.mode(), "{path}");
        assert_eq!(
            (ours.uid(), ours.gid()),
            (kernels.uid(), kernels.gid()),
            "{path}"
        );
        assert_eq!(ours.nlink(), kernels.nlink(), "{path}");
        if path.starts_with("sys") {
            assert_eq!(ours.len(), kernels.len(), "{path}");
        } else {
            // sendfile(2) takes a FUSE file of size 0 for empty: ours announce a bound.
            assert!(ours.len() >= 8192, "{path}: {}", ours.len());
        }
    }
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let point = served.mount();
    let line = mountinfo
        .lines()
        .find(|line| line.contains(&*point.to_string_lossy()))
        .unwrap();
    assert!(line.contains(" - fuse.lxcfs lxcfs "), "{line}");
    for option in [
        "nosuid",
        "nodev",
        "noexec",
        "default_permissions",
        "allow_other",
    ] {
        assert!(line.contains(option), "{option}: {line}");
    }
}

#[test]
fn nobody_can_write_or_change_the_tree() {
    let served = Served::start();
    let (file, dir) = (served.file("proc/meminfo"), served.file("proc"));
    let open = |options: &mut OpenOptions| refused(options.open(&file));
    assert_eq!(open(OpenOptions::new().write(true)), Some(libc::EACCES));
    assert_eq!(
        open(OpenOptions::new().read(true).write(true)),
        Some(libc::EACCES)
    );
    assert_eq!(
        open(OpenOptions::new().write(true).truncate(true)),
        Some(libc::EACCES)
    );
    assert_eq!(refused(File::create(dir.join("new"))), Some(libc::EPERM));
    assert_eq!(refused(fs::create_dir(dir.join("new"))), Some(libc::EPERM));
    assert_eq!(refused(fs::remove_file(&file)), Some(libc::EPERM));
    assert_eq!(
        refused(fs::rename(&file, dir.join("new"))),
        Some(libc::EPERM)
    );
    assert_eq!(
        refused(std::os::unix::fs::symlink("x", dir.join("new"))),
        Some(libc::EPERM)
    );
    let mode = fs::Permissions::from_mode(0o777);
    assert_eq!(refused(fs::set_permissions(&file, mode)), Some(libc::EPERM));
    assert_eq!(refused(File::open(dir.join("kcore"))), Some(libc::ENOENT));
}

#[test]
fn another_user_reads_what_everybody_may_and_nothing_else() {
    let served = Served::start();
    fs::set_permissions(served.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let nobody = |program: &str, path: &str| {
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", program])
            .arg(served.file(path))
            .stderr(Stdio::null())
            .output()
            .unwrap()
    };
    let read = nobody("cat", "proc/meminfo");
    assert!(read.status.success());
    assert_eq!(read.stdout, constant_text(CONSTANT_BYTES));
    let secret = nobody("cat", "proc/slabinfo");
    assert!(!secret.status.success());
    assert!(secret.stdout.is_empty());
}

#[test]
fn ordinary_files_are_always_ready() {
    let served = Served::start();
    let file = File::open(served.file("proc/meminfo")).unwrap();
    let wanted = PollFlags::POLLIN | PollFlags::POLLPRI | PollFlags::POLLRDNORM;
    let mut fds = [PollFd::new(file.as_fd(), wanted)];
    assert_eq!(poll(&mut fds, 5000u16), Ok(1));
    assert_eq!(
        fds[0].revents(),
        Some(PollFlags::POLLIN | PollFlags::POLLRDNORM)
    );
}

#[test]
fn pressure_triggers_fire_also_after_the_worker_was_killed() {
    let served = Served::start();
    let path = served.file("proc/pressure/cpu");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    assert_eq!(
        refused(file.write_all(b"nonsense\0")),
        Some(libc::EINVAL),
        "the kernel's verdict"
    );
    file.write_all(b"some 1000 2000000\0").unwrap();
    assert_eq!(
        refused(file.write_all(b"some 1000 2000000\0")),
        Some(libc::EBUSY)
    );
    // Several busy threads on few CPUs: pressure by construction.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let cpus = std::thread::available_parallelism().unwrap().get();
        for _ in 0..cpus * 2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::black_box(0);
                }
            });
        }
        let fires = |file: &File| {
            let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            let count = poll(&mut fds, 10_000u16).unwrap();
            (count, fds[0].revents().unwrap())
        };
        let first = fires(&file);
        served.kill_worker();
        let second = fires(&file);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(first, (1, PollFlags::POLLPRI));
        assert_eq!(second, (1, PollFlags::POLLPRI));
    });
    drop(file);
}

#[test]
fn open_files_by_the_thousand_do_not_grow_the_worker() {
    let served = Served::start();
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", served.worker())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap()
            .to_owned();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let flood = |count: usize| {
        let files: Vec<File> = (0..count)
            .map(|_| {
                let file = File::open(served.file("proc/cpuinfo")).unwrap();
                file.read_exact_at(&mut [0; 10], 0).unwrap();
                file
            })
            .collect();
        // The oldest texts were dropped; they are rendered again, not refused.
        let mut part = vec![0; 100];
        files[0].read_exact_at(&mut part, 5000).unwrap();
        assert_eq!(part, constant_text(LONG_BYTES)[5000..5100]);
    };
    flood(500);
    let before = resident();
    for _ in 0..6 {
        flood(900);
    }
    let grown = resident().saturating_sub(before);
    assert!(
        grown < 1024,
        "{grown} KiB more after 5400 open files than after 500"
    );
}

#[test]
fn a_mountpoint_that_cannot_be_used_is_explained() {
    let served = Served::start();
    let base = served.dir().to_path_buf();
    fs::create_dir(base.join("full")).unwrap();
    fs::write(base.join("full/keep"), "").unwrap();
    fs::write(base.join("file"), "").unwrap();
    for (name, told) in [
        ("full", "is not empty (it holds keep)"),
        ("file", "is a file"),
        ("missing", "mkdir -p"),
    ] {
        let output = Command::new(lxcfs_tests::serve::fixture_binary())
            .args([
                "hold",
                &format!("mountpoint={}", base.join(name).display()),
                "--",
            ])
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(message.contains(told), "{name}: {message}");
        assert!(
            message.contains(&*base.join(name).to_string_lossy()),
            "{message}"
        );
    }
    assert!(base.join("full/keep").exists());
}

#[test]
fn the_caller_is_told_to_the_engine() {
    let served = Served::start();
    let tid = nix::unistd::gettid().as_raw().to_string();
    assert_eq!(
        fs::read_to_string(served.file("proc/uptime"))
            .unwrap()
            .trim_end(),
        tid
    );
    assert_eq!(
        refused(fs::read(served.file("proc/loadavg"))),
        Some(libc::EIO)
    );
}

#[test]
fn many_readers_of_slow_files_do_not_wait_for_each_others_containers() {
    let served = Served::start();
    let loops = served.status().number("loops");
    assert!(loops >= 2, "one slow answer would stall everybody");
    let readers: Vec<_> = (0..16)
        .map(|_| {
            let path = served.file("proc/diskstats");
            std::thread::spawn(move || fs::read(path).unwrap())
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), constant_text(CONSTANT_BYTES));
    }
}
