//! From the command line to the holder: announce, lock the pidfile, exec.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use lxcfs_holder::HolderOptions;

use super::pidfile::Pidfile;
use crate::config::{Config, Workers, workers_socket};
use crate::host::position;
use crate::host::reader::HostReader;
use crate::observe::log;

/// First word of a worker's arguments.
pub const WORKER_COMMAND: &str = "worker";

/// Where the holder listens.
#[must_use]
pub fn holder_socket(config: &Config) -> PathBuf {
    crate::config::holder_socket(&config.runtime_dir)
}

/// Serves as `config` says by becoming the holder; returns only if that is not possible.
/// `words` are the arguments as typed, which every worker reads again, with the
/// configuration file of its own time.
///
/// # Errors
/// When this machine or this place cannot serve, another instance runs, or the pidfile
/// cannot be made. The message says what to do.
pub fn launch(config: &Config, notes: &[String], words: &[OsString]) -> Result<()> {
    log::start(config.log_level, config.log_format);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        mountpoint = %config.mountpoint.display(),
        "lxcfs starts"
    );
    for note in notes {
        tracing::info!("{note}");
    }
    let host = HostReader::live()?;
    position::check(&position::own_namespaces(&host)?)?;
    drop(host);
    let pidfile = Pidfile::lock(&config.pidfile)?;
    pidfile
        .keep_across_exec()
        .context("cannot keep the pidfile")?;
    let error = lxcfs_holder::exec(&options(config, words));
    let _ = std::fs::remove_file(&config.pidfile);
    Err(error).context("cannot start the holder")
}

/// The command that started the daemon.
#[derive(Clone, Debug)]
pub struct Typed {
    /// The directory it was given in.
    pub base_dir: PathBuf,
    /// Its arguments.
    pub words: Vec<OsString>,
}

impl Typed {
    /// Gives the command once more, after the holder died, until a new holder has taken the
    /// connection over and ended us. A service manager does so by itself, and would not know ours.
    pub fn start_again(&self) {
        if std::env::var_os(lxcfs_holder::MANAGED_ENV).is_some() {
            return;
        }
        tracing::warn!("the holder died; starting another");
        let mut pause = Duration::from_secs(1);
        loop {
            let ended = Command::new("/proc/self/exe")
                .args(&self.words)
                .current_dir(&self.base_dir)
                .stdin(Stdio::null())
                .process_group(0)
                .status();
            match ended {
                Ok(status) => tracing::warn!(%status, "the other holder ended, too"),
                Err(error) => tracing::error!(%error, "cannot start lxcfs again"),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(60));
        }
    }
}

fn options(config: &Config, words: &[OsString]) -> HolderOptions {
    // The executable is the holder's own; the working directory makes relative paths mean
    // in a worker what they meant here.
    let here = std::env::current_dir().unwrap_or_else(|_gone| Path::new("/").to_owned());
    let mut worker: Vec<OsString> = vec![OsString::new(), WORKER_COMMAND.into()];
    let mut base = OsString::from("--base-dir=");
    base.push(here);
    worker.push(base);
    worker.extend(words.iter().cloned());
    HolderOptions {
        nonempty: config.nonempty,
        loops: config.threads.unwrap_or(0),
        control: Some(holder_socket(config)),
        outside: (config.workers == Workers::Outside).then(|| workers_socket(&config.runtime_dir)),
        outside_uid: config.workers_uid,
        pidfile: Some(config.pidfile.clone()),
        own_dir: holder_socket(config).parent().map(Path::to_owned),
        ..HolderOptions::new(config.mountpoint.clone(), worker)
    }
}
