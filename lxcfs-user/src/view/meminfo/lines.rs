//! The one table of `/proc/meminfo` lines: label, where the value comes from, formula.
//! `docs/virtual-files.md` is checked against it.

use crate::snapshot::MemoryStat;
use crate::units::Bytes;

/// A counter of `memory.stat`.
pub type Field = fn(&MemoryStat) -> Option<Bytes>;

/// Where the value of a line comes from.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// The limit, at most the machine's memory.
    Total,
    /// What the tightest level has left.
    Free,
    /// `Free` and what can be reclaimed.
    Available,
    /// 0: not counted per cgroup.
    Zero,
    /// A counter; 0 on kernels that lack it.
    Counter(Field),
    /// Two lines shown further down, added up as shown.
    Sum(Field, Field),
    /// A counter that `--disable-zswap` hides.
    Zswap(Field),
    /// The swap limit, at most the machine's swap.
    SwapTotal,
    /// What the tightest level has left of it.
    SwapFree,
    /// Pages of the default huge page size, where the controller knows them.
    HugePagesTotal,
    /// Those not in use.
    HugePagesFree,
    /// Pool state that has no meaning per cgroup: 0 where the controller knows the pages.
    HugePagesOther,
    /// All huge page sizes together.
    Hugetlb,
    /// Describes the machine: stays as the host's.
    Host,
}

/// One line of `/proc/meminfo`.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// Label without the colon.
    pub name: &'static str,
    /// Where the value comes from.
    pub rule: Rule,
    /// The formula, in `memory.stat` names; for host-only lines, what it says of the machine.
    pub formula: &'static str,
}

const fn line(name: &'static str, rule: Rule, formula: &'static str) -> Line {
    Line {
        name,
        rule,
        formula,
    }
}

const fn counter(name: &'static str, field: Field, formula: &'static str) -> Line {
    line(name, Rule::Counter(field), formula)
}

const fn host(name: &'static str, describes: &'static str) -> Line {
    line(name, Rule::Host, describes)
}

/// Anonymous memory. Without `anon`, the anonymous LRU less shmem is the nearest; shmem that
/// is mlocked is not on that LRU, so the difference must saturate (F8).
fn anon(stat: &MemoryStat) -> Option<Bytes> {
    stat.anon.or_else(|| {
        let lru = stat.active_anon?.plus(stat.inactive_anon?);
        Some(lru.less(stat.shmem.unwrap_or(Bytes::ZERO)))
    })
}

fn unreclaimable(stat: &MemoryStat) -> Option<Bytes> {
    let rest = |slab: Bytes| slab.less(stat.slab_reclaimable.unwrap_or(Bytes::ZERO));
    stat.slab_unreclaimable.or_else(|| stat.slab.map(rest))
}

/// Every known line, in the kernel's order (`meminfo_proc_show`).
pub const LINES: &[Line] = &[
    line(
        "MemTotal",
        Rule::Total,
        "min(tightest limit, host MemTotal)",
    ),
    line(
        "MemFree",
        Rule::Free,
        "min(MemTotal - usage, limit - usage of every limited ancestor, host MemFree, host MemAvailable)",
    ),
    line(
        "MemAvailable",
        Rule::Available,
        "MemFree + (file pages on the LRU, less the low watermark) + (slab_reclaimable, less the low watermark), at most MemTotal and host MemAvailable",
    ),
    line(
        "Buffers",
        Rule::Zero,
        "0: a cgroup has no buffer pages of its own",
    ),
    counter("Cached", |s| s.file, "file"),
    counter("SwapCached", |s| s.swapcached, "swapcached"),
    line(
        "Active",
        Rule::Sum(|s| s.active_anon, |s| s.active_file),
        "Active(anon) + Active(file)",
    ),
    line(
        "Inactive",
        Rule::Sum(|s| s.inactive_anon, |s| s.inactive_file),
        "Inactive(anon) + Inactive(file)",
    ),
    counter("Active(anon)", |s| s.active_anon, "active_anon"),
    counter("Inactive(anon)", |s| s.inactive_anon, "inactive_anon"),
    counter("Active(file)", |s| s.active_file, "active_file"),
    counter("Inactive(file)", |s| s.inactive_file, "inactive_file"),
    counter("Unevictable", |s| s.unevictable, "unevictable"),
    line("Mlocked", Rule::Zero, "0: not counted per cgroup"),
    host("HighTotal", "high memory of a 32-bit machine"),
    host("HighFree", "high memory of a 32-bit machine"),
    host("LowTotal", "low memory of a 32-bit machine"),
    host("LowFree", "low memory of a 32-bit machine"),
    host("MmapCopy", "memory of a machine without MMU"),
    line(
        "SwapTotal",
        Rule::SwapTotal,
        "min(tightest swap limit, host SwapTotal)",
    ),
    line(
        "SwapFree",
        Rule::SwapFree,
        "min(SwapTotal - swap usage, limit - usage of every limited ancestor, host SwapFree)",
    ),
    line("Zswap", Rule::Zswap(|s| s.zswap), "zswap"),
    line("Zswapped", Rule::Zswap(|s| s.zswapped), "zswapped"),
    counter("Dirty", |s| s.file_dirty, "file_dirty"),
    counter("Writeback", |s| s.file_writeback, "file_writeback"),
    counter("AnonPages", anon, "anon"),
    counter("Mapped", |s| s.file_mapped, "file_mapped"),
    counter("Shmem", |s| s.shmem, "shmem"),
    counter("KReclaimable", |s| s.slab_reclaimable, "slab_reclaimable"),
    line(
        "Slab",
        Rule::Sum(|s| s.slab_reclaimable, unreclaimable),
        "SReclaimable + SUnreclaim",
    ),
    counter("SReclaimable", |s| s.slab_reclaimable, "slab_reclaimable"),
    counter("SUnreclaim", unreclaimable, "slab_unreclaimable"),
    counter("KernelStack", |s| s.kernel_stack, "kernel_stack"),
    host("ShadowCallStack", "shadow stacks of the whole kernel"),
    counter("PageTables", |s| s.pagetables, "pagetables"),
    counter("SecPageTables", |s| s.sec_pagetables, "sec_pagetables"),
    host("NFS_Unstable", "always 0 since Linux 5.8"),
    host("Bounce", "bounce buffers of the machine's devices"),
    host("WritebackTmp", "FUSE write-back of the machine"),
    host("CommitLimit", "overcommit is decided for the machine"),
    host("Committed_AS", "overcommit is decided for the machine"),
    host("VmallocTotal", "address space of the kernel"),
    counter("VmallocUsed", |s| s.vmalloc, "vmalloc"),
    host("VmallocChunk", "address space of the kernel"),
    counter("Percpu", |s| s.percpu, "percpu"),
    host("EarlyMemtestBad", "bad memory of the machine"),
    host("HardwareCorrupted", "bad memory of the machine"),
    counter("AnonHugePages", |s| s.anon_thp, "anon_thp"),
    counter("ShmemHugePages", |s| s.shmem_thp, "shmem_thp"),
    line("ShmemPmdMapped", Rule::Zero, "0: not counted per cgroup"),
    counter("FileHugePages", |s| s.file_thp, "file_thp"),
    line("FilePmdMapped", Rule::Zero, "0: not counted per cgroup"),
    host("CmaTotal", "contiguous memory of the machine"),
    host("CmaFree", "contiguous memory of the machine"),
    host("Unaccepted", "memory a confidential guest has not accepted"),
    host("Balloon", "memory the hypervisor took back"),
    host("GPUActive", "memory of the machine's graphics devices"),
    host("GPUReclaim", "memory of the machine's graphics devices"),
    line(
        "HugePages_Total",
        Rule::HugePagesTotal,
        "min(tightest hugetlb limit, host pool) / Hugepagesize",
    ),
    line(
        "HugePages_Free",
        Rule::HugePagesFree,
        "min(HugePages_Total - hugetlb usage, host HugePages_Free)",
    ),
    line(
        "HugePages_Rsvd",
        Rule::HugePagesOther,
        "0: reservations are not told per cgroup",
    ),
    line(
        "HugePages_Surp",
        Rule::HugePagesOther,
        "0: surplus pages belong to the machine's pool",
    ),
    host("Hugepagesize", "default huge page size of the machine"),
    line(
        "Hugetlb",
        Rule::Hugetlb,
        "HugePages_Total x Hugepagesize + the limits of other sizes, at most the host's",
    ),
    host("DirectMap4k", "the kernel's map of physical memory"),
    host("DirectMap64k", "the kernel's map of physical memory"),
    host("DirectMap2M", "the kernel's map of physical memory"),
    host("DirectMap4M", "the kernel's map of physical memory"),
    host("DirectMap1M", "the kernel's map of physical memory"),
    host("DirectMap1G", "the kernel's map of physical memory"),
    host("DirectMap2G", "the kernel's map of physical memory"),
];

/// The line called `name`. `from` is where the last one was found: files are in the table's
/// order, so the next label is nearly always the next line.
pub(super) fn find(name: &str, from: &mut usize) -> Option<&'static Line> {
    let rest = LINES.iter().enumerate().skip(*from);
    let before = LINES.iter().enumerate().take(*from);
    let (at, line) = rest.chain(before).find(|(_, line)| line.name == name)?;
    *from = at + 1;
    Some(line)
}
