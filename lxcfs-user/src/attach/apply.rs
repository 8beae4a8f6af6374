//! Owns the mount calls: entering one container's mount namespace with a thread, carrying
//! out its steps there, and coming back.
//!
//! Everything is done on open descriptors. Paths of the container are walked without
//! symlinks (`openat2`), and what was reached is compared with the plan by mount id before
//! it is touched, so a container that rearranges its mounts meanwhile gets an error.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::AttachError;
use super::discover::MountNs;
use super::plan::{Action, Skip, Step};
use super::report::{Outcome, StepReport};
use crate::mountinfo::MountId;

const PROC_MAGIC: i64 = 0x9fa0;
const SYSFS_MAGIC: i64 = 0x6265_6572;

/// How a file below an open directory is reached: in it, without any symlink.
fn open_path(dir: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let below = path.strip_prefix("/").unwrap_or(path);
    let below = if below.as_os_str().is_empty() {
        Path::new(".")
    } else {
        below
    };
    rustix::fs::openat2(
        dir,
        below,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::BENEATH,
    )
}

/// A process whose mount namespace is to be changed, held so that its number cannot come
/// to mean another one.
#[derive(Debug)]
pub struct Entered {
    /// The process.
    pub pid: u32,
    dir: OwnedFd,
    pidfd: OwnedFd,
    root: OwnedFd,
    ns: OwnedFd,
}

impl Entered {
    /// Takes hold of a process. `expected` is the namespace it was discovered in.
    ///
    /// # Errors
    /// The process is gone, has moved, or is in one of the `host` namespaces.
    pub fn open(
        pid: u32,
        expected: Option<MountNs>,
        host: &[MountNs],
    ) -> Result<Self, AttachError> {
        let gone = |path: &str, err: Errno| match err {
            Errno::NOENT | Errno::SRCH => AttachError::Gone { pid },
            err => AttachError::io(format!("/proc/{pid}{path}"), err),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())
            .map_err(|err| gone("", err))?;
        let number = i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let pidfd = rustix::process::pidfd_open(
            number.ok_or(AttachError::Gone { pid })?,
            rustix::process::PidfdFlags::empty(),
        )
        .map_err(|err| match err {
            Errno::SRCH => AttachError::Gone { pid },
            err => AttachError::call("pidfd_open", err),
        })?;
        let ns = rustix::fs::openat(
            &dir,
            "ns/mnt",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|err| gone("/ns/mnt", err))?;
        let root = rustix::fs::openat(&dir, "root", flags, Mode::empty())
            .map_err(|err| gone("/root", err))?;
        let inode = rustix::fs::fstat(&ns)
            .map_err(|err| gone("/ns/mnt", err))?
            .st_ino;
        if host.contains(&MountNs(inode)) {
            return Err(AttachError::HostNamespace { pid });
        }
        // The directory and the pidfd were opened one after the other: both are of one
        // process only if that process is alive now.
        let entered = Self {
            pid,
            dir,
            pidfd,
            root,
            ns,
        };
        if expected.is_some_and(|expected| expected != MountNs(inode)) || !entered.is_alive() {
            return Err(AttachError::Gone { pid });
        }
        Ok(entered)
    }

    /// Takes `root`, a path without symlinks below the present one, as the container's root.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn descend(&mut self, root: &Path) -> Result<(), AttachError> {
        self.root = open_path(self.root.as_fd(), root).map_err(|err| AttachError::io(root, err))?;
        Ok(())
    }

    /// Whether the process still runs.
    pub fn is_alive(&self) -> bool {
        let mut fds = [nix::poll::PollFd::new(
            self.pidfd.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        // A pidfd becomes readable when its process ends.
        let ended = nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO);
        matches!(ended, Ok(0)) && {
            let status = rustix::fs::openat(
                &self.dir,
                "stat",
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            );
            status.is_ok()
        }
    }

    /// A file of the process's directory in procfs, up to `limit` bytes.
    ///
    /// # Errors
    /// The process is gone, or the file is larger.
    pub fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, AttachError> {
        let fd = rustix::fs::openat(
            &self.dir,
            name,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let fd = fd.map_err(|err| match err {
            Errno::NOENT | Errno::SRCH => AttachError::Gone { pid: self.pid },
            err => AttachError::io(format!("/proc/{}/{name}", self.pid), err),
        })?;
        let mut text = Vec::new();
        File::from(fd)
            .take(limit + 1)
            .read_to_end(&mut text)
            .map_err(|err| AttachError::io(format!("/proc/{}/{name}", self.pid), err))?;
        if text.len() as u64 > limit {
            return Err(AttachError::MountFlood {
                pid: self.pid,
                limit,
            });
        }
        Ok(text)
    }

    /// The root of whatever is mounted at `path` in the container, from outside.
    pub(super) fn open_path(&self, path: &Path) -> Option<OwnedFd> {
        open_path(self.root.as_fd(), path).ok()
    }
}

/// A thread prepared to visit mount namespaces: it no longer shares its root and current
/// directory with the rest of the program.
pub struct Visitor {
    home: OwnedFd,
    /// `/proc/thread-self/fd` of the host: a mount is named to `umount2` by descriptor.
    fds: OwnedFd,
    fdinfo: OwnedFd,
    /// A descriptor per thread only: this type must stay on the thread that made it.
    _this_thread: std::marker::PhantomData<*const ()>,
}

impl Visitor {
    /// Prepares the calling thread. It stays usable for ordinary work, except that its
    /// current directory is its own from now on.
    ///
    /// # Errors
    /// The kernel refuses, or procfs is not mounted.
    pub fn new() -> Result<Self, AttachError> {
        unshare(CloneFlags::CLONE_FS).map_err(|err| AttachError::call("unshare(CLONE_FS)", err))?;
        let open = |path: &'static str, flags: OFlags| {
            rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
                .map_err(|err| AttachError::io(path, err))
        };
        let dir = OFlags::PATH | OFlags::DIRECTORY;
        let fds = open("/proc/thread-self/fd", dir)?;
        let magic = rustix::fs::fstatfs(&fds).map_err(|err| AttachError::io("/proc", err))?;
        if magic.f_type as i64 != PROC_MAGIC {
            return Err(AttachError::io("/proc/thread-self/fd", Errno::NODEV));
        }
        Ok(Self {
            home: open("/proc/thread-self/ns/mnt", OFlags::RDONLY)?,
            fds,
            fdinfo: open("/proc/thread-self/fdinfo", dir)?,
            _this_thread: std::marker::PhantomData,
        })
    }

    /// The id of the mount a descriptor is on.
    pub(super) fn mount_id(&self, fd: BorrowedFd<'_>) -> Option<MountId> {
        let info = rustix::fs::openat(
            &self.fdinfo,
            fd.as_raw_fd().to_string(),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let mut text = String::new();
        File::from(info.ok()?).read_to_string(&mut text).ok()?;
        let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
        id.trim().parse().ok().map(MountId)
    }

    /// Carries out `steps` in the namespace of `target`. `source` is the root of the mount
    /// to attach from; it may be missing when no step attaches. Steps after `cancelled`
    /// became true are not begun.
    ///
    /// # Errors
    /// The namespace cannot be entered. What fails inside is told per step.
    pub fn apply(
        &self,
        target: &Entered,
        source: Option<BorrowedFd<'_>>,
        steps: &[Step],
        gapless: bool,
        cancelled: &AtomicBool,
    ) -> Result<Vec<StepReport>, AttachError> {
        // Clones are made here: the source is not in the container's namespace.
        let clones: Vec<Option<Result<OwnedFd, Errno>>> = steps
            .iter()
            .map(|step| match &step.action {
                Action::Attach { source: file, .. } | Action::Replace { source: file, .. } => {
                    Some(source.map_or(Err(Errno::NOTCONN), |source| clone_of(source, file)))
                }
                Action::Detach { .. } | Action::Skip(_) => None,
            })
            .collect();
        let idle = steps
            .iter()
            .all(|step| matches!(step.action, Action::Skip(_)));
        if idle {
            return Ok(steps.iter().map(StepReport::planned).collect());
        }
        setns(&target.ns, CloneFlags::CLONE_NEWNS)
            .map_err(|err| AttachError::call("setns(CLONE_NEWNS)", err))?;
        let inside = Inside {
            visitor: self,
            root: target.root.as_fd(),
            gapless,
        };
        let reports = steps
            .iter()
            .zip(clones)
            .map(|(step, clone)| {
                let outcome = if cancelled.load(Ordering::Relaxed) {
                    failed("deadline passed before this step")
                } else if target.is_alive() {
                    inside.step(step, clone)
                } else {
                    failed("the process ended")
                };
                StepReport {
                    path: step.path.clone(),
                    outcome,
                }
            })
            .collect();
        setns(&self.home, CloneFlags::CLONE_NEWNS).map_err(AttachError::Stranded)?;
        Ok(reports)
    }
}

/// A detached copy of one file or directory of our mount, ready to be attached.
fn clone_of(source: BorrowedFd<'_>, file: &Path) -> Result<OwnedFd, Errno> {
    let found = open_path(source, file)?;
    rustix::mount::open_tree(
        &found,
        c"",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH,
    )
}

fn failed(what: impl std::fmt::Display) -> Outcome {
    Outcome::Failed {
        error: what.to_string(),
    }
}

/// The thread while it is in the container's namespace.
struct Inside<'a> {
    visitor: &'a Visitor,
    root: BorrowedFd<'a>,
    gapless: bool,
}

impl Inside<'_> {
    fn step(&self, step: &Step, clone: Option<Result<OwnedFd, Errno>>) -> Outcome {
        let done = match (&step.action, clone) {
            (Action::Skip(skip), _) => Ok(Outcome::Skipped(skip.clone())),
            (_, Some(Err(Errno::NOENT))) => Ok(Outcome::Skipped(Skip::NotServed)),
            (_, Some(Err(err))) => Err(format!("open_tree of our file: {err}")),
            (Action::Attach { base, .. }, Some(Ok(clone))) => {
                self.attach(&step.path, *base, &clone)
            }
            (Action::Replace { dead, .. }, Some(Ok(clone))) => {
                self.replace(&step.path, dead, &clone)
            }
            (Action::Detach { mounts }, _) => self
                .detach_all(&step.path, mounts)
                .map(|()| Outcome::Detached),
            (Action::Attach { .. } | Action::Replace { .. }, None) => {
                Err("no source to attach from".to_owned())
            }
        };
        done.unwrap_or_else(failed)
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        open_path(self.root, path)
    }

    /// Opens what is mounted at `path` and insists that it is the mount of the plan.
    fn open_mount(&self, path: &Path, expected: MountId) -> Result<OwnedFd, String> {
        let fd = self.open(path).map_err(|err| format!("openat2: {err}"))?;
        match self.visitor.mount_id(fd.as_fd()) {
            Some(found) if found == expected => Ok(fd),
            found => Err(format!(
                "the container changed its mounts meanwhile (expected mount {}, found {})",
                expected.0,
                found.map_or(0, |id| id.0)
            )),
        }
    }

    /// Insists on a real procfs or sysfs below `/proc` and `/sys`.
    fn check_kernel_fs(path: &Path, fd: &OwnedFd) -> Result<(), String> {
        let expected = match path {
            path if path.starts_with("/proc") => PROC_MAGIC,
            path if path.starts_with("/sys") => SYSFS_MAGIC,
            _ => return Ok(()),
        };
        let found = rustix::fs::fstatfs(fd).map_err(|err| format!("fstatfs: {err}"))?;
        if found.f_type as i64 == expected {
            return Ok(());
        }
        Err(format!(
            "target is not on the kernel's file system (type {:#x})",
            found.f_type
        ))
    }

    fn attach(&self, path: &Path, base: MountId, clone: &OwnedFd) -> Result<Outcome, String> {
        match self.open(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Outcome::Skipped(Skip::NoSuchFile)),
            Err(err) => return Err(format!("openat2: {err}")),
            Ok(_) => {}
        }
        let target = self.open_mount(path, base)?;
        Self::check_kernel_fs(path, &target)?;
        move_onto(clone, &target).map_err(|err| format!("move_mount: {err}"))?;
        Ok(Outcome::Attached)
    }

    fn replace(&self, path: &Path, dead: &[MountId], clone: &OwnedFd) -> Result<Outcome, String> {
        let Some((&last, above)) = dead.split_last() else {
            return Err("nothing to replace".to_owned());
        };
        // Upper dead layers go first; the last one still answers ENOTCONN, never the
        // host's value.
        self.detach_all(path, above)?;
        let target = self.open_mount(path, last)?;
        if self.gapless && move_beneath(clone, &target).is_ok() {
            return match self.detach(&target) {
                Ok(()) => Ok(Outcome::Replaced { gapless: true }),
                Err(err) => Err(format!("umount2 of the dead mount: {err}")),
            };
        }
        match self.detach(&target) {
            Ok(()) => {}
            // Inherited from a more privileged namespace: locked for ever.
            Err(nix::errno::Errno::EINVAL) => {
                return move_onto(clone, &target)
                    .map(|()| Outcome::Covered)
                    .map_err(|err| format!("move_mount over a locked mount: {err}"));
            }
            Err(err) => return Err(format!("umount2 of the dead mount: {err}")),
        }
        let below = self.open(path).map_err(|err| format!("openat2: {err}"))?;
        Self::check_kernel_fs(path, &below)?;
        move_onto(clone, &below).map_err(|err| format!("move_mount: {err}"))?;
        Ok(Outcome::Replaced { gapless: false })
    }

    fn detach_all(&self, path: &Path, mounts: &[MountId]) -> Result<(), String> {
        for &mount in mounts {
            let target = self.open_mount(path, mount)?;
            self.detach(&target)
                .map_err(|err| format!("umount2: {err}"))?;
        }
        Ok(())
    }

    /// Lazily unmounts exactly the mount that `fd` is the root of, whatever lies on its
    /// path by now: `umount2` follows the descriptor's link in the host's procfs.
    fn detach(&self, fd: &OwnedFd) -> Result<(), nix::errno::Errno> {
        nix::unistd::fchdir(&self.visitor.fds)?;
        let name = PathBuf::from(fd.as_raw_fd().to_string());
        let done = umount2(&name, MntFlags::MNT_DETACH);
        // Holding the container's directory tree as current directory is of no use.
        nix::unistd::fchdir(&self.visitor.fds)?;
        done
    }
}

fn move_onto(clone: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    move_clone(clone, target, MoveMountFlags::empty())
}

/// Kernel 6.5 and later; older ones answer `EINVAL`.
fn move_beneath(clone: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    move_clone(clone, target, MoveMountFlags::MOVE_MOUNT_BENEATH)
}

fn move_clone(clone: &OwnedFd, target: &OwnedFd, flags: MoveMountFlags) -> Result<(), Errno> {
    rustix::mount::move_mount(
        clone,
        c"",
        target,
        c"",
        flags | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}
