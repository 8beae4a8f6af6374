//! Debian's C lxcfs, unpacked outside the tree for side-by-side runs; never installed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{output, run};
use crate::vm::cache::Cache;

/// An unpacked C lxcfs.
pub(crate) struct Peer {
    /// The daemon.
    pub(crate) program: PathBuf,
    /// Directory of `liblxcfs.so`, for `LD_LIBRARY_PATH`.
    pub(crate) lib: PathBuf,
}

/// Downloads and unpacks the C lxcfs of this machine's own Debian release, once.
pub(crate) fn fetch(cache: &Cache) -> Result<Peer> {
    let policy = output(Command::new("apt-cache").args(["policy", "lxcfs"]))?;
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))
        .map(str::trim)
        .filter(|version| *version != "(none)")
        .context("apt knows no package lxcfs; run `apt-get update` on a Debian system")?;
    let root = cache.entry(&format!("peer-{version}"), |partial| {
        fs::create_dir_all(partial)?;
        run(Command::new("apt-get")
            .args(["-q", "-o", "APT::Sandbox::User=root", "download", "lxcfs"])
            .current_dir(partial))?;
        let deb = fs::read_dir(partial)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get download left no package")?;
        run(Command::new("dpkg").arg("-x").arg(&deb).arg(partial))
    })?;
    let triplet = output(Command::new("gcc").arg("-print-multiarch"))?;
    Ok(Peer {
        program: root.join("usr/bin/lxcfs"),
        lib: root.join("usr/lib").join(triplet.trim()).join("lxcfs"),
    })
}
