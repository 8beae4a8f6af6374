//! Project automation, run as `cargo xtask COMMAND`.
//!
//! Each subcommand lives in a file of its own that holds its arguments and its `run` function;
//! this file only lists them. To add one: write the file, add a variant and a match arm here.

mod apiserver;
mod bench;
mod build_ebpf;
mod chaos;
mod chart;
mod check;
mod command;
mod dist;
mod fuzz;
mod image;
mod peer;
mod policy;
mod run;
mod setup;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, checks, tests and shows lxcfs. Every command installs what it needs and says so first.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    max_term_width = 100,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Apiserver(apiserver::Args),
    Bench(bench::Args),
    BuildEbpf(build_ebpf::Args),
    Chaos(chaos::Args),
    Chart(chart::Args),
    Check(check::Args),
    Dist(dist::Args),
    Fuzz(fuzz::Args),
    Image(image::Args),
    Policy(policy::Args),
    Run(run::Args),
    Setup(setup::Args),
    Test(test::Args),
    Tidy(tidy::Args),
    Vm(vm::Args),
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Apiserver(args) => args.run(),
        Command::Bench(args) => args.run(),
        Command::BuildEbpf(args) => args.run(),
        Command::Chaos(args) => args.run(),
        Command::Chart(args) => args.run(),
        Command::Check(args) => args.run(),
        Command::Dist(args) => args.run(),
        Command::Fuzz(args) => args.run(),
        Command::Image(args) => args.run(),
        Command::Policy(args) => args.run(),
        Command::Run(args) => args.run(),
        Command::Setup(args) => args.run(),
        Command::Test(args) => args.run(),
        Command::Tidy(args) => args.run(),
        Command::Vm(args) => args.run(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
