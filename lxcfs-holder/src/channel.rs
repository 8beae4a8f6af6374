//! What holder and worker say to each other: one line of text per message over a
//! `SOCK_SEQPACKET` pair. Both may be of different versions, so unknown words are ignored.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use crate::layout::Cause;

/// Longest message in bytes.
pub const MAX_MESSAGE: usize = 4096;

/// Holder to worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Adopt the connection and serve. No other worker runs any more.
    Activate(Cause),
    /// Read a file of the mount through the kernel and report.
    Probe(String),
    /// A command for the daemon (log level, host view); the answer is a [`Report::Answer`].
    Command(String),
}

/// Worker to holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Everything is prepared; waiting for [`Order::Activate`].
    Ready,
    /// Serving; requests that were answered for the dead worker, and those given up.
    Serving {
        /// Requests answered on behalf of the previous worker.
        replayed: u64,
        /// Requests given up.
        poisoned: u64,
    },
    /// The outcome of [`Order::Probe`].
    Probed(Result<(), String>),
    /// The outcome of [`Order::Command`].
    Answer(Result<String, String>),
    /// From one that stands by: nothing of the worker that served runs any more.
    Deserted,
    /// The connection ended: unmounted everywhere, or aborted.
    Unmounted,
}

impl Order {
    /// The message.
    pub fn to_text(&self) -> String {
        match self {
            Self::Activate(cause) => format!(
                "activate {}",
                match cause {
                    Cause::First => "first",
                    Cause::Killed => "killed",
                    Cause::Crashed => "crashed",
                }
            ),
            Self::Probe(path) => format!("probe {path}"),
            Self::Command(text) => format!("command {text}"),
        }
    }

    /// Parses a message; `None` if it is of a newer version.
    pub fn from_text(text: &str) -> Option<Self> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        Some(match word {
            "activate" => Self::Activate(match rest {
                "first" => Cause::First,
                "crashed" => Cause::Crashed,
                _ => Cause::Killed,
            }),
            "probe" => Self::Probe(rest.to_owned()),
            "command" => Self::Command(rest.to_owned()),
            _ => return None,
        })
    }
}

impl Report {
    /// The message.
    pub fn to_text(&self) -> String {
        match self {
            Self::Ready => "ready".to_owned(),
            Self::Serving { replayed, poisoned } => format!("serving {replayed} {poisoned}"),
            Self::Probed(Ok(())) => "probed".to_owned(),
            Self::Probed(Err(error)) => format!("probe-failed {error}"),
            Self::Answer(Ok(text)) => format!("answer {text}"),
            Self::Answer(Err(error)) => format!("refused {error}"),
            Self::Deserted => "deserted".to_owned(),
            Self::Unmounted => "unmounted".to_owned(),
        }
    }

    /// Parses a message; `None` if it is of a newer version.
    pub fn from_text(text: &str) -> Option<Self> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        Some(match word {
            "ready" => Self::Ready,
            "serving" => {
                let mut numbers = rest.split(' ').map(|n| n.parse().unwrap_or(0));
                Self::Serving {
                    replayed: numbers.next().unwrap_or(0),
                    poisoned: numbers.next().unwrap_or(0),
                }
            }
            "probed" => Self::Probed(Ok(())),
            "probe-failed" => Self::Probed(Err(rest.to_owned())),
            "answer" => Self::Answer(Ok(rest.to_owned())),
            "refused" => Self::Answer(Err(rest.to_owned())),
            "deserted" => Self::Deserted,
            "unmounted" => Self::Unmounted,
            _ => return None,
        })
    }
}

/// A connected pair; both ends close on exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    Ok((crate::fd::high(ours)?, crate::fd::high(theirs)?))
}

/// Sends one message without waiting.
///
/// # Errors
/// EPIPE when the other side is gone; EAGAIN when it does not read.
pub fn say(socket: &impl AsFd, text: &str) -> io::Result<()> {
    let bytes = &text.as_bytes()[..text.len().min(MAX_MESSAGE)];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    send(socket.as_fd().as_raw_fd(), bytes, flags)?;
    Ok(())
}

/// Receives one message; `None` when the other side is gone.
///
/// # Errors
/// `WouldBlock` when there is none and `wait` is false.
pub fn hear(socket: &impl AsFd, wait: bool) -> io::Result<Option<String>> {
    let mut buffer = [0; MAX_MESSAGE];
    let flags = if wait {
        MsgFlags::empty()
    } else {
        MsgFlags::MSG_DONTWAIT
    };
    loop {
        return match recv(socket.as_fd().as_raw_fd(), &mut buffer, flags) {
            Ok(0) | Err(Errno::ECONNRESET) => Ok(None),
            Ok(length) => Ok(Some(
                String::from_utf8_lossy(&buffer[..length]).into_owned(),
            )),
            Err(Errno::EINTR) => continue,
            Err(error) => Err(error.into()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives_the_trip() {
        for order in [
            Order::Activate(Cause::First),
            Order::Activate(Cause::Killed),
            Order::Activate(Cause::Crashed),
            Order::Probe("/var/lib/lxc fs".to_owned()),
            Order::Command("log-level debug,fuse=info".to_owned()),
        ] {
            assert_eq!(Order::from_text(&order.to_text()), Some(order));
        }
        for report in [
            Report::Ready,
            Report::Serving {
                replayed: 3,
                poisoned: 1,
            },
            Report::Probed(Ok(())),
            Report::Probed(Err("no such file".to_owned())),
            Report::Answer(Ok("info".to_owned())),
            Report::Answer(Err("what?".to_owned())),
            Report::Deserted,
            Report::Unmounted,
        ] {
            assert_eq!(Report::from_text(&report.to_text()), Some(report));
        }
        assert_eq!(Order::from_text("dance tango"), None);
    }

    #[test]
    fn a_lost_peer_is_told_from_silence() {
        let (one, two) = pair().unwrap();
        assert_eq!(
            hear(&one, false).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        say(&two, "ready").unwrap();
        assert_eq!(hear(&one, false).unwrap().as_deref(), Some("ready"));
        drop(two);
        assert_eq!(hear(&one, true).unwrap(), None);
        assert!(say(&one, "probe").is_err());
    }
}
