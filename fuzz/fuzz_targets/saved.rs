//! What a worker left to its successor: any bytes are answered, and ours come back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lxcfs_user::daemon::saved::Legacy;

fuzz_target!(|bytes: &[u8]| {
    if let Some(legacy) = Legacy::from_bytes(bytes) {
        let again = legacy.to_bytes(bytes.len().saturating_mul(2).max(4096));
        assert!(Legacy::from_bytes(&again).is_some());
    }
});
