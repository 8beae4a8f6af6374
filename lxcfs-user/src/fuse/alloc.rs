//! The request buffers of fuser's loops, placed where the next worker can read them.
//!
//! fuser allocates one buffer per loop, of a size that nothing else in this program asks for.
//! The global allocator answers that one request from a pool of our own address ranges. The
//! ranges start as private memory; when the worker takes over, the shared slots are mapped
//! over their beginnings. How many were taken is checked at start, so a fuser that changes
//! its buffer stops the worker before it touches a live connection.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

/// The layout of fuser 0.18's `FuseReadBuf`: 16 MiB and a page, as bytes.
const BUFFER_BYTES: usize = 16 * 1024 * 1024 + 4096;

static BASE: AtomicUsize = AtomicUsize::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// Wakes who waits for buffers to be taken. Must not allocate.
fn wake() {
    // SAFETY: a static; the kernel only compares its address.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            TAKEN.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            1,
        );
    }
}

/// The system's allocator, except for fuser's request buffers. Install it in a binary with
/// [`install_slot_allocator!`](crate::install_slot_allocator).
pub struct SlotAllocator;

/// Makes [`SlotAllocator`] the global allocator of a binary that runs workers.
#[macro_export]
macro_rules! install_slot_allocator {
    () => {
        #[global_allocator]
        static SLOT_ALLOCATOR: $crate::fuse::SlotAllocator = $crate::fuse::SlotAllocator;
    };
}

impl SlotAllocator {
    fn take(layout: Layout) -> Option<*mut u8> {
        let count = COUNT.load(Ordering::Acquire);
        if count == 0 || layout.size() != BUFFER_BYTES || layout.align() > 16 {
            return None;
        }
        let index = TAKEN.fetch_add(1, Ordering::AcqRel) as usize;
        wake();
        // Provenance: the pool is exposed by `reserve`.
        (index < count).then(|| {
            std::ptr::with_exposed_provenance_mut(
                BASE.load(Ordering::Acquire) + index * BUFFER_BYTES,
            )
        })
    }

    fn owns(pointer: *mut u8) -> bool {
        let base = BASE.load(Ordering::Relaxed);
        let offset = pointer.addr().wrapping_sub(base);
        base != 0 && offset < COUNT.load(Ordering::Relaxed) * BUFFER_BYTES
    }
}

// SAFETY: a pool buffer is page aligned, zeroed (fresh private memory), handed out once and
// never reused; everything else is the system allocator's.
unsafe impl GlobalAlloc for SlotAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match Self::take(layout) {
            Some(buffer) => buffer,
            // SAFETY: passed on under the same contract.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match Self::take(layout) {
            Some(buffer) => buffer,
            // SAFETY: passed on under the same contract.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if !Self::owns(pointer) {
            // SAFETY: not ours, so it came from the system allocator with this layout.
            unsafe { System.dealloc(pointer, layout) }
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !Self::owns(pointer) {
            // SAFETY: as for dealloc.
            return unsafe { System.realloc(pointer, layout, size) };
        }
        // SAFETY: the new block is fresh; both are at least as long as what is copied.
        unsafe {
            let moved = System.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                std::ptr::copy_nonoverlapping(pointer, moved, layout.size().min(size));
            }
            moved
        }
    }
}

/// The reserved buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool {
    base: usize,
    count: usize,
}

impl Pool {
    /// Reserves address space for `count` buffers; costs no memory. Once per process.
    pub(crate) fn reserve(count: usize) -> io::Result<Self> {
        // SAFETY: a fresh private mapping.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * BUFFER_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            base: base.expose_provenance(),
            count,
        })
    }

    /// From now on the allocator hands the buffers out.
    pub(crate) fn arm(self) -> io::Result<()> {
        if BASE
            .compare_exchange(0, self.base, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            return Err(io::Error::other("a process can serve one connection only"));
        }
        COUNT.store(self.count, Ordering::Release);
        Ok(())
    }

    /// Buffers asked for since [`arm`](Self::arm).
    pub(crate) fn taken() -> usize {
        TAKEN.load(Ordering::Acquire) as usize
    }

    /// Waits until more than `taken` buffers were asked for, or `bound` has passed.
    pub(crate) fn wait_for_more_than(taken: usize, bound: Duration) {
        let timeout = libc::timespec {
            tv_sec: bound.as_secs().cast_signed(),
            tv_nsec: libc::c_long::from(bound.subsec_nanos()),
        };
        // SAFETY: a static and a value that outlives the call. Any error means: look again.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                TAKEN.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                taken as u32,
                &raw const timeout,
            );
        }
    }

    /// Where buffer `index` starts.
    pub(crate) fn buffer(self, index: usize) -> usize {
        self.base + index * BUFFER_BYTES
    }

    /// Which buffer `address` is in.
    pub(crate) fn index_of(self, address: usize) -> Option<usize> {
        let index = address.checked_sub(self.base)? / BUFFER_BYTES;
        (index < self.count).then_some(index)
    }
}
