//! Upgrade in place: a worker of the new program gets ready beside the serving one, then takes
//! over like a standby. When it does not serve, the old program continues. At the end the
//! holder replaces its own program too, keeping every descriptor.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Holder, LONGEST_START, keep_open};
use crate::HOLDER_COMM;
use crate::control::answer;
use crate::image::Image;
use crate::log::say;
use crate::options::Adopt;
use crate::outside::ServerId;
use crate::spawn::{Phase, Worker};

/// An upgrade under way.
pub(super) struct Upgrade {
    target: Target,
    stage: Stage,
    since: Instant,
}

/// What is wanted, and who waits for the answer.
struct Target {
    program: Program,
    client: Option<OwnedFd>,
}

/// What the candidate runs.
enum Program {
    /// A file that we started.
    Image(Image),
    /// Whatever this server starts.
    Server(ServerId),
}

impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image(image) => image.path.display().fmt(f),
            Self::Server(server) => write!(f, "server {}", server.pid),
        }
    }
}

impl Target {
    fn enter(self, stage: Stage) -> Upgrade {
        Upgrade {
            target: self,
            stage,
            since: Instant::now(),
        }
    }
}

enum Stage {
    /// The candidate prepares itself.
    Preparing(Worker),
    /// The old worker was killed; its end is awaited.
    Switching(Worker),
    /// The candidate is the active worker and has not reported yet.
    Trial,
}

impl Upgrade {
    /// When a worker that may take `start` to get ready is late. Nobody waits for one that
    /// prepares itself; readers wait for one that was told to serve.
    pub(super) fn deadline(&self, start: Duration) -> Instant {
        self.since
            + match self.stage {
                Stage::Preparing(_) => start,
                Stage::Switching(_) | Stage::Trial => start / 2,
            }
    }

    /// The server that is about to replace another.
    pub(super) fn server(&self) -> Option<ServerId> {
        match &self.target.program {
            Program::Server(server) => Some(*server),
            Program::Image(_) => None,
        }
    }

    pub(super) fn candidate(&self) -> Option<&Worker> {
        match &self.stage {
            Stage::Preparing(worker) | Stage::Switching(worker) => Some(worker),
            Stage::Trial => None,
        }
    }

    pub(super) fn candidate_mut(&mut self) -> Option<&mut Worker> {
        match &mut self.stage {
            Stage::Preparing(worker) | Stage::Switching(worker) => Some(worker),
            Stage::Trial => None,
        }
    }

    pub(super) fn into_candidate(self) -> Option<Worker> {
        match self.stage {
            Stage::Preparing(worker) | Stage::Switching(worker) => Some(worker),
            Stage::Trial => None,
        }
    }
}

impl Holder {
    /// Starts an upgrade to the program at `path` (empty: where the present one was found).
    pub(super) fn start_upgrade(&mut self, path: &Path, client: Option<OwnedFd>) {
        let path: PathBuf = if path.as_os_str().is_empty() {
            self.image.path.clone()
        } else {
            path.into()
        };
        let refuse = |reason: String| {
            say(&format!("no upgrade: {reason}"));
            if let Some(client) = &client {
                answer(client, &Err(reason));
            }
        };
        if self.gate.is_some() {
            return refuse(
                "workers come from outside: start a server of the new program, it replaces the \
                 present one"
                    .to_owned(),
            );
        }
        if self.upgrade.is_some() {
            return refuse("an upgrade is under way".to_owned());
        }
        if !self
            .active
            .as_ref()
            .is_some_and(|w| w.phase == Phase::Serving)
        {
            return refuse("no worker serves at the moment".to_owned());
        }
        let image = match Image::open(&path) {
            Ok(image) => image,
            Err(error) => return refuse(format!("{}: {error}", path.display())),
        };
        let worker = match self.spawn(&image) {
            Ok(worker) => worker,
            Err(error) => return refuse(error),
        };
        let program = Program::Image(image);
        self.upgrade = Some(Target { program, client }.enter(Stage::Preparing(worker)));
    }

    /// Lets a worker of a newer server get ready beside the serving one.
    pub(super) fn try_candidate(&mut self, server: ServerId, worker: Worker) {
        let target = Target {
            program: Program::Server(server),
            client: None,
        };
        self.upgrade = Some(target.enter(Stage::Preparing(worker)));
    }

    /// The candidate is ready: end the old worker.
    pub(super) fn switch_to_candidate(&mut self) {
        let Some(Upgrade {
            target,
            stage: Stage::Preparing(worker),
            ..
        }) = self.upgrade.take()
        else {
            return;
        };
        self.upgrade = Some(target.enter(Stage::Switching(worker)));
        match &self.active {
            Some(active) => active.kill(),
            None => self.upgrade_lost_active(),
        }
    }

    /// The active worker is gone: the candidate takes over, or the trial has failed.
    pub(super) fn upgrade_lost_active(&mut self) {
        let Some(Upgrade { target, stage, .. }) = self.upgrade.take() else {
            return;
        };
        match stage {
            Stage::Switching(worker) => {
                self.activate(worker);
                self.upgrade = Some(target.enter(Stage::Trial));
            }
            Stage::Trial => report_failure(
                target.enter(stage),
                "its worker ended before it served; the old program continues",
            ),
            // The old worker died by itself; its own standby takes over, the upgrade goes on.
            Stage::Preparing(_) => self.upgrade = Some(target.enter(stage)),
        }
    }

    /// The candidate died before it was told to serve.
    pub(super) fn candidate_died(&mut self) {
        let Some(mut upgrade) = self.upgrade.take() else {
            return;
        };
        let how = upgrade
            .candidate_mut()
            .map_or_else(String::new, |w| w.reap().to_string());
        report_failure(
            upgrade,
            &format!("its worker {how} while it prepared itself"),
        );
        self.cover();
    }

    /// A worker reports that it serves; completes the upgrade if it was on trial.
    pub(super) fn upgrade_serves(&mut self) {
        let Some(Upgrade { target, .. }) = self
            .upgrade
            .take_if(|upgrade| matches!(upgrade.stage, Stage::Trial))
        else {
            return;
        };
        let Target { program, client } = target;
        self.upgrades += 1;
        say(&format!("upgraded to {program}"));
        if let Some(standby) = self.standby.take() {
            standby.kill_and_wait();
        }
        self.probing = None;
        let Program::Image(image) = program else {
            return;
        };
        let old = std::mem::replace(&mut self.image, image);
        if old.same_file(&self.image) {
            if let Some(client) = client {
                answer(
                    &client,
                    &Ok("the same program was started afresh".to_owned()),
                );
            }
            return;
        }
        self.last_good = Some(old);
        let error = self.become_new_program(client.as_ref());
        say(&format!(
            "the workers are upgraded, the holder is not: {error}"
        ));
        if let Some(client) = client {
            answer(
                &client,
                &Ok(format!(
                    "workers upgraded; the holder keeps its program ({error})"
                )),
            );
        }
    }

    /// Replaces the holder's program; returns only on failure.
    fn become_new_program(&mut self, client: Option<&OwnedFd>) -> std::io::Error {
        let mut options = self.options.clone();
        options.ready_fd = None;
        if let Some(program) = options.worker.first_mut()
            && !program.is_empty()
        {
            *program = self.image.path.clone().into();
        }
        let adopt = Adopt {
            fuse: self.fuse.as_raw_fd(),
            state: self.state.fd().as_raw_fd(),
            control: self
                .control
                .as_ref()
                .map(|control| control.listener().as_raw_fd()),
            client: client.map(AsRawFd::as_raw_fd),
            last_good: self.last_good.as_ref().map(Image::number),
            workers: self
                .active
                .iter()
                .map(|worker| (worker.pid, worker.channel.as_raw_fd()))
                .collect(),
        };
        let mut kept = vec![adopt.fuse, adopt.state];
        kept.extend(adopt.control);
        kept.extend(adopt.client);
        kept.extend(adopt.last_good);
        kept.extend(adopt.workers.iter().map(|(_, channel)| *channel));
        options.adopt = Some(adopt);
        keep_open(&kept, true);
        // The new program does not know them.
        for worker in self.leaving.drain(..) {
            worker.kill_and_wait();
        }
        let error = Command::new(self.image.exec_path())
            .arg0(HOLDER_COMM)
            .args(options.to_args())
            .exec();
        keep_open(&kept, false);
        error
    }

    /// Gives up an upgrade that takes too long.
    pub(super) fn check_upgrade(&mut self, now: Instant) {
        if self
            .upgrade
            .as_ref()
            .is_none_or(|upgrade| now < upgrade.deadline(self.start_deadline))
        {
            return;
        }
        let Some(upgrade) = self.upgrade.take() else {
            return;
        };
        // As for other workers: the next attempt gets more time.
        self.start_deadline = (self.start_deadline * 2).min(LONGEST_START);
        match &upgrade.stage {
            Stage::Preparing(worker) => {
                worker.kill();
                report_failure(upgrade, "its worker did not get ready in time");
            }
            Stage::Switching(_) => {
                // The old worker does not end: it is stuck in the kernel. Keep waiting for it.
                self.upgrade = Some(Upgrade {
                    since: now,
                    ..upgrade
                });
            }
            Stage::Trial => {
                if let Some(active) = &mut self.active {
                    active.stuck = true;
                    active.kill();
                }
                report_failure(
                    upgrade,
                    "its worker did not serve in time; the old program continues",
                );
            }
        }
    }
}

fn report_failure(upgrade: Upgrade, reason: &str) {
    let text = format!("upgrade to {} failed: {reason}", upgrade.target.program);
    say(&text);
    if let Some(client) = &upgrade.target.client {
        answer(client, &Err(text));
    }
    if let Some(worker) = upgrade.into_candidate() {
        worker.kill_and_wait();
    }
}
