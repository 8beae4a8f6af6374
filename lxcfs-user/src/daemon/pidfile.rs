//! The pidfile: one daemon per pidfile, guarded by a record lock as C lxcfs does it, so
//! that the two refuse each other, too.
//!
//! The lock belongs to the process and survives `exec`, which is how it gets from the
//! command line into the holder. Only who has the lock touches the file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::IntoRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Why there is no pidfile.
#[derive(Debug, thiserror::Error)]
pub enum PidfileError {
    /// Somebody else runs with it.
    #[error(
        "another lxcfs (process {pid}) holds {}; stop it, or give this one its own \
         --runtime-dir or --pidfile",
        path.display()
    )]
    Held {
        /// The pidfile.
        path: PathBuf,
        /// Who holds the lock; 0 if it is in another PID namespace.
        pid: i32,
    },
    /// It cannot be made.
    #[error("cannot write the pidfile {}: {source}; choose another with --pidfile", path.display())]
    Io {
        /// The pidfile.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// For a killed predecessor to be gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether a process has been killed, or is on its way out, and only keeps its locks until
/// the kernel has closed its files.
fn is_dying(pid: i32) -> bool {
    const KILL: u64 = 1 << (libc::SIGKILL - 1);
    if pid <= 0 {
        return false;
    }
    // Without memory there is no command line any more.
    let Ok(words) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return true;
    };
    let pending = |status: String| {
        let masks = status
            .lines()
            .filter_map(|line| {
                line.strip_prefix("ShdPnd:")
                    .or(line.strip_prefix("SigPnd:"))
            })
            .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        masks.fold(0, |all, mask| all | mask) & KILL != 0
    };
    words.is_empty() || std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(pending)
}

/// A locked pidfile with our number in it.
#[derive(Debug)]
pub struct Pidfile {
    path: PathBuf,
    file: File,
}

impl Pidfile {
    /// Locks `path` and writes this process's number into it.
    ///
    /// # Errors
    /// [`PidfileError::Held`] when another process has the lock; its file stays as it is.
    pub fn lock(path: &Path) -> Result<Self, PidfileError> {
        let failed = |source: io::Error| PidfileError::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let began = Instant::now();
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(path)
                .map_err(failed)?;
            match fcntl(&file, FcntlArg::F_SETLK(&whole_file())) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    let mut holder = whole_file();
                    let asked = fcntl(&file, FcntlArg::F_GETLK(&mut holder));
                    if asked.is_ok() && i32::from(holder.l_type) == libc::F_UNLCK {
                        // Let go in between.
                        continue;
                    }
                    if is_dying(holder.l_pid) && began.elapsed() < PATIENCE {
                        std::thread::sleep(Duration::from_millis(20));
                        continue;
                    }
                    return Err(PidfileError::Held {
                        path: path.to_owned(),
                        pid: holder.l_pid,
                    });
                }
                Err(error) => return Err(failed(error.into())),
            }
            // The last holder may have unlinked it between our open and our lock.
            let ours = file.metadata().map_err(failed)?;
            match std::fs::symlink_metadata(path) {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {}
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            }
            file.set_len(0).map_err(failed)?;
            (&file)
                .write_all(format!("{}\n", std::process::id()).as_bytes())
                .map_err(failed)?;
            return Ok(Self {
                path: path.to_owned(),
                file,
            });
        }
    }

    /// Keeps the lock across `exec`, for as long as this process lives. From then on
    /// somebody else removes the file.
    ///
    /// # Errors
    /// When the descriptor cannot be kept.
    pub fn keep_across_exec(self) -> io::Result<()> {
        // The descriptor itself, not a copy: when `exec` closed any descriptor of the file,
        // the lock would be gone.
        fcntl(&self.file, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let _kept = self.file.into_raw_fd();
        Ok(())
    }

    /// Removes the file while its lock is still held.
    pub fn remove(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn it_holds_our_number_and_goes_when_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/lxcfs.pid");
        let pidfile = Pidfile::lock(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        pidfile.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_file_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lxcfs.pid");
        std::fs::write(&path, "99999999\nrubbish\n").unwrap();
        let _pidfile = Pidfile::lock(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_held_file_is_left_alone_and_its_holder_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lxcfs.pid");
        // Record locks are per process, so another one has to hold it.
        let script = "import fcntl, sys\n\
                      f = open(sys.argv[1], 'w')\n\
                      fcntl.lockf(f, fcntl.LOCK_EX)\n\
                      f.write('first'); f.flush()\n\
                      print('locked', flush=True)\n\
                      sys.stdin.read()\n";
        let mut first = Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is missing: apt-get install python3");
        let mut line = String::new();
        let mut said = io::BufReader::new(first.stdout.take().unwrap());
        io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert_eq!(line, "locked\n");
        let error = Pidfile::lock(&path).unwrap_err();
        assert!(
            matches!(error, PidfileError::Held { pid, .. } if pid == first.id() as i32),
            "{error}"
        );
        assert!(error.to_string().contains("--runtime-dir"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "first");
        drop(first.stdin.take());
        first.wait().unwrap();
        Pidfile::lock(&path).unwrap().remove();
    }

    #[test]
    fn a_symlink_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("precious");
        std::fs::write(&target, "keep").unwrap();
        let path = dir.path().join("lxcfs.pid");
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(matches!(Pidfile::lock(&path), Err(PidfileError::Io { .. })));
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "keep");
    }
}
