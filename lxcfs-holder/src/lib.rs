//! Keeps the FUSE connection open and the worker alive.
//!
//! The holder is a tiny single-threaded process. It mounts, answers the one INIT, and then
//! only watches: it owns the device, the memory that outlives workers ([`layout`]) and the
//! worker processes. Reading requests and answering them is the worker's business. When a
//! worker dies, a prepared second one takes over; readers merely wait a moment.
//!
//! ```text
//! lxcfs MNT ── exec ──> holder ── fork, exec ──> worker (serves), worker (standby)
//! ```
//!
//! Workers may also come from [`outside`], over a socket, and run with fewer rights.
//!
//! [`exec`] turns the calling process into the holder, [`entry`] is what `main` calls first
//! to see whether it is one. [`control::ask`] talks to a running holder.

pub mod channel;
pub mod control;
mod fd;
mod gate;
mod image;
mod init;
pub mod layout;
mod log;
mod mount;
mod notify;
mod options;
pub mod outside;
mod spawn;
mod supervise;
mod takeover;
mod trim;

use std::ffi::CString;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

pub use fd::{detached_proc, inherited};
pub use mount::{FS_NAME, FS_TYPE, MountError, Mounted};
pub use options::{Adopt, ENTRY, HolderOptions};
pub use takeover::{living_holder, worker_has_ended};
pub use trim::drop_text;

/// Where a worker finds the `/dev/fuse` descriptor.
pub const FUSE_FD: RawFd = 3;
/// Where a worker finds the state memory.
pub const STATE_FD: RawFd = 4;
/// Where a worker finds its channel to the holder.
pub const CHANNEL_FD: RawFd = 5;
/// Where a worker from outside finds a procfs that is mounted nowhere.
pub const PROC_FD: RawFd = 6;
/// Set in a worker's environment when a service manager starts a new holder if this one dies.
pub const MANAGED_ENV: &str = "LXCFS_MANAGED";
/// Process name of the holder.
pub const HOLDER_COMM: &str = "lxcfs-holder";
/// Process name of a worker.
pub const WORKER_COMM: &str = "lxcfs-worker";

/// Nice value of a worker that does not serve yet: readers may be waiting for it.
pub(crate) const FIRST_NICE: libc::c_int = -20;

/// Names this process as `ps` and `/proc/PID/comm` show it.
pub fn set_process_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // SAFETY: PR_SET_NAME reads a C string of at most 16 bytes.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
}

/// Becomes the holder in a fresh program image of the same executable, so that nothing the
/// command line or the configuration needed stays resident. Returns only on failure.
pub fn exec(options: &HolderOptions) -> std::io::Error {
    if let Some(fd) = options.ready_fd
        && let Err(error) = fd::set_inheritable(fd, true)
    {
        return error;
    }
    Command::new("/proc/self/exe")
        .arg0(HOLDER_COMM)
        .args(options.to_args())
        .exec()
}

/// To be called first in `main`: if this process was started as the holder, does the holder's
/// work and returns its exit status.
pub fn entry() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()?.as_bytes() != ENTRY.as_bytes() {
        return None;
    }
    Some(match HolderOptions::from_args(args) {
        Ok(options) => run(options),
        Err(error) => {
            log::say(&error);
            ExitCode::FAILURE
        }
    })
}

/// Holds the connection until it is told to stop. Exit status 0 after SIGTERM, SIGINT or a
/// regular unmount; 1 with a message when there is no mount or it was lost.
pub fn run(options: HolderOptions) -> ExitCode {
    supervise::run(options)
}
