//! Is the mount answering? Asked through the kernel, by another process.
//!
//! Another *process*, because a thread that waits for a FUSE answer cannot be killed: a
//! worker that read its own mount could not die until somebody answered, and its
//! successor starts when it is dead.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::metrics::{Figures, MOUNT_ANSWERS, Source};

/// An answer this young is given again, so that nobody can make us spawn without end.
const FRESH: Duration = Duration::from_secs(1);

/// Reads one file of the mount in a child process, at most one at a time.
#[derive(Debug)]
pub struct MountProbe {
    program: PathBuf,
    mountpoint: PathBuf,
    deadline: Duration,
    state: Mutex<State>,
    answers: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// A child that has not come back.
    stuck: Option<(Child, Instant)>,
    /// When the mount answered last.
    answered: Option<Instant>,
}

impl MountProbe {
    /// Probes `mountpoint` by running `program probe --read MOUNTPOINT` for at most `deadline`.
    #[must_use]
    pub fn new(program: PathBuf, mountpoint: PathBuf, deadline: Duration) -> Self {
        Self {
            program,
            mountpoint,
            deadline,
            state: Mutex::default(),
            answers: AtomicBool::new(false),
        }
    }

    /// Whether the mount answers in time, and if not, why.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn check(&self) -> Result<(), String> {
        let result = self.check_now();
        self.answers.store(result.is_ok(), Relaxed);
        result
    }

    fn check_now(&self) -> Result<(), String> {
        let Ok(mut state) = self.state.try_lock() else {
            return Err("another check of the mount is under way".to_owned());
        };
        if state.answered.is_some_and(|at| at.elapsed() < FRESH) {
            return Ok(());
        }
        if let Some((mut child, since)) = state.stuck.take() {
            // An unreadable status counts as "still there": never spawn beside it.
            if !matches!(child.try_wait(), Ok(Some(_))) {
                let waited = since.elapsed().as_secs();
                state.stuck = Some((child, since));
                return Err(format!(
                    "{} has not answered for {waited} s",
                    self.mountpoint.display()
                ));
            }
        }
        let mut child = Command::new(&self.program)
            .args(["probe", "--read"])
            .arg(&self.mountpoint)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", self.program.display()))?;
        let since = Instant::now();
        let Some(mut stdout) = child.stdout.take() else {
            return Err("the probe has no output".to_owned());
        };
        if !readable_within(&stdout, self.deadline) {
            // It cannot be killed while the kernel waits; it ends when the mount answers.
            let _ = child.kill();
            state.stuck = Some((child, since));
            return Err(format!(
                "{} did not answer within {} ms",
                self.mountpoint.display(),
                self.deadline.as_millis()
            ));
        }
        let mut said = String::new();
        let _ = stdout.read_to_string(&mut said);
        let _ = child.wait();
        match said.trim() {
            "ok" => {
                state.answered = Some(Instant::now());
                Ok(())
            }
            "" => Err("the probe ended without a word".to_owned()),
            problem => Err(problem.to_owned()),
        }
    }
}

impl Source for MountProbe {
    fn figures(&self, out: &mut Figures) {
        out.count(MOUNT_ANSWERS, &[], u64::from(self.answers.load(Relaxed)));
    }
}

fn readable_within(stdout: &impl std::os::fd::AsFd, deadline: Duration) -> bool {
    let end = Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(nix::Error::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// The child's part: reads `proc/uptime` of the mount and tells what came of it in one line.
#[must_use]
pub fn read_mount(mountpoint: &Path) -> String {
    let file = mountpoint.join("proc/uptime");
    match std::fs::read(&file) {
        Ok(text) if text.is_empty() => format!("{} is empty", file.display()),
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{}: {error}", file.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A program that plays the probe's child.
    fn program(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("child");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn probe(dir: &Path, script: &str) -> MountProbe {
        let program = program(dir, script);
        MountProbe::new(program, "/mount".into(), Duration::from_millis(300))
    }

    #[test]
    fn an_answer_in_time_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        let script = r#"[ "$*" = "probe --read /mount" ] && echo ok"#;
        assert_eq!(probe(dir.path(), script).check(), Ok(()));
    }

    #[test]
    fn a_complaint_is_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let error = probe(dir.path(), "echo dead").check().unwrap_err();
        assert_eq!(error, "dead");
        assert!(probe(dir.path(), "exit 1").check().is_err());
    }

    #[test]
    fn a_hanging_mount_is_unready_and_no_second_child_joins_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("count");
        // Deaf to nothing but SIGKILL, and that ends it only when its sleep is over.
        let script = format!("echo x >> {}; exec sleep 30", count.display());
        let probe = probe(dir.path(), &script);
        assert!(probe.check().unwrap_err().contains("within 300 ms"));
        let runs = || std::fs::read_to_string(&count).unwrap().lines().count();
        assert_eq!(runs(), 1);
    }

    #[test]
    fn a_read_of_the_mount_names_what_failed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_mount(dir.path()).contains("proc/uptime: No such file"));
        std::fs::create_dir(dir.path().join("proc")).unwrap();
        std::fs::write(dir.path().join("proc/uptime"), "").unwrap();
        assert!(read_mount(dir.path()).contains("is empty"));
        std::fs::write(dir.path().join("proc/uptime"), "1 1\n").unwrap();
        assert_eq!(read_mount(dir.path()), "ok");
    }
}
