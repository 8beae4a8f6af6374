//! Containers that podman and an OCI runtime make.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::TestCgroup;
use crate::container::successful;

/// A container of podman's over this machine's root file system.
///
/// No image and no network are needed: its root is an overlay of `/`. It has storage, state and
/// cgroup of its own, so it meets no other container, and dropping it removes all of them.
#[derive(Debug)]
pub struct Podman {
    runtime: String,
    directory: TempDir,
    hooks: Option<PathBuf>,
    cgroup: TestCgroup,
}

const NAME: &str = "lxcfs-test";

impl Podman {
    /// Starts `sleep infinity` under `runtime` (`runc` or `crun`) with more `podman run`
    /// arguments, such as `--memory=256m` or `-v FILE:/proc/meminfo`.
    ///
    /// # Panics
    /// When podman fails; the message holds its standard error.
    pub fn start(runtime: &str, arguments: &[&str]) -> Self {
        Self::start_with(runtime, None, arguments, &["sleep", "infinity"])
    }

    /// Starts `program` with the OCI hooks that a directory describes.
    ///
    /// # Panics
    /// When podman fails; the message holds its standard error.
    pub fn start_with(
        runtime: &str,
        hooks: Option<&Path>,
        arguments: &[&str],
        program: &[&str],
    ) -> Self {
        let directory = TempDir::with_prefix("lxcfs-")
            .unwrap_or_else(|error| panic!("no temporary directory: {error}"));
        let cgroup = TestCgroup::new("podman");
        let podman = Self {
            runtime: runtime.to_owned(),
            directory,
            hooks: hooks.map(Path::to_owned),
            cgroup,
        };
        let mut run = podman.command("run");
        run.args([
            "--detach",
            "--name",
            NAME,
            "--network=none",
            "--log-driver=none",
        ]);
        run.arg(format!("--cgroup-parent={}", podman.cgroup.path()));
        // Podman's defaults raise limits, which needs CAP_SYS_RESOURCE.
        run.args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]);
        run.args(arguments).args(["--rootfs", "/:O"]).args(program);
        crate::stdout_of(&mut run);
        podman
    }

    /// Runs a program inside with `podman exec`.
    ///
    /// # Panics
    /// When podman cannot start.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut exec = self.command("exec");
        exec.arg(NAME).args(arguments);
        exec.output()
            .unwrap_or_else(|error| panic!("cannot start podman: {error}"))
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

    /// Its process 1, as the host counts.
    ///
    /// # Panics
    /// When podman does not know.
    pub fn init_pid(&self) -> u32 {
        let mut inspect = self.command("inspect");
        let pid = crate::stdout_of(inspect.args(["--format", "{{.State.Pid}}", NAME]));
        pid.trim()
            .parse()
            .unwrap_or_else(|error| panic!("{pid:?} is no pid: {error}"))
    }

    /// The cgroup that holds the container's own.
    pub fn parent_cgroup(&self) -> &TestCgroup {
        &self.cgroup
    }

    fn command(&self, verb: &str) -> Command {
        let below = |name: &str| self.directory.path().join(name);
        let mut command = Command::new("podman");
        command
            .arg("--root")
            .arg(below("root"))
            .arg("--runroot")
            .arg(below("run"));
        command
            .arg("--tmpdir")
            .arg(below("tmp"))
            .args(["--runtime", &self.runtime]);
        if let Some(hooks) = &self.hooks {
            command.arg("--hooks-dir").arg(hooks);
        }
        // Outside virtual machines there is no systemd to ask for cgroups, and no journal.
        command.args(["--cgroup-manager=cgroupfs", "--events-backend=none"]);
        command
            .args(["--storage-driver=vfs", verb])
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let removed = self
            .command("rm")
            .args(["--force", "--time=0", NAME])
            .output();
        if !removed.is_ok_and(|output| output.status.success()) {
            eprintln!(
                "podman left a container in {}",
                Path::display(self.directory.path())
            );
        }
    }
}

/// `source:/target` arguments for `podman run -v` and `docker run -v`: the files of the catalogue
/// that runc lets a spec mount, from `mountpoint`.
pub fn volumes(mountpoint: &Path) -> Vec<String> {
    lxcfs_common::catalogue::attached_by_default()
        .filter(|entry| entry.runc_allows && Path::new("/").join(entry.path).exists())
        .map(|entry| {
            format!(
                "--volume={}:/{}",
                mountpoint.join(entry.path).display(),
                entry.path
            )
        })
        .collect()
}
