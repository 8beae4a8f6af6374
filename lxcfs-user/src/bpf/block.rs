//! Requests, merges and times per cgroup and disk, which no cgroup file has.
//!
//! The kernel side counts at the cgroup a request is charged to. Here they are added up
//! over a subtree, and what a removed cgroup did is handed on to its parent, as the kernel
//! does with `io.stat`. Children that keep a device busy at the same time add up, so the busy
//! time of a cgroup with several may exceed the time that passed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{Array, HashMap as HashTable, Map, MapData, MapError};
use lxcfs_common::bpf::{BLOCK_QUEUE, BlockCounters, BlockKey, BlockQueue};

use super::error::BpfError;
use super::feature::Feature;
use super::load::{Loaded, Plain, data};
use super::sys;
use crate::snapshot::IoTimes;
use crate::units::Nsec;

/// Size of the table in the object, and of the one of handed-on counters.
const MAX_ROWS: u32 = 32_768;
/// A request may finish after its cgroup was removed; so long, in sweeps, the id is watched.
const WATCHED_SWEEPS: u64 = 12;
/// Removed cgroups watched at most.
const MAX_REMOVED: usize = 65_536;
/// Every [`BlockKey::op`]: the three directions and the queue.
const OPS: [u32; 4] = [0, 1, 2, BLOCK_QUEUE];
/// Rows looked up one by one at most. The kernel goes through all buckets of the table when
/// that is read as a whole, which costs about as much, however few rows there are.
const MAX_LOOKUPS: usize = 64;

/// Times per device, by major and minor number.
pub type DeviceTimes = HashMap<(u32, u32), IoTimes>;

type Rows = HashMap<BlockKey, BlockCounters>;

/// Cgroups that were removed, and what they handed on. Pure.
#[derive(Default)]
struct Inheritance {
    /// Id, parent and number of the sweep in which it was told; children before parents.
    removed: VecDeque<(u64, u64, u64)>,
    carried: Rows,
    sweep: u64,
    /// Rows that found no place.
    lost: u64,
}

impl Inheritance {
    fn remove(&mut self, cgroup: u64, parent: u64) {
        if self.removed.len() == MAX_REMOVED {
            self.removed.pop_front();
        }
        self.removed.push_back((cgroup, parent, self.sweep));
    }

    /// Takes over the rows of removed cgroups out of `rows`; returns their keys, which the
    /// kernel's table can forget.
    fn take(&mut self, rows: &[(BlockKey, BlockCounters)]) -> Vec<BlockKey> {
        let heirs: HashMap<u64, u64> = self
            .removed
            .iter()
            .map(|(cgroup, parent, _)| (*cgroup, *parent))
            .collect();
        let heir = |cgroup: u64| {
            let mut at = cgroup;
            // Ids only grow, and a parent is older than its child.
            while let Some(parent) = heirs.get(&at).filter(|parent| **parent < at) {
                at = *parent;
            }
            at
        };
        let mut taken = Vec::new();
        let mut inherited: Vec<(BlockKey, BlockCounters)> = Vec::new();
        self.carried.retain(|key, counters| {
            let stays = heir(key.cgroup) == key.cgroup;
            if !stays {
                inherited.push((*key, *counters));
            }
            stays
        });
        for (key, counters) in rows
            .iter()
            .filter(|(key, _)| heir(key.cgroup) != key.cgroup)
        {
            taken.push(*key);
            inherited.push((*key, *counters));
        }
        for (key, counters) in inherited {
            let key = BlockKey {
                cgroup: heir(key.cgroup),
                ..key
            };
            if self.carried.len() < MAX_ROWS as usize || self.carried.contains_key(&key) {
                add(self.carried.entry(key).or_default(), &counters);
            } else {
                self.lost += 1;
            }
        }
        self.sweep += 1;
        while self
            .removed
            .front()
            .is_some_and(|(_, _, told)| told + WATCHED_SWEEPS < self.sweep)
        {
            self.removed.pop_front();
        }
        taken
    }
}

fn add(sum: &mut BlockCounters, more: &BlockCounters) {
    sum.requests = sum.requests.saturating_add(more.requests);
    sum.merges = sum.merges.saturating_add(more.merges);
    sum.nsec = sum.nsec.saturating_add(more.nsec);
    sum.bytes = sum.bytes.saturating_add(more.bytes);
}

/// Sums the rows of these cgroups per device.
fn sum<'a>(
    rows: impl Iterator<Item = (&'a BlockKey, &'a BlockCounters)>,
    cgroups: &HashSet<u64>,
) -> DeviceTimes {
    let mut devices = DeviceTimes::new();
    // One cgroup may have finished what another started: a request moves with its parent.
    let mut moves: HashMap<(u32, u32), (u64, u64)> = HashMap::new();
    for (key, counters) in rows.filter(|(key, _)| cgroups.contains(&key.cgroup)) {
        let device = devices.entry((key.major, key.minor)).or_default();
        if key.op == BLOCK_QUEUE {
            let queue: BlockQueue = bytemuck::cast(*counters);
            let (started, finished) = moves.entry((key.major, key.minor)).or_default();
            *started = started.saturating_add(queue.started);
            *finished = finished.saturating_add(queue.finished);
            device.in_flight = started.saturating_sub(*finished);
            device.io_time = device.io_time.plus(Nsec(queue.busy_nsec));
            continue;
        }
        let (merged, time) = match key.op {
            0 => (&mut device.reads_merged, &mut device.read_time),
            1 => (&mut device.writes_merged, &mut device.write_time),
            _ => (&mut device.discards_merged, &mut device.discard_time),
        };
        *merged = merged.saturating_add(counters.merges);
        *time = time.plus(Nsec(counters.nsec));
    }
    devices
}

/// Every row that these cgroups can have on these devices.
fn keys<'a>(
    cgroups: &'a HashSet<u64>,
    devices: &'a [(u32, u32)],
) -> impl Iterator<Item = BlockKey> + 'a {
    cgroups.iter().flat_map(move |&cgroup| {
        devices.iter().flat_map(move |&(major, minor)| {
            OPS.map(|op| BlockKey {
                cgroup,
                major,
                minor,
                op,
                pad: 0,
            })
        })
    })
}

/// Adds the time a device has been busy since its queue last changed.
fn run_on(key: BlockKey, counters: &mut BlockCounters, now: Nsec) {
    if key.op == BLOCK_QUEUE {
        let mut queue: BlockQueue = bytemuck::cast(*counters);
        if queue.started > queue.finished {
            let busy = now.less(Nsec(queue.changed)).0;
            queue.busy_nsec = queue.busy_nsec.saturating_add(busy);
        }
        // What the kernel's next change adds must not be added again here.
        queue.changed = 0;
        *counters = bytemuck::cast(queue);
    }
}

/// Reader of the counters.
pub(super) struct BlockTable {
    map: HashTable<MapData, Plain<BlockKey>, Plain<BlockCounters>>,
    fd: OwnedFd,
    inheritance: Inheritance,
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
        // From now on every request that is made is seen at both ends.
        let mut since = loaded
            .map("BLOCK_SINCE")
            .and_then(|map| Array::<MapData, u64>::try_from(map).ok())
            .ok_or_else(off)?;
        let now = super::clock(libc::CLOCK_MONOTONIC).0;
        since.set(0, now, 0).map_err(|error| {
            BpfError::library("setting the start of the block counters")(Box::new(error))
        })?;
        Ok(Self {
            map,
            fd,
            inheritance: Inheritance::default(),
        })
    }

    fn rows(&self) -> Result<Vec<(BlockKey, BlockCounters)>, BpfError> {
        let mut rows = Vec::new();
        sys::read_all(self.fd.as_fd(), MAX_ROWS, &mut rows)
            .map_err(BpfError::system("reading the block counters"))?;
        let now = super::clock(libc::CLOCK_MONOTONIC);
        rows.iter_mut()
            .for_each(|(key, counters)| run_on(*key, counters, now));
        Ok(rows)
    }

    /// Times of these cgroups together on these devices.
    pub(super) fn times(
        &self,
        cgroups: &HashSet<u64>,
        devices: &[(u32, u32)],
    ) -> Result<DeviceTimes, BpfError> {
        if cgroups.len() * devices.len() * OPS.len() <= MAX_LOOKUPS {
            return self.looked_up(cgroups, devices);
        }
        let rows = self.rows()?;
        let live = rows.iter().map(|(key, counters)| (key, counters));
        let mut times = sum(live.chain(self.inheritance.carried.iter()), cgroups);
        times.retain(|device, _| devices.contains(device));
        Ok(times)
    }

    /// [`Self::times`] from the rows of these cgroups and devices alone.
    fn looked_up(
        &self,
        cgroups: &HashSet<u64>,
        devices: &[(u32, u32)],
    ) -> Result<DeviceTimes, BpfError> {
        let now = super::clock(libc::CLOCK_MONOTONIC);
        let mut rows = Vec::new();
        for key in keys(cgroups, devices) {
            match self.map.get(&Plain(key), 0) {
                Ok(Plain(mut counters)) => {
                    run_on(key, &mut counters, now);
                    rows.push((key, counters));
                }
                Err(MapError::KeyNotFound) => {}
                Err(error) => {
                    return Err(BpfError::library("looking up block counters")(Box::new(
                        error,
                    )));
                }
            }
            rows.extend(self.inheritance.carried.get(&key).map(|row| (key, *row)));
        }
        Ok(sum(rows.iter().map(|(key, row)| (key, row)), cgroups))
    }

    /// Notes that a cgroup was removed.
    pub(super) fn removed(&mut self, cgroup: u64, parent: u64) {
        self.inheritance.remove(cgroup, parent);
    }

    /// Hands the counters of removed cgroups on to their parents.
    pub(super) fn sweep(&mut self) -> Result<(), BpfError> {
        let rows = if self.inheritance.removed.is_empty() {
            Vec::new()
        } else {
            self.rows()?
        };
        for key in self.inheritance.take(&rows) {
            // Already gone is as good.
            let _ = self.map.remove(&Plain(key));
        }
        Ok(())
    }

    /// Rows that could not be handed on.
    pub(super) const fn lost(&self) -> u64 {
        self.inheritance.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cgroup: u64, op: u32, nsec: u64) -> (BlockKey, BlockCounters) {
        let key = BlockKey {
            cgroup,
            major: 8,
            minor: 0,
            op,
            pad: 0,
        };
        (
            key,
            BlockCounters {
                requests: 1,
                merges: 2,
                nsec,
                bytes: 512,
            },
        )
    }

    fn times(inheritance: &Inheritance, cgroup: u64) -> IoTimes {
        let cgroups = HashSet::from([cgroup]);
        sum(inheritance.carried.iter(), &cgroups)
            .remove(&(8, 0))
            .unwrap_or_default()
    }

    #[test]
    fn directions_go_to_their_columns() {
        let rows = [row(5, 0, 10), row(5, 1, 20), row(5, 2, 30), row(6, 0, 99)];
        let cgroups = HashSet::from([5]);
        let devices = sum(rows.iter().map(|(key, counters)| (key, counters)), &cgroups);
        let device = devices[&(8, 0)];
        assert_eq!(
            (device.read_time, device.write_time, device.discard_time),
            (Nsec(10), Nsec(20), Nsec(30))
        );
        assert_eq!((device.reads_merged, device.writes_merged), (2, 2));
    }

    #[test]
    fn a_busy_device_shows_what_is_under_way_and_for_how_long() {
        let key = |cgroup| BlockKey {
            op: BLOCK_QUEUE,
            ..row(cgroup, 0, 0).0
        };
        let queue = |started, finished, busy_nsec, changed| BlockQueue {
            started,
            finished,
            busy_nsec,
            changed,
        };
        let mut busy: BlockCounters = bytemuck::cast(queue(5, 3, 100, 40));
        let mut idle: BlockCounters = bytemuck::cast(queue(4, 4, 7, 40));
        run_on(key(5), &mut busy, Nsec(70));
        run_on(key(6), &mut idle, Nsec(70));
        let rows = [(key(5), busy), (key(6), idle)];
        let devices = sum(
            rows.iter().map(|(key, counters)| (key, counters)),
            &HashSet::from([5, 6]),
        );
        let device = devices[&(8, 0)];
        assert_eq!((device.in_flight, device.io_time), (2, Nsec(137)));
        // Done where it was not started: the parent of a removed cgroup has both.
        let late = [
            (key(5), bytemuck::cast(queue(5, 3, 0, 0))),
            (key(5), bytemuck::cast(queue(0, 2, 0, 0))),
        ];
        let devices = sum(
            late.iter().map(|(key, counters)| (key, counters)),
            &HashSet::from([5]),
        );
        assert_eq!(devices[&(8, 0)].in_flight, 0);
    }

    #[test]
    fn a_removed_cgroup_hands_on_and_so_does_its_parent() {
        let mut inheritance = Inheritance::default();
        inheritance.remove(9, 5);
        assert_eq!(inheritance.take(&[row(9, 0, 7), row(5, 0, 1)]).len(), 1);
        assert_eq!(times(&inheritance, 5).read_time, Nsec(7));
        // The last request of 9 finishes late, and 5 is removed meanwhile.
        inheritance.remove(5, 2);
        assert_eq!(inheritance.take(&[row(9, 0, 1), row(5, 0, 1)]).len(), 2);
        assert_eq!(times(&inheritance, 5).read_time, Nsec(0));
        assert_eq!(times(&inheritance, 2).read_time, Nsec(9));
    }

    #[test]
    fn removed_cgroups_are_watched_for_a_while_only() {
        let mut inheritance = Inheritance::default();
        for cgroup in 0..100_000 {
            inheritance.remove(cgroup + 10, 1);
        }
        assert!(inheritance.removed.len() <= MAX_REMOVED);
        for _ in 0..=WATCHED_SWEEPS {
            inheritance.take(&[]);
        }
        assert!(inheritance.removed.is_empty());
    }

    proptest::proptest! {
        #[test]
        fn handing_on_keeps_the_total(
            removals in proptest::collection::vec((2u64..20, 1u64..20), 0..20),
            rows in proptest::collection::vec((1u64..20, 0u32..3, 0u64..1000), 0..20),
        ) {
            let mut inheritance = Inheritance::default();
            for (cgroup, parent) in removals {
                inheritance.remove(cgroup, parent);
            }
            let rows: Vec<_> = rows.iter().map(|(id, op, nsec)| row(*id, *op, *nsec)).collect();
            let taken = inheritance.take(&rows);
            let inherited: u64 = inheritance.carried.values().map(|row| row.nsec).sum();
            let gone: u64 = rows
                .iter()
                .filter(|(key, _)| taken.contains(key))
                .map(|(_, row)| row.nsec)
                .sum();
            proptest::prop_assert_eq!(inherited, gone);
        }
    }
}
