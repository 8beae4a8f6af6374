//! Where downloads and images are kept: outside the tree, published whole or not at all.
//!
//! `LXCFS_CACHE` overrides the place; otherwise it is `$XDG_CACHE_HOME/lxcfs-vm` or
//! `~/.cache/lxcfs-vm`. Deleting it is always safe.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The cache directory, locked against other builders while something is being made.
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache, creating it when needed.
    pub(crate) fn open() -> Result<Self> {
        let root = place(|name| std::env::var_os(name).map(PathBuf::from))
            .context("no HOME, XDG_CACHE_HOME or LXCFS_CACHE: set LXCFS_CACHE to a directory")?;
        fs::create_dir_all(&root)
            .with_context(|| format!("cannot create the cache {}", root.display()))?;
        Ok(Self { root })
    }

    /// The path of an entry, whether or not it exists.
    pub(crate) fn path(&self, entry: &str) -> PathBuf {
        self.root.join(entry)
    }

    /// The entry, made by `make` when it does not exist yet.
    ///
    /// `make` gets a path that does not exist and must leave a file or directory there. It is
    /// moved into place only when `make` succeeds, so an interrupted build leaves no half entry.
    /// A second process that wants the same entry waits for the first.
    pub(crate) fn entry(
        &self,
        entry: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let done = self.path(entry);
        if done.exists() {
            return Ok(done);
        }
        let lock_path = self.path(&format!("{}.lock", entry.replace('/', "-")));
        let lock = File::create(&lock_path)
            .with_context(|| format!("cannot create {}", lock_path.display()))?;
        lock.lock()
            .with_context(|| format!("cannot lock {}", lock_path.display()))?;
        if done.exists() {
            return Ok(done);
        }
        let partial = self.path(&format!("{}.partial", entry.replace('/', "-")));
        remove(&partial)?;
        make(&partial).with_context(|| format!("cannot make {}", done.display()))?;
        if let Some(parent) = done.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::rename(&partial, &done)
            .with_context(|| format!("cannot move {} into place", partial.display()))?;
        Ok(done)
    }

    /// Removes entries of `directory` whose name starts with `prefix`, except `keep`.
    pub(crate) fn retire(&self, prefix: &str, keep: &Path) -> Result<()> {
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let spared = path == keep || name.ends_with(".lock") || name.ends_with(".partial");
            if name.starts_with(prefix) && !spared {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

/// Removes a file or a tree; absence is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

/// A short name for `parts` that changes when any of them does (FNV-1a, 64 bits).
pub(crate) fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.into_iter().flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}

fn place(env: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    env("LXCFS_CACHE")
        .or_else(|| Some(env("XDG_CACHE_HOME")?.join("lxcfs-vm")))
        .or_else(|| Some(env("HOME")?.join(".cache/lxcfs-vm")))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use anyhow::bail;

    use super::{Cache, fingerprint, place, remove};

    #[test]
    fn place_prefers_the_override() {
        let all = |name: &str| Some(PathBuf::from(format!("/{name}")));
        assert_eq!(place(all), Some("/LXCFS_CACHE".into()));
        let xdg = |name: &str| (name != "LXCFS_CACHE").then(|| format!("/{name}").into());
        assert_eq!(place(xdg), Some("/XDG_CACHE_HOME/lxcfs-vm".into()));
        assert_eq!(place(|_| None), None);
    }

    #[test]
    fn a_failed_build_leaves_no_entry_and_a_later_one_succeeds() {
        let root = std::env::temp_dir().join(format!("xtask-cache-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let cache = Cache { root: root.clone() };
        let failed = cache.entry("image", |partial| {
            std::fs::write(partial, "half")?;
            bail!("interrupted")
        });
        assert!(failed.is_err());
        assert!(!cache.path("image").exists());
        let made = cache
            .entry("image", |partial| Ok(std::fs::write(partial, "whole")?))
            .unwrap();
        assert_eq!(std::fs::read_to_string(made).unwrap(), "whole");
        let kept = cache.entry("image", |_| bail!("made twice")).unwrap();
        cache
            .entry("image-old", |partial| Ok(std::fs::write(partial, "old")?))
            .unwrap();
        cache.retire("image", &kept).unwrap();
        assert!(kept.exists() && !cache.path("image-old").exists());
        remove(&root).unwrap();
    }

    #[test]
    fn fingerprint_sees_order_and_boundaries() {
        assert_ne!(fingerprint(["ab", "c"]), fingerprint(["a", "bc"]));
        assert_ne!(fingerprint(["a", "b"]), fingerprint(["b", "a"]));
        assert_eq!(fingerprint(["a"]), fingerprint(["a"]));
    }
}
