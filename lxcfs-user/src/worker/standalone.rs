//! Serving in one process, without a holder: for tests, benchmarks and debugging.

use std::path::Path;
use std::sync::Arc;

use crate::engine::Engine;
use crate::fuse::{self, DeviceWake, Facts, Server};
use crate::vfs::psi::{NoJournal, Triggers};
use crate::vfs::{SnapshotTable, Vfs};

use super::WorkerError;

/// A mount served by threads of this process; unmounted when dropped.
pub struct Standalone {
    mounted: Option<lxcfs_holder::Mounted>,
    server: Box<dyn Server>,
}

impl Standalone {
    /// Mounts at `mountpoint` and serves `engine` with `loops` threads (2 at least).
    ///
    /// # Errors
    /// See [`WorkerError`].
    pub fn mount(
        mountpoint: &Path,
        engine: Arc<dyn Engine>,
        loops: usize,
    ) -> Result<Self, WorkerError> {
        let mounted = lxcfs_holder::Mounted::mount(mountpoint)?;
        let system = |source| WorkerError::Inherited {
            what: "the device cannot be duplicated",
            source,
        };
        let device = mounted.device().try_clone().map_err(system)?;
        let wake = Arc::new(DeviceWake(device.try_clone().map_err(system)?));
        let triggers = Triggers::new(Arc::new(NoJournal), wake);
        let vfs = Arc::new(Vfs::new(
            engine,
            Arc::new(SnapshotTable::private()),
            triggers,
        ));
        let facts = Facts {
            loops: loops.max(2),
            kernel_minor: mounted.kernel_minor(),
            mounted_at_sec: mounted.mounted_at_sec(),
        };
        let ended = Box::new(|result: std::io::Result<()>| {
            if let Err(error) = result {
                tracing::error!(%error, "a serving loop failed");
            }
        });
        let server = fuse::prepare(vfs, facts, None, ended)?;
        server.go_live(&device)?;
        Ok(Self {
            mounted: Some(mounted),
            server,
        })
    }
}

impl Drop for Standalone {
    fn drop(&mut self) {
        // The loops hold the device; unmounting ends the connection only when nothing uses
        // the file system any more, so the loops may outlive us for that long.
        drop(self.mounted.take());
        let _detached = &mut self.server;
    }
}
