//! The memory that outlives a worker: a memfd that the holder and every worker map.
//!
//! Its heart are the *slots*. Each serving loop reads requests from the kernel straight into
//! its slot, so what a dead worker had read is still there for the next one. Before the next
//! worker overwrites the slots it moves their unanswered requests into the *backlog*
//! ([`State::harvest`]) and replays them from there one by one.
//!
//! A worker may be killed between any two instructions. So every record is published by one
//! atomic store of its key after its content, and nothing here is ever locked.
//!
//! Successive versions of the binary share one memory: regions are found through the table
//! in the header, each has a version of its own, and a region whose version is unknown is
//! treated as empty. The slots and the backlog never change their layout.

mod backlog;
mod living;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// First bytes of the memory.
pub const MAGIC: u64 = u64::from_le_bytes(*b"lxcfsmem");
/// Version of the header, the slots and the backlog.
pub const VERSION: u32 = 1;
/// Most serving loops a worker may have.
pub const MAX_LOOPS: usize = 8;
/// Bytes of a slot. Requests are at most `max_write` (4096) plus headers, except for extended
/// attributes and ioctls, which are answered with an error anyway.
pub const SLOT_BYTES: usize = 16 * 1024;
/// Requests the backlog can hold: all loops of two successive workers.
pub const BACKLOG: usize = 2 * MAX_LOOPS;
/// Longest mountpoint that is recorded for a successor.
pub const MOUNTPOINT_BYTES: usize = 1024;

const PAGE: usize = 4096;
const CONTROL_OFFSET: usize = PAGE;
const SLOTS_OFFSET: usize = 2 * PAGE;
const BACKLOG_OFFSET: usize = SLOTS_OFFSET + MAX_LOOPS * SLOT_BYTES;
/// What the holder maps: the header, the slots and the backlog.
const HOLDER_BYTES: usize = BACKLOG_OFFSET + BACKLOG * SLOT_BYTES;

/// A part of the memory that the worker alone interprets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RegionId {
    /// Snapshots of open files.
    Opens = 1,
    /// CPU and load history.
    History = 2,
    /// PSI triggers.
    Triggers = 3,
}

/// Sizes of the worker's regions in a fresh memory, in bytes; touched pages only are resident.
const REGIONS: [(RegionId, usize); 3] = [
    (RegionId::Opens, 5 * 1024 * 1024),
    (RegionId::History, 16 * 1024 * 1024),
    (RegionId::Triggers, 256 * 1024),
];
const TABLE: usize = 8;

#[repr(C)]
struct Region {
    id: AtomicU32,
    version: AtomicU32,
    offset: AtomicU64,
    len: AtomicU64,
}

/// Facts about the connection and its processes, shared by holder and workers.
#[repr(C)]
pub struct Header {
    magic: AtomicU64,
    version: AtomicU32,
    /// Serving loops of every worker of this connection.
    pub loops: AtomicU32,
    /// Minor version of the FUSE protocol that the kernel offered at INIT.
    pub kernel_minor: AtomicU32,
    /// Number of the connection below `/sys/fs/fuse/connections`; 0 until mounted.
    pub connection: AtomicU32,
    /// Unix time of the mount in seconds: the time stamp of every file.
    pub mounted_at_sec: AtomicU64,
    /// Next file handle; handles are never reused in the life of a connection.
    pub next_handle: AtomicU64,
    /// Process id of the holder.
    pub holder_pid: AtomicU32,
    /// Process id of the active worker.
    pub worker_pid: AtomicU32,
    /// Monotonic clock, in nanoseconds, when the active worker began to serve.
    pub serving_since_nsec: AtomicU64,
    /// Requests that a worker answered on behalf of a dead one.
    pub replayed: AtomicU64,
    /// Requests that were given up because they crash every worker.
    pub poisoned: AtomicU64,
    table: [Region; TABLE],
    mountpoint_len: AtomicU32,
    /// Nice value of a worker that serves, plus 21; 0 if workers leave theirs alone.
    pub serving_nice: AtomicU32,
    mountpoint: [AtomicU32; MOUNTPOINT_BYTES / 4],
}

const _: () = assert!(size_of::<Header>() <= PAGE);

/// Progress of one serving loop.
#[repr(C, align(64))]
pub struct SlotControl {
    /// `unique` of the last request that this loop answered.
    pub answered: AtomicU64,
    /// Requests that this loop answered in the life of the connection.
    pub answers: AtomicU64,
}

/// An unanswered request of a dead worker.
#[repr(C, align(64))]
struct BacklogControl {
    /// Key of the request; 0 if the entry is free. Published last.
    unique: AtomicU64,
    len: AtomicU32,
    /// 1 while a worker is answering it.
    started: AtomicU32,
    /// Workers that crashed while answering it.
    crashes: AtomicU32,
    /// Workers that somebody killed while they were answering it.
    kills: AtomicU32,
}

#[repr(C)]
struct Control {
    slots: [SlotControl; MAX_LOOPS],
    backlog: [BacklogControl; BACKLOG],
    living: [AtomicU32; living::WORDS],
}

const _: () = assert!(size_of::<Control>() <= PAGE);

/// The part of `struct fuse_in_header` that every request starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RequestHeader {
    /// Length of the whole request in bytes.
    pub len: u32,
    /// FUSE operation.
    pub opcode: u32,
    /// Identifies the request; never reused in the life of a connection.
    pub unique: u64,
    /// Inode the request is about.
    pub nodeid: u64,
    /// User of the caller.
    pub uid: u32,
    /// Group of the caller.
    pub gid: u32,
    /// Thread id of the caller in the PID namespace of the mount.
    pub pid: u32,
    /// Extension length and padding.
    pub padding: u32,
}

/// Length of [`RequestHeader`].
pub const REQUEST_HEADER_BYTES: usize = size_of::<RequestHeader>();

/// Why the previous worker is gone; decides whom a started request blames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// There was none.
    First,
    /// Somebody sent SIGKILL, or the cause is not known: the request is hardly to blame.
    Killed,
    /// It crashed, exited or hung: the request it was replaying is suspect.
    Crashed,
}

/// What to do with an entry of the backlog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Orphan {
    /// Answer it: the bytes of the request.
    Replay(Vec<u8>),
    /// Give it up: it crashed too many workers, or it is longer than a slot.
    Poison,
}

/// A mapping of the shared memory.
pub struct State {
    fd: OwnedFd,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: all shared access goes through atomics or through raw copies of slot bytes that
// tolerate concurrent change; the mapping lives as long as the value.
unsafe impl Send for State {}
// SAFETY: as above.
unsafe impl Sync for State {}

impl Drop for State {
    fn drop(&mut self) {
        // SAFETY: base and len are the mapping made by `map`; nobody can hold a reference into
        // it beyond the life of `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl State {
    /// Makes a fresh memory for a new connection.
    ///
    /// # Errors
    /// When the kernel refuses a memfd of about 10 MiB (sparse).
    pub fn create(loops: usize) -> io::Result<Self> {
        // SAFETY: the name is a C string; the result is checked.
        let fd = unsafe {
            libc::memfd_create(
                c"lxcfs-state".as_ptr(),
                libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let total = HOLDER_BYTES + REGIONS.iter().map(|(_, len)| len).sum::<usize>();
        file.set_len(total as u64)?;
        // A successor relies on the size: an access beyond the end would be SIGBUS.
        // SAFETY: F_ADD_SEALS takes an int and touches no memory of ours.
        let sealed = unsafe {
            libc::fcntl(
                fd,
                libc::F_ADD_SEALS,
                libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL,
            )
        };
        if sealed < 0 {
            return Err(io::Error::last_os_error());
        }
        let state = Self::map(crate::fd::high(file.into())?, HOLDER_BYTES)?;
        let header = state.header();
        header
            .loops
            .store(loops.min(MAX_LOOPS) as u32, Ordering::Relaxed);
        header.next_handle.store(1, Ordering::Relaxed);
        let mut offset = HOLDER_BYTES;
        for (entry, (id, len)) in header.table.iter().zip(REGIONS) {
            entry.offset.store(offset as u64, Ordering::Relaxed);
            entry.len.store(len as u64, Ordering::Relaxed);
            entry.id.store(id as u32, Ordering::Relaxed);
            offset += len;
        }
        header.version.store(VERSION, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Ok(state)
    }

    /// Maps an existing memory as far as the holder needs it.
    ///
    /// # Errors
    /// When `fd` is not such a memory or of another version.
    pub fn open(fd: OwnedFd) -> io::Result<Self> {
        Self::check(Self::map(crate::fd::high(fd)?, HOLDER_BYTES)?)
    }

    /// Maps an existing memory with the worker's regions. The descriptor keeps its number: that
    /// is where a successor of the holder looks for it.
    ///
    /// # Errors
    /// When `fd` is not such a memory or of another version.
    pub fn open_whole(fd: OwnedFd) -> io::Result<Self> {
        let len = File::from(fd.try_clone()?).metadata()?.len() as usize;
        Self::check(Self::map(fd, len)?)
    }

    fn check(self) -> io::Result<Self> {
        let header = self.header();
        if header.magic.load(Ordering::Acquire) != MAGIC {
            return Err(io::Error::other(
                "the descriptor is not an lxcfs state memory",
            ));
        }
        let version = header.version.load(Ordering::Relaxed);
        if version != VERSION {
            return Err(io::Error::other(format!(
                "the state memory has layout version {version}, this binary knows {VERSION}; restart instead of upgrading in place"
            )));
        }
        let loops = header.loops.load(Ordering::Relaxed) as usize;
        if loops == 0 || loops > MAX_LOOPS {
            return Err(io::Error::other(format!(
                "the state memory names {loops} serving loops; 1 to {MAX_LOOPS} are possible"
            )));
        }
        Ok(self)
    }

    fn map(fd: OwnedFd, len: usize) -> io::Result<Self> {
        let size = File::from(fd.try_clone()?).metadata()?.len() as usize;
        if size < HOLDER_BYTES || size < len {
            return Err(io::Error::other(
                "the descriptor is too small for an lxcfs state memory",
            ));
        }
        // SAFETY: a new shared mapping of a file that is long enough and sealed against
        // shrinking (or made by us just now).
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { fd, base, len })
    }

    /// The memory's descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Facts about the connection.
    pub fn header(&self) -> &Header {
        // SAFETY: the mapping is at least HOLDER_BYTES long, page aligned, lives as long as
        // self, and the header consists of atomics, valid for any bytes.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    fn control(&self) -> &Control {
        // SAFETY: as for the header; CONTROL_OFFSET is page aligned and inside.
        unsafe { self.base.add(CONTROL_OFFSET).cast::<Control>().as_ref() }
    }

    /// Serving loops of this connection.
    pub fn loops(&self) -> usize {
        (self.header().loops.load(Ordering::Relaxed) as usize).clamp(1, MAX_LOOPS)
    }

    /// Progress of loop `index`.
    pub fn slot(&self, index: usize) -> Option<&SlotControl> {
        self.control().slots.get(index)
    }

    /// Requests answered since the mount.
    pub fn answers(&self) -> u64 {
        let slots = &self.control().slots;
        slots
            .iter()
            .map(|slot| slot.answers.load(Ordering::Relaxed))
            .sum()
    }

    /// Where slot `index` starts in the memory, for mapping it elsewhere.
    pub fn slot_offset(index: usize) -> usize {
        SLOTS_OFFSET + index * SLOT_BYTES
    }

    /// A region of the worker: its address, length and recorded version. `None` when this
    /// mapping does not reach it or the memory was made without it.
    pub fn region(&self, id: RegionId) -> Option<(NonNull<u8>, usize, &AtomicU32)> {
        let entry = self
            .header()
            .table
            .iter()
            .find(|entry| entry.id.load(Ordering::Relaxed) == id as u32)?;
        let offset = entry.offset.load(Ordering::Relaxed) as usize;
        let len = entry.len.load(Ordering::Relaxed) as usize;
        if !offset.is_multiple_of(PAGE)
            || offset < HOLDER_BYTES
            || offset.checked_add(len)? > self.len
        {
            return None;
        }
        // SAFETY: the region was just checked to lie inside the mapping.
        Some((unsafe { self.base.add(offset) }, len, &entry.version))
    }

    /// Records the mountpoint for a successor; longer ones are cut.
    pub fn set_mountpoint(&self, path: &[u8]) {
        let header = self.header();
        let path = &path[..path.len().min(MOUNTPOINT_BYTES)];
        for (word, bytes) in header.mountpoint.iter().zip(path.chunks(4)) {
            let mut four = [0; 4];
            four[..bytes.len()].copy_from_slice(bytes);
            word.store(u32::from_ne_bytes(four), Ordering::Relaxed);
        }
        header
            .mountpoint_len
            .store(path.len() as u32, Ordering::Release);
    }

    /// The recorded mountpoint.
    pub fn mountpoint(&self) -> Vec<u8> {
        let header = self.header();
        let len = header.mountpoint_len.load(Ordering::Acquire) as usize;
        let mut path: Vec<u8> = header
            .mountpoint
            .iter()
            .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
            .collect();
        path.truncate(len);
        path
    }

    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        debug_assert!(offset + into.len() <= HOLDER_BYTES);
        // SAFETY: source is inside the mapping, destination is exclusive. The worker that
        // wrote the source is dead, or (status queries) a torn copy is harmless.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.base.as_ptr().add(offset).cast_const(),
                into.as_mut_ptr(),
                into.len(),
            );
        }
    }

    fn request_header(&self, offset: usize) -> RequestHeader {
        let mut bytes = [0; REQUEST_HEADER_BYTES];
        self.copy_out(offset, &mut bytes);
        bytemuck::pod_read_unaligned(&bytes)
    }
}

#[cfg(test)]
mod tests;
