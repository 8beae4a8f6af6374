//! Gathers what `/proc` says of one caller. Everything is read through one descriptor of
//! `/proc/TID`, so that a recycled thread id can never mix two tasks.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;

use crate::cgroup::layout::{Layout, namespace_root};
use crate::cgroup::reader::read_all;
use crate::host::position::HostNamespaces;
use crate::host::reader::HostReader;
use crate::host::task;

use super::boundary::Paths;
use super::pidfd;

/// A namespace held open, so that its inode number cannot be given to another one.
#[derive(Debug)]
pub struct Pin {
    fd: OwnedFd,
    /// Inode number.
    pub inode: u64,
}

impl AsFd for Pin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Inode numbers of a task's namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Namespaces {
    /// Cgroup namespace.
    pub cgroup: u64,
    /// PID namespace.
    pub pid: u64,
    /// Time namespace; `None` before 5.6.
    pub time: Option<u64>,
}

/// One task, held by its directory in `/proc`.
#[derive(Debug)]
pub struct Task {
    dir: OwnedFd,
    /// Its thread id.
    pub tid: u32,
}

impl Task {
    /// Takes hold of the task that has this id now.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn open(host: &HostReader, tid: u32) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = openat(
            host.proc_fd(),
            tid.to_string().as_str(),
            flags,
            Mode::empty(),
        )?;
        Ok(Self { dir, tid })
    }

    /// Opens one of its files.
    ///
    /// # Errors
    /// As `openat` has them; `ESRCH` when the task has exited.
    pub fn open_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(openat(&self.dir, name, flags, Mode::empty())?.into())
    }

    /// Reads one of its files.
    ///
    /// # Errors
    /// As `openat` and `pread` have them; `ESRCH` when the task has exited.
    pub fn read<R>(&self, name: &str, use_text: impl FnOnce(&str) -> R) -> io::Result<R> {
        read_all(&self.open_file(name)?, false, use_text)
    }

    fn namespace(&self, kind: &str) -> io::Result<u64> {
        let target = readlinkat(&self.dir, format!("ns/{kind}").as_str())?;
        target
            .to_str()
            .and_then(task::namespace_inode)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// Which namespaces it is in. Needs ptrace read access to the task.
    ///
    /// # Errors
    /// As `readlinkat` has them; `EACCES` under a security module that forbids it.
    pub fn namespaces(&self) -> io::Result<Namespaces> {
        Ok(Namespaces {
            cgroup: self.namespace("cgroup")?,
            pid: self.namespace("pid")?,
            time: self.namespace("time").ok(),
        })
    }

    /// Holds one of its namespaces, whose inode number is expected.
    ///
    /// # Errors
    /// As `openat` has them; `InvalidData` when the task has changed to another one.
    pub fn pin(&self, kind: &str, inode: u64) -> io::Result<Pin> {
        let file = self.open_file(&format!("ns/{kind}"))?;
        if file.metadata()?.ino() != inode {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        Ok(Pin {
            fd: file.into(),
            inode,
        })
    }

    /// Its start and state.
    ///
    /// # Errors
    /// As [`Task::read`].
    pub fn stat(&self) -> io::Result<task::TaskStat> {
        self.read("stat", task::TaskStat::parse)?
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// Its cgroups as the host sees them.
    ///
    /// # Errors
    /// As [`Task::read`]; `ENAMETOOLONG` for a path beyond the kernel's `PATH_MAX`.
    pub fn cgroups(&self, layout: &Layout) -> io::Result<Paths> {
        self.read("cgroup", |text| layout.paths(text))
    }

    /// The boottime offset of its time namespace, in nanoseconds.
    #[must_use]
    pub fn boottime_offset(&self) -> Option<i64> {
        self.read("timens_offsets", task::boottime_offset).ok()?
    }
}

/// The root of a cgroup namespace in every hierarchy, learnt from one process in it: a
/// thread of ours joins the namespace for a moment and reads that process's cgroups from
/// there. No process is made, and no thread that serves requests ever changes namespace.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`; `InvalidData` when the process was moved out of the
/// namespace's root.
pub fn cgroup_namespace_root(
    task: &Task,
    namespace: &Arc<Pin>,
    layout: &Layout,
    host_paths: &Paths,
) -> io::Result<Paths> {
    let inside = std::thread::scope(|scope| {
        let join = std::thread::Builder::new()
            .name("lxcfs-cgroupns".to_owned())
            .spawn_scoped(scope, || {
                setns(namespace.as_ref(), CloneFlags::CLONE_NEWCGROUP)?;
                task.cgroups(layout)
            })?
            .join();
        join.unwrap_or_else(|_| Err(io::Error::other("the joining thread panicked")))
    })?;
    roots(host_paths, &inside).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The same where joining the namespace is not allowed, from what the process has mounted.
///
/// # Errors
/// As [`Task::read`]; `InvalidData` when nothing there tells it.
pub fn cgroup_namespace_root_by_mounts(
    task: &Task,
    layout: &Layout,
    host_paths: &Paths,
) -> io::Result<Paths> {
    task.read("mountinfo", |text| layout.mounted_roots(text, host_paths))?
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Pairs both sights of one process. Pure. `None` when no hierarchy tells the root.
fn roots(host_paths: &Paths, inside: &Paths) -> Option<Paths> {
    let roots: Paths = host_paths
        .iter()
        .zip(inside)
        .map(|(host, inside)| {
            let root = namespace_root(host.as_deref()?, inside.as_deref()?)?;
            Some(root.into())
        })
        .collect();
    roots.iter().any(Option::is_some).then_some(roots)
}

/// The init of the PID namespace that `task` is in, by its id in ours.
///
/// The kernel translates since 6.11. Before that, the namespace's processes are looked
/// through: parents first, because a container's process descends from its init; then all
/// processes of the machine, for one that was put into the namespace from outside.
///
/// # Errors
/// `NotFound` when the namespace has no init any more.
pub fn namespace_init(
    host: &HostReader,
    task: &Task,
    namespace: &Pin,
) -> io::Result<(u32, InitSource)> {
    match pidfd::process_in_namespace(namespace, 1) {
        Ok(init) => return Ok((init, InitSource::Ioctl)),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        Err(_) => {}
    }
    if let Some(init) = init_among_ancestors(host, task, namespace.inode) {
        return Ok((init, InitSource::Ancestors));
    }
    host.proc_numbers(".")?
        .into_iter()
        .find(|pid| Task::open(host, *pid).is_ok_and(|task| is_init_of(&task, namespace.inode)))
        .map(|pid| (pid, InitSource::Scan))
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// How an init was found; anything but the first is a fallback worth counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitSource {
    /// The kernel translated.
    Ioctl,
    /// Following parents.
    Ancestors,
    /// Looking through every process.
    Scan,
}

fn is_init_of(task: &Task, namespace: u64) -> bool {
    task.namespace("pid").is_ok_and(|inode| inode == namespace)
        && task
            .read("status", task::ns_pids)
            .is_ok_and(|pids| pids.is_some_and(|pids| pids.last() == Some(&1)))
}

fn init_among_ancestors(host: &HostReader, task: &Task, namespace: u64) -> Option<u32> {
    if is_init_of(task, namespace) {
        return task.read("status", task::tgid).ok()?;
    }
    let mut parent = task.stat().ok()?.ppid;
    // A process tree deeper than this is hostile; the scan still answers.
    for _ in 0..64 {
        if parent == 0 {
            return None;
        }
        let task = Task::open(host, parent).ok()?;
        if is_init_of(&task, namespace) {
            return Some(parent);
        }
        parent = task.stat().ok()?.ppid;
    }
    None
}

/// Whether a namespace is another than the daemon's.
#[must_use]
pub fn is_foreign(own: &HostNamespaces, namespaces: &Namespaces) -> [bool; 3] {
    [
        namespaces.cgroup != own.cgroup,
        namespaces.pid != own.pid,
        namespaces.time.is_some() && namespaces.time != own.time,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_task_is_in_our_own_namespaces() {
        let host = HostReader::live().unwrap();
        let own = crate::host::position::own_namespaces(&host).unwrap();
        let task = Task::open(&host, std::process::id()).unwrap();
        let namespaces = task.namespaces().unwrap();
        assert_eq!(is_foreign(&own, &namespaces), [false; 3]);
        assert!(task.stat().unwrap().start.0 > 0);
        assert!(Task::open(&host, 0).is_err());
    }

    #[test]
    fn a_namespace_that_nobody_is_in_has_no_init() {
        let host = HostReader::live().unwrap();
        let task = Task::open(&host, std::process::id()).unwrap();
        let inode = task.namespaces().unwrap().pid;
        assert_eq!(init_among_ancestors(&host, &task, inode + 1), None);
        assert!(task.pin("pid", inode + 1).is_err());
    }
}
