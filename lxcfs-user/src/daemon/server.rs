//! `lxcfs serve`: keeps two workers offered to a holder that runs elsewhere, and replaces each
//! that ends. It opens nothing and mounts nothing itself.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lxcfs_holder::outside::ServerId;
use lxcfs_holder::{FUSE_FD, PROC_FD};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::time::{ClockId, clock_gettime};

use super::launch::WORKER_COMMAND;
use crate::config::{Config, workers_socket};
use crate::observe::log;

/// One serves, one stands by.
const WORKERS: usize = 2;
/// A worker that lived this long did not fail to start.
const SETTLED: Duration = Duration::from_secs(5);

/// A place for a worker.
#[derive(Default)]
struct Seat {
    worker: Option<(Child, Instant)>,
    /// Workers in a row that ended soon after their start.
    failures: u32,
    not_before: Option<Instant>,
}

/// Pause before the next worker after `failures` that ended soon: readers may wait, so the
/// first is replaced at once. Pure.
fn pause(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None | Some(0) => Duration::ZERO,
        Some(steps) => Duration::from_millis(10 << steps.min(8)).min(Duration::from_secs(2)),
    }
}

/// Whether the request that a worker was at is to blame for its end.
fn crashed(status: ExitStatus) -> bool {
    !status.success() && status.signal() != Some(Signal::SIGKILL as i32)
}

/// Serves until SIGTERM or SIGINT. `words` are the arguments that workers read again.
///
/// # Errors
/// When signals cannot be waited for. Anything else is tried again.
pub fn run(
    config: &Config,
    holder: Option<PathBuf>,
    notes: &[String],
    words: Vec<OsString>,
) -> Result<()> {
    log::start(config.log_level, config.log_format);
    for note in notes {
        tracing::info!("{note}");
    }
    let holder = holder.unwrap_or_else(|| workers_socket(&config.runtime_dir));
    let mut wanted = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        wanted.add(signal);
    }
    wanted.thread_block().context("blocking signals")?;
    let signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("making a signalfd")?;
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).context("reading the boot clock")?;
    let since_nsec = Duration::from(now).as_nanos();
    let server = ServerId {
        since_nsec: u64::try_from(since_nsec).unwrap_or(u64::MAX),
        pid: std::process::id(),
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        holder = %holder.display(),
        "lxcfs serves {} from outside",
        config.mountpoint.display()
    );
    let mut base_dir = OsString::from("--base-dir=");
    base_dir.push(std::env::current_dir().unwrap_or_else(|_gone| PathBuf::from("/")));
    let mut given = vec![
        WORKER_COMMAND.into(),
        base_dir,
        "--join".into(),
        holder.into(),
    ];
    given.push(format!("--server={server}").into());
    Server {
        given,
        words,
        seats: Default::default(),
        crashed: VecDeque::new(),
    }
    .supervise(&signals)
}

/// So many crashes are told to the holder. Both workers may have crashed since one last came to
/// it, and another may be on its way.
const CRASHES_TOLD: usize = 4;

struct Server {
    given: Vec<OsString>,
    words: Vec<OsString>,
    seats: [Seat; WORKERS],
    /// The latest workers that crashed.
    crashed: VecDeque<u32>,
}

impl Server {
    fn supervise(mut self, signals: &SignalFd) -> Result<()> {
        loop {
            let now = Instant::now();
            for index in 0..WORKERS {
                self.fill(index, now);
            }
            let next = self.seats.iter().filter_map(|seat| seat.not_before).min();
            let wait = next.map(|at| at.saturating_duration_since(now) + Duration::from_millis(1));
            let wait = wait.and_then(|wait| PollTimeout::try_from(wait).ok());
            let mut one = [PollFd::new(
                std::os::fd::AsFd::as_fd(signals),
                PollFlags::POLLIN,
            )];
            let _woken = poll(&mut one, wait.unwrap_or(PollTimeout::NONE));
            while let Ok(Some(signal)) = signals.read_signal() {
                if signal.ssi_signo != Signal::SIGCHLD as u32 {
                    tracing::info!("leaving; readers wait for another server");
                    self.end();
                    return Ok(());
                }
            }
            self.reap();
        }
    }

    fn fill(&mut self, index: usize, now: Instant) {
        let Some(seat) = self.seats.get_mut(index) else {
            return;
        };
        if seat.worker.is_some() || seat.not_before.is_some_and(|at| now < at) {
            return;
        }
        let mut command = Command::new("/proc/self/exe");
        command.args(&self.given);
        if !self.crashed.is_empty() {
            let pids: Vec<String> = self.crashed.iter().map(u32::to_string).collect();
            command.arg(format!("--crashed={}", pids.join(",")));
        }
        command
            .args(&self.words)
            .stdin(Stdio::null())
            // Ctrl-C in a terminal is for us, who then end it in order.
            .process_group(0);
        // SAFETY: between fork and exec of this single-threaded process; system calls only.
        unsafe {
            command.pre_exec(|| {
                // What we inherited by somebody's mistake must not be where the worker puts
                // what it is given.
                for number in FUSE_FD..=PROC_FD {
                    libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC);
                }
                Ok(SigSet::empty().thread_set_mask()?)
            });
        }
        match command.spawn() {
            Ok(child) => {
                seat.worker = Some((child, now));
                seat.not_before = None;
            }
            Err(error) => {
                tracing::error!(%error, "cannot start a worker");
                seat.failures = seat.failures.saturating_add(2);
                seat.not_before = Some(now + pause(seat.failures));
            }
        }
    }

    fn reap(&mut self) {
        let now = Instant::now();
        for seat in &mut self.seats {
            let Some((child, since)) = &mut seat.worker else {
                continue;
            };
            let Ok(Some(status)) = child.try_wait() else {
                continue;
            };
            let pid = child.id();
            let soon = now.duration_since(*since) < SETTLED;
            // Killed ones were replaced, or found out by the holder: that is no failure to start.
            let failed = soon && crashed(status);
            seat.failures = if failed {
                seat.failures.saturating_add(1)
            } else {
                0
            };
            if crashed(status) {
                if self.crashed.len() >= CRASHES_TOLD {
                    self.crashed.pop_front();
                }
                self.crashed.push_back(pid);
                tracing::warn!(worker = pid, %status, "a worker ended by itself");
            }
            seat.worker = None;
            seat.not_before = Some(now + pause(seat.failures));
        }
    }

    fn end(&mut self) {
        for seat in &mut self.seats {
            if let Some((mut child, _)) = seat.worker.take() {
                let _already_dead = child.kill();
                let _reaped = child.wait();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_made_good_at_once_and_the_rest_ever_more_slowly() {
        let pauses: Vec<u128> = (0..=12)
            .map(|failures| pause(failures).as_millis())
            .collect();
        assert_eq!(pauses[..5], [0, 0, 20, 40, 80]);
        assert_eq!(pause(u32::MAX), Duration::from_secs(2));
        assert!(pauses.is_sorted());
    }

    #[test]
    fn only_the_workers_own_fault_is_a_crash() {
        assert!(!crashed(ExitStatus::from_raw(0)));
        assert!(!crashed(ExitStatus::from_raw(9)));
        assert!(crashed(ExitStatus::from_raw(6)));
        assert!(crashed(ExitStatus::from_raw(1 << 8)));
    }
}
