//! The memory that outlives workers, scribbled over by one that went astray: whoever maps it
//! next must stay inside.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use libfuzzer_sys::fuzz_target;
use lxcfs_holder::layout::{Cause, Orphan, RegionId, State};

// Twelve bytes of offset and value at a time.
fuzz_target!(|bytes: &[u8]| {
    let Ok(state) = State::create(4) else { return };
    let Ok(fd) = state.fd().try_clone() else {
        return;
    };
    let file = File::from(fd);
    let size = file.metadata().map_or(1, |data| data.len());
    for record in bytes.chunks_exact(12) {
        let mut word = [0; 4];
        word.copy_from_slice(&record[..4]);
        let word = u32::from_le_bytes(word);
        // Half of the writes go to the header, a quarter to the head of a slot.
        let offset = match word % 4 {
            0 | 1 => u64::from(word >> 2) % 8192,
            2 => State::slot_offset((word >> 2) as usize % 12) as u64 + u64::from(word >> 20) % 48,
            _ => u64::from(word >> 2) % size,
        };
        let _ = file.write_at(&record[4..], offset);
    }
    let Ok(fd) = state.fd().try_clone() else {
        return;
    };
    let Ok(found) = State::open_whole(fd) else {
        return;
    };
    let (_, _, _) = (found.loops(), found.mountpoint(), found.replaying());
    for id in [RegionId::Opens, RegionId::History, RegionId::Triggers] {
        if let Some((start, len, _)) = found.region(id) {
            // SAFETY: what is said to be inside the mapping must be readable, which is what
            // is tested here; nobody else has the memory.
            let ends = unsafe {
                [
                    start.as_ptr().read(),
                    start.as_ptr().add(len.max(1) - 1).read(),
                ]
            };
            std::hint::black_box(ends);
        }
    }
    for cause in [Cause::First, Cause::Killed, Cause::Crashed] {
        let _ = found.harvest(cause);
        for unique in found.backlog() {
            if let Some(Orphan::Replay(request)) = found.start(unique) {
                std::hint::black_box(request.len());
            }
        }
    }
    for unique in found.backlog() {
        found.finish(unique);
    }
    assert!(found.backlog().is_empty());
});
