//! From counts per cgroup to counts per subtree. Pure.

use std::collections::HashMap;

use lxcfs_common::bpf::CgroupLoad;

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
    /// Last PID given out in the outermost PID namespace that has tasks here.
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
            (Some(mine), Some(its)) if its.ns_level < mine.ns_level => Some(its),
            (Some(mine), _) => Some(mine),
            (None, its) => its,
        };
    }
}

impl From<&CgroupLoad> for TaskCounts {
    fn from(load: &CgroupLoad) -> Self {
        Self {
            running: load.running,
            uninterruptible: load.uninterruptible,
            threads: load.threads,
            processes: load.processes,
            last_pid: (load.last_pid != 0).then_some(LastPid {
                pid: load.last_pid,
                ns_level: load.last_pid_level,
            }),
        }
    }
}

/// Result of [`roll_up`] for one hierarchy.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RolledUp {
    /// Counts of every cgroup that has tasks in its subtree.
    pub subtree: HashMap<u64, TaskCounts>,
    /// Entries that hold nothing of this walk and lead to nothing that does.
    pub stale: Vec<u64>,
    /// Cgroups with tasks whose chain of parents ends before the root.
    pub broken_chains: u32,
}

/// Longer chains of parents than this are taken for a loop.
const MAX_LEVELS: usize = 512;

/// Adds the tasks of each cgroup to itself and to all its ancestors. `rows` is the table as
/// read, entries of older walks included.
#[must_use]
pub fn roll_up(rows: &[(u64, CgroupLoad)], generation: u64) -> RolledUp {
    let parents: HashMap<u64, u64> = rows.iter().map(|(id, load)| (*id, load.parent)).collect();
    let mut result = RolledUp::default();
    for (id, load) in rows {
        if load.generation != generation || load.threads == 0 {
            continue;
        }
        let own = TaskCounts::from(load);
        let mut at = *id;
        let mut whole = false;
        for _ in 0..MAX_LEVELS {
            result.subtree.entry(at).or_default().add(&own);
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
    result.stale = rows
        .iter()
        .map(|(id, _)| *id)
        .filter(|id| !result.subtree.contains_key(id))
        .collect();
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(id: u64, parent: u64, threads: u32) -> (u64, CgroupLoad) {
        let load = CgroupLoad {
            generation: 7,
            parent,
            running: threads,
            threads,
            processes: 1,
            ..Default::default()
        };
        (id, load)
    }

    #[test]
    fn five_levels_reach_the_root() {
        let rows: Vec<_> = (1..=5).map(|id| row(id, id - 1, id as u32)).collect();
        let rolled = roll_up(&rows, 7);
        assert_eq!(rolled.subtree[&5].running, 5);
        assert_eq!(rolled.subtree[&1].running, 15);
        assert_eq!(rolled.subtree[&1].processes, 5);
        assert_eq!(rolled.broken_chains, 0);
    }

    #[test]
    fn a_level_without_tasks_is_passed_through() {
        let mut middle = row(2, 1, 0);
        middle.1.generation = 0;
        let rolled = roll_up(&[row(1, 0, 1), middle, row(3, 2, 4)], 7);
        assert_eq!(rolled.subtree[&2].threads, 4);
        assert_eq!(rolled.subtree[&1].threads, 5);
        assert!(rolled.stale.is_empty());
    }

    #[test]
    fn only_branches_without_tasks_are_stale() {
        let mut empty = row(3, 2, 9);
        empty.1.generation = 6;
        let rolled = roll_up(&[row(1, 0, 1), row(2, 1, 1), empty], 7);
        assert_eq!(rolled.stale, [3]);
        assert_eq!(rolled.subtree[&2].threads, 1);
    }

    #[test]
    fn the_outermost_pid_namespace_names_the_last_pid() {
        let mut outer = row(1, 0, 1);
        (outer.1.last_pid, outer.1.last_pid_level) = (40, 1);
        let mut inner = row(2, 1, 1);
        (inner.1.last_pid, inner.1.last_pid_level) = (9, 2);
        let rolled = roll_up(&[inner, outer], 7);
        assert_eq!(
            rolled.subtree[&1].last_pid,
            Some(LastPid {
                pid: 40,
                ns_level: 1
            })
        );
        assert_eq!(
            rolled.subtree[&2].last_pid,
            Some(LastPid {
                pid: 9,
                ns_level: 2
            })
        );
    }

    #[test]
    fn a_broken_chain_is_told() {
        assert_eq!(roll_up(&[row(5, 4, 1)], 7).broken_chains, 1);
    }

    proptest! {
        #[test]
        fn any_table_ends_and_each_row_counts_at_itself(
            entries in prop::collection::hash_map(1u64..40, (0u64..40, 0u32..5), 0..40)
        ) {
            let rows: Vec<_> =
                entries.iter().map(|(id, (parent, threads))| row(*id, *parent, *threads)).collect();
            let rolled = roll_up(&rows, 7);
            for (id, load) in &rows {
                if load.threads > 0 {
                    prop_assert!(rolled.subtree[id].threads >= load.threads);
                }
            }
        }
    }
}
