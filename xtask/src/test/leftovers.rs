//! What tests that were killed left on this machine. Every container of the next tests would start
//! with a copy of it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::stat;

/// Mount points of our file system. Pure.
fn mount_points(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split_once(" - "))
        .filter(|(_, source)| source.starts_with("fuse.lxcfs "))
        .filter_map(|(place, _)| place.split(' ').nth(4).map(PathBuf::from))
        .collect()
}

/// Whether tests mount here: in directories of theirs, among temporary files. Pure.
fn is_of_tests(point: &Path, temporary: &Path) -> bool {
    let below = point.strip_prefix(temporary).ok();
    let first = below.and_then(|below| below.iter().next());
    first.is_some_and(|name| name.to_string_lossy().starts_with("lxcfs-"))
}

/// Unmounts dead mounts of earlier tests.
///
/// # Errors
/// When there is a dead mount that is nobody's business but the user's: tests that heal would
/// take it for theirs.
pub(super) fn sweep() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    for point in mount_points(&mounts) {
        if stat(&point) != Err(Errno::ENOTCONN) {
            continue;
        }
        let shown = point.display();
        if !is_of_tests(&point, &std::env::temp_dir()) {
            bail!(
                "{shown} is the mount of an lxcfs that died; the tests would heal it. \
                 Unmount it first: umount -l {shown}"
            );
        }
        umount2(&point, MntFlags::MNT_DETACH).with_context(|| format!("unmounting {shown}"))?;
        println!("unmounted {shown}, which tests that were killed left");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_tests_are_removed() {
        let text = "97 27 0:41 / /tmp/lxcfs-serveX/mnt rw - fuse.lxcfs lxcfs rw,user_id=0\n\
                    98 27 0:42 / /var/lib/lxcfs rw shared:3 - fuse.lxcfs lxcfs rw\n\
                    99 27 0:43 / /tmp/other rw - ext4 /dev/vda rw\n";
        let points = mount_points(text);
        assert_eq!(
            points,
            ["/tmp/lxcfs-serveX/mnt", "/var/lib/lxcfs"].map(PathBuf::from)
        );
        let temporary = Path::new("/tmp");
        assert!(is_of_tests(&points[0], temporary));
        assert!(!is_of_tests(&points[1], temporary));
        assert!(!is_of_tests(Path::new("/tmp/mine/lxcfs-1"), temporary));
    }
}
