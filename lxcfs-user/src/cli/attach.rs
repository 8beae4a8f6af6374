//! `lxcfs attach`, `lxcfs detach` and `lxcfs heal`: which containers and files, what came
//! of it. The work is the attach engine's.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};

use super::args::{AttachArgs, DetachArgs, FileArgs, HealArgs, RunArgs, TargetArgs};
use super::file_settings;
use crate::attach::report::Totals;
use crate::attach::{
    AttachError, Engine, EngineOptions, Goal, Outcome, Report, Scan, Selection, Skip, Target,
};

/// Where the daemon mounts unless somebody says otherwise.
const USUAL_MOUNTPOINT: &str = "/var/lib/lxcfs";

pub(super) fn attach(args: &AttachArgs) -> Result<ExitCode> {
    let goal = Goal::Attach {
        selection: Selection::parse(args.files.as_deref().unwrap_or_default())?,
        takeover: args.takeover,
    };
    let targets = targets(&args.targets, Scope::Containers)?;
    let engine = Engine::open(&mountpoint(&args.run)?, options(&args.run))?;
    run(engine, targets, &goal, &args.run)
}

pub(super) fn heal(args: &HealArgs) -> Result<ExitCode> {
    let engine = Engine::open(&mountpoint(&args.run)?, options(&args.run))?;
    let targets = targets(&args.targets, Scope::Ours)?;
    run(engine, targets, &Goal::Heal, &args.run)
}

pub(super) fn detach(args: &DetachArgs) -> Result<ExitCode> {
    let selection = args.files.as_deref().map(Selection::parse).transpose()?;
    // Without a daemon dead mounts can still be taken away.
    let engine = match Engine::open(&mountpoint(&args.run)?, options(&args.run)) {
        Err(AttachError::NotServed { .. } | AttachError::Io { .. }) => {
            Engine::without_source(options(&args.run))?
        }
        other => other?,
    };
    let targets = targets(&args.targets, Scope::Ours)?;
    run(engine, targets, &Goal::Detach { selection }, &args.run)
}

/// What `--all` means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Every container a runtime has named. Services with a mount namespace of their own
    /// are no containers.
    Containers,
    /// Everything that has a mount of ours.
    Ours,
}

fn targets(args: &TargetArgs, scope: Scope) -> Result<Vec<Target>> {
    let scan = Scan::default();
    if !args.pid.is_empty() || !args.container.is_empty() {
        let mut targets: Vec<Target> = args.pid.iter().copied().map(Target::process).collect();
        for id in &args.container {
            targets.push(scan.by_id(id)?.into());
        }
        return Ok(targets);
    }
    let found = scan.containers()?.into_iter().filter(|found| match scope {
        Scope::Containers => found.container.is_some(),
        Scope::Ours => found.has_ours,
    });
    Ok(found.map(Target::from).collect())
}

fn options(args: &RunArgs) -> EngineOptions {
    let mut options = EngineOptions {
        dry_run: args.dry_run,
        ..EngineOptions::default()
    };
    if let Some(parallel) = args.parallel {
        options.parallelism = parallel as usize;
    }
    if let Some(deadline) = args.deadline_ms {
        options.deadline = Duration::from_millis(u64::from(deadline));
    }
    options
}

/// The mount to attach from: as given, as configured, or where everybody has it.
fn mountpoint(args: &RunArgs) -> Result<PathBuf> {
    if let Some(mount) = &args.mount {
        return Ok(std::path::absolute(mount)?);
    }
    let configured = file_settings(&FileArgs::default())?.mountpoint;
    Ok(configured.unwrap_or_else(|| Path::new(USUAL_MOUNTPOINT).to_owned()))
}

fn run(engine: Engine, targets: Vec<Target>, goal: &Goal, args: &RunArgs) -> Result<ExitCode> {
    let report = Arc::new(engine).run(targets, goal);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", text(&report, args.verbose));
    }
    if !report.succeeded() {
        let Totals {
            failed, unreached, ..
        } = report.totals();
        bail!("{failed} files failed, {unreached} containers could not be reached; see above");
    }
    Ok(ExitCode::SUCCESS)
}

/// One line per container, one per file that is not as wanted (all with `verbose`).
fn text(report: &Report, verbose: bool) -> String {
    let mut out = String::new();
    for container in &report.containers {
        let name = match &container.container {
            Some(found) => {
                // Long enough to be told apart and to be typed back.
                let id: String = found.id.chars().take(12).collect();
                format!("{id} (pid {})", container.pid)
            }
            None => format!("pid {}", container.pid),
        };
        let one = Report {
            containers: vec![container.clone()],
            elapsed_usec: container.elapsed_usec,
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name}: {}", sum(&one.totals()));
        if let Some(error) = &container.error {
            let _ = writeln!(out, "  {error}");
        }
        for step in &container.steps {
            let quiet = matches!(
                step.outcome,
                Outcome::Attached
                    | Outcome::Replaced { .. }
                    | Outcome::Covered
                    | Outcome::Detached
                    | Outcome::Skipped(Skip::UpToDate)
            );
            if verbose || !quiet {
                let _ = writeln!(out, "  {}: {}", step.path.display(), outcome(&step.outcome));
            }
        }
    }
    let _ = writeln!(
        out,
        "{} containers in {} ms: {}",
        report.containers.len(),
        report.elapsed_usec.div_ceil(1000),
        sum(&report.totals())
    );
    out
}

fn sum(totals: &Totals) -> String {
    let parts: Vec<String> = [
        (totals.attached, "attached"),
        (totals.healed, "healed"),
        (totals.detached, "detached"),
        (totals.planned, "planned"),
        (totals.skipped, "left alone"),
        (totals.failed, "failed"),
        (totals.unreached, "not reached"),
    ]
    .iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    if parts.is_empty() {
        "nothing to do".to_owned()
    } else {
        parts.join(", ")
    }
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Attached => "attached".to_owned(),
        Outcome::Replaced { gapless: true } => "healed".to_owned(),
        Outcome::Replaced { gapless: false } => {
            "healed (the host's file showed for a moment)".to_owned()
        }
        Outcome::Covered => "healed (over a dead mount that cannot be removed)".to_owned(),
        Outcome::Detached => "detached".to_owned(),
        Outcome::Planned { action } => format!("would {action}"),
        Outcome::Failed { error } => format!("failed: {error}"),
        Outcome::Skipped(skip) => format!("left alone: {}", reason(skip)),
    }
}

pub(super) fn reason(skip: &Skip) -> String {
    match skip {
        Skip::UpToDate => "attached already".to_owned(),
        Skip::NotKernelFs { found } => format!("not on procfs or sysfs but on {found}"),
        Skip::OutOfReach => "outside the process's root directory".to_owned(),
        Skip::UserMount { found } => format!("the container's own {found} mount is there"),
        Skip::OtherInstance { device } => {
            format!("another lxcfs (device {device}) serves it; --takeover replaces it")
        }
        Skip::Unresponsive { device } => {
            format!("the lxcfs behind it (device {device}) does not answer")
        }
        Skip::SharedWithHost { group } => {
            format!("its mount shares events with the host's (peer group {group})")
        }
        Skip::UnknownFile { root } => format!("shows {}, which is unknown here", root.display()),
        Skip::NoSuchFile => "this kernel has no such file".to_owned(),
        Skip::NotServed => "the daemon does not serve it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::{ContainerReport, StepReport};

    fn step(path: &str, outcome: Outcome) -> StepReport {
        StepReport {
            path: path.into(),
            outcome,
        }
    }

    #[test]
    fn a_report_tells_what_is_not_as_wanted() {
        let report = Report {
            containers: vec![
                ContainerReport {
                    pid: 42,
                    container: None,
                    steps: vec![
                        step("/proc/meminfo", Outcome::Attached),
                        step(
                            "/proc/stat",
                            Outcome::Skipped(Skip::UserMount {
                                found: "tmpfs".to_owned(),
                            }),
                        ),
                    ],
                    error: None,
                    reason: None,
                    elapsed_usec: 900,
                },
                ContainerReport {
                    pid: 43,
                    container: None,
                    steps: Vec::new(),
                    error: Some("process 43 is gone".to_owned()),
                    reason: Some("gone"),
                    elapsed_usec: 10,
                },
            ],
            elapsed_usec: 1001,
        };
        assert_eq!(
            text(&report, false),
            "pid 42: 1 attached, 1 left alone\n  \
               /proc/stat: left alone: the container's own tmpfs mount is there\n\
             pid 43: 1 not reached\n  process 43 is gone\n\
             2 containers in 2 ms: 1 attached, 1 left alone, 1 not reached\n"
        );
        assert!(text(&report, true).contains("  /proc/meminfo: attached\n"));
    }

    #[test]
    fn nothing_found_is_said() {
        assert_eq!(
            text(&Report::default(), false),
            "0 containers in 0 ms: nothing to do\n"
        );
    }
}
