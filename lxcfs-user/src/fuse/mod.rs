//! The only importer of fuser: requests in, replies out, and the adoption of a connection
//! that another process opened.
//!
//! The rest of the program sees [`Server`]. Its one implementation runs unmodified fuser;
//! another (a loop of our own) could take its place, even on a live connection.

mod adapter;
mod alloc;
mod session;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use lxcfs_holder::layout::State;
use nix::poll::{PollFd, PollFlags, PollTimeout};

pub use alloc::SlotAllocator;

use crate::vfs::Vfs;
use crate::vfs::psi::Wake;

/// Why a connection cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A system call failed.
    #[error("{call}")]
    System {
        /// What was tried.
        call: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// fuser is not what this adapter was written for.
    #[error("{0}")]
    Assumption(&'static str),
}

impl ServeError {
    fn io(call: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { call, source }
    }

    fn system(call: &'static str) -> impl Fn(nix::errno::Errno) -> Self {
        move |source| Self::System {
            call,
            source: source.into(),
        }
    }
}

/// Facts about the connection that were fixed when it was made.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Threads that read requests.
    pub loops: usize,
    /// Minor version of the FUSE protocol that the kernel speaks.
    pub kernel_minor: u32,
    /// Time stamp of every file, Unix time in seconds.
    pub mounted_at_sec: u64,
}

/// Loops that answer requests, first from us, then from the kernel.
pub trait Server: Send {
    /// Maps the shared slots over the loops' buffers. From now on a request that a loop gets, from
    /// us or from the kernel, is in a slot: none may be sent while another worker runs.
    ///
    /// # Errors
    /// When they cannot be mapped.
    fn map_slots(&self) -> Result<(), ServeError>;

    /// From now on the slots hold what is not answered yet. No other worker may run.
    fn adopt_slots(&self);

    /// Answers one request as if the kernel had sent it; returns the reply.
    ///
    /// # Errors
    /// When the loops are gone.
    fn replay(&self, request: &[u8]) -> Result<Vec<u8>, ServeError> {
        self.ask(request)?;
        self.reply()
    }

    /// Gives a request to a loop as if the kernel had sent it.
    ///
    /// # Errors
    /// When the loops are gone.
    fn ask(&self, request: &[u8]) -> Result<(), ServeError>;

    /// Waits for the next reply to what was asked; the loops may change the order.
    ///
    /// # Errors
    /// When the loops are gone, or none comes in time.
    fn reply(&self) -> Result<Vec<u8>, ServeError>;

    /// From now on requests come from `device`. With a state memory its header tells since when.
    ///
    /// # Errors
    /// When the descriptor cannot be put in place.
    fn go_live(&self, device: &OwnedFd) -> Result<(), ServeError>;

    /// Waits until the connection ends.
    fn join(&mut self);
}

/// Prepares loops that serve `vfs`. `state` is the memory with the slots; without it there is
/// no failover. `ended` is called when the connection is gone.
///
/// # Errors
/// See [`ServeError`]; a live connection has not been touched.
pub fn prepare(
    vfs: Arc<Vfs>,
    facts: Facts,
    state: Option<Arc<State>>,
    ended: Box<dyn FnOnce(io::Result<()>) + Send>,
) -> Result<Box<dyn Server>, ServeError> {
    Ok(Box::new(session::Session::prepare(
        vfs, facts, state, ended,
    )?))
}

/// Sends an answer that did not come from the loops, or passes a replayed one on. That the
/// kernel no longer knows the request (answered before, or its caller was killed) is fine.
///
/// # Errors
/// Anything else the device says.
pub fn answer(device: &OwnedFd, reply: &[u8]) -> io::Result<()> {
    match nix::unistd::write(device, reply) {
        Ok(_) | Err(nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the kernel still sends requests: nobody has unmounted or aborted it.
pub fn is_connected(device: &OwnedFd) -> bool {
    // `fuse_dev_poll` of the kernel reports an error once the connection is gone.
    let mut poll = [PollFd::new(device.as_fd(), PollFlags::empty())];
    let polled = nix::poll::poll(&mut poll, PollTimeout::ZERO);
    let events = poll
        .first()
        .and_then(PollFd::revents)
        .unwrap_or(PollFlags::empty());
    polled.is_err() || !events.contains(PollFlags::POLLERR)
}

/// The reply to request `unique` that it failed with `errno`.
pub fn error_reply(unique: u64, errno: i32) -> [u8; 16] {
    let mut reply = [0; 16];
    reply[..4].copy_from_slice(&16u32.to_ne_bytes());
    reply[4..8].copy_from_slice(&(-errno).to_ne_bytes());
    reply[8..].copy_from_slice(&unique.to_ne_bytes());
    reply
}

/// Which request a reply is to.
pub fn unique_of(reply: &[u8]) -> Option<u64> {
    Some(bytemuck::pod_read_unaligned(reply.get(8..16)?))
}

/// A LOOKUP of `name` in the root, as the kernel would send it; for self-tests.
pub fn lookup_request(name: &str) -> Vec<u8> {
    let mut body = name.as_bytes().to_vec();
    body.push(0);
    session::message(session::LOOKUP, 3, lxcfs_common::catalogue::ROOT_INO, &body)
}

/// Wakes poll waiters through the device.
pub struct DeviceWake(pub OwnedFd);

const NOTIFY_POLL: i32 = 1;

impl Wake for DeviceWake {
    fn wake(&self, kernel_handle: u64) {
        let mut notification = [0; 24];
        notification[..4].copy_from_slice(&24u32.to_ne_bytes());
        notification[4..8].copy_from_slice(&NOTIFY_POLL.to_ne_bytes());
        notification[16..].copy_from_slice(&kernel_handle.to_ne_bytes());
        // Before the handshake of the device, or for a waiter that is gone: nothing to do.
        if let Err(error) = answer(&self.0, &notification) {
            tracing::debug!(%error, fd = self.0.as_raw_fd(), "waking poll waiters");
        }
    }
}
