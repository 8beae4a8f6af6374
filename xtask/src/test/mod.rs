//! `cargo xtask test`: every test, here and on the other kernels, and one summary line at the end.

mod leftovers;
pub(crate) mod plan;
mod tally;

use std::io::{self, Write};
use std::process::{ExitCode, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::command::{cargo, is_root, repository, run, shown};
use crate::setup::{self, Purpose};
use crate::vm::{self, CommandText, Kernel, Machine, Payload, Sinks};
use tally::{Counts, FAILED, Tally};

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

/// Executables that may pass at a second try. More have a cause in common.
const AGAIN: usize = 3;

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
            leftovers::sweep()?;
            suites.push(attempt("this machine".to_owned(), native)?);
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
            println!(
                "\n     Booting {} for {}",
                described(&machine),
                names.join(" ")
            );
            suites.push(attempt(described(&machine), |again| {
                boot(&machine, &payload, again.unwrap_or(&names))
            })?);
        }
        Ok(())
    }
}

/// What came of running a suite.
struct Run {
    name: String,
    counts: Counts,
    /// What failed, in the words that run it again.
    failed: Vec<String>,
}

/// Runs a suite, and once more what failed of it: two busy CPUs, half of them emulated, make
/// some deadlines pass that are no fault of ours. What needed it is named in the table, for
/// somebody to look into; what fails twice has failed.
fn attempt(name: String, mut run: impl FnMut(Option<&[String]>) -> Result<Run>) -> Result<Suite> {
    let start = Instant::now();
    let first = run(None)?;
    let (mut name, mut counts) = (format!("{name}{}", first.name), first.counts);
    if counts.failed > 0 && !first.failed.is_empty() && first.failed.len() <= AGAIN {
        let again = first.failed.join(", ");
        println!("{name}: running {again} again");
        if run(Some(&first.failed))?.counts.failed == 0 {
            counts.passed += counts.failed;
            counts.failed = 0;
            name += &format!(" (UNSTEADY, passed at the second try: {again})");
        }
    }
    Ok(Suite {
        name,
        counts,
        seconds: start.elapsed().as_secs(),
    })
}

/// Runs the executables `names` in a machine; boots it again when it dies.
fn boot(machine: &Machine, payload: &Payload, names: &[String]) -> Result<Run> {
    let mut died = 0;
    let (tally, broke) = loop {
        let tally = Tally::new(Box::new(io::stdout()));
        let sinks = Sinks {
            stdout: Box::new(tally.clone()),
            stderr: Box::new(io::stderr()),
        };
        match vm::boot(machine, payload, &commands(names), sinks) {
            Ok(status) => break (tally, status != 0),
            // The kernel patches its own code while it runs (static keys, as the first CPU
            // quota switches one), and emulated CPUs now and then see half of it: about
            // one machine in six dies so, in code that has nothing to do with the test.
            // The table says how often; what dies every time is ours.
            Err(error) if died < DEATHS && tally.counts().failed == 0 => {
                println!("{error:#}\nthe machine died; booting it again");
                died += 1;
            }
            Err(error) => {
                println!("{error:#}");
                break (tally, true);
            }
        }
    };
    let name = match died {
        0 => String::new(),
        1 => " (second boot: the first machine died)".to_owned(),
        _ => format!(" (boot {}: {died} machines died)", died + 1),
    };
    Ok(finished(name, &tally, tally.failed(), broke))
}

/// `cargo test` on this machine: of everything, or of targets as cargo names them.
fn native(targets: Option<&[String]>) -> Result<Run> {
    let Some(targets) = targets else {
        run(cargo().args(["build", "--workspace", "--bins"]))?;
        return cargo_test("--workspace --no-fail-fast");
    };
    let mut all = Run {
        name: String::new(),
        counts: Counts::default(),
        failed: Vec::new(),
    };
    for target in targets {
        all.counts.add(cargo_test(target)?.counts);
    }
    Ok(all)
}

fn cargo_test(arguments: &str) -> Result<Run> {
    let mut test = cargo();
    test.arg("test").args(arguments.split(' '));
    let mut child = test
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(&test)))?;
    let mut tally = Tally::new(Box::new(io::stdout()));
    let mut told = Tally::new(Box::new(io::stderr()));
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let errors = errors
            .map(|mut errors| scope.spawn(move || io::copy(&mut errors, &mut told).map(|_| told)));
        if let Some(mut output) = output {
            io::copy(&mut output, &mut tally)?;
        }
        let failed = match errors.map(thread::ScopedJoinHandle::join) {
            Some(Ok(told)) => told?.failed(),
            _ => Vec::new(),
        };
        let broke = !child.wait()?.success();
        Ok(finished(String::new(), &tally, failed, broke))
    })
}

/// A suite that broke without a failed test (a crash, a compile error) still counts as a failure.
fn finished(name: String, tally: &Tally, failed: Vec<String>, broke: bool) -> Run {
    let mut counts = tally.counts();
    if broke && counts.failed == 0 {
        println!("ended in failure without naming a failed test");
        counts.failed = 1;
    }
    Run {
        name,
        counts,
        failed,
    }
}

/// Shell text that runs test executables one after the other.
fn commands(names: &[String]) -> CommandText {
    let mut text = "status=0\n".to_owned();
    for name in names {
        text += &format!(
            "echo '     Running {name}'\n/payload/tests/{name} --test-threads=1 || {{ status=1; \
             echo '{FAILED}{name}'; }}\n"
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
    if machine.reboots {
        words.push("reboots".to_owned());
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

    use super::{AGAIN, Counts, Run, attempt, commands, described, plan};
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
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("\n     Failed missing_one\n"), "{text}");
        assert!(text.contains("missing_two"), "{text}");
    }

    #[test]
    fn what_passes_at_the_second_try_is_named_and_what_fails_twice_has_failed() {
        let outcome = |failed_first: usize, fails_again: bool| {
            let mut tries = 0;
            let suite = attempt("here".to_owned(), |again| {
                tries += 1;
                let bad = if again.is_none() {
                    failed_first
                } else {
                    usize::from(fails_again)
                };
                Ok(Run {
                    name: String::new(),
                    counts: Counts {
                        passed: 10,
                        failed: bad as u64,
                        ignored: 0,
                    },
                    failed: (0..bad).map(|n| format!("target_{n}")).collect(),
                })
            })
            .unwrap();
            (tries, suite.counts.passed, suite.counts.failed, suite.name)
        };
        assert_eq!(outcome(0, false), (1, 10, 0, "here".to_owned()));
        let (tries, passed, failed, name) = outcome(2, false);
        assert_eq!((tries, passed, failed), (2, 12, 0));
        assert!(
            name.contains("UNSTEADY") && name.contains("target_1"),
            "{name}"
        );
        assert_eq!(outcome(2, true), (2, 10, 2, "here".to_owned()));
        assert_eq!(outcome(AGAIN + 1, false).0, 1, "a cause in common");
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
