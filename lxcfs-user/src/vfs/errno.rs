//! Errno: chosen here and nowhere else.

use crate::engine::AnswerError;

/// An error number as a system call returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// Why the file system itself, not the engine, refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such name or inode.
    NotFound,
    /// A file where a directory is needed.
    NotADirectory,
    /// A directory where a file is needed.
    IsADirectory,
    /// Not a symbolic link; also data that makes no sense for the file.
    Invalid,
    /// These files cannot be written.
    ReadOnlyFile,
    /// The tree cannot be changed.
    FixedTree,
    /// The operation does not exist on these files.
    Unsupported,
    /// No ioctl is known.
    NoIoctl,
    /// The file has a trigger already (`psi_write`).
    Busy,
    /// Too many triggers.
    TooMany,
}

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Self {
        Self(match refusal {
            Refusal::NotFound => libc::ENOENT,
            Refusal::NotADirectory => libc::ENOTDIR,
            Refusal::IsADirectory => libc::EISDIR,
            Refusal::Invalid => libc::EINVAL,
            Refusal::ReadOnlyFile => libc::EACCES,
            Refusal::FixedTree => libc::EPERM,
            Refusal::Unsupported => libc::EOPNOTSUPP,
            Refusal::NoIoctl => libc::ENOTTY,
            Refusal::Busy => libc::EBUSY,
            Refusal::TooMany => libc::ENOSPC,
        })
    }
}

impl From<&AnswerError> for Errno {
    fn from(error: &AnswerError) -> Self {
        Self(match error {
            AnswerError::Caller { .. } | AnswerError::Gone { .. } | AnswerError::Io { .. } => {
                libc::EIO
            }
            AnswerError::Absent(_) => libc::ENOENT,
            AnswerError::Invalid(_) => libc::EINVAL,
        })
    }
}

impl From<AnswerError> for Errno {
    fn from(error: AnswerError) -> Self {
        Self::from(&error)
    }
}

impl From<std::io::Error> for Errno {
    /// What the kernel said about a trigger is what its owner must hear.
    fn from(error: std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}
