//! `/proc/meminfo`: the container's memory in the host's template.
//!
//! The host's file gives order, labels and the lines that describe the machine;
//! [`LINES`] says where every known line comes from. A line the table does not know is
//! new in the kernel and is copied, so that no tool misses it.

use super::format::{leading_u64, put_label, put_width, split_label};
use super::swaps;
use crate::engine::AnswerError;
use crate::policy::ViewPolicy;
use crate::snapshot::{HugePages, Inputs, Memory, MemoryStat, Origin, Snapshot};
use crate::units::{Bytes, Kib, Limit};

/// What [`render`] needs.
pub const INPUTS: Inputs = Inputs::HOST_MEMINFO
    .and(Inputs::MEMORY)
    .and(Inputs::SWAP)
    .and(Inputs::HUGETLB);

/// Column where the kernel's numbers begin, before their own width.
const LABEL: usize = 16;

/// Where the value of a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "one variant per kernel line; LINES has the formula of each"
)]
pub enum Rule {
    Total,
    Free,
    Available,
    Zero,
    Cached,
    SwapCached,
    Active,
    Inactive,
    ActiveAnon,
    InactiveAnon,
    ActiveFile,
    InactiveFile,
    Unevictable,
    SwapTotal,
    SwapFree,
    Zswap,
    Zswapped,
    Dirty,
    Writeback,
    AnonPages,
    Mapped,
    Shmem,
    SReclaimable,
    Slab,
    SUnreclaim,
    KernelStack,
    PageTables,
    SecPageTables,
    VmallocUsed,
    Percpu,
    AnonHugePages,
    ShmemHugePages,
    FileHugePages,
    HugePagesTotal,
    HugePagesFree,
    HugePagesOther,
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
    line("Cached", Rule::Cached, "file"),
    line("SwapCached", Rule::SwapCached, "swapcached"),
    line("Active", Rule::Active, "Active(anon) + Active(file)"),
    line(
        "Inactive",
        Rule::Inactive,
        "Inactive(anon) + Inactive(file)",
    ),
    line("Active(anon)", Rule::ActiveAnon, "active_anon"),
    line("Inactive(anon)", Rule::InactiveAnon, "inactive_anon"),
    line("Active(file)", Rule::ActiveFile, "active_file"),
    line("Inactive(file)", Rule::InactiveFile, "inactive_file"),
    line("Unevictable", Rule::Unevictable, "unevictable"),
    line("Mlocked", Rule::Zero, "0: not counted per cgroup"),
    line("HighTotal", Rule::Host, "high memory of a 32-bit machine"),
    line("HighFree", Rule::Host, "high memory of a 32-bit machine"),
    line("LowTotal", Rule::Host, "low memory of a 32-bit machine"),
    line("LowFree", Rule::Host, "low memory of a 32-bit machine"),
    line("MmapCopy", Rule::Host, "memory of a machine without MMU"),
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
    line("Zswap", Rule::Zswap, "zswap"),
    line("Zswapped", Rule::Zswapped, "zswapped"),
    line("Dirty", Rule::Dirty, "file_dirty"),
    line("Writeback", Rule::Writeback, "file_writeback"),
    line("AnonPages", Rule::AnonPages, "anon"),
    line("Mapped", Rule::Mapped, "file_mapped"),
    line("Shmem", Rule::Shmem, "shmem"),
    line("KReclaimable", Rule::SReclaimable, "slab_reclaimable"),
    line("Slab", Rule::Slab, "SReclaimable + SUnreclaim"),
    line("SReclaimable", Rule::SReclaimable, "slab_reclaimable"),
    line("SUnreclaim", Rule::SUnreclaim, "slab_unreclaimable"),
    line("KernelStack", Rule::KernelStack, "kernel_stack"),
    line(
        "ShadowCallStack",
        Rule::Host,
        "shadow stacks of the whole kernel",
    ),
    line("PageTables", Rule::PageTables, "pagetables"),
    line("SecPageTables", Rule::SecPageTables, "sec_pagetables"),
    line("NFS_Unstable", Rule::Host, "always 0 since Linux 5.8"),
    line(
        "Bounce",
        Rule::Host,
        "bounce buffers of the machine's devices",
    ),
    line("WritebackTmp", Rule::Host, "FUSE write-back of the machine"),
    line(
        "CommitLimit",
        Rule::Host,
        "overcommit is decided for the machine",
    ),
    line(
        "Committed_AS",
        Rule::Host,
        "overcommit is decided for the machine",
    ),
    line("VmallocTotal", Rule::Host, "address space of the kernel"),
    line("VmallocUsed", Rule::VmallocUsed, "vmalloc"),
    line("VmallocChunk", Rule::Host, "address space of the kernel"),
    line("Percpu", Rule::Percpu, "percpu"),
    line("EarlyMemtestBad", Rule::Host, "bad memory of the machine"),
    line("HardwareCorrupted", Rule::Host, "bad memory of the machine"),
    line("AnonHugePages", Rule::AnonHugePages, "anon_thp"),
    line("ShmemHugePages", Rule::ShmemHugePages, "shmem_thp"),
    line("ShmemPmdMapped", Rule::Zero, "0: not counted per cgroup"),
    line("FileHugePages", Rule::FileHugePages, "file_thp"),
    line("FilePmdMapped", Rule::Zero, "0: not counted per cgroup"),
    line("CmaTotal", Rule::Host, "contiguous memory of the machine"),
    line("CmaFree", Rule::Host, "contiguous memory of the machine"),
    line(
        "Unaccepted",
        Rule::Host,
        "memory a confidential guest has not accepted",
    ),
    line("Balloon", Rule::Host, "memory the hypervisor took back"),
    line(
        "GPUActive",
        Rule::Host,
        "memory of the machine's graphics devices",
    ),
    line(
        "GPUReclaim",
        Rule::Host,
        "memory of the machine's graphics devices",
    ),
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
    line(
        "Hugepagesize",
        Rule::Host,
        "default huge page size of the machine",
    ),
    line(
        "Hugetlb",
        Rule::Hugetlb,
        "HugePages_Total x Hugepagesize + the limits of other sizes, at most the host's",
    ),
    line(
        "DirectMap4k",
        Rule::Host,
        "the kernel's map of physical memory",
    ),
    line(
        "DirectMap64k",
        Rule::Host,
        "the kernel's map of physical memory",
    ),
    line(
        "DirectMap2M",
        Rule::Host,
        "the kernel's map of physical memory",
    ),
    line(
        "DirectMap4M",
        Rule::Host,
        "the kernel's map of physical memory",
    ),
    line(
        "DirectMap1M",
        Rule::Host,
        "the kernel's map of physical memory",
    ),
    line(
        "DirectMap1G",
        Rule::Host,
        "the kernel's map of physical memory",
    ),
    line(
        "DirectMap2G",
        Rule::Host,
        "the kernel's map of physical memory",
    ),
];

/// What the host's file says about limits and pools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostMeminfo {
    pub(crate) total: Kib,
    pub(crate) free: Kib,
    /// Missing before Linux 3.14.
    pub(crate) available: Option<Kib>,
    pub(crate) swap_total: Kib,
    pub(crate) swap_free: Kib,
    huge_total: u64,
    huge_free: u64,
    huge_size: Kib,
    hugetlb: Kib,
}

impl HostMeminfo {
    pub(crate) fn parse(text: &str) -> Self {
        let mut host = Self::default();
        for (name, rest) in text.lines().filter_map(split_label) {
            let field = match name {
                "MemTotal" => &mut host.total.0,
                "MemFree" => &mut host.free.0,
                "MemAvailable" => {
                    host.available = leading_u64(rest).map(Kib);
                    continue;
                }
                "SwapTotal" => &mut host.swap_total.0,
                "SwapFree" => &mut host.swap_free.0,
                "HugePages_Total" => &mut host.huge_total,
                "HugePages_Free" => &mut host.huge_free,
                "Hugepagesize" => &mut host.huge_size.0,
                "Hugetlb" => &mut host.hugetlb.0,
                _ => continue,
            };
            *field = leading_u64(rest).unwrap_or(0);
        }
        host
    }
}

/// Huge page lines where the controller knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Huge {
    total: u64,
    free: u64,
    hugetlb: Kib,
    total_origin: Origin,
    free_origin: Origin,
}

/// The container's values, and what decided the ones with a choice.
#[derive(Clone, Debug)]
pub(crate) struct Meminfo<'a> {
    pub(crate) total: Kib,
    pub(crate) free: Kib,
    pub(crate) available: Kib,
    pub(crate) stat: &'a MemoryStat,
    swap: swaps::SwapView,
    huge: Option<Huge>,
    zswap: bool,
    total_origin: Origin,
    free_origin: Origin,
    stat_origin: Origin,
}

const HOST: Origin = Origin::Host("/proc/meminfo");

impl<'a> Meminfo<'a> {
    /// `None` where no level has a memory controller: then nothing narrows the machine
    /// for the container and only the host's own lines are true.
    pub(crate) fn derive(
        snapshot: &'a Snapshot,
        host: &HostMeminfo,
        policy: &ViewPolicy,
    ) -> Option<Self> {
        let memory = snapshot.memory.as_ref()?;
        let (total, total_origin) = total(memory, host);
        let (free, free_origin) = free(memory, host, total);
        let stat = &memory.stat.value;
        let available = available(stat, host, total, free);
        Some(Self {
            total,
            free,
            available,
            swap: swaps::SwapView::derive(snapshot, host, policy),
            huge: huge(snapshot.hugetlb.as_deref(), host),
            zswap: policy.zswap,
            total_origin,
            free_origin,
            stat_origin: memory.stat.origin,
            stat,
        })
    }

    /// Value of a line in kB (or in pages for `HugePages_*`); `None` leaves the host's.
    pub(crate) fn value(&self, rule: Rule) -> Option<u64> {
        let stat = self.stat;
        let sum = |a: Option<Bytes>, b: Option<Bytes>| kib(a).plus(kib(b));
        Some(match rule {
            Rule::Total => self.total.0,
            Rule::Free => self.free.0,
            Rule::Available => self.available.0,
            Rule::Zero => 0,
            Rule::Cached => kib(stat.file).0,
            Rule::SwapCached => kib(stat.swapcached).0,
            Rule::Active => sum(stat.active_anon, stat.active_file).0,
            Rule::Inactive => sum(stat.inactive_anon, stat.inactive_file).0,
            Rule::ActiveAnon => kib(stat.active_anon).0,
            Rule::InactiveAnon => kib(stat.inactive_anon).0,
            Rule::ActiveFile => kib(stat.active_file).0,
            Rule::InactiveFile => kib(stat.inactive_file).0,
            Rule::Unevictable => kib(stat.unevictable).0,
            Rule::SwapTotal => self.swap.total.0,
            Rule::SwapFree => self.swap.free.0,
            Rule::Zswap | Rule::Zswapped if !self.zswap => 0,
            Rule::Zswap => kib(stat.zswap).0,
            Rule::Zswapped => kib(stat.zswapped).0,
            Rule::Dirty => kib(stat.file_dirty).0,
            Rule::Writeback => kib(stat.file_writeback).0,
            Rule::AnonPages => kib(anon(stat)).0,
            Rule::Mapped => kib(stat.file_mapped).0,
            Rule::Shmem => kib(stat.shmem).0,
            Rule::SReclaimable => kib(stat.slab_reclaimable).0,
            Rule::Slab => kib(stat.slab_reclaimable).plus(unreclaimable(stat)).0,
            Rule::SUnreclaim => unreclaimable(stat).0,
            Rule::KernelStack => kib(stat.kernel_stack).0,
            Rule::PageTables => kib(stat.pagetables).0,
            Rule::SecPageTables => kib(stat.sec_pagetables).0,
            Rule::VmallocUsed => kib(stat.vmalloc).0,
            Rule::Percpu => kib(stat.percpu).0,
            Rule::AnonHugePages => kib(stat.anon_thp).0,
            Rule::ShmemHugePages => kib(stat.shmem_thp).0,
            Rule::FileHugePages => kib(stat.file_thp).0,
            Rule::HugePagesTotal => self.huge?.total,
            Rule::HugePagesFree => self.huge?.free,
            Rule::HugePagesOther => {
                self.huge?;
                0
            }
            Rule::Hugetlb => self.huge?.hugetlb.0,
            Rule::Host => return None,
        })
    }

    fn origin(&self, rule: Rule) -> Origin {
        let stat = self.stat;
        let counter = |value: Option<Bytes>| match value {
            Some(_) => self.stat_origin,
            None => Origin::Unavailable("memory.stat of this kernel lacks it; 0 is shown"),
        };
        match rule {
            Rule::Total => self.total_origin,
            Rule::Free => self.free_origin,
            Rule::Available => Origin::Derived("MemFree and memory.stat"),
            Rule::Zero => Origin::Unavailable("not counted per cgroup; 0 is shown"),
            Rule::Active | Rule::Inactive | Rule::Slab => {
                Origin::Derived("the parts shown below it")
            }
            Rule::Cached => counter(stat.file),
            Rule::SwapCached => counter(stat.swapcached),
            Rule::ActiveAnon => counter(stat.active_anon),
            Rule::InactiveAnon => counter(stat.inactive_anon),
            Rule::ActiveFile => counter(stat.active_file),
            Rule::InactiveFile => counter(stat.inactive_file),
            Rule::Unevictable => counter(stat.unevictable),
            Rule::SwapTotal => self.swap.total_origin,
            Rule::SwapFree => self.swap.free_origin,
            Rule::Zswap | Rule::Zswapped if !self.zswap => Origin::Derived("zswap is turned off"),
            Rule::Zswap => counter(stat.zswap),
            Rule::Zswapped => counter(stat.zswapped),
            Rule::Dirty => counter(stat.file_dirty),
            Rule::Writeback => counter(stat.file_writeback),
            Rule::AnonPages => counter(anon(stat)),
            Rule::Mapped => counter(stat.file_mapped),
            Rule::Shmem => counter(stat.shmem),
            Rule::SReclaimable => counter(stat.slab_reclaimable),
            Rule::SUnreclaim => counter(stat.slab_unreclaimable.or(stat.slab)),
            Rule::KernelStack => counter(stat.kernel_stack),
            Rule::PageTables => counter(stat.pagetables),
            Rule::SecPageTables => counter(stat.sec_pagetables),
            Rule::VmallocUsed => counter(stat.vmalloc),
            Rule::Percpu => counter(stat.percpu),
            Rule::AnonHugePages => counter(stat.anon_thp),
            Rule::ShmemHugePages => counter(stat.shmem_thp),
            Rule::FileHugePages => counter(stat.file_thp),
            Rule::HugePagesTotal | Rule::Hugetlb => self.huge.map_or(HOST, |h| h.total_origin),
            Rule::HugePagesFree => self.huge.map_or(HOST, |h| h.free_origin),
            Rule::HugePagesOther if self.huge.is_some() => {
                Origin::Unavailable("not counted per cgroup; 0 is shown")
            }
            Rule::HugePagesOther | Rule::Host => HOST,
        }
    }
}

fn kib(bytes: Option<Bytes>) -> Kib {
    bytes.unwrap_or(Bytes::ZERO).to_kib()
}

fn anon(stat: &MemoryStat) -> Option<Bytes> {
    // Without `anon`, the anonymous LRU less shmem is the nearest; shmem that is mlocked is
    // not on that LRU, so the difference must saturate (F8).
    stat.anon.or_else(|| {
        let lru = stat.active_anon?.plus(stat.inactive_anon?);
        Some(lru.less(stat.shmem.unwrap_or(Bytes::ZERO)))
    })
}

fn unreclaimable(stat: &MemoryStat) -> Kib {
    match (stat.slab_unreclaimable, stat.slab) {
        (None, Some(slab)) => slab.to_kib().less(kib(stat.slab_reclaimable)),
        (known, _) => kib(known),
    }
}

fn total(memory: &Memory, host: &HostMeminfo) -> (Kib, Origin) {
    match memory.limit.value {
        Limit::Value(limit) if limit.to_kib() <= host.total => {
            (limit.to_kib(), memory.limit.origin)
        }
        _ => (host.total, HOST),
    }
}

fn free(memory: &Memory, host: &HostMeminfo, total: Kib) -> (Kib, Origin) {
    let mut least = (total.less(memory.usage.value.to_kib()), memory.usage.origin);
    let bounds = [
        memory
            .headroom
            .map(|room| (room.value.to_kib(), room.origin)),
        Some((host.free, HOST)),
        // The kernel's own estimate may be below its free pages (reserves); MemFree then
        // gives way, so that MemFree <= MemAvailable holds.
        host.available.map(|available| (available, HOST)),
    ];
    for bound in bounds.into_iter().flatten() {
        if bound.0 < least.0 {
            least = bound;
        }
    }
    least
}

/// The kernel's default low watermark for a machine with `total` memory: 5/4 of
/// `min_free_kbytes`, which `init_per_zone_wmark_min` sets to sqrt(16 x memory) within
/// 128 and 262144 kB.
fn low_watermark(total: Kib) -> Kib {
    let min = total.0.saturating_mul(16).isqrt().clamp(128, 262_144);
    Kib(min + min / 4)
}

/// As `si_mem_available` does: not all page cache can go, at least half of it or the low
/// watermark has to stay, and the same for slab.
fn available(stat: &MemoryStat, host: &HostMeminfo, total: Kib, free: Kib) -> Kib {
    let watermark = low_watermark(total);
    let keep_some = |reclaimable: Kib| reclaimable.less(watermark.min(Kib(reclaimable.0 / 2)));
    // The file LRU has neither shmem (anonymous LRU) nor mlocked pages (unevictable).
    let cache = match (stat.active_file, stat.inactive_file) {
        (None, None) => kib(stat.file).less(kib(stat.shmem)),
        (active, inactive) => kib(active).plus(kib(inactive)),
    };
    free.plus(keep_some(cache))
        .plus(keep_some(kib(stat.slab_reclaimable)))
        .min(total)
        .min(host.available.unwrap_or(total))
}

fn huge(pages: Option<&[HugePages]>, host: &HostMeminfo) -> Option<Huge> {
    let size = host.huge_size.to_bytes();
    let known = pages?.iter().find(|pages| pages.size == size)?;
    let whole_pages = |bytes: Bytes| bytes.0.checked_div(size.0);
    let limited = known.limit.value.value().and_then(whole_pages);
    let total = limited.map_or(host.huge_total, |limit| limit.min(host.huge_total));
    let left = total.saturating_sub(whole_pages(known.usage.value)?);
    let others = pages?.iter().filter(|pages| pages.size != size);
    let other_limits = others
        .map(|pages| pages.limit.value.cap(host.hugetlb.to_bytes()))
        .sum::<Bytes>()
        .to_kib();
    let default_size = Kib(total.saturating_mul(host.huge_size.0));
    Some(Huge {
        total,
        free: left.min(host.huge_free),
        hugetlb: default_size.plus(other_limits).min(host.hugetlb),
        total_origin: if total < host.huge_total {
            known.limit.origin
        } else {
            HOST
        },
        free_origin: if left <= host.huge_free {
            known.usage.origin
        } else {
            HOST
        },
    })
}

/// Finds the rule of a label; `from` is where the last one was found, because the host's
/// file is in the table's order.
fn rule_of(name: &str, from: &mut usize) -> Rule {
    let rest = LINES.iter().enumerate().skip(*from);
    let before = LINES.iter().enumerate().take(*from);
    match rest.chain(before).find(|(_, line)| line.name == name) {
        Some((at, line)) => {
            *from = at + 1;
            line.rule
        }
        None => Rule::Host,
    }
}

fn host_text(snapshot: &Snapshot) -> Result<&str, AnswerError> {
    let text = snapshot.host.meminfo.as_deref();
    text.ok_or(AnswerError::Absent("the host's /proc/meminfo"))
}

/// Appends the container's `/proc/meminfo`.
///
/// # Errors
/// When the snapshot lacks the host's file.
pub fn render(
    snapshot: &Snapshot,
    policy: &ViewPolicy,
    out: &mut Vec<u8>,
) -> Result<(), AnswerError> {
    let text = host_text(snapshot)?;
    let host = HostMeminfo::parse(text);
    let Some(container) = Meminfo::derive(snapshot, &host, policy) else {
        out.extend_from_slice(text.as_bytes());
        return Ok(());
    };
    out.reserve(text.len() + 64);
    let mut from = 0;
    for line in text.lines() {
        let value = split_label(line).and_then(|(name, _)| {
            let rule = rule_of(name, &mut from);
            Some((name, rule, container.value(rule)?))
        });
        match value {
            Some((name, Rule::HugePagesTotal | Rule::HugePagesFree | Rule::HugePagesOther, n)) => {
                // A number of pages: "HugePages_Total:   %5lu", no unit.
                put_label(out, name, LABEL + 3);
                put_width(out, n, 5);
            }
            Some((name, _, n)) => {
                put_label(out, name, LABEL);
                put_width(out, n, 8);
                out.extend_from_slice(b" kB");
            }
            None => out.extend_from_slice(line.as_bytes()),
        }
        out.push(b'\n');
    }
    Ok(())
}

/// Where the value of `label` comes from.
pub(super) fn why(label: &str, snapshot: &Snapshot, policy: &ViewPolicy) -> (Origin, &'static str) {
    let known = LINES.iter().find(|line| line.name == label);
    let host = HostMeminfo::parse(snapshot.host.meminfo.as_deref().unwrap_or(""));
    match (known, Meminfo::derive(snapshot, &host, policy)) {
        (Some(line), Some(container)) => (container.origin(line.rule), line.formula),
        (_, None) => (
            Origin::Unavailable("no memory controller"),
            "nothing narrows the machine's memory for the container",
        ),
        (None, _) => (HOST, "a line this version does not know"),
    }
}

#[cfg(test)]
mod tests;
