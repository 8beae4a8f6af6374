//! The demonstration container: podman over this machine's own root, with its own state.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lxcfs_common::catalogue;

use crate::command::{output, shown};

/// A container that is removed, with its storage and cgroups, when dropped.
pub(crate) struct Container {
    name: String,
    directory: PathBuf,
}

impl Container {
    /// Starts `sleep infinity` with 256 MiB, half a CPU, and the files of `mountpoint` that a
    /// runtime lets a container's definition mount.
    pub(crate) fn start(mountpoint: &Path) -> Result<Self> {
        let name = format!("lxcfs-demo-{}", std::process::id());
        // podman refuses long paths here.
        let container = Self {
            directory: Path::new("/run").join(&name),
            name,
        };
        fs::create_dir(&container.directory)
            .with_context(|| format!("cannot create {}", container.directory.display()))?;
        let mut run = container.podman("run");
        run.args([
            "--detach",
            "--network=none",
            "--log-driver=none",
            "--name",
            &container.name,
        ]);
        run.args(["--hostname", "demo", "--cgroup-parent"])
            .arg(format!("/{}", container.name));
        run.args(["--memory=256m", "--cpus=0.5", "--cpuset-cpus"])
            .arg(first_cpu()?);
        // podman's own defaults raise limits, which not every root may do.
        run.args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]);
        run.args(volumes(mountpoint));
        // An overlay of the host's root: the same tools on both sides, and no image to pull.
        run.args(["--rootfs", "/:O", "sleep", "infinity"]);
        output(&mut run).context("the demonstration container did not start")?;
        Ok(container)
    }

    /// The command that opens a shell inside.
    pub(crate) fn shell(&self) -> String {
        let mut exec = self.podman("exec");
        shown(exec.args(["-it", &self.name, "bash"]))
    }

    /// The output of shell text inside, trimmed.
    pub(crate) fn ask(&self, shell: &str) -> Result<String> {
        let mut exec = self.podman("exec");
        Ok(output(exec.args([&self.name, "sh", "-c", shell]))?
            .trim()
            .to_owned())
    }

    /// Its process 1, as the host counts.
    pub(crate) fn init_pid(&self) -> Result<String> {
        let mut inspect = self.podman("inspect");
        let pid = output(inspect.args(["--format", "{{.State.Pid}}", &self.name]))?;
        Ok(pid.trim().to_owned())
    }

    fn podman(&self, verb: &str) -> Command {
        let below = |name: &str| self.directory.join(name);
        let mut podman = Command::new("podman");
        podman
            .arg("--root")
            .arg(below("root"))
            .arg("--runroot")
            .arg(below("run"));
        podman
            .arg("--tmpdir")
            .arg(below("tmp"))
            .args(["--runtime=runc", "--storage-driver=vfs"]);
        podman.args(["--cgroup-manager=cgroupfs", "--events-backend=none", verb]);
        podman
    }

    fn remove(&self) -> Result<()> {
        let mut remove = self.podman("rm");
        remove
            .args(["--force", "--time=0", &self.name])
            .stdin(Stdio::null());
        let removed = remove.output().context("cannot start podman")?;
        if !removed.status.success() {
            bail!(
                "`{}`: {}",
                shown(&remove),
                String::from_utf8_lossy(&removed.stderr)
            );
        }
        let end = Instant::now() + Duration::from_secs(10);
        for directory in cgroups(&self.name) {
            while !removed_cgroup(&directory) {
                // conmon needs a moment to notice the end of its container.
                if Instant::now() > end {
                    bail!("cannot remove the cgroup {}", directory.display());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        fs::remove_dir_all(&self.directory)
            .with_context(|| format!("cannot remove {}", self.directory.display()))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("the demonstration container is left behind: {error:#}");
        }
    }
}

/// Arguments that mount the catalogue's files as every Docker user does.
fn volumes(mountpoint: &Path) -> Vec<String> {
    catalogue::attached_by_default()
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

/// The first CPU this process may run on: one CPU for `nproc`, which asks the scheduler.
fn first_cpu() -> Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let first = list.and_then(|list| list.trim().split([',', '-']).next());
    first
        .map(str::to_owned)
        .context("no Cpus_allowed_list in /proc/self/status")
}

/// The directories of the top-level cgroup `name` in every hierarchy.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let mounted = fs::read_dir(top)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    std::iter::once(top.to_owned())
        .chain(mounted)
        .map(|hierarchy| hierarchy.join(name))
        .filter(|directory| directory.is_dir())
        .collect()
}

/// Removes a cgroup and those below it; false while a process is left in one.
fn removed_cgroup(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else {
        return true;
    };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        removed_cgroup(&entry.path());
    }
    fs::remove_dir(directory).is_ok()
}
