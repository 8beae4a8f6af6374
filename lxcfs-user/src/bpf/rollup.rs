//! From counts per cgroup to counts per subtree. Pure.

use std::collections::HashMap;

use lxcfs_common::bpf::{TaskSet, is_further_out};

/// A cgroup's id, which is also the inode number of its directory. Ids are unique only
/// within one hierarchy, so the hierarchy is part of the type's value and the two never
/// compare equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CgroupId {
    /// On the v2 hierarchy.
    V2(u64),
    /// On the v1 hierarchy that is counted; see `Collector::v1_controller`.
    V1(u64),
}

/// The last PID that a namespace gave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastPid {
    /// The PID, as processes inside that namespace see it.
    pub pid: u32,
    /// Depth of the namespace; 0 is the host's.
    pub ns_level: u32,
}

/// What runs in one cgroup and everything below it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskCounts {
    /// Threads that run or wait for a CPU.
    pub running: u32,
    /// Threads in uninterruptible sleep that count as load.
    pub uninterruptible: u32,
    /// Threads, exiting ones included.
    pub threads: u32,
    /// Processes.
    pub processes: u32,
    /// Last PID given out in the outermost PID namespace that has tasks here; the host's only
    /// if there is no other.
    pub last_pid: Option<LastPid>,
}

impl TaskCounts {
    /// What the kernel's load average samples: running plus uninterruptible.
    #[must_use]
    pub const fn active(&self) -> u32 {
        self.running.saturating_add(self.uninterruptible)
    }

    fn add(&mut self, other: &Self) {
        self.running = self.running.saturating_add(other.running);
        self.uninterruptible = self.uninterruptible.saturating_add(other.uninterruptible);
        self.threads = self.threads.saturating_add(other.threads);
        self.processes = self.processes.saturating_add(other.processes);
        self.last_pid = match (self.last_pid, other.last_pid) {
            (Some(mine), Some(its)) if is_further_out(its.ns_level, mine.ns_level) => Some(its),
            (Some(mine), _) => Some(mine),
            (None, its) => its,
        };
    }
}

impl From<&TaskSet> for TaskCounts {
    fn from(set: &TaskSet) -> Self {
        Self {
            running: set.running,
            uninterruptible: set.uninterruptible,
            threads: set.threads,
            processes: set.processes,
            last_pid: (set.last_pid != 0).then_some(LastPid {
                pid: set.last_pid,
                ns_level: set.last_pid_level,
            }),
        }
    }
}

/// Result of [`roll_up`] for one hierarchy.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RolledUp {
    /// Counts of every cgroup that has tasks in its subtree.
    pub subtree: HashMap<u64, TaskCounts>,
    /// Nodes below which there are no tasks.
    pub stale: Vec<u64>,
    /// Cgroups with tasks whose chain of parents ends before the root.
    pub broken_chains: u32,
}

/// Longer chains of parents than this are taken for a loop.
const MAX_LEVELS: usize = 512;

/// Adds tasks to their cgroup and to all its ancestors. `own` names a cgroup once per set of
/// tasks; `parents` is the hierarchy as far as it is known, 0 above the root.
#[must_use]
pub fn roll_up(
    own: impl IntoIterator<Item = (u64, TaskCounts)>,
    parents: &HashMap<u64, u64>,
) -> RolledUp {
    let mut result = RolledUp {
        subtree: HashMap::with_capacity(parents.len()),
        ..RolledUp::default()
    };
    for (id, counts) in own {
        let mut at = id;
        let mut whole = false;
        for _ in 0..MAX_LEVELS {
            result.subtree.entry(at).or_default().add(&counts);
            match parents.get(&at) {
                Some(0) => {
                    whole = true;
                    break;
                }
                Some(&parent) => at = parent,
                None => break,
            }
        }
        result.broken_chains += u32::from(!whole);
    }
    result.stale = parents
        .keys()
        .copied()
        .filter(|id| !result.subtree.contains_key(id))
        .collect();
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tasks(id: u64, threads: u32) -> (u64, TaskCounts) {
        let counts = TaskCounts {
            running: threads,
            threads,
            processes: 1,
            ..Default::default()
        };
        (id, counts)
    }

    #[test]
    fn five_levels_reach_the_root() {
        let tree = (1..=5).map(|id| (id, id - 1)).collect();
        let rolled = roll_up((1..=5).map(|id| tasks(id, id as u32)), &tree);
        assert_eq!(rolled.subtree[&5].running, 5);
        assert_eq!(rolled.subtree[&1].running, 15);
        assert_eq!(rolled.subtree[&1].processes, 5);
        assert_eq!(rolled.broken_chains, 0);
    }

    #[test]
    fn a_level_without_tasks_is_passed_through_and_sets_of_one_cgroup_add_up() {
        let tree = HashMap::from([(1, 0), (2, 1), (3, 2)]);
        let rolled = roll_up([tasks(1, 1), tasks(3, 4), tasks(3, 2)], &tree);
        assert_eq!(rolled.subtree[&2].threads, 6);
        assert_eq!(rolled.subtree[&1].threads, 7);
        assert!(rolled.stale.is_empty());
    }

    #[test]
    fn only_branches_without_tasks_are_stale() {
        let rolled = roll_up([tasks(2, 1)], &HashMap::from([(1, 0), (2, 1), (3, 2)]));
        assert_eq!(rolled.stale, [3]);
        assert_eq!(rolled.subtree[&2].threads, 1);
    }

    #[test]
    fn the_outermost_pid_namespace_but_the_hosts_names_the_last_pid() {
        let seen = |id, pid, ns_level| {
            let last_pid = Some(LastPid { pid, ns_level });
            let own = TaskCounts {
                last_pid,
                ..tasks(id, 1).1
            };
            (id, own)
        };
        let tree = HashMap::from([(1, 0), (2, 1), (3, 2)]);
        let mut own = [
            seen(3, 9, 2),
            seen(2, 40, 1),
            // Processes of the host, in the container's cgroup and in one below.
            seen(2, 70_001, 0),
            seen(3, 70_001, 0),
        ];
        for _ in 0..own.len() {
            let rolled = roll_up(own, &tree);
            let last = |id| {
                let last = rolled.subtree[&id].last_pid.unwrap();
                (last.pid, last.ns_level)
            };
            assert_eq!((last(1), last(2), last(3)), ((40, 1), (40, 1), (9, 2)));
            // In whatever order the tasks are met.
            own.rotate_left(1);
        }
        let host = roll_up([seen(2, 70_001, 0)], &tree).subtree[&2].last_pid;
        assert_eq!(host.map(|last| last.ns_level), Some(0));
    }

    #[test]
    fn a_broken_chain_is_told() {
        assert_eq!(
            roll_up([tasks(5, 1)], &HashMap::from([(5, 4)])).broken_chains,
            1
        );
    }

    proptest! {
        #[test]
        fn any_table_ends_and_each_row_counts_at_itself(
            tree in prop::collection::hash_map(1u64..40, 0u64..40, 0..40),
            own in prop::collection::vec((1u64..40, 1u32..5), 0..40),
        ) {
            let rolled = roll_up(own.iter().map(|(id, threads)| tasks(*id, *threads)), &tree);
            for (id, threads) in own {
                prop_assert!(rolled.subtree[&id].threads >= threads);
            }
        }
    }
}
