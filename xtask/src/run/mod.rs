//! `cargo xtask run`: builds, serves, and shows what a container sees beside the host.

mod container;
mod table;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::command::{cargo, is_root, output, repository, run};
use crate::setup::{self, Purpose};
use container::Container;
use table::{QUESTIONS, draw};

/// Builds and mounts lxcfs, starts a container and shows its view beside the host's.
///
/// The container has 256 MiB, half a CPU and this machine's own tools. After the table lxcfs serves
/// until Ctrl-C; nothing is left behind. Must run as root.
#[derive(Parser)]
pub(crate) struct Args {
    /// End after the table.
    #[arg(long)]
    once: bool,
    /// Where to mount.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lxcfs")]
    mount: PathBuf,
}

impl Args {
    /// Serves until Ctrl-C, or ends after the table.
    pub(crate) fn run(self) -> Result<ExitCode> {
        if !is_root() {
            bail!(
                "mounting and starting a container need root, for example: \
                 sudo env \"PATH=$PATH\" cargo xtask run"
            );
        }
        setup::ensure(&[Purpose::Build, Purpose::Run])?;
        println!("Building lxcfs (release)");
        run(cargo().args(["build", "--release", "-p", "lxcfs-user", "--bin", "lxcfs"]))?;

        let signals = signals()?;
        let mut daemon = Daemon::start(&self.mount)?;
        println!("Serving on {}", self.mount.display());
        println!("Starting a container with 256 MiB and half a CPU");
        let container = Container::start(&self.mount)?;
        daemon.attach(&container.init_pid()?)?;
        println!("\n{}", draw(&ask_both(&container)?));
        println!(
            "In the container, top -bn1 begins:\n{}\n",
            container.ask("top -bn1 | head -5")?
        );
        if !self.once {
            println!("Look around: {}", container.shell());
            println!("Ctrl-C ends the container, lxcfs and its mount.");
            daemon.serve_until(&signals)?;
        }
        drop(container);
        daemon.stop()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The running daemon; stopped when dropped.
struct Daemon {
    child: Child,
    binary: PathBuf,
    mountpoint: PathBuf,
    runtime: PathBuf,
    made_mountpoint: bool,
}

impl Daemon {
    fn start(mountpoint: &Path) -> Result<Self> {
        let binary = target_dir().join("release/lxcfs");
        let made_mountpoint = !mountpoint.exists();
        fs::create_dir_all(mountpoint)
            .with_context(|| format!("cannot create {}", mountpoint.display()))?;
        let runtime = PathBuf::from(format!("/run/lxcfs-xtask-{}", std::process::id()));
        fs::create_dir_all(&runtime)
            .with_context(|| format!("cannot create {}", runtime.display()))?;
        let mut command = Command::new(&binary);
        command
            .args(["--log-level", "warn", "--runtime-dir"])
            .arg(&runtime)
            .arg(mountpoint)
            .stdin(Stdio::null());
        // A process group of its own: Ctrl-C is ours to handle, in order.
        command.process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let mountpoint = mountpoint.to_owned();
        let mut daemon = Self {
            child,
            binary,
            mountpoint,
            runtime,
            made_mountpoint,
        };
        daemon.wait_until_served()?;
        Ok(daemon)
    }

    fn wait_until_served(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        while fs::read(self.mountpoint.join("proc/meminfo")).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("lxcfs ended at start: {status}. Another place: --mount DIR");
            }
            if Instant::now() > end {
                bail!("lxcfs does not serve on {}", self.mountpoint.display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Gives the container the files that its definition could not name.
    fn attach(&self, pid: &str) -> Result<()> {
        let mut attach = Command::new(&self.binary);
        attach
            .args(["attach", "--pid", pid, "--mount"])
            .arg(&self.mountpoint);
        run(attach.stdout(Stdio::null())).context("the rest of the files could not be attached")
    }

    fn serve_until(&mut self, signals: &Receiver<Signal>) -> Result<()> {
        loop {
            match signals.recv_timeout(Duration::from_secs(1)) {
                Ok(_) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(status) = self.child.try_wait()? {
                        bail!("lxcfs ended by itself: {status}");
                    }
                }
            }
        }
    }

    /// Ends it as systemd would and checks that it leaves nothing.
    fn stop(mut self) -> Result<()> {
        kill(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGTERM,
        )?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("lxcfs did not end well after SIGTERM: {status}");
        }
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let own = self.mountpoint.to_string_lossy();
        if mounts
            .lines()
            .any(|line| line.split(' ').nth(1) == Some(&*own))
        {
            bail!("lxcfs left its mount on {own} behind");
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = kill(
                Pid::from_raw(self.child.id().cast_signed()),
                Signal::SIGTERM,
            );
            let _ = self.child.wait();
        }
        let _ = fs::remove_dir_all(&self.runtime);
        if self.made_mountpoint {
            let _ = fs::remove_dir(&self.mountpoint);
        }
    }
}

/// Asks every question on both sides.
fn ask_both(container: &Container) -> Result<Vec<(&'static str, String, String)>> {
    let mut rows = Vec::new();
    for question in QUESTIONS {
        let host = output(Command::new("sh").args(["-c", question.shell]))?;
        rows.push((
            question.tool,
            host.trim().to_owned(),
            container.ask(question.shell)?,
        ));
    }
    Ok(rows)
}

/// Receives INT, TERM and HUP from now on, instead of dying of them.
fn signals() -> Result<Receiver<Signal>> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    // Threads and children start with this mask; the standard library clears it in children.
    set.thread_block()?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || while set.wait().is_ok_and(|signal| sender.send(signal).is_ok()) {});
    Ok(receiver)
}

/// Where cargo puts what it builds.
fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| repository().join("target"), |dir| repository().join(dir))
}
