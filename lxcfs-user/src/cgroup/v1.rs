//! Cgroup v1 files in the terms of the snapshot, which are v2's. Pure.

use std::collections::BTreeMap;

use crate::snapshot::{IoDevice, MemoryStat, PerCpuTime, Quota};
use crate::units::{Bytes, Limit, Nsec, Usec};

use super::{parse, v2};

/// Names of the files read.
pub mod file {
    #![expect(missing_docs, reason = "the names are the kernel's file names")]
    pub const MEMORY_LIMIT: &str = "memory.limit_in_bytes";
    pub const MEMORY_SOFT_LIMIT: &str = "memory.soft_limit_in_bytes";
    pub const MEMORY_USAGE: &str = "memory.usage_in_bytes";
    pub const MEMORY_STAT: &str = "memory.stat";
    pub const MEMORY_USE_HIERARCHY: &str = "memory.use_hierarchy";
    pub const MEMSW_LIMIT: &str = "memory.memsw.limit_in_bytes";
    pub const MEMSW_USAGE: &str = "memory.memsw.usage_in_bytes";
    pub const CPU_QUOTA: &str = "cpu.cfs_quota_us";
    pub const CPU_PERIOD: &str = "cpu.cfs_period_us";
    pub const CPUSET_EFFECTIVE: &str = "cpuset.effective_cpus";
    pub const CPUACCT_USAGE: &str = "cpuacct.usage";
    pub const CPUACCT_USAGE_ALL: &str = "cpuacct.usage_all";
    pub const CPUACCT_STAT: &str = "cpuacct.stat";
    pub const IO_BYTES_RECURSIVE: &str = "blkio.throttle.io_service_bytes_recursive";
    pub const IO_BYTES: &str = "blkio.throttle.io_service_bytes";
    pub const IO_COUNT_RECURSIVE: &str = "blkio.throttle.io_serviced_recursive";
    pub const IO_COUNT: &str = "blkio.throttle.io_serviced";
    pub const BFQ_BYTES: &str = "blkio.bfq.io_service_bytes_recursive";
    pub const BFQ_COUNT: &str = "blkio.bfq.io_serviced_recursive";
    pub const PROCS: &str = "cgroup.procs";
    pub const THREADS: &str = "tasks";
    /// There in every cgroup, the root included, and cheap: tells whether it still exists.
    pub const ALIVE: &str = "notify_on_release";
}

/// `memory.stat`: the `total_` figures, which count the whole subtree, under v2's names.
/// The kernel memory that v2 splits up is one figure on v1 and stays unknown here.
#[must_use]
pub fn memory_stat(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::default();
    for (key, value) in parse::flat_keyed(text) {
        let Some(key) = key.strip_prefix("total_") else {
            continue;
        };
        let slot = match key {
            "cache" => &mut stat.file,
            "rss" => &mut stat.anon,
            "rss_huge" => &mut stat.anon_thp,
            "shmem" => &mut stat.shmem,
            "mapped_file" => &mut stat.file_mapped,
            "dirty" => &mut stat.file_dirty,
            "writeback" => &mut stat.file_writeback,
            "swapcached" => &mut stat.swapcached,
            "zswap" => &mut stat.zswap,
            "zswapped" => &mut stat.zswapped,
            "inactive_anon" => &mut stat.inactive_anon,
            "active_anon" => &mut stat.active_anon,
            "inactive_file" => &mut stat.inactive_file,
            "active_file" => &mut stat.active_file,
            "unevictable" => &mut stat.unevictable,
            _ => {
                if v2::is_event(key) {
                    stat.events.push((key.into(), value));
                }
                continue;
            }
        };
        *slot = Some(Bytes(value));
    }
    stat
}

/// One level's swap from its two pairs of files: memsw counts memory and swap together.
/// A memory limit above memsw's (impossible unless caught between two writes) leaves none.
#[must_use]
pub fn swap(
    memsw_limit: Limit<Bytes>,
    memory_limit: Limit<Bytes>,
    memsw_usage: Bytes,
    memory_usage: Bytes,
) -> (Limit<Bytes>, Bytes) {
    let usage = memsw_usage.less(memory_usage);
    let limit = match (memsw_limit, memory_limit) {
        (Limit::Max, _) => Limit::Max,
        (Limit::Value(both), Limit::Max) => Limit::Value(both),
        (Limit::Value(both), Limit::Value(memory)) => Limit::Value(both.less(memory)),
    };
    (limit, usage)
}

/// `cpu.cfs_quota_us` (-1: none) and `cpu.cfs_period_us`.
#[must_use]
pub fn quota(quota: &str, period: &str) -> Option<Quota> {
    // -1 does not parse as an unsigned number: no quota.
    let quota = parse::number(quota)?;
    let period = parse::number(period).filter(|period| *period > 0)?;
    Some(Quota {
        quota: Usec(quota),
        period: Usec(period),
    })
}

/// `cpuacct.usage_all`, per CPU, ascending.
#[must_use]
pub fn usage_all(text: &str) -> Vec<PerCpuTime> {
    parse::usage_all(text)
        .map(|(cpu, user, system)| PerCpuTime {
            cpu,
            user: Nsec(user),
            system: Nsec(system),
            nice: Nsec::ZERO,
        })
        .collect()
}

/// `cpuacct.usage` split by the ratio of `cpuacct.stat`, for kernels without `usage_all`.
#[must_use]
pub fn usage(usage: &str, stat: &str) -> Option<(Nsec, Nsec, Nsec)> {
    let usage = parse::number(usage)?;
    let user = parse::flat_value(stat, "user").unwrap_or(0);
    let system = parse::flat_value(stat, "system").unwrap_or(0);
    let ticks = u128::from(user) + u128::from(system);
    let user = match ticks {
        0 => usage,
        _ => (u128::from(usage) * u128::from(user) / ticks) as u64,
    };
    Some((Nsec(usage), Nsec(user), Nsec(usage - user)))
}

/// The two files of `blkio.throttle` or `blkio.bfq`; a device that neither counts is left out.
#[must_use]
pub fn io(bytes: &str, counts: &str) -> Vec<IoDevice> {
    let mut devices: BTreeMap<(u32, u32), IoDevice> = BTreeMap::new();
    for (text, is_bytes) in [(bytes, true), (counts, false)] {
        for ((major, minor), operation, value) in parse::device_operations(text) {
            let device = devices.entry((major, minor)).or_insert(IoDevice {
                major,
                minor,
                ..IoDevice::default()
            });
            match (operation, is_bytes) {
                ("Read", true) => device.read_bytes = Bytes(value),
                ("Write", true) => device.written_bytes = Bytes(value),
                ("Discard", true) => device.discarded_bytes = Bytes(value),
                ("Read", false) => device.reads = value,
                ("Write", false) => device.writes = value,
                ("Discard", false) => device.discards = value,
                // Sync, Async and Total count the same requests again.
                _ => {}
            }
        }
    }
    devices
        .into_values()
        .filter(|device| {
            device.reads > 0
                || device.writes > 0
                || device.discards > 0
                || device.read_bytes.0 > 0
                || device.written_bytes.0 > 0
                || device.discarded_bytes.0 > 0
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_figures_of_the_whole_subtree_count() {
        let stat = memory_stat(
            "cache 1\nrss 2\ntotal_cache 10\ntotal_rss 20\ntotal_pgfault 3\ntotal_pgpgin 9\n",
        );
        assert_eq!((stat.file, stat.anon), (Some(Bytes(10)), Some(Bytes(20))));
        assert_eq!(stat.events, [("pgfault".into(), 3)]);
        assert_eq!(stat.slab, None);
    }

    #[test]
    fn swap_is_what_memsw_has_beyond_memory() {
        let value = |bytes| Limit::Value(Bytes(bytes));
        assert_eq!(
            swap(value(300), value(200), Bytes(150), Bytes(100)),
            (value(100), Bytes(50))
        );
        assert_eq!(
            swap(Limit::Max, value(200), Bytes(100), Bytes(100)),
            (Limit::Max, Bytes(0))
        );
        // Caught between two writes: never negative.
        assert_eq!(
            swap(value(100), value(200), Bytes(10), Bytes(20)),
            (value(0), Bytes(0))
        );
    }

    #[test]
    fn minus_one_is_no_quota() {
        assert_eq!(quota("-1\n", "100000\n"), None);
        assert_eq!(quota("50000\n", "0\n"), None);
        assert_eq!(
            quota("50000\n", "100000\n"),
            Some(Quota {
                quota: Usec(50_000),
                period: Usec(100_000)
            })
        );
    }

    #[test]
    fn cpu_time_is_split_by_ticks_and_adds_up() {
        assert_eq!(
            usage("1001\n", "user 1\nsystem 1\n"),
            Some((Nsec(1001), Nsec(500), Nsec(501)))
        );
        assert_eq!(
            usage("7", "user 0\nsystem 0\n"),
            Some((Nsec(7), Nsec(7), Nsec(0)))
        );
    }

    #[test]
    fn devices_are_joined_from_both_files() {
        let bytes =
            "8:0 Read 4096\n8:0 Write 0\n8:0 Sync 4096\n8:0 Total 4096\n7:0 Read 0\nTotal 4096\n";
        let counts = "8:0 Read 1\n8:0 Write 0\n8:0 Total 1\nTotal 1\n";
        let devices = io(bytes, counts);
        assert_eq!(devices.len(), 1);
        assert_eq!((devices[0].reads, devices[0].read_bytes), (1, Bytes(4096)));
    }

    proptest! {
        #[test]
        fn any_text_is_mapped(a in "(?s).{0,200}", b in "(?s).{0,200}") {
            let _ = memory_stat(&a);
            let _ = quota(&a, &b);
            let _ = usage_all(&a);
            let _ = io(&a, &b);
            if let Some((all, user, system)) = usage(&a, &b) {
                prop_assert_eq!(user.plus(system), all);
            }
        }

        #[test]
        fn swap_never_wraps(a: u64, b: u64, c: u64, d: u64) {
            let (limit, usage) = swap(Limit::Value(Bytes(a)), Limit::Value(Bytes(b)), Bytes(c), Bytes(d));
            prop_assert!(limit.value().unwrap().0 <= a);
            prop_assert!(usage.0 <= c);
        }
    }
}
