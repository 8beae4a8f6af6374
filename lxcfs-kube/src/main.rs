//! `lxcfs-webhook`: the admission webhook and the manifests. `lxcfs webhook` and
//! `lxcfs manifests` run it.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser;
use lxcfs_kube::cli::{Cli, Command};
use lxcfs_kube::run;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("LXCFS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let result = match &cli.command {
        Command::Webhook(args) => run::webhook(args),
        Command::Manifests(args) => run::manifests(args),
        Command::StartTaint(args) => run::start_taint(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lxcfs-webhook: {error:#}");
            ExitCode::FAILURE
        }
    }
}
