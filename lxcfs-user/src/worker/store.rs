//! What of the worker outlives it: open files, history, PSI triggers, in the state memory.
//!
//! A region is adopted when the worker takes over, not before: until then the active worker
//! changes it. A region of a version we do not know is emptied; losing it costs a fresh text
//! or a restarted average, never a wrong answer.

mod history;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lxcfs_common::catalogue::FileId;
use lxcfs_holder::layout::{RegionId, State};

use crate::engine::Caller;
use crate::vfs::Arena;
use crate::vfs::psi::{MAX_PATH, MAX_TEXT, MAX_TRIGGERS, Record, TriggerJournal};
pub use history::{Appended, HistoryStore};

const OPENS_VERSION: u32 = 1;
const HISTORY_VERSION: u32 = 3;
const TRIGGERS_VERSION: u32 = 1;

/// Empties the regions that another version of this program wrote. No other worker may run.
pub(super) fn adopt(state: &State) {
    for (id, version) in [
        (RegionId::Opens, OPENS_VERSION),
        (RegionId::History, HISTORY_VERSION),
        (RegionId::Triggers, TRIGGERS_VERSION),
    ] {
        let Some((base, len, recorded)) = state.region(id) else {
            continue;
        };
        let before = recorded.load(Ordering::Acquire);
        if before == version {
            continue;
        }
        if before != 0 {
            tracing::info!(?id, before, version, "dropping state of another version");
            // SAFETY: the region is mapped and ours alone.
            unsafe { std::ptr::write_bytes(base.as_ptr(), 0, len) };
        }
        recorded.store(version, Ordering::Release);
    }
}

/// Memory for snapshots of open files.
pub(super) fn opens(state: &Arc<State>) -> Option<Arena> {
    let (base, len, _) = state.region(RegionId::Opens)?;
    // SAFETY: the mapping lives as long as `state`, which the arena keeps; regions start at a
    // page; only this table uses the region in this process.
    Some(unsafe { Arena::new(base, len, state.clone()) })
}

/// One place of the trigger journal.
#[derive(Clone, Copy)]
#[repr(C)]
struct Place {
    /// Key; 0 if free. Published last.
    handle: u64,
    request: u64,
    kernel_handle: u64,
    device: u64,
    inode: u64,
    file: u32,
    tid: u32,
    uid: u32,
    path_len: u32,
    text_len: u32,
    _pad: u32,
    text: [u8; MAX_TEXT],
    path: [u8; MAX_PATH],
    _room: [u8; 1024 - 64 - MAX_TEXT - MAX_PATH],
}

const _: () = assert!(size_of::<Place>() == 1024);

const PRESSURE: [FileId; 4] = [
    FileId::PressureCpu,
    FileId::PressureMemory,
    FileId::PressureIo,
    FileId::PressureIrq,
];

/// The journal of PSI triggers in the state memory.
pub(super) struct Journal {
    state: Arc<State>,
    changing: Mutex<()>,
}

impl Journal {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self {
            state,
            changing: Mutex::new(()),
        }
    }

    /// Makes the places present in this process: [`all`](TriggerJournal::all) is asked while
    /// readers wait, and page faults would be most of it.
    pub(super) fn make_present(&self) {
        for place in self.places() {
            std::hint::black_box(Self::key(place).load(Ordering::Relaxed));
        }
    }

    fn places(&self) -> impl Iterator<Item = NonNull<Place>> {
        let region = self.state.region(RegionId::Triggers);
        let (base, len) = region.map_or((NonNull::dangling(), 0), |(base, len, _)| (base, len));
        let count = (len / size_of::<Place>()).min(MAX_TRIGGERS);
        // SAFETY: inside the region by construction of `count`; pages are aligned enough.
        (0..count).map(move |index| unsafe { base.cast::<Place>().add(index) })
    }

    fn key(place: NonNull<Place>) -> &'static AtomicU64 {
        // SAFETY: the handle is the first field and only accessed as an atomic; the mapping
        // outlives every use, which is inside methods of `self`.
        unsafe { place.cast::<AtomicU64>().as_ref() }
    }

    fn place_of(&self, handle: u64) -> Option<NonNull<Place>> {
        self.places()
            .find(|place| Self::key(*place).load(Ordering::Acquire) == handle)
    }
}

impl TriggerJournal for Journal {
    fn put(&self, record: &Record) -> bool {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.sign_writer();
        let Some(place) = self.place_of(record.handle).or_else(|| self.place_of(0)) else {
            return false;
        };
        let (text, path) = (&record.text, &record.path);
        if text.len() > MAX_TEXT || path.len() > MAX_PATH {
            return false;
        }
        // SAFETY: integers and bytes: all zeroes are valid.
        let mut filled: Place = unsafe { std::mem::zeroed() };
        filled.request = record.request;
        filled.kernel_handle = record.kernel_handle;
        (filled.device, filled.inode) = record.identity;
        filled.file = record.file as u32;
        filled.tid = record.caller.tid;
        filled.uid = record.caller.uid;
        filled.text_len = text.len() as u32;
        filled.path_len = path.len() as u32;
        filled.text[..text.len()].copy_from_slice(text);
        filled.path[..path.len()].copy_from_slice(path);
        // A kill from here to the last line loses this trigger (the writer's request is then
        // replayed, or its poll finds an error), never mixes two.
        Self::key(place).store(0, Ordering::Release);
        // SAFETY: inside the region; the lock keeps other writers out.
        unsafe { place.as_ptr().write(filled) };
        Self::key(place).store(record.handle, Ordering::Release);
        true
    }

    fn remove(&self, handle: u64) {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.sign_writer();
        if let Some(place) = self.place_of(handle) {
            Self::key(place).store(0, Ordering::Release);
        }
    }

    fn all(&self) -> Vec<Record> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.places()
            .filter(|place| Self::key(*place).load(Ordering::Acquire) != 0)
            .filter_map(|place| {
                // SAFETY: inside the region; Place is plain data; the lock keeps writers out.
                let found = unsafe { place.as_ptr().read() };
                let file = PRESSURE.into_iter().find(|id| *id as u32 == found.file)?;
                (found.handle != 0).then(|| Record {
                    handle: found.handle,
                    file,
                    caller: Caller {
                        tid: found.tid,
                        uid: found.uid,
                    },
                    request: found.request,
                    kernel_handle: found.kernel_handle,
                    identity: (found.device, found.inode),
                    path: found.path[..(found.path_len as usize).min(MAX_PATH)].to_vec(),
                    text: found.text[..(found.text_len as usize).min(MAX_TEXT)].to_vec(),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn whole() -> Arc<State> {
        let state = State::create(2).unwrap();
        let fd = state.fd().try_clone().unwrap();
        let state = Arc::new(State::open_whole(fd).unwrap());
        adopt(&state);
        state
    }

    pub(super) fn again(state: &State) -> Arc<State> {
        Arc::new(State::open_whole(state.fd().try_clone().unwrap()).unwrap())
    }

    #[test]
    fn triggers_survive_and_places_are_reused() {
        let state = whole();
        let journal = Journal::new(state.clone());
        let record = |handle| Record {
            handle,
            file: FileId::PressureMemory,
            caller: Caller { tid: 4, uid: 1000 },
            request: 77,
            kernel_handle: 3,
            identity: (30, 4000),
            path: b"/sys/fs/cgroup/x/memory.pressure".to_vec(),
            text: b"some 150000 1000000\0".to_vec(),
        };
        for handle in 1..=MAX_TRIGGERS as u64 {
            assert!(journal.put(&record(handle)));
        }
        assert!(!journal.put(&record(9999)), "full");
        assert!(journal.put(&record(5)), "a known handle is replaced");
        journal.remove(7);
        assert!(journal.put(&record(9999)));
        let found = Journal::new(again(&state)).all();
        assert_eq!(found.len(), MAX_TRIGGERS);
        assert!(found.contains(&record(9999)) && !found.contains(&record(7)));
    }

    #[test]
    fn state_of_another_version_is_dropped() {
        let state = whole();
        assert!(HistoryStore::new(state.clone()).save(|_| b"old".to_vec()));
        state
            .region(RegionId::History)
            .unwrap()
            .2
            .store(99, Ordering::Relaxed);
        adopt(&state);
        assert_eq!(HistoryStore::new(state).load(), None);
    }
}
