//! Containers and servers that tests start, and that end with the guard.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// A running container made by the `subject` program.
pub struct Subject {
    outer: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Its init, by the host's numbers.
    pub pid: u32,
}

impl Subject {
    /// Starts the program at `subject` with these options.
    ///
    /// # Errors
    /// It does not come up: namespaces need root.
    pub fn start(subject: &str, options: &[&str]) -> anyhow::Result<Self> {
        let mut outer = Command::new(subject)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a container: are you root?")?;
        let input = outer.stdin.take().context("stdin")?;
        let mut output = BufReader::new(outer.stdout.take().context("stdout")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let pid = line.trim().parse().context("the container did not start")?;
        line.clear();
        output.read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("the container did not get ready: {line:?}");
        }
        Ok(Self {
            outer,
            input,
            output,
            pid,
        })
    }

    /// Sends one command and returns its answer.
    ///
    /// # Errors
    /// The container is gone.
    pub fn ask(&mut self, command: &str) -> anyhow::Result<String> {
        writeln!(self.input, "{command}")?;
        self.input.flush()?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// The container's mount table as text.
    ///
    /// # Errors
    /// The container is gone.
    pub fn mountinfo(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(format!(
            "/proc/{}/mountinfo",
            self.pid
        ))?)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // The outer process ends when it has reaped the init.
        if let Ok(pid) = i32::try_from(self.pid) {
            let init = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.outer.wait();
    }
}

/// A mount of the `marker-fs` program.
pub struct MarkerFs {
    child: Child,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
}

impl MarkerFs {
    /// Mounts it on `mountpoint`, which is made when missing.
    ///
    /// # Errors
    /// It does not answer within ten seconds.
    pub fn start(program: &str, mountpoint: &Path, text: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(mountpoint)?;
        let child = Command::new(program).arg(mountpoint).arg(text).spawn()?;
        let server = Self {
            child,
            mountpoint: mountpoint.to_owned(),
        };
        let began = Instant::now();
        let probe = mountpoint.join("proc/meminfo");
        while !std::fs::read_to_string(&probe).is_ok_and(|found| found.starts_with(text)) {
            if began.elapsed() > Duration::from_secs(10) {
                bail!(
                    "{} does not serve: is /dev/fuse usable?",
                    mountpoint.display()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Kills the server: every file descriptor of its connection is lost.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops the server: its connection stays, and every request waits.
    ///
    /// # Errors
    /// It is gone.
    pub fn suspend(&self) -> anyhow::Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        Ok(nix::sys::signal::kill(
            pid,
            nix::sys::signal::Signal::SIGSTOP,
        )?)
    }
}

impl Drop for MarkerFs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = nix::mount::umount2(&self.mountpoint, nix::mount::MntFlags::MNT_DETACH);
    }
}
