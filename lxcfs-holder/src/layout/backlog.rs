//! The backlog: requests of dead workers, waiting for an answer.

use std::sync::atomic::Ordering;

use super::{
    BACKLOG_OFFSET, Cause, Orphan, REQUEST_HEADER_BYTES, RequestHeader, SLOT_BYTES, State,
};

const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const NOTIFY_REPLY: u32 = 41;
const BATCH_FORGET: u32 = 42;

/// Worker crashes after which a replayed request is given up.
const MAX_CRASHES: u32 = 2;
/// Worker kills after which a replayed request is given up. A handler that runs out of memory
/// looks like a kill too, so there is a bound; random kills never reach it.
const MAX_KILLS: u32 = 24;

impl State {
    /// The request in slot `index` if a dead worker left it unanswered.
    fn orphan_in_slot(&self, index: usize) -> Option<RequestHeader> {
        let header = self.request_header(Self::slot_offset(index));
        let answered = self.control().slots[index].answered.load(Ordering::Acquire);
        let wants_reply = !matches!(
            header.opcode,
            0 | FORGET | INTERRUPT | NOTIFY_REPLY | BATCH_FORGET
        );
        let complete = (header.len as usize) >= REQUEST_HEADER_BYTES;
        (header.unique != 0 && header.unique != answered && wants_reply && complete)
            .then_some(header)
    }

    fn in_backlog(&self, unique: u64) -> bool {
        let backlog = &self.control().backlog;
        backlog
            .iter()
            .any(|entry| entry.unique.load(Ordering::Acquire) == unique)
    }

    /// Moves the unanswered requests of a dead worker into the backlog and blames the one it
    /// was replaying. Must only be called when no worker runs. Returns requests that did not
    /// fit (the caller answers EIO; cannot happen with one memory per connection).
    pub fn harvest(&self, cause: Cause) -> Vec<u64> {
        let control = self.control();
        for entry in &control.backlog {
            if entry.unique.load(Ordering::Acquire) == 0 {
                continue;
            }
            if entry.started.swap(0, Ordering::AcqRel) != 0 {
                let blame = match cause {
                    Cause::Crashed => &entry.crashes,
                    Cause::Killed | Cause::First => &entry.kills,
                };
                blame.fetch_add(1, Ordering::Relaxed);
            }
        }
        let mut lost = Vec::new();
        for (index, slot) in control.slots.iter().enumerate() {
            let Some(header) = self.orphan_in_slot(index) else {
                continue;
            };
            if !self.in_backlog(header.unique) && !self.keep(index, header) {
                lost.push(header.unique);
            }
            slot.answered.store(header.unique, Ordering::Release);
        }
        lost
    }

    fn keep(&self, slot: usize, header: RequestHeader) -> bool {
        let backlog = &self.control().backlog;
        let Some(free) = backlog
            .iter()
            .position(|entry| entry.unique.load(Ordering::Acquire) == 0)
        else {
            return false;
        };
        let entry = &backlog[free];
        let len = header.len as usize;
        if len <= SLOT_BYTES {
            // SAFETY: both ranges are inside the mapping and disjoint; no worker runs.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    self.base.as_ptr().add(Self::slot_offset(slot)).cast_const(),
                    self.base.as_ptr().add(BACKLOG_OFFSET + free * SLOT_BYTES),
                    len,
                );
            }
        }
        entry.len.store(header.len, Ordering::Relaxed);
        entry.started.store(0, Ordering::Relaxed);
        entry.crashes.store(0, Ordering::Relaxed);
        entry.kills.store(0, Ordering::Relaxed);
        entry.unique.store(header.unique, Ordering::Release);
        true
    }

    /// A worker that had been taken for killed while it replayed has crashed: says so of what it
    /// was blamed for. Returns whether there was anything; without it the news may be early.
    pub fn was_a_crash(&self) -> bool {
        let mut found = false;
        for entry in &self.control().backlog {
            if entry.unique.load(Ordering::Acquire) == 0 {
                continue;
            }
            let fewer = |kills: u32| kills.checked_sub(1);
            if let Ok(_before) =
                entry
                    .kills
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer)
            {
                entry.crashes.fetch_add(1, Ordering::Relaxed);
                found = true;
            }
        }
        found
    }

    /// The requests to answer, oldest first, after [`harvest`](Self::harvest).
    pub fn backlog(&self) -> Vec<u64> {
        let backlog = &self.control().backlog;
        let mut all: Vec<u64> = backlog
            .iter()
            .map(|entry| entry.unique.load(Ordering::Acquire))
            .filter(|unique| *unique != 0)
            .collect();
        all.sort_unstable();
        all
    }

    /// Whether a worker is answering for a dead one just now: if it crashes, that request is to
    /// blame.
    pub fn replaying(&self) -> bool {
        self.control().backlog.iter().any(|entry| {
            entry.unique.load(Ordering::Acquire) != 0 && entry.started.load(Ordering::Acquire) != 0
        })
    }

    /// Whether a worker has ended while it was answering `unique`.
    pub fn is_suspect(&self, unique: u64) -> bool {
        self.control().backlog.iter().any(|entry| {
            entry.unique.load(Ordering::Acquire) == unique
                && (entry.crashes.load(Ordering::Relaxed) > 0
                    || entry.kills.load(Ordering::Relaxed) > 0)
        })
    }

    /// Starts answering `unique`: from now on a crash is its fault.
    pub fn start(&self, unique: u64) -> Option<Orphan> {
        let backlog = &self.control().backlog;
        let index = backlog
            .iter()
            .position(|entry| entry.unique.load(Ordering::Acquire) == unique)?;
        let entry = &backlog[index];
        let len = entry.len.load(Ordering::Relaxed) as usize;
        if len > SLOT_BYTES
            || entry.crashes.load(Ordering::Relaxed) >= MAX_CRASHES
            || entry.kills.load(Ordering::Relaxed) >= MAX_KILLS
        {
            return Some(Orphan::Poison);
        }
        entry.started.store(1, Ordering::Release);
        let mut bytes = vec![0; len];
        self.copy_out(BACKLOG_OFFSET + index * SLOT_BYTES, &mut bytes);
        Some(Orphan::Replay(bytes))
    }

    /// Frees the entry of `unique`: it has been answered.
    pub fn finish(&self, unique: u64) {
        let backlog = &self.control().backlog;
        for entry in backlog
            .iter()
            .filter(|e| e.unique.load(Ordering::Acquire) == unique)
        {
            entry.started.store(0, Ordering::Relaxed);
            entry.unique.store(0, Ordering::Release);
        }
    }
}
