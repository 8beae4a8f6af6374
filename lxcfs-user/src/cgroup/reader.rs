//! Reads cgroup files through descriptors that are opened once and kept: a `pread` on a
//! kept descriptor is ten times cheaper than open, read, close.
//!
//! A kept descriptor is also an identity: it belongs to the cgroup that was there when it
//! was opened, and answers `ENODEV` once that is gone, even if another of the same name
//! took its place. The number of descriptors is bounded; the coldest are closed first.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::layout::{HierarchyIndex, Layout, Version};
use super::{v1, v2};

/// How long "this cgroup has no such file" is believed: a controller may be enabled later.
const ABSENT_FOR: Duration = Duration::from_millis(250);

/// Why a cgroup file has no content.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The cgroup has been removed.
    #[error("cgroup {path} is gone")]
    Gone {
        /// Path below the hierarchy's root.
        path: String,
    },
    /// Anything else.
    #[error("reading {path}")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Descriptors in use, and how many are allowed.
#[derive(Debug)]
struct Budget {
    open: AtomicUsize,
    limit: usize,
    /// Advances with every sweep; a directory remembers when it was last used.
    epoch: AtomicU64,
}

/// A kept cgroup directory with its kept files.
#[derive(Debug)]
pub struct Dir {
    hierarchy: HierarchyIndex,
    version: Version,
    path: Box<str>,
    fd: OwnedFd,
    inode: u64,
    files: Mutex<Vec<(&'static str, Slot)>>,
    used: AtomicU64,
    budget: Arc<Budget>,
    kept: Weak<Kept>,
}

#[derive(Clone, Debug)]
enum Slot {
    Open(Arc<File>),
    Absent(Instant),
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::default();
}

/// Reads all of `file` from its start and hands the text to `use_text`. `single` says that
/// the kernel generates it in one piece, so a short read is its end.
///
/// # Errors
/// As `pread` has them.
pub(crate) fn read_all<R>(
    file: &File,
    single: bool,
    use_text: impl FnOnce(&str) -> R,
) -> io::Result<R> {
    // Taken out, so that `use_text` may read another file.
    let mut buffer = BUFFER.take();
    if buffer.is_empty() {
        buffer.resize(16 * 1024, 0);
    }
    let length = read_into(file, single, &mut buffer);
    let result = length.map(|length| use_text(&String::from_utf8_lossy(&buffer[..length])));
    BUFFER.set(buffer);
    result
}

fn read_into(file: &File, single: bool, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let mut length = 0;
    loop {
        if length == buffer.len() {
            buffer.resize(buffer.len() * 2, 0);
        }
        let room = buffer.len() - length;
        match file.read_at(&mut buffer[length..], length as u64) {
            Ok(0) => return Ok(length),
            Ok(n) => {
                length += n;
                if single && n < room {
                    return Ok(length);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Dir {
    /// Path below the hierarchy's root, with a leading `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The hierarchy it is in.
    #[must_use]
    pub const fn hierarchy(&self) -> HierarchyIndex {
        self.hierarchy
    }

    /// v1 or v2.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The directory's inode number, which is the cgroup id: never used again within its
    /// hierarchy while the machine runs.
    #[must_use]
    pub const fn inode(&self) -> u64 {
        self.inode
    }

    /// Whether this is the root cgroup, which has no limits.
    #[must_use]
    pub fn is_root(&self) -> bool {
        &*self.path == "/"
    }

    /// The kept directory, for what needs a descriptor of a cgroup (eBPF maps, triggers).
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(&'static str, Slot)>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, file: &str, source: io::Error) -> ReadError {
        match source.raw_os_error() {
            Some(libc::ENODEV) => ReadError::Gone {
                path: self.path.to_string(),
            },
            _ => ReadError::Io {
                path: format!("{}/{file}", self.path.trim_end_matches('/')),
                source,
            },
        }
    }

    fn file(&self, name: &'static str) -> Result<Option<Arc<File>>, ReadError> {
        self.used
            .store(self.budget.epoch.load(Ordering::Relaxed), Ordering::Relaxed);
        let mut files = self.lock();
        let found = files.iter().find(|(known, _)| *known == name);
        match found.map(|(_, slot)| slot) {
            Some(Slot::Open(file)) => return Ok(Some(file.clone())),
            Some(Slot::Absent(since)) if since.elapsed() < ABSENT_FOR => return Ok(None),
            _ => {}
        }
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let open = || openat(&self.fd, name, flags, Mode::empty());
        let opened = match open() {
            Err(nix::Error::EMFILE | nix::Error::ENFILE) => {
                drop(files);
                self.make_room();
                files = self.lock();
                open()
            }
            opened => opened,
        };
        let slot = match opened {
            Ok(fd) => {
                self.budget.open.fetch_add(1, Ordering::Relaxed);
                Slot::Open(Arc::new(File::from(fd)))
            }
            Err(nix::Error::ENOENT) => {
                drop(files);
                // A removed cgroup has no files either; nobody must inherit from above then.
                if name != self.alive_file() && !self.is_alive() {
                    return Err(ReadError::Gone {
                        path: self.path.to_string(),
                    });
                }
                files = self.lock();
                Slot::Absent(Instant::now())
            }
            Err(error) => return Err(self.error(name, error.into())),
        };
        let opened = match &slot {
            Slot::Open(file) => Some(file.clone()),
            Slot::Absent(_) => None,
        };
        match files.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = slot,
            None => files.push((name, slot)),
        }
        drop(files);
        if self.budget.open.load(Ordering::Relaxed) > self.budget.limit {
            self.make_room();
        }
        Ok(opened)
    }

    fn make_room(&self) {
        if let Some(kept) = self.kept.upgrade() {
            kept.make_room();
        }
    }

    /// Reads `name`, a file the kernel generates in one piece. `None`: this cgroup has no
    /// such file (its controller is not enabled here).
    ///
    /// # Errors
    /// [`ReadError::Gone`] when the cgroup has been removed.
    pub fn read<R>(
        &self,
        name: &'static str,
        use_text: impl FnOnce(&str) -> R,
    ) -> Result<Option<R>, ReadError> {
        self.read_with(name, true, use_text)
    }

    fn read_with<R>(
        &self,
        name: &'static str,
        single: bool,
        use_text: impl FnOnce(&str) -> R,
    ) -> Result<Option<R>, ReadError> {
        let Some(file) = self.file(name)? else {
            return Ok(None);
        };
        match read_all(&file, single, use_text) {
            Ok(result) => Ok(Some(result)),
            // A controller disabled while the file is kept: EOPNOTSUPP or ENODEV, the
            // latter also when the whole cgroup went. Look again before giving up.
            Err(error)
                if error.raw_os_error() == Some(libc::EOPNOTSUPP)
                    || (error.raw_os_error() == Some(libc::ENODEV)
                        && name != self.alive_file()
                        && self.is_alive()) =>
            {
                self.forget(name);
                Ok(None)
            }
            Err(error) => Err(self.error(name, error)),
        }
    }

    /// Reads a list of task ids, which the kernel generates in pieces. The file is not kept.
    ///
    /// # Errors
    /// As [`Dir::read`].
    pub fn read_list<R>(
        &self,
        name: &'static str,
        use_text: impl FnOnce(&str) -> R,
    ) -> Result<Option<R>, ReadError> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(nix::Error::ENOENT) => return Ok(None),
            Err(error) => return Err(self.error(name, error.into())),
        };
        match read_all(&file, false, use_text) {
            Ok(result) => Ok(Some(result)),
            // cgroup.procs of a threaded cgroup.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(error) => Err(self.error(name, error)),
        }
    }

    const fn alive_file(&self) -> &'static str {
        match self.version {
            Version::V1 => v1::file::ALIVE,
            Version::V2 => v2::file::ALIVE,
        }
    }

    /// Whether the cgroup still exists.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        match self.read_with(self.alive_file(), true, |_| ()) {
            Ok(Some(())) => true,
            // A removed directory has no files any more; a captured tree may never have
            // had this one, but its directory is still linked.
            Ok(None) => {
                nix::sys::stat::fstat(&self.fd).is_ok_and(|stat| stat.st_nlink > 0)
                    && self.has_entries()
            }
            Err(_) => false,
        }
    }

    fn has_entries(&self) -> bool {
        nix::dir::Dir::openat(
            &self.fd,
            ".",
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .is_ok_and(|mut dir| {
            dir.iter().any(|entry| {
                entry.is_ok_and(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."))
            })
        })
    }

    /// Opens a file of this cgroup for writing too (PSI triggers); not kept.
    ///
    /// # Errors
    /// As `openat` has them.
    pub fn open_rw(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        Ok(openat(&self.fd, name, flags, Mode::empty())?)
    }

    fn forget(&self, name: &str) {
        let mut files = self.lock();
        if let Some(at) = files.iter().position(|(known, _)| *known == name)
            && let Slot::Open(_) = files.swap_remove(at).1
        {
            self.budget.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Closes every kept file; they are opened again when asked for.
    fn close_files(&self) -> usize {
        let mut files = self.lock();
        let closed = files
            .drain(..)
            .filter(|(_, slot)| matches!(slot, Slot::Open(_)))
            .count();
        self.budget.open.fetch_sub(closed, Ordering::Relaxed);
        closed
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        self.close_files();
        self.budget.open.fetch_sub(1, Ordering::Relaxed);
    }
}

type Dirs = HashMap<(HierarchyIndex, Box<str>), Arc<Dir>>;

/// A cgroup and its ancestors, nearest first, the root last.
pub type Chain = Arc<[Arc<Dir>]>;

/// All kept directories.
#[derive(Debug)]
pub struct Reader {
    roots: Vec<(Version, File)>,
    /// Path prefix of every mount point: `/` on the machine, a directory in tests.
    mount_points: Vec<PathBuf>,
    kept: Arc<Kept>,
}

/// The kept directories and what they cost.
#[derive(Debug)]
struct Kept {
    dirs: Mutex<Dirs>,
    budget: Arc<Budget>,
}

impl Reader {
    /// Opens the roots of `layout`, whose mount points are below `root` (`/` on the
    /// machine). At most about `descriptors` are kept.
    ///
    /// # Errors
    /// When a root cannot be opened.
    pub fn new(layout: &Layout, root: &Path, descriptors: usize) -> Result<Self, ReadError> {
        let mut roots = Vec::new();
        let mut mount_points = Vec::new();
        for hierarchy in &layout.hierarchies {
            let mount_point = below(root, &hierarchy.mount_point);
            let file = File::open(&mount_point).map_err(|source| ReadError::Io {
                path: mount_point.display().to_string(),
                source,
            })?;
            roots.push((hierarchy.version, file));
            mount_points.push(mount_point);
        }
        Ok(Self {
            roots,
            mount_points,
            kept: Arc::new(Kept {
                dirs: Mutex::default(),
                budget: Arc::new(Budget {
                    open: AtomicUsize::new(0),
                    limit: descriptors.max(64),
                    epoch: AtomicU64::new(1),
                }),
            }),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Dirs> {
        self.kept.lock()
    }

    /// Where a hierarchy is mounted, below the reader's root.
    #[must_use]
    pub fn mount_point(&self, hierarchy: HierarchyIndex) -> &Path {
        &self.mount_points[hierarchy]
    }

    /// The directory of one cgroup, opened if it is not kept yet.
    ///
    /// # Errors
    /// [`ReadError::Gone`] when there is no such cgroup.
    pub fn dir(&self, hierarchy: HierarchyIndex, path: &str) -> Result<Arc<Dir>, ReadError> {
        let known = self.lock().get(&(hierarchy, path.into())).cloned();
        if let Some(dir) = known {
            if dir.is_alive() {
                return Ok(dir);
            }
            // Another cgroup may have taken the name.
            self.forget(&dir);
        }
        let gone = || ReadError::Gone {
            path: path.to_owned(),
        };
        let (version, root) = self.roots.get(hierarchy).ok_or_else(gone)?;
        if path.split('/').any(|component| component == "..") {
            return Err(gone());
        }
        let relative = match path.trim_matches('/') {
            "" => ".",
            relative => relative,
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let open = || openat(root, relative, flags, Mode::empty());
        let fd = match open() {
            // Out of descriptors: the coldest make room.
            Err(nix::Error::EMFILE | nix::Error::ENFILE) => {
                self.kept.make_room();
                open()
            }
            opened => opened,
        }
        .map_err(|error| match error {
            nix::Error::ENOENT | nix::Error::ENODEV | nix::Error::ENOTDIR => gone(),
            error => ReadError::Io {
                path: path.to_owned(),
                source: error.into(),
            },
        })?;
        let file = File::from(fd);
        let inode = file
            .metadata()
            .map_err(|source| ReadError::Io {
                path: path.to_owned(),
                source,
            })?
            .ino();
        if self.kept.budget.open.fetch_add(1, Ordering::Relaxed) >= self.kept.budget.limit {
            self.kept.make_room();
        }
        let dir = Arc::new(Dir {
            hierarchy,
            version: *version,
            path: path.into(),
            fd: file.into(),
            inode,
            files: Mutex::default(),
            used: AtomicU64::new(self.kept.budget.epoch.load(Ordering::Relaxed)),
            budget: self.kept.budget.clone(),
            kept: Arc::downgrade(&self.kept),
        });
        self.lock().insert((hierarchy, path.into()), dir.clone());
        Ok(dir)
    }

    /// The cgroup at `path` and all its ancestors.
    ///
    /// # Errors
    /// [`ReadError::Gone`] when the cgroup does not exist.
    pub fn chain(&self, hierarchy: HierarchyIndex, path: &str) -> Result<Chain, ReadError> {
        let mut chain = Vec::new();
        let mut path = path.trim_end_matches('/');
        while !path.is_empty() {
            chain.push(self.dir(hierarchy, path)?);
            path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
        chain.push(self.dir(hierarchy, "/")?);
        Ok(chain.into())
    }

    /// Forgets a directory, so that the next [`Reader::dir`] opens what is there now.
    pub fn forget(&self, dir: &Dir) {
        let mut dirs = self.lock();
        let key = (dir.hierarchy, dir.path.clone());
        if dirs.get(&key).is_some_and(|kept| kept.inode == dir.inode) {
            dirs.remove(&key);
        }
    }

    /// How many descriptors are kept open.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        self.kept.budget.open.load(Ordering::Relaxed)
    }

    /// To be called now and then, `ticks` ticks of a clock after the last time: closes the
    /// files of cgroups that nobody has read for `idle` ticks, and forgets directories that
    /// nobody holds.
    pub fn sweep(&self, ticks: u64, idle: u64) {
        let epoch = &self.kept.budget.epoch;
        let now = epoch.fetch_add(ticks, Ordering::Relaxed) + ticks - 1;
        let mut dropped = Vec::new();
        self.lock().retain(|_, dir| {
            if now.saturating_sub(dir.used.load(Ordering::Relaxed)) < idle {
                return true;
            }
            dir.close_files();
            if Arc::strong_count(dir) > 1 {
                return true;
            }
            dropped.push(dir.clone());
            false
        });
        if self.descriptors() > self.kept.budget.limit {
            self.kept.make_room();
        }
    }
}

impl Kept {
    fn lock(&self) -> std::sync::MutexGuard<'_, Dirs> {
        self.dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the files of the coldest directories until a quarter of the budget is free.
    fn make_room(&self) {
        let mut dirs: Vec<_> = self.lock().values().cloned().collect();
        dirs.sort_by_key(|dir| dir.used.load(Ordering::Relaxed));
        self.budget.epoch.fetch_add(1, Ordering::Relaxed);
        let wanted = self.budget.limit / 4 * 3;
        for dir in dirs {
            if self.budget.open.load(Ordering::Relaxed) <= wanted {
                break;
            }
            dir.close_files();
            // Held by the map and by this loop only: nobody needs the directory either.
            let mut kept = self.lock();
            if Arc::strong_count(&dir) == 2 {
                kept.remove(&(dir.hierarchy, dir.path.clone()));
            }
        }
    }
}

/// `path` below `root`, whether or not it is absolute.
pub(crate) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests;
