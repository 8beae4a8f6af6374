//! The seam between serving (FUSE, open files, failover) and answering (who is the
//! caller, what does its container show).
//!
//! The serving side knows inodes, handles and errno; the answering side knows containers.
//! Neither knows the other's insides, so `lxcfs show` answers without a mount and the
//! failover tests serve without a container.

use std::os::fd::OwnedFd;

use lxcfs_common::catalogue::{FileId, Node};

use crate::cpuset::CpuSet;

/// Who asks: what the kernel puts into every FUSE request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Thread id in the PID namespace of the mount; 0 if the caller is not visible there.
    pub tid: u32,
    /// Effective uid; not to be relied on (idmapped mounts give an overflow value).
    pub uid: u32,
}

/// Why a request has no answer. One function of the serving side turns it into an errno.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The caller cannot be told (foreign PID namespace, exited): EIO, counted.
    #[error("caller {tid} cannot be resolved: {reason}")]
    Caller {
        /// The thread id as received.
        tid: u32,
        /// Which step failed.
        reason: &'static str,
    },
    /// The container's cgroup is gone and there is no earlier answer: EIO.
    #[error("cgroup {path} is gone")]
    Gone {
        /// Path of the cgroup.
        path: String,
    },
    /// The kernel, or this container, has no such file: ENOENT.
    #[error("not available: {0}")]
    Absent(&'static str),
    /// The request itself is malformed (PSI trigger text): EINVAL.
    #[error("invalid request: {0}")]
    Invalid(&'static str),
    /// Reading a source failed: EIO.
    #[error("reading {path}")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Answers for callers. Every method may be called from any serving thread and must
/// return within the request bound: no waiting on the control side, no process spawned.
pub trait Engine: Send + Sync {
    /// Appends to `out` what `caller` reads in `node` (a file).
    ///
    /// # Errors
    /// See [`AnswerError`]; `out` may then hold a partial text, which must be dropped.
    fn render(&self, caller: Caller, node: Node, out: &mut Vec<u8>) -> Result<(), AnswerError>;

    /// The CPU numbers that `caller` sees as `cpuN` directories.
    ///
    /// # Errors
    /// See [`AnswerError`].
    fn visible_cpus(&self, caller: Caller) -> Result<CpuSet, AnswerError>;

    /// The NUMA node numbers that `caller` sees as `nodeN` directories.
    ///
    /// # Errors
    /// See [`AnswerError`].
    fn visible_nodes(&self, caller: Caller) -> Result<CpuSet, AnswerError>;

    /// Every CPU number that anybody may see: what LOOKUP answers for, because entries are
    /// cached by the kernel for all callers alike.
    fn possible_cpus(&self) -> CpuSet;

    /// Every NUMA node number that anybody may see.
    fn possible_nodes(&self) -> CpuSet;

    /// Whether this machine has `node` at all: a PSI file without PSI, or a topology file that
    /// the kernel does not know, is neither listed nor found.
    fn exists(&self, node: Node) -> bool;

    /// Whether `node` can be found and is listed: not what the operator switched off. Who has
    /// it already, bound into a container, goes on reading: the host's text.
    fn is_offered(&self, node: Node) -> bool;

    /// Opens the caller's own cgroup pressure file for a trigger.
    ///
    /// # Errors
    /// See [`AnswerError`].
    fn open_pressure(&self, caller: Caller, id: FileId) -> Result<OwnedFd, AnswerError>;
}
