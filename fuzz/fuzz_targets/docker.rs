//! What dockerd answers: the stream of events cut into lines, lists and containers as JSON,
//! with names and labels that users choose.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lxcfs_user::agent::docker::message;

fuzz_target!(|bytes: &[u8]| {
    let _ = message::started(bytes);
    let _ = message::listed(bytes);
    let _ = message::inspected(bytes);
    let mut lines = message::Lines::new(64);
    for part in bytes.chunks(7) {
        let Some(whole) = lines.push(part) else { break };
        assert!(whole.iter().all(|line| line.ends_with(b"\n")));
    }
});
