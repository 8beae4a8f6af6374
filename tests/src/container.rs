//! Containers to look into, made of namespaces alone.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::TestCgroup;
use crate::burner::enter;

/// Namespaces of their own (PID, mount, UTS, IPC and, where wanted, cgroup and user) in a
/// cgroup, over this machine's root file system, so that its real tools run inside.
///
/// Its process 1 sleeps; [`Container::run`] runs programs beside it. Dropping it kills all.
#[derive(Debug)]
pub struct Container {
    child: Child,
    init: u32,
    enter: String,
    user_namespace: bool,
}

/// What [`Container::start`] makes.
#[derive(Clone, Debug)]
pub struct Shape {
    /// A cgroup namespace of its own.
    pub cgroup_namespace: bool,
    /// A user namespace of its own, root mapped to root.
    pub user_namespace: bool,
    /// Files to bind from a mountpoint over the container's own: `proc/meminfo`, `sys/devices/…`.
    pub files: Vec<String>,
}

impl Default for Shape {
    fn default() -> Self {
        let files = lxcfs_common::catalogue::attached_by_default();
        Self {
            cgroup_namespace: true,
            user_namespace: false,
            files: files.map(|entry| entry.path.to_owned()).collect(),
        }
    }
}

impl Container {
    /// Starts a container in `cgroup` with the files of `shape` bound from `mountpoint`. A file
    /// that this kernel does not have (`/proc/pressure/irq` before 6.1) is left out.
    ///
    /// # Panics
    /// When the kernel refuses any step.
    pub fn start(cgroup: &TestCgroup, mountpoint: &Path, shape: &Shape) -> Self {
        crate::require_root();
        let mut inside = String::new();
        for file in shape
            .files
            .iter()
            .filter(|file| Path::new("/").join(file).exists())
        {
            let from = mountpoint.join(file);
            let _ = write!(
                inside,
                "mount --bind '{}' '/{file}' || exit 98; ",
                from.display()
            );
        }
        inside += "echo ready; exec sleep infinity";
        let mut flags = "--pid --mount --uts --ipc --fork --kill-child --mount-proc".to_owned();
        if shape.cgroup_namespace {
            flags += " --cgroup";
        }
        if shape.user_namespace {
            flags += " --user --map-root-user";
        }
        let script = format!("{}exec unshare {flags} -- sh -c \"$0\"", enter(cgroup));
        let mut child = Command::new("sh")
            .args(["-c", &script, &inside])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start sh: {error}"));
        let mut ready = [0; 6];
        let stdout = child.stdout.as_mut().expect("piped above");
        if std::io::Read::read_exact(stdout, &mut ready).is_err() {
            let status = child.wait();
            panic!("the container did not start: {status:?} (97: cgroup, 98: bind mount)");
        }
        let init = only_child_of(child.id());
        Self {
            child,
            init,
            enter: enter(cgroup),
            user_namespace: shape.user_namespace,
        }
    }

    /// Its process 1, as the host counts.
    pub fn init_pid(&self) -> u32 {
        self.init
    }

    /// Runs a program inside, in the container's cgroup and namespaces.
    ///
    /// # Panics
    /// When nsenter cannot start.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let user = if self.user_namespace { " --user" } else { "" };
        let script = format!(
            "{}exec nsenter --target {}{user} --pid --mount --uts --ipc --cgroup -- \"$0\" \"$@\"",
            self.enter, self.init
        );
        Command::new("sh")
            .args(["-c", &script])
            .args(arguments)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("cannot start sh: {error}"))
    }

    /// The standard output of a program run inside.
    ///
    /// # Panics
    /// When it fails.
    pub fn stdout(&self, arguments: &[&str]) -> String {
        successful(arguments, &self.run(arguments))
    }

    /// The content of a file as a process inside reads it.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn read(&self, path: &str) -> String {
        self.stdout(&["cat", path])
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Process 1 takes all inside with it; unshare reaps it and ends. While unshare lives, the
        // pid cannot have been given to another process.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill(Pid::from_raw(self.init.cast_signed()), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

pub(crate) fn only_child_of(pid: u32) -> u32 {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        let children = std::fs::read_to_string(&path).unwrap_or_default();
        if let Some(Ok(child)) = children.split_whitespace().next().map(str::parse) {
            return child;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{path} stays empty");
}

pub(crate) fn successful(arguments: &[&str], output: &Output) -> String {
    assert!(
        output.status.success(),
        "{arguments:?} inside: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
