//! One walk over all tasks, read into counts per subtree.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{Array, HashMap as HashTable, Map, MapData};
use lxcfs_common::bpf::CgroupLoad;

use super::error::BpfError;
use super::load::{Loaded, Plain, data};
use super::rollup::{CgroupId, RolledUp, TaskCounts, roll_up};
use super::sys;
use crate::units::Nsec;

/// Counts of all cgroups that have tasks, at one moment.
#[derive(Debug, Clone, Default)]
pub struct TaskSample {
    /// `CLOCK_BOOTTIME` when the walk ended.
    pub at: Nsec,
    /// Number of the walk, counting from 1.
    pub generation: u64,
    /// Tasks that were not counted because the table was full, since the start.
    pub lost_tasks: u64,
    /// Cgroups with tasks whose ancestors could not all be followed.
    pub broken_chains: u32,
    subtree: HashMap<CgroupId, TaskCounts>,
}

impl TaskSample {
    /// Counts of a cgroup with everything below it; all zero for one without tasks.
    #[must_use]
    pub fn counts(&self, cgroup: CgroupId) -> TaskCounts {
        self.subtree.get(&cgroup).copied().unwrap_or_default()
    }

    /// Every cgroup that has tasks in its subtree.
    pub fn iter(&self) -> impl Iterator<Item = (CgroupId, &TaskCounts)> {
        self.subtree.iter().map(|(id, counts)| (*id, counts))
    }

    /// How many cgroups have tasks in their subtree.
    #[must_use]
    pub fn len(&self) -> usize {
        self.subtree.len()
    }

    /// Whether no cgroup has tasks, which only an empty default sample says.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.subtree.is_empty()
    }
}

/// One hierarchy's table in the kernel.
struct Table {
    map: HashTable<MapData, u64, Plain<CgroupLoad>>,
    fd: OwnedFd,
    max_entries: u32,
    rows: Vec<(u64, CgroupLoad)>,
}

impl Table {
    fn new(map: Map) -> Result<Self, BpfError> {
        let fd = data(&map)
            .ok_or(BpfError::Off(super::Feature::TaskCounts))?
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(BpfError::system("duplicating a map descriptor"))?;
        let map = HashTable::try_from(map)
            .map_err(|error| BpfError::library("opening the table of tasks")(Box::new(error)))?;
        Ok(Self {
            map,
            fd,
            max_entries: MAX_CGROUPS,
            rows: Vec::new(),
        })
    }

    /// Reads the table, rolls it up, and drops what no task stands behind any more.
    fn read(&mut self, generation: u64) -> Result<RolledUp, BpfError> {
        self.rows.clear();
        sys::read_all(self.fd.as_fd(), self.max_entries, &mut self.rows)
            .map_err(BpfError::system("reading the table of tasks"))?;
        let rolled = roll_up(&self.rows, generation);
        for id in &rolled.stale {
            // Already gone is as good.
            let _ = self.map.remove(id);
        }
        // A burst of cgroups must not keep its memory for ever.
        if self.rows.capacity() > 4096 && self.rows.len() < self.rows.capacity() / 4 {
            self.rows = Vec::new();
        }
        Ok(rolled)
    }
}

/// Size of the tables in the object.
const MAX_CGROUPS: u32 = 32_768;

/// Owner of the walk: the tables are written by one walk at a time.
pub(super) struct TaskWalk {
    link: OwnedFd,
    generation: Array<MapData, u64>,
    v2: Table,
    v1: Option<Table>,
    number: u64,
}

impl TaskWalk {
    /// Takes what it needs out of the loaded object.
    pub(super) fn new(loaded: &mut Loaded, v1: bool) -> Result<Self, BpfError> {
        let off = || BpfError::Off(super::Feature::TaskCounts);
        let program = loaded
            .program_fd("load_tasks")
            .or_else(|| loaded.program_fd("load_tasks_pr"))
            .ok_or_else(off)?;
        let link = sys::iterator_link(program.as_fd())
            .map_err(BpfError::system("making the task iterator"))?;
        let generation = Array::try_from(loaded.map("GENERATION").ok_or_else(off)?)
            .map_err(|error| BpfError::library("opening GENERATION")(Box::new(error)))?;
        let v2 = Table::new(loaded.map("LOAD_V2").ok_or_else(off)?)?;
        let v1 = if v1 {
            Some(Table::new(loaded.map("LOAD_V1").ok_or_else(off)?)?)
        } else {
            None
        };
        Ok(Self {
            link,
            generation,
            v2,
            v1,
            number: 0,
        })
    }

    /// Walks all tasks.
    pub(super) fn sample(&mut self) -> Result<TaskSample, BpfError> {
        self.number += 1;
        self.generation
            .set(0, self.number, 0)
            .map_err(|error| BpfError::library("setting the walk's number")(Box::new(error)))?;
        sys::walk(self.link.as_fd(), &mut Vec::new())
            .map_err(BpfError::system("walking the tasks"))?;
        let at = super::boottime();
        let v2 = self.v2.read(self.number)?;
        let v1 = match &mut self.v1 {
            Some(table) => table.read(self.number)?,
            None => RolledUp::default(),
        };
        let broken_chains = v2.broken_chains.saturating_add(v1.broken_chains);
        let mut subtree = HashMap::with_capacity(v2.subtree.len() + v1.subtree.len());
        subtree.extend(
            v2.subtree
                .into_iter()
                .map(|(id, counts)| (CgroupId::V2(id), counts)),
        );
        subtree.extend(
            v1.subtree
                .into_iter()
                .map(|(id, counts)| (CgroupId::V1(id), counts)),
        );
        Ok(TaskSample {
            at,
            generation: self.number,
            lost_tasks: 0,
            broken_chains,
            subtree,
        })
    }
}
