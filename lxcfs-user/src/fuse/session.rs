//! Bringing unmodified fuser onto a connection that is already in use.
//!
//! fuser can only start with a handshake on its own descriptor. So it gets a socket, we play
//! the kernel at the other end, and when everything is in place the live device is put under
//! the very descriptor number that fuser's loops read from:
//!
//! 1. [`Session::prepare`]: handshake over the socket, loops started, buffers taken.
//! 2. [`Session::replay`]: a dead worker's request goes through the socket; the answer comes
//!    back and is passed to the kernel by the caller.
//! 3. [`Session::go_live`]: `dup3` of the device over fuser's descriptor; one FORGET per loop
//!    (which has no answer) wakes those that still wait on the socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{Config, SessionACL};
use lxcfs_holder::layout::{REQUEST_HEADER_BYTES, RequestHeader, SLOT_BYTES, State};
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};

use super::adapter::{Adapter, Answered};
use super::alloc::Pool;
use super::{Facts, ServeError, Server};
use crate::vfs::Vfs;

pub(super) const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const INIT: u32 = 26;
/// The protocol of fuser 0.18.
const PROTOCOL: [u32; 2] = [7, 40];
/// Starting the loops is a matter of microseconds; this bound only names the failure.
const START_BOUND: Duration = Duration::from_secs(5);
/// An answer that takes longer counts as failed.
const ANSWER_BOUND_MSEC: u16 = 2000;
/// Longest answer that comes back through the socket: the largest read and a header.
const MAX_ANSWER: usize = 1024 * 1024 + 4096;

/// fuser's loops, prepared or live.
pub(super) struct Session {
    ours: OwnedFd,
    /// The descriptor number fuser reads from.
    theirs: RawFd,
    loops: usize,
    pool: Option<Pool>,
    slots: Option<Arc<Slots>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// The shared slots, once they are mapped.
struct Slots {
    pool: Pool,
    state: Arc<State>,
    /// Set when this worker owns the slots; before that another one may be using them.
    live: AtomicBool,
    /// Set when the first loop reads the device.
    serving: AtomicBool,
}

impl Answered for Slots {
    fn answered(&self, address: usize, unique: u64) {
        if let Some(index) = self.live_slot(address)
            && let Some(slot) = self.state.slot(index)
        {
            self.state.sign_loop(index);
            slot.answered.store(unique, Ordering::Release);
            slot.answers.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn seen(&self, address: usize) {
        if let Some(index) = self.live_slot(address) {
            // The wake-up call: this loop reads the device next.
            self.serves();
            self.state.sign_loop(index);
        }
    }
}

impl Slots {
    /// A loop reads the device, or is about to. Noted by the first who knows: the thread that
    /// wakes the loops may have to wait for a CPU behind them.
    fn serves(&self) {
        if !self.serving.swap(true, Ordering::Relaxed) {
            let since = &self.state.header().serving_since_nsec;
            since.store(monotonic_nsec(), Ordering::Relaxed);
        }
    }

    /// The slot of a buffer, if this worker owns the slots.
    fn live_slot(&self, address: usize) -> Option<usize> {
        let live = self.live.load(Ordering::Relaxed);
        live.then(|| self.pool.index_of(address)).flatten()
    }
}

/// Serving without failover: nobody needs to know.
struct Nobody;

impl Answered for Nobody {
    fn answered(&self, _address: usize, _unique: u64) {}

    fn seen(&self, _address: usize) {}
}

pub(super) fn message(opcode: u32, unique: u64, nodeid: u64, body: &[u8]) -> Vec<u8> {
    let header = RequestHeader {
        len: (REQUEST_HEADER_BYTES + body.len()) as u32,
        opcode,
        unique,
        nodeid,
        uid: 0,
        gid: 0,
        pid: std::process::id(),
        padding: 0,
    };
    let mut bytes = bytemuck::bytes_of(&header).to_vec();
    bytes.extend_from_slice(body);
    bytes
}

impl Session {
    /// Starts fuser on a socket of ours. With `state`, its buffers are the pool that
    /// [`map_slots`](Server::map_slots) turns into the shared slots.
    pub(super) fn prepare(
        vfs: Arc<Vfs>,
        facts: Facts,
        state: Option<Arc<State>>,
        ended: Box<dyn FnOnce(io::Result<()>) + Send>,
    ) -> Result<Self, ServeError> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(ServeError::system("socketpair"))?;
        for end in [&ours, &theirs] {
            // A long answer must fit. Without the privilege it may not; replay then times out
            // and that one request is refused.
            if setsockopt(end, sockopt::SndBufForce, &(2 * MAX_ANSWER)).is_err() {
                let _smaller = setsockopt(end, sockopt::SndBuf, &(2 * MAX_ANSWER));
            }
        }
        let pool = match &state {
            Some(_) => Some(Pool::reserve(facts.loops).map_err(ServeError::io("reserve buffers"))?),
            None => None,
        };
        let slots = pool.zip(state).map(|(pool, state)| {
            Arc::new(Slots {
                pool,
                state,
                live: AtomicBool::new(false),
                serving: AtomicBool::new(false),
            })
        });
        let marks: Arc<dyn Answered> = match &slots {
            Some(slots) => slots.clone(),
            None => Arc::new(Nobody),
        };
        let adapter = Adapter::new(vfs, marks, facts.mounted_at_sec, facts.kernel_minor);

        let mut init = [0u32; 16];
        init[..2].copy_from_slice(&PROTOCOL);
        init[2] = 128 * 1024;
        let init = message(INIT, 1, 0, bytemuck::cast_slice(&init));
        send(ours.as_raw_fd(), &init, MsgFlags::MSG_NOSIGNAL)
            .map_err(ServeError::system("send INIT to fuser"))?;
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(facts.loops);
        let session = fuser::Session::from_fd(adapter, theirs, SessionACL::All, config)
            .map_err(ServeError::io("handshake with fuser"))?;
        let theirs = session.as_fd().as_raw_fd();
        let mut prepared = Self {
            ours,
            theirs,
            loops: facts.loops,
            pool,
            slots,
            thread: None,
        };
        let answer = prepared.receive()?;
        if answer.get(4..8) != Some(&[0; 4]) {
            return Err(ServeError::Assumption("fuser refused the INIT it was sent"));
        }
        // The handshake's own buffer is gone; what is allocated from now on are the loops'.
        if let Some(pool) = prepared.pool {
            pool.arm().map_err(ServeError::io("arm the allocator"))?;
        }
        let thread = std::thread::Builder::new()
            .name("session".to_owned())
            .spawn(move || {
                ended(session.run());
                Ok(())
            })
            .map_err(ServeError::io("start the session thread"))?;
        prepared.thread = Some(thread);
        prepared.check_buffers()?;
        Ok(prepared)
    }

    /// Waits until every loop has its buffer, which must be one of ours.
    fn check_buffers(&self) -> Result<(), ServeError> {
        if self.pool.is_none() {
            return Ok(());
        }
        let deadline = Instant::now() + START_BOUND;
        loop {
            let taken = Pool::taken();
            if taken >= self.loops {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ServeError::Assumption(
                    "fuser's loops did not take their buffers from the slots (is the slot allocator installed in this binary? is fuser 0.18.0?)",
                ));
            }
            Pool::wait_for_more_than(taken, left);
        }
        if Pool::taken() != self.loops {
            return Err(ServeError::Assumption(
                "fuser took more buffers than it has loops",
            ));
        }
        Ok(())
    }

    /// Sends each loop a FORGET, all at once: with one after the other, the first loops to wake
    /// would keep this thread from waking the rest.
    fn wake_loops(&self) -> Result<(), ServeError> {
        // A loop that already reads the device leaves its FORGET in the socket: harmless. When
        // all do, nobody has the socket open any more.
        let forget = message(FORGET, 0, 1, &0u64.to_ne_bytes());
        let mut part = libc::iovec {
            iov_base: forget.as_ptr().cast_mut().cast(),
            iov_len: forget.len(),
        };
        // SAFETY: plain data; all zeroes say: no name, no control data.
        let mut one: libc::mmsghdr = unsafe { std::mem::zeroed() };
        one.msg_hdr.msg_iov = &raw mut part;
        one.msg_hdr.msg_iovlen = 1;
        let mut all = vec![one; self.loops];
        let mut sent = 0;
        while let Some(left) = all.get_mut(sent..).filter(|left| !left.is_empty()) {
            // SAFETY: the headers, the part and its bytes outlive the call; they are only read.
            let count = unsafe {
                libc::sendmmsg(
                    self.ours.as_raw_fd(),
                    left.as_mut_ptr(),
                    left.len() as libc::c_uint,
                    libc::MSG_NOSIGNAL,
                )
            };
            match usize::try_from(count) {
                Ok(count) => sent += count,
                Err(_negative) => match nix::errno::Errno::last() {
                    nix::errno::Errno::EPIPE => break,
                    nix::errno::Errno::EINTR => {}
                    error => return Err(ServeError::system("wake fuser's loops")(error)),
                },
            }
        }
        Ok(())
    }

    fn receive(&self) -> Result<Vec<u8>, ServeError> {
        // Of its size, not of the largest: readers wait, and a megabyte of zeroes costs as much
        // as all else.
        let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        let mut answer = Vec::new();
        loop {
            let mut poll = [PollFd::new(self.ours.as_fd(), PollFlags::POLLIN)];
            if nix::poll::poll(&mut poll, ANSWER_BOUND_MSEC) == Ok(0) {
                return Err(ServeError::Assumption(
                    "fuser did not answer a request in time",
                ));
            }
            let length = recv(self.ours.as_raw_fd(), &mut [0; 1], peek);
            answer.resize(length.unwrap_or(0).clamp(1, MAX_ANSWER), 0);
            match recv(self.ours.as_raw_fd(), &mut answer, MsgFlags::empty()) {
                Ok(0) => return Err(ServeError::Assumption("fuser closed its descriptor")),
                Ok(length) => {
                    answer.truncate(length);
                    return Ok(answer);
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(ServeError::system("receive from fuser")(error)),
            }
        }
    }
}

impl Server for Session {
    fn map_slots(&self) -> Result<(), ServeError> {
        let Some(slots) = &self.slots else {
            return Ok(());
        };
        for index in 0..self.loops {
            let address = slots.pool.buffer(index);
            // SAFETY: the range is the beginning of a pool buffer, reserved by us and used by
            // one loop only, which waits in a read of the socket; the kernel resolves the
            // address when it copies. MAP_POPULATE makes the pages present: a page fault
            // while a SIGKILL is pending would cost the reader an EIO.
            let mapped = unsafe {
                libc::mmap(
                    std::ptr::with_exposed_provenance_mut(address),
                    SLOT_BYTES,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE,
                    slots.state.fd().as_raw_fd(),
                    State::slot_offset(index) as libc::off_t,
                )
            };
            if mapped == libc::MAP_FAILED {
                return Err(ServeError::io("map a slot")(io::Error::last_os_error()));
            }
            // SAFETY: just mapped. Without the privilege the pages stay swappable.
            unsafe { libc::mlock(mapped, SLOT_BYTES) };
        }
        Ok(())
    }

    fn adopt_slots(&self) {
        let Some(slots) = &self.slots else { return };
        // Where they could not be locked, they may have gone since.
        for index in 0..self.loops {
            for page in (0..SLOT_BYTES).step_by(4096) {
                let byte: *mut u8 =
                    std::ptr::with_exposed_provenance_mut(slots.pool.buffer(index) + page);
                // SAFETY: within the mapping of `map_slots`; nobody else writes now.
                unsafe { byte.write_volatile(byte.read_volatile()) };
            }
        }
        slots.live.store(true, Ordering::Release);
    }

    fn ask(&self, request: &[u8]) -> Result<(), ServeError> {
        send(self.ours.as_raw_fd(), request, MsgFlags::MSG_NOSIGNAL)
            .map_err(ServeError::system("send a request to fuser"))?;
        Ok(())
    }

    fn reply(&self) -> Result<Vec<u8>, ServeError> {
        self.receive()
    }

    fn go_live(&self, device: &OwnedFd) -> Result<(), ServeError> {
        // SAFETY: both are open descriptors; fuser owns the target number and keeps it.
        let moved = unsafe { libc::dup3(device.as_raw_fd(), self.theirs, libc::O_CLOEXEC) };
        if moved < 0 {
            return Err(ServeError::io("put the device under fuser")(
                io::Error::last_os_error(),
            ));
        }
        self.wake_loops()?;
        if let Some(slots) = &self.slots {
            slots.serves();
        }
        Ok(())
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn monotonic_nsec() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| {
        now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
    })
}
