//! A holder with the fixture engine on a mount of its own, and readers that check every byte.
//!
//! Guards: what is mounted and started ends with them, also when a test fails.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use lxcfs_holder::control::{Request, ask};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fixture::{CONTROL_DIR, FIRST_BUILD, OTHER_BUILD};

/// Most time anything here may take, on a loaded and emulated machine, before the test says that
/// it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program with the fixture engine.
///
/// # Panics
/// When it has not been built.
pub fn fixture_binary() -> PathBuf {
    test_program("serve-fixture")
}

/// A program of this package: beside the running one, one level up, or, as in virtual machines,
/// in `bin` there.
///
/// # Panics
/// When it has not been built.
pub fn test_program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap_or_else(|error| panic!("no own path: {error}"));
    let places = own.ancestors().skip(1).take(2);
    let found = places
        .flat_map(|dir| [dir.join(name), dir.join("bin").join(name)])
        .find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!(
            "no {name} beside {}: cargo build -p lxcfs-tests --bins",
            own.display()
        )
    })
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not hold in time; the message names `what`.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// One `key=value` list from the holder.
#[derive(Debug)]
pub struct Status(String);

impl Status {
    /// Asks the holder that listens on `socket`; `None` when it does not answer.
    pub fn of(socket: &Path) -> Option<Self> {
        ask(socket, &Request::Status, PATIENCE).ok()?.ok().map(Self)
    }

    /// The value of `key`.
    ///
    /// # Panics
    /// When the holder does not tell it.
    pub fn text(&self, key: &str) -> &str {
        let found = self
            .0
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no {key} in the status:\n{}", self.0))
    }

    /// The value of `key` as a number.
    ///
    /// # Panics
    /// When it is none.
    pub fn number(&self, key: &str) -> u64 {
        let text = self.text(key);
        text.parse()
            .unwrap_or_else(|error| panic!("{key}={text}: {error}"))
    }
}

/// A served mount.
pub struct Served {
    dir: tempfile::TempDir,
    holder: Option<Child>,
    binary: PathBuf,
    options: Vec<String>,
}

impl Served {
    /// Starts a holder with the default bounds.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts a holder with options as in `HolderOptions::to_args`.
    ///
    /// # Panics
    /// When it does not serve in time.
    pub fn with(options: &[&str]) -> Self {
        crate::require_root();
        let dir = tempfile::Builder::new().prefix("lxcfs-serve").tempdir();
        let dir = dir.unwrap_or_else(|error| panic!("no temporary directory: {error}"));
        for name in ["mnt", "told"] {
            let made = std::fs::create_dir(dir.path().join(name));
            made.unwrap_or_else(|error| panic!("cannot make {name}: {error}"));
        }
        let mut served = Self {
            dir,
            holder: None,
            binary: fixture_binary(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        served.start_holder();
        served
    }

    /// A command that starts a holder for this mount.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        let mount = format!("mountpoint={}", self.mount().display());
        let control = format!("control={}", self.socket().display());
        command
            .args(["hold", &mount, &control])
            .args(&self.options)
            .arg("--");
        command
            .env(CONTROL_DIR, self.dir.path().join("told"))
            .env_remove("NOTIFY_SOCKET");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path());
        let log = log.unwrap_or_else(|error| panic!("no log: {error}"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    /// Starts a (further) holder and waits until it serves.
    ///
    /// # Panics
    /// When it does not serve in time.
    pub fn start_holder(&mut self) {
        self.start_with(self.command());
    }

    /// Starts a holder by `command` and waits until it serves.
    ///
    /// # Panics
    /// When it does not serve in time.
    pub fn start_with(&mut self, mut command: Command) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path());
        let log = log.unwrap_or_else(|error| panic!("no log: {error}"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.process_group(0).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start the holder: {error}"));
        let pid = u64::from(child.id());
        self.holder = Some(child);
        eventually("the holder serves", || {
            self.try_status()
                .is_some_and(|s| s.number("serving") == 1 && s.number("holder") == pid)
        });
    }

    /// A second program, which differs from the first in what it says about itself.
    ///
    /// # Panics
    /// When there is no room for it.
    pub fn another_build(&self) -> PathBuf {
        let path = self.dir().join("serve-fixture-2");
        let mut bytes = std::fs::read(fixture_binary())
            .unwrap_or_else(|error| panic!("no program to copy: {error}"));
        let found: Vec<usize> = bytes
            .windows(FIRST_BUILD.len())
            .enumerate()
            .filter(|(_, window)| *window == FIRST_BUILD.as_bytes())
            .map(|(at, _)| at)
            .collect();
        assert!(!found.is_empty(), "{FIRST_BUILD} is not in the program");
        for at in found {
            bytes[at..at + OTHER_BUILD.len()].copy_from_slice(OTHER_BUILD.as_bytes());
        }
        let mode = std::fs::Permissions::from_mode(0o755);
        let written =
            std::fs::write(&path, bytes).and_then(|()| std::fs::set_permissions(&path, mode));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Where it is mounted.
    pub fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// The option of the holder, if it was given.
    pub fn option(&self, option: &str) -> Option<&str> {
        let mut all = self.options.iter().map(String::as_str);
        all.find(|given| *given == option)
    }

    /// A file of the mount.
    pub fn file(&self, path: &str) -> PathBuf {
        self.mount().join(path)
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// A directory of this test, next to the mount.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// What holder and workers wrote to stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Makes a control file of the fixture.
    ///
    /// # Panics
    /// When that fails.
    pub fn tell(&self, name: &str) {
        let made = std::fs::write(self.dir.path().join("told").join(name), "");
        made.unwrap_or_else(|error| panic!("cannot make {name}: {error}"));
    }

    /// Removes a control file of the fixture.
    pub fn untell(&self, name: &str) {
        let _was_not_there = std::fs::remove_file(self.dir.path().join("told").join(name));
    }

    /// Asks the holder.
    pub fn ask(&self, request: &Request) -> std::io::Result<Result<String, String>> {
        ask(&self.socket(), request, PATIENCE)
    }

    /// The status, if the holder answers.
    pub fn try_status(&self) -> Option<Status> {
        Status::of(&self.socket())
    }

    /// The status.
    ///
    /// # Panics
    /// When the holder does not answer.
    pub fn status(&self) -> Status {
        self.try_status()
            .unwrap_or_else(|| panic!("no status; log:\n{}", self.log()))
    }

    /// Process id of the active worker.
    pub fn worker(&self) -> i32 {
        self.status().number("worker") as i32
    }

    /// Process id of the holder.
    ///
    /// # Panics
    /// When there is none.
    pub fn holder(&self) -> i32 {
        self.holder
            .as_ref()
            .map_or_else(|| panic!("no holder"), |child| child.id() as i32)
    }

    /// Sends a signal to the holder.
    ///
    /// # Panics
    /// When there is none.
    pub fn signal_holder(&self, signal: Signal) {
        let sent = kill(Pid::from_raw(self.holder()), signal);
        sent.unwrap_or_else(|error| panic!("signal: {error}"));
    }

    /// Waits for the holder's end; its exit status.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait_holder(&mut self) -> std::process::ExitStatus {
        let mut child = self.holder.take().unwrap_or_else(|| panic!("no holder"));
        let mut status = None;
        eventually("the holder ends", || {
            status = child.try_wait().ok().flatten();
            status.is_some()
        });
        status.unwrap_or_else(|| panic!("no status"))
    }

    /// Kills the holder and its workers at once: nobody is left who could hand anything on.
    pub fn kill_everybody(&self) {
        let status = self.status();
        for key in ["holder", "worker", "standby"] {
            let pid = status.number(key) as i32;
            if pid > 0 {
                let _already_dead = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    /// Worker processes of this mount.
    pub fn workers(&self) -> Vec<i32> {
        let mut all = logging_to(&self.dir().join("log"));
        all.retain(|pid| comm(*pid).as_deref() == Some("lxcfs-worker"));
        all
    }

    /// Waits until one worker serves and another stands by.
    ///
    /// # Panics
    /// When that does not come.
    pub fn wait_for_both(&self) {
        eventually("one serves, one stands by", || {
            self.try_status().is_some_and(|status| {
                status.number("serving") == 1 && status.number("standby_ready") == 1
            })
        });
    }

    /// Fails unless readers saw something, and nothing wrong.
    ///
    /// # Panics
    /// With what they saw, and the log.
    pub fn assert_unharmed(&self, seen: &Seen) {
        let harmed = (seen.errors, seen.wrong);
        assert_eq!(harmed, (0, 0), "{seen:?}\nlog:\n{}", self.log());
        assert!(seen.texts > 0, "nothing was read: {seen:?}");
    }

    /// Kills the active worker and waits until the next one serves. Returns how long that took,
    /// and whether a standby was ready.
    ///
    /// # Panics
    /// When nobody serves in time.
    pub fn kill_worker(&self) -> (Duration, bool) {
        // Right after a crash there may be none, and 0 would be our own process group.
        let mut before = self.status();
        eventually("a worker", || {
            before = self.status();
            before.number("worker") > 0
        });
        let (pid, warm) = (before.number("worker"), before.number("standby_ready") == 1);
        let killed_at = monotonic_nsec();
        let _already_dead = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        let mut since = 0;
        eventually("the next worker serves", || {
            self.try_status().is_some_and(|status| {
                since = status.number("serving_since_nsec");
                status.number("serving") == 1 && status.number("worker") != pid
            })
        });
        (Duration::from_nanos(since.saturating_sub(killed_at)), warm)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the holder and its workers\n{}", self.log());
        }
        if let Some(mut child) = self.holder.take() {
            let _gone = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
            let start = Instant::now();
            while start.elapsed() < PATIENCE && !matches!(child.try_wait(), Ok(Some(_))) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _gone = child.kill();
            let _reaped = child.wait();
        }
        // Normally nothing is left; after a failed test there may be.
        let flags = nix::mount::MntFlags::MNT_DETACH;
        while nix::mount::umount2(&self.mount(), flags).is_ok() {}
        for pid in self.workers() {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// The name of a process.
pub fn comm(pid: i32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(text.trim_end().to_owned())
}

/// Processes whose standard error is the file `log`.
pub fn logging_to(log: &Path) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten();
    pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| std::fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|path| path == log))
        .collect()
}

/// The monotonic clock, as the workers read it.
pub fn monotonic_nsec() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| {
        now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
    })
}

/// What the threads of one reader process saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Complete texts.
    pub texts: u64,
    /// Failed system calls.
    pub errors: u64,
    /// Texts with a wrong byte.
    pub wrong: u64,
    /// Longest single system call.
    pub worst: Duration,
    /// The first failure, in words.
    pub first: String,
}

impl Seen {
    /// Both together.
    #[must_use]
    pub fn plus(mut self, other: Self) -> Self {
        self.texts += other.texts;
        self.errors += other.errors;
        self.wrong += other.wrong;
        self.worst = self.worst.max(other.worst);
        if self.first.is_empty() {
            self.first = other.first;
        }
        self
    }

    /// One line for a pipe.
    pub fn to_line(&self) -> String {
        let worst = self.worst.as_micros();
        format!(
            "{} {} {} {worst} {}",
            self.texts,
            self.errors,
            self.wrong,
            self.first.replace('\n', " ")
        )
    }

    /// Reads [`to_line`](Self::to_line).
    pub fn from_line(line: &str) -> Option<Self> {
        let mut words = line.trim_end().splitn(5, ' ');
        let mut number = || words.next()?.parse::<u64>().ok();
        let (texts, errors, wrong) = (number()?, number()?, number()?);
        let worst = Duration::from_micros(number()?);
        Some(Self {
            texts,
            errors,
            wrong,
            worst,
            first: words.next().unwrap_or("").to_owned(),
        })
    }
}

/// A container of its own (namespaces), whose only process has threads that read until told to
/// stop.
pub struct Readers {
    child: Child,
    /// The process inside, by the host's numbers.
    inside: i32,
    output: BufReader<ChildStdout>,
}

impl Readers {
    /// Starts `threads` readers of the mount; they take turns at the kinds of
    /// [`reader::KINDS`](crate::reader::KINDS).
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn start(mount: &Path, threads: usize) -> Self {
        Self::start_resting(mount, threads, Duration::ZERO)
    }

    /// The same, with a pause of `rest` after each text.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn start_resting(mount: &Path, threads: usize, rest: Duration) -> Self {
        let rest = rest.as_micros().to_string();
        let mut child = Command::new("unshare")
            .args("--pid --mount --uts --ipc --cgroup --fork --kill-child --".split(' '))
            .arg(fixture_binary())
            .args([
                "read",
                &mount.to_string_lossy(),
                &threads.to_string(),
                &rest,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start unshare (util-linux): {error}"));
        let output = child.stdout.take().unwrap_or_else(|| panic!("no pipe"));
        let mut output = BufReader::new(output);
        // Only now it can be sent signals.
        let mut line = String::new();
        let _short = output.read_line(&mut line);
        assert_eq!(line, "ready\n", "readers did not start");
        let inside = crate::container::only_child_of(child.id()).cast_signed();
        Self {
            child,
            inside,
            output,
        }
    }

    /// Process id, for signals.
    pub fn pid(&self) -> i32 {
        self.inside
    }

    /// Lets them finish what they read and reports. A reader that hangs is a failure.
    ///
    /// # Panics
    /// When they do not end in time.
    pub fn finish(mut self) -> Seen {
        if let Some(mut stdin) = self.child.stdin.take() {
            let _gone = stdin.write_all(b"stop\n");
        }
        eventually("all readers end (one hangs)", || {
            matches!(self.child.try_wait(), Ok(Some(_)))
        });
        let mut line = String::new();
        let _short = self.output.read_line(&mut line);
        Seen::from_line(&line).unwrap_or_else(|| panic!("no report from readers: {line:?}"))
    }

    /// Kills the process.
    pub fn kill(mut self) {
        let _gone = kill(Pid::from_raw(self.inside), Signal::SIGKILL);
        let _reaped = self.child.wait();
    }
}
