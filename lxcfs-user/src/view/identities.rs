//! What must hold for every snapshot, however odd: no panic, the kernel's identities, files
//! that agree, and text an independent parser reads back.

use std::collections::BTreeMap;

use lxcfs_common::catalogue::{CATALOGUE, CPU_TEMPLATE, NODE_TEMPLATE, Node, by_path};
use proptest::prelude::*;

use super::testing::{MEMINFO, container, stat, x86_cpuinfo};
use super::*;
use crate::cpuset::CpuSet;
use crate::snapshot::Age;
use crate::units::Nsec;
use strategies::{ORIGIN, amount, memory, policy, snapshot};

mod strategies;

/// Every file of the tree, with the first and a far CPU and node.
fn files() -> Vec<Node> {
    let fixed = CATALOGUE.iter().map(Node::Fixed);
    let cpus = (0..CPU_TEMPLATE.len()).flat_map(|at| [Node::Cpu(0, at), Node::Cpu(150, at)]);
    let nodes = (0..NODE_TEMPLATE.len()).flat_map(|at| [Node::Numa(0, at), Node::Numa(1, at)]);
    fixed.chain(cpus).chain(nodes).collect()
}

fn text(path: &str, snapshot: &Snapshot, policy: &ViewPolicy) -> Option<String> {
    let node = Node::Fixed(by_path(path).unwrap());
    let mut out = Vec::new();
    let shown = render(node, snapshot, &mut CpuHistory::default(), policy, &mut out);
    shown.ok().map(|()| String::from_utf8(out).unwrap())
}

/// Reads `Name: value kB` as any client does: split at white space, not at columns.
fn parsed(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?.strip_suffix(':')?;
            Some((name.to_owned(), words.next()?.parse().ok()?))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_snapshot_makes_any_file_panic(snapshot in snapshot(), policy in policy()) {
        let mut history = CpuHistory::default();
        for node in files() {
            let mut out = Vec::new();
            let _ = render(node, &snapshot, &mut history, &policy, &mut out);
            let _ = (inputs(node, &policy), shows_host(node, &policy));
            if let Ok(lines) = explain(node, &snapshot, &history, &policy) {
                prop_assert!(!lines.is_empty(), "{node:?} is empty and says not why");
                prop_assert!(lines.iter().all(|line| !line.rule.is_empty()));
            }
        }
    }

    #[test]
    fn the_identities_of_meminfo_hold(
        mut snapshot in snapshot(), policy in policy(), memory in memory(),
    ) {
        snapshot.host.meminfo = Some(MEMINFO.into());
        snapshot.memory = Some(memory);
        let text = text("proc/meminfo", &snapshot, &policy).unwrap();
        let lines = parsed(&text);
        prop_assert_eq!(lines.len(), MEMINFO.lines().count());
        let value = |name: &str| lines.get(name).copied().unwrap();
        let sum = |a: &str, b: &str| value(a).saturating_add(value(b));
        prop_assert_eq!(value("Active"), sum("Active(anon)", "Active(file)"));
        prop_assert_eq!(value("Inactive"), sum("Inactive(anon)", "Inactive(file)"));
        prop_assert_eq!(value("Slab"), sum("SReclaimable", "SUnreclaim"));
        prop_assert_eq!(value("KReclaimable"), value("SReclaimable"));
        prop_assert!(value("MemAvailable") <= value("MemTotal"));
        prop_assert!(value("MemFree") <= value("MemAvailable"));
        prop_assert!(value("SwapFree") <= value("SwapTotal"));
        prop_assert!(value("HugePages_Free") <= value("HugePages_Total"));
        prop_assert!(value("MemTotal") <= 24_684_092);
        prop_assert!(value("MemFree") <= 19_086_212);
        prop_assert!(value("SwapFree") <= 1_000_000);
        // Nothing wraps: the largest number of a u64 of bytes, in kB, plus one of them.
        prop_assert!(lines.values().all(|value| *value < 1 << 56));
    }

    #[test]
    fn swaps_agrees_with_meminfo(mut snapshot in snapshot(), policy in policy()) {
        snapshot.host.meminfo = Some(MEMINFO.into());
        let swaps = text("proc/swaps", &snapshot, &policy).unwrap();
        // The independent reading: what meminfo prints, with or without a controller.
        let lines = parsed(&text("proc/meminfo", &snapshot, &policy).unwrap());
        let (total, free) = (lines["SwapTotal"], lines["SwapFree"]);
        let fields: Vec<_> = swaps.lines().skip(1).flat_map(str::split_whitespace).collect();
        let expected = [total.to_string(), (total - free).to_string()];
        if total == 0 {
            prop_assert!(fields.is_empty());
        } else {
            prop_assert_eq!(&fields[2..4], &expected);
        }
    }

    #[test]
    fn every_file_shows_the_same_cpus(
        mut snapshot in snapshot(), policy in policy(), age in amount(),
    ) {
        snapshot.host.cpuinfo = Some(x86_cpuinfo(200));
        snapshot.age = Some(Age {
            start: Nsec(0), now: Nsec(age), timens_offset: 0, origin: ORIGIN,
        });
        let list = text("sys/devices/system/cpu/online", &snapshot, &policy).unwrap();
        let online = CpuSet::parse_list(&list).unwrap();
        prop_assert!(!online.is_empty());
        let stat = text("proc/stat", &snapshot, &policy).unwrap();
        let in_stat: CpuSet = stat
            .lines()
            .filter_map(|line| line.strip_prefix("cpu")?.split(' ').next()?.parse().ok())
            .collect();
        prop_assert_eq!(&in_stat, &online);
        let cpuinfo = text("proc/cpuinfo", &snapshot, &policy).unwrap();
        let in_cpuinfo: CpuSet = cpuinfo
            .lines()
            .filter_map(|line| line.strip_prefix("processor\t: ")?.parse().ok())
            .collect();
        prop_assert_eq!(&in_cpuinfo, &online);
        for path in ["possible", "present"] {
            let path = format!("sys/devices/system/cpu/{path}");
            prop_assert_eq!(text(&path, &snapshot, &policy), Some(list.clone()));
        }
        let cpulist = NODE_TEMPLATE.iter().position(|entry| entry.path == "cpulist").unwrap();
        let mut out = Vec::new();
        let node = Node::Numa(0, cpulist);
        render(node, &snapshot, &mut CpuHistory::default(), &policy, &mut out).unwrap();
        prop_assert_eq!(String::from_utf8(out).unwrap(), list);
    }

    #[test]
    fn stat_reads_back_as_ten_columns_and_the_sum_of_its_lines(snapshot in snapshot()) {
        let Some(stat) = text("proc/stat", &snapshot, &ViewPolicy::default()) else {
            prop_assert!(snapshot.age.is_none());
            return Ok(());
        };
        let rows: Vec<Vec<u64>> = stat
            .lines()
            .filter(|line| line.starts_with("cpu"))
            .map(|line| line.split_whitespace().skip(1).map(|n| n.parse().unwrap()).collect())
            .collect();
        prop_assert!(rows.iter().all(|row| row.len() == 10));
        for column in 0..10 {
            let sum: u64 = rows[1..].iter().map(|row| row[column]).sum();
            // Each line is rounded down by itself; a total of 584 years is where it stops.
            if rows[0][column] < u64::MAX / 10_000_000 {
                prop_assert!(rows[0][column] >= sum);
                prop_assert!(rows[0][column] - sum <= rows.len() as u64);
            }
        }
    }

    #[test]
    fn explain_shows_what_render_shows(mut snapshot in snapshot(), policy in policy()) {
        snapshot.host.meminfo = Some(MEMINFO.into());
        let node = Node::Fixed(by_path("proc/meminfo").unwrap());
        let lines = explain(node, &snapshot, &CpuHistory::default(), &policy).unwrap();
        let text = text("proc/meminfo", &snapshot, &policy).unwrap();
        let shown: Vec<_> = text.lines().filter_map(|line| line.split_once(':')).collect();
        prop_assert_eq!(lines.len(), shown.len());
        for (explained, (name, value)) in lines.iter().zip(shown) {
            prop_assert_eq!(&explained.line, name);
            prop_assert_eq!(&explained.value, value.trim());
        }
    }
}

#[test]
fn every_file_has_a_view() {
    let mut snapshot = container();
    snapshot.host.cpuinfo = Some(x86_cpuinfo(2));
    snapshot.pressure = std::array::from_fn(|_| Some("some avg10=0.00\n".into()));
    snapshot.tasks = Some(super::testing::tasks());
    if let Some(memory) = &mut snapshot.memory {
        memory.stat.value = stat();
    }
    let policy = ViewPolicy::default();
    for entry in CATALOGUE {
        let node = Node::Fixed(entry);
        let mut out = Vec::new();
        let shown = render(
            node,
            &snapshot,
            &mut CpuHistory::default(),
            &policy,
            &mut out,
        );
        assert_eq!(shown.is_ok(), entry.kind != Kind::Dir, "{}", entry.path);
    }
}

#[test]
fn switched_off_files_are_the_hosts_and_only_those() {
    let policy = ViewPolicy {
        loadavg: false,
        uptime: false,
        ..ViewPolicy::default()
    };
    let host: Vec<_> = CATALOGUE
        .iter()
        .filter(|entry| shows_host(Node::Fixed(entry), &policy))
        .map(|entry| entry.path)
        .collect();
    assert_eq!(host, ["proc/uptime", "proc/loadavg"]);
    assert!(
        !CATALOGUE
            .iter()
            .any(|entry| shows_host(Node::Fixed(entry), &ViewPolicy::default()))
    );
}
