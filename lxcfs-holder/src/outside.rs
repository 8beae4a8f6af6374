//! Workers that the holder did not start: they run in another container or as another user,
//! come over a socket, and are given what a child would have inherited.
//!
//! `SOCK_SEQPACKET`; a worker's first message is its [`Hello`]. The answer is `WELCOME` with
//! the device, the state memory and (where the kernel can) a procfs that is mounted nowhere;
//! from then on the connection is the worker's channel. Else it is `BUSY`, `REPLACED` or
//! an error, and the connection ends. A first message of the control protocol is answered
//! when it asks for the status, so that a server needs no other socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    connect, recvmsg, sendmsg, socket,
};

use crate::channel::{MAX_MESSAGE, say};
use crate::{CHANNEL_FD, FUSE_FD, PROC_FD, STATE_FD};

/// Version of the protocol.
const VERSION: &str = "1";
/// First line of the answer to a worker that is taken; the worker's cgroups follow, as the
/// holder sees them.
const WELCOME: &str = "welcome";
/// Answer to a worker that is not needed now.
pub(crate) const BUSY: &str = "busy";
/// Answer to a worker of a server that a newer one has replaced.
pub(crate) const REPLACED: &str = "replaced";
/// Between two attempts to be taken.
const RETRY: Duration = Duration::from_millis(100);
/// The same for a server that was replaced: it is only needed if the newer one goes.
const RETRY_REPLACED: Duration = Duration::from_secs(1);

/// Who starts workers and replaces them. Of two, the one that started later serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerId {
    /// Boot clock when it started, in nanoseconds.
    pub since_nsec: u64,
    /// Its process id in the host's PID namespace.
    pub pid: u32,
}

/// What a worker says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Whose worker it is.
    pub server: ServerId,
    /// The latest workers before it that crashed: nobody but their parent can tell that from a
    /// kill.
    pub crashed: Vec<u32>,
}

impl std::fmt::Display for ServerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.since_nsec, self.pid)
    }
}

impl std::str::FromStr for ServerId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once(':')
            .and_then(|(since, pid)| Some((since.parse().ok()?, pid.parse().ok()?)));
        let (since_nsec, pid) = parsed.ok_or_else(|| format!("{text:?} is not NANOSECONDS:PID"))?;
        Ok(Self { since_nsec, pid })
    }
}

impl Hello {
    /// The message.
    pub fn to_text(&self) -> String {
        let crashed: String = self.crashed.iter().map(|pid| format!(" {pid}")).collect();
        format!("serve {VERSION} {}{crashed}", self.server)
    }

    /// Parses a message; `None` if it is something else.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        if words.next() != Some("serve") || words.next() != Some(VERSION) {
            return None;
        }
        Some(Self {
            server: words.next()?.parse().ok()?,
            crashed: words.map_while(|pid| pid.parse().ok()).collect(),
        })
    }
}

/// What a worker was given.
#[derive(Debug)]
pub struct Joined {
    /// A procfs that is mounted nowhere.
    pub proc: Option<OwnedFd>,
    /// The worker's own `/proc/PID/cgroup`, as the holder sees it.
    pub cgroups: String,
}

/// Offers this process to the holder that listens at `path`, until it is taken; waits as long
/// as there is no holder or another worker does the work, and tells `waiting` why. Afterwards
/// the descriptors are where a child of the holder finds them. To be called before anything
/// else opens files.
///
/// # Errors
/// When the holder refuses for good, or a descriptor cannot be put in place.
pub fn join(path: &Path, hello: &Hello, mut waiting: impl FnMut(&str)) -> io::Result<Joined> {
    loop {
        let pause = match offer(path, hello) {
            Ok(Offer::Taken(joined)) => return Ok(joined),
            Ok(Offer::Later(REPLACED)) => {
                waiting("a newer server serves");
                RETRY_REPLACED
            }
            Ok(Offer::Later(_)) => RETRY,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::BrokenPipe
                        | io::ErrorKind::UnexpectedEof
                ) =>
            {
                waiting(&format!("no holder at {}: {error}", path.display()));
                RETRY
            }
            Err(error) => return Err(error),
        };
        std::thread::sleep(pause);
    }
}

enum Offer {
    Taken(Joined),
    Later(&'static str),
}

fn offer(path: &Path, hello: &Hello) -> io::Result<Offer> {
    let channel = crate::fd::high(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)?;
    connect(channel.as_raw_fd(), &UnixAddr::new(path)?)?;
    let (text, fds) = exchange(&channel, hello)?;
    let (word, rest) = text.split_once('\n').unwrap_or((&text, ""));
    match word {
        WELCOME => {}
        REPLACED => return Ok(Offer::Later(REPLACED)),
        BUSY => return Ok(Offer::Later(BUSY)),
        "" => return Err(io::ErrorKind::UnexpectedEof.into()),
        refusal => return Err(io::Error::other(refusal.to_owned())),
    }
    let mut fds = fds.into_iter();
    let (Some(fuse), Some(state)) = (fds.next(), fds.next()) else {
        return Err(io::Error::other("the holder passed no connection"));
    };
    let proc = fds.next();
    for (fd, number) in [(fuse, FUSE_FD), (state, STATE_FD), (channel, CHANNEL_FD)] {
        place(fd, number)?;
    }
    if let Some(proc) = proc {
        place(proc, PROC_FD)?;
    }
    Ok(Offer::Taken(Joined {
        proc: crate::inherited(PROC_FD).ok(),
        cgroups: rest.to_owned(),
    }))
}

/// Says the hello and receives the answer. A holder that refuses at the sight of a visitor may
/// have closed its end by then; what it said is there all the same.
fn exchange(channel: &OwnedFd, hello: &Hello) -> io::Result<(String, Vec<OwnedFd>)> {
    let said = say(channel, &hello.to_text());
    let answer = match receive(channel) {
        // The kernel tells once that our words were not read, before it hands out the answer.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => receive(channel),
        other => other,
    };
    match answer {
        Ok((text, fds)) if !text.is_empty() => Ok((text, fds)),
        other => said.and(other),
    }
}

/// Puts a descriptor where a worker looks for it.
fn place(fd: OwnedFd, number: RawFd) -> io::Result<()> {
    // SAFETY: F_GETFD only looks.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0 {
        return Err(io::Error::other(format!(
            "descriptor {number} is in use already"
        )));
    }
    // SAFETY: fd is open and `number` is free: nothing is closed behind anybody's back.
    if unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// One message and its descriptors, moved out of the way of the fixed numbers.
fn receive(channel: &OwnedFd) -> io::Result<(String, Vec<OwnedFd>)> {
    let mut buffer = [0; MAX_MESSAGE];
    let mut space = nix::cmsg_space!([RawFd; 3]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = loop {
        match recvmsg::<UnixAddr>(
            channel.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other?,
        }
    };
    let length = message.bytes;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: fresh descriptors that nobody else owns.
            fds.extend(
                received
                    .iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }),
            );
        }
    }
    let fds = fds
        .into_iter()
        .map(crate::fd::high)
        .collect::<io::Result<_>>()?;
    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
    Ok((text, fds))
}

/// Passes the connection to a worker, whose cgroups are `cgroups`.
pub(crate) fn welcome(channel: &OwnedFd, fds: &[RawFd], cgroups: &str) -> io::Result<()> {
    let mut text = format!("{WELCOME}\n{cgroups}");
    if text.len() > MAX_MESSAGE {
        // Of no use when cut; a worker that needs it says so.
        text = WELCOME.to_owned();
    }
    sendmsg::<UnixAddr>(
        channel.as_raw_fd(),
        &[IoSlice::new(text.as_bytes())],
        &[ControlMessage::ScmRights(fds)],
        MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        None,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_survives_the_trip_and_anything_else_is_none() {
        let server = ServerId {
            since_nsec: u64::MAX,
            pid: 4321,
        };
        for crashed in [vec![], vec![17], vec![4_194_303, 17, 18, 19]] {
            let hello = Hello { server, crashed };
            assert_eq!(Hello::from_text(&hello.to_text()), Some(hello));
        }
        for text in ["", "serve", "serve 2 1:2", "serve 1 x:2", "lxcfs 1 status"] {
            assert_eq!(Hello::from_text(text), None, "{text}");
        }
    }

    #[test]
    fn the_later_server_is_the_greater_one() {
        let id = |since_nsec, pid| ServerId { since_nsec, pid };
        assert!(id(2, 10) > id(1, 20));
        assert_eq!("5:6".parse(), Ok(id(5, 6)));
    }

    #[test]
    fn a_refusal_is_heard_by_who_speaks_too_late() {
        let server = ServerId {
            since_nsec: 1,
            pid: 2,
        };
        let hello = Hello {
            server,
            crashed: vec![],
        };
        let (ours, theirs) = crate::channel::pair().unwrap();
        say(&theirs, "no").unwrap();
        drop(theirs);
        assert_eq!(exchange(&ours, &hello).unwrap().0, "no");
        // It closes its end without reading what was said.
        let (ours, theirs) = crate::channel::pair().unwrap();
        say(&ours, "first").unwrap();
        say(&theirs, "no").unwrap();
        drop(theirs);
        assert_eq!(exchange(&ours, &hello).unwrap().0, "no");
        let (ours, theirs) = crate::channel::pair().unwrap();
        drop(theirs);
        let kind = exchange(&ours, &hello).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_is_passed_arrives_with_the_text() {
        let (one, two) = crate::channel::pair().unwrap();
        let (left, right) = crate::channel::pair().unwrap();
        welcome(&one, &[left.as_raw_fd(), right.as_raw_fd()], "0::/a\n").unwrap();
        let (text, fds) = receive(&two).unwrap();
        assert_eq!(text, "welcome\n0::/a\n");
        assert_eq!(fds.len(), 2);
        say(&fds[0], "through a copy").unwrap();
        let heard = crate::channel::hear(&right, false).unwrap();
        assert_eq!(heard.as_deref(), Some("through a copy"));
    }
}
