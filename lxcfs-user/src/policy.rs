//! What the operator chose to show; the defaults are the project's recommendation.

use lxcfs_common::catalogue::{CATALOGUE, Entry, Node};
use lxcfs_common::pod;

/// A choice with names: one table serves the command line, the configuration file, the
/// errors and the manual.
pub trait Named: Copy + Default + PartialEq + 'static {
    /// Name, choice, and one line for `--help`.
    const NAMES: &'static [(&'static str, Self, &'static str)];

    /// The choice called `name`.
    #[must_use]
    fn from_name(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(known, ..)| *known == name)
            .map(|(_, choice, _)| *choice)
    }

    /// What this choice is called.
    #[must_use]
    fn name(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(_, choice, _)| *choice == self)
            .map_or("", |(name, ..)| name)
    }
}

impl Named for CpuPolicy {
    const NAMES: &'static [(&'static str, Self, &'static str)] = &[
        (
            "quota",
            Self::Quota,
            "the effective cpuset, narrowed to the quota rounded up",
        ),
        ("cpuset", Self::Cpuset, "the effective cpuset alone"),
        ("host", Self::Host, "all CPUs of the host"),
    ];
}

impl Named for CpuNumbering {
    const NAMES: &'static [(&'static str, Self, &'static str)] = &[
        ("sequential", Self::Sequential, "0 to N-1"),
        (
            "physical",
            Self::Physical,
            "the host's numbers (not with --cpus quota)",
        ),
    ];
}

impl Named for BoundaryPolicy {
    const NAMES: &'static [(&'static str, Self, &'static str)] = &[
        (
            "auto",
            Self::Auto,
            "cgroup namespace, then the runtime's naming, then PID namespace, then host",
        ),
        (
            "cgroupns",
            Self::Cgroupns,
            "only the cgroup namespace decides",
        ),
        (
            "runtime",
            Self::Runtime,
            "only the runtime's naming decides",
        ),
        ("pidns", Self::Pidns, "only the PID namespace decides"),
        (
            "caller",
            Self::Caller,
            "the caller's own cgroup, whatever it is",
        ),
    ];
}

/// Which rule decides the number of CPUs a container sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CpuPolicy {
    /// The effective cpuset, narrowed to the quota rounded up.
    #[default]
    Quota,
    /// The effective cpuset alone.
    Cpuset,
    /// The host's CPUs.
    Host,
}

/// How visible CPUs are numbered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CpuNumbering {
    /// 0 to N-1.
    #[default]
    Sequential,
    /// The host's numbers; only without a quota, which has no CPU of its own.
    Physical,
}

/// Which cgroup is "the container" of a caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BoundaryPolicy {
    /// Cgroup namespace, then runtime naming, then PID namespace, then host.
    #[default]
    Auto,
    /// Only the cgroup namespace decides.
    Cgroupns,
    /// Only the runtime's naming decides.
    Runtime,
    /// Only the PID namespace decides.
    Pidns,
    /// The caller's own cgroup, whatever it is.
    Caller,
}

/// Files switched off, as bits by their place in the catalogue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FilesOff(u64);

const _: () = assert!(CATALOGUE.len() <= 64, "one bit for each entry");

impl FilesOff {
    /// Those that a list of `--disable` names; words that name nothing do nothing.
    #[must_use]
    pub fn from_list(list: &str) -> Self {
        Self((0..CATALOGUE.len()).fold(0, |bits, at| {
            bits | u64::from(pod::switched_off(list, &CATALOGUE[at])) << at
        }))
    }

    /// Whether `node` is switched off, or the tree it is in.
    #[must_use]
    pub fn has(self, node: Node) -> bool {
        if self.0 == 0 {
            return false;
        }
        let is_same = |entry: &Entry| match node {
            Node::Fixed(of) => entry.ino == of.ino,
            Node::Cpu(..) => entry.path == "sys/devices/system/cpu",
            Node::Numa(..) => entry.path == "sys/devices/system/node",
        };
        CATALOGUE
            .iter()
            .position(is_same)
            .is_some_and(|at| self.0 >> at & 1 == 1)
    }
}

/// All choices that change what a view shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ViewPolicy {
    /// Number of CPUs.
    pub cpus: CpuPolicy,
    /// Their numbers.
    pub cpu_numbering: CpuNumbering,
    /// Whether `memory.high` counts as a limit.
    pub memory_high: bool,
    /// Whether swap is shown at all (`-u` turns it off).
    pub swap: bool,
    /// Whether the Zswap lines are shown (`--disable-zswap` turns it off).
    pub zswap: bool,
    /// Whether `/proc/loadavg` is the container's (`--no-loadavg` shows the host's).
    pub loadavg: bool,
    /// Whether `/proc/uptime` is the container's (`--no-uptime` shows the host's).
    pub uptime: bool,
    /// Whether PSI triggers can be written.
    pub psi_triggers: bool,
    /// Which cgroup is the container.
    pub boundary: BoundaryPolicy,
    /// Files that are not served (`--disable`).
    pub off: FilesOff,
}

impl Default for ViewPolicy {
    fn default() -> Self {
        Self {
            cpus: CpuPolicy::default(),
            cpu_numbering: CpuNumbering::default(),
            memory_high: false,
            swap: true,
            zswap: true,
            loadavg: true,
            uptime: true,
            psi_triggers: true,
            boundary: BoundaryPolicy::default(),
            off: FilesOff::default(),
        }
    }
}
