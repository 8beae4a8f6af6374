//! Where a daemon under test keeps its files.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A directory that goes with its owner, or one that outlives it and the machine's uptime.
#[derive(Debug)]
pub enum Place {
    /// Removed when dropped.
    Temporary(TempDir),
    /// Stays.
    Kept(PathBuf),
}

impl Place {
    /// A new directory whose name starts with `prefix`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn temporary(prefix: &str) -> Self {
        Self::Temporary(
            TempDir::with_prefix(prefix)
                .unwrap_or_else(|error| panic!("no temporary directory: {error}")),
        )
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        match self {
            Self::Temporary(directory) => directory.path(),
            Self::Kept(path) => path,
        }
    }
}
