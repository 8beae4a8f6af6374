//! Arguments as typed: what clap knows of the command line, nothing decided yet.
//!
//! Two forms share one binary. `lxcfs [options] MOUNTPOINT` is C lxcfs's and serves;
//! `lxcfs COMMAND …` does the rest. The first word decides, so a mountpoint called like a
//! command is given as a path: `lxcfs ./show`.

mod containers;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use lxcfs_holder::outside::ServerId;

use crate::config::{Listen, LogFormat, LogLevel, Settings, Workers};
use crate::policy::{BoundaryPolicy, CpuNumbering, CpuPolicy, Named};

pub use containers::{
    AgentArgs, AttachArgs, DetachArgs, HealArgs, HookArgs, PolicyArgs, RunArgs, TargetArgs,
};

const ABOUT: &str = "\
Shows every container its own memory, CPUs, uptime and load in /proc and /sys.

Mounts a file system on MOUNTPOINT. Bind its files over those of a container \
(`-v /var/lib/lxcfs/proc/meminfo:/proc/meminfo`, LXC's hook, the Kubernetes agent or \
`lxcfs attach`), and free, top, nproc and uptime answer for the container.";

const EXAMPLES: &str = "\
Examples:
  lxcfs /var/lib/lxcfs                      serve until stopped
  lxcfs show --pid 4321 meminfo --explain   what process 4321 sees, and why
  lxcfs doctor                              what works here, what does not, what to do
  lxcfs attach --pid 4321                   give a running container its own view

Every option may stand before or after MOUNTPOINT, or in /etc/lxcfs/lxcfs.toml under its \
long name (`disable-swap = true`); the command line wins. \
A switch takes `=false` to undo the file's.
Signals: TERM stops and unmounts; USR1 replaces the worker by the binary on disk, unseen by \
readers; USR2 switches between container and host values.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "lxcfs",
    bin_name = "lxcfs",
    about = "Shows every container its own memory, CPUs, uptime and load in /proc and /sys",
    long_about = ABOUT,
    after_help = EXAMPLES,
    version,
    disable_version_flag = true,
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = true,
    args_override_self = true,
    infer_long_args = true,
    max_term_width = 100,
    override_usage = "lxcfs [OPTIONS] MOUNTPOINT\n       lxcfs COMMAND …"
)]
pub struct Cli {
    /// The serving form.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// Any other form.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Everything that is not serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Prints what a container reads in a virtual file, and with --explain why
    Show(ShowArgs),
    /// Gives running containers their own view, whatever runs them
    Attach(AttachArgs),
    /// Takes our mounts out of running containers: they see the host again
    Detach(DetachArgs),
    /// Replaces dead mounts of lxcfs in running containers
    Heal(HealArgs),
    /// Tells what works on this machine, what does not, and what to do; exit status 1 if broken
    Doctor(DoctorArgs),
    /// Tells how the running daemon is
    Status(StatusArgs),
    /// Changes how much the running daemon logs
    LogLevel(LogLevelArgs),
    /// Tells whether the mount answers; exit status 1 if not
    Probe(ProbeArgs),
    /// Gives every container that asks for it its own view, from its start on
    Agent(AgentArgs),
    /// The same by the runtime's NRI alone
    Nri(AgentArgs),
    /// Answers a container runtime's OCI hook: reads the container's state on standard input
    Hook(HookArgs),
    /// Switches the running daemon to another binary, unseen by readers
    Upgrade(UpgradeArgs),
    /// Serves a mount that `lxcfs --workers outside` holds, with few rights
    Serve(ServerArgs),
    /// Serves as a worker; started by the holder
    #[command(hide = true)]
    Worker(WorkerArgs),
    /// Runs the Kubernetes admission webhook (the program lxcfs-webhook)
    #[command(disable_help_flag = true)]
    Webhook(Passed),
    /// Prints Kubernetes manifests (the program lxcfs-webhook)
    #[command(disable_help_flag = true)]
    Manifests(Passed),
}

/// `lxcfs show`.
#[derive(Debug, Args)]
#[command(
    after_help = "Needs no mount and no daemon, but root to see other users' processes. Averages and \
                  counters that need a past start afresh here."
)]
pub struct ShowArgs {
    /// Which file: meminfo, proc/meminfo and /proc/meminfo are one
    #[arg(value_name = "FILE")]
    pub file: String,
    /// The container of this process [default: this one]
    #[arg(long, value_name = "PID", conflicts_with = "cgroup")]
    pub pid: Option<u32>,
    /// The container at this cgroup: /docker/4f0c… or /sys/fs/cgroup/docker/4f0c…
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
    /// Say for every line what decided it: file, ancestor, program, rule
    #[arg(long)]
    pub explain: bool,
    /// Print JSON: text, lines and where they come from
    #[arg(long)]
    pub json: bool,
    /// Which configuration file.
    #[command(flatten)]
    pub config: FileArgs,
    /// What views show.
    #[command(flatten)]
    pub views: ViewArgs,
}

/// `lxcfs upgrade`.
#[derive(Debug, Args)]
#[command(
    after_help = "The new program is tested before it takes over; if it fails, the old one goes on and \
                  the error is printed. Holder and workers are replaced; no reader sees an error."
)]
pub struct UpgradeArgs {
    /// The new program [default: the file the daemon was started from]
    #[arg(value_name = "BINARY")]
    pub binary: Option<PathBuf>,
    /// Which daemon.
    #[command(flatten)]
    pub runtime: RuntimeArgs,
}

/// `lxcfs serve`.
#[derive(Debug, Args)]
#[command(
    override_usage = "lxcfs serve [OPTIONS] MOUNTPOINT",
    version,
    disable_version_flag = true,
    args_override_self = true,
    after_help = "Needs SYS_PTRACE, DAC_READ_SEARCH, BPF and PERFMON, no particular user, and the host's PID namespace. May be killed at any time: readers wait for the next one. A second server that is started beside a first takes its place."
)]
pub struct ServerArgs {
    /// The holder's socket [default: RUNTIME_DIR/lxcfs/workers.sock]
    #[arg(long, value_name = "SOCKET")]
    pub holder: Option<PathBuf>,
    /// What to serve.
    #[command(flatten)]
    pub serve: ServeArgs,
}
/// `lxcfs worker`.
#[derive(Debug, Args)]
#[command(
    version,
    disable_version_flag = true,
    args_override_self = true,
    infer_long_args = true
)]
pub struct WorkerArgs {
    /// What relative paths are relative to
    #[arg(long, value_name = "DIR")]
    pub base_dir: PathBuf,
    /// The holder's socket, for a worker from outside
    #[arg(long, value_name = "SOCKET", requires = "server")]
    pub join: Option<PathBuf>,
    /// Whose worker it is then
    #[arg(long, value_name = "SINCE:PID")]
    pub server: Option<ServerId>,
    /// The latest workers before it that crashed
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pub crashed: Vec<u32>,
    /// What the daemon was started with.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// `lxcfs doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Look at this mount [default: the configured one, else /var/lib/lxcfs]
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Which daemon.
    #[command(flatten)]
    pub runtime: RuntimeArgs,
}

/// `lxcfs status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Which daemon.
    #[command(flatten)]
    pub runtime: RuntimeArgs,
}

/// `lxcfs log-level`.
#[derive(Debug, Args)]
pub struct LogLevelArgs {
    /// The new level, until the worker is replaced
    #[arg(value_name = "LEVEL", value_parser = named::<LogLevel>())]
    pub level: LogLevel,
    /// Which daemon.
    #[command(flatten)]
    pub runtime: RuntimeArgs,
}

/// `lxcfs probe`.
#[derive(Debug, Args)]
#[command(after_help = "For probes of Kubernetes and for scripts: `lxcfs probe /var/lib/lxcfs`.")]
pub struct ProbeArgs {
    /// The mount to read through the kernel
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
    /// Give up after this long
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub deadline_ms: u64,
    /// Read in this process, with no deadline
    #[arg(long, hide = true)]
    pub read: bool,
}

/// Arguments handed to another program unread.
#[derive(Debug, Args)]
pub struct Passed {
    /// Given to the program as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

/// Options that change what views show; shared by serving and `lxcfs show`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Views")]
pub struct ViewArgs {
    /// Show no swap: totals 0, /proc/swaps empty
    #[arg(short = 'u', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub disable_swap: Option<bool>,
    /// Show 0 in meminfo's Zswap lines
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub disable_zswap: Option<bool>,
    /// Show the host's load average instead of the container's
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub no_loadavg: Option<bool>,
    /// Show the host's uptime instead of the container's
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub no_uptime: Option<bool>,
    /// Take the number of CPUs from the cpuset alone, whatever the quota (--cpus cpuset)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub no_cpu_view: Option<bool>,
    /// Refuse pressure stall triggers (write and poll on /proc/pressure/*)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub no_psi_poll: Option<bool>,
    /// What decides how many CPUs a container sees [default: quota]
    #[arg(long, value_name = "RULE", value_parser = named::<CpuPolicy>())]
    pub cpus: Option<CpuPolicy>,
    /// How the visible CPUs are numbered [default: sequential]
    #[arg(long, value_name = "RULE", value_parser = named::<CpuNumbering>())]
    pub cpu_numbering: Option<CpuNumbering>,
    /// Which cgroup of a process is its container [default: auto]
    #[arg(long, value_name = "RULE", value_parser = named::<BoundaryPolicy>())]
    pub boundary: Option<BoundaryPolicy>,
    /// Do not serve these files, e.g. slabinfo,pressure,cpu: containers see the host's
    #[arg(long, value_name = "LIST")]
    pub disable: Option<String>,
    /// Let memory.high count as a limit
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub memory_high: Option<bool>,
    /// Collect from cgroup files alone
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub no_ebpf: Option<bool>,
}

/// Which configuration file.
#[derive(Debug, Default, Args)]
pub struct FileArgs {
    /// Read this configuration file [default: /etc/lxcfs/lxcfs.toml if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Which daemon a command speaks to.
#[derive(Debug, Default, Args)]
pub struct RuntimeArgs {
    /// Directory of the pidfile and of lxcfs/, the daemon's state [default: /run]
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
}

/// `lxcfs [options] MOUNTPOINT`.
#[derive(Debug, Default, Args)]
pub struct ServeArgs {
    /// Directory to mount on, usually /var/lib/lxcfs
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: Option<PathBuf>,
    /// Print the version
    #[arg(short = 'v', short_alias = 'V', long, action = clap::ArgAction::Version)]
    pub version: Option<bool>,
    /// Which configuration file.
    #[command(flatten)]
    pub file: FileArgs,
    /// Where run-time files go.
    #[command(flatten)]
    pub runtime: RuntimeArgs,
    /// Write and lock this pidfile [default: RUNTIME_DIR/lxcfs.pid]
    #[arg(short = 'p', long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,
    /// Mount even on a directory that holds files
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub nonempty: Option<bool>,
    /// Leave dead mounts in containers alone at start
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub no_heal: Option<bool>,
    /// Answer from one snapshot of a container for this long, 0 to 1000 [default: 5]
    #[arg(long, value_name = "N")]
    pub cache_ttl_ms: Option<u32>,
    /// Serving threads [default: one per core, at most 4]
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,
    /// Who starts the workers that serve [default: own]
    #[arg(long, value_name = "WHO", value_parser = named::<Workers>())]
    pub workers: Option<Workers>,
    /// The user, besides root, whose `lxcfs serve` may serve with --workers outside
    #[arg(long, value_name = "UID")]
    pub workers_uid: Option<u32>,
    /// What views show.
    #[command(flatten)]
    pub views: ViewArgs,
    /// How much to log [default: info]; `lxcfs log-level` changes it while running
    #[arg(long, value_name = "LEVEL", value_parser = named::<LogLevel>(), help_heading = "Logs and health")]
    pub log_level: Option<LogLevel>,
    /// What a log line looks like [default: human]
    #[arg(long, value_name = "FORMAT", value_parser = named::<LogFormat>(), help_heading = "Logs and health")]
    pub log_format: Option<LogFormat>,
    /// Serve /livez, /readyz and /metrics on ADDRESS:PORT, PORT (loopback) or unix:/PATH
    #[arg(long, value_name = "LISTEN", help_heading = "Logs and health")]
    pub metrics: Option<Listen>,
    /// What only old start scripts give.
    #[command(flatten)]
    pub legacy: LegacyArgs,
}

/// Options of C lxcfs that need no doing here.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Accepted for compatibility with C lxcfs")]
pub struct LegacyArgs {
    /// Log at level debug (--log-level debug)
    #[arg(short = 'd', long)]
    pub debug: bool,
    /// Stay in the foreground: always so
    #[arg(short = 'f', long)]
    pub foreground: bool,
    /// Serve the container's load average: on unless --no-loadavg
    #[arg(short = 'l', long)]
    pub enable_loadavg: bool,
    /// Count the CPU quota: on unless --no-cpu-view
    #[arg(long)]
    pub enable_cfs: bool,
    /// Use pidfds: always so
    #[arg(long)]
    pub enable_pidfd: bool,
    /// Serve /cgroup: not any more, cgroup namespaces have replaced it
    #[arg(long)]
    pub enable_cgroup: bool,
    /// Serve pressure stall triggers: on unless --no-psi-poll
    #[arg(long)]
    pub enable_psi_poll: bool,
    /// Serve with one thread: ignored, as by C lxcfs (--threads 1)
    #[arg(short = 's')]
    pub single_thread: bool,
    /// Mount options: those of libfuse are accepted, the mount's own are fixed
    #[arg(short = 'o', value_name = "OPTIONS", action = clap::ArgAction::Append)]
    pub mount_options: Vec<String>,
}

/// A parser, with help per value, for anything that has names.
fn named<T: Named + Send + Sync>() -> impl TypedValueParser<Value = T> {
    let values = T::NAMES
        .iter()
        .map(|(name, _, help)| PossibleValue::new(*name).help(*help));
    PossibleValuesParser::new(values).map(|name| T::from_name(&name).unwrap_or_default())
}

impl ViewArgs {
    /// The settings these give.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            disable_swap: self.disable_swap,
            disable_zswap: self.disable_zswap,
            no_loadavg: self.no_loadavg,
            no_uptime: self.no_uptime,
            no_cpu_view: self.no_cpu_view,
            no_psi_poll: self.no_psi_poll,
            cpus: self.cpus,
            cpu_numbering: self.cpu_numbering,
            boundary: self.boundary,
            disable: self.disable.clone(),
            memory_high: self.memory_high,
            no_ebpf: self.no_ebpf,
            ..Settings::default()
        }
    }
}

impl ServeArgs {
    /// The settings these give, and one line about each option that needs no doing.
    ///
    /// # Errors
    /// A line that names a mount option nobody knows.
    pub fn settings(&self) -> Result<(Settings, Vec<String>), String> {
        let (mut notes, nonempty) = self.legacy.notes()?;
        let legacy = &self.legacy;
        // Given together, C's switch for what is on anyway yields to ours for off.
        let off_again = |enabled: bool| enabled.then_some(false);
        let views = self.views.settings();
        if views.no_loadavg == Some(true) && legacy.enable_loadavg {
            notes.push("--enable-loadavg: --no-loadavg was given too and decides".to_owned());
        }
        let settings = Settings {
            mountpoint: self.mountpoint.clone(),
            runtime_dir: self.runtime.runtime_dir.clone(),
            pidfile: self.pidfile.clone(),
            nonempty: self.nonempty.or(nonempty.then_some(true)),
            no_heal: self.no_heal,
            cache_ttl_ms: self.cache_ttl_ms,
            threads: self.threads,
            workers: self.workers,
            workers_uid: self.workers_uid,
            log_level: self.log_level.or(legacy.debug.then_some(LogLevel::Debug)),
            log_format: self.log_format,
            metrics: self.metrics.clone(),
            no_loadavg: views.no_loadavg.or(off_again(legacy.enable_loadavg)),
            no_cpu_view: views
                .no_cpu_view
                .or(off_again(legacy.enable_cfs && views.cpus.is_none())),
            no_psi_poll: views.no_psi_poll.or(off_again(legacy.enable_psi_poll)),
            ..views
        };
        Ok((settings, notes))
    }
}
