//! What arrives on the runtime's NRI socket: frames, and the messages in them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lxcfs_user::agent::nri::{mux, ttrpc};

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let mut messages = ttrpc::Assembler::default();
    while let Ok(Some(frame)) = mux::read_frame(&mut rest) {
        if messages.push(&frame.payload).is_err() {
            break;
        }
    }
    // Without the frames, so that the messages are reached from any input.
    let _ = ttrpc::Assembler::default().push(bytes);
});
