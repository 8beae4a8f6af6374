//! Owns the mounts inside containers: which of them should exist (`plan`, pure), making
//! and removing them with the kernel's mount calls (`apply`), and finding the mount
//! namespaces to visit (`discover`). Serving the files is left to the daemon.
//!
//! Nothing in a container's image is used and no program is run in it. A container can
//! lie only to itself: every target is an open file of the container's own namespace,
//! checked to be the expected place of a real procfs or sysfs, or a dead mount of this
//! file system, before anything is attached there.

pub mod apply;
pub mod discover;
pub mod engine;
pub mod identity;
pub mod plan;
pub mod probe;
pub mod report;
pub mod select;

pub use discover::{Discovered, Scan};
pub use engine::{Engine, EngineOptions, Target};
pub use plan::{Action, Goal, Skip, Step};
pub use report::{ContainerReport, Outcome, Report, StepReport};
pub use select::Selection;

/// The type the kernel shows for mounts of this file system: C lxcfs uses it too, so that
/// its dead mounts are recognised and adopted.
pub const FS_TYPE: &str = "fuse.lxcfs";

/// Why nothing could be done for a container, or at all.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// A file of procfs could not be used.
    #[error("{path}: {source}")]
    Io {
        /// What was opened or read.
        path: std::path::PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A system call failed.
    #[error("{call}: {source}")]
    Call {
        /// Name of the system call and what it was for.
        call: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The mount table of a process is not what the kernel writes.
    #[error("/proc/{pid}/mountinfo: {source}")]
    Mountinfo {
        /// The process.
        pid: u32,
        /// The offending line.
        source: crate::mountinfo::ParseError,
    },
    /// The mount table is larger than this program is willing to read.
    #[error("/proc/{pid}/mountinfo has more than {limit} bytes: container skipped")]
    MountFlood {
        /// The process.
        pid: u32,
        /// Bytes read before giving up.
        limit: u64,
    },
    /// No usable mount to attach from.
    #[error(
        "{path} is not a live lxcfs mount ({found}); start the daemon there or name its mountpoint with --mount"
    )]
    NotServed {
        /// The directory given.
        path: std::path::PathBuf,
        /// What is there instead.
        found: String,
    },
    /// The process ended, or its number belongs to another one now.
    #[error("process {pid} is gone")]
    Gone {
        /// The process.
        pid: u32,
    },
    /// The process shares the host's mount namespace.
    #[error(
        "process {pid} is in the host's mount namespace: attaching there would change the host"
    )]
    HostNamespace {
        /// The process.
        pid: u32,
    },
    /// A file name that is not in the catalogue.
    #[error("no virtual file is called {name:?}; known: {known}")]
    UnknownFile {
        /// As given.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// No container matches.
    #[error("no running container has an id that begins with {id:?}")]
    UnknownContainer {
        /// As given.
        id: String,
    },
    /// An id prefix fits more than one container.
    #[error("{id:?} fits several containers: {found}")]
    AmbiguousContainer {
        /// As given.
        id: String,
        /// The ids that fit.
        found: String,
    },
    /// The thread could not come back from a container's namespace and must end.
    #[error("setns back to the host: {0}")]
    Stranded(nix::errno::Errno),
    /// The container was not finished in its time.
    #[error("not finished within {0:?}")]
    Deadline(std::time::Duration),
}

impl AttachError {
    /// The metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Io { .. } => "procfs",
            Self::Call { .. } => "system-call",
            Self::Mountinfo { .. } => "mountinfo",
            Self::MountFlood { .. } => "mount-flood",
            Self::NotServed { .. } => "not-served",
            Self::Gone { .. } => "gone",
            Self::HostNamespace { .. } => "host-namespace",
            Self::UnknownFile { .. } => "unknown-file",
            Self::UnknownContainer { .. } => "unknown-container",
            Self::AmbiguousContainer { .. } => "ambiguous-container",
            Self::Stranded(_) => "stranded",
            Self::Deadline(_) => "deadline",
        }
    }

    pub(crate) fn io(
        path: impl Into<std::path::PathBuf>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::Io {
            path: path.into(),
            source: source.into(),
        }
    }

    pub(crate) fn call(call: &'static str, source: impl Into<std::io::Error>) -> Self {
        Self::Call {
            call,
            source: source.into(),
        }
    }
}
