//! Taking a live connection from processes that survived our predecessor.
//!
//! Every worker holds the device and the state memory at fixed numbers, and the memory names
//! the connection. So a successor needs no file on disk: it looks for a process that calls
//! itself a worker, duplicates its descriptors and compares the connection.

use std::fs;
use std::os::fd::OwnedFd;

use crate::layout::State;
use crate::{FUSE_FD, HOLDER_COMM, STATE_FD, WORKER_COMM};

/// What a surviving worker held.
pub(crate) struct Found {
    pub(crate) fuse: OwnedFd,
    pub(crate) state: OwnedFd,
    /// The worker that still serves.
    pub(crate) pid: u32,
}

fn comm(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(text.trim_end().to_owned())
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Searches the survivors of connection `number`.
pub(crate) fn find(number: u32) -> Option<Found> {
    processes()
        .filter(|pid| comm(*pid).as_deref() == Some(WORKER_COMM))
        .filter_map(|pid| take(pid, number))
        .next()
}

fn take(pid: u32, number: u32) -> Option<Found> {
    let pidfd = crate::fd::pidfd_open(pid).ok()?;
    let state = crate::fd::pidfd_getfd(&pidfd, STATE_FD).ok()?;
    let header = State::open(state.try_clone().ok()?).ok()?;
    if header
        .header()
        .connection
        .load(std::sync::atomic::Ordering::Relaxed)
        != number
    {
        return None;
    }
    let fuse = crate::fd::pidfd_getfd(&pidfd, FUSE_FD).ok()?;
    Some(Found { fuse, state, pid })
}

/// Whether the worker that served last has ended, as far as its process id tells. Only where
/// holder and workers see the same process ids.
pub fn worker_has_ended(state: &State) -> bool {
    let pid = state
        .header()
        .worker_pid
        .load(std::sync::atomic::Ordering::Relaxed);
    let is_worker = || comm(pid).as_deref() == Some(WORKER_COMM);
    match crate::fd::pidfd_open(pid) {
        // Its number may be another's by now.
        Ok(pidfd) => crate::fd::has_ended(&pidfd) || !is_worker(),
        Err(_) => pid == 0 || !is_worker(),
    }
}

/// The holder that runs the connection in `state`, if it is alive.
pub fn living_holder(state: &State) -> Option<u32> {
    let pid = state
        .header()
        .holder_pid
        .load(std::sync::atomic::Ordering::Relaxed);
    let other = pid != 0 && pid != std::process::id();
    (other && comm(pid).as_deref() == Some(HOLDER_COMM) && !is_zombie(pid)).then_some(pid)
}

/// Whether it is dead and only not reaped yet.
fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes());
    matches!(state, Some([b'Z' | b'X', ..]))
}

/// All workers of connection `number`, to be stopped once a new one is ready.
pub(crate) fn survivors(number: u32) -> Vec<(u32, OwnedFd)> {
    processes()
        .filter(|pid| comm(*pid).as_deref() == Some(WORKER_COMM))
        .filter(|pid| take(*pid, number).is_some())
        .filter_map(|pid| Some((pid, crate::fd::pidfd_open(pid).ok()?)))
        .collect()
}
