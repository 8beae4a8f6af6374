use super::derive::{HOST, low_watermark};
use super::*;
use crate::snapshot::{Controller, Decided, HugePages, Memory, MemoryStat};
use crate::units::{Bytes, Kib, Limit};
use crate::view::format::leading_u64;
use crate::view::testing::{MEMINFO, MIB, cgroup, container, render_with, swap};

fn shown(snapshot: &Snapshot) -> String {
    render_with(|out| render(snapshot, &ViewPolicy::default(), out))
}

/// Value of one line, in its own unit.
fn value(snapshot: &Snapshot, name: &str) -> u64 {
    let text = shown(snapshot);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(leading_u64).unwrap()
}

fn memory(snapshot: &mut Snapshot) -> &mut Memory {
    snapshot.memory.as_mut().unwrap()
}

fn pages(size: u64, limit: Limit<Bytes>, usage: u64) -> HugePages {
    HugePages {
        size: Bytes(size),
        limit: Decided {
            value: limit,
            origin: cgroup(Controller::Hugetlb, 0, "hugetlb.2MB.max"),
        },
        usage: Decided {
            value: Bytes(usage),
            origin: cgroup(Controller::Hugetlb, 0, "hugetlb.2MB.current"),
        },
    }
}

#[test]
fn the_whole_file_is_the_containers_in_the_hosts_format() {
    let mut snapshot = swap(container(), Limit::Value(128 * MIB), 28 * MIB);
    let limit = Limit::Value(Bytes(8 * MIB));
    snapshot.hugetlb = Some(vec![pages(2 * MIB, limit, 2 * MIB)]);
    let expected = "\
MemTotal:         262144 kB
MemFree:          163840 kB
MemAvailable:     206720 kB
Buffers:               0 kB
Cached:            40960 kB
SwapCached:          112 kB
Active:            15001 kB
Inactive:          45000 kB
Active(anon):       5001 kB
Inactive(anon):    15000 kB
Active(file):      10000 kB
Inactive(file):    30000 kB
Unevictable:         113 kB
Mlocked:               0 kB
SwapTotal:        131072 kB
SwapFree:         102400 kB
Zswap:               107 kB
Zswapped:            108 kB
Dirty:               110 kB
Writeback:           111 kB
AnonPages:         20000 kB
Mapped:              109 kB
Shmem:               960 kB
KReclaimable:       8000 kB
Slab:              10000 kB
SReclaimable:       8000 kB
SUnreclaim:         2000 kB
KernelStack:         101 kB
PageTables:          102 kB
SecPageTables:       103 kB
NFS_Unstable:          0 kB
Bounce:                0 kB
WritebackTmp:          0 kB
CommitLimit:    12342044 kB
Committed_AS:      72540 kB
VmallocTotal:   34359738367 kB
VmallocUsed:         106 kB
VmallocChunk:          0 kB
Percpu:              104 kB
AnonHugePages:      4096 kB
ShmemHugePages:     6144 kB
ShmemPmdMapped:        0 kB
FileHugePages:      2048 kB
FilePmdMapped:         0 kB
Balloon:               0 kB
HugePages_Total:       4
HugePages_Free:        3
HugePages_Rsvd:        0
HugePages_Surp:        0
Hugepagesize:       2048 kB
Hugetlb:            8192 kB
DirectMap4k:       28672 kB
DirectMap2M:     2068480 kB
DirectMap1G:    25165824 kB
";
    assert_eq!(shown(&snapshot), expected);
}

#[test]
fn the_format_of_every_line_is_the_kernels_f33() {
    // Rendering the host's own values gives the host's own bytes: widths, units, order.
    let mut snapshot = container();
    (snapshot.memory, snapshot.swap) = (None, None);
    assert_eq!(shown(&snapshot), MEMINFO);
    for (host, ours) in MEMINFO.lines().zip(shown(&container()).lines()) {
        assert_eq!(host.len(), ours.len(), "{host} / {ours}");
    }
}

#[test]
fn every_line_of_this_kernel_is_in_the_table() {
    for (name, _) in MEMINFO.lines().filter_map(split_label) {
        assert!(LINES.iter().any(|line| line.name == name), "{name}");
    }
}

#[test]
fn a_line_of_a_newer_kernel_is_kept() {
    let mut snapshot = container();
    snapshot.host.meminfo = Some("MemTotal: 9 kB\nNewThing:  7 kB\nno label\n".into());
    assert_eq!(
        shown(&snapshot),
        "MemTotal:              9 kB\nNewThing:  7 kB\nno label\n"
    );
}

#[test]
fn mapped_dirty_writeback_and_huge_pages_are_not_zero_f7() {
    let snapshot = container();
    for (name, expected) in [
        ("Mapped", 109),
        ("Dirty", 110),
        ("Writeback", 111),
        ("AnonHugePages", 4096),
    ] {
        assert_eq!(value(&snapshot, name), expected, "{name}");
    }
}

#[test]
fn usage_above_the_limit_shows_zero_free_not_a_wrap_f8() {
    let mut snapshot = container();
    memory(&mut snapshot).usage.value = Bytes(300 * MIB);
    memory(&mut snapshot).headroom.as_mut().unwrap().value = Bytes::ZERO;
    assert_eq!(value(&snapshot, "MemFree"), 0);
    assert!(value(&snapshot, "MemAvailable") <= value(&snapshot, "MemTotal"));
}

#[test]
fn mlocked_shmem_does_not_wrap_anonpages_f8() {
    let mut snapshot = container();
    // v1 without `anon`: shmem moved to the unevictable list leaves the anonymous LRU.
    let stat = &mut memory(&mut snapshot).stat.value;
    stat.anon = None;
    stat.active_anon = Some(Bytes(4096));
    stat.inactive_anon = Some(Bytes(4096));
    stat.shmem = Some(Bytes(64 * MIB));
    assert_eq!(value(&snapshot, "AnonPages"), 0);
}

#[test]
fn lines_that_memory_stat_has_are_never_the_hosts_f9() {
    let ours = shown(&container());
    for (host, ours) in MEMINFO.lines().zip(ours.lines()) {
        let (name, _) = split_label(host).unwrap();
        let rule = LINES.iter().find(|line| line.name == name).unwrap().rule;
        let from_pool = matches!(
            rule,
            Rule::HugePagesTotal | Rule::HugePagesFree | Rule::HugePagesOther | Rule::Hugetlb
        );
        if !matches!(rule, Rule::Host) && !from_pool {
            assert_ne!(host, ours);
        }
    }
}

#[test]
fn counters_a_kernel_lacks_show_zero_and_say_so_f9() {
    let mut snapshot = container();
    memory(&mut snapshot).stat.value = MemoryStat::default();
    for name in ["KernelStack", "PageTables", "Percpu", "Slab", "Cached"] {
        assert_eq!(value(&snapshot, name), 0, "{name}");
    }
    let (origin, _) = why("KernelStack", &snapshot, &ViewPolicy::default());
    assert!(matches!(origin, Origin::Unavailable(_)));
}

#[test]
fn a_leaf_without_the_memory_controller_shows_its_ancestors_figures_f11() {
    let mut snapshot = container();
    let memory = memory(&mut snapshot);
    memory.limit.origin = cgroup(Controller::Memory, 2, "memory.max");
    assert_eq!(value(&snapshot, "MemTotal"), 262_144);
    let (origin, _) = why("MemTotal", &snapshot, &ViewPolicy::default());
    assert_eq!(origin, cgroup(Controller::Memory, 2, "memory.max"));
}

#[test]
fn what_siblings_use_of_a_pod_limit_is_not_free_f14() {
    let mut snapshot = container();
    let room = Decided {
        value: Bytes(10 * MIB),
        origin: cgroup(Controller::Memory, 1, "memory.current"),
    };
    memory(&mut snapshot).headroom = Some(room);
    assert_eq!(value(&snapshot, "MemFree"), 10_240);
    let (origin, _) = why("MemFree", &snapshot, &ViewPolicy::default());
    assert_eq!(origin, room.origin);
}

#[test]
fn a_limit_of_zero_is_not_the_hosts_memory() {
    let mut snapshot = container();
    let memory = memory(&mut snapshot);
    memory.limit.value = Limit::Value(Bytes::ZERO);
    memory.headroom = None;
    for name in ["MemTotal", "MemFree", "MemAvailable"] {
        assert_eq!(value(&snapshot, name), 0, "{name}");
    }
}

#[test]
fn without_a_limit_the_host_bounds_everything() {
    let mut snapshot = container();
    let memory = memory(&mut snapshot);
    memory.limit.value = Limit::Max;
    memory.headroom = None;
    assert_eq!(value(&snapshot, "MemTotal"), 24_684_092);
    assert_eq!(value(&snapshot, "MemFree"), 19_086_212);
    let (origin, _) = why("MemTotal", &snapshot, &ViewPolicy::default());
    assert_eq!(origin, HOST);
}

#[test]
fn a_limit_above_the_machine_shows_the_machine() {
    let mut snapshot = container();
    memory(&mut snapshot).limit.value = Limit::Value(Bytes(u64::MAX));
    assert_eq!(value(&snapshot, "MemTotal"), 24_684_092);
}

#[test]
fn available_never_exceeds_what_the_host_has() {
    let mut snapshot = container();
    let low = MEMINFO.replace("24218388", "    1000");
    snapshot.host.meminfo = Some(low);
    assert_eq!(value(&snapshot, "MemAvailable"), 1000);
    assert_eq!(value(&snapshot, "MemFree"), 1000);
}

#[test]
fn half_of_a_small_page_cache_stays_as_in_the_kernel() {
    let mut snapshot = container();
    let stat = &mut memory(&mut snapshot).stat.value;
    stat.active_file = Some(Bytes(1024 * 100));
    stat.inactive_file = Some(Bytes(1024 * 100));
    stat.slab_reclaimable = Some(Bytes(0));
    // 200 kB of cache, of which half is kept because the low watermark is higher.
    assert_eq!(value(&snapshot, "MemAvailable"), 163_840 + 100);
    assert_eq!(low_watermark(Kib(262_144)), Kib(2560));
}

#[test]
fn swap_lines_saturate_and_follow_the_policy_f8() {
    let snapshot = swap(container(), Limit::Value(MIB), 4 * MIB);
    assert_eq!(value(&snapshot, "SwapFree"), 0);
    let off = ViewPolicy {
        swap: false,
        zswap: false,
        ..ViewPolicy::default()
    };
    let text = render_with(|out| render(&snapshot, &off, out));
    for name in ["SwapTotal", "SwapFree", "Zswap", "Zswapped"] {
        let line = format!("{name}:{:>1$} kB\n", 0, 23 - name.len());
        assert!(text.contains(&line), "{name}");
    }
}

#[test]
fn huge_pages_stay_the_machines_where_nothing_limits_them() {
    let mut snapshot = container();
    assert_eq!(value(&snapshot, "HugePages_Total"), 16);
    snapshot.hugetlb = Some(vec![
        pages(1 << 30, Limit::Value(Bytes(1 << 30)), 0),
        pages(2 * MIB, Limit::Max, 0),
    ]);
    assert_eq!(value(&snapshot, "HugePages_Total"), 16);
    assert_eq!(value(&snapshot, "HugePages_Free"), 12);
    assert_eq!(value(&snapshot, "Hugetlb"), 32_768);
}

#[test]
fn a_missing_template_is_an_error_not_an_empty_file_f24() {
    let mut snapshot = container();
    snapshot.host.meminfo = None;
    let shown = render(&snapshot, &ViewPolicy::default(), &mut Vec::new());
    assert!(matches!(shown, Err(AnswerError::Absent(_))));
}

#[test]
fn the_documentation_has_the_table_of_every_line() {
    let docs = include_str!("../../../../docs/virtual-files.md");
    let table: String = LINES
        .iter()
        .map(|line| {
            let from = match line.rule {
                Rule::Host => "host",
                _ => "container",
            };
            format!("| `{}` | {from} | {} |\n", line.name, line.formula)
        })
        .collect();
    assert!(
        docs.contains(&table),
        "docs/virtual-files.md must have this table:\n{table}"
    );
}
