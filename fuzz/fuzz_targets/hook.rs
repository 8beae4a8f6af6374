//! The state that a container runtime hands to the OCI hook.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lxcfs_user::agent::hook;

fuzz_target!(|bytes: &[u8]| {
    let _ = hook::parse_state(bytes);
});
