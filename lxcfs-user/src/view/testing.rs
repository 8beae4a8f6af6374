//! Small snapshots for the tests of the views: a container of 256 MiB on a machine of eight
//! CPUs and 24 GB, changed by each test where it matters.

use std::sync::Arc;

use crate::cpuset::CpuSet;
use crate::engine::AnswerError;
use crate::snapshot::{
    Age, Controller, CpuTime, Cpus, Decided, Host, MachineFacts, Memory, MemoryStat, Origin, Quota,
    Snapshot, Swap, Tasks,
};
use crate::units::{Bytes, Limit, Nsec, Usec};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SECOND: u64 = 1_000_000_000;

/// The `meminfo` of a real machine (Linux 6.18), with swap and huge pages added.
pub(crate) const MEMINFO: &str = "\
MemTotal:       24684092 kB
MemFree:        19086212 kB
MemAvailable:   24218388 kB
Buffers:           34544 kB
Cached:          5098432 kB
SwapCached:            7 kB
Active:          1400848 kB
Inactive:        3735872 kB
Active(anon):       1568 kB
Inactive(anon):    11036 kB
Active(file):    1399280 kB
Inactive(file):  3724836 kB
Unevictable:       20932 kB
Mlocked:           20020 kB
SwapTotal:       1048572 kB
SwapFree:        1000000 kB
Zswap:                 5 kB
Zswapped:              6 kB
Dirty:            147520 kB
Writeback:             8 kB
AnonPages:         24896 kB
Mapped:            10732 kB
Shmem:              8856 kB
KReclaimable:     318388 kB
Slab:             358916 kB
SReclaimable:     318388 kB
SUnreclaim:        40528 kB
KernelStack:        1520 kB
PageTables:         1880 kB
SecPageTables:         9 kB
NFS_Unstable:          0 kB
Bounce:                0 kB
WritebackTmp:          0 kB
CommitLimit:    12342044 kB
Committed_AS:      72540 kB
VmallocTotal:   34359738367 kB
VmallocUsed:       14316 kB
VmallocChunk:          0 kB
Percpu:              688 kB
AnonHugePages:      2048 kB
ShmemHugePages:     2048 kB
ShmemPmdMapped:     2048 kB
FileHugePages:      4096 kB
FilePmdMapped:      2048 kB
Balloon:               0 kB
HugePages_Total:      16
HugePages_Free:       12
HugePages_Rsvd:        3
HugePages_Surp:        2
Hugepagesize:       2048 kB
Hugetlb:           32768 kB
DirectMap4k:       28672 kB
DirectMap2M:     2068480 kB
DirectMap1G:    25165824 kB
";

pub(crate) fn cgroup(controller: Controller, levels_up: u16, file: &'static str) -> Origin {
    Origin::Cgroup {
        controller,
        levels_up,
        file,
    }
}

fn memory_file<T>(value: T, levels_up: u16, file: &'static str) -> Decided<T> {
    Decided {
        value,
        origin: cgroup(Controller::Memory, levels_up, file),
    }
}

/// A container limited to 256 MiB by its own cgroup, using 96 MiB.
pub(crate) fn container() -> Snapshot {
    Snapshot {
        facts: Arc::new(MachineFacts {
            page_size: Bytes(4096),
            user_hz: 100,
            possible_cpus: CpuSet::first(8),
            online_cpus: CpuSet::first(8),
        }),
        host: Host {
            meminfo: Some(MEMINFO.into()),
            stat: Some("cpu  1 2 3 4\nintr 5 6\nbtime 1795189460\nprocesses 7\n".into()),
            ..Host::default()
        },
        cgroup_paths: Arc::new([const { None }; 8]),
        memory: Some(Memory {
            limit: memory_file(Limit::Value(Bytes(256 * MIB)), 0, "memory.max"),
            headroom: Some(memory_file(Bytes(160 * MIB), 0, "memory.current")),
            usage: memory_file(Bytes(96 * MIB), 0, "memory.current"),
            stat: memory_file(stat(), 0, "memory.stat"),
        }),
        swap: None,
        hugetlb: None,
        cpus: None,
        cpu_time: None,
        tasks: None,
        io: None,
        pressure: [const { None }; 4],
        age: Some(Age {
            start: Nsec(0),
            now: Nsec(SECOND),
            timens_offset: 0,
            origin: Origin::Derived("test"),
        }),
    }
}

/// Every counter different, so that no two can be exchanged unnoticed.
pub(crate) fn stat() -> MemoryStat {
    let kib = |n: u64| Some(Bytes(n * 1024));
    MemoryStat {
        anon: kib(20_000),
        file: kib(40_960),
        kernel_stack: kib(101),
        pagetables: kib(102),
        sec_pagetables: kib(103),
        percpu: kib(104),
        sock: kib(105),
        vmalloc: kib(106),
        shmem: kib(960),
        zswap: kib(107),
        zswapped: kib(108),
        file_mapped: kib(109),
        file_dirty: kib(110),
        file_writeback: kib(111),
        swapcached: kib(112),
        anon_thp: kib(4096),
        file_thp: kib(2048),
        shmem_thp: kib(6144),
        inactive_anon: kib(15_000),
        active_anon: kib(5001),
        inactive_file: kib(30_000),
        active_file: kib(10_000),
        unevictable: kib(113),
        slab_reclaimable: kib(8000),
        slab_unreclaimable: kib(2000),
        slab: kib(10_000),
        events: Vec::new(),
    }
}

pub(crate) fn swap(mut snapshot: Snapshot, limit: Limit<u64>, usage: u64) -> Snapshot {
    let limit = match limit {
        Limit::Max => Limit::Max,
        Limit::Value(limit) => Limit::Value(Bytes(limit)),
    };
    snapshot.swap = Some(Swap {
        limit: memory_file(limit, 0, "memory.swap.max"),
        headroom: limit
            .value()
            .map(|limit| memory_file(limit.less(Bytes(usage)), 0, "memory.swap.current")),
        usage: memory_file(Bytes(usage), 0, "memory.swap.current"),
    });
    snapshot
}

/// An effective cpuset and, from the parent, a quota and period in microseconds.
pub(crate) fn cpus(mut snapshot: Snapshot, effective: &str, quota: Option<(u64, u64)>) -> Snapshot {
    snapshot.cpus = Some(Cpus {
        effective: Decided {
            value: CpuSet::parse_list(effective).unwrap(),
            origin: cgroup(Controller::Cpuset, 0, "cpuset.cpus.effective"),
        },
        quota: quota.map(|(quota, period)| Decided {
            value: Quota {
                quota: Usec(quota),
                period: Usec(period),
            },
            origin: cgroup(Controller::Cpu, 1, "cpu.max"),
        }),
    });
    snapshot
}

/// Start and now, in nanoseconds.
pub(crate) fn age(mut snapshot: Snapshot, start: u64, now: u64) -> Snapshot {
    snapshot.age = Some(Age {
        start: Nsec(start),
        now: Nsec(now),
        timens_offset: 0,
        origin: Origin::Host("/proc/PID/stat"),
    });
    snapshot
}

/// Totals without per-CPU figures, in nanoseconds.
pub(crate) fn cpu_time(mut snapshot: Snapshot, user: u64, system: u64) -> Snapshot {
    snapshot.cpu_time = Some(CpuTime {
        usage: Nsec(user).plus(Nsec(system)),
        user: Nsec(user),
        system: Nsec(system),
        per_cpu: None,
        origin: cgroup(Controller::Unified, 0, "cpu.stat"),
    });
    snapshot
}

pub(crate) fn tasks() -> Tasks {
    Tasks {
        running: 0,
        uninterruptible: 0,
        threads: 0,
        forks: None,
        newest_pid: None,
        avenrun: None,
        origin: Origin::Bpf("load_tasks"),
    }
}

/// The text of an x86 machine with `count` CPUs in one package.
pub(crate) fn x86_cpuinfo(count: u32) -> String {
    (0..count)
        .map(|cpu| {
            format!(
                "processor\t: {cpu}\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n\
                 cpu MHz\t\t: {}.098\nphysical id\t: 0\nsiblings\t: {count}\n\
                 core id\t\t: {cpu}\ncpu cores\t: {count}\napicid\t\t: {cpu}\n\
                 initial apicid\t: {cpu}\nfpu\t\t: yes\nflags\t\t: fpu vme ht\n\
                 power management:\n\n",
                2600 + cpu
            )
        })
        .collect()
}

/// What a renderer that must not fail writes.
pub(crate) fn render_with(render: impl FnOnce(&mut Vec<u8>) -> Result<(), AnswerError>) -> String {
    let mut out = Vec::new();
    render(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}
