//! A running `lxcfs` on a directory of its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Place;

/// How long a start or a stop may take on a loaded, emulated machine before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with its mountpoint, run-time directory and log in one directory.
///
/// Dropping it stops the daemon and unmounts; [`Lxcfs::stop`] does so and asserts a clean end.
#[derive(Debug)]
pub struct Lxcfs {
    child: Child,
    directory: Place,
    stopped: bool,
}

impl Lxcfs {
    /// Starts the build under test with `arguments` and waits until its files can be read.
    ///
    /// # Panics
    /// When it ends or does not serve in time; the message holds its log.
    pub fn start<S: AsRef<OsStr>>(arguments: &[S]) -> Self {
        Self::start_by(Command::new(crate::lxcfs_binary()), arguments)
    }

    /// The same by another command, which ends in becoming `lxcfs`: `setpriv … lxcfs`.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_by<S: AsRef<OsStr>>(command: Command, arguments: &[S]) -> Self {
        Self::start_in(Place::temporary("lxcfs-test-"), command, arguments)
    }

    /// The same in a directory that an earlier one may have left.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_in<S: AsRef<OsStr>>(
        directory: Place,
        mut command: Command,
        arguments: &[S],
    ) -> Self {
        crate::require_root();
        let mountpoint = directory.path().join("mnt");
        fs::create_dir_all(&mountpoint).unwrap_or_else(|error| panic!("no mountpoint: {error}"));
        let log = directory.path().join("log");
        let log = File::create(&log).unwrap_or_else(|error| panic!("no log: {error}"));
        let child = command
            .args(arguments)
            .arg("--runtime-dir")
            .arg(directory.path())
            .arg(&mountpoint)
            .stdin(Stdio::null())
            .stdout(
                log.try_clone()
                    .unwrap_or_else(|error| panic!("no log: {error}")),
            )
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start lxcfs: {error}"));
        let mut lxcfs = Self {
            child,
            directory,
            stopped: false,
        };
        lxcfs.wait_until_served();
        lxcfs
    }

    fn wait_until_served(&mut self) {
        let probe = self.file("proc/meminfo");
        let end = Instant::now() + PATIENCE;
        while fs::metadata(&probe).is_err() {
            if let Ok(Some(status)) = self.child.try_wait() {
                self.stopped = true;
                panic!("lxcfs ended at start: {status}\n{}", self.log());
            }
            assert!(
                Instant::now() < end,
                "lxcfs does not serve:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    /// The directory given as `--runtime-dir`.
    pub fn runtime_dir(&self) -> &Path {
        self.directory.path()
    }

    /// A file below the mountpoint, as in `proc/meminfo`.
    pub fn file(&self, path: &str) -> PathBuf {
        self.mountpoint().join(path)
    }

    /// The content of a file, read by this process.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn read(&self, path: &str) -> String {
        let mut content = String::new();
        File::open(self.file(path))
            .and_then(|mut file| file.read_to_string(&mut content))
            .unwrap_or_else(|error| panic!("cannot read {path}: {error}\n{}", self.log()));
        content
    }

    /// The process that was started.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Sends a signal to the process that was started.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal)
            .unwrap_or_else(|error| panic!("cannot signal lxcfs: {error}\n{}", self.log()));
    }

    /// Ends it with SIGTERM.
    ///
    /// # Panics
    /// Unless it exits 0 and its mount is gone.
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait();
        self.stopped = true;
        let log = self.log();
        assert!(
            status.is_some_and(|status| status.success()),
            "SIGTERM: {status:?}\n{log}"
        );
        assert!(!self.is_mounted(), "the mount is left behind\n{log}");
    }

    /// Whether something is mounted on the mountpoint, alive or dead.
    pub fn is_mounted(&self) -> bool {
        let mountpoint = self.mountpoint();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        mounts
            .lines()
            .any(|line| line.split(' ').nth(1) == mountpoint.to_str())
    }

    fn wait(&mut self) -> Option<ExitStatus> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Ok(status) => return status,
                Err(error) => panic!("cannot wait for lxcfs: {error}"),
            }
        }
        None
    }
}

impl Drop for Lxcfs {
    fn drop(&mut self) {
        if !self.stopped {
            let _ = kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGTERM);
            if self.wait().is_none() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            if std::thread::panicking() {
                eprintln!("lxcfs's log:\n{}", self.log());
            }
        }
        while self.is_mounted() && umount2(&self.mountpoint(), MntFlags::MNT_DETACH).is_ok() {}
    }
}
