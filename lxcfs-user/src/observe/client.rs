//! The other end of the control socket: what `lxcfs status` and its siblings use.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);
/// More than any answer of ours.
const ANSWER_LIMIT: u64 = 4 * 1024 * 1024;

/// What the daemon said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

/// Asks for `target`.
///
/// # Errors
/// When nobody listens on `socket`, or the answer makes no sense.
pub fn get(socket: &Path, target: &str) -> io::Result<Answer> {
    ask(socket, "GET", target)
}

/// Asks for a change.
///
/// # Errors
/// As [`get`].
pub fn put(socket: &Path, target: &str) -> io::Result<Answer> {
    ask(socket, "PUT", target)
}

fn ask(socket: &Path, method: &str, target: &str) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "{method} {target} HTTP/1.1\r\nHost: lxcfs\r\n\r\n")?;
    let mut text = String::new();
    stream.take(ANSWER_LIMIT).read_to_string(&mut text)?;
    let answer = || {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer {
            status,
            body: body.to_owned(),
        })
    };
    answer().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP response"))
}
