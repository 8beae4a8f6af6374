//! Commands that ask the running daemon, or its mount.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use lxcfs_holder::control::{Request, ask as ask_holder};

use super::args::{FileArgs, LogLevelArgs, ProbeArgs, RuntimeArgs, StatusArgs, UpgradeArgs};
use super::file_settings;
use crate::config::{self, DEFAULT_RUNTIME_DIR};
use crate::observe::{client, probe};
use crate::policy::Named as _;

/// A new program is loaded, tested and switched to in this time, or something is wrong.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(60);

/// The answer of the daemon under `runtime` to `target`.
fn ask(runtime: &RuntimeArgs, put: bool, target: &str) -> Result<client::Answer> {
    let socket = config::control_socket(&runtime_dir(runtime)?);
    let answer = if put {
        client::put(&socket, target)
    } else {
        client::get(&socket, target)
    };
    answer.with_context(|| {
        format!(
            "no daemon answers on {}; is lxcfs running (systemctl status lxcfs), and with this \
             --runtime-dir?",
            socket.display()
        )
    })
}

/// The runtime directory that `runtime` or the configuration file names.
fn runtime_dir(runtime: &RuntimeArgs) -> Result<PathBuf> {
    let configured = file_settings(&FileArgs::default())?.runtime_dir;
    let dir = runtime.runtime_dir.clone().or(configured);
    Ok(dir.unwrap_or_else(|| DEFAULT_RUNTIME_DIR.into()))
}

pub(super) fn upgrade(args: &UpgradeArgs) -> Result<ExitCode> {
    let socket = config::holder_socket(&runtime_dir(&args.runtime)?);
    let binary = match &args.binary {
        Some(binary) => std::path::absolute(binary)?,
        None => PathBuf::new(),
    };
    let answer =
        ask_holder(&socket, &Request::Upgrade(binary), UPGRADE_PATIENCE).with_context(|| {
            format!(
                "no holder answers on {}; is lxcfs running?",
                socket.display()
            )
        })?;
    match answer {
        Ok(text) => println!("{text}"),
        Err(why) => bail!("not upgraded, the running program goes on: {why}"),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn log_level(args: &LogLevelArgs) -> Result<ExitCode> {
    let target = format!("/log-level?{}", args.level.name());
    let answer = ask(&args.runtime, true, &target)?;
    if answer.status != 200 {
        bail!("the daemon refused: {}", answer.body.trim_end());
    }
    print!("{}", answer.body);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn probe(args: &ProbeArgs) -> Result<ExitCode> {
    if args.read {
        println!("{}", probe::read_mount(&args.mountpoint));
        return Ok(ExitCode::SUCCESS);
    }
    let deadline = Duration::from_millis(args.deadline_ms);
    probe_mount(&args.mountpoint, deadline).map_err(anyhow::Error::msg)?;
    println!("ok");
    Ok(ExitCode::SUCCESS)
}

/// Whether the mount answers another process within `deadline`.
pub(super) fn probe_mount(mountpoint: &Path, deadline: Duration) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    probe::MountProbe::new(program, mountpoint.to_owned(), deadline).check()
}

pub(super) fn status(args: &StatusArgs) -> Result<ExitCode> {
    let answer = ask(&args.runtime, false, "/status")?;
    if args.json {
        print!("{}", answer.body);
        return Ok(ExitCode::SUCCESS);
    }
    let status: serde_json::Value =
        serde_json::from_str(&answer.body).context("the daemon's answer makes no sense")?;
    println!("{}", one_line(&status));
    Ok(ExitCode::SUCCESS)
}

/// A daemon's status in a sentence.
pub(super) fn one_line(status: &serde_json::Value) -> String {
    let text = |key: &str| status[key].as_str().unwrap_or("?").to_owned();
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    let view = if status["host_view"].as_bool().unwrap_or(false) {
        "; SIGUSR2 has switched all views to the host's"
    } else {
        ""
    };
    format!(
        "lxcfs {} serves {} (worker {}, up {} s, {} workers so far){view}",
        text("version"),
        text("mountpoint"),
        number("worker_pid"),
        number("uptime_seconds"),
        number("workers_started"),
    )
}
