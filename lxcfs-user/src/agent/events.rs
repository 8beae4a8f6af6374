//! Owns the kernel's word that a container starts: the first program of a PID namespace calls
//! execve. Its mounts are made by then, so it can be given its files before it reads any.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::bpf::{CgroupEvent, Collector, EventStream, Feature, Options};

/// Programs that started as the first of their PID namespace.
pub(super) struct Started {
    stream: EventStream,
    wake: Wake,
    /// Keeps the program attached.
    _collector: Collector,
}

/// Ends a wait for [`Started::next`].
#[derive(Clone)]
pub(super) struct Wake(Arc<EventFd>);

impl Wake {
    /// Ends it now.
    pub(super) fn now(&self) {
        // Full means that it is already told.
        let _ = self.0.write(1);
    }
}

impl Started {
    /// Loads the one program that tells.
    ///
    /// # Errors
    /// Why it cannot be had, with the remedy.
    pub(super) fn listen() -> Result<Self, String> {
        let (collector, states) = Collector::start(&Options {
            only: Some(&[Feature::ContainerExec]),
            ..Options::default()
        });
        let state = states
            .iter()
            .find(|state| state.name == Feature::ContainerExec);
        let why = || state.map(ToString::to_string).unwrap_or_default();
        let stream = collector.take_events().ok_or_else(why)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).map_err(|error| format!("eventfd: {error}"))?;
        Ok(Self {
            stream,
            wake: Wake(Arc::new(wake)),
            _collector: collector,
        })
    }

    /// What ends a wait.
    pub(super) fn waker(&self) -> Wake {
        self.wake.clone()
    }

    /// Waits for processes to start; their numbers as the host counts. None when the wait was
    /// ended, or now and then.
    pub(super) fn next(&mut self) -> Vec<u32> {
        let mut fds = [
            PollFd::new(self.stream.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.wake.0.as_fd(), PollFlags::POLLIN),
        ];
        // Interrupted is as good as nothing to tell.
        let _ = poll(&mut fds, PollTimeout::NONE);
        let mut pids = Vec::new();
        while let Some(event) = self.stream.next_event() {
            if let CgroupEvent::ContainerExec { pid, .. } = event
                && !pids.contains(&pid)
            {
                pids.push(pid);
            }
        }
        pids
    }
}
