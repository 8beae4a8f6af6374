//! Starting workers and learning how they ended.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::channel::{self, Order};
use crate::gate::Newcomer;
use crate::image::Image;
use crate::layout::Cause;
use crate::outside::ServerId;
use crate::{CHANNEL_FD, FUSE_FD, STATE_FD};

/// How far a worker has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Preparing.
    Starting,
    /// Prepared, waiting for the order.
    Ready,
    /// Told to serve.
    Activated,
    /// Serving.
    Serving,
}

/// A worker process.
pub(crate) struct Worker {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) channel: OwnedFd,
    pub(crate) phase: Phase,
    /// Start of the present phase.
    pub(crate) since: Instant,
    /// We killed it because it did not answer: the request it worked on is suspect.
    pub(crate) stuck: bool,
    /// Its end of the channel is closed, as every descriptor of a dying process is.
    pub(crate) hung_up: bool,
    /// Who started it, if not we.
    pub(crate) server: Option<ServerId>,
}

impl Worker {
    /// Starts `image` with `args`; it finds its descriptors at the fixed numbers.
    pub(crate) fn spawn(
        image: &Image,
        args: &[OsString],
        fuse: BorrowedFd<'_>,
        state: RawFd,
        oom_score_adj: Option<&str>,
    ) -> io::Result<Self> {
        let (ours, theirs) = channel::pair()?;
        let given = [
            (fuse.as_raw_fd(), FUSE_FD),
            (state, STATE_FD),
            (theirs.as_raw_fd(), CHANNEL_FD),
        ];
        let mut command = Command::new(image.exec_path());
        command
            .arg0(&image.path)
            .args(args)
            .stdin(Stdio::null())
            // These are meant for the holder; a worker must not answer for it.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDNAMES");
        if crate::notify::is_managed() {
            command.env(crate::MANAGED_ENV, "1");
        }
        let score = oom_score_adj.map(str::to_owned);
        // SAFETY: between fork and exec of this single-threaded process; the closure makes
        // system calls only, on numbers that are above the targets (fd::high).
        unsafe {
            command.pre_exec(move || {
                for (from, to) in given {
                    if libc::dup2(from, to) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                // Ctrl-C in a terminal is for the holder, which then stops us in order.
                libc::setpgid(0, 0);
                let mut none: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&raw mut none);
                libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
                // Until it serves; a refusal costs time and nothing else.
                libc::setpriority(libc::PRIO_PROCESS, 0, crate::FIRST_NICE);
                if let Some(score) = &score {
                    // The holder must never be chosen, the worker may be: it is replaceable.
                    let _unchanged = std::fs::write("/proc/self/oom_score_adj", score);
                }
                Ok(())
            });
        }
        let child = command.spawn()?;
        let pid = child.id();
        Ok(Self {
            pid,
            // Our own child that nobody has reaped: the number cannot have been recycled.
            pidfd: crate::fd::pidfd_open(pid)?,
            channel: ours,
            phase: Phase::Starting,
            since: Instant::now(),
            stuck: false,
            hung_up: false,
            server: None,
        })
    }

    /// A worker that an earlier program of this process started.
    pub(crate) fn adopt(pid: u32, channel: RawFd) -> io::Result<Self> {
        Ok(Self {
            pid,
            pidfd: crate::fd::pidfd_open(pid)?,
            channel: crate::fd::inherited(channel)?,
            phase: Phase::Starting,
            since: Instant::now(),
            stuck: false,
            hung_up: false,
            server: None,
        })
    }

    /// A worker from outside, which has been given the connection.
    pub(crate) fn from_outside(newcomer: Newcomer) -> Self {
        Self {
            pid: newcomer.pid,
            pidfd: newcomer.pidfd,
            channel: newcomer.channel,
            phase: Phase::Starting,
            since: Instant::now(),
            stuck: false,
            hung_up: false,
            server: Some(newcomer.hello.server),
        }
    }

    /// Enters a phase.
    pub(crate) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
    }

    /// Tells it something; a worker that does not listen is found out by its silence.
    pub(crate) fn tell(&self, order: &Order) {
        if let Err(error) = channel::say(&self.channel, &order.to_text()) {
            crate::log::say(&format!("cannot reach worker {}: {error}", self.pid));
        }
    }

    /// Kills it; its end shows at the pidfd.
    pub(crate) fn kill(&self) {
        crate::fd::kill(&self.pidfd);
    }

    /// Collects the status of a worker whose pidfd has become readable.
    pub(crate) fn reap(&self) -> End {
        let mut status = 0;
        // SAFETY: status is ours. Not our child (taken over): ECHILD, end unknown.
        let done =
            unsafe { libc::waitpid(self.pid as libc::pid_t, &raw mut status, libc::WNOHANG) };
        if done != self.pid as libc::pid_t {
            return End::Unknown;
        }
        if libc::WIFSIGNALED(status) {
            End::Signal(libc::WTERMSIG(status))
        } else {
            End::Exit(libc::WEXITSTATUS(status))
        }
    }

    /// Whether it has ended and can be reaped.
    pub(crate) fn ended(&self) -> bool {
        crate::fd::has_ended(&self.pidfd)
    }

    /// Kills it and waits for its end (a moment: SIGKILL of a process in no kernel wait of ours).
    pub(crate) fn kill_and_wait(self) {
        self.kill();
        let mut poll = [nix::poll::PollFd::new(
            self.pidfd.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        let _ended = nix::poll::poll(&mut poll, 1000u16);
        self.reap();
    }
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Exit(i32),
    Signal(i32),
    /// Not our child.
    Unknown,
}

impl End {
    /// Whom the next worker blames.
    pub(crate) fn cause(self) -> Cause {
        match self {
            Self::Signal(libc::SIGKILL) | Self::Unknown => Cause::Killed,
            Self::Signal(_) | Self::Exit(_) => Cause::Crashed,
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exited with status {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => f.write_str("ended"),
        }
    }
}
