//! All that a view may look at: one container at one moment, with every value knowing
//! where it came from.
//!
//! Version differences end before this point: nothing here says v1 or v2. Everything a
//! kernel may lack is an `Option`; `None` means "not known", never "zero" and never "the
//! host's". A snapshot holds only the [`Inputs`] that the file asked for.

use std::sync::Arc;

use crate::cpuset::CpuSet;
use crate::units::{Bytes, Limit, Nsec, Usec};

/// Which parts of a snapshot a file needs, so that `uptime` never reads `memory.stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Inputs(pub u32);

impl Inputs {
    /// Host's `/proc/meminfo`.
    pub const HOST_MEMINFO: Self = Self(1);
    /// Host's `/proc/stat`.
    pub const HOST_STAT: Self = Self(1 << 1);
    /// Host's `/proc/cpuinfo`.
    pub const HOST_CPUINFO: Self = Self(1 << 2);
    /// Host's `/proc/diskstats` (device names only are taken from it).
    pub const HOST_DISKSTATS: Self = Self(1 << 3);
    /// Host's `/proc/vmstat` (names and order only are taken from it).
    pub const HOST_VMSTAT: Self = Self(1 << 4);
    /// Host's `/proc/slabinfo` header.
    pub const HOST_SLABINFO: Self = Self(1 << 5);
    /// [`Snapshot::memory`].
    pub const MEMORY: Self = Self(1 << 8);
    /// [`Snapshot::swap`].
    pub const SWAP: Self = Self(1 << 9);
    /// [`Snapshot::hugetlb`].
    pub const HUGETLB: Self = Self(1 << 10);
    /// [`Snapshot::cpus`].
    pub const CPUS: Self = Self(1 << 11);
    /// [`Snapshot::cpu_time`].
    pub const CPU_TIME: Self = Self(1 << 12);
    /// [`Snapshot::tasks`].
    pub const TASKS: Self = Self(1 << 13);
    /// [`Snapshot::io`].
    pub const IO: Self = Self(1 << 14);
    /// [`Snapshot::pressure`].
    pub const PRESSURE: Self = Self(1 << 15);
    /// [`Snapshot::age`].
    pub const AGE: Self = Self(1 << 16);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is asked for.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Where a value came from, cheap enough to carry always; `lxcfs show --explain` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A file of the container's cgroup or of an ancestor.
    Cgroup {
        /// Whose hierarchy; [`Snapshot::cgroup_paths`] has the container's path in it.
        controller: Controller,
        /// 0 = the container's own cgroup, 1 = its parent, and so on.
        levels_up: u16,
        /// File name, e.g. `memory.max`.
        file: &'static str,
    },
    /// A host file, where the line describes the machine or the container has no limit.
    Host(&'static str),
    /// An eBPF program.
    Bpf(&'static str),
    /// Computed from other values by the named rule.
    Derived(&'static str),
    /// Nothing gives it on this kernel; the value shown is the documented substitute.
    Unavailable(&'static str),
}

/// A cgroup controller, by the kernel's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Controller {
    /// `memory`
    Memory = 0,
    /// `cpu`
    Cpu = 1,
    /// `cpuacct` (v1; on v2 part of the core's `cpu.stat`)
    Cpuacct = 2,
    /// `cpuset`
    Cpuset = 3,
    /// `io`, called `blkio` on v1
    Io = 4,
    /// `hugetlb`
    Hugetlb = 5,
    /// `pids`
    Pids = 6,
    /// The hierarchy that names the container: v2 where it is used, else a v1 one.
    Unified = 7,
}

impl Controller {
    /// Every controller, in the order of the discriminants.
    pub const ALL: [Self; 8] = [
        Self::Memory,
        Self::Cpu,
        Self::Cpuacct,
        Self::Cpuset,
        Self::Io,
        Self::Hugetlb,
        Self::Pids,
        Self::Unified,
    ];
}

/// A value and where it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided<T> {
    /// The value.
    pub value: T,
    /// Its source; for a minimum over ancestors, the one that decided.
    pub origin: Origin,
}

/// Facts of the machine that do not change while the daemon runs (hotplug aside).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineFacts {
    /// `sysconf(_SC_PAGESIZE)`.
    pub page_size: Bytes,
    /// `sysconf(_SC_CLK_TCK)`, ticks per second of `/proc/stat`.
    pub user_hz: u64,
    /// `/sys/devices/system/cpu/possible`.
    pub possible_cpus: CpuSet,
    /// `/sys/devices/system/cpu/online`.
    pub online_cpus: CpuSet,
}

/// Host files, as text; `None` where not asked for or not there.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// `/proc/meminfo`
    pub meminfo: Option<String>,
    /// `/proc/stat`
    pub stat: Option<String>,
    /// `/proc/cpuinfo`
    pub cpuinfo: Option<String>,
    /// `/proc/diskstats`
    pub diskstats: Option<String>,
    /// `/proc/vmstat`
    pub vmstat: Option<String>,
    /// `/proc/slabinfo`, the two header lines only
    pub slabinfo: Option<String>,
}

/// One container at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The machine.
    pub facts: Arc<MachineFacts>,
    /// Host templates.
    pub host: Host,
    /// The container's path per [`Controller`] (index = discriminant), below the
    /// hierarchy's root, with a leading `/`; `None` where the controller is not mounted.
    pub cgroup_paths: Arc<[Option<Box<str>>; 8]>,
    /// Memory limit, use and statistics.
    pub memory: Option<Memory>,
    /// Swap limit and use.
    pub swap: Option<Swap>,
    /// One per huge page size that the controller knows.
    pub hugetlb: Option<Vec<HugePages>>,
    /// CPUs and quota.
    pub cpus: Option<Cpus>,
    /// CPU time used since the container was created.
    pub cpu_time: Option<CpuTime>,
    /// Task counts and load.
    pub tasks: Option<Tasks>,
    /// Block devices touched.
    pub io: Option<Decided<Vec<IoDevice>>>,
    /// The cgroup's own PSI text, by [`PressureKind`] discriminant.
    pub pressure: [Option<String>; 4],
    /// When the container started and what time it is.
    pub age: Option<Age>,
}

/// Memory of a container.
#[derive(Clone, Debug)]
pub struct Memory {
    /// The tightest limit of the container and all its ancestors.
    pub limit: Decided<Limit<Bytes>>,
    /// Minimum over every limited level of its limit less its use, so that siblings under
    /// a shared limit count; `None` when nothing in the chain is limited.
    pub headroom: Option<Decided<Bytes>>,
    /// What the container uses (of the nearest level that has the controller).
    pub usage: Decided<Bytes>,
    /// Statistics of the nearest level that has the controller.
    pub stat: Decided<MemoryStat>,
}

/// `memory.stat` by v2's names; v1's `total_*` are mapped onto them. `None` = the kernel
/// does not count it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the names are the kernel's own memory.stat keys"
)]
pub struct MemoryStat {
    pub anon: Option<Bytes>,
    pub file: Option<Bytes>,
    pub kernel_stack: Option<Bytes>,
    pub pagetables: Option<Bytes>,
    pub sec_pagetables: Option<Bytes>,
    pub percpu: Option<Bytes>,
    pub sock: Option<Bytes>,
    pub vmalloc: Option<Bytes>,
    pub shmem: Option<Bytes>,
    pub zswap: Option<Bytes>,
    pub zswapped: Option<Bytes>,
    pub file_mapped: Option<Bytes>,
    pub file_dirty: Option<Bytes>,
    pub file_writeback: Option<Bytes>,
    pub swapcached: Option<Bytes>,
    pub anon_thp: Option<Bytes>,
    pub file_thp: Option<Bytes>,
    pub shmem_thp: Option<Bytes>,
    pub inactive_anon: Option<Bytes>,
    pub active_anon: Option<Bytes>,
    pub inactive_file: Option<Bytes>,
    pub active_file: Option<Bytes>,
    pub unevictable: Option<Bytes>,
    pub slab_reclaimable: Option<Bytes>,
    pub slab_unreclaimable: Option<Bytes>,
    pub slab: Option<Bytes>,
    /// Event counters under the names of `/proc/vmstat` (`pgfault`, `pgscan_kswapd` …).
    pub events: Vec<(Box<str>, u64)>,
}

/// Swap of a container; the difference of v1's memsw and memory limits is already taken.
#[derive(Clone, Debug)]
pub struct Swap {
    /// The tightest swap limit of the chain.
    pub limit: Decided<Limit<Bytes>>,
    /// Minimum over every limited level of its swap limit less its swap use.
    pub headroom: Option<Decided<Bytes>>,
    /// What the container has swapped out.
    pub usage: Decided<Bytes>,
}

/// One huge page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// Size of one page.
    pub size: Bytes,
    /// The tightest limit of the chain.
    pub limit: Decided<Limit<Bytes>>,
    /// In use by the container.
    pub usage: Decided<Bytes>,
}

/// Which CPUs, and how much of them.
#[derive(Clone, Debug)]
pub struct Cpus {
    /// The effective cpuset: what the scheduler really allows.
    pub effective: Decided<CpuSet>,
    /// The tightest quota of the chain, if any level has one.
    pub quota: Option<Decided<Quota>>,
}

/// `cpu.max`, or v1's `cpu.cfs_quota_us` and `cpu.cfs_period_us`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Run time allowed per period.
    pub quota: Usec,
    /// The period; never zero.
    pub period: Usec,
}

/// CPU time used by the container's whole subtree, removed children included.
#[derive(Clone, Debug)]
pub struct CpuTime {
    /// All of it.
    pub usage: Nsec,
    /// In user mode; `user + system == usage`.
    pub user: Nsec,
    /// In kernel mode.
    pub system: Nsec,
    /// Per physical CPU, ascending; `None` where nothing tells them apart.
    pub per_cpu: Option<Vec<PerCpuTime>>,
    /// What gave the figures (of `per_cpu` if there, else of the totals).
    pub origin: Origin,
}

/// Time used on one physical CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerCpuTime {
    /// Physical CPU number.
    pub cpu: u32,
    /// User mode, `nice` included.
    pub user: Nsec,
    /// Kernel mode.
    pub system: Nsec,
    /// The part of `user` that ran niced, where known (0 otherwise).
    pub nice: Nsec,
}

/// Tasks of the container's whole subtree.
#[derive(Clone, Copy, Debug)]
pub struct Tasks {
    /// Runnable or running now.
    pub running: u32,
    /// In uninterruptible sleep, as the kernel's load average counts it.
    pub uninterruptible: u32,
    /// Threads.
    pub threads: u32,
    /// Processes forked since the container started, where counted.
    pub forks: Option<u64>,
    /// The newest PID **as the container sees it**; `None` if not known.
    pub newest_pid: Option<u32>,
    /// The kernel's `avenrun` for this container: 1, 5 and 15 minutes, 11 fractional bits.
    pub avenrun: Option<[u64; 3]>,
    /// What counted them.
    pub origin: Origin,
}

/// One block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the names are those of the kernel's diskstats columns"
)]
pub struct IoDevice {
    pub major: u32,
    pub minor: u32,
    pub reads: u64,
    pub read_bytes: Bytes,
    pub writes: u64,
    pub written_bytes: Bytes,
    pub discards: u64,
    pub discarded_bytes: Bytes,
    /// Merges and times, where eBPF counts them.
    pub times: Option<IoTimes>,
}

/// What only eBPF knows of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the names are those of the kernel's diskstats columns"
)]
pub struct IoTimes {
    pub reads_merged: u64,
    pub read_time: Nsec,
    pub writes_merged: u64,
    pub write_time: Nsec,
    pub discards_merged: u64,
    pub discard_time: Nsec,
    pub in_flight: u64,
    pub io_time: Nsec,
}

/// The PSI files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the kernel's file names")]
pub enum PressureKind {
    Cpu = 0,
    Memory = 1,
    Io = 2,
    Irq = 3,
}

/// The container's start and the present, on the same clock.
#[derive(Clone, Copy, Debug)]
pub struct Age {
    /// `CLOCK_BOOTTIME` at which the container's init started.
    pub start: Nsec,
    /// `CLOCK_BOOTTIME` at the moment of the snapshot.
    pub now: Nsec,
    /// Boottime offset of the caller's time namespace, in nanoseconds; 0 without one.
    pub timens_offset: i64,
    /// What gave the start time.
    pub origin: Origin,
}

impl Age {
    /// How long the container has been running.
    #[must_use]
    pub const fn elapsed(&self) -> Nsec {
        self.now.less(self.start)
    }
}
