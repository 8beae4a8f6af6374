//! A container for the measurements: cgroups of its own in every hierarchy and its own PID,
//! mount and cgroup namespaces, on any cgroup layout.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// Cgroup directories of one container, removed on drop.
pub(crate) struct Cgroup {
    directories: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes `name` with a 256 MiB memory limit and half a CPU in every hierarchy there is.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let mut cgroup = Self {
            directories: Vec::new(),
        };
        for root in hierarchies()? {
            let directory = root.join(name);
            fs::create_dir_all(&directory)
                .with_context(|| format!("creating cgroup {}", directory.display()))?;
            cgroup.directories.push(directory.clone());
            // v1's cpuset is empty at birth and refuses tasks until it is filled.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if root.join("tasks").exists() && root.join(file).exists() {
                    fs::write(directory.join(file), fs::read(root.join(file))?)?;
                }
            }
            for (file, value) in [
                ("memory.limit_in_bytes", "268435456"),
                ("memory.max", "268435456"),
                ("cpu.cfs_quota_us", "50000"),
                ("cpu.max", "50000 100000"),
            ] {
                if directory.join(file).exists() {
                    fs::write(directory.join(file), value)?;
                }
            }
        }
        Ok(cgroup)
    }

    /// Lifts the CPU quota, so that a measurement is not throttled.
    pub(crate) fn unthrottle(&self) {
        for directory in &self.directories {
            for (file, value) in [("cpu.cfs_quota_us", "-1"), ("cpu.max", "max 100000")] {
                if directory.join(file).exists() {
                    let _ = fs::write(directory.join(file), value);
                }
            }
        }
    }

    /// A command whose process will be PID 1 of a container in this cgroup.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("unshare");
        command.args([
            "--pid",
            "--mount",
            "--cgroup",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]);
        command.arg(program);
        let files: Vec<PathBuf> = self
            .directories
            .iter()
            .map(|directory| directory.join("cgroup.procs"))
            .collect();
        // SAFETY: the closure runs between fork and exec in a single-threaded child of a
        // process without locks held across fork; it only opens, writes and closes files.
        unsafe {
            command.pre_exec(move || files.iter().try_for_each(|file| fs::write(file, "0")));
        }
        command
    }

    /// Runs `program` with `args` in the container and returns its lines.
    pub(crate) fn lines(&self, program: &Path, args: &[String]) -> Result<Vec<String>> {
        let mut child = self
            .command(program)
            .args(args)
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("no stdout")?;
        let lines = BufReader::new(output)
            .lines()
            .collect::<Result<Vec<_>, _>>()?;
        let status = child.wait()?;
        anyhow::ensure!(status.success(), "{} failed: {status}", program.display());
        Ok(lines)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for directory in self.directories.iter().rev() {
            // The last exiting task may still be on its way out.
            for _ in 0..200 {
                match fs::remove_dir(directory) {
                    Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                        std::thread::sleep(std::time::Duration::from_millis(10));
                    }
                    _ => break,
                }
            }
        }
    }
}

/// Roots of all mounted hierarchies, v2's last.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut v1 = Vec::new();
    let mut v2 = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        let (Some(_), Some(path), Some(kind), Some(options)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let wanted = ["memory", "cpu", "cpuacct", "cpuset", "blkio"];
        if kind == "cgroup2" {
            v2.push(PathBuf::from(path));
        } else if kind == "cgroup" && options.split(',').any(|option| wanted.contains(&option)) {
            v1.push(PathBuf::from(path));
        }
    }
    for root in &v2 {
        let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
        let enable: Vec<String> = controllers
            .split_whitespace()
            .map(|c| format!("+{c}"))
            .collect();
        let _ = fs::write(root.join("cgroup.subtree_control"), enable.join(" "));
    }
    v1.extend(v2);
    Ok(v1)
}
