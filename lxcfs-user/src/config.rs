//! What the daemon shall do: the settings as given on the command line or in the
//! configuration file, laid over each other, and the [`Config`] they make. Pure: reading
//! the file and the arguments is the command line's part.
//!
//! The file mirrors the flags one to one: the key is the long flag without its dashes
//! (`disable-swap = true`). What C lxcfs accepted for history's sake has no key.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lxcfs_common::catalogue::CATALOGUE;
use lxcfs_common::pod;
use serde::Deserialize;
use serde::de::Error as _;

use crate::policy::{BoundaryPolicy, CpuNumbering, CpuPolicy, FilesOff, Named, ViewPolicy};

/// Where the configuration is looked for when `--config` does not say.
pub const DEFAULT_FILE: &str = "/etc/lxcfs/lxcfs.toml";

/// Parent of the pidfile and of everything else the daemon keeps at run time.
pub const DEFAULT_RUNTIME_DIR: &str = "/run";

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// What makes an answer wrong or impossible.
    Error,
    /// What needs somebody's attention.
    Warn,
    /// Start, stop, features and their state.
    #[default]
    Info,
    /// Every decision.
    Debug,
    /// Every request.
    Trace,
}

impl Named for LogLevel {
    const NAMES: &'static [(&'static str, Self, &'static str)] = &[
        (
            "error",
            Self::Error,
            "what makes an answer wrong or impossible",
        ),
        ("warn", Self::Warn, "what needs somebody's attention"),
        ("info", Self::Info, "start, stop, features and their state"),
        ("debug", Self::Debug, "every decision"),
        ("trace", Self::Trace, "every request"),
    ];
}

/// What a log line looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people and the journal.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

/// Who starts the workers that serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Workers {
    /// The daemon.
    #[default]
    Own,
    /// `lxcfs serve`, somewhere else.
    Outside,
}

impl Named for Workers {
    const NAMES: &'static [(&'static str, Self, &'static str)] = &[
        ("own", Self::Own, "the daemon itself"),
        (
            "outside",
            Self::Outside,
            "`lxcfs serve`, with fewer rights; the daemon only holds the mount",
        ),
    ];
}

impl Named for LogFormat {
    const NAMES: &'static [(&'static str, Self, &'static str)] = &[
        ("human", Self::Human, "for people and the journal"),
        ("json", Self::Json, "one JSON object per line"),
    ];
}

/// Where `/livez`, `/readyz` and `/metrics` are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

impl std::str::FromStr for Listen {
    type Err = String;

    /// `unix:/path`, `ADDRESS:PORT`, or `PORT` alone for loopback.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(format!("unix:{path}: the path must start with a slash"))
            };
        }
        let port = text.strip_prefix(':').unwrap_or(text);
        if let Ok(port) = port.parse() {
            let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
            return Ok(Self::Tcp(SocketAddr::new(loopback, port)));
        }
        text.parse().map(Self::Tcp).map_err(|_error| {
            format!("{text}: expected ADDRESS:PORT, PORT (loopback) or unix:/PATH")
        })
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// Settings as given, each absent unless somebody gave it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Directory to mount on.
    pub mountpoint: Option<PathBuf>,
    /// `--runtime-dir`
    pub runtime_dir: Option<PathBuf>,
    /// `--pidfile`
    pub pidfile: Option<PathBuf>,
    /// `--disable-swap`
    pub disable_swap: Option<bool>,
    /// `--disable-zswap`
    pub disable_zswap: Option<bool>,
    /// `--no-loadavg`
    pub no_loadavg: Option<bool>,
    /// `--no-uptime`
    pub no_uptime: Option<bool>,
    /// `--no-cpu-view`
    pub no_cpu_view: Option<bool>,
    /// `--no-psi-poll`
    pub no_psi_poll: Option<bool>,
    /// `--cpus`
    #[serde(default, deserialize_with = "named")]
    pub cpus: Option<CpuPolicy>,
    /// `--cpu-numbering`
    #[serde(default, deserialize_with = "named")]
    pub cpu_numbering: Option<CpuNumbering>,
    /// `--boundary`
    #[serde(default, deserialize_with = "named")]
    pub boundary: Option<BoundaryPolicy>,
    /// `--disable`: a comma list
    pub disable: Option<String>,
    /// `--memory-high`
    pub memory_high: Option<bool>,
    /// `--no-ebpf`
    pub no_ebpf: Option<bool>,
    /// `--no-heal`
    pub no_heal: Option<bool>,
    /// `--nonempty`
    pub nonempty: Option<bool>,
    /// `--cache-ttl-ms`
    pub cache_ttl_ms: Option<u32>,
    /// `--threads`
    pub threads: Option<u32>,
    /// `--workers`
    #[serde(default, deserialize_with = "named")]
    pub workers: Option<Workers>,
    /// `--workers-uid`
    pub workers_uid: Option<u32>,
    /// `--log-level`
    #[serde(default, deserialize_with = "named")]
    pub log_level: Option<LogLevel>,
    /// `--log-format`
    #[serde(default, deserialize_with = "named")]
    pub log_format: Option<LogFormat>,
    /// `--metrics`
    #[serde(default, deserialize_with = "listen")]
    pub metrics: Option<Listen>,
}

fn named<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Named,
{
    let name = String::deserialize(deserializer)?;
    T::from_name(&name).map(Some).ok_or_else(|| {
        let names: Vec<_> = T::NAMES.iter().map(|(name, ..)| *name).collect();
        D::Error::custom(format!("{name:?} is not one of {}", names.join(", ")))
    })
}

fn listen<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Listen>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

/// Settings that cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not TOML, or has a key or a value that nothing knows.
    #[error("{}: {message}", file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// What is wrong, with the line it is in.
        message: String,
    },
    /// Nobody said where to mount.
    #[error(
        "no mountpoint: give the directory to mount on, for instance `lxcfs /var/lib/lxcfs`, \
         or set `mountpoint` in the configuration file"
    )]
    NoMountpoint,
    /// A setting is out of its range, or contradicts another.
    #[error("{setting}: {problem}")]
    Value {
        /// The flag.
        setting: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// Everything the daemon needs to know, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Absolute path of the directory to mount on.
    pub mountpoint: PathBuf,
    /// Parent of the daemon's own directory ([`Config::state_dir`]).
    pub runtime_dir: PathBuf,
    /// Locked for as long as the daemon lives.
    pub pidfile: PathBuf,
    /// What views show.
    pub views: ViewPolicy,
    /// Whether eBPF may be used.
    pub ebpf: bool,
    /// Whether dead mounts of ours are looked for and replaced at start.
    pub heal: bool,
    /// Whether to mount over a directory that holds something.
    pub nonempty: bool,
    /// How long one snapshot of a container may answer for.
    pub cache_ttl: Duration,
    /// Serving threads; `None` = one per core, at most four.
    pub threads: Option<u32>,
    /// Who starts the workers.
    pub workers: Workers,
    /// The user that workers from outside may have, besides root.
    pub workers_uid: u32,
    /// How much is logged.
    pub log_level: LogLevel,
    /// What a log line looks like.
    pub log_format: LogFormat,
    /// Where health and metrics are served, besides the control socket.
    pub metrics: Option<Listen>,
}

impl Settings {
    /// Parses the configuration file's text; `file` is only named in errors.
    ///
    /// # Errors
    /// [`ConfigError::File`] for text that is not TOML, unknown keys and impossible values.
    pub fn parse_toml(file: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::File {
            file: file.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })
    }

    /// These settings, with `lower` where they are silent.
    #[must_use]
    pub fn over(self, lower: Self) -> Self {
        Self {
            mountpoint: self.mountpoint.or(lower.mountpoint),
            // A pidfile of the file belongs to the runtime directory of the file.
            pidfile: match (&self.pidfile, &self.runtime_dir) {
                (None, Some(_)) => None,
                _ => self.pidfile.or(lower.pidfile),
            },
            runtime_dir: self.runtime_dir.or(lower.runtime_dir),
            disable_swap: self.disable_swap.or(lower.disable_swap),
            disable_zswap: self.disable_zswap.or(lower.disable_zswap),
            no_loadavg: self.no_loadavg.or(lower.no_loadavg),
            no_uptime: self.no_uptime.or(lower.no_uptime),
            // Both decide the CPU policy, so either given above hides the other below.
            no_cpu_view: self.no_cpu_view.or(match self.cpus {
                None => lower.no_cpu_view,
                Some(_) => None,
            }),
            cpus: self.cpus.or(match self.no_cpu_view {
                None => lower.cpus,
                Some(_) => None,
            }),
            no_psi_poll: self.no_psi_poll.or(lower.no_psi_poll),
            cpu_numbering: self.cpu_numbering.or(lower.cpu_numbering),
            boundary: self.boundary.or(lower.boundary),
            disable: self.disable.or(lower.disable),
            memory_high: self.memory_high.or(lower.memory_high),
            no_ebpf: self.no_ebpf.or(lower.no_ebpf),
            no_heal: self.no_heal.or(lower.no_heal),
            nonempty: self.nonempty.or(lower.nonempty),
            cache_ttl_ms: self.cache_ttl_ms.or(lower.cache_ttl_ms),
            threads: self.threads.or(lower.threads),
            workers: self.workers.or(lower.workers),
            workers_uid: self.workers_uid.or(lower.workers_uid),
            log_level: self.log_level.or(lower.log_level),
            log_format: self.log_format.or(lower.log_format),
            metrics: self.metrics.or(lower.metrics),
        }
    }

    /// The view policy alone: what `lxcfs show` needs.
    ///
    /// # Errors
    /// [`ConfigError::Value`] when two settings contradict each other, or a file that shall
    /// be switched off is none.
    pub fn views(&self) -> Result<ViewPolicy, ConfigError> {
        let cpus = match (self.cpus, self.no_cpu_view.unwrap_or(false)) {
            (None | Some(CpuPolicy::Cpuset), true) => CpuPolicy::Cpuset,
            (Some(cpus), false) => cpus,
            (None, false) => CpuPolicy::default(),
            (Some(cpus), true) => {
                return Err(ConfigError::Value {
                    setting: "--no-cpu-view",
                    problem: format!(
                        "means `--cpus cpuset`, but `--cpus {}` is set too: leave one out",
                        cpus.name()
                    ),
                });
            }
        };
        let cpu_numbering = self.cpu_numbering.unwrap_or_default();
        if cpu_numbering == CpuNumbering::Physical && cpus == CpuPolicy::Quota {
            return Err(ConfigError::Value {
                setting: "--cpu-numbering physical",
                problem: "a quota belongs to no CPU in particular: add `--cpus cpuset` or \
                          `--cpus host`"
                    .to_owned(),
            });
        }
        let disable = self.disable.as_deref().unwrap_or_default();
        if let Some(word) = pod::not_to_switch_off(disable) {
            let names: Vec<_> = CATALOGUE
                .iter()
                .filter(|entry| pod::attachable(entry))
                .map(pod::file_name)
                .collect();
            return Err(ConfigError::Value {
                setting: "--disable",
                problem: format!(
                    "no virtual file is called {word:?}; known: pressure, {}",
                    names.join(", ")
                ),
            });
        }
        Ok(ViewPolicy {
            cpus,
            cpu_numbering,
            memory_high: self.memory_high.unwrap_or(false),
            swap: !self.disable_swap.unwrap_or(false),
            zswap: !self.disable_zswap.unwrap_or(false),
            loadavg: !self.no_loadavg.unwrap_or(false),
            uptime: !self.no_uptime.unwrap_or(false),
            psi_triggers: !self.no_psi_poll.unwrap_or(false),
            boundary: self.boundary.unwrap_or_default(),
            off: FilesOff::from_list(disable),
        })
    }
}

impl Config {
    /// Validates `settings`; relative paths are taken from `current_dir`.
    ///
    /// # Errors
    /// [`ConfigError::NoMountpoint`] and [`ConfigError::Value`].
    pub fn new(settings: &Settings, current_dir: &Path) -> Result<Self, ConfigError> {
        let mountpoint = settings
            .mountpoint
            .as_ref()
            .filter(|path| !path.as_os_str().is_empty())
            .ok_or(ConfigError::NoMountpoint)?;
        let runtime_dir = current_dir.join(
            settings
                .runtime_dir
                .as_deref()
                .unwrap_or(Path::new(DEFAULT_RUNTIME_DIR)),
        );
        let pidfile = match &settings.pidfile {
            Some(path) => current_dir.join(path),
            None => runtime_dir.join("lxcfs.pid"),
        };
        Ok(Self {
            mountpoint: without_trailing_slash(&current_dir.join(mountpoint)),
            runtime_dir,
            pidfile,
            views: settings.views()?,
            ebpf: !settings.no_ebpf.unwrap_or(false),
            heal: !settings.no_heal.unwrap_or(false),
            nonempty: settings.nonempty.unwrap_or(false),
            cache_ttl: Duration::from_millis(u64::from(in_range(
                "--cache-ttl-ms",
                settings.cache_ttl_ms.unwrap_or(5),
                0..=1000,
            )?)),
            threads: settings
                .threads
                .map(|threads| in_range("--threads", threads, 1..=64))
                .transpose()?,
            workers: settings.workers.unwrap_or_default(),
            workers_uid: settings.workers_uid.unwrap_or(0),
            log_level: settings.log_level.unwrap_or_default(),
            log_format: settings.log_format.unwrap_or_default(),
            metrics: settings.metrics.clone(),
        })
    }

    /// The daemon's own directory: control socket and state.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.runtime_dir.join("lxcfs")
    }

    /// Where the running daemon answers `lxcfs status` and its siblings.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        control_socket(&self.runtime_dir)
    }
}

/// The control socket of the daemon that runs under `runtime_dir`.
#[must_use]
pub fn control_socket(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("lxcfs/control.sock")
}

/// The control socket of the holder of that daemon.
#[must_use]
pub fn holder_socket(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("lxcfs/holder.sock")
}

fn in_range(
    setting: &'static str,
    value: u32,
    range: std::ops::RangeInclusive<u32>,
) -> Result<u32, ConfigError> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::Value {
        setting,
        problem: format!(
            "{value} is out of range: {} to {}",
            range.start(),
            range.end()
        ),
    })
}

/// `/var/lib/lxcfs/` and `/var/lib/lxcfs` name one mount, as mountinfo spells it.
fn without_trailing_slash(path: &Path) -> PathBuf {
    path.components().collect()
}

#[cfg(test)]
mod tests;

/// Where that holder takes workers from outside.
#[must_use]
pub fn workers_socket(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("lxcfs/workers.sock")
}
