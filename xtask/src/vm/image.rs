//! ext4 images made from directories, without mounting anything.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::run;

/// Makes a sparse ext4 image that holds a copy of `directory`, with `spare_bytes` left free.
pub(crate) fn make_ext4(directory: &Path, image: &Path, spare_bytes: u64) -> Result<()> {
    let used = tree_bytes(directory)?;
    // An eighth more for ext4's own tables.
    let size = used + used / 8 + spare_bytes + (16 << 20);
    File::create(image)
        .and_then(|file| file.set_len(size))
        .with_context(|| format!("cannot create {}", image.display()))?;
    let mut mke2fs = Command::new("/sbin/mke2fs");
    // Old kernels must be able to mount it; a journal is of no use in a throw-away machine.
    mke2fs.args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-m",
        "0",
        "-O",
        "^has_journal,^metadata_csum,^orphan_file",
    ]);
    mke2fs.args(["-E", "lazy_itable_init=1,root_owner=0:0"]);
    run(mke2fs.arg("-d").arg(directory).arg(image))
}

/// Bytes the files below `directory` take, in whole 4 KiB blocks.
fn tree_bytes(directory: &Path) -> Result<u64> {
    let mut total = 4096;
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        total += if metadata.is_dir() {
            tree_bytes(&entry.path())?
        } else {
            metadata.len().next_multiple_of(4096)
        };
    }
    Ok(total)
}
