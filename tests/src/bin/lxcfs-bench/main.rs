//! The benchmarks: every figure is printed beside the peers measured in the same run, as
//! a ratio. Absolute times of a shared machine mean little; ratios hold.
//!
//! Run through `cargo xtask bench`, which builds a release `lxcfs` and fetches the peer.

mod container;
mod contention;
mod daemons;
mod null;
mod probe;
mod runs;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lxcfs_tests::report;

/// Measures lxcfs beside the kernel's own procfs, a null FUSE file and C lxcfs.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the benchmarks (all of them when none is named).
    Run(RunArgs),
    /// Internal: serve a file that costs nothing, the floor of any FUSE file system.
    #[command(hide = true)]
    Null {
        mountpoint: PathBuf,
        loops: usize,
        size: usize,
    },
    /// Internal: the measuring process inside a container.
    #[command(hide = true)]
    Probe(probe::ProbeArgs),
}

/// What to run and against what.
#[derive(clap::Args)]
pub(crate) struct RunArgs {
    /// The lxcfs under test.
    #[arg(long)]
    lxcfs: PathBuf,
    /// C lxcfs's binary, with `lxcfs/liblxcfs.so` findable through `--peer-lib`.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Directory of C lxcfs's `liblxcfs.so`.
    #[arg(long)]
    peer_lib: Option<PathBuf>,
    /// Rounds of each measurement; the median of the rounds is printed.
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// Largest number of containers of the scaling run.
    #[arg(long, default_value_t = 1000)]
    containers: u32,
    /// Which ones: reads, throughput, contention, scale, start, syscalls.
    names: Vec<String>,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => runs::run(&args),
        Command::Null {
            mountpoint,
            loops,
            size,
        } => null::serve(&mountpoint, loops, size),
        Command::Probe(args) => probe::run(&args),
    };
    finish(outcome)
}

fn finish(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lxcfs-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
