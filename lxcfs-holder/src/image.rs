//! The program a worker runs: an open executable, so that replacing the file on disk changes
//! nothing until an upgrade is asked for, and the previous one stays startable.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// An executable kept open.
pub(crate) struct Image {
    file: OwnedFd,
    /// Where it was found; for messages, and where an upgrade looks by default.
    pub(crate) path: PathBuf,
    identity: (u64, u64),
}

impl Image {
    /// Opens the executable at `path`; an empty path means this program.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let own = path.as_os_str().is_empty();
        let file = File::open(if own {
            Path::new("/proc/self/exe")
        } else {
            path
        })?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
            return Err(io::Error::other("is not an executable file"));
        }
        let path = if own {
            on_disk(&std::fs::read_link("/proc/self/exe")?)
        } else {
            path.into()
        };
        Ok(Self {
            file: crate::fd::high(file.into())?,
            path,
            identity: (metadata.dev(), metadata.ino()),
        })
    }

    /// An executable that an earlier program of this process kept open.
    pub(crate) fn adopt(fd: RawFd) -> io::Result<Self> {
        let file = File::from(crate::fd::inherited(fd)?);
        let metadata = file.metadata()?;
        Ok(Self {
            path: on_disk(&std::fs::read_link(format!("/proc/self/fd/{fd}"))?),
            file: file.into(),
            identity: (metadata.dev(), metadata.ino()),
        })
    }

    /// Its descriptor.
    pub(crate) fn number(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// A path that starts this very file.
    pub(crate) fn exec_path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Whether both are the same file on disk.
    pub(crate) fn same_file(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

/// Undoes what the kernel appends to the link of a replaced executable.
fn on_disk(link: &Path) -> PathBuf {
    let bytes = link.as_os_str().as_bytes();
    let bytes = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    OsString::from_vec(bytes.to_vec()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_an_image_and_a_directory_is_not() {
        let own = Image::open(Path::new("")).unwrap();
        assert!(own.same_file(&Image::open(&own.path).unwrap()));
        assert!(Image::open(Path::new("/")).is_err());
        assert_eq!(
            on_disk(Path::new("/usr/bin/lxcfs (deleted)")),
            Path::new("/usr/bin/lxcfs")
        );
    }
}
