//! Owns what is told about a run: one line per path, one record per container.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::identity::ContainerRef;
use super::plan::{Action, Skip, Step};

/// What happened at one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// Mounted where nothing of ours was.
    Attached,
    /// A dead mount was replaced.
    Replaced {
        /// Whether the kernel could do it without showing the host's file in between.
        gapless: bool,
    },
    /// A dead mount the container inherited and nobody may remove now lies under a live one.
    Covered,
    /// Ours was removed.
    Detached,
    /// Left alone.
    Skipped(Skip),
    /// A dry run would have done this.
    Planned {
        /// `attach`, `replace` or `detach`.
        action: &'static str,
    },
    /// It did not work.
    Failed {
        /// Why, with the system call.
        error: String,
    },
}

/// One path of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StepReport {
    /// Path inside the container.
    pub path: PathBuf,
    /// What happened.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl StepReport {
    /// A report for a step that is only shown.
    pub fn planned(step: &Step) -> Self {
        let outcome = match &step.action {
            Action::Attach { .. } => Outcome::Planned { action: "attach" },
            Action::Replace { .. } => Outcome::Planned { action: "replace" },
            Action::Detach { .. } => Outcome::Planned { action: "detach" },
            Action::Skip(skip) => Outcome::Skipped(skip.clone()),
        };
        Self {
            path: step.path.clone(),
            outcome,
        }
    }
}

/// One mount namespace.
#[derive(Clone, Debug, Serialize)]
pub struct ContainerReport {
    /// A process in it, by the host's numbers.
    pub pid: u32,
    /// Which container, as far as its cgroup tells.
    pub container: Option<ContainerRef>,
    /// One entry per path.
    pub steps: Vec<StepReport>,
    /// Why nothing or not everything was done.
    pub error: Option<String>,
    /// The same as one word, see [`AttachError::label`](super::AttachError::label).
    pub reason: Option<&'static str>,
    /// Time spent on it, in microseconds.
    pub elapsed_usec: u64,
}

/// A whole run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// In the order the targets were given.
    pub containers: Vec<ContainerReport>,
    /// Time of the whole run, in microseconds.
    pub elapsed_usec: u64,
}

/// Numbers over a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Paths newly mounted.
    pub attached: usize,
    /// Dead mounts replaced or covered.
    pub healed: usize,
    /// Mounts removed.
    pub detached: usize,
    /// Paths left alone.
    pub skipped: usize,
    /// Steps a dry run would take.
    pub planned: usize,
    /// Paths that failed.
    pub failed: usize,
    /// Containers that could not be handled at all.
    pub unreached: usize,
}

impl Report {
    /// Counts every outcome.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for container in &self.containers {
            totals.unreached += usize::from(container.error.is_some());
            for step in &container.steps {
                match step.outcome {
                    Outcome::Attached => totals.attached += 1,
                    Outcome::Replaced { .. } | Outcome::Covered => totals.healed += 1,
                    Outcome::Detached => totals.detached += 1,
                    Outcome::Skipped(_) => totals.skipped += 1,
                    Outcome::Planned { .. } => totals.planned += 1,
                    Outcome::Failed { .. } => totals.failed += 1,
                }
            }
        }
        totals
    }

    /// Dead mounts that are still there.
    pub fn stale(&self) -> usize {
        let steps = self.containers.iter().flat_map(|found| &found.steps);
        let is_stale = |outcome: &Outcome| {
            matches!(
                outcome,
                Outcome::Failed { .. }
                    | Outcome::Skipped(Skip::Unresponsive { .. } | Skip::UnknownFile { .. })
            )
        };
        steps.filter(|step| is_stale(&step.outcome)).count()
    }

    /// Whether everything that was wanted is so.
    pub fn succeeded(&self) -> bool {
        let totals = self.totals();
        totals.failed == 0 && totals.unreached == 0
    }
}

pub(super) fn usec(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
