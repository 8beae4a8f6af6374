//! Something that lies on a real disk, for tests of block I/O.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Something to read that lies on a disk: a file of ours, or the disk itself.
pub struct Disk {
    /// As in `/proc/diskstats`.
    pub name: String,
    /// Major and minor.
    pub number: (u32, u32),
    /// What to read.
    pub source: PathBuf,
    ours: bool,
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(&self.source);
        }
    }
}

/// How many blocks of 16 KiB there are to read at least.
pub const BLOCKS: u32 = 200;

/// A file on a directory's disk, if it has one (overlays and memory have none).
fn file_on_disk(directory: &str) -> Option<Disk> {
    let device = fs::metadata(directory).ok()?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let mut entry = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    if entry.join("partition").exists() {
        entry.pop();
    }
    let source = Path::new(directory).join(format!("lxcfs-test-{}", std::process::id()));
    let file = File::create(&source).ok()?;
    (&file)
        .write_all(&vec![7; BLOCKS as usize * 16 * 1024])
        .ok()?;
    file.sync_all().ok()?;
    Some(named(&entry, source, true))
}

/// The first disk as a whole, to be read only.
fn whole_disk() -> Option<Disk> {
    let mut names: Vec<_> = fs::read_dir("/sys/block")
        .ok()?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            ["vd", "sd", "nvme", "xvd"]
                .iter()
                .any(|kind| name.starts_with(kind))
        })
        .collect();
    names.sort();
    let name = names.first()?;
    Some(named(
        &Path::new("/sys/block").join(name),
        Path::new("/dev").join(name),
        false,
    ))
}

fn named(entry: &Path, source: PathBuf, ours: bool) -> Disk {
    let number = fs::read_to_string(entry.join("dev")).expect("dev");
    let (major, minor) = number.trim().split_once(':').expect("major:minor");
    let number = (major.parse().expect("major"), minor.parse().expect("minor"));
    let name = entry
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    Disk {
        name,
        number,
        source,
        ours,
    }
}

/// Something to read.
///
/// # Panics
/// When nothing lies on a disk.
#[must_use]
pub fn disk() -> Disk {
    ["/var/tmp", "/root", "/tmp"]
        .into_iter()
        .find_map(file_on_disk)
        .or_else(whole_disk)
        .expect("no directory on a disk and no disk (vd*, sd*, nvme*, xvd*) to read from")
}
