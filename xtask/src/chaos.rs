//! `cargo xtask chaos`: kills workers at random moments while readers check every byte.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::command::{cargo, is_root, repository, run};
use crate::setup::{self, Purpose};

/// Kills the serving worker again and again under 64 readers that check every byte, and prints
/// errors and the time from kill to serving. Then measures how long readers wait under three
/// loads, with and without a standby. Fails on the first wrong byte, error or hang.
#[derive(Parser)]
pub(crate) struct Args {
    /// Workers to kill.
    #[arg(long, default_value_t = 1000)]
    kills: u32,
    /// Longest pause before the next kill, in milliseconds.
    #[arg(long, default_value_t = 30)]
    pause_msec: u32,
    /// Keep no standby worker, so that every start is cold.
    #[arg(long)]
    cold: bool,
    /// Reader threads, spread over four processes.
    #[arg(long, default_value_t = 64)]
    readers: u32,
    /// Kills for each of the six figures about waiting readers; 0 leaves them out.
    #[arg(long, default_value_t = 200)]
    waits: u32,
    /// Use a build without optimisation (faster to build, slower to serve).
    #[arg(long)]
    debug: bool,
    /// Link the server statically, as released programs are: a cold start is shorter by what the
    /// dynamic linker takes.
    #[arg(long)]
    r#static: bool,
}

impl Args {
    /// Builds the test server and lets it torment itself.
    pub(crate) fn run(self) -> Result<ExitCode> {
        setup::ensure(&[Purpose::Build])?;
        if !is_root() {
            bail!("chaos mounts a file system: run it as root");
        }
        let mut build = cargo();
        build.args([
            "build",
            "--quiet",
            "-p",
            "lxcfs-tests",
            "--bin",
            "serve-fixture",
        ]);
        let profile = if self.debug { "debug" } else { "release" };
        if !self.debug {
            build.arg("--release");
        }
        let mut target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| repository().join("target"), PathBuf::from);
        if self.r#static {
            // Named, so that build scripts and macros are not linked that way too.
            let machine = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
            target.push("static");
            build.env("RUSTFLAGS", "-C target-feature=+crt-static");
            build.arg("--target-dir").arg(&target);
            build.args(["--target", &machine]);
            target.push(machine);
        }
        run(&mut build)?;
        let server = target.join(profile).join("serve-fixture");
        let status = Command::new(&server)
            .arg("chaos")
            .args(
                [
                    self.kills,
                    self.pause_msec,
                    u32::from(!self.cold),
                    self.readers,
                ]
                .map(|n| n.to_string()),
            )
            .status()
            .with_context(|| format!("cannot start {}", server.display()))?;
        if !status.success() {
            return Ok(ExitCode::FAILURE);
        }
        if self.waits > 0 {
            run(Command::new(&server).args(["waits", &self.waits.to_string()]))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
