//! Cgroup v2 files in the terms of the snapshot. Pure.

use crate::snapshot::{IoDevice, MemoryStat};
use crate::units::{Bytes, Nsec, Usec};

use super::parse;

/// Names of the files read.
pub mod file {
    #![expect(missing_docs, reason = "the names are the kernel's file names")]
    pub const MEMORY_MAX: &str = "memory.max";
    pub const MEMORY_HIGH: &str = "memory.high";
    pub const MEMORY_CURRENT: &str = "memory.current";
    pub const MEMORY_STAT: &str = "memory.stat";
    pub const SWAP_MAX: &str = "memory.swap.max";
    pub const SWAP_CURRENT: &str = "memory.swap.current";
    pub const CPU_MAX: &str = "cpu.max";
    pub const CPU_STAT: &str = "cpu.stat";
    pub const CPUSET_EFFECTIVE: &str = "cpuset.cpus.effective";
    pub const IO_STAT: &str = "io.stat";
    pub const PRESSURE: [&str; 4] = [
        "cpu.pressure",
        "memory.pressure",
        "io.pressure",
        "irq.pressure",
    ];
    pub const PROCS: &str = "cgroup.procs";
    pub const THREADS: &str = "cgroup.threads";
    /// There in every cgroup, the root included, and cheap: tells whether it still exists.
    pub const ALIVE: &str = "cgroup.controllers";
}

/// `memory.stat`.
#[must_use]
pub fn memory_stat(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::default();
    for (key, value) in parse::flat_keyed(text) {
        let slot = match key {
            "anon" => &mut stat.anon,
            "file" => &mut stat.file,
            "kernel_stack" => &mut stat.kernel_stack,
            "pagetables" => &mut stat.pagetables,
            "sec_pagetables" => &mut stat.sec_pagetables,
            "percpu" => &mut stat.percpu,
            "sock" => &mut stat.sock,
            "vmalloc" => &mut stat.vmalloc,
            "shmem" => &mut stat.shmem,
            "zswap" => &mut stat.zswap,
            "zswapped" => &mut stat.zswapped,
            "file_mapped" => &mut stat.file_mapped,
            "file_dirty" => &mut stat.file_dirty,
            "file_writeback" => &mut stat.file_writeback,
            "swapcached" => &mut stat.swapcached,
            "anon_thp" => &mut stat.anon_thp,
            "file_thp" => &mut stat.file_thp,
            "shmem_thp" => &mut stat.shmem_thp,
            "inactive_anon" => &mut stat.inactive_anon,
            "active_anon" => &mut stat.active_anon,
            "inactive_file" => &mut stat.inactive_file,
            "active_file" => &mut stat.active_file,
            "unevictable" => &mut stat.unevictable,
            "slab_reclaimable" => &mut stat.slab_reclaimable,
            "slab_unreclaimable" => &mut stat.slab_unreclaimable,
            "slab" => &mut stat.slab,
            _ => {
                if is_event(key) {
                    stat.events.push((key.into(), value));
                }
                continue;
            }
        };
        *slot = Some(Bytes(value));
    }
    stat
}

/// Event counters that `/proc/vmstat` has under the same name with the same meaning.
/// (v1's `pgpgin` and `pgpgout` count charges, vmstat's count block I/O.)
pub(super) fn is_event(key: &str) -> bool {
    ["pg", "thp_", "zswp", "swp", "workingset_", "numa_"]
        .iter()
        .any(|prefix| key.starts_with(prefix))
        && key != "pgpgin"
        && key != "pgpgout"
}

/// `cpu.stat`: usage, user and system time, made to add up.
#[must_use]
pub fn cpu_stat(text: &str) -> Option<(Nsec, Nsec, Nsec)> {
    let (mut usage, mut user) = (None, 0);
    for (key, value) in parse::flat_keyed(text) {
        match key {
            "usage_usec" => usage = Some(value),
            "user_usec" => user = value,
            _ => {}
        }
    }
    let usage = Usec(usage?).to_nsec();
    // The kernel scales both to the sum; rounding may leave a microsecond.
    let user = Usec(user).to_nsec().min(usage);
    Some((usage, user, usage.less(user)))
}

/// `io.stat`. A device without figures has not been touched and is left out.
#[must_use]
pub fn io_stat(text: &str) -> Vec<IoDevice> {
    parse::nested_keyed(text)
        .filter_map(|(key, pairs)| {
            let (major, minor) = parse::device(key)?;
            let mut device = IoDevice {
                major,
                minor,
                ..IoDevice::default()
            };
            let mut touched = false;
            for (sub, value) in pairs {
                match sub {
                    "rbytes" => device.read_bytes = Bytes(value),
                    "wbytes" => device.written_bytes = Bytes(value),
                    "rios" => device.reads = value,
                    "wios" => device.writes = value,
                    "dbytes" => device.discarded_bytes = Bytes(value),
                    "dios" => device.discards = value,
                    _ => continue,
                }
                touched |= value > 0;
            }
            touched.then_some(device)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memory_stat_keeps_zero_and_absent_apart() {
        let stat = memory_stat("anon 4096\nfile 0\npgfault 7\nworkingset_refault_anon 1\nsock 3\n");
        assert_eq!(stat.anon, Some(Bytes(4096)));
        assert_eq!(stat.file, Some(Bytes(0)));
        assert_eq!(stat.shmem, None);
        assert_eq!(
            stat.events,
            [("pgfault".into(), 7), ("workingset_refault_anon".into(), 1)]
        );
    }

    #[test]
    fn cpu_time_adds_up() {
        let text = "usage_usec 100\nuser_usec 60\nsystem_usec 39\nnr_periods 0\n";
        assert_eq!(
            cpu_stat(text),
            Some((Nsec(100_000), Nsec(60_000), Nsec(40_000)))
        );
        assert_eq!(cpu_stat("nr_periods 0\n"), None);
        assert_eq!(
            cpu_stat("usage_usec 1\nuser_usec 2\n"),
            Some((Nsec(1000), Nsec(1000), Nsec(0)))
        );
    }

    #[test]
    fn untouched_devices_are_left_out() {
        let text = "7:0\n8:0 rbytes=0 wbytes=0 rios=0 wios=0 dbytes=0 dios=0\n254:0 rbytes=8192 wbytes=0 rios=2 wios=0 dbytes=0 dios=0\n";
        let devices = io_stat(text);
        assert_eq!(devices.len(), 1);
        assert_eq!((devices[0].major, devices[0].reads), (254, 2));
        assert_eq!(devices[0].read_bytes, Bytes(8192));
    }

    proptest! {
        #[test]
        fn any_text_is_mapped(text in "(?s).{0,200}") {
            let _ = memory_stat(&text);
            let _ = io_stat(&text);
            if let Some((usage, user, system)) = cpu_stat(&text) {
                prop_assert_eq!(user.plus(system), usage);
            }
        }
    }
}
