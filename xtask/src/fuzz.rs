//! `cargo xtask fuzz`: every fuzz target with libFuzzer, by the compiler the project uses.
//!
//! The coverage that guides libFuzzer comes from an LLVM pass that a stable compiler has too.
//! What it has not is the address sanitizer: `cargo +nightly fuzz` is for that.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::command::{cargo, output, repository, run, shown};
use crate::setup::{self, Purpose};

/// Feeds parsers of foreign text with inputs that libFuzzer makes up, guided by coverage.
///
/// Inputs that reach new code stay in fuzz/corpus, for the next run to start from; one that
/// makes a target panic, hang or run out of memory goes to fuzz/artifacts. Works with the
/// stable compiler, without the address sanitizer.
#[derive(Parser)]
pub(crate) struct Args {
    /// How long each target runs.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Targets, by file name in fuzz/fuzz_targets (all when none is named).
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

/// What `cargo fuzz` passes too, less the sanitizer.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

impl Args {
    /// Builds the targets, runs one after the other, fails if any found something.
    pub(crate) fn run(self) -> Result<ExitCode> {
        let fuzz = repository().join("fuzz");
        let targets = chosen(known(&fuzz)?, &self.targets)?;
        setup::ensure(&[Purpose::Fuzz])?;
        let machine = machine(&output(Command::new("rustc").arg("-vV"))?)?;
        let target_dir = fuzz.join("target");
        let mut build = cargo();
        build.current_dir(&fuzz).arg("build");
        // With a target named, build scripts and macros are spared the flags.
        build.args(["--target", &machine, "--target-dir"]);
        build.arg(&target_dir);
        build.args(targets.iter().flat_map(|name| ["--bin", name]));
        build.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
        run(&mut build)?;

        let built = target_dir.join(machine).join("debug");
        let mut found = Vec::new();
        for name in &targets {
            if !fuzz_one(&fuzz, &built, name, self.seconds)? {
                found.push(name.as_str());
            }
        }
        if !found.is_empty() {
            println!("fuzz: something found by: {}", found.join(" "));
            return Ok(ExitCode::FAILURE);
        }
        println!("fuzz: {} targets, nothing found", targets.len());
        Ok(ExitCode::SUCCESS)
    }
}

/// Runs one target and prints a line about it, or what it found; false when it did.
fn fuzz_one(fuzz: &Path, built: &Path, name: &str, seconds: u32) -> Result<bool> {
    let [corpus, artifacts] = ["corpus", "artifacts"].map(|kind| fuzz.join(kind).join(name));
    for directory in [&corpus, &artifacts] {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let program = built.join(name);
    let mut command = Command::new(&program);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-timeout=10", "-print_final_stats=1"])
        .arg(&corpus)
        .args(Some(fuzz.join("seeds").join(name)).filter(|seeds| seeds.is_dir()))
        .stdin(Stdio::null());
    let ran = command
        .output()
        .with_context(|| format!("cannot start `{}`", shown(&command)))?;
    let log = String::from_utf8_lossy(&ran.stderr);
    let figure = |label: &str| last_number(&log, label).unwrap_or("?");
    println!(
        "{name:12} {:>10} inputs  {:>7}/s  {:>6} branches reached",
        figure("stat::number_of_executed_units:"),
        figure("stat::average_exec_per_sec:"),
        figure(" cov:"),
    );
    if !ran.status.success() {
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.len().saturating_sub(60);
        println!("{}", lines[tail..].join("\n"));
        println!("{name}: {}; again: {} FILE", ran.status, program.display());
    }
    Ok(ran.status.success())
}

/// Every target there is, in order.
fn known(fuzz: &Path) -> Result<Vec<String>> {
    let directory = fuzz.join("fuzz_targets");
    let mut names = Vec::new();
    for file in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let path = file?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into()));
    }
    names.sort_unstable();
    Ok(names)
}

fn chosen(known: Vec<String>, wanted: &[String]) -> Result<Vec<String>> {
    if let Some(name) = wanted.iter().find(|name| !known.contains(name)) {
        bail!("no fuzz target `{name}`; there are: {}", known.join(" "));
    }
    Ok(match wanted {
        [] => known,
        _ => wanted.to_vec(),
    })
}

/// The compiler's own machine, from its `-vV`.
fn machine(version: &str) -> Result<String> {
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

/// The number after the last `label`.
fn last_number<'a>(log: &'a str, label: &str) -> Option<&'a str> {
    log.rsplit_once(label)?.1.split_whitespace().next()
}
