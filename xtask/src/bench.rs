//! `cargo xtask bench`: release builds of the daemon and of the benchmark program, run
//! beside Debian's C lxcfs.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use crate::command::{cargo, is_root, repository, run};
use crate::vm::cache::Cache;
use crate::{peer, setup};

/// Measures lxcfs beside the kernel's procfs, a null FUSE file and C lxcfs, as ratios of one run.
///
/// Builds everything in release mode, downloads Debian's C lxcfs once (it is unpacked, not
/// installed), and prints Markdown tables, made to be put into docs/performance.md. Takes about
/// six minutes, with --ebpf about three. On a machine that does something else at the same time
/// the absolute times mean little; the ratios still do.
///
///   cargo xtask bench                      all but the collector
///   cargo xtask bench reads syscalls       these two alone
///   cargo xtask bench --rounds 3 scale     fewer rounds, for a first look
///   cargo xtask bench --ebpf               the eBPF collector
///
/// A benchmark that fails does not keep the others from running; the exit status tells.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Leave C lxcfs out (no download).
    #[arg(long)]
    no_peer: bool,
    /// Only the eBPF collector, beside the ways that need none.
    #[arg(long)]
    ebpf: bool,
    /// Further arguments for the benchmark program: --rounds N, --containers N, and the
    /// benchmarks to run (reads, throughput, contention, scale, start, syscalls; all when none is named).
    /// With --ebpf: --rounds N, --cgroups N, --threads N, --round-trips N.
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
        let program = if self.ebpf {
            "lxcfs-bench-ebpf"
        } else {
            "lxcfs-bench"
        };
        let packages = [
            "build",
            "--release",
            "-p",
            "lxcfs-user",
            "-p",
            "lxcfs-tests",
        ];
        run(cargo()
            .args(packages)
            .args(["--bin", "lxcfs", "--bin", program]))?;
        let built = repository().join("target/release");
        let mut bench = Command::new(built.join(program));
        if !self.ebpf {
            bench.arg("run").arg("--lxcfs").arg(built.join("lxcfs"));
        }
        if !self.no_peer {
            let peer = peer::fetch(&Cache::open()?)
                .context("C lxcfs cannot be fetched; --no-peer measures without it")?;
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
