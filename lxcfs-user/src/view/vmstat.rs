//! `/proc/vmstat`: the counters that `memory.stat` has, under the kernel's names and in the
//! host's order; the others describe the machine and are left out.

use super::format::{leading_u64, put_column};
use super::meminfo::{HostMeminfo, Meminfo, Rule};
use crate::policy::ViewPolicy;
use crate::snapshot::{Inputs, MemoryStat, Origin, Snapshot};
use crate::units::{Bytes, Kib};

/// What [`render`] needs.
pub const INPUTS: Inputs = Inputs::HOST_VMSTAT
    .and(Inputs::HOST_MEMINFO)
    .and(Inputs::MEMORY)
    .and(Inputs::SWAP)
    .and(Inputs::HUGETLB);

/// In which unit a `nr_*` counter is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Pages,
    /// PMD-sized pages.
    HugePages,
    Kib,
}

type Field = fn(&MemoryStat) -> Option<Bytes>;

/// State counters: name, how to find it, unit. Event counters need no table, they have the
/// same names in both files.
const STATES: &[(&str, Field, Unit)] = &[
    ("nr_inactive_anon", |s| s.inactive_anon, Unit::Pages),
    ("nr_active_anon", |s| s.active_anon, Unit::Pages),
    ("nr_inactive_file", |s| s.inactive_file, Unit::Pages),
    ("nr_active_file", |s| s.active_file, Unit::Pages),
    ("nr_unevictable", |s| s.unevictable, Unit::Pages),
    ("nr_slab_reclaimable", |s| s.slab_reclaimable, Unit::Pages),
    (
        "nr_slab_unreclaimable",
        |s| s.slab_unreclaimable,
        Unit::Pages,
    ),
    ("nr_anon_pages", |s| s.anon, Unit::Pages),
    ("nr_mapped", |s| s.file_mapped, Unit::Pages),
    // The kernel's counter includes the swap cache; memory.stat's `file` does not.
    (
        "nr_file_pages",
        |s| Some(s.file?.plus(s.swapcached.unwrap_or(Bytes::ZERO))),
        Unit::Pages,
    ),
    ("nr_dirty", |s| s.file_dirty, Unit::Pages),
    ("nr_writeback", |s| s.file_writeback, Unit::Pages),
    ("nr_shmem", |s| s.shmem, Unit::Pages),
    ("nr_shmem_hugepages", |s| s.shmem_thp, Unit::HugePages),
    ("nr_file_hugepages", |s| s.file_thp, Unit::HugePages),
    (
        "nr_anon_transparent_hugepages",
        |s| s.anon_thp,
        Unit::HugePages,
    ),
    ("nr_kernel_stack", |s| s.kernel_stack, Unit::Kib),
    ("nr_page_table_pages", |s| s.pagetables, Unit::Pages),
    ("nr_sec_page_table_pages", |s| s.sec_pagetables, Unit::Pages),
    ("nr_swapcached", |s| s.swapcached, Unit::Pages),
];

/// Names that exist in both files and mean different things: v1's `pgpgin` counts charges,
/// the kernel's counts KiB read from disks.
const HOMONYMS: &[&str] = &["pgpgin", "pgpgout"];

/// Appends the container's `/proc/vmstat`.
pub fn render(snapshot: &Snapshot, policy: &ViewPolicy, out: &mut Vec<u8>) {
    let Some(memory) = &snapshot.memory else {
        return;
    };
    let stat = &memory.stat.value;
    let meminfo = snapshot.host.meminfo.as_deref().unwrap_or("");
    let host_meminfo = HostMeminfo::parse(meminfo);
    let free = Meminfo::derive(snapshot, &host_meminfo, policy).value(Rule::Free);
    let page = snapshot.facts.page_size;
    let host = snapshot.host.vmstat.as_deref().unwrap_or("");
    let names = host.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        leading_u64(value).map(|_| name)
    });
    for name in names {
        let value = match name {
            "nr_free_pages" => {
                free.and_then(|free| in_unit(Kib(free).to_bytes(), Unit::Pages, page))
            }
            _ if name.starts_with("nr_") => state(name, stat, page),
            _ => event(name, stat),
        };
        if let Some(value) = value {
            out.extend_from_slice(name.as_bytes());
            put_column(out, value);
            out.push(b'\n');
        }
    }
}

fn state(name: &str, stat: &MemoryStat, page: Bytes) -> Option<u64> {
    let (_, field, unit) = STATES.iter().find(|(known, ..)| *known == name)?;
    in_unit(field(stat)?, *unit, page)
}

fn event(name: &str, stat: &MemoryStat) -> Option<u64> {
    let wanted = |(event, _): &&(Box<str>, u64)| **event == *name && !HOMONYMS.contains(&name);
    stat.events.iter().find(wanted).map(|(_, count)| *count)
}

fn in_unit(bytes: Bytes, unit: Unit, page: Bytes) -> Option<u64> {
    let size = match unit {
        Unit::Kib => 1024,
        Unit::Pages => page.0,
        // One page of eight-byte entries maps one PMD, on every supported architecture.
        Unit::HugePages => page.0.saturating_mul(page.0 / 8),
    };
    bytes.0.checked_div(size)
}

/// Where a line comes from.
pub(super) fn why(label: &str, snapshot: &Snapshot) -> (Origin, &'static str) {
    match (&snapshot.memory, label) {
        (None, _) => (Origin::Unavailable("no memory controller"), "empty"),
        (Some(_), "nr_free_pages") => (Origin::Derived("MemFree of meminfo"), "in pages"),
        (Some(memory), _) => (memory.stat.origin, "memory.stat, in the kernel's unit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{MIB, container};

    fn shown(snapshot: &Snapshot) -> String {
        let mut out = Vec::new();
        render(snapshot, &ViewPolicy::default(), &mut out);
        String::from_utf8(out).unwrap()
    }

    const HOST: &str = "nr_free_pages 999999\nnr_anon_pages 999999\nnr_kernel_stack 999999\n\
                        nr_anon_transparent_hugepages 999\nnr_file_pages 999999\n\
                        numa_hit 999999\npgpgin 999999\npgfault 999999\npgscan_kswapd 999999\n";

    fn sample() -> Snapshot {
        let mut snapshot = container();
        snapshot.host.vmstat = Some(HOST.into());
        if let Some(memory) = &mut snapshot.memory {
            let stat = &mut memory.stat.value;
            stat.anon = Some(Bytes(8192));
            stat.kernel_stack = Some(Bytes(48 * 1024));
            stat.anon_thp = Some(Bytes(4 * MIB));
            stat.file = Some(Bytes(4096));
            stat.swapcached = Some(Bytes(8192));
            stat.events = vec![("pgfault".into(), 12), ("pgpgin".into(), 34)];
        }
        snapshot
    }

    #[test]
    fn counters_of_memory_stat_show_in_the_hosts_order_and_unit_f15() {
        assert_eq!(
            shown(&sample()),
            "nr_free_pages 40960\nnr_anon_pages 2\nnr_kernel_stack 48\n\
             nr_anon_transparent_hugepages 2\nnr_file_pages 3\npgfault 12\n"
        );
    }

    #[test]
    fn no_counter_of_the_host_shows() {
        assert!(!shown(&sample()).contains("999"));
        let mut snapshot = sample();
        snapshot.memory = None;
        assert_eq!(shown(&snapshot), "");
    }
}
