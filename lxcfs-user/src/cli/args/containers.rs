//! Arguments of what works on containers: attaching, healing, and serving them as they start.

use std::path::PathBuf;

use clap::Args;

use super::{RuntimeArgs, named};
use crate::config::{Listen, LogFormat, LogLevel};

/// Which containers.
#[derive(Debug, Default, Args)]
pub struct TargetArgs {
    /// All of them
    #[arg(long)]
    pub all: bool,
    /// The container this process runs in (repeatable)
    #[arg(long, value_name = "PID", action = clap::ArgAction::Append)]
    pub pid: Vec<u32>,
    /// The container whose id begins like this (repeatable)
    #[arg(long, value_name = "ID", action = clap::ArgAction::Append)]
    pub container: Vec<String>,
}

/// How a run over containers goes.
#[derive(Debug, Default, Args)]
pub struct RunArgs {
    /// Attach from this mount [default: the configured one, else /var/lib/lxcfs]
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
    /// Report every file, also those that are as wanted
    #[arg(long)]
    pub verbose: bool,
    /// Containers handled at the same time [default: one per core, at most 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub parallel: Option<u32>,
    /// Time one container may take [default: 2000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=600_000))]
    pub deadline_ms: Option<u32>,
}

/// `lxcfs attach`.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("who").args(["all", "pid", "container"]).required(true).multiple(true),
    after_help = "Nothing is needed in the container's image and nothing is restarted. A second run \
                  changes nothing. Files the container has mounted itself are left alone."
)]
pub struct AttachArgs {
    /// Which containers.
    #[command(flatten)]
    pub targets: TargetArgs,
    /// These files only, e.g. meminfo,cpuinfo,pressure; or all but some: -uptime
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    pub files: Option<String>,
    /// Replace working mounts of another lxcfs
    #[arg(long)]
    pub takeover: bool,
    /// How.
    #[command(flatten)]
    pub run: RunArgs,
}

/// `lxcfs detach`.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("who").args(["all", "pid", "container"]).required(true).multiple(true)
)]
pub struct DetachArgs {
    /// Which containers.
    #[command(flatten)]
    pub targets: TargetArgs,
    /// These files only
    #[arg(long, value_name = "LIST")]
    pub files: Option<String>,
    /// How.
    #[command(flatten)]
    pub run: RunArgs,
}

/// `lxcfs heal`.
#[derive(Debug, Args)]
#[command(
    after_help = "Without --pid and --container: every container that has a mount of lxcfs, of this \
                  one, of C lxcfs or of an earlier daemon."
)]
pub struct HealArgs {
    /// Which containers.
    #[command(flatten)]
    pub targets: TargetArgs,
    /// How.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Whom to serve; shared by `agent`, `nri` and `hook`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Who is served")]
pub struct PolicyArgs {
    /// Every container that does not opt out, not only those that ask
    #[arg(long)]
    pub all: bool,
    /// Every pod of this Kubernetes namespace (repeatable)
    #[arg(long, value_name = "NAME", action = clap::ArgAction::Append)]
    pub namespace: Vec<String>,
    /// No pod of this Kubernetes namespace (repeatable)
    #[arg(long, value_name = "NAME", action = clap::ArgAction::Append)]
    pub exclude_namespace: Vec<String>,
    /// Containers whose cgroup path matches, for instance '/lxc.payload.*' (repeatable)
    #[arg(long, value_name = "PATTERN", action = clap::ArgAction::Append)]
    pub cgroup: Vec<String>,
    /// Files for containers that do not choose: meminfo,cpu or -swaps [default: all]
    #[arg(
        long,
        value_name = "LIST",
        allow_hyphen_values = true,
        default_value = "",
        hide_default_value = true
    )]
    pub files: String,
}

/// `lxcfs agent`.
#[derive(Debug, Args)]
#[command(after_help = "\
A container asks by the annotation (Docker: label) lxcfs/inject=true and chooses by lxcfs/files. \
The agent never keeps a container from starting: a runtime waits for it 0.9 s at most.

Examples:
  lxcfs agent                             containers that ask, by whatever runs here
  lxcfs agent --all --exclude-namespace kube-system
  lxcfs agent --cgroup '/lxc.payload.*' --nri off --docker off")]
pub struct AgentArgs {
    /// Attach from this mount
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lxcfs")]
    pub mount: PathBuf,
    /// The same mount as the runtime sees it, when that is elsewhere
    #[arg(long, value_name = "DIR")]
    pub host_mount: Option<PathBuf>,
    /// The runtime's NRI socket, or off
    #[arg(long, value_name = "SOCKET", default_value = "/var/run/nri/nri.sock")]
    pub nri: PathBuf,
    /// dockerd's socket, or off
    #[arg(long, value_name = "SOCKET", default_value = "/var/run/docker.sock")]
    pub docker: PathBuf,
    /// Put nothing into container specs: attach everything right before the start
    #[arg(long)]
    pub no_spec_mounts: bool,
    /// Seconds between looks at all processes; 0 to rely on the runtimes' word alone
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub scan_seconds: u64,
    /// Use no eBPF: containers that no runtime tells of wait for the next scan
    #[arg(long)]
    pub no_ebpf: bool,
    /// Serve /livez, /readyz and /metrics on ADDRESS:PORT, PORT (loopback) or unix:/PATH
    #[arg(long, value_name = "LISTEN")]
    pub metrics: Option<Listen>,
    /// Which daemon takes containers' own rules for their CPUs.
    #[command(flatten)]
    pub runtime: RuntimeArgs,
    /// How much to log [default: info]
    #[arg(long, value_name = "LEVEL", value_parser = named::<LogLevel>())]
    pub log_level: Option<LogLevel>,
    /// What a log line looks like [default: human]
    #[arg(long, value_name = "FORMAT", value_parser = named::<LogFormat>())]
    pub log_format: Option<LogFormat>,
    /// Who is served.
    #[command(flatten)]
    pub policy: PolicyArgs,
}

/// `lxcfs hook`.
#[derive(Debug, Args)]
#[command(after_help = "\
For podman and CRI-O. Always exits with 0: no container fails to start for want of a view.

Example:
  lxcfs hook --print > /etc/containers/oci/hooks.d/lxcfs.json
  podman run --annotation lxcfs/inject=true …")]
pub struct HookArgs {
    /// Attach from this mount
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lxcfs")]
    pub mount: PathBuf,
    /// Print the file for hooks.d instead; with --all, for every container
    #[arg(long)]
    pub print: bool,
    /// Which daemon takes containers' own rules for their CPUs.
    #[command(flatten)]
    pub runtime: RuntimeArgs,
    /// Who is served.
    #[command(flatten)]
    pub policy: PolicyArgs,
}
