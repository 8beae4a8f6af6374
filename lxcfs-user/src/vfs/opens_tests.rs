//! The table of open files: parts, ends, successors, floods, nonsense.

use super::*;

fn read(table: &SnapshotTable, handle: u64, offset: u64, size: usize) -> (Held, Vec<u8>) {
    let mut out = Vec::new();
    (table.read(handle, 17, offset, size, &mut out), out)
}

fn text(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ seed).collect()
}

#[test]
fn a_text_is_read_in_parts_of_any_size() {
    let table = SnapshotTable::private();
    let content = text(3 * CHUNK + 100, 1);
    let handle = table.open();
    table.keep(handle, 17, 5, &content, false);
    for size in [1, 511, 512, CHUNK - 1, CHUNK, CHUNK + 1, content.len()] {
        let mut all = Vec::new();
        loop {
            let (held, part) = read(&table, handle, all.len() as u64, size);
            if held == Held::Ended {
                break;
            }
            assert_eq!(held, Held::Served);
            all.extend(part);
        }
        assert_eq!(all, content);
    }
    assert_eq!(read(&table, handle, u64::MAX, 10).0, Held::Ended);
}

#[test]
fn a_whole_text_leaves_only_its_end() {
    let table = SnapshotTable::private();
    let handle = table.open();
    table.keep(handle, 17, 5, &text(100, 0), true);
    assert_eq!(read(&table, handle, 100, 10).0, Held::Ended);
    assert_eq!(read(&table, handle, 50, 10).0, Held::Unknown);
    assert_eq!(table.made_by(handle, 17), None);
}

#[test]
fn after_a_replayed_read_both_lengths_are_the_end() {
    let table = SnapshotTable::private();
    let handle = table.open();
    table.keep(handle, 17, 5, &text(100, 0), true);
    table.keep(handle, 17, 5, &text(101, 0), true);
    assert_eq!(read(&table, handle, 100, 10).0, Held::Ended);
    assert_eq!(read(&table, handle, 101, 10).0, Held::Ended);
}

#[test]
fn after_several_replays_each_length_is_the_end_until_the_next_read() {
    let table = SnapshotTable::private();
    let handle = table.open();
    for length in 100..104 {
        table.keep(handle, 17, 5, &text(length, 0), true);
    }
    for length in 100..104 {
        assert_eq!(read(&table, handle, length, 10).0, Held::Ended, "{length}");
    }
    assert_eq!(read(&table, handle, 99, 10).0, Held::Unknown);
    // The next read shows that the reader has one of them, or was not answered at all.
    table.keep(handle, 17, 6, &text(110, 0), true);
    assert_eq!(read(&table, handle, 110, 10).0, Held::Ended);
    assert_eq!(read(&table, handle, 101, 10).0, Held::Unknown);
}

#[test]
fn a_closed_or_foreign_handle_knows_nothing() {
    let table = SnapshotTable::private();
    let handle = table.open();
    table.keep(handle, 17, 5, b"text", false);
    let mut out = Vec::new();
    assert_eq!(table.read(handle, 18, 0, 10, &mut out), Held::Unknown);
    table.close(handle);
    assert_eq!(read(&table, handle, 0, 10).0, Held::Unknown);
    assert_eq!(read(&table, 0, 0, 10).0, Held::Unknown);
}

#[test]
fn a_successor_finds_texts_and_room() {
    let owner = Arc::new(pages(PRIVATE_BYTES));
    let arena = || {
        let base = NonNull::from(owner.as_slice()).cast();
        // SAFETY: the vector lives in `owner`; the two tables are used one after the other.
        unsafe { Arena::new(base, PRIVATE_BYTES, owner.clone()) }
    };
    let next = Arc::new(AtomicU64::new(1));
    let counter = || {
        let next = next.clone();
        Box::new(move || next.fetch_add(1, Ordering::Relaxed))
    };
    let content = text(2 * CHUNK + 7, 9);
    let first = SnapshotTable::new(arena(), counter());
    first.recover();
    let all = lock(&first.free).len();
    let handle = first.open();
    first.keep(handle, 17, 5, &content, false);
    drop(first);
    let second = SnapshotTable::new(arena(), counter());
    second.recover();
    assert_eq!(lock(&second.free).len(), all - 3);
    assert_eq!(second.made_by(handle, 17), Some(5));
    assert_eq!(
        read(&second, handle, 0, usize::MAX),
        (Held::Served, content)
    );
    assert_ne!(second.open(), handle);
    second.close(handle);
    assert_eq!(lock(&second.free).len(), all);
}

#[test]
fn nonsense_in_the_memory_is_dropped() {
    let table = SnapshotTable::private();
    for (index, entry) in table.entries().iter().enumerate() {
        entry.handle.store(index as u64 + 1, Ordering::Relaxed);
        entry
            .text
            .store((index as u64) << 31 | 70_000, Ordering::Relaxed);
    }
    table.recover();
    // Whatever was kept is owned by one entry only, so closing all frees exactly the pool.
    for handle in 0..=(SETS * WAYS) as u64 {
        let (set, guard) = table.set(handle);
        let found = table.find(set, handle).is_some();
        drop(guard);
        if found {
            table.close(handle);
        }
    }
    let mut free = lock(&table.free).clone();
    free.sort_unstable();
    free.dedup();
    assert!(free.len() <= table.chunks);
    assert_eq!(free.len(), lock(&table.free).len());
}

#[test]
fn a_flood_of_open_files_stays_inside_the_memory() {
    let table = SnapshotTable::private();
    let chunks = lock(&table.free).len();
    let content = text(CHUNK + 1, 3);
    for request in 0..20_000 {
        let handle = table.open();
        table.keep(handle, 17, request, &content, false);
        assert_eq!(
            read(&table, handle, 0, usize::MAX),
            (Held::Served, content.clone())
        );
    }
    let used: usize = table
        .entries()
        .iter()
        .filter(|e| e.handle.load(Ordering::Relaxed) != 0)
        .map(|e| unpack(e.text.load(Ordering::Relaxed)))
        .filter(|(first, _)| *first != NONE)
        .map(|(_, len)| len.div_ceil(CHUNK))
        .sum();
    assert_eq!(used + lock(&table.free).len(), chunks);
}

#[test]
fn a_text_beyond_the_bound_is_not_kept() {
    let table = SnapshotTable::private();
    let handle = table.open();
    table.keep(handle, 17, 5, &vec![0; MAX_TEXT + 1], false);
    assert_eq!(read(&table, handle, 0, 10).0, Held::Unknown);
}

#[test]
fn threads_do_not_mix_texts() {
    let table = Arc::new(SnapshotTable::private());
    let threads: Vec<_> = (0..4u8)
        .map(|seed| {
            let table = table.clone();
            std::thread::spawn(move || {
                for request in 0..2_000 {
                    let handle = table.open();
                    let content = text(300 + request as usize, seed);
                    table.keep(handle, 17, request, &content, false);
                    let (held, found) = read(&table, handle, 0, usize::MAX);
                    // Another thread may have evicted it; a wrong text is never served.
                    if held == Held::Served {
                        assert_eq!(found, content);
                    }
                    table.close(handle);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn the_replay_of_an_old_request_does_not_replace_a_later_text() {
    let table = SnapshotTable::private();
    let all = lock(&table.free).len();
    let handle = table.open();
    table.keep(handle, 17, 9, &text(100, 1), false);
    table.keep(handle, 17, 5, &text(100, 2), false);
    assert_eq!(read(&table, handle, 0, 100), (Held::Served, text(100, 1)));
    table.close(handle);
    assert_eq!(lock(&table.free).len(), all);
}

#[test]
fn texts_in_use_outlive_forgotten_ones() {
    let table = SnapshotTable::private();
    let busy = table.open();
    let content = text(3 * CHUNK, 7);
    table.keep(busy, 17, 1, &content, false);
    for request in 2..3_000 {
        // Handles whose close was lost: nobody reads them any more.
        table.keep(table.open(), 17, request, &text(2 * CHUNK, 3), false);
        assert_eq!(
            read(&table, busy, 0, usize::MAX),
            (Held::Served, content.clone())
        );
    }
}
