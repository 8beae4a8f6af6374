//! One walk over all tasks, read into counts per subtree.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, HashMap as HashTable, Map, MapData};
use aya::programs::{RawTracePointRunOptions, TestRun};
use bytemuck::Pod;
use lxcfs_common::bpf::{
    CgroupNode, TaskSet, WALK_COUNTED, WALK_FROM, WALK_INTRODUCED, WALK_LEFT, WALK_LIMIT,
    WALK_NEXT, WALK_NUMBER,
};

use super::error::BpfError;
use super::feature::Feature;
use super::load::{Loaded, Plain, data, on_demand};
use super::plan::TASK_LOOP;
use super::rollup::{CgroupId, RolledUp, TaskCounts, roll_up};
use super::sys;
use crate::units::Nsec;

/// Counts of all cgroups that have tasks, at one moment.
#[derive(Debug, Clone, Default)]
pub struct TaskSample {
    /// `CLOCK_BOOTTIME` when the walk ended.
    pub at: Nsec,
    /// CPU time that taking it cost this thread.
    pub cost: Duration,
    /// Number of the sample, counting from 1.
    pub generation: u64,
    /// Tasks that were not counted because the table was full, since the start.
    pub lost_tasks: u64,
    /// Cgroups with tasks whose ancestors could not all be followed.
    pub broken_chains: u32,
    /// Runs of the loop that took it; 0 if it was taken by the kernel's iterator.
    pub runs: u32,
    v2: HashMap<u64, TaskCounts>,
    v1: HashMap<u64, TaskCounts>,
}

/// How old a sample that cost `cost` may get before a request has the next one taken. Readers
/// can thus make us spend at most 1 % of a CPU on walks, however often they ask.
fn max_age(cost: Duration) -> Duration {
    cost.saturating_mul(100)
        .clamp(Duration::from_millis(50), Duration::from_secs(5))
}

impl TaskSample {
    /// Whether it may still serve a request.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        let age = super::boottime().less(self.at);
        u128::from(age.0) <= max_age(self.cost).as_nanos()
    }

    /// Counts of a cgroup with everything below it; all zero for one without tasks.
    #[must_use]
    pub fn counts(&self, cgroup: CgroupId) -> TaskCounts {
        let counts = match cgroup {
            CgroupId::V2(id) => self.v2.get(&id),
            CgroupId::V1(id) => self.v1.get(&id),
        };
        counts.copied().unwrap_or_default()
    }

    /// Every cgroup that has tasks in its subtree.
    pub fn iter(&self) -> impl Iterator<Item = (CgroupId, &TaskCounts)> {
        let v2 = self
            .v2
            .iter()
            .map(|(id, counts)| (CgroupId::V2(*id), counts));
        let v1 = self
            .v1
            .iter()
            .map(|(id, counts)| (CgroupId::V1(*id), counts));
        v2.chain(v1)
    }

    /// How many cgroups have tasks in their subtree.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v2.len() + self.v1.len()
    }

    /// Whether no cgroup has tasks, which only an empty default sample says.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v2.is_empty() && self.v1.is_empty()
    }
}

/// A hash table in the kernel, read as a whole.
struct Table<V: Pod> {
    map: HashTable<MapData, u64, Plain<V>>,
    fd: OwnedFd,
    rows: Vec<(u64, V)>,
}

impl<V: Pod> Table<V> {
    fn new(map: Map) -> Result<Self, BpfError> {
        let fd = data(&map)
            .ok_or(BpfError::Off(Feature::TaskCounts))?
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(BpfError::system("duplicating a map descriptor"))?;
        let map = HashTable::try_from(map)
            .map_err(|error| BpfError::library("opening the table of tasks")(Box::new(error)))?;
        let rows = Vec::new();
        Ok(Self { map, fd, rows })
    }

    fn read(&mut self) -> Result<(), BpfError> {
        // A burst of cgroups must not keep its memory for ever.
        if self.rows.capacity() > 4096 && self.rows.len() < self.rows.capacity() / 4 {
            self.rows = Vec::new();
        }
        self.rows.clear();
        sys::read_all(self.fd.as_fd(), MAX_ROWS, &mut self.rows)
            .map_err(BpfError::system("reading the table of tasks"))
    }

    fn forget(&mut self, keys: impl IntoIterator<Item = u64>) {
        for key in keys {
            // Already gone is as good.
            let _ = self.map.remove(&key);
        }
    }
}

/// Size of the tables in the object.
const MAX_ROWS: u32 = 32_768;

/// One hierarchy as the walks have seen it, and what is known of it here.
struct Tree {
    table: Table<CgroupNode>,
    /// Parent of each cgroup in the table, 0 above the root.
    parents: HashMap<u64, u64>,
}

impl Tree {
    fn new(map: Map) -> Result<Self, BpfError> {
        Ok(Self {
            table: Table::new(map)?,
            parents: HashMap::new(),
        })
    }

    fn read(&mut self) -> Result<(), BpfError> {
        self.table.read()?;
        let rows = std::mem::take(&mut self.table.rows).into_iter();
        self.parents.clear();
        self.parents
            .extend(rows.map(|(id, node)| (id, node.parent)));
        self.parents.shrink_to(self.parents.len() * 4);
        Ok(())
    }

    /// Rolls the tasks up, and drops the cgroups without any.
    fn rolled(&mut self, own: impl Iterator<Item = (u64, TaskCounts)>) -> RolledUp {
        let mut rolled = roll_up(own, &self.parents);
        for id in &rolled.stale {
            self.parents.remove(id);
        }
        self.table.forget(std::mem::take(&mut rolled.stale));
        rolled
    }
}

/// More than enough for as many tasks as there are PIDs; nobody who starts tasks all the time can
/// keep a walk going.
const MAX_RUNS: u32 = 2048;

/// Owner of the walk: the tables are written by one walk at a time.
pub(super) struct TaskWalk {
    /// Goes over all tasks, `load_tasks` run for each.
    link: OwnedFd,
    /// `load_tasks_loop` is there, which most walks are left to.
    loops: bool,
    per_run: u64,
    words: Array<MapData, u64>,
    sets: Table<TaskSet>,
    v2: Tree,
    v1: Option<Tree>,
    /// Samples taken.
    samples: u64,
    /// Number of the last walk.
    number: u64,
    /// Cgroups put into the trees when they were last read; `None`: read them again.
    introduced: Option<u64>,
}

impl TaskWalk {
    /// Takes what it needs out of the loaded object.
    pub(super) fn new(loaded: &mut Loaded, v1: bool, per_run: u64) -> Result<Self, BpfError> {
        let off = || BpfError::Off(Feature::TaskCounts);
        let program = ["load_tasks", "load_tasks_pr"]
            .iter()
            .find_map(|name| loaded.program_fd(name))
            .ok_or_else(off)?;
        let link = sys::iterator_link(program.as_fd())
            .map_err(BpfError::system("making the task iterator"))?;
        let loops = on_demand(&loaded.ebpf, TASK_LOOP.name, Feature::TaskCounts)
            .is_ok_and(|program| program.fd().is_ok());
        let words = Array::try_from(loaded.map("WALK").ok_or_else(off)?)
            .map_err(|error| BpfError::library("opening WALK")(Box::new(error)))?;
        let sets = Table::new(loaded.map("TASK_SETS").ok_or_else(off)?)?;
        let v2 = Tree::new(loaded.map("TREE_V2").ok_or_else(off)?)?;
        let v1 = if v1 {
            Some(Tree::new(loaded.map("TREE_V1").ok_or_else(off)?)?)
        } else {
            None
        };
        Ok(Self {
            link,
            loops,
            per_run,
            words,
            sets,
            v2,
            v1,
            samples: 0,
            number: 0,
            introduced: None,
        })
    }

    /// Walks all tasks.
    pub(super) fn sample(&mut self, ebpf: &Ebpf) -> Result<TaskSample, BpfError> {
        let before = super::clock(libc::CLOCK_THREAD_CPUTIME_ID);
        let runs = self.walk(ebpf)?;
        let number = self.number;
        let at = super::boottime();
        self.sets.read()?;
        let rows = std::mem::take(&mut self.sets.rows);
        let old = rows.iter().filter(|(_, set)| set.generation != number);
        self.sets.forget(old.map(|(address, _)| *address));
        self.read_trees()?;

        let current = || {
            rows.iter()
                .map(|(_, set)| set)
                .filter(|set| set.generation == number)
        };
        let on = |set: &TaskSet, id: u64| (id != 0).then(|| (id, TaskCounts::from(set)));
        let v2 = self
            .v2
            .rolled(current().filter_map(|set| on(set, set.cgroup_v2)));
        let v1 = self
            .v1
            .as_mut()
            .map(|tree| tree.rolled(current().filter_map(|set| on(set, set.cgroup_v1))));
        let v1 = v1.unwrap_or_default();
        self.sets.rows = rows;

        let broken_chains = v2.broken_chains.saturating_add(v1.broken_chains);
        if broken_chains > 0 {
            // Nothing may be taken for present: a gap in the numbers has all looked up again.
            self.number += 1;
            self.introduced = None;
        }
        self.samples += 1;
        let cost = super::clock(libc::CLOCK_THREAD_CPUTIME_ID).less(before);
        Ok(TaskSample {
            at,
            cost: Duration::from_nanos(cost.0),
            generation: self.samples,
            lost_tasks: 0,
            broken_chains,
            runs,
            v2: v2.subtree,
            v1: v1.subtree,
        })
    }

    /// By the loop if it is there and everything is as it knows it; else by the iterator. Returns
    /// how many runs of the loop it took.
    fn walk(&mut self, ebpf: &Ebpf) -> Result<u32, BpfError> {
        if self.loops {
            self.begin()?;
            if let Some(runs) = self.walk_in_runs(ebpf)? {
                return Ok(runs);
            }
            // A gap in the numbers: what the loop met is not in the trees for that.
            self.number += 1;
        }
        self.begin()?;
        sys::walk(self.link.as_fd(), &mut Vec::new())
            .map_err(BpfError::system("walking the tasks"))?;
        Ok(0)
    }

    fn begin(&mut self) -> Result<(), BpfError> {
        self.number += 1;
        self.set(WALK_NUMBER, self.number)
    }

    /// One run after the other, until all tasks are counted. `None` when one met what only the
    /// iterator does, or when the task that a run was to begin with had ended: nobody knows then
    /// where the one before stopped.
    fn walk_in_runs(&mut self, ebpf: &Ebpf) -> Result<Option<u32>, BpfError> {
        let program = on_demand(ebpf, TASK_LOOP.name, Feature::TaskCounts)?;
        self.set(WALK_LIMIT, self.per_run.max(1))?;
        self.set(WALK_LEFT, 0)?;
        let mut from = 0;
        for runs in 1..=MAX_RUNS {
            self.set(WALK_FROM, from)?;
            self.set(WALK_NEXT, 0)?;
            self.set(WALK_COUNTED, 0)?;
            let result = program
                .test_run(RawTracePointRunOptions::new())
                .map_err(|error| BpfError::library("running load_tasks_loop")(Box::new(error)))?;
            if result.return_value != 0 {
                return Err(BpfError::Program {
                    program: TASK_LOOP.name,
                    code: result.return_value.cast_signed(),
                });
            }
            if self.get(WALK_FROM)? != 0 || self.get(WALK_LEFT)? != 0 {
                return Ok(None);
            }
            from = self.get(WALK_NEXT)?;
            if from == 0 {
                return Ok(Some(runs));
            }
        }
        Ok(None)
    }

    fn set(&mut self, word: u32, value: u64) -> Result<(), BpfError> {
        let error = BpfError::library("setting the walk's words");
        self.words
            .set(word, value, 0)
            .map_err(|why| error(Box::new(why)))
    }

    fn get(&self, word: u32) -> Result<u64, BpfError> {
        let error = BpfError::library("reading the walk's words");
        self.words.get(&word, 0).map_err(|why| error(Box::new(why)))
    }

    /// Reads the trees, unless no cgroup has been put into them since the last time: reading
    /// costs a look at every bucket, and most walks meet nothing new.
    fn read_trees(&mut self) -> Result<(), BpfError> {
        let introduced = self.get(WALK_INTRODUCED)?;
        if self.introduced == Some(introduced) {
            return Ok(());
        }
        self.introduced = None;
        self.v2.read()?;
        if let Some(tree) = &mut self.v1 {
            tree.read()?;
        }
        self.introduced = Some(introduced);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_cannot_make_walks_cost_more_than_a_hundredth_of_a_cpu() {
        let millis = Duration::from_millis;
        assert_eq!(max_age(Duration::ZERO), millis(50));
        assert_eq!(max_age(Duration::from_micros(400)), millis(50));
        assert_eq!(max_age(millis(3)), millis(300));
        // The sampler itself walks every 5 s.
        assert_eq!(max_age(millis(200)), Duration::from_secs(5));
        assert_eq!(max_age(Duration::MAX), Duration::from_secs(5));
        for micros in [500, 700, 5_000, 49_999] {
            let cost = Duration::from_micros(micros);
            assert!(cost.as_secs_f64() / max_age(cost).as_secs_f64() <= 0.01 + 1e-9);
        }
    }
}
