//! The log: to stderr, for people or as JSON, its level changeable while running.

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, reload};

use crate::config::{LogFormat, LogLevel};
use crate::policy::Named as _;

static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Starts logging; a second call changes the level alone.
pub fn start(level: LogLevel, format: LogFormat) {
    let (filter, handle) = reload::Layer::new(filter_of(level));
    if LEVEL.set(handle).is_err() {
        let _ = set_level(level);
        return;
    }
    // The journal has its own clock and no colours.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(matches!(level, LogLevel::Debug | LogLevel::Trace));
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Human if journal => lines.without_time().with_ansi(false).boxed(),
        LogFormat::Human => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    // Fails only if some other logger is set, as in a test: then that one stays.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Changes what is logged from now on.
///
/// # Errors
/// When logging has not been started.
pub fn set_level(level: LogLevel) -> Result<(), &'static str> {
    let handle = LEVEL.get().ok_or("logging has not been started")?;
    handle
        .reload(filter_of(level))
        .map_err(|_error| "the log is gone")?;
    tracing::info!(level = level.name(), "log level changed");
    Ok(())
}

fn filter_of(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
