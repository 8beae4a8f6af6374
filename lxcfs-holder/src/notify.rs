//! systemd: readiness, watchdog, and the descriptor store that outlives us.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};

/// Name of the device in the descriptor store.
const FUSE_NAME: &str = "lxcfs-fuse";
/// Name of the state memory in the descriptor store.
const STATE_NAME: &str = "lxcfs-state";
/// Name of the detached mount in the descriptor store.
const TREE_NAME: &str = "lxcfs-mount";

/// The service manager, if there is one.
pub(crate) struct Manager {
    address: Option<UnixAddr>,
}

/// Whether a service manager started this very process, and so notices its end. systemd tells each
/// process it starts its own pid (since 248), also where it wants to hear nothing.
pub(crate) fn is_managed() -> bool {
    let told = std::env::var("SYSTEMD_EXEC_PID").ok();
    let told = told.and_then(|pid| pid.parse().ok());
    Manager::from_env().present() || told == Some(std::process::id())
}

impl Manager {
    /// Reads `NOTIFY_SOCKET`.
    pub(crate) fn from_env() -> Self {
        let name = std::env::var_os("NOTIFY_SOCKET");
        let address = name.and_then(|name| {
            use std::os::unix::ffi::OsStrExt;
            match name.as_bytes().split_first() {
                Some((b'@', rest)) => UnixAddr::new_abstract(rest).ok(),
                Some(_) => UnixAddr::new(Path::new(&name)).ok(),
                None => None,
            }
        });
        Self { address }
    }

    /// Whether somebody listens.
    pub(crate) fn present(&self) -> bool {
        self.address.is_some()
    }

    /// Sends a state change; without a manager nothing happens.
    pub(crate) fn notify(&self, text: &str, fds: &[RawFd]) -> io::Result<()> {
        let Some(address) = &self.address else {
            return Ok(());
        };
        let socket = socket(
            AddressFamily::Unix,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(text.as_bytes())],
            control,
            MsgFlags::MSG_NOSIGNAL,
            Some(address),
        )?;
        Ok(())
    }

    /// Stores the connection with the manager, so that it outlives all our processes.
    pub(crate) fn store(&self, fuse: RawFd, state: RawFd, tree: Option<RawFd>) -> io::Result<()> {
        for (name, fd) in [
            (FUSE_NAME, Some(fuse)),
            (STATE_NAME, Some(state)),
            (TREE_NAME, tree),
        ] {
            if let Some(fd) = fd {
                self.notify(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])?;
                // FDPOLL=0: an error state of the device must not make the manager drop it.
                self.notify(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &[fd])?;
            }
        }
        Ok(())
    }

    /// Removes a dead connection from the store.
    pub(crate) fn forget(&self) {
        for name in [FUSE_NAME, STATE_NAME, TREE_NAME] {
            let _no_manager = self.notify(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
        }
    }
}

/// The interval of `WATCHDOG_USEC`, if the manager expects signs of life from this process.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    let usec: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    match std::env::var("WATCHDOG_PID") {
        Ok(pid) if pid != std::process::id().to_string() => None,
        _ => Some(Duration::from_micros(usec)),
    }
}

/// A connection that the manager kept for us.
pub(crate) struct Stored {
    pub(crate) fuse: OwnedFd,
    pub(crate) state: OwnedFd,
    pub(crate) tree: Option<OwnedFd>,
}

/// Takes the stored connection out of `LISTEN_FDS`, if it is complete.
pub(crate) fn stored() -> Option<Stored> {
    let pid: u32 = std::env::var("LISTEN_PID").ok()?.parse().ok()?;
    if pid != std::process::id() {
        return None;
    }
    let count: RawFd = std::env::var("LISTEN_FDS").ok()?.parse().ok()?;
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let (mut fuse, mut state, mut tree) = (None, None, None);
    for (fd, name) in (3..3 + count.clamp(0, 64)).zip(names.split(':')) {
        let place = match name {
            FUSE_NAME => &mut fuse,
            STATE_NAME => &mut state,
            TREE_NAME => &mut tree,
            _ => continue,
        };
        *place = crate::fd::inherited(fd).and_then(crate::fd::high).ok();
    }
    Some(Stored {
        fuse: fuse?,
        state: state?,
        tree,
    })
}
