//! What an open file remembers between two reads, in bounded memory that outlives the process.
//!
//! A reader with a small buffer reads one text in several requests and must get one text, not
//! parts of two. So the text is kept from the read at offset 0 on, unless that read got all of
//! it; then only its length is kept, which tells the end of file. A worker may be killed
//! between any two instructions, so the table lives in memory that the next worker maps too,
//! and each entry is published by one store.
//!
//! The table is a cache with a fixed size. A container that opens files by the thousand
//! evicts old entries; a read that finds none is answered from a fresh text at its offset,
//! as the kernel's own seq files do.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lxcfs_common::catalogue::Ino;

/// What is known about an open file at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The bytes were appended.
    Served,
    /// The reader has everything: end of file.
    Ended,
    /// Nothing is known; render again.
    Unknown,
}

/// Snapshots of open files.
pub trait OpenFiles: Send + Sync {
    /// A handle that was never given out before on this connection.
    fn open(&self) -> u64;

    /// Appends up to `size` bytes at `offset` of the snapshot of `handle`, if there is one.
    fn read(&self, handle: u64, ino: Ino, offset: u64, size: usize, out: &mut Vec<u8>) -> Held;

    /// Which request made the snapshot of `handle`; only answered when its text is kept.
    fn made_by(&self, handle: u64, ino: Ino) -> Option<u64>;

    /// Keeps `text`, made for `request`, as the snapshot of `handle`. When the reader got the
    /// `whole` text with it, only the length is kept.
    fn keep(&self, handle: u64, ino: Ino, request: u64, text: &[u8], whole: bool);

    /// Forgets `handle`.
    fn close(&self, handle: u64);
}

/// A piece of memory with an owner that keeps it valid.
pub struct Arena {
    base: NonNull<u8>,
    len: usize,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the memory is only accessed through atomics, or raw copies under the lock of the
// entry that owns the bytes.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Memory at `base`, valid for as long as `owner` lives.
    ///
    /// # Safety
    /// `base` must be valid for reads and writes of `len` bytes while `owner` lives, aligned
    /// to a page, and used by nobody else in this process.
    pub unsafe fn new(base: NonNull<u8>, len: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            base,
            len,
            _owner: owner,
        }
    }

    /// Private zeroed memory, for serving without a holder.
    pub fn private(len: usize) -> Self {
        let owner = Arc::new(pages(len));
        let base = NonNull::from(owner.as_slice()).cast();
        // SAFETY: the vector owns the memory, atomics allow writing through a shared pointer,
        // nobody else sees it.
        unsafe { Self::new(base, owner.len() * size_of::<Page>(), owner) }
    }
}

/// Memory with the alignment of a mapping.
#[repr(C, align(4096))]
struct Page([AtomicU64; 512]);

fn pages(len: usize) -> Vec<Page> {
    let zeroed = || Page([const { AtomicU64::new(0) }; 512]);
    std::iter::repeat_with(zeroed)
        .take(len.div_ceil(size_of::<Page>()))
        .collect()
}

const WAYS: usize = 4;
const SETS: usize = 1024;
const STRIPES: usize = 64;
const CHUNK: usize = 4096;
/// Chunk number that means "none"; in [`Entry::text`]: only the length is known.
const NONE: u32 = u32::MAX;
/// [`Entry::text`] when nothing is known.
const EMPTY: u64 = u64::MAX;
/// Largest text that is kept; a longer one is rendered again for each request.
const MAX_TEXT: usize = 1024 * 1024;

#[repr(C, align(64))]
struct Entry {
    /// Key; 0 if free. Published last.
    handle: AtomicU64,
    ino: AtomicU64,
    /// Request that made the text; 0 while it changes.
    made_by: AtomicU64,
    /// First chunk in the upper half, length in the lower.
    text: AtomicU64,
    /// Length of the previous text: a replayed read at offset 0 may have replaced a text that
    /// its reader already has; both lengths then mean end of file.
    alt_len: AtomicU32,
    /// Age, for eviction.
    stamp: AtomicU32,
    /// Lengths of texts before that one, when the read was replayed more than once: workers may
    /// be killed, or crashed by another request, between any answer and its being noted.
    more_len: [AtomicU32; 2],
}

impl Entry {
    /// Whether it is in use and owns chunks.
    fn holds_text(&self) -> bool {
        let text = self.text.load(Ordering::Relaxed);
        self.handle.load(Ordering::Relaxed) != 0 && unpack(text).0 != NONE
    }
}

/// Bytes of private memory that hold a useful table.
pub const PRIVATE_BYTES: usize = 5 * 1024 * 1024;

/// The table.
pub struct SnapshotTable {
    arena: Arena,
    chunks: usize,
    stripes: Vec<Mutex<()>>,
    free: Mutex<Vec<u32>>,
    clock: AtomicU32,
    next_handle: Box<dyn Fn() -> u64 + Send + Sync>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that could be left half done: a panic aborts the process in release builds.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SnapshotTable {
    /// A table in private memory.
    pub fn private() -> Self {
        let next = AtomicU64::new(1);
        let next_handle = Box::new(move || next.fetch_add(1, Ordering::Relaxed));
        let table = Self::new(Arena::private(PRIVATE_BYTES), next_handle);
        table.recover();
        table
    }

    /// A table in `arena`; zeroed memory is an empty table. Another process may still be using
    /// the memory: nothing may be done with the table before [`recover`](Self::recover).
    /// `next_handle` must never give a handle twice, nor 0.
    pub fn new(arena: Arena, next_handle: Box<dyn Fn() -> u64 + Send + Sync>) -> Self {
        let entries = SETS * WAYS * size_of::<Entry>();
        let chunks = arena.len.saturating_sub(entries) / (CHUNK + size_of::<AtomicU32>());
        Self {
            arena,
            chunks,
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            free: Mutex::new(Vec::new()),
            clock: AtomicU32::new(0),
            next_handle,
        }
    }

    /// Takes the memory over when no other process uses it any more: finds out which chunks the
    /// entries own, and drops entries that make no sense.
    pub fn recover(&self) {
        let mut owned = vec![false; self.chunks];
        let mut newest = 0;
        for entry in self.entries() {
            if entry.handle.load(Ordering::Acquire) == 0 {
                continue;
            }
            newest = newest.max(entry.stamp.load(Ordering::Relaxed));
            let (first, len) = unpack(entry.text.load(Ordering::Relaxed));
            if first == NONE {
                continue;
            }
            let chain: Vec<u32> = self.chain(first).take(len.div_ceil(CHUNK)).collect();
            let fresh = |chunk: &u32| owned.get(*chunk as usize) == Some(&false);
            let unique = chain.iter().collect::<std::collections::HashSet<_>>().len();
            let sound = len <= MAX_TEXT && unique == len.div_ceil(CHUNK) && chain.iter().all(fresh);
            if sound {
                chain.iter().for_each(|chunk| owned[*chunk as usize] = true);
            } else {
                entry.text.store(EMPTY, Ordering::Release);
            }
        }
        self.clock.store(newest, Ordering::Relaxed);
        *lock(&self.free) = (0..self.chunks as u32)
            .rev()
            .filter(|chunk| !owned[*chunk as usize])
            .collect();
    }

    /// Makes the entries present in this process: [`recover`](Self::recover) runs while readers
    /// wait, and page faults would be most of it.
    pub fn make_present(&self) {
        for entry in self.entries() {
            std::hint::black_box(entry.handle.load(Ordering::Relaxed));
        }
    }

    fn entries(&self) -> &[Entry] {
        if self.chunks == 0 {
            return &[];
        }
        // SAFETY: chunks > 0 means that the arena is longer than the entries; it is aligned,
        // and an Entry consists of atomics, valid for any bytes.
        unsafe {
            std::slice::from_raw_parts(
                self.arena.base.as_ptr().cast::<Entry>().cast_const(),
                SETS * WAYS,
            )
        }
    }

    fn next(&self, chunk: u32) -> Option<&AtomicU32> {
        if chunk as usize >= self.chunks {
            return None;
        }
        let at = SETS * WAYS * size_of::<Entry>() + chunk as usize * size_of::<AtomicU32>();
        // SAFETY: inside the arena by construction of `chunks`; aligned to 4.
        Some(unsafe { self.arena.base.add(at).cast::<AtomicU32>().as_ref() })
    }

    /// Where the bytes of `chunk` are; the caller has checked the number.
    fn bytes(&self, chunk: u32) -> *mut u8 {
        let at = SETS * WAYS * size_of::<Entry>()
            + self.chunks * size_of::<AtomicU32>()
            + chunk as usize * CHUNK;
        // SAFETY: inside the arena by construction of `chunks`.
        unsafe { self.arena.base.as_ptr().add(at) }
    }

    fn chain(&self, first: u32) -> impl Iterator<Item = u32> {
        let known = move |chunk: u32| ((chunk as usize) < self.chunks).then_some(chunk);
        std::iter::successors(known(first), move |chunk| {
            known(self.next(*chunk)?.load(Ordering::Relaxed))
        })
        .take(MAX_TEXT / CHUNK)
    }

    fn release(&self, text: u64) {
        let (first, len) = unpack(text);
        if first != NONE {
            let chain: Vec<u32> = self.chain(first).take(len.div_ceil(CHUNK)).collect();
            lock(&self.free).extend(chain);
        }
    }

    /// Drops the texts that were not touched for longest until `count` chunks are free, and a
    /// part of the pool more, so that the next texts find room without a search.
    fn evict(&self, count: usize) {
        let wanted = count.max(self.chunks / 8);
        let now = self.clock.load(Ordering::Relaxed);
        let mut kept: Vec<(u32, usize)> = self
            .entries()
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.holds_text())
            .map(|(at, entry)| (now.wrapping_sub(entry.stamp.load(Ordering::Relaxed)), at))
            .collect();
        kept.sort_unstable_by(|one, other| other.cmp(one));
        for (_, at) in kept {
            if lock(&self.free).len() >= wanted {
                return;
            }
            let Some(entry) = self.entries().get(at) else {
                return;
            };
            let _guard = lock(&self.stripes[at / WAYS % STRIPES]);
            if entry.holds_text() {
                let text = entry.text.swap(EMPTY, Ordering::AcqRel);
                self.release(text);
            }
        }
    }

    /// Copies `text` into free chunks; `None` if it is too long or there is no room.
    fn store(&self, text: &[u8]) -> Option<u64> {
        if text.len() > MAX_TEXT {
            return None;
        }
        let count = text.len().div_ceil(CHUNK);
        if lock(&self.free).len() < count {
            self.evict(count);
        }
        let taken = {
            let mut free = lock(&self.free);
            let rest = free.len().checked_sub(count)?;
            free.split_off(rest)
        };
        for (index, (chunk, part)) in taken.iter().zip(text.chunks(CHUNK)).enumerate() {
            let following = taken.get(index + 1).copied().unwrap_or(NONE);
            self.next(*chunk)?.store(following, Ordering::Relaxed);
            // SAFETY: the chunk is inside the arena and ours alone until published.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), self.bytes(*chunk), part.len()) };
        }
        Some(pack(taken.first().copied().unwrap_or(NONE), text.len()))
    }

    fn set(&self, handle: u64) -> (usize, MutexGuard<'_, ()>) {
        let set = (handle % SETS as u64) as usize;
        (set, lock(&self.stripes[set % STRIPES]))
    }

    fn find(&self, set: usize, handle: u64) -> Option<&Entry> {
        let mut ways = self.entries().iter().skip(set * WAYS).take(WAYS);
        ways.find(|entry| entry.handle.load(Ordering::Relaxed) == handle)
    }

    fn touch(&self, entry: &Entry) {
        let now = self.clock.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        entry.stamp.store(now, Ordering::Relaxed);
    }
}

fn pack(first: u32, len: usize) -> u64 {
    u64::from(first) << 32 | len as u64
}

fn unpack(text: u64) -> (u32, usize) {
    ((text >> 32) as u32, (text & u64::from(u32::MAX)) as usize)
}

impl OpenFiles for SnapshotTable {
    fn open(&self) -> u64 {
        (self.next_handle)()
    }

    fn read(&self, handle: u64, ino: Ino, offset: u64, size: usize, out: &mut Vec<u8>) -> Held {
        let (set, _guard) = self.set(handle);
        let Some(entry) = self.find(set, handle) else {
            return Held::Unknown;
        };
        let text = entry.text.load(Ordering::Relaxed);
        if text == EMPTY || entry.ino.load(Ordering::Relaxed) != ino {
            return Held::Unknown;
        }
        self.touch(entry);
        let (first, len) = unpack(text);
        if first == NONE {
            let [one, other] = &entry.more_len;
            let before = [&entry.alt_len, one, other];
            let ended = offset == len as u64
                || before
                    .iter()
                    .any(|length| offset == u64::from(length.load(Ordering::Relaxed)));
            return if ended { Held::Ended } else { Held::Unknown };
        }
        let Some(mut at) = usize::try_from(offset).ok().filter(|at| *at < len) else {
            return Held::Ended;
        };
        let end = len.min(at.saturating_add(size));
        for chunk in self.chain(first).skip(at / CHUNK) {
            if at >= end {
                break;
            }
            let within = at % CHUNK;
            let count = (CHUNK - within).min(end - at);
            // SAFETY: the chunk is inside the arena, owned by this entry, whose lock we hold.
            out.extend_from_slice(unsafe {
                std::slice::from_raw_parts(self.bytes(chunk).add(within).cast_const(), count)
            });
            at += count;
        }
        Held::Served
    }

    fn made_by(&self, handle: u64, ino: Ino) -> Option<u64> {
        let (set, _guard) = self.set(handle);
        let entry = self.find(set, handle)?;
        let kept = unpack(entry.text.load(Ordering::Relaxed)).0 != NONE;
        (kept && entry.ino.load(Ordering::Relaxed) == ino)
            .then(|| entry.made_by.load(Ordering::Acquire))
    }

    fn keep(&self, handle: u64, ino: Ino, request: u64, text: &[u8], whole: bool) {
        if handle == 0 || self.chunks == 0 {
            return;
        }
        let short = text.len().min(NONE as usize - 1);
        let new = if whole {
            pack(NONE, short)
        } else {
            self.store(text).unwrap_or(EMPTY)
        };
        let (set, _guard) = self.set(handle);
        if let Some(entry) = self.find(set, handle) {
            let old = entry.text.load(Ordering::Relaxed);
            let made_by = entry.made_by.load(Ordering::Relaxed);
            if made_by > request {
                // The replay of a request that was answered long ago: its reader has begun a
                // later text.
                if new != EMPTY {
                    self.release(new);
                }
                return;
            }
            let alt = if old == EMPTY { short } else { unpack(old).1 };
            let [one, other] = &entry.more_len;
            // 0: a worker was killed amid this very change.
            let again = made_by == request || made_by == 0;
            let shift = |length: &AtomicU32| {
                if again {
                    length.load(Ordering::Relaxed)
                } else {
                    short as u32
                }
            };
            let (second, third) = (shift(&entry.alt_len), shift(one));
            entry.made_by.store(0, Ordering::Release);
            other.store(third, Ordering::Release);
            one.store(second, Ordering::Release);
            entry.alt_len.store(alt as u32, Ordering::Release);
            entry.ino.store(ino, Ordering::Release);
            entry.text.store(new, Ordering::Release);
            entry.made_by.store(request, Ordering::Release);
            self.touch(entry);
            if old != EMPTY {
                self.release(old);
            }
            return;
        }
        let now = self.clock.load(Ordering::Relaxed);
        let ways = self.entries().iter().skip(set * WAYS).take(WAYS);
        let age = |entry: &&Entry| match entry.handle.load(Ordering::Relaxed) {
            0 => u32::MAX,
            _ => now
                .wrapping_sub(entry.stamp.load(Ordering::Relaxed))
                .min(u32::MAX - 1),
        };
        let Some(entry) = ways.max_by_key(age) else {
            return;
        };
        let old = entry.text.load(Ordering::Relaxed);
        let was_used = entry.handle.swap(0, Ordering::AcqRel) != 0;
        for length in [&entry.alt_len].into_iter().chain(&entry.more_len) {
            length.store(short as u32, Ordering::Release);
        }
        entry.ino.store(ino, Ordering::Release);
        entry.text.store(new, Ordering::Release);
        entry.made_by.store(request, Ordering::Release);
        self.touch(entry);
        entry.handle.store(handle, Ordering::Release);
        if was_used && old != EMPTY {
            self.release(old);
        }
    }

    fn close(&self, handle: u64) {
        let (set, _guard) = self.set(handle);
        if let Some(entry) = self.find(set, handle) {
            let old = entry.text.load(Ordering::Relaxed);
            entry.handle.store(0, Ordering::Release);
            if old != EMPTY {
                self.release(old);
            }
        }
    }
}

#[cfg(test)]
#[path = "opens_tests.rs"]
mod tests;
