//! The control socket: status, upgrade, stop, and commands passed on to the daemon.
//!
//! `SOCK_SEQPACKET`, one message per request and answer, root only. A request is
//! `lxcfs 1 VERB [TEXT]`; an answer starts with `ok` or `error`, then a space and text.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt,
    listen, socket,
};

use crate::channel::{hear, say};

/// Version of the protocol.
const VERSION: &str = "1";
/// Clients at a time; more wait in the listen queue.
const MAX_CLIENTS: usize = 8;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Facts as `key=value` lines.
    Status,
    /// Switch to a new binary; an empty path means the file we were started from.
    Upgrade(PathBuf),
    /// Stop serving, unmount, exit.
    Stop,
    /// For the daemon: log level, host view.
    Command(String),
}

impl Request {
    /// The message.
    pub fn to_text(&self) -> String {
        match self {
            Self::Status => format!("lxcfs {VERSION} status"),
            Self::Upgrade(path) => format!("lxcfs {VERSION} upgrade {}", path.display()),
            Self::Stop => format!("lxcfs {VERSION} stop"),
            Self::Command(text) => format!("lxcfs {VERSION} command {text}"),
        }
    }

    /// Parses a message.
    ///
    /// # Errors
    /// A sentence for the client.
    pub fn from_text(text: &str) -> Result<Self, String> {
        let mut words = text.splitn(4, ' ');
        if words.next() != Some("lxcfs") {
            return Err("this is the control socket of lxcfs".to_owned());
        }
        if words.next() != Some(VERSION) {
            return Err(format!(
                "only version {VERSION} of the protocol is spoken here"
            ));
        }
        let verb = words.next().unwrap_or_default();
        let rest = words.next().unwrap_or_default();
        match verb {
            "status" => Ok(Self::Status),
            "upgrade" => Ok(Self::Upgrade(rest.into())),
            "stop" => Ok(Self::Stop),
            "command" => Ok(Self::Command(rest.to_owned())),
            _ => Err(format!(
                "unknown request {verb:?}; known: status, upgrade, stop, command"
            )),
        }
    }
}

/// Asks the holder that listens at `path` and waits for its answer.
///
/// # Errors
/// When nobody listens or answers in time. The inner error is the holder's own.
pub fn ask(path: &Path, request: &Request, wait: Duration) -> io::Result<Result<String, String>> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    say(&socket, &request.to_text())?;
    let mut poll = [nix::poll::PollFd::new(
        socket.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    let wait = nix::poll::PollTimeout::try_from(wait).unwrap_or(nix::poll::PollTimeout::MAX);
    if nix::poll::poll(&mut poll, wait)? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the holder does not answer",
        ));
    }
    let answer = hear(&socket, true)?.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the holder closed the connection",
        )
    })?;
    Ok(match answer.split_once(' ') {
        Some(("ok", text)) => Ok(text.to_owned()),
        Some((_, text)) => Err(text.to_owned()),
        None => Err(answer),
    })
}

/// A listening socket at `path`, for root alone; one that nobody serves is replaced.
pub(crate) fn listener_at(path: &Path) -> io::Result<OwnedFd> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let new = |flags| socket(AddressFamily::Unix, SockType::SeqPacket, flags, None);
    let listener = new(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    let address = UnixAddr::new(path)?;
    if connect(new(SockFlag::SOCK_CLOEXEC)?.as_raw_fd(), &address).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("{} is served by another lxcfs", path.display()),
        ));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => bind(listener.as_raw_fd(), &address)?,
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listen(&listener, Backlog::new(16)?)?;
    crate::fd::high(listener)
}

/// The holder's end.
pub(crate) struct Control {
    path: PathBuf,
    listener: OwnedFd,
    clients: Vec<OwnedFd>,
}

impl Control {
    /// Listens at `path`; a socket that nobody serves is replaced.
    pub(crate) fn listen(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.into(),
            listener: listener_at(path)?,
            clients: Vec::new(),
        })
    }

    /// Continues with a listener of an earlier program of this process.
    pub(crate) fn adopt(path: &Path, listener: RawFd) -> io::Result<Self> {
        Ok(Self {
            path: path.into(),
            listener: crate::fd::inherited(listener)?,
            clients: Vec::new(),
        })
    }

    pub(crate) fn listener(&self) -> &OwnedFd {
        &self.listener
    }

    pub(crate) fn clients(&self) -> &[OwnedFd] {
        &self.clients
    }

    /// Accepts one client if it is root.
    pub(crate) fn accept(&mut self) {
        let Ok(fd) = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) else {
            return;
        };
        // SAFETY: a fresh descriptor that nobody else owns.
        let Ok(client) = crate::fd::high(unsafe { OwnedFd::from_raw_fd(fd) }) else {
            return;
        };
        if self.clients.len() >= MAX_CLIENTS {
            return answer(&client, &Err("too many clients".to_owned()));
        }
        match getsockopt(&client, PeerCredentials) {
            Ok(peer) if peer.uid() == 0 => self.clients.push(client),
            _ => answer(&client, &Err("only root may ask".to_owned())),
        }
    }

    /// Reads one request of client `index`; a client that is gone is dropped.
    pub(crate) fn read(&mut self, index: usize) -> Option<(Result<Request, String>, OwnedFd)> {
        match hear(self.clients.get(index)?, false) {
            Ok(Some(text)) => {
                let client = self.clients.get(index)?.try_clone().ok()?;
                Some((Request::from_text(&text), crate::fd::high(client).ok()?))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Ok(None) | Err(_) => {
                self.clients.swap_remove(index);
                None
            }
        }
    }

    /// Removes the socket.
    pub(crate) fn close(self) {
        let _already_gone = fs::remove_file(&self.path);
    }
}

/// Answers a client; one that is gone does not matter.
pub(crate) fn answer(client: &OwnedFd, outcome: &Result<String, String>) {
    let text = match outcome {
        Ok(text) => format!("ok {text}"),
        Err(text) => format!("error {text}"),
    };
    let _client_gone = say(client, &text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_trip_and_strangers_are_told() {
        for request in [
            Request::Status,
            Request::Stop,
            Request::Upgrade("/usr/bin/lx cfs".into()),
            Request::Upgrade("".into()),
            Request::Command("log-level debug".to_owned()),
        ] {
            assert_eq!(Request::from_text(&request.to_text()), Ok(request));
        }
        assert!(Request::from_text("GET / HTTP/1.1").is_err());
        assert!(
            Request::from_text("lxcfs 2 status")
                .unwrap_err()
                .contains("version 1")
        );
        assert!(
            Request::from_text("lxcfs 1 dance")
                .unwrap_err()
                .contains("dance")
        );
    }
}
