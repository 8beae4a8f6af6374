//! `cargo xtask test`: every test, here and on the other kernels, and one summary line at the end.

pub(crate) mod plan;
mod tally;

use std::io::{self, Write};
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::command::{cargo, is_root, repository, run, shown};
use crate::setup::{self, Purpose};
use crate::vm::{self, CommandText, Kernel, Machine, Payload, Sinks};
use tally::{Counts, Tally};

/// Runs all tests: the workspace's on this machine, then those for other kernels in VMs.
///
/// Must run as root: the tests mount, make cgroups and start containers.
#[derive(Parser)]
pub(crate) struct Args {
    /// Leave the virtual machines out.
    #[arg(long)]
    fast: bool,
    /// Only the virtual machines.
    #[arg(long, conflicts_with = "fast")]
    vms: bool,
    /// Only virtual machines with this kernel.
    #[arg(long, value_enum)]
    kernel: Option<Kernel>,
    /// Only this file of tests/tests, given without `.rs`, in its virtual machines.
    #[arg(long, value_name = "NAME", conflicts_with = "fast")]
    only: Option<String>,
}

/// How often a machine of one kind may die before that counts as a failure.
const DEATHS: u32 = 3;

/// One harness or boot in the table at the end.
struct Suite {
    name: String,
    counts: Counts,
    seconds: u64,
}

impl Args {
    /// Runs the suites; fails when any test failed or any suite broke off.
    pub(crate) fn run(self) -> Result<ExitCode> {
        if !is_root() {
            bail!(
                "the tests mount file systems, make cgroups and start containers: run them as \
                 root, for example with: sudo env \"PATH=$PATH\" cargo xtask test"
            );
        }
        let start = Instant::now();
        let mut suites = Vec::new();
        if !self.vms && self.only.is_none() {
            setup::ensure(&[Purpose::Test])?;
            suites.push(native()?);
        }
        if !self.fast {
            self.virtual_machines(&mut suites)?;
        }
        Ok(summarize(&suites, start))
    }

    fn virtual_machines(&self, suites: &mut Vec<Suite>) -> Result<()> {
        let mut boots = plan::boots(&repository().join("tests/tests"))?;
        if let Some(only) = &self.only {
            boots.retain_mut(|(_, names)| {
                names.retain(|name| name == only);
                !names.is_empty()
            });
        }
        boots.retain(|(machine, _)| self.kernel.is_none_or(|kernel| machine.kernel == kernel));
        if boots.is_empty() && self.only.is_some() {
            bail!("no such test file, or it runs in no virtual machine");
        }
        setup::ensure(&[Purpose::Vm])?;
        let payload = Payload::build()?;
        for (machine, names) in boots {
            let start = Instant::now();
            let name = described(&machine);
            println!("\n     Booting {name} for {}", names.join(" "));
            let mut died = 0;
            let (tally, broke) = loop {
                let tally = Tally::new(Box::new(io::stdout()));
                let sinks = Sinks {
                    stdout: Box::new(tally.clone()),
                    stderr: Box::new(io::stderr()),
                };
                match vm::boot(&machine, &payload, &commands(&names), sinks) {
                    Ok(status) => break (tally, status != 0),
                    // The kernel patches its own code while it runs (static keys, as the first CPU
                    // quota switches one), and emulated CPUs now and then see half of it: about
                    // one machine in six dies so, in code that has nothing to do with the test.
                    // The table says how often; what dies every time is ours.
                    Err(error) if died < DEATHS && tally.counts().failed == 0 => {
                        println!("{name}: {error:#}\n{name}: the machine died; booting it again");
                        died += 1;
                    }
                    Err(error) => {
                        println!("{name}: {error:#}");
                        break (tally, true);
                    }
                }
            };
            let name = match died {
                0 => name,
                1 => format!("{name} (second boot: the first machine died)"),
                _ => format!("{name} (boot {}: {died} machines died)", died + 1),
            };
            suites.push(finished(name, &tally, broke, start));
        }
        Ok(())
    }
}

/// `cargo test` on this machine.
fn native() -> Result<Suite> {
    let start = Instant::now();
    run(cargo().args(["build", "--workspace", "--bins"]))?;
    let mut test = cargo();
    test.args(["test", "--workspace", "--no-fail-fast"]);
    let mut child = test
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(&test)))?;
    let mut tally = Tally::new(Box::new(io::stdout()));
    if let Some(mut output) = child.stdout.take() {
        io::copy(&mut output, &mut tally)?;
    }
    let broke = !child.wait()?.success();
    Ok(finished("this machine".to_owned(), &tally, broke, start))
}

/// A suite that broke without a failed test (a crash, a compile error) still counts as a failure.
fn finished(name: String, tally: &Tally, broke: bool, start: Instant) -> Suite {
    let mut counts = tally.counts();
    if broke && counts.failed == 0 {
        println!("{name}: ended in failure without naming a failed test");
        counts.failed = 1;
    }
    Suite {
        name,
        counts,
        seconds: start.elapsed().as_secs(),
    }
}

/// Shell text that runs test executables one after the other.
fn commands(names: &[String]) -> CommandText {
    let mut text = "status=0\n".to_owned();
    for name in names {
        text += &format!(
            "echo '     Running {name}'\n/payload/tests/{name} --test-threads=1 || status=1\n"
        );
    }
    CommandText(text + "exit $status")
}

fn described(machine: &Machine) -> String {
    let default = Machine::default();
    let mut words = vec![
        format!("kernel {}", machine.kernel.name()),
        machine.layout.name().into(),
    ];
    let mut unusual = |name: &str, value: u32, usual: u32| {
        if value != usual {
            words.push(format!("{name}={value}"));
        }
    };
    unusual("smp", machine.smp, default.smp);
    unusual("mem", machine.mem, default.mem);
    unusual("swap", machine.swap, default.swap);
    if machine.systemd {
        words.push("systemd".to_owned());
    }
    if !machine.append.is_empty() {
        words.push(machine.append.trim().to_owned());
    }
    words.join(" ")
}

/// Prints the table and, last, one line in the form of Rust's own harness.
fn summarize(suites: &[Suite], start: Instant) -> ExitCode {
    let mut total = Counts::default();
    println!("\n{:>7} {:>7} {:>6}  suite", "passed", "failed", "time");
    for suite in suites {
        let Counts { passed, failed, .. } = suite.counts;
        println!(
            "{passed:>7} {failed:>7} {:>5}s  {}",
            suite.seconds, suite.name
        );
        total.add(suite.counts);
    }
    let good = total.failed == 0 && total.passed > 0;
    println!(
        "\ntest result: {}. {} passed; {} failed; {} ignored; 0 measured; 0 filtered out; finished \
         in {:.2}s",
        if good { "ok" } else { "FAILED" },
        total.passed,
        total.failed,
        total.ignored,
        start.elapsed().as_secs_f64()
    );
    let _ = io::stdout().flush();
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{commands, described, plan};
    use crate::command::repository;
    use crate::vm::Machine;

    #[test]
    fn every_test_file_says_where_it_runs() {
        plan::boots(&repository().join("tests/tests")).unwrap();
    }

    #[test]
    fn one_failed_executable_fails_the_boot_and_the_rest_still_run() {
        let names = ["missing_one".to_owned(), "missing_two".to_owned()];
        let output = Command::new("sh")
            .arg("-c")
            .arg(commands(&names).0)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            String::from_utf8(output.stdout)
                .unwrap()
                .contains("missing_two")
        );
    }

    #[test]
    fn only_what_is_unusual_is_described() {
        let usual = Machine::default();
        assert_eq!(described(&usual), "kernel 6.12 v2");
        assert_eq!(
            described(&Machine { swap: 512, ..usual }),
            "kernel 6.12 v2 swap=512"
        );
    }
}
