//! `cargo xtask bench`: release builds of the daemon and of the benchmark program, run
//! beside Debian's C lxcfs.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use clap::Parser;

use crate::command::{cargo, is_root, repository, run};
use crate::vm::cache::Cache;
use crate::{peer, setup};

/// Measures lxcfs beside the kernel's procfs, a null FUSE file and C lxcfs, as ratios of one run.
#[derive(Parser)]
pub(crate) struct Args {
    /// Leave C lxcfs out (no download).
    #[arg(long)]
    no_peer: bool,
    /// Only the eBPF collector, beside the ways that need none.
    #[arg(long)]
    ebpf: bool,
    /// Further arguments for the benchmark program: --rounds N, --containers N, and the
    /// benchmarks to run (reads, throughput, scale, start, syscalls; all when none is named).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

impl Args {
    /// Builds and runs.
    pub(crate) fn run(self) -> Result<ExitCode> {
        if !is_root() {
            bail!("benchmarks mount file systems and make cgroups: run as root");
        }
        setup::ensure(&[setup::Purpose::Test])?;
        run(cargo().args([
            "build",
            "--release",
            "-p",
            "lxcfs-user",
            "-p",
            "lxcfs-tests",
        ]))?;
        let built = repository().join("target/release");
        let mut bench = if self.ebpf {
            Command::new(built.join("lxcfs-bench-ebpf"))
        } else {
            let mut bench = Command::new(built.join("lxcfs-bench"));
            bench.arg("run").arg("--lxcfs").arg(built.join("lxcfs"));
            bench
        };
        if !self.no_peer {
            let peer = peer::fetch(&Cache::open()?)?;
            bench
                .arg("--peer")
                .arg(peer.program)
                .arg("--peer-lib")
                .arg(peer.lib);
        }
        run(bench.args(self.rest))?;
        Ok(ExitCode::SUCCESS)
    }
}
