//! Our mounts in every container: a dry run of the attach engine tells which are alive.

use std::path::Path;
use std::sync::Arc;

use super::ContainerFinding;
use crate::attach::{
    ContainerReport, Engine, EngineOptions, Goal, Outcome, Scan, Selection, Skip, Target,
};

/// Every container a runtime named, and everything else that has a mount of ours.
pub(super) fn look(mountpoint: &Path) -> Result<Vec<ContainerFinding>, String> {
    let options = EngineOptions {
        dry_run: true,
        ..EngineOptions::default()
    };
    let targets: Vec<Target> = Scan::default()
        .containers()
        .map_err(|error| error.to_string())?
        .into_iter()
        .filter(|found| found.container.is_some() || found.has_ours)
        .map(Target::from)
        .collect();
    let (engine, goal) = match Engine::open(mountpoint, options.clone()) {
        // What attaching would do tells what is there, including what stands in the way.
        Ok(engine) => (
            engine,
            Goal::Attach {
                selection: Selection::default(),
                takeover: false,
            },
        ),
        Err(_) => (
            Engine::without_source(options).map_err(|error| error.to_string())?,
            Goal::Heal,
        ),
    };
    let report = Arc::new(engine).run(targets, &goal);
    Ok(report.containers.into_iter().map(finding).collect())
}

fn finding(report: ContainerReport) -> ContainerFinding {
    let mut found = ContainerFinding {
        pid: report.pid,
        container: report.container.map(|container| {
            let id: String = container.id.chars().take(12).collect();
            format!("{:?} {id}", container.runtime).to_lowercase()
        }),
        alive: Vec::new(),
        dead: Vec::new(),
        skipped: Vec::new(),
        error: report.error,
    };
    for step in report.steps {
        let file = step.path.display().to_string();
        match step.outcome {
            Outcome::Skipped(Skip::UpToDate | Skip::OtherInstance { .. }) => found.alive.push(file),
            Outcome::Planned { action: "replace" } => found.dead.push(file),
            // Nothing of ours is there, and nothing stands in the way.
            Outcome::Planned { .. } | Outcome::Skipped(Skip::NoSuchFile | Skip::NotServed) => {}
            Outcome::Skipped(skip) => {
                found
                    .skipped
                    .push((file, super::super::attach::reason(&skip)));
            }
            other => found.skipped.push((file, format!("{other:?}"))),
        }
    }
    found
}
