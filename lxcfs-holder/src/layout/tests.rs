//! The slots and the backlog, with the kernel's part played by hand.

use super::*;

/// Plays the kernel: puts a request into a slot as a read of the device would.
fn read_into_slot(state: &State, slot: usize, unique: u64, opcode: u32, body: &[u8]) {
    let header = RequestHeader {
        len: (REQUEST_HEADER_BYTES + body.len()) as u32,
        opcode,
        unique,
        nodeid: 17,
        uid: 0,
        gid: 0,
        pid: 1,
        padding: 0,
    };
    let mut bytes = bytemuck::bytes_of(&header).to_vec();
    bytes.extend_from_slice(body);
    let offset = State::slot_offset(slot);
    // SAFETY: the slot is inside the mapping and nobody else uses this memory.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), state.base.as_ptr().add(offset), bytes.len());
    }
}

const READ: u32 = 15;
const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

#[test]
fn an_unanswered_request_survives_until_it_is_finished() {
    let state = State::create(4).unwrap();
    read_into_slot(&state, 2, 10, READ, b"body");
    assert!(state.harvest(Cause::Killed).is_empty());
    assert_eq!(state.backlog(), [10]);
    let Some(Orphan::Replay(bytes)) = state.start(10) else {
        panic!("not replayable")
    };
    assert_eq!(&bytes[REQUEST_HEADER_BYTES..], b"body");
    state.finish(10);
    assert!(state.backlog().is_empty());
    // The slot still holds the bytes; they must not come back.
    state.harvest(Cause::Killed);
    assert!(state.backlog().is_empty());
}

#[test]
fn answered_and_replyless_requests_are_left_alone() {
    let state = State::create(4).unwrap();
    read_into_slot(&state, 0, 10, READ, b"");
    state.slot(0).unwrap().answered.store(10, Ordering::Release);
    for (slot, opcode) in [(1, FORGET), (2, BATCH_FORGET), (3, INTERRUPT)] {
        read_into_slot(&state, slot, 20 + slot as u64, opcode, b"");
    }
    state.harvest(Cause::Killed);
    assert!(state.backlog().is_empty());
}

#[test]
fn a_crash_during_replay_loses_nothing() {
    let state = State::create(2).unwrap();
    read_into_slot(&state, 0, 10, READ, b"ten");
    read_into_slot(&state, 1, 12, READ, b"twelve");
    state.harvest(Cause::Killed);
    // The next worker replays 10: its loop reads it into slot 1, over 12, and dies.
    let Some(Orphan::Replay(bytes)) = state.start(10) else {
        panic!("not replayable")
    };
    read_into_slot(&state, 1, 10, READ, &bytes[REQUEST_HEADER_BYTES..]);
    state.harvest(Cause::Killed);
    assert_eq!(state.backlog(), [10, 12]);
    let Some(Orphan::Replay(bytes)) = state.start(12) else {
        panic!("not replayable")
    };
    assert_eq!(&bytes[REQUEST_HEADER_BYTES..], b"twelve");
}

#[test]
fn only_the_request_that_crashes_workers_is_given_up() {
    let state = State::create(2).unwrap();
    read_into_slot(&state, 0, 10, READ, b"poison");
    read_into_slot(&state, 1, 12, READ, b"innocent");
    state.harvest(Cause::Crashed);
    for _ in 0..2 {
        assert!(matches!(state.start(10), Some(Orphan::Replay(_))));
        state.harvest(Cause::Crashed);
    }
    assert_eq!(state.start(10), Some(Orphan::Poison));
    state.finish(10);
    assert!(matches!(state.start(12), Some(Orphan::Replay(_))));
}

#[test]
fn random_kills_do_not_make_a_request_poisonous() {
    let state = State::create(2).unwrap();
    read_into_slot(&state, 0, 10, READ, b"");
    for _ in 0..10 {
        state.harvest(Cause::Killed);
        assert!(matches!(state.start(10), Some(Orphan::Replay(_))));
    }
}

#[test]
fn a_crash_that_was_taken_for_a_kill_is_blamed_when_it_is_known() {
    let state = State::create(2).unwrap();
    read_into_slot(&state, 0, 10, READ, b"poison");
    state.harvest(Cause::Killed);
    assert!(!state.was_a_crash(), "it was not being replayed");
    for _ in 0..2 {
        assert!(matches!(state.start(10), Some(Orphan::Replay(_))));
        state.harvest(Cause::Killed);
        assert!(state.was_a_crash());
        assert!(!state.was_a_crash(), "once is enough");
    }
    assert_eq!(state.start(10), Some(Orphan::Poison));
    state.finish(10);
    assert!(!state.was_a_crash(), "it is answered");
}

#[test]
fn a_request_longer_than_a_slot_is_given_up() {
    let state = State::create(2).unwrap();
    read_into_slot(&state, 0, 10, READ, b"");
    let too_long = (SLOT_BYTES as u32 + 1).to_ne_bytes();
    // SAFETY: as above; the length is the first field.
    unsafe {
        let slot = state.base.as_ptr().add(State::slot_offset(0));
        std::ptr::copy_nonoverlapping(too_long.as_ptr(), slot, 4);
    }
    state.harvest(Cause::Killed);
    assert_eq!(state.start(10), Some(Orphan::Poison));
}

#[test]
fn a_successor_finds_what_was_recorded() {
    let state = State::create(3).unwrap();
    state.set_mountpoint(b"/var/lib/lxcfs");
    let fd = state.fd.try_clone().unwrap();
    let other = State::open_whole(fd).unwrap();
    assert_eq!(other.loops(), 3);
    assert_eq!(other.mountpoint(), b"/var/lib/lxcfs");
    for (id, len) in REGIONS {
        let (_, found, _) = other.region(id).unwrap();
        assert_eq!(found, len);
        assert!(state.region(id).is_none(), "the holder maps no regions");
    }
}

#[test]
fn a_foreign_descriptor_is_refused() {
    let fd: OwnedFd = tempfile_like().into();
    assert!(State::open(fd).is_err());
}

fn tempfile_like() -> File {
    File::open("/dev/null").unwrap()
}
