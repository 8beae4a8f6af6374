//! The few pidfd and namespace calls that tell callers apart. Each one is tried; a kernel
//! without it answers with an error that the caller takes as "ask `/proc` instead".

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// What `PIDFD_GET_INFO` (6.13) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PidInfo {
    /// Id of the task's v2 cgroup.
    pub cgroup_id: u64,
}

/// Opens a pidfd of one thread, whether or not it leads its process.
///
/// # Errors
/// `ESRCH` when it has exited; `EINVAL` for a thread that is no leader below 6.9.
pub fn open(tid: u32) -> io::Result<OwnedFd> {
    let call = |flags: libc::c_uint| {
        // SAFETY: pidfd_open takes a number and flags, and gives a new descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, tid, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    match call(libc::PIDFD_THREAD) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => call(0),
        opened => opened,
    }
}

/// Whether the task behind a pidfd has not exited yet.
#[must_use]
pub fn is_alive(pidfd: &OwnedFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    // Readable once it has exited.
    poll(&mut fds, PollTimeout::ZERO) == Ok(0)
}

/// Asks for the v2 cgroup of the task behind a pidfd.
///
/// # Errors
/// `ESRCH` when it has exited, `ENOTTY` or `EINVAL` below 6.13.
pub fn info(pidfd: &impl AsFd) -> io::Result<PidInfo> {
    // SAFETY: the structure is plain numbers, for which all zeros is a value.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = u64::from(libc::PIDFD_INFO_CGROUPID);
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the request's argument is a structure of the size that its number encodes.
    if unsafe { libc::ioctl(fd, libc::PIDFD_GET_INFO, &mut info) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if info.mask & u64::from(libc::PIDFD_INFO_CGROUPID) == 0 || info.cgroupid == 0 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(PidInfo {
        cgroup_id: info.cgroupid,
    })
}

/// The process that is `pid` inside a PID namespace, by its id in ours (6.11).
///
/// # Errors
/// `ENOTTY` on older kernels, `ESRCH` when there is none.
pub fn process_in_namespace(namespace: &impl AsFd, pid: u32) -> io::Result<u32> {
    translate(namespace, libc::NS_GET_TGID_FROM_PIDNS, pid)
}

/// Our process `pid`, by its id inside a PID namespace (6.11).
///
/// # Errors
/// `ENOTTY` on older kernels, `ESRCH` when it is not in there.
pub fn process_as_seen_in(namespace: &impl AsFd, pid: u32) -> io::Result<u32> {
    translate(namespace, libc::NS_GET_TGID_IN_PIDNS, pid)
}

fn translate(namespace: &impl AsFd, request: libc::Ioctl, pid: u32) -> io::Result<u32> {
    let fd = namespace.as_fd().as_raw_fd();
    // SAFETY: these requests take the id by value and return the translated one.
    let translated = unsafe { libc::ioctl(fd, request, libc::c_ulong::from(pid)) };
    if translated < 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(translated)
        .ok()
        .filter(|pid| *pid > 0)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_no_leader_can_be_held() {
        let tid = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let tid = nix::unistd::gettid().as_raw() as u32;
                    // Below 6.9 the kernel refuses; then /proc is asked.
                    if let Ok(fd) = open(tid) {
                        assert!(is_alive(&fd));
                        let _ = info(&fd);
                    }
                    tid
                })
                .join()
                .unwrap()
        });
        let gone = open(tid).and_then(|fd| info(&fd));
        assert!(gone.is_err(), "{gone:?}");
    }

    #[test]
    fn our_own_process_is_itself_in_our_namespace() {
        let namespace = std::fs::File::open("/proc/self/ns/pid").unwrap();
        let pid = std::process::id();
        match process_as_seen_in(&namespace, pid) {
            Ok(seen) => {
                assert_eq!(seen, pid);
                assert_eq!(process_in_namespace(&namespace, pid).unwrap(), pid);
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOTTY), "{error}"),
        }
    }
}
