//! Cgroup directories below one that is open.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Deeper trees of cgroups are not followed below this.
pub(super) const MAX_DEPTH: u32 = 64;

/// Child directories, opened for reading.
pub(super) fn children(directory: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    // kernfs counts a directory's links as 2 and one for each child, so that one without
    // need not be listed: a listing costs ten times as much as this.
    if nix::sys::stat::fstat(directory)?.st_nlink == 2 {
        return Ok(Vec::new());
    }
    let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_DIRECTORY;
    let mode = nix::sys::stat::Mode::empty();
    let mut listing = nix::dir::Dir::openat(directory, ".", flags, mode)?;
    let mut found = Vec::new();
    for entry in listing.iter() {
        let entry = entry?;
        let name = entry.file_name();
        let is_child = entry.file_type() == Some(nix::dir::Type::Directory)
            && !matches!(name.to_bytes(), b"." | b"..");
        if is_child && let Ok(child) = nix::fcntl::openat(directory, name, flags, mode) {
            found.push(child);
        }
    }
    Ok(found)
}

/// A cgroup's id: the inode number of its directory.
pub(super) fn id(directory: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(nix::sys::stat::fstat(directory)?.st_ino)
}

/// Ids of the cgroup and everything below it.
pub(super) fn ids(directory: BorrowedFd<'_>) -> io::Result<HashSet<u64>> {
    let mut ids = HashSet::from([id(directory)?]);
    add_below(directory, &mut ids, 0)?;
    Ok(ids)
}

fn add_below(directory: BorrowedFd<'_>, ids: &mut HashSet<u64>, depth: u32) -> io::Result<()> {
    if depth == MAX_DEPTH {
        return Ok(());
    }
    for child in children(directory)? {
        ids.insert(id(child.as_fd())?);
        add_below(child.as_fd(), ids, depth + 1)?;
    }
    Ok(())
}
