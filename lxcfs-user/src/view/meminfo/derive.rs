//! The container's memory figures: limits, what is free, what can be reclaimed.

use super::lines::Rule;
use crate::policy::ViewPolicy;
use crate::snapshot::{HugePages, Memory, MemoryStat, Origin, Snapshot};
use crate::units::{Bytes, Kib, Limit};
use crate::view::format::{leading_u64, split_label};
use crate::view::swaps::SwapView;

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

/// The lines that need a memory controller.
#[derive(Clone, Copy, Debug)]
struct MemoryLines<'a> {
    total: Kib,
    free: Kib,
    available: Kib,
    stat: &'a MemoryStat,
    total_origin: Origin,
    free_origin: Origin,
    stat_origin: Origin,
}

/// The container's values, and what decided the ones with a choice.
#[derive(Clone, Debug)]
pub(crate) struct Meminfo<'a> {
    /// `None` where no level has a memory controller: nothing narrows the machine for the
    /// container then, and only the host's own lines are true.
    memory: Option<MemoryLines<'a>>,
    swap: SwapView,
    huge: Option<Huge>,
    zswap: bool,
}

pub(super) const HOST: Origin = Origin::Host("/proc/meminfo");
const NOT_COUNTED: Origin = Origin::Unavailable("not counted per cgroup; 0 is shown");

impl<'a> Meminfo<'a> {
    pub(crate) fn derive(snapshot: &'a Snapshot, host: &HostMeminfo, policy: &ViewPolicy) -> Self {
        let memory = snapshot.memory.as_ref().map(|memory| {
            let stat = &memory.stat.value;
            let (total, total_origin) = total(memory, host);
            let (free, free_origin) = free(memory, host, total);
            MemoryLines {
                total,
                free,
                available: available(stat, host, total, free),
                stat,
                total_origin,
                free_origin,
                stat_origin: memory.stat.origin,
            }
        });
        Self {
            memory,
            swap: SwapView::derive(snapshot, host, policy),
            huge: huge(snapshot.hugetlb.as_deref(), host),
            zswap: policy.zswap,
        }
    }

    /// Value of a line in kB (or in pages for `HugePages_*`); `None` leaves the host's.
    pub(crate) fn value(&self, rule: Rule) -> Option<u64> {
        Some(match (rule, &self.memory) {
            (Rule::SwapTotal, _) => self.swap.total.0,
            (Rule::SwapFree, _) => self.swap.free.0,
            (Rule::Zswap(_), _) if !self.zswap => 0,
            (Rule::HugePagesTotal, _) => self.huge?.total,
            (Rule::HugePagesFree, _) => self.huge?.free,
            (Rule::HugePagesOther, _) => self.huge.map(|_| 0)?,
            (Rule::Hugetlb, _) => self.huge?.hugetlb.0,
            (Rule::Host, _) | (_, None) => return None,
            (Rule::Total, Some(memory)) => memory.total.0,
            (Rule::Free, Some(memory)) => memory.free.0,
            (Rule::Available, Some(memory)) => memory.available.0,
            (Rule::Zero, _) => 0,
            (Rule::Counter(field) | Rule::Zswap(field), Some(memory)) => kib(field(memory.stat)).0,
            (Rule::Sum(a, b), Some(memory)) => kib(a(memory.stat)).plus(kib(b(memory.stat))).0,
        })
    }

    pub(super) fn origin(&self, rule: Rule) -> Origin {
        match (rule, &self.memory) {
            (Rule::SwapTotal, _) => self.swap.total_origin,
            (Rule::SwapFree, _) => self.swap.free_origin,
            (Rule::Zswap(_), _) if !self.zswap => Origin::Derived("zswap is turned off"),
            (Rule::HugePagesTotal | Rule::Hugetlb, _) => {
                self.huge.map_or(HOST, |huge| huge.total_origin)
            }
            (Rule::HugePagesFree, _) => self.huge.map_or(HOST, |huge| huge.free_origin),
            (Rule::HugePagesOther, _) => self.huge.map_or(HOST, |_| NOT_COUNTED),
            (Rule::Host, _) => HOST,
            (_, None) => Origin::Unavailable("no memory controller; the machine's is shown"),
            (Rule::Total, Some(memory)) => memory.total_origin,
            (Rule::Free, Some(memory)) => memory.free_origin,
            (Rule::Available, _) => Origin::Derived("MemFree and memory.stat"),
            (Rule::Zero, _) => NOT_COUNTED,
            (Rule::Sum(..), _) => Origin::Derived("the lines of its parts"),
            (Rule::Counter(field) | Rule::Zswap(field), Some(memory)) => match field(memory.stat) {
                Some(_) => memory.stat_origin,
                None => Origin::Unavailable("memory.stat of this kernel lacks it; 0 is shown"),
            },
        }
    }
}

fn kib(bytes: Option<Bytes>) -> Kib {
    bytes.unwrap_or(Bytes::ZERO).to_kib()
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
pub(super) fn low_watermark(total: Kib) -> Kib {
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
