//! Counts every time a value comes from a lesser source than the best, or cannot be told.
//!
//! Plain atomics, so that any layer may count; `observe` exports them by name.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! fallbacks {
    ($($(#[doc = $doc:literal])* $variant:ident => $field:literal, $reason:literal;)*) => {
        /// A lesser source, or none.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Fallback {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Fallback {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// What is affected: a file, or `container` for who asked.
            #[must_use]
            pub const fn field(self) -> &'static str {
                match self { $(Self::$variant => $field,)* }
            }

            /// Why.
            #[must_use]
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$variant => $reason,)* }
            }
        }

        const COUNT: usize = [$(Fallback::$variant),*].len();
    };
}

fallbacks! {
    /// The host's own procfs could not be made; `/proc` is used.
    ProcMounted => "host", "no_detached_procfs";
    /// No `PIDFD_GET_INFO` (below 6.13): `/proc/TID/cgroup` is read.
    NoPidfdInfo => "container", "no_pidfd_info";
    /// The root of a cgroup namespace could not be told; the other rules decide.
    CgroupnsUnknown => "container", "cgroupns_root_unknown";
    /// No nsfs translation (below 6.11): init found through its descendants.
    InitByAncestors => "container", "pidns_init_by_ancestors";
    /// Likewise, by looking through every process.
    InitByScan => "container", "pidns_init_by_scan";
    /// The PID namespace has no init any more.
    InitUnknown => "container", "pidns_init_unknown";
    /// A hierarchy was mounted or unmounted under the running daemon.
    LayoutChanged => "container", "cgroup_layout_changed";
    /// A caller could not be resolved and got EIO.
    CallerUnknown => "container", "caller_unknown";
    /// The cgroup went while it was read.
    CgroupGone => "container", "cgroup_gone";
    /// No cgroup below the root has the memory controller: the root's figures are shown.
    MemoryFromRoot => "meminfo", "no_memory_controller";
    /// Swap is not accounted: none is shown.
    SwapUnknown => "swap", "no_swap_accounting";
    /// No cpuset controller: every online CPU is effective.
    CpusetFromHost => "cpus", "no_cpuset_controller";
    /// CPU time is not known at all.
    CpuTimeUnknown => "stat", "no_cpu_accounting";
    /// CPU time is known as a total only.
    CpuTimeTotalOnly => "stat", "no_per_cpu_time";
    /// Forks are not counted: no eBPF, or no PID namespace of its own.
    ForksUnknown => "stat", "no_fork_count";
    /// Tasks are counted by walking `/proc`.
    TasksByProcfs => "loadavg", "tasks_by_procfs";
    /// Tasks could not be counted.
    TasksUnknown => "loadavg", "tasks_unknown";
    /// No block I/O controller: no devices are shown.
    IoUnknown => "diskstats", "no_io_controller";
    /// Merges and times are not known.
    IoTimesUnknown => "diskstats", "no_block_times";
    /// The start of the container was guessed from when it was first seen.
    StartGuessed => "uptime", "start_guessed";
    /// An older answer was given, because the newer one took too long.
    StaleAnswer => "answer", "stale";
    /// An older answer was given, because the cgroup is gone.
    LastAnswer => "answer", "cgroup_gone";
}

/// One counter each.
#[derive(Debug)]
pub struct Fallbacks([AtomicU64; COUNT]);

impl Default for Fallbacks {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Fallbacks {
    /// Counts one. Returns whether it was the first, which is worth a line in the log.
    pub fn count(&self, fallback: Fallback) -> bool {
        self.0[fallback as usize].fetch_add(1, Ordering::Relaxed) == 0
    }

    /// How often it happened.
    #[must_use]
    pub fn get(&self, fallback: Fallback) -> u64 {
        self.0[fallback as usize].load(Ordering::Relaxed)
    }

    /// Every counter with its name.
    pub fn iter(&self) -> impl Iterator<Item = (Fallback, u64)> + '_ {
        Fallback::ALL.iter().map(|which| (*which, self.get(*which)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_counter_has_its_own_name_and_counts_alone() {
        let names: BTreeSet<_> = Fallback::ALL
            .iter()
            .map(|which| (which.field(), which.reason()))
            .collect();
        assert_eq!(names.len(), Fallback::ALL.len());
        let counters = Fallbacks::default();
        assert!(counters.count(Fallback::SwapUnknown));
        assert!(!counters.count(Fallback::SwapUnknown));
        let total: u64 = counters.iter().map(|(_, count)| count).sum();
        assert_eq!((counters.get(Fallback::SwapUnknown), total), (2, 2));
    }
}
