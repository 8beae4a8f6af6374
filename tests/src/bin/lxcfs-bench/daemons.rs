//! The servers under test, each on a mountpoint of its own, stopped and unmounted on drop.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A running server.
pub(crate) struct Server {
    child: Child,
    /// Where it is mounted.
    pub(crate) mountpoint: PathBuf,
    /// From start to the first answer.
    pub(crate) ready_after: Duration,
}

impl Server {
    /// Starts `command MOUNTPOINT …` and waits until `probe` below it can be read.
    fn start(mut command: Command, mountpoint: PathBuf, probe: &str) -> Result<Self> {
        let start = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        while fs::read(mountpoint.join(probe)).is_err() {
            if let Some(status) = child.try_wait()? {
                bail!("{command:?} ended at once: {status}");
            }
            if start.elapsed() > Duration::from_secs(20) {
                bail!("{command:?} did not serve {probe} within 20 s");
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(Self {
            child,
            mountpoint,
            ready_after: start.elapsed(),
        })
    }

    /// Our daemon, with extra arguments.
    pub(crate) fn ours(program: &Path, base: &Path, name: &str, extra: &[&str]) -> Result<Self> {
        let (mountpoint, runtime) = directories(base, name)?;
        let mut command = Command::new(program);
        command.arg(&mountpoint).arg("--runtime-dir").arg(&runtime);
        command
            .arg("--pidfile")
            .arg(runtime.join("pid"))
            .args(extra);
        Self::start(command, mountpoint, "proc/meminfo")
    }

    /// C lxcfs.
    pub(crate) fn peer(program: &Path, lib: &Path, base: &Path) -> Result<Self> {
        let (mountpoint, runtime) = directories(base, "peer")?;
        let mut command = Command::new(program);
        command.args(["-f", "-l", "--enable-cfs"]).arg(&mountpoint);
        command
            .arg("-p")
            .arg(runtime.join("pid"))
            .env("LD_LIBRARY_PATH", lib);
        Self::start(command, mountpoint, "proc/meminfo")
    }

    /// The null file system.
    pub(crate) fn null(base: &Path, loops: usize, size: usize) -> Result<Self> {
        let (mountpoint, _) = directories(base, &format!("null{loops}"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("null")
            .arg(&mountpoint)
            .args([loops.to_string(), size.to_string()]);
        Self::start(command, mountpoint, "file")
    }

    /// Pids of the server and everything below it.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let mut pids = vec![self.child.id()];
        let mut at = 0;
        while at < pids.len() {
            let path = format!("/proc/{0}/task/{0}/children", pids[at]);
            let text = fs::read_to_string(path).unwrap_or_default();
            pids.extend(
                text.split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
            at += 1;
        }
        pids
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // SAFETY: signalling our own unreaped child; the pid cannot have been reused.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let deadline = Instant::now() + Duration::from_secs(8);
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Ok(path) = CString::new(self.mountpoint.as_os_str().as_encoded_bytes()) {
            // SAFETY: a valid C string; failing (not mounted any more) is the normal case.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

fn directories(base: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
    let (mountpoint, runtime) = (base.join(name), base.join(format!("{name}.run")));
    fs::create_dir_all(&mountpoint)?;
    fs::create_dir_all(&runtime)?;
    Ok((mountpoint, runtime))
}
