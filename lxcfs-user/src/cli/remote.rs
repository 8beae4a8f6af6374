//! Commands that ask the running daemon, or its mount.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::args::{FileArgs, LogLevelArgs, ProbeArgs, RuntimeArgs};
use super::file_settings;
use crate::config::{self, DEFAULT_RUNTIME_DIR};
use crate::observe::{client, probe};
use crate::policy::Named as _;

/// The answer of the daemon under `runtime` to `target`.
fn ask(runtime: &RuntimeArgs, put: bool, target: &str) -> Result<client::Answer> {
    let configured = file_settings(&FileArgs::default())?.runtime_dir;
    let dir = runtime.runtime_dir.clone().or(configured);
    let dir = dir.as_deref().unwrap_or(Path::new(DEFAULT_RUNTIME_DIR));
    let socket = config::control_socket(dir);
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
    let program = std::env::current_exe().context("cannot tell our own program")?;
    let deadline = Duration::from_millis(args.deadline_ms);
    probe::MountProbe::new(program, args.mountpoint.clone(), deadline)
        .check()
        .map_err(anyhow::Error::msg)?;
    println!("ok");
    Ok(ExitCode::SUCCESS)
}
