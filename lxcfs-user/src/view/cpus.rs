//! The one number of CPUs a container sees, and their numbering. `cpuinfo`, `stat`,
//! `uptime`, the `cpu` tree and the `node` tree all ask here, so they cannot disagree.

use crate::cpuset::CpuSet;
use crate::policy::{CpuNumbering, CpuPolicy, ViewPolicy};
use crate::snapshot::{Inputs, Origin, Quota, Snapshot};

/// What [`derive()`] needs.
pub const INPUTS: Inputs = Inputs::CPUS;

/// The CPUs a container sees; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VisibleCpus {
    /// The numbers shown: `0..N`, or the host's with physical numbering.
    pub numbers: CpuSet,
    /// The physical CPU behind each number, in the same order; what `cpuinfo` describes
    /// and where per-CPU time is shown when it can be.
    pub homes: Vec<u32>,
    /// Whether `numbers` are the host's.
    pub physical: bool,
    /// What decided the count.
    pub origin: Origin,
    /// How it was decided.
    pub rule: &'static str,
}

impl VisibleCpus {
    /// N.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.homes.len() as u32
    }

    /// One more than the largest number shown; the width of sysfs masks.
    #[must_use]
    pub fn nr_cpu_ids(&self) -> u32 {
        self.numbers.last().map_or(1, |last| last + 1)
    }

    /// The shown numbers with the physical CPU behind each.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.numbers.iter().zip(self.homes.iter().copied())
    }
}

/// Whole CPUs that a quota amounts to: rounded up, at least one.
///
/// A quota of 1.5 CPUs shows two: a program that starts one thread per CPU can then use
/// all it was given.
#[must_use]
pub fn quota_cpus(quota: Quota) -> u32 {
    let cpus = quota.quota.0.div_ceil(quota.period.0.max(1)).max(1);
    u32::try_from(cpus).unwrap_or(u32::MAX)
}

/// Decides which CPUs the container sees.
#[must_use]
pub fn derive(snapshot: &Snapshot, policy: &ViewPolicy) -> VisibleCpus {
    let online = &snapshot.facts.online_cpus;
    let host = Origin::Host("/sys/devices/system/cpu/online");
    let (allowed, mut origin, mut rule) = match (&snapshot.cpus, policy.cpus) {
        (_, CpuPolicy::Host) => (online, host, "the host's online CPUs, by policy"),
        (Some(cpus), _) if !cpus.effective.value.is_empty() => (
            &cpus.effective.value,
            cpus.effective.origin,
            "size of the effective cpuset",
        ),
        _ => (
            online,
            Origin::Unavailable("no cpuset controller"),
            "no cpuset known: any online CPU may be used",
        ),
    };
    let mut homes: Vec<u32> = allowed.iter().collect();
    if homes.is_empty() {
        homes.push(0);
    }
    let quota = match (&snapshot.cpus, policy.cpus) {
        (Some(cpus), CpuPolicy::Quota) => cpus.quota,
        _ => None,
    };
    if let Some(quota) = quota {
        let most = quota_cpus(quota.value) as usize;
        if most < homes.len() {
            homes.truncate(most);
            origin = quota.origin;
            rule = "tightest quota / period, rounded up, at least 1";
        }
    }
    let physical =
        policy.cpu_numbering == CpuNumbering::Physical && policy.cpus != CpuPolicy::Quota;
    let numbers = if physical {
        homes.iter().copied().collect()
    } else {
        CpuSet::first(homes.len() as u32)
    };
    VisibleCpus {
        numbers,
        homes,
        physical,
        origin,
        rule,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{container, cpus};

    fn shown(snapshot: &Snapshot, policy: &ViewPolicy) -> (String, Vec<u32>) {
        let visible = derive(snapshot, policy);
        (visible.numbers.to_string(), visible.homes)
    }

    #[test]
    fn the_effective_cpuset_counts_not_the_requested_one_f10() {
        // The snapshot has no room for a requested set: only the effective one arrives.
        let snapshot = cpus(container(), "2-3", None);
        assert_eq!(
            shown(&snapshot, &ViewPolicy::default()),
            ("0-1".into(), vec![2, 3])
        );
    }

    #[test]
    fn a_parents_quota_narrows_the_count_rounded_up_f30() {
        let snapshot = cpus(container(), "0-7", Some((150_000, 100_000)));
        let visible = derive(&snapshot, &ViewPolicy::default());
        assert_eq!((visible.count(), visible.nr_cpu_ids()), (2, 2));
        assert!(matches!(
            visible.origin,
            Origin::Cgroup {
                file: "cpu.max",
                levels_up: 1,
                ..
            }
        ));
    }

    #[test]
    fn a_quota_below_one_cpu_shows_one_and_a_large_one_shows_the_cpuset() {
        for (quota, expected) in [(1, "0"), (0, "0"), (10_000_000, "0-3"), (u64::MAX, "0-3")] {
            let snapshot = cpus(container(), "4-7", Some((quota, 100_000)));
            assert_eq!(shown(&snapshot, &ViewPolicy::default()).0, expected);
        }
    }

    #[test]
    fn physical_numbers_are_kept_only_where_no_quota_counts() {
        let snapshot = cpus(container(), "1,3", Some((100_000, 100_000)));
        let mut policy = ViewPolicy {
            cpus: CpuPolicy::Cpuset,
            cpu_numbering: CpuNumbering::Physical,
            ..ViewPolicy::default()
        };
        assert_eq!(shown(&snapshot, &policy), ("1,3".into(), vec![1, 3]));
        policy.cpus = CpuPolicy::Quota;
        assert_eq!(shown(&snapshot, &policy), ("0".into(), vec![1]));
        policy.cpus = CpuPolicy::Host;
        assert_eq!(shown(&snapshot, &policy).0, "0-7");
    }

    #[test]
    fn without_a_cpuset_the_online_cpus_are_shown_and_it_is_said() {
        let mut snapshot = container();
        snapshot.cpus = None;
        let visible = derive(&snapshot, &ViewPolicy::default());
        assert_eq!(visible.count(), 8);
        assert!(matches!(visible.origin, Origin::Unavailable(_)));
    }
}
