//! Owns the question whether the server behind a mount still answers.
//!
//! Asking means a request to a file system that may belong to a container. The kernel
//! answers for FUSE mounts of a foreign user namespace itself (`fuse_allow_current_process`
//! in `fuse_statfs`), so those cannot delay the caller; a privileged container's can,
//! which is why the question is asked by a thread of its own and has a time limit.

use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use super::plan::Liveness;

/// Asks the server behind `fd`, an `O_PATH` descriptor of a mount's root.
pub fn liveness(fd: OwnedFd, limit: Duration) -> Liveness {
    let (answer, answered) = mpsc::channel();
    let asked = std::thread::Builder::new()
        .name("lxcfs-probe".into())
        .spawn(move || {
            // A new thread shares its creator's root and current directory, and the creator
            // cannot change its mount namespace while that is so.
            if unshare(CloneFlags::CLONE_FS).is_err() {
                return;
            }
            // The receiver is gone only after the limit: nobody waits for this then.
            let _ = answer.send(statfs(&fd));
        });
    match asked {
        Ok(_) => answered
            .recv_timeout(limit)
            .unwrap_or(Liveness::Unresponsive),
        Err(_) => Liveness::Unresponsive,
    }
}

fn statfs(fd: &OwnedFd) -> Liveness {
    match rustix::fs::fstatfs(fd) {
        Ok(_) => Liveness::Alive,
        Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED) => Liveness::Dead,
        Err(_) => Liveness::Unresponsive,
    }
}
