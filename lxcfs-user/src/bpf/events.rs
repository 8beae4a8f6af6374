//! Cgroups made and removed, containers started, as they happen.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use lxcfs_common::bpf::{Event, EventKind};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::BpfError;
use super::feature::Feature;
use super::load::Loaded;

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupEvent {
    /// A cgroup was made.
    Created {
        /// Which.
        cgroup: EventCgroup,
    },
    /// A cgroup was removed; it has no tasks and no children, and its id never comes back.
    Removed {
        /// Which.
        cgroup: EventCgroup,
    },
    /// The init of a PID namespace other than the host's called execve: a container starts.
    ContainerExec {
        /// PID in the host's namespace.
        pid: u32,
        /// Inode of the PID namespace.
        pid_ns: u32,
        /// The init's cgroup on v2.
        cgroup_v2: u64,
    },
}

/// A cgroup as events name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventCgroup {
    /// Number of the hierarchy as in `/proc/cgroups`; 0 is v2. Ids of different hierarchies
    /// must not be mixed.
    pub hierarchy: u32,
    /// Its id, the inode number of its directory.
    pub id: u64,
    /// Id of its parent, 0 for none.
    pub parent: u64,
}

fn decode(bytes: &[u8]) -> Option<CgroupEvent> {
    let event: Event = bytemuck::try_pod_read_unaligned(bytes.get(..size_of::<Event>())?).ok()?;
    let cgroup = EventCgroup {
        hierarchy: event.hierarchy,
        id: event.cgroup,
        parent: event.parent,
    };
    Some(match EventKind::from_raw(event.kind)? {
        EventKind::CgroupCreated => CgroupEvent::Created { cgroup },
        EventKind::CgroupRemoved => CgroupEvent::Removed { cgroup },
        EventKind::ContainerExec => CgroupEvent::ContainerExec {
            pid: event.pid,
            pid_ns: event.pid_ns,
            cgroup_v2: event.cgroup,
        },
    })
}

/// The reader's end of the event ring; there is one. Its descriptor is readable when events
/// wait, so it fits into any poll loop. Events that nobody reads are dropped by the kernel
/// side and counted.
pub struct EventStream {
    ring: RingBuf<MapData>,
}

impl EventStream {
    pub(super) fn new(loaded: &mut Loaded) -> Result<Self, BpfError> {
        if !loaded.has(Feature::CgroupEvents) && !loaded.has(Feature::ContainerExec) {
            return Err(BpfError::Off(Feature::CgroupEvents));
        }
        let map = loaded
            .map("EVENTS")
            .ok_or(BpfError::Off(Feature::CgroupEvents))?;
        let ring = RingBuf::try_from(map)
            .map_err(|error| BpfError::library("opening the event ring")(Box::new(error)))?;
        Ok(Self { ring })
    }

    /// The next event, if one waits.
    pub fn next_event(&mut self) -> Option<CgroupEvent> {
        loop {
            let item = self.ring.next()?;
            if let Some(event) = decode(&item) {
                return Some(event);
            }
        }
    }

    /// Waits until an event is there or the time is over; says whether one is.
    ///
    /// # Errors
    /// When poll fails for another reason than a signal.
    pub fn wait(&self, at_most: Duration) -> Result<bool, BpfError> {
        let mut fds = [PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(error) => Err(BpfError::system("waiting for events")(error.into())),
        }
    }
}

impl AsFd for EventStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_keep_their_meaning() {
        let event = Event {
            cgroup: 7,
            parent: 3,
            kind: 2,
            hierarchy: 4,
            ..Default::default()
        };
        let cgroup = EventCgroup {
            hierarchy: 4,
            id: 7,
            parent: 3,
        };
        assert_eq!(
            decode(bytemuck::bytes_of(&event)),
            Some(CgroupEvent::Removed { cgroup })
        );
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_decode_or_not(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
