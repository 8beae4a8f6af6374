//! `cargo xtask check`: what a change must pass before its tests are worth running.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::command::{cargo, output, run};
use crate::setup::{self, Purpose};
use crate::tidy;

/// Checks format, lints (warnings denied), documentation and the tree's own rules (tidy).
#[derive(Parser)]
pub(crate) struct Args {}

impl Args {
    /// Runs every check; stops at the first that fails.
    pub(crate) fn run(self) -> Result<ExitCode> {
        setup::ensure(&[Purpose::Build])?;
        println!("check: with {}", output(cargo().arg("--version"))?.trim());
        step("format", cargo().args(["fmt", "--all", "--check"]))?;
        let clippy = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--features=lxcfs-tests/vm-tests",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ];
        step("clippy", cargo().args(clippy))?;
        let doc = [
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
            "--quiet",
        ];
        step(
            "documentation",
            cargo().args(doc).env("RUSTDOCFLAGS", "-D warnings"),
        )?;
        println!("check: tidy");
        if !tidy::report()? {
            return Ok(ExitCode::FAILURE);
        }
        println!("check: everything passed");
        Ok(ExitCode::SUCCESS)
    }
}

fn step(name: &str, command: &mut std::process::Command) -> Result<()> {
    println!("check: {name}");
    run(command)
}
