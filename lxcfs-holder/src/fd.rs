//! Descriptors: where they live and how they travel.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Descriptors of the holder start here, so that the fixed numbers of a worker are free
/// between fork and exec.
const FIRST: RawFd = 10;

/// Moves a descriptor above the numbers that workers use; close-on-exec.
pub(crate) fn high(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= FIRST {
        return Ok(fd);
    }
    // SAFETY: fd is open; the result is a fresh descriptor.
    let moved = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FIRST) };
    if moved < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

/// Takes ownership of an inherited descriptor after checking that it is open.
///
/// # Errors
/// EBADF when it is not open.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only looks.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    set_inheritable(fd, false)?;
    // SAFETY: open, and by contract of this program passed to us for keeps.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets or clears close-on-exec.
pub(crate) fn set_inheritable(fd: RawFd, inheritable: bool) -> io::Result<()> {
    let flags = if inheritable { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: F_SETFD touches no memory.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A descriptor of a process that is ours or that we may trace.
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain integers; the result is checked.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    high(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Not in libc yet: Linux 6.5 (`include/uapi/asm-generic/socket.h`).
const SO_PEERPIDFD: libc::c_int = 77;

/// The process `pid` that connected `channel`.
///
/// # Errors
/// `ESRCH` when it has gone.
pub(crate) fn peer_pidfd(channel: &OwnedFd, pid: u32) -> io::Result<OwnedFd> {
    let mut fd: RawFd = -1;
    let mut len = size_of::<RawFd>() as libc::socklen_t;
    // SAFETY: both point to locals of the right size.
    let failed = unsafe {
        libc::getsockopt(
            channel.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut len,
        )
    };
    if failed == 0 && fd >= 0 {
        // SAFETY: a fresh descriptor that nobody else owns.
        return high(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    let pidfd = pidfd_open(pid)?;
    // The number was the peer's if it is still there: a dead process has no open socket.
    let mut one = [nix::poll::PollFd::new(
        channel.as_fd(),
        nix::poll::PollFlags::empty(),
    )];
    if nix::poll::poll(&mut one, 0u8)? != 0 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(pidfd)
}

/// A procfs of our PID namespace that is mounted nowhere.
///
/// # Errors
/// ENOSYS before Linux 5.2, EPERM without `CAP_SYS_ADMIN`.
pub fn detached_proc() -> io::Result<OwnedFd> {
    let owned = |result: libc::c_long| {
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        high(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
    };
    // SAFETY: a C string and flags.
    let context =
        owned(unsafe { libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), libc::FSOPEN_CLOEXEC) })?;
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: CMD_CREATE takes no key and no value.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            libc::FSCONFIG_CMD_CREATE,
            none,
            none,
            0,
        )
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    // SAFETY: plain integers.
    owned(unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            libc::FSMOUNT_CLOEXEC,
            attributes,
        )
    })
}

/// Duplicates descriptor `number` of another process.
pub(crate) fn pidfd_getfd(pidfd: &impl AsFd, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain integers; the result is checked.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_fd().as_raw_fd(), number, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    high(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Whether the process of a pidfd has ended.
pub(crate) fn has_ended(pidfd: &impl AsFd) -> bool {
    let mut one = [nix::poll::PollFd::new(
        pidfd.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    matches!(nix::poll::poll(&mut one, 0u8), Ok(1))
}

/// Sends SIGKILL through a pidfd: never hits a recycled process id.
pub(crate) fn kill(pidfd: &impl AsFd) {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: no siginfo is passed; a dead process gives ESRCH, which is fine.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            libc::SIGKILL,
            none,
            0,
        );
    }
}
