//! Bytes that survive the worker: the counters and averages that need a past.
//!
//! A snapshot of everything, and behind it a journal of what changed since, each record
//! written before the reader learns what it holds: so a successor never shows less than was
//! shown. Two halves of the region are used in turn; a worker that is killed while it makes a
//! new snapshot leaves the previous one and its journal intact. The half that is not needed any
//! more takes no memory.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lxcfs_holder::layout::{RegionId, State};
use nix::sys::mman::{MmapAdvise, madvise};

use crate::history::checksum;

/// What the last worker left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// As given to [`HistoryStore::save`].
    pub snapshot: Vec<u8>,
    /// As given to [`HistoryStore::append`], oldest first.
    pub journal: Vec<Vec<u8>>,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It survives this worker.
    Kept,
    /// It does, but the journal has grown so long that a new snapshot should be saved.
    KeptAndLong,
    /// There was no room, or there is no store.
    Lost,
}

/// Snapshot and journal in the state memory.
#[derive(Clone)]
pub struct HistoryStore {
    state: Option<Arc<State>>,
    /// Held while a snapshot is made; appending goes on.
    saving: Arc<Mutex<()>>,
    writing: Arc<Mutex<Writing>>,
}

/// What is under way in this process.
#[derive(Default)]
struct Writing {
    /// Records since a snapshot is being made: it may have been too late for them.
    meanwhile: Option<Vec<u8>>,
}

/// The first bytes of a half.
#[repr(C)]
struct Head {
    /// 0 while it is being written; the greater one is the newer.
    generation: AtomicU64,
    len: AtomicU64,
    checksum: AtomicU64,
    /// Bytes of whole records behind the snapshot.
    journal: AtomicU64,
}

/// A half of the region.
#[derive(Clone, Copy)]
struct Half<'a> {
    head: &'a Head,
    bytes: NonNull<u8>,
}

/// A journal may become half as long as its snapshot and this much more, so that the memory
/// touched stays in proportion and snapshots stay rare.
const JOURNAL_BYTES: usize = 64 * 1024;
/// Before each record: its length.
const RECORD_HEAD: usize = size_of::<u32>();

impl HistoryStore {
    pub(in crate::worker) fn new(state: Arc<State>) -> Self {
        Self {
            state: Some(state),
            saving: Arc::default(),
            writing: Arc::default(),
        }
    }

    /// A store that forgets, for serving without a holder.
    pub fn none() -> Self {
        Self {
            state: None,
            saving: Arc::default(),
            writing: Arc::default(),
        }
    }

    /// Bytes of a half behind its head.
    fn room(&self) -> usize {
        let region = self
            .state
            .as_ref()
            .and_then(|state| state.region(RegionId::History));
        region.map_or(0, |(_, len, _)| (len / 2).saturating_sub(size_of::<Head>()))
    }

    /// The most bytes that [`save`](Self::save) takes: a quarter is for the journal.
    pub fn capacity(&self) -> usize {
        self.room() / 4 * 3
    }

    fn lock(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Newest first.
    fn halves(&self) -> Option<[Half<'_>; 2]> {
        let (base, len, _) = self.state.as_ref()?.region(RegionId::History)?;
        // SAFETY: both halves are inside the region, aligned to a page and to half of it; the
        // head consists of atomics, valid for any bytes.
        let half = |at: usize| unsafe {
            let start = base.add(at);
            Half {
                head: start.cast::<Head>().as_ref(),
                bytes: start.add(size_of::<Head>()),
            }
        };
        let mut halves = [half(0), half(len / 2)];
        halves.sort_by_key(|half| std::cmp::Reverse(half.head.generation.load(Ordering::Acquire)));
        Some(halves)
    }

    /// What was saved last, by this worker or an earlier one.
    pub fn load(&self) -> Option<Left> {
        let _one_at_a_time = self.lock();
        let halves = self.halves()?;
        halves.iter().find_map(|half| {
            let len = half.snapshot_len(self.room())?;
            let snapshot = half.copy(0, len);
            if checksum(&snapshot) != half.head.checksum.load(Ordering::Relaxed) {
                return None;
            }
            let journal = half.copy(len, half.journal_len(self.room(), len));
            Some(Left {
                snapshot,
                journal: records(&journal),
            })
        })
    }

    /// Replaces what [`load`](Self::load) returns by what `collect` makes, which gets the most
    /// bytes that fit. Records that others append meanwhile stay. False when there is no store
    /// or no room; what was there then stays.
    pub fn save(&self, collect: impl FnOnce(usize) -> Vec<u8>) -> bool {
        let Some(state) = &self.state else {
            return false;
        };
        state.sign_writer();
        let _one_snapshot_at_a_time = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        self.lock().meanwhile = Some(Vec::new());
        let bytes = collect(self.capacity());
        let mut writing = self.lock();
        let meanwhile = writing.meanwhile.take().unwrap_or_default();
        let Some([newest, oldest]) = self.halves() else {
            return false;
        };
        if bytes.len() + meanwhile.len() > self.room() {
            return false;
        }
        let generation = newest.head.generation.load(Ordering::Acquire);
        let head = oldest.head;
        head.generation.store(0, Ordering::Release);
        oldest.write(0, &bytes);
        oldest.write(bytes.len(), &meanwhile);
        head.len.store(bytes.len() as u64, Ordering::Release);
        head.checksum.store(checksum(&bytes), Ordering::Release);
        head.journal
            .store(meanwhile.len() as u64, Ordering::Release);
        head.generation.store(generation + 1, Ordering::Release);
        newest.free(self.room());
        true
    }

    /// Adds to what [`load`](Self::load) returns. Needs a snapshot saved before, by any worker.
    pub fn append(&self, record: &[u8]) -> Appended {
        let mut writing = self.lock();
        let (Some(state), Some([newest, _])) = (&self.state, self.halves()) else {
            return Appended::Lost;
        };
        state.sign_writer();
        let room = self.room();
        let Some(len) = newest.snapshot_len(room) else {
            return Appended::Lost;
        };
        let journal = newest.journal_len(room, len);
        let size = RECORD_HEAD + record.len();
        let Ok(record_len) = u32::try_from(record.len()) else {
            return Appended::Lost;
        };
        if len + journal + size > room {
            return Appended::Lost;
        }
        let head = record_len.to_le_bytes();
        newest.write(len + journal, &head);
        newest.write(len + journal + RECORD_HEAD, record);
        // Published last: of a worker that is killed before, nothing is seen.
        newest
            .head
            .journal
            .store((journal + size) as u64, Ordering::Release);
        if let Some(meanwhile) = &mut writing.meanwhile {
            meanwhile.extend_from_slice(&head);
            meanwhile.extend_from_slice(record);
        }
        let long = (JOURNAL_BYTES + len / 2).min((room - len) / 2);
        if journal + size > long && writing.meanwhile.is_none() {
            Appended::KeptAndLong
        } else {
            Appended::Kept
        }
    }
}

impl Half<'_> {
    /// The snapshot's length in a half of `room` bytes; `None` if there is none.
    fn snapshot_len(self, room: usize) -> Option<usize> {
        let len = usize::try_from(self.head.len.load(Ordering::Relaxed)).ok()?;
        (self.head.generation.load(Ordering::Acquire) != 0 && len <= room).then_some(len)
    }

    fn journal_len(self, room: usize, snapshot: usize) -> usize {
        let len = usize::try_from(self.head.journal.load(Ordering::Acquire)).unwrap_or(0);
        if snapshot + len <= room { len } else { 0 }
    }

    /// Gives the memory of a half of `room` bytes back: it reads as zeroes, which is no snapshot.
    fn free(self, room: usize) {
        let start = NonNull::from(self.head).cast();
        // SAFETY: the half is mapped, ours, and nobody uses it while the lock is held. What is
        // left where the kernel refuses is an older snapshot than the other.
        let _ = unsafe { madvise(start, size_of::<Head>() + room, MmapAdvise::MADV_REMOVE) };
    }

    /// Copies `len` bytes from offset `at`; both were checked against the room.
    fn copy(self, at: usize, len: usize) -> Vec<u8> {
        let mut copy = vec![0; len];
        // SAFETY: inside the half by the caller's check; nobody writes while the lock is held.
        unsafe {
            std::ptr::copy_nonoverlapping(self.bytes.add(at).as_ptr(), copy.as_mut_ptr(), len)
        };
        copy
    }

    /// Writes at offset `at`, which the caller has checked against the room.
    fn write(self, at: usize, bytes: &[u8]) {
        // SAFETY: inside the half by the caller's check; the lock keeps other writers out, and
        // readers go by the numbers in the head, which are stored after this.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.bytes.add(at).as_ptr(), bytes.len());
        }
    }
}

/// Splits a journal; what is not a whole record ends it.
fn records(mut journal: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let Some((len, rest)) = journal.split_first_chunk() {
        let Some((record, rest)) = rest.split_at_checked(u32::from_le_bytes(*len) as usize) else {
            break;
        };
        records.push(record.to_vec());
        journal = rest;
    }
    records
}

#[cfg(test)]
mod tests {
    use super::super::tests::{again, whole};
    use super::*;

    fn left(snapshot: &[u8], journal: &[&[u8]]) -> Option<Left> {
        Some(Left {
            snapshot: snapshot.to_vec(),
            journal: journal.iter().map(|record| record.to_vec()).collect(),
        })
    }

    #[test]
    fn history_survives_and_a_torn_save_leaves_the_previous() {
        let state = whole();
        let store = HistoryStore::new(state.clone());
        assert_eq!(store.load(), None);
        assert!(store.save(|_| b"first".to_vec()));
        assert!(store.save(|_| b"second".to_vec()));
        assert_eq!(store.append(b"and more"), Appended::Kept);
        let successor = HistoryStore::new(again(&state));
        assert_eq!(successor.load(), left(b"second", &[b"and more"]));
        // Killed while it wrote the third: nothing says yet that it is whole.
        let [_, other] = store.halves().unwrap();
        other.write(0, b"thi");
        other.head.len.store(5, Ordering::Release);
        assert_eq!(store.load(), left(b"second", &[b"and more"]));
        assert!(store.save(|_| b"third".to_vec()));
        assert_eq!(store.load(), left(b"third", &[]));
        let [newest, other] = store.halves().unwrap();
        assert_eq!(other.snapshot_len(store.room()), None, "its memory is free");
        newest.write(0, b"T");
        assert_eq!(store.load(), None, "damaged");
        let capacity = store.capacity();
        assert!(!store.save(|_| vec![0; store.room() + 1]));
        assert!(store.save(|most| vec![7; most]));
        assert_eq!(store.load().unwrap().snapshot.len(), capacity);
    }

    #[test]
    fn a_successor_goes_on_with_the_journal() {
        let state = whole();
        let store = HistoryStore::new(state.clone());
        assert_eq!(store.append(b"nothing to add to"), Appended::Lost);
        assert!(store.save(|_| b"base".to_vec()));
        assert_eq!(store.append(b"one"), Appended::Kept);
        let successor = HistoryStore::new(again(&state));
        assert_eq!(successor.append(b""), Appended::Kept);
        assert_eq!(successor.append(b"three"), Appended::Kept);
        assert_eq!(store.load(), left(b"base", &[b"one", b"", b"three"]));
    }

    #[test]
    fn what_is_appended_while_a_snapshot_is_made_stays() {
        let store = HistoryStore::new(whole());
        assert!(store.save(|_| b"base".to_vec()));
        store.append(b"before");
        assert!(store.save(|_| {
            // The successor of a worker that is killed here finds all of it.
            store.append(b"meanwhile");
            assert_eq!(store.load(), left(b"base", &[b"before", b"meanwhile"]));
            b"new".to_vec()
        }));
        assert_eq!(store.load(), left(b"new", &[b"meanwhile"]));
    }

    #[test]
    fn a_long_journal_asks_for_a_snapshot_and_a_full_one_says_so() {
        let store = HistoryStore::new(whole());
        assert!(store.save(|_| Vec::new()));
        let record = [1; 1000];
        let mut long = 0;
        loop {
            match store.append(&record) {
                Appended::Kept => assert_eq!(long, 0, "asked for again and again"),
                Appended::KeptAndLong => long += 1,
                Appended::Lost => break,
            }
        }
        assert!(long > 0);
        assert!(store.save(|_| Vec::new()));
        assert_eq!(store.append(&record), Appended::Kept);
        assert_eq!(HistoryStore::none().append(&record), Appended::Lost);
        assert!(!HistoryStore::none().save(|_| Vec::new()));
    }

    #[test]
    fn a_damaged_journal_ends_early() {
        let whole = [2, 0, 0, 0, 7, 8, 9, 0, 0, 0, 1];
        assert_eq!(records(&whole), [[7, 8]]);
        for end in 0..whole.len() {
            assert!(records(&whole[..end]).len() <= 1);
        }
    }
}
