//! What the programs log, passed on to the daemon's own log.
//!
//! They log by aya-log, on cold paths only and at most once per doubling of what went wrong;
//! code for levels above the one given at load time is removed by the verifier.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};

/// Reader of the log ring.
pub(super) struct ProgramLog {
    reader: EbpfLogger<Forward>,
    lines: Arc<AtomicU64>,
}

/// Passes lines on to tracing.
struct Forward(Arc<AtomicU64>);

impl Log for Forward {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        let (module, line) = (record.target(), record.args());
        match record.level() {
            Level::Error => tracing::error!(module, "{line}"),
            Level::Warn => tracing::warn!(module, "{line}"),
            Level::Info => tracing::info!(module, "{line}"),
            Level::Debug | Level::Trace => tracing::debug!(module, "{line}"),
        }
    }

    fn flush(&self) {}
}

impl ProgramLog {
    /// Takes the ring out of the loaded object.
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, aya_log::Error> {
        let lines = Arc::new(AtomicU64::new(0));
        let reader = EbpfLogger::init_with_logger(ebpf, Forward(Arc::clone(&lines)))?;
        Ok(Self { reader, lines })
    }

    /// Passes on what waits; returns the number of lines.
    pub(super) fn forward(&mut self) -> u64 {
        let before = self.lines.load(Ordering::Relaxed);
        self.reader.flush();
        self.lines.load(Ordering::Relaxed) - before
    }
}
