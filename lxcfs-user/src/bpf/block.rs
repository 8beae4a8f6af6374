//! Requests, merges and times per cgroup and disk, which no cgroup file has.

use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{HashMap as HashTable, Map, MapData};
use lxcfs_common::bpf::{BlockCounters, BlockKey};

use super::error::BpfError;
use super::feature::Feature;
use super::load::{Loaded, Plain, data};
use super::sys;
use crate::units::{Bytes, Nsec};

/// Size of the table in the object.
const MAX_ROWS: u32 = 32_768;

/// Direction of a request, the column groups of diskstats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the kernel's")]
pub enum BlockOp {
    Read,
    Write,
    Discard,
}

/// Counters since the collector started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRow {
    /// Id of the cgroup (not of its subtree) on the hierarchy of the io controller; see
    /// [`super::Collector::block_on_v1`].
    pub cgroup: u64,
    /// Device major number.
    pub major: u32,
    /// Device minor number.
    pub minor: u32,
    /// Direction.
    pub op: BlockOp,
    /// Requests completed.
    pub requests: u64,
    /// Bios merged into a waiting request.
    pub merges: u64,
    /// Time the completed requests took, summed.
    pub time: Nsec,
    /// Bytes completed.
    pub bytes: Bytes,
}

fn row(key: &BlockKey, counters: &BlockCounters) -> Option<BlockRow> {
    let op = match key.op {
        0 => BlockOp::Read,
        1 => BlockOp::Write,
        2 => BlockOp::Discard,
        _ => return None,
    };
    Some(BlockRow {
        cgroup: key.cgroup,
        major: key.major,
        minor: key.minor,
        op,
        requests: counters.requests,
        merges: counters.merges,
        time: Nsec(counters.nsec),
        bytes: Bytes(counters.bytes),
    })
}

/// Reader of the counters.
pub(super) struct BlockTable {
    map: HashTable<MapData, Plain<BlockKey>, Plain<BlockCounters>>,
    fd: OwnedFd,
}

impl BlockTable {
    pub(super) fn new(loaded: &mut Loaded) -> Result<Self, BpfError> {
        let off = || BpfError::Off(Feature::BlockTimes);
        let map: Map = loaded.map("BLOCK").ok_or_else(off)?;
        let fd = data(&map)
            .ok_or_else(off)?
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(BpfError::system("duplicating a map descriptor"))?;
        let map = HashTable::try_from(map)
            .map_err(|error| BpfError::library("opening the block counters")(Box::new(error)))?;
        Ok(Self { map, fd })
    }

    pub(super) fn read(&self) -> Result<Vec<BlockRow>, BpfError> {
        let mut rows: Vec<(BlockKey, BlockCounters)> = Vec::new();
        sys::read_all(self.fd.as_fd(), MAX_ROWS, &mut rows)
            .map_err(BpfError::system("reading the block counters"))?;
        Ok(rows
            .iter()
            .filter_map(|(key, counters)| row(key, counters))
            .collect())
    }

    /// Forgets the counters of removed cgroups.
    pub(super) fn forget(&mut self, gone: &dyn Fn(u64) -> bool) -> Result<usize, BpfError> {
        let mut rows: Vec<(BlockKey, BlockCounters)> = Vec::new();
        sys::read_all(self.fd.as_fd(), MAX_ROWS, &mut rows)
            .map_err(BpfError::system("reading the block counters"))?;
        let mut forgotten = 0;
        for (key, _) in rows.iter().filter(|(key, _)| gone(key.cgroup)) {
            forgotten += usize::from(self.map.remove(&Plain(*key)).is_ok());
        }
        Ok(forgotten)
    }
}
