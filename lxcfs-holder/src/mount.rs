//! Mounting: what is at the mountpoint, the mount itself, and unmounting.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, umount2};

use crate::init::answer_init;

/// File system type in mountinfo, as C lxcfs has it; scripts look for it.
pub const FS_TYPE: &str = "fuse.lxcfs";
/// Source in mountinfo.
pub const FS_NAME: &str = "lxcfs";

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mountpoint cannot be used.
    #[error("mountpoint {path}: {reason}")]
    Mountpoint {
        /// The mountpoint.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Another instance serves it.
    #[error(
        "mountpoint {path} is served by another lxcfs (holder process {holder}); stop that one or choose another directory"
    )]
    Served {
        /// The mountpoint.
        path: PathBuf,
        /// Process id of the other holder.
        holder: u32,
    },
    /// `/dev/fuse` cannot be opened.
    #[error(
        "cannot open /dev/fuse: {source}; load the module (modprobe fuse) and, in a container, pass the device"
    )]
    Device {
        /// The cause.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{call}: {source}")]
    System {
        /// What was tried.
        call: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The kernel's INIT is not what this program can answer.
    #[error("FUSE handshake: {0}")]
    Handshake(String),
}

pub(crate) fn system(call: &'static str) -> impl Fn(io::Error) -> MountError {
    move |source| MountError::System { call, source }
}

/// One line of mountinfo, as far as needed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MountLine {
    pub(crate) minor: u32,
    pub(crate) point: PathBuf,
    pub(crate) fs_type: String,
}

/// Parses `/proc/self/mountinfo`; lines that are not understood are left out.
pub(crate) fn parse_mountinfo(text: &[u8]) -> Vec<MountLine> {
    text.split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (_major, minor) = device.split_once(':')?;
    let point = unescape(fields.nth(1)?);
    let fs_type = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(MountLine {
        minor: minor.parse().ok()?,
        point: OsString::from_vec(point).into(),
        fs_type: String::from_utf8_lossy(fs_type).into_owned(),
    })
}

/// Undoes the kernel's `\ooo` for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            digits.iter().try_fold(0u8, |value, digit| match digit {
                b'0'..=b'7' => value.checked_mul(8)?.checked_add(digit - b'0'),
                _ => None,
            })
        };
        match after.get(..3).and_then(octal) {
            Some(byte) if *first == b'\\' => {
                plain.push(byte);
                rest = &after[3..];
            }
            _ => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

/// The topmost mount at `point`, if there is any.
pub(crate) fn topmost(point: &Path) -> io::Result<Option<MountLine>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(parse_mountinfo(&text)
        .into_iter()
        .rfind(|mounted| mounted.point == point))
}

/// The mountpoint as mountinfo shows it. Only the parent is resolved: touching the mountpoint
/// itself may fail (dead mount) or wait (mount without a worker).
pub(crate) fn canonical(point: &Path) -> Result<PathBuf, MountError> {
    let problem = |reason: String| MountError::Mountpoint {
        path: point.to_path_buf(),
        reason,
    };
    let absolute = std::path::absolute(point).map_err(|e| problem(e.to_string()))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(problem(
            "the root directory cannot be the mountpoint".to_owned(),
        ));
    };
    let parent = fs::canonicalize(parent)
        .map_err(|e| problem(format!("{e}; create it with mkdir -p {}", point.display())))?;
    let here = parent.join(name);
    // A symbolic link is not a mountpoint itself, so resolving it touches no mount of ours
    // unless the link leads there, which `topmost` then finds.
    match fs::read_link(&here) {
        Ok(target) => canonical(&parent.join(target)),
        Err(_not_a_link) => Ok(here),
    }
}

/// What is mounted where we want to mount.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing of ours.
    Free,
    /// A mount of ours that has not lost its connection.
    Live {
        /// Number of its connection.
        connection: u32,
    },
}

/// Looks at the mountpoint, removes dead mounts of our own type and nothing else.
pub(crate) fn inspect(point: &Path) -> Result<Found, MountError> {
    for _ in 0..64 {
        match topmost(point).map_err(system("read /proc/self/mountinfo"))? {
            Some(mounted) if mounted.fs_type == FS_TYPE => match probe(point)? {
                Probe::Dead => {
                    crate::log::say(&format!("replacing the dead mount at {}", point.display()));
                    umount2(point, MntFlags::MNT_DETACH)
                        .map_err(|e| system("unmount the dead mount")(e.into()))?;
                }
                Probe::Live | Probe::Silent => {
                    return Ok(Found::Live {
                        connection: mounted.minor,
                    });
                }
            },
            _ => return Ok(Found::Free),
        }
    }
    Err(MountError::Mountpoint {
        path: point.to_path_buf(),
        reason: "more than 64 dead mounts are stacked on it".to_owned(),
    })
}

enum Probe {
    Live,
    Dead,
    /// Nobody answers: the connection is held, but no worker runs.
    Silent,
}

/// Asks the file system from a child, because nobody may be there to answer.
fn probe(point: &Path) -> Result<Probe, MountError> {
    let path = CString::new(point.as_os_str().as_bytes())
        .map_err(|e| system("probe the mountpoint")(io::Error::other(e)))?;
    // SAFETY: the process is single-threaded; the child only makes system calls and exits.
    match unsafe { libc::fork() } {
        -1 => Err(system("fork")(io::Error::last_os_error())),
        0 => {
            // SAFETY: statfs is plain data; path is a C string; _exit never returns.
            unsafe {
                let mut buffer: libc::statfs = std::mem::zeroed();
                let failed = libc::statfs(path.as_ptr(), &raw mut buffer) != 0;
                libc::_exit(if failed { *libc::__errno_location() } else { 0 });
            }
        }
        child => {
            let deadline = Instant::now() + Duration::from_secs(2);
            loop {
                let mut status = 0;
                // SAFETY: our own child, not reaped yet.
                let done = unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) };
                if done == child {
                    let code = libc::WEXITSTATUS(status);
                    return Ok(if libc::WIFEXITED(status) && code == libc::ENOTCONN {
                        Probe::Dead
                    } else {
                        Probe::Live
                    });
                }
                if Instant::now() > deadline {
                    // SAFETY: as above. It waits in a killable state.
                    unsafe {
                        libc::kill(child, libc::SIGKILL);
                        libc::waitpid(child, &raw mut status, 0);
                    }
                    return Ok(Probe::Silent);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

/// Refuses a mountpoint that does not exist, is no directory, or hides files.
pub(crate) fn check_directory(point: &Path, nonempty: bool) -> Result<(), MountError> {
    let problem = |reason: String| MountError::Mountpoint {
        path: point.to_path_buf(),
        reason,
    };
    let kind = fs::symlink_metadata(point)
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => problem(format!(
                "does not exist; create it with mkdir -p {}",
                point.display()
            )),
            _ => problem(e.to_string()),
        })?
        .file_type();
    if !kind.is_dir() {
        let what = if kind.is_file() {
            "a file"
        } else if kind.is_socket() {
            "a socket"
        } else {
            "not a directory"
        };
        return Err(problem(format!("is {what}; a directory is needed")));
    }
    let first = fs::read_dir(point)
        .map_err(|e| problem(e.to_string()))?
        .next();
    if let (false, Some(Ok(entry))) = (nonempty, first)
        && !only_directories(point, 8, &mut 1000)
    {
        return Err(problem(format!(
            "is not empty (it holds {}); empty it, choose another directory, or mount over it with -o nonempty",
            entry.file_name().display()
        )));
    }
    Ok(())
}

/// Whether there is nothing below `path` but directories: container engines make them where a
/// file that was to be bound is missing. Nothing is lost when they are covered.
fn only_directories(path: &Path, depth: u32, budget: &mut u32) -> bool {
    let Ok(entries) = fs::read_dir(path) else {
        return false;
    };
    entries.into_iter().all(|entry| {
        *budget = budget.saturating_sub(1);
        let Ok(entry) = entry else { return false };
        depth > 0
            && *budget > 0
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
            && only_directories(&entry.path(), depth - 1, budget)
    })
}

/// A fresh connection: the device, the number of the connection and the kernel's minor version.
pub(crate) struct Connection {
    pub(crate) fuse: OwnedFd,
    pub(crate) number: u32,
    pub(crate) kernel_minor: u32,
}

/// Opens the device, mounts it at `point` and answers INIT.
pub(crate) fn mount(point: &Path) -> Result<Connection, MountError> {
    let fuse: OwnedFd = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|source| MountError::Device { source })?
        .into();
    let fuse = crate::fd::high(fuse).map_err(system("duplicate the device"))?;
    let data = format!(
        "fd={},rootmode=40755,user_id=0,group_id=0,default_permissions,allow_other",
        fuse.as_raw_fd()
    );
    nix::mount::mount(
        Some(FS_NAME),
        point,
        Some(FS_TYPE),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some(OsStr::new(&data)),
    )
    .map_err(|e| MountError::System {
        call: "mount(2) of fuse.lxcfs",
        source: e.into(),
    })?;
    let finish = || {
        let number = topmost(point)
            .map_err(system("read /proc/self/mountinfo"))?
            .filter(|mounted| mounted.fs_type == FS_TYPE)
            .ok_or_else(|| MountError::Handshake("our mount is not in mountinfo".to_owned()))?
            .minor;
        Ok((number, answer_init(&fuse)?))
    };
    match finish() {
        Ok((number, kernel_minor)) => Ok(Connection {
            fuse,
            number,
            kernel_minor,
        }),
        Err(error) => {
            let _already_failing = umount2(point, MntFlags::MNT_DETACH);
            Err(error)
        }
    }
}

/// A mount of this process alone, for serving without a holder; unmounted when dropped.
pub struct Mounted {
    point: PathBuf,
    connection: Connection,
    mounted_at_sec: u64,
}

impl Mounted {
    /// Mounts at `mountpoint`, which must be an empty directory that nothing is mounted on.
    ///
    /// # Errors
    /// See [`MountError`].
    pub fn mount(mountpoint: &Path) -> Result<Self, MountError> {
        let point = canonical(mountpoint)?;
        if let Found::Live { .. } = inspect(&point)? {
            let reason = "another file system of this kind is mounted there".to_owned();
            return Err(MountError::Mountpoint {
                path: point,
                reason,
            });
        }
        check_directory(&point, false)?;
        let connection = mount(&point)?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let mounted_at_sec = now.map_or(0, |now| now.as_secs());
        Ok(Self {
            point,
            connection,
            mounted_at_sec,
        })
    }

    /// The `/dev/fuse` descriptor, INIT already answered.
    pub fn device(&self) -> &OwnedFd {
        &self.connection.fuse
    }

    /// Minor version of the FUSE protocol that the kernel speaks.
    pub fn kernel_minor(&self) -> u32 {
        self.connection.kernel_minor
    }

    /// Unix time of the mount in seconds.
    pub fn mounted_at_sec(&self) -> u64 {
        self.mounted_at_sec
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.point, self.connection.number);
    }
}

/// Unmounts every mount of connection `number` at `point`; containers' own binds stay.
pub(crate) fn unmount(point: &Path, number: u32) {
    for _ in 0..64 {
        match topmost(point) {
            Ok(Some(mounted)) if mounted.fs_type == FS_TYPE && mounted.minor == number => {
                if let Err(error) = umount2(point, MntFlags::MNT_DETACH) {
                    crate::log::say(&format!("cannot unmount {}: {error}", point.display()));
                    return;
                }
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(text: Vec<u8>) {
            let lines = text.split(|byte| *byte == b'\n').count();
            prop_assert!(parse_mountinfo(&text).len() <= lines);
            prop_assert!(unescape(&text).len() <= text.len());
        }

        #[test]
        fn a_mountpoint_of_any_name_is_found(
            name in "[a \t\n\\\\0-9]{0,20}", minor: u32, optional in "( shared:[0-9]{1,3})?",
        ) {
            // As the kernel's mangle() writes them.
            let shown = name
                .replace('\\', "\\134")
                .replace(' ', "\\040")
                .replace('\t', "\\011")
                .replace('\n', "\\012");
            let line = format!("1 2 0:{minor} / /{shown} rw{optional} - fuse.lxcfs lxcfs rw\n");
            let found = parse_mountinfo(line.as_bytes());
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].minor, minor);
            prop_assert_eq!(&found[0].point, &PathBuf::from(format!("/{name}")));
            prop_assert_eq!(&*found[0].fs_type, "fuse.lxcfs");
        }
    }

    #[test]
    fn mountinfo_lines_of_all_shapes() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
            40 35 0:57 / /var/lib/a\\040b rw,nosuid - fuse.lxcfs lxcfs rw,user_id=0\n\
            broken line\n";
        let found = parse_mountinfo(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].fs_type, "ext3");
        assert_eq!(
            found[1],
            MountLine {
                minor: 57,
                point: "/var/lib/a b".into(),
                fs_type: FS_TYPE.into()
            }
        );
    }

    #[test]
    fn an_escape_at_the_end_is_plain_text() {
        assert_eq!(unescape(b"a\\134b\\04"), b"a\\b\\04");
    }
}
