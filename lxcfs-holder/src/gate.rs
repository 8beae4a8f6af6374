//! The holder's end of the socket that workers from outside come to.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{SockFlag, accept4, getsockopt};

use crate::channel::{hear, say};
use crate::control::{self, Request};
use crate::outside::Hello;

/// Connections that have not said yet what they want; more push the oldest out.
const MAX_KNOCKING: usize = 16;

/// Somebody who has connected.
struct Visitor {
    channel: OwnedFd,
    pid: u32,
    /// Who it is; opened while it was connected, so that the number cannot have been recycled.
    pidfd: OwnedFd,
}

/// A worker that offers itself.
pub(crate) struct Newcomer {
    pub(crate) channel: OwnedFd,
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) hello: Hello,
}

/// What a visitor wants.
pub(crate) enum Wish {
    Serve(Newcomer),
    /// The status, told over a copy of the connection.
    Status(OwnedFd),
}

/// The socket.
pub(crate) struct Gate {
    path: PathBuf,
    listener: OwnedFd,
    /// Who may come, besides root.
    uid: u32,
    visitors: Vec<Visitor>,
}

impl Gate {
    /// Listens at `path`, for root and for user `uid`.
    pub(crate) fn listen(path: &Path, uid: u32) -> io::Result<Self> {
        let listener = control::listener_at(path)?;
        if uid != 0 {
            std::os::unix::fs::chown(path, Some(uid), None)?;
        }
        Ok(Self {
            path: path.into(),
            listener,
            uid,
            visitors: Vec::new(),
        })
    }

    pub(crate) fn listener(&self) -> &OwnedFd {
        &self.listener
    }

    pub(crate) fn visitors(&self) -> impl Iterator<Item = &OwnedFd> {
        self.visitors.iter().map(|visitor| &visitor.channel)
    }

    /// Accepts one visitor, if it is who may come.
    pub(crate) fn accept(&mut self) {
        let Ok(fd) = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) else {
            return;
        };
        // SAFETY: a fresh descriptor that nobody else owns.
        let Ok(channel) = crate::fd::high(unsafe { OwnedFd::from_raw_fd(fd) }) else {
            return;
        };
        let visitor = getsockopt(&channel, PeerCredentials)
            .map_err(io::Error::from)
            .and_then(|peer| {
                if peer.uid() != 0 && peer.uid() != self.uid {
                    return Err(io::Error::other("this socket is for another user"));
                }
                let pid = u32::try_from(peer.pid()).unwrap_or(0);
                let pidfd = crate::fd::peer_pidfd(&channel, pid)?;
                Ok((pid, pidfd))
            });
        match visitor {
            Ok((pid, pidfd)) => {
                if self.visitors.len() >= MAX_KNOCKING {
                    self.visitors.remove(0);
                }
                self.visitors.push(Visitor {
                    channel,
                    pid,
                    pidfd,
                });
            }
            Err(error) => {
                let _gone = say(&channel, &error.to_string());
            }
        }
    }

    /// Reads what visitor `index` wants; one that wants nothing sensible is dropped.
    pub(crate) fn read(&mut self, index: usize) -> Option<Wish> {
        let visitor = self.visitors.get(index)?;
        let text = match hear(&visitor.channel, false) {
            Ok(Some(text)) => text,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Ok(None) | Err(_) => {
                self.visitors.remove(index);
                return None;
            }
        };
        let visitor = self.visitors.remove(index);
        if let Some(hello) = Hello::from_text(&text) {
            return Some(Wish::Serve(Newcomer {
                channel: visitor.channel,
                pid: visitor.pid,
                pidfd: visitor.pidfd,
                hello,
            }));
        }
        match Request::from_text(&text) {
            Ok(Request::Status) => Some(Wish::Status(visitor.channel)),
            Ok(_) => {
                let refusal = Err("only the status is told here".to_owned());
                control::answer(&visitor.channel, &refusal);
                None
            }
            Err(error) => {
                control::answer(&visitor.channel, &Err(error));
                None
            }
        }
    }

    /// Removes the socket.
    pub(crate) fn close(self) {
        let _already_gone = fs::remove_file(&self.path);
    }
}
