//! Snapshots of any shape: plausible ones, extremes, and host texts a broken read could give.

use proptest::prelude::*;

use crate::policy::{CpuNumbering, CpuPolicy, ViewPolicy};
use crate::snapshot::{
    Age, CpuTime, Cpus, Decided, Host, HugePages, IoDevice, IoTimes, Memory, MemoryStat, Origin,
    PerCpuTime, Quota, Snapshot, Swap, Tasks,
};
use crate::units::{Bytes, Limit, Nsec, Usec};
use crate::view::testing::{MEMINFO, container, x86_cpuinfo};

pub(super) const ORIGIN: Origin = Origin::Derived("test");

pub(super) fn decided<T>(value: T) -> Decided<T> {
    Decided {
        value,
        origin: ORIGIN,
    }
}

/// Mostly plausible, sometimes the extremes.
pub(super) fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0u64..1 << 36, 1 => Just(0), 1 => any::<u64>()]
}

pub(super) fn bytes() -> impl Strategy<Value = Bytes> {
    amount().prop_map(Bytes)
}

pub(super) fn limit() -> impl Strategy<Value = Limit<Bytes>> {
    prop_oneof![1 => Just(Limit::Max), 3 => bytes().prop_map(Limit::Value)]
}

pub(super) fn memory_stat() -> impl Strategy<Value = MemoryStat> {
    (
        prop::collection::vec(prop::option::of(bytes()), 26),
        prop::collection::vec(("pg[a-z_]{1,12}", any::<u64>()), 0..4),
    )
        .prop_map(|(values, events)| {
            let mut values = values.into_iter();
            let mut next = || values.next().flatten();
            MemoryStat {
                anon: next(),
                file: next(),
                kernel_stack: next(),
                pagetables: next(),
                sec_pagetables: next(),
                percpu: next(),
                sock: next(),
                vmalloc: next(),
                shmem: next(),
                zswap: next(),
                zswapped: next(),
                file_mapped: next(),
                file_dirty: next(),
                file_writeback: next(),
                swapcached: next(),
                anon_thp: next(),
                file_thp: next(),
                shmem_thp: next(),
                inactive_anon: next(),
                active_anon: next(),
                inactive_file: next(),
                active_file: next(),
                unevictable: next(),
                slab_reclaimable: next(),
                slab_unreclaimable: next(),
                slab: next(),
                events: events
                    .into_iter()
                    .map(|(name, count)| (name.into_boxed_str(), count))
                    .collect(),
            }
        })
}

pub(super) fn memory() -> impl Strategy<Value = Memory> {
    (limit(), prop::option::of(bytes()), bytes(), memory_stat()).prop_map(
        |(limit, headroom, usage, stat)| Memory {
            limit: decided(limit),
            headroom: headroom.map(decided),
            usage: decided(usage),
            stat: decided(stat),
        },
    )
}

pub(super) fn swap() -> impl Strategy<Value = Swap> {
    (limit(), prop::option::of(bytes()), bytes()).prop_map(|(limit, headroom, usage)| Swap {
        limit: decided(limit),
        headroom: headroom.map(decided),
        usage: decided(usage),
    })
}

pub(super) fn cpus() -> impl Strategy<Value = Cpus> {
    (
        prop::collection::btree_set(0u32..200, 0..12),
        prop::option::of((amount(), 0u64..2_000_000)),
    )
        .prop_map(|(effective, quota)| Cpus {
            effective: decided(effective.into_iter().collect()),
            quota: quota.map(|(quota, period)| {
                decided(Quota {
                    quota: Usec(quota),
                    period: Usec(period),
                })
            }),
        })
}

pub(super) fn cpu_time() -> impl Strategy<Value = CpuTime> {
    let per_cpu = prop::collection::vec((0u32..200, amount(), amount(), amount()), 0..8);
    (amount(), amount(), prop::option::of(per_cpu)).prop_map(|(user, system, per_cpu)| CpuTime {
        usage: Nsec(user).plus(Nsec(system)),
        user: Nsec(user),
        system: Nsec(system),
        per_cpu: per_cpu.map(|cpus| {
            let cpus = cpus.into_iter();
            cpus.map(|(cpu, user, system, nice)| PerCpuTime {
                cpu,
                user: Nsec(user),
                system: Nsec(system),
                nice: Nsec(nice),
            })
            .collect()
        }),
        origin: ORIGIN,
    })
}

pub(super) fn tasks() -> impl Strategy<Value = Tasks> {
    (
        any::<[u32; 3]>(),
        any::<Option<u64>>(),
        any::<Option<u32>>(),
        any::<Option<[u64; 3]>>(),
    )
        .prop_map(
            |([running, uninterruptible, threads], forks, newest_pid, avenrun)| Tasks {
                running,
                uninterruptible,
                threads,
                forks,
                newest_pid,
                avenrun,
                origin: ORIGIN,
            },
        )
}

pub(super) fn io() -> impl Strategy<Value = Vec<IoDevice>> {
    let device = (0u32..3, any::<[u64; 6]>(), any::<Option<[u64; 8]>>());
    prop::collection::vec(device, 0..4).prop_map(|devices| {
        let devices = devices.into_iter();
        devices
            .map(|(minor, counts, times)| IoDevice {
                major: 254,
                minor,
                reads: counts[0],
                read_bytes: Bytes(counts[1]),
                writes: counts[2],
                written_bytes: Bytes(counts[3]),
                discards: counts[4],
                discarded_bytes: Bytes(counts[5]),
                times: times.map(|times| IoTimes {
                    reads_merged: times[0],
                    read_time: Nsec(times[1]),
                    writes_merged: times[2],
                    write_time: Nsec(times[3]),
                    discards_merged: times[4],
                    discard_time: Nsec(times[5]),
                    in_flight: times[6],
                    io_time: Nsec(times[7]),
                }),
            })
            .collect()
    })
}

/// Host files: real ones, and whatever a broken read could give.
pub(super) fn host_text(real: String) -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        8 => Just(Some(real)),
        1 => Just(None),
        1 => "([A-Za-z_()]{0,9}[: \t]{0,3}[0-9]{0,22}( kB)?\n){0,6}".prop_map(Some),
        1 => ".{0,60}".prop_map(Some),
    ]
}

pub(super) fn snapshot() -> impl Strategy<Value = Snapshot> {
    let host = (
        host_text(MEMINFO.into()),
        host_text("cpu  1 2 3\nbtime 1795189460\n".into()),
        host_text(x86_cpuinfo(4)),
        host_text(" 254       0 vda 1\n 254       1 vdb 2\n".into()),
        host_text("nr_free_pages 1\nnr_anon_pages 2\npgfault 3\n".into()),
        host_text("slabinfo - version: 2.1\n# name x\nkmalloc 1\n".into()),
    );
    let container_parts = (
        prop::option::weighted(0.9, memory()),
        prop::option::weighted(0.8, swap()),
        prop::option::of((limit(), bytes())),
        prop::option::weighted(0.9, cpus()),
        prop::option::weighted(0.9, cpu_time()),
        prop::option::weighted(0.9, tasks()),
        prop::option::weighted(0.9, io()),
        prop::option::weighted(0.9, (amount(), amount(), any::<i64>())),
    );
    (host, container_parts).prop_map(|(host, parts)| {
        let mut snapshot = container();
        let (meminfo, stat, cpuinfo, diskstats, vmstat, slabinfo) = host;
        snapshot.host = Host {
            meminfo,
            stat,
            cpuinfo,
            diskstats,
            vmstat,
            slabinfo,
        };
        let (memory, swap, huge, cpus, cpu_time, tasks, io, age) = parts;
        snapshot.memory = memory;
        snapshot.swap = swap;
        snapshot.hugetlb = huge.map(|(limit, usage)| {
            vec![HugePages {
                size: Bytes(2 << 20),
                limit: decided(limit),
                usage: decided(usage),
            }]
        });
        snapshot.cpus = cpus;
        snapshot.cpu_time = cpu_time;
        snapshot.tasks = tasks;
        snapshot.io = io.map(decided);
        snapshot.age = age.map(|(start, now, timens_offset)| Age {
            start: Nsec(start),
            now: Nsec(now),
            timens_offset,
            origin: ORIGIN,
        });
        snapshot
    })
}

pub(super) fn policy() -> impl Strategy<Value = ViewPolicy> {
    (
        prop_oneof![
            Just(CpuPolicy::Quota),
            Just(CpuPolicy::Cpuset),
            Just(CpuPolicy::Host)
        ],
        prop_oneof![Just(CpuNumbering::Sequential), Just(CpuNumbering::Physical)],
        any::<[bool; 2]>(),
    )
        .prop_map(|(cpus, cpu_numbering, [swap, zswap])| ViewPolicy {
            cpus,
            cpu_numbering,
            swap,
            zswap,
            ..ViewPolicy::default()
        })
}
