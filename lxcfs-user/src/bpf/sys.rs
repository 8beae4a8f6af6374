//! The `bpf(2)` commands aya has no call for: kept iterator links and batched reads.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use bytemuck::{AnyBitPattern, NoUninit};

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_TRACE_ITER: u32 = 28;

/// The part of `union bpf_attr` for `BPF_LINK_CREATE` on an iterator.
#[repr(C)]
#[derive(Clone, Copy)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    pad: u32,
}

/// For `BPF_ITER_CREATE`.
#[repr(C)]
#[derive(Clone, Copy)]
struct IterCreate {
    link_fd: u32,
    flags: u32,
}

/// For `BPF_MAP_LOOKUP_BATCH`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// # Safety
/// `T` must be the attribute struct of `command`, and its pointers valid for it.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes size_of::<T>() bytes; the caller vouches for the rest.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A descriptor that a successful command returned.
fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// Makes a link of an iterator program. It is kept; each walk makes a file from it.
///
/// # Errors
/// When the program is no iterator, or the kernel has none (before 5.8).
pub fn iterator_link(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate {
        prog_fd: raw(program),
        target_fd: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        iter_info: 0,
        iter_info_len: 0,
        pad: 0,
    };
    // SAFETY: the struct is the one of the command and holds no pointers.
    owned(unsafe { bpf(BPF_LINK_CREATE, &mut attributes) }?)
}

/// Runs one walk and appends what the program wrote to `output`.
///
/// # Errors
/// What the kernel says; the walk may have been begun.
pub fn walk(link: BorrowedFd<'_>, output: &mut Vec<u8>) -> io::Result<()> {
    let mut attributes = IterCreate {
        link_fd: raw(link),
        flags: 0,
    };
    // SAFETY: as in `iterator_link`.
    let mut file = File::from(owned(unsafe { bpf(BPF_ITER_CREATE, &mut attributes) }?)?);
    let mut buffer = [0; 8192];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => output.extend_from_slice(&buffer[..length]),
            // After a million objects without output the kernel gives the CPU back.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Rows asked for in one call; the kernel answers with fewer at the end.
const BATCH: usize = 1024;

/// Reads a whole hash map of `max_entries` entries and appends its rows.
pub(super) fn read_all<K, V>(
    map: BorrowedFd<'_>,
    max_entries: u32,
    rows: &mut Vec<(K, V)>,
) -> io::Result<()>
where
    K: AnyBitPattern + NoUninit,
    V: AnyBitPattern + NoUninit,
{
    let mut size = BATCH.min(max_entries as usize);
    let mut keys = vec![K::zeroed(); size];
    let mut values = vec![V::zeroed(); size];
    // For a hash map the cursor is a bucket number of four bytes.
    let mut cursor = 0_u32;
    let mut first = true;
    loop {
        let mut next = 0_u32;
        let mut attributes = Batch {
            in_batch: if first {
                0
            } else {
                std::ptr::from_mut(&mut cursor) as u64
            },
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: size as u32,
            map_fd: raw(map),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the buffers hold `count` keys and values of the map's sizes.
        let outcome = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) };
        let end = match outcome {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
            // One bucket holds more than asked for.
            Err(error)
                if error.raw_os_error() == Some(libc::ENOSPC) && size < max_entries as usize =>
            {
                size = (size * 2).min(max_entries as usize);
                keys.resize(size, K::zeroed());
                values.resize(size, V::zeroed());
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = (attributes.count as usize).min(size);
        rows.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
        if end {
            return Ok(());
        }
        cursor = next;
        first = false;
    }
}

/// Read-only mapping of an array map made with `BPF_F_MMAPABLE`.
pub(super) struct MappedArray {
    address: std::ptr::NonNull<libc::c_void>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only read.
unsafe impl Send for MappedArray {}

impl MappedArray {
    /// Maps `length` bytes.
    pub(super) fn new(map: impl AsFd, length: usize) -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address the kernel chooses.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        match std::ptr::NonNull::new(address) {
            Some(address) if address.as_ptr() != libc::MAP_FAILED => Ok(Self { address, length }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The eight-byte word at `index`, 0 beyond the end. The kernel may be writing; each
    /// word is read on its own.
    pub(super) fn word(&self, index: usize) -> u64 {
        if index.checked_add(1).is_none_or(|end| end > self.length / 8) {
            return 0;
        }
        // SAFETY: the index is inside the mapping, which lives as long as `self`.
        unsafe {
            self.address
                .as_ptr()
                .cast::<u64>()
                .add(index)
                .read_volatile()
        }
    }
}

impl Drop for MappedArray {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and nothing borrows from it.
        unsafe { libc::munmap(self.address.as_ptr(), self.length) };
    }
}
