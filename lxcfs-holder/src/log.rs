//! Messages of the holder, one line each on stderr.
//!
//! `eprintln!` panics when stderr is a closed pipe; the holder must survive that.

use std::io::Write as _;

/// Writes one line; nobody can be told when that fails.
pub(crate) fn say(message: &str) {
    let line = format!("lxcfs-holder[{}]: {message}\n", std::process::id());
    let _unheard = std::io::stderr().write_all(line.as_bytes());
}
