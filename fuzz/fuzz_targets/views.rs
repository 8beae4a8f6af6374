//! Every virtual file, rendered from arbitrary host templates: meminfo, stat, cpuinfo,
//! diskstats, vmstat and slabinfo, separated by NUL bytes in the input.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use lxcfs_common::catalogue::{CATALOGUE, Node};
use lxcfs_user::cpuset::CpuSet;
use lxcfs_user::history::cpu::CpuHistory;
use lxcfs_user::policy::ViewPolicy;
use lxcfs_user::snapshot::{
    Age, CpuTime, Cpus, Decided, Host, MachineFacts, Memory, MemoryStat, Origin, Quota, Snapshot,
    Tasks,
};
use lxcfs_user::units::{Bytes, Limit, Nsec, Usec};
use lxcfs_user::view;

const MIB: u64 = 1 << 20;
const ORIGIN: Origin = Origin::Derived("fuzzing");

fn decided<T>(value: T) -> Decided<T> {
    Decided {
        value,
        origin: ORIGIN,
    }
}

/// A container of 256 MiB and two of eight CPUs, half a CPU of quota.
fn snapshot(host: Host) -> Snapshot {
    Snapshot {
        facts: Arc::new(MachineFacts {
            page_size: Bytes(4096),
            user_hz: 100,
            possible_cpus: CpuSet::first(8),
            online_cpus: CpuSet::first(8),
        }),
        host,
        cgroup_paths: Arc::new([const { None }; 8]),
        memory: Some(Memory {
            limit: decided(Limit::Value(Bytes(256 * MIB))),
            headroom: Some(decided(Bytes(160 * MIB))),
            usage: decided(Bytes(96 * MIB)),
            stat: decided(MemoryStat::default()),
        }),
        swap: None,
        hugetlb: None,
        cpus: Some(Cpus {
            effective: decided(CpuSet::first(2)),
            quota: Some(decided(Quota {
                quota: Usec(50_000),
                period: Usec(100_000),
            })),
        }),
        cpu_time: Some(CpuTime {
            usage: Nsec(3_000_000_000),
            user: Nsec(2_000_000_000),
            system: Nsec(1_000_000_000),
            per_cpu: None,
            origin: ORIGIN,
        }),
        tasks: Some(Tasks {
            running: 1,
            uninterruptible: 0,
            threads: 3,
            forks: None,
            newest_pid: None,
            avenrun: None,
            origin: ORIGIN,
        }),
        io: None,
        pressure: [const { None }; 4],
        age: Some(Age {
            start: Nsec(0),
            now: Nsec(9_000_000_000),
            timens_offset: 0,
            origin: ORIGIN,
        }),
    }
}

fuzz_target!(|text: &str| {
    let mut parts = text.split('\0').map(str::to_owned);
    let snapshot = snapshot(Host {
        meminfo: parts.next(),
        stat: parts.next(),
        cpuinfo: parts.next(),
        diskstats: parts.next(),
        vmstat: parts.next(),
        slabinfo: parts.next(),
    });
    let policy = ViewPolicy::default();
    for entry in CATALOGUE {
        let mut history = CpuHistory::default();
        let node = Node::Fixed(entry);
        // An error is an answer; a panic is not.
        let _ = view::render(node, &snapshot, &mut history, &policy, &mut Vec::new());
        let _ = view::explain(node, &snapshot, &history, &policy);
    }
});
