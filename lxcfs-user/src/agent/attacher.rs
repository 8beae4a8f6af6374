//! Owns the agent's hand: attaching to and healing containers that any source of
//! discovery brings, with the counts of what came of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lxcfs_common::pod;
use lxcfs_holder::control::{Request, ask};

use super::policy::{Decision, Reason, Subject};
use crate::attach::{
    AttachError, Engine, EngineOptions, Goal, Outcome, Report, Scan, Selection, Target,
};
use crate::observe::metrics::{self, Figures};
use crate::policy::{CpuPolicy, Named as _};

/// For the daemon to answer a command.
const COMMAND_DEADLINE: Duration = Duration::from_millis(300);

/// How a container came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// The runtime's NRI socket.
    Nri,
    /// Docker's events.
    Docker,
    /// An OCI hook.
    Hook,
    /// The kernel's word that a container's first program starts, by eBPF.
    Event,
    /// Looking through all processes.
    Scan,
}

impl Method {
    /// The metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Nri => "nri",
            Self::Docker => "docker",
            Self::Hook => "hook",
            Self::Event => "event",
            Self::Scan => "scan",
        }
    }
}

/// A container and what was decided for it.
#[derive(Clone, Debug)]
pub struct Job {
    /// The container.
    pub target: Target,
    /// What to do.
    pub decision: Decision,
    /// The rule by which it wants its CPUs counted.
    pub cpus: Option<CpuPolicy>,
}

#[derive(Debug, Default)]
struct Counts {
    attached: BTreeMap<(Method, &'static str), u64>,
    heals: BTreeMap<&'static str, u64>,
    skipped: BTreeMap<&'static str, u64>,
    skipped_files: BTreeMap<&'static str, u64>,
    failures: BTreeMap<&'static str, u64>,
    /// `None` before the first scan.
    stale: Option<u64>,
}

/// Attaches from one mountpoint; shared by all sources of discovery.
#[derive(Debug)]
pub struct Attacher {
    mountpoint: PathBuf,
    options: EngineOptions,
    /// Where the daemon takes commands.
    control: Option<PathBuf>,
    counts: Mutex<Counts>,
}

impl Attacher {
    /// Attaches from the daemon's mount at `mountpoint`.
    pub fn new(mountpoint: impl Into<PathBuf>, options: EngineOptions) -> Self {
        Self {
            mountpoint: mountpoint.into(),
            options,
            control: None,
            counts: Mutex::default(),
        }
    }

    /// Also tells the daemon that listens at `control` how containers want their CPUs counted.
    #[must_use]
    pub fn commanding(self, control: PathBuf) -> Self {
        Self {
            control: Some(control),
            ..self
        }
    }

    /// The rule for its CPUs that a container asks for; a misspelt one is said and counted.
    pub fn cpus_of(&self, subject: &Subject) -> Option<CpuPolicy> {
        subject.cpus().unwrap_or_else(|word| {
            self.skip_as("cpus-unknown");
            tracing::warn!(
                container = %subject.name,
                "{}={word:?} counts no CPUs; known: quota, cpuset, host",
                pod::CPUS
            );
            None
        })
    }

    /// Has the CPUs of a container counted by the rule it asks for. The daemon keeps the
    /// rule as long as the container lives; saying it again is harmless.
    fn tell_cpus(&self, pid: u32, cpus: CpuPolicy) {
        let Some(control) = &self.control else {
            self.skip_as("cpus-no-daemon");
            return;
        };
        let request = Request::Command(format!("cpus {pid} {}", cpus.name()));
        let answer = ask(control, &request, COMMAND_DEADLINE);
        let error = match answer {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error,
            Err(error) => error.to_string(),
        };
        self.skip_as("cpus-refused");
        tracing::warn!(pid, rule = cpus.name(), %error, "its CPUs are counted by the node's rule");
    }

    /// Where files are attached from.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Whether there is a live mount to attach from.
    pub fn is_served(&self) -> bool {
        Engine::open(&self.mountpoint, self.options.clone()).is_ok()
    }

    /// The entries of `selection` that the daemon serves now; none when it does not answer.
    pub fn served(&self, selection: &Selection) -> Selection {
        if !self.is_served() {
            return Selection::none();
        }
        let entries = selection.entries();
        entries
            .filter(|entry| self.mountpoint.join(entry.path).symlink_metadata().is_ok())
            .collect()
    }

    /// Carries jobs out. Files are attached where that was decided; dead mounts are healed
    /// in every container.
    ///
    /// # Errors
    /// There is no live mount to attach from.
    pub fn carry_out(&self, jobs: Vec<Job>, method: Method) -> Result<Report, AttachError> {
        if jobs.is_empty() {
            return Ok(Report::default());
        }
        let engine = Engine::open(&self.mountpoint, self.options.clone());
        let engine = match engine {
            Ok(engine) => Arc::new(engine),
            Err(err) => {
                let unserved = jobs
                    .iter()
                    .filter(|job| matches!(job.decision, Decision::Attach(_)));
                let mut counts = self.lock();
                let unserved = unserved.count() as u64;
                *counts.attached.entry((method, "not-served")).or_default() += unserved;
                *counts.failures.entry(err.label()).or_default() += unserved;
                return Err(err);
            }
        };
        for job in &jobs {
            if let Some(cpus) = job.cpus {
                self.tell_cpus(job.target.pid, cpus);
            }
        }
        // One run of the engine per selection: containers with the same wish go together.
        let mut groups: Vec<(Option<Selection>, Vec<Target>)> = Vec::new();
        for job in jobs {
            let wish = match job.decision {
                Decision::Attach(selection) => Some(selection),
                Decision::Leave(reason) => {
                    // A scan sees the same containers again and again.
                    if method != Method::Scan {
                        self.skip(reason);
                    }
                    None
                }
            };
            match groups.iter_mut().find(|(of, _)| *of == wish) {
                Some((_, targets)) => targets.push(job.target),
                None => groups.push((wish, vec![job.target])),
            }
        }
        let mut whole = Report::default();
        for (wish, targets) in groups {
            let attaches = wish.is_some();
            let goal = wish.map_or(Goal::Heal, |selection| Goal::Attach {
                selection,
                takeover: false,
            });
            let report = engine.run(targets, &goal);
            self.count(&report, attaches.then_some(method));
            whole.elapsed_usec += report.elapsed_usec;
            whole.containers.extend(report.containers);
        }
        Ok(whole)
    }

    /// Heals dead mounts of ours in every container there is; attaches nothing new.
    ///
    /// # Errors
    /// There is no live mount to heal from, or processes cannot be listed.
    pub fn heal_all(&self) -> Result<Report, AttachError> {
        let found = Scan::default().containers()?.into_iter();
        let jobs = found.filter(|found| found.has_ours).map(|found| Job {
            target: found.into(),
            decision: Decision::Leave(Reason::NotAsked),
            cpus: None,
        });
        let report = self.carry_out(jobs.collect(), Method::Scan)?;
        self.set_stale(report.stale() as u64);
        Ok(report)
    }

    /// Counts a container that is left alone.
    pub fn skip(&self, reason: Reason) {
        self.skip_as(reason.label());
    }

    /// The same, with a reason of another kind.
    pub fn skip_as(&self, reason: &'static str) {
        *self.lock().skipped.entry(reason).or_default() += 1;
    }

    fn count(&self, report: &Report, method: Option<Method>) {
        let mut counts = self.lock();
        for container in &report.containers {
            let failed = container.error.is_some()
                || container
                    .steps
                    .iter()
                    .any(|step| matches!(step.outcome, Outcome::Failed { .. }));
            let acted = container.steps.iter().any(|step| {
                matches!(
                    step.outcome,
                    Outcome::Attached | Outcome::Replaced { .. } | Outcome::Covered
                )
            });
            // A container that has everything already is no news.
            if let Some(method) = method.filter(|_| acted || failed) {
                let outcome = if failed { "failed" } else { "ok" };
                *counts.attached.entry((method, outcome)).or_default() += 1;
            }
            if failed {
                let reason = container.reason.unwrap_or("file");
                *counts.failures.entry(reason).or_default() += 1;
            }
            // Neither is a file that every scan leaves alone again.
            let news = acted || failed || method.is_some_and(|method| method != Method::Scan);
            for step in &container.steps {
                let healed = match &step.outcome {
                    Outcome::Replaced { gapless: true } => "replaced",
                    Outcome::Replaced { gapless: false } => "replaced-with-gap",
                    Outcome::Covered => "covered",
                    // Where something new was to be attached, that is what failed.
                    Outcome::Failed { .. } if method.is_none() => "failed",
                    Outcome::Skipped(skip) if news => {
                        if let Some(reason) = skip.label() {
                            *counts.skipped_files.entry(reason).or_default() += 1;
                        }
                        continue;
                    }
                    _ => continue,
                };
                *counts.heals.entry(healed).or_default() += 1;
            }
        }
    }

    /// Remembers how many dead mounts the last scan left behind.
    pub fn set_stale(&self, count: u64) {
        self.lock().stale = Some(count);
    }

    /// The container with this id, when its runtime did not tell a process.
    ///
    /// # Errors
    /// None or several.
    pub fn find(&self, id: &str) -> Result<Target, AttachError> {
        Scan::default().by_id(id).map(Target::from)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl metrics::Source for Attacher {
    fn figures(&self, out: &mut Figures) {
        let counts = self.lock();
        for (&(method, outcome), &count) in &counts.attached {
            out.count(metrics::ATTACHED, &[method.label(), outcome], count);
        }
        for (&outcome, &count) in &counts.heals {
            out.count(metrics::HEALS, &[outcome], count);
        }
        for (&reason, &count) in &counts.skipped {
            out.count(metrics::SKIPPED, &[reason], count);
        }
        for (&reason, &count) in &counts.skipped_files {
            out.count(metrics::SKIPPED_FILES, &[reason], count);
        }
        for (&reason, &count) in &counts.failures {
            out.count(metrics::ATTACH_FAILURES, &[reason], count);
        }
        if let Some(stale) = counts.stale {
            out.count(metrics::STALE_MOUNTS, &[], stale);
        }
    }
}
