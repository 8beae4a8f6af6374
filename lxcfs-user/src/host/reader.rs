//! Reads the host's `/proc` and `/sys`, from kept descriptors where a file is read often.
//!
//! The procfs is the daemon's own and mounted nowhere, so that neither our own mount nor
//! one that a runtime put over `/proc` can be in the way. `/sys` is the machine's.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::cgroup::reader::{below, read_all};
use crate::cpuset::CpuSet;
use crate::snapshot::MachineFacts;
use crate::units::Bytes;

/// The host's files cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A directory or file that must be there.
    #[error("opening {path}")]
    Open {
        /// Which.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// What is at `/proc` is something else.
    #[error(
        "{path} is not a procfs; mount one there, or start the daemon with CAP_SYS_ADMIN so \
         that it can make its own"
    )]
    NotProc {
        /// Where.
        path: String,
    },
}

/// Files of `/proc` that are read again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[expect(missing_docs, reason = "the names are the kernel's file names")]
pub enum ProcFile {
    Meminfo,
    Stat,
    Cpuinfo,
    Diskstats,
    Vmstat,
    Slabinfo,
    Uptime,
    Loadavg,
    Swaps,
}

impl ProcFile {
    /// Name below `/proc`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meminfo => "meminfo",
            Self::Stat => "stat",
            Self::Cpuinfo => "cpuinfo",
            Self::Diskstats => "diskstats",
            Self::Vmstat => "vmstat",
            Self::Slabinfo => "slabinfo",
            Self::Uptime => "uptime",
            Self::Loadavg => "loadavg",
            Self::Swaps => "swaps",
        }
    }
}

impl ProcFile {
    /// Whether the kernel makes it in one piece (`single_open`), so that a short read is its
    /// end. The others come record by record, in reads of about a page.
    const fn is_single(self) -> bool {
        matches!(
            self,
            Self::Meminfo | Self::Stat | Self::Uptime | Self::Loadavg
        )
    }
}

/// How the procfs was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcOrigin {
    /// A mount that is attached nowhere.
    Detached,
    /// The one at `/proc`: the kernel has no `fsopen` (below 5.2) or we lack the right.
    Mounted,
    /// A directory tree given by a test or a capture.
    Tree,
}

/// The machine's `/proc` and `/sys`.
#[derive(Debug)]
pub struct HostReader {
    proc: OwnedFd,
    sys: OwnedFd,
    origin: ProcOrigin,
    kept: [OnceLock<File>; 9],
}

fn open_dir(path: &Path) -> Result<OwnedFd, HostError> {
    File::open(path)
        .map(Into::into)
        .map_err(|source| HostError::Open {
            path: path.display().to_string(),
            source,
        })
}

impl HostReader {
    /// The machine's own files.
    ///
    /// # Errors
    /// When there is no usable procfs or no `/sys`.
    pub fn live() -> Result<Self, HostError> {
        Self::live_with(None)
    }

    /// The machine's own files, with a procfs that somebody else made.
    ///
    /// # Errors
    /// As [`live`](Self::live).
    pub fn live_with(proc: Option<OwnedFd>) -> Result<Self, HostError> {
        let made = proc.map_or_else(lxcfs_holder::detached_proc, Ok);
        let (proc, origin) = match made {
            Ok(proc) => (proc, ProcOrigin::Detached),
            Err(_) => (open_dir(Path::new("/proc"))?, ProcOrigin::Mounted),
        };
        let is_proc = fstatfs(&proc).is_ok_and(|fs| fs.filesystem_type() == PROC_SUPER_MAGIC);
        if !is_proc {
            return Err(HostError::NotProc {
                path: "/proc".to_owned(),
            });
        }
        Ok(Self {
            proc,
            sys: open_dir(Path::new("/sys"))?,
            origin,
            kept: Default::default(),
        })
    }

    /// A directory tree that holds `proc` and `sys`.
    ///
    /// # Errors
    /// When one of them is missing.
    pub fn tree(root: &Path) -> Result<Self, HostError> {
        Ok(Self {
            proc: open_dir(&below(root, Path::new("/proc")))?,
            sys: open_dir(&below(root, Path::new("/sys")))?,
            origin: ProcOrigin::Tree,
            kept: Default::default(),
        })
    }

    /// How the procfs was come by; anything but our own is worth a line in the log.
    #[must_use]
    pub const fn proc_origin(&self) -> ProcOrigin {
        self.origin
    }

    /// The root of the procfs.
    #[must_use]
    pub fn proc_fd(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }

    /// Reads a kept file of `/proc`.
    ///
    /// # Errors
    /// As `open` and `pread` have them; `NotFound` where the kernel has no such file.
    pub fn read<R>(&self, file: ProcFile, use_text: impl FnOnce(&str) -> R) -> io::Result<R> {
        let slot = &self.kept[file as usize];
        let kept = match slot.get() {
            Some(kept) => kept,
            None => {
                let opened = self.open_proc(file.name())?;
                slot.get_or_init(|| opened)
            }
        };
        read_all(kept, file.is_single(), use_text)
    }

    /// Opens a file below `/proc`.
    ///
    /// # Errors
    /// As `openat` has them.
    pub fn open_proc(&self, path: &str) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(File::from(openat(&self.proc, path, flags, Mode::empty())?))
    }

    /// Reads a file below `/proc` that is not kept.
    ///
    /// # Errors
    /// As `open` and `read` have them.
    pub fn read_proc<R>(&self, path: &str, use_text: impl FnOnce(&str) -> R) -> io::Result<R> {
        read_all(&self.open_proc(path)?, false, use_text)
    }

    /// Target of a link below `/proc`.
    ///
    /// # Errors
    /// As `readlinkat` has them.
    pub fn read_proc_link(&self, path: &str) -> io::Result<OsString> {
        Ok(readlinkat(&self.proc, path)?)
    }

    /// Reads a file below `/sys` as it is.
    ///
    /// # Errors
    /// As `open` and `read` have them.
    pub fn read_sys(&self, path: &str, out: &mut Vec<u8>) -> io::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.sys, path, flags, Mode::empty())?);
        file.read_to_end(out)?;
        Ok(())
    }

    /// A file below `/sys` as text; `None` if it cannot be read.
    #[must_use]
    pub fn sys_text(&self, path: &str) -> Option<String> {
        let mut bytes = Vec::new();
        self.read_sys(path, &mut bytes).ok()?;
        String::from_utf8(bytes).ok()
    }

    /// A CPU or node list below `/sys`.
    #[must_use]
    pub fn sys_list(&self, path: &str) -> Option<CpuSet> {
        CpuSet::parse_list(&self.sys_text(path)?).ok()
    }

    /// Whether something is there below `/proc`.
    #[must_use]
    pub fn has_proc(&self, path: &str) -> bool {
        nix::sys::stat::fstatat(&self.proc, path, nix::fcntl::AtFlags::empty()).is_ok()
    }

    /// Whether something is there below `/sys`.
    #[must_use]
    pub fn has_sys(&self, path: &str) -> bool {
        nix::sys::stat::fstatat(&self.sys, path, nix::fcntl::AtFlags::empty()).is_ok()
    }

    /// The numeric entries of a directory below `/proc`: tasks.
    ///
    /// # Errors
    /// As `openat` and `getdents` have them.
    pub fn proc_numbers(&self, path: &str) -> io::Result<Vec<u32>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = nix::dir::Dir::openat(&self.proc, path, flags, Mode::empty())?;
        let mut numbers = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            if let Ok(name) = entry.file_name().to_str()
                && let Ok(number) = name.parse()
            {
                numbers.push(number);
            }
        }
        Ok(numbers)
    }

    /// Sizes of huge pages the kernel has (`/sys/kernel/mm/hugepages/hugepages-NkB`).
    #[must_use]
    pub fn huge_page_sizes(&self) -> Vec<Bytes> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let Ok(mut dir) =
            nix::dir::Dir::openat(&self.sys, "kernel/mm/hugepages", flags, Mode::empty())
        else {
            return Vec::new();
        };
        dir.iter()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let name = entry.file_name().to_str().ok()?;
                let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
                Some(crate::units::Kib(kib.parse().ok()?).to_bytes())
            })
            .collect()
    }

    /// What does not change while the machine runs. Page size and `USER_HZ` are arguments,
    /// because a captured tree has those of the machine it came from.
    #[must_use]
    pub fn facts(&self, page_size: Bytes, user_hz: u64) -> MachineFacts {
        let list = |name: &str| self.sys_list(&format!("devices/system/cpu/{name}"));
        let online = list("online").unwrap_or_else(|| CpuSet::first(1));
        MachineFacts {
            page_size,
            user_hz,
            possible_cpus: list("possible").unwrap_or_else(|| online.clone()),
            online_cpus: online,
        }
    }
}

/// `sysconf(_SC_PAGESIZE)` and `sysconf(_SC_CLK_TCK)`.
#[must_use]
pub fn page_size_and_user_hz() -> (Bytes, u64) {
    use nix::unistd::{SysconfVar, sysconf};
    let value = |var, default: u64| {
        let value = sysconf(var).ok().flatten();
        value
            .and_then(|value| u64::try_from(value).ok())
            .unwrap_or(default)
    };
    (
        Bytes(value(SysconfVar::PAGE_SIZE, 4096)),
        value(SysconfVar::CLK_TCK, 100),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_procfs_is_read_through_a_kept_descriptor() {
        let host = HostReader::live().unwrap();
        let first = host.read(ProcFile::Meminfo, str::to_owned).unwrap();
        assert!(first.starts_with("MemTotal:"), "{first}");
        let again = host.read(ProcFile::Meminfo, str::to_owned).unwrap();
        assert_eq!(first.lines().next(), again.lines().next());
    }

    #[test]
    fn a_tree_stands_in_for_the_machine() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/17")).unwrap();
        std::fs::create_dir_all(root.path().join("sys/devices/system/cpu")).unwrap();
        let online = root.path().join("sys/devices/system/cpu/online");
        std::fs::write(online, "0-3\n").unwrap();
        let host = HostReader::tree(root.path()).unwrap();
        let facts = host.facts(Bytes(4096), 100);
        assert_eq!(facts.online_cpus.len(), 4);
        assert_eq!(facts.possible_cpus.len(), 4);
        assert_eq!(host.proc_numbers(".").unwrap(), [17]);
        assert!(host.read(ProcFile::Stat, |_| ()).is_err());
        assert_eq!(host.huge_page_sizes(), []);
    }
}
