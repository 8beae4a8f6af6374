//! The views write what this kernel writes: labels, order, columns, units and line ends are
//! compared with the kernel's own files, values given so that the texts must be equal.

// vm: all/v2

use std::fs;
use std::sync::Arc;

use lxcfs_common::catalogue::{CPU_TEMPLATE, NODE_TEMPLATE, Node, by_path};
use lxcfs_user::cpuset::CpuSet;
use lxcfs_user::history::cpu::CpuHistory;
use lxcfs_user::policy::{CpuNumbering, CpuPolicy, ViewPolicy};
use lxcfs_user::snapshot::{
    Age, Cpus, Decided, Host, IoDevice, IoTimes, MachineFacts, Memory, MemoryStat, Origin,
    Snapshot, Tasks,
};
use lxcfs_user::units::{Bytes, Limit, Nsec};
use lxcfs_user::view;

const ORIGIN: Origin = Origin::Derived("test");

fn decided<T>(value: T) -> Decided<T> {
    Decided {
        value,
        origin: ORIGIN,
    }
}

fn kernel(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn kernel_list(name: &str) -> CpuSet {
    let text = kernel(&format!("/sys/devices/system/cpu/{name}"));
    CpuSet::parse_list(&text).expect("the kernel's list")
}

/// A container without any limit on this machine.
fn unlimited() -> Snapshot {
    let online = kernel_list("online");
    Snapshot {
        facts: Arc::new(MachineFacts {
            page_size: Bytes(4096),
            user_hz: 100,
            possible_cpus: kernel_list("possible"),
            online_cpus: online.clone(),
        }),
        host: Host {
            meminfo: Some(kernel("/proc/meminfo")),
            stat: Some(kernel("/proc/stat")),
            cpuinfo: Some(kernel("/proc/cpuinfo")),
            diskstats: Some(kernel("/proc/diskstats")),
            vmstat: Some(kernel("/proc/vmstat")),
            slabinfo: Some(kernel("/proc/slabinfo")),
        },
        cgroup_paths: Arc::new([const { None }; 8]),
        memory: None,
        swap: None,
        hugetlb: None,
        cpus: Some(Cpus {
            effective: decided(online),
            quota: None,
        }),
        cpu_time: None,
        tasks: None,
        io: None,
        pressure: [const { None }; 4],
        age: Some(Age {
            start: Nsec(0),
            now: Nsec(1_000_000_000),
            timens_offset: 0,
            origin: ORIGIN,
        }),
    }
}

fn render(node: Node, snapshot: &Snapshot, policy: &ViewPolicy) -> String {
    let mut out = Vec::new();
    let mut history = CpuHistory::default();
    view::render(node, snapshot, &mut history, policy, &mut out).expect("a view of this machine");
    String::from_utf8(out).expect("text")
}

fn ours(path: &str, snapshot: &Snapshot) -> String {
    let node = Node::Fixed(by_path(path).expect("a path of the catalogue"));
    render(node, snapshot, &ViewPolicy::default())
}

/// Host numbers for host CPUs: then the kernel's own sysfs must come out.
fn physical() -> ViewPolicy {
    ViewPolicy {
        cpus: CpuPolicy::Cpuset,
        cpu_numbering: CpuNumbering::Physical,
        ..ViewPolicy::default()
    }
}

/// Every digit replaced: what is left is labels, columns and units.
fn shape(text: &str) -> String {
    let digit = |c: char| if c.is_ascii_digit() { '9' } else { c };
    text.chars().map(digit).collect()
}

#[test]
fn meminfo_without_a_memory_controller_is_the_kernels_byte_for_byte() {
    let snapshot = unlimited();
    let host = snapshot.host.meminfo.clone().unwrap();
    assert_eq!(ours("proc/meminfo", &snapshot), host);
}

#[test]
fn every_meminfo_line_of_a_container_has_the_kernels_columns() {
    let mut snapshot = unlimited();
    snapshot.memory = Some(Memory {
        limit: decided(Limit::Value(Bytes(64 << 20))),
        headroom: None,
        usage: decided(Bytes(1 << 20)),
        stat: decided(MemoryStat::default()),
    });
    let host = snapshot.host.meminfo.clone().unwrap();
    let text = ours("proc/meminfo", &snapshot);
    assert_eq!(text.lines().count(), host.lines().count());
    for (host, ours) in host.lines().zip(text.lines()) {
        let label = |line: &str| line.split(':').next().map(str::to_owned);
        assert_eq!(label(host), label(ours));
        // Numbers are right-aligned: with at most eight digits all lines are equally long.
        if host.len() <= 27 {
            assert_eq!(host.len(), ours.len(), "{host:?} and {ours:?}");
        }
        assert_eq!(host.ends_with(" kB"), ours.ends_with(" kB"));
    }
}

#[test]
fn cpuinfo_with_physical_numbers_is_the_kernels_byte_for_byte() {
    let snapshot = unlimited();
    let node = Node::Fixed(by_path("proc/cpuinfo").unwrap());
    let host = snapshot.host.cpuinfo.clone().unwrap();
    assert_eq!(render(node, &snapshot, &physical()), host);
}

#[test]
fn cpuinfo_renumbered_differs_only_in_numbers() {
    let snapshot = unlimited();
    let host = snapshot.host.cpuinfo.clone().unwrap();
    let text = ours("proc/cpuinfo", &snapshot);
    assert_eq!(text.lines().count(), host.lines().count());
    for (host, ours) in host.lines().zip(text.lines()) {
        let key = |line: &str| line.split_once(": ").map(|(key, _)| key.to_owned());
        assert_eq!(key(host), key(ours), "{host:?} and {ours:?}");
    }
}

#[test]
fn stat_has_the_kernels_lines_and_columns() {
    let snapshot = unlimited();
    let host = snapshot.host.stat.clone().unwrap();
    let text = ours("proc/stat", &snapshot);
    let label = |line: &str| line.split(' ').next().map(str::to_owned);
    let labels = |text: &str| text.lines().filter_map(label).collect::<Vec<_>>();
    assert_eq!(labels(&text), labels(&host));
    for (host, ours) in host.lines().zip(text.lines()) {
        let columns = |line: &str| line.split(' ').count();
        // intr has one column per interrupt, which no container has.
        if !host.starts_with("intr") {
            assert_eq!(columns(host), columns(ours), "{host:?} and {ours:?}");
        }
        if host.starts_with("btime") {
            assert_eq!(host, ours);
        }
    }
}

#[test]
fn uptime_loadavg_swaps_and_slabinfo_have_the_kernels_shape() {
    let mut snapshot = unlimited();
    let uptime = ours("proc/uptime", &snapshot);
    assert_eq!(shape(&uptime), "9.99 9.99\n");
    let host = kernel("/proc/uptime");
    assert_eq!(uptime.split(' ').count(), host.split(' ').count());

    // The kernel's own averages through our fixed point: the same text.
    let host = kernel("/proc/loadavg");
    let fields: Vec<&str> = host.trim_end().split([' ', '/']).collect();
    let average = |at: usize| {
        let hundredths: u64 = fields[at].replace('.', "").parse().unwrap();
        // The smallest value that the kernel prints like this.
        (hundredths * 2048).div_ceil(100).saturating_sub(10)
    };
    snapshot.tasks = Some(Tasks {
        running: fields[3].parse().unwrap(),
        uninterruptible: 0,
        threads: fields[4].parse().unwrap(),
        forks: None,
        newest_pid: Some(fields[5].parse().unwrap()),
        avenrun: Some([average(0), average(1), average(2)]),
        origin: ORIGIN,
    });
    assert_eq!(ours("proc/loadavg", &snapshot), host);

    let header = |text: &str| text.lines().next().map(str::to_owned);
    assert_eq!(
        header(&ours("proc/swaps", &snapshot)),
        header(&kernel("/proc/swaps"))
    );

    let host = snapshot.host.slabinfo.take().unwrap();
    let header: String = host.split_inclusive('\n').take(2).collect();
    // Not even given the host's file, the header is this kernel's.
    assert_eq!(ours("proc/slabinfo", &snapshot), header);
}

#[test]
fn diskstats_lines_are_the_kernels() {
    let mut snapshot = unlimited();
    let host = snapshot.host.diskstats.clone().unwrap();
    let fields =
        |line: &str| -> Vec<u64> { line.split_whitespace().flat_map(str::parse).collect() };
    // The name is not a number, so columns from here on are shifted by one.
    let msec = |value: u64| Nsec(value * 1_000_000);
    let devices = host.lines().map(fields).map(|f| IoDevice {
        major: f[0] as u32,
        minor: f[1] as u32,
        reads: f[2],
        read_bytes: Bytes(f[4] * 512),
        writes: f[6],
        written_bytes: Bytes(f[8] * 512),
        discards: f.get(13).copied().unwrap_or(0),
        discarded_bytes: Bytes(f.get(15).copied().unwrap_or(0) * 512),
        times: Some(IoTimes {
            reads_merged: f[3],
            read_time: msec(f[5]),
            writes_merged: f[7],
            write_time: msec(f[9]),
            discards_merged: f.get(14).copied().unwrap_or(0),
            discard_time: msec(f.get(16).copied().unwrap_or(0)),
            in_flight: f[10],
            io_time: msec(f[11]),
        }),
    });
    snapshot.io = Some(decided(devices.collect()));
    let text = ours("proc/diskstats", &snapshot);
    assert!(
        !text.is_empty(),
        "no device of this machine has done any I/O"
    );
    for ours in text.lines() {
        let name = ours.split_whitespace().nth(2).unwrap();
        let named = |line: &&str| line.split_whitespace().nth(2) == Some(name);
        let host = host.lines().find(named).unwrap();
        let columns = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (mut host, mut ours) = (columns(host), columns(ours));
        assert_eq!(ours.len(), host.len(), "{ours:?} and {host:?}");
        // Flushes are not told per cgroup, and the kernel's queue time includes theirs.
        let last = host.len() - 1;
        for at in [last - 6, last - 1, last] {
            ours[at].clear();
            host[at].clear();
        }
        assert_eq!(ours, host);
    }
}

#[test]
fn the_cpu_tree_with_physical_numbers_is_the_kernels() {
    let snapshot = unlimited();
    let policy = physical();
    let online = kernel_list("online");
    let list = Node::Fixed(by_path("sys/devices/system/cpu/online").unwrap());
    assert_eq!(
        render(list, &snapshot, &policy),
        kernel("/sys/devices/system/cpu/online")
    );
    let mut compared = 0;
    for cpu in online.iter() {
        for (index, entry) in CPU_TEMPLATE.iter().enumerate().skip(2) {
            // Dies and clusters are not in cpuinfo, so they are not kept.
            if entry.path.contains("die") || entry.path.contains("cluster") {
                continue;
            }
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/{}", entry.path);
            let Ok(host) = fs::read_to_string(&path) else {
                continue; // an older kernel, or a CPU that cannot be taken offline
            };
            let ours = render(Node::Cpu(cpu, index), &snapshot, &policy);
            // A mask is as wide as the possible CPUs, of which a container has only its own.
            if entry.path.ends_with("_list") || online == kernel_list("possible") {
                assert_eq!(ours, host, "{path}");
                compared += 1;
            }
        }
    }
    assert!(compared >= 4, "no topology to compare with");
}

#[test]
fn node_meminfo_has_the_kernels_columns() {
    let mut snapshot = unlimited();
    snapshot.memory = Some(Memory {
        limit: decided(Limit::Value(Bytes(64 << 20))),
        headroom: None,
        usage: decided(Bytes(1 << 20)),
        stat: decided(MemoryStat::default()),
    });
    let index = NODE_TEMPLATE
        .iter()
        .position(|entry| entry.path == "meminfo");
    let node = Node::Numa(0, index.unwrap());
    let text = render(node, &snapshot, &ViewPolicy::default());
    let host = kernel("/sys/devices/system/node/node0/meminfo");
    let mut compared = 0;
    for host in host.lines() {
        let label = host.split(':').next().unwrap();
        let same = |line: &&str| line.split(':').next() == Some(label);
        if let Some(ours) = text.lines().find(same) {
            // 6.1 prints this one line a column short, 6.12 does not: ours is the present form.
            let short = label.ends_with("FileHugePages") && ours.len() == host.len() + 1;
            assert!(short || ours.len() == host.len(), "{host:?} and {ours:?}");
            compared += 1;
        }
    }
    assert!(compared >= 20, "{text}");
}

#[test]
fn vmstat_has_only_names_of_this_kernel_in_its_order() {
    let mut snapshot = unlimited();
    let events = ["pgfault", "pgmajfault", "pgscan_kswapd", "not_a_counter"];
    snapshot.memory = Some(Memory {
        limit: decided(Limit::Max),
        headroom: None,
        usage: decided(Bytes(0)),
        stat: decided(MemoryStat {
            anon: Some(Bytes(8192)),
            events: events.map(|name| (name.into(), 7)).to_vec(),
            ..MemoryStat::default()
        }),
    });
    let text = ours("proc/vmstat", &snapshot);
    let names = |text: &str| -> Vec<String> {
        let name = |line: &str| line.split(' ').next().map(str::to_owned);
        text.lines().filter_map(name).collect()
    };
    let host = names(snapshot.host.vmstat.as_deref().unwrap());
    let order: Vec<_> = names(&text)
        .iter()
        .map(|name| host.iter().position(|host| host == name).unwrap())
        .collect();
    assert!(order.is_sorted() && order.len() == 5, "{text}");
    assert!(text.contains("nr_anon_pages 2\n") && text.contains("pgfault 7\n"));
}
