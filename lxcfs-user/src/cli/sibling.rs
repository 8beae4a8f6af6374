//! `lxcfs webhook` and `lxcfs manifests` live in a program of their own, so that the
//! privileged daemon carries no Kubernetes client and no TLS.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

const PROGRAM: &str = "lxcfs-webhook";

/// Becomes `lxcfs-webhook COMMAND ARGUMENTS…`; returns only when that cannot start.
pub(super) fn exec(command: &str, arguments: &[OsString]) -> Result<ExitCode> {
    let program = beside_us().unwrap_or_else(|| PathBuf::from(PROGRAM));
    let error = Command::new(&program).arg(command).args(arguments).exec();
    bail!(
        "cannot start {}: {error}; install it beside lxcfs or in PATH (it is built with \
         `cargo build --release -p lxcfs-kube`)",
        program.display()
    )
}

/// The one that was installed together with this binary, if any.
fn beside_us() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?.with_file_name(PROGRAM);
    program.is_file().then_some(program)
}
