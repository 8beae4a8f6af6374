//! A server that runs apart from the holder, with the rights of its manifest and no others.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lxcfs_common::pod::SERVER_CAPABILITIES;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::container::Shape;
use crate::serve::{Status, comm, eventually, logging_to};
use crate::{Container, Layout, TestCgroup, lxcfs_binary};

/// The user a server runs as; `nobody`.
pub const SERVER_UID: u32 = 65534;

/// `program` as user `uid` with the documented capabilities and no way to get others; `before`
/// is put in front (`unshare …`).
pub fn confined(before: &[&str], uid: u32, program: &Path) -> Command {
    confined_to(&SERVER_CAPABILITIES, before, uid, program)
}

fn confined_to(capabilities: &[&str], before: &[&str], uid: u32, program: &Path) -> Command {
    let sets: Vec<String> = ["inh-caps", "ambient-caps", "bounding-set"]
        .map(|set| {
            let named = capabilities.iter().map(|name| name.to_lowercase());
            named.fold(format!("--{set}=-all"), |all, name| all + ",+" + &name)
        })
        .into();
    // Below kernel 5.11 maps count as locked memory; a service manager or a runtime lifts that.
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -l unlimited 2>/dev/null; exec \"$@\"", "sh"])
        .args(before)
        .args(["setpriv", "--no-new-privs", "--clear-groups"])
        .args([format!("--reuid={uid}"), format!("--regid={uid}")])
        .args(sets)
        .arg(program);
    command
}

/// A server; ends with the guard, workers included.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts `command` with `arguments`; its log goes to `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start<S: AsRef<OsStr>>(mut command: Command, arguments: &[S], log: &Path) -> Self {
        let file = fs::File::create(log).unwrap_or_else(|error| panic!("no log: {error}"));
        let copy = file.try_clone();
        let child = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(copy.unwrap_or_else(|error| panic!("no log: {error}")))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start a server: {error}"));
        Self {
            child,
            log: log.into(),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it and its workers have said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        let sent = kill(Pid::from_raw(self.pid().cast_signed()), signal);
        sent.unwrap_or_else(|error| panic!("signal: {error}"));
    }

    /// Ends it by SIGTERM.
    ///
    /// # Panics
    /// Unless it exits with 0.
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.child.wait();
        assert!(
            status.as_ref().is_ok_and(std::process::ExitStatus::success),
            "{status:?}\n{}",
            self.log()
        );
    }

    /// Kills it, and lets its workers live.
    pub fn kill(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }

    /// Workers whose log is this one's.
    pub fn workers(&self) -> Vec<i32> {
        let mut all = logging_to(&self.log);
        all.retain(|pid| comm(*pid).is_some() && *pid != self.pid().cast_signed());
        all
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the server {}\n{}", self.pid(), self.log());
        }
        self.kill();
        // Those of a killed server live on.
        for pid in self.workers() {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        eventually("the server's workers end", || self.workers().is_empty());
    }
}

/// `lxcfs --workers outside`; its end unmounts.
#[derive(Debug)]
pub struct Held {
    child: Child,
    dir: tempfile::TempDir,
}

impl Held {
    /// Starts it and waits until servers can come.
    ///
    /// # Panics
    /// When it does not get that far.
    pub fn start() -> Self {
        let dir = tempfile::TempDir::with_prefix("lxcfs-held");
        let dir = dir.unwrap_or_else(|error| panic!("no temporary directory: {error}"));
        let made = (|| {
            // The server is somebody else.
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
            fs::create_dir(dir.path().join("mnt"))?;
            fs::create_dir(dir.path().join("server"))?;
            std::os::unix::fs::chown(dir.path().join("server"), Some(SERVER_UID), None)
        })();
        made.unwrap_or_else(|error| panic!("cannot prepare the directory: {error}"));
        let child = Command::new(lxcfs_binary())
            .args(["--workers", "outside", "--workers-uid"])
            .arg(SERVER_UID.to_string())
            .arg("--runtime-dir")
            .arg(dir.path())
            .arg(dir.path().join("mnt"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start lxcfs: {error}"));
        let held = Self { child, dir };
        eventually("the holder listens", || {
            held.dir.path().join("lxcfs/workers.sock").exists()
        });
        held
    }

    /// Something in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A server of another user, with what `before` does first.
    pub fn serve(&self, before: &[&str]) -> Server {
        self.serve_by(confined(before, SERVER_UID, lxcfs_binary()))
    }

    /// A server of another user with these capabilities alone.
    pub fn serve_with(&self, capabilities: &[&str]) -> Server {
        self.serve_by(confined_to(capabilities, &[], SERVER_UID, lxcfs_binary()))
    }

    fn serve_by(&self, command: Command) -> Server {
        let holder = format!("--holder={}", self.path("lxcfs/workers.sock").display());
        let own = format!("--runtime-dir={}", self.path("server").display());
        let mount = self.path("mnt").display().to_string();
        let arguments = ["serve", &holder, &own, &mount];
        Server::start(command, &arguments, &self.path("server.log"))
    }

    /// What the holder says.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn status(&self) -> Status {
        let status = Status::of(&self.path("lxcfs/holder.sock"));
        status.unwrap_or_else(|| panic!("the holder does not answer"))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _gone = kill(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGTERM,
        );
        let _reaped = self.child.wait();
    }
}

/// What a container with 128 MiB reads: its memory's line, and its uptime in seconds.
///
/// # Panics
/// When it cannot.
pub fn container_reads(mountpoint: &Path) -> (String, String) {
    let (_cgroup, container) = container(mountpoint);
    let total = container.stdout(&["grep", "MemTotal", "/proc/meminfo"]);
    (
        total,
        container.stdout(&["cut", "-d.", "-f1", "/proc/uptime"]),
    )
}

/// The line of its memory that a container with 128 MiB reads when nobody but root may look into
/// its cgroup, or what the reader complains of.
///
/// # Panics
/// When there can be no such container.
pub fn closed_container_reads(mountpoint: &Path) -> Result<String, String> {
    let (cgroup, container) = container(mountpoint);
    for dir in cgroup.dirs() {
        let closed = fs::set_permissions(&dir, fs::Permissions::from_mode(0o700));
        closed.unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    }
    let output = container.run(&["grep", "MemTotal", "/proc/meminfo"]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

fn container(mountpoint: &Path) -> (TestCgroup, Container) {
    let cgroup = TestCgroup::new("split");
    cgroup.limit_memory(128 << 20);
    let container = Container::start(&cgroup, mountpoint, &Shape::default());
    // As runtimes do: what is mounted there tells the root of its cgroup namespace, and nothing
    // of the host's is. One superblock cannot be mounted over itself.
    let kind = match crate::cgroup::layout() {
        Layout::V2 => "cgroup2",
        _ => "cgroup -o memory",
    };
    let mount = format!(
        "mount --make-rprivate / && umount -R -l /sys/fs/cgroup && mount -t {kind} cgroup /sys/fs/cgroup"
    );
    container.stdout(&["sh", "-c", &mount]);
    (cgroup, container)
}
