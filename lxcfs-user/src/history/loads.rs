//! Load averages of many containers, fed by whole samples. Pure; bounded by eviction.

use std::collections::HashMap;
use std::hash::Hash;

use super::loadavg::{LOAD_PERIOD, LoadAverage};
use crate::units::Nsec;

/// Groups kept at most. A machine has fewer with tasks in them; more can only be groups
/// that are empty and were not told to be removed.
pub const MAX_GROUPS: usize = 65_536;

/// One group's averages and when it last had tasks.
#[derive(Clone, Copy, Debug)]
struct Entry {
    load: LoadAverage,
    populated: Nsec,
}

/// The averages of every group that has had tasks, by the group's id.
#[derive(Clone, Debug)]
pub struct LoadTable<K> {
    entries: HashMap<K, Entry>,
    previous: Option<Nsec>,
}

impl<K> Default for LoadTable<K> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            previous: None,
        }
    }
}

/// An empty group whose last task left this long ago is forgotten: after an hour even the
/// 15-minute average of a hundred tasks is below 2.
const FORGET_AFTER: Nsec = Nsec(3_600_000_000_000);

impl<K: Copy + Eq + Hash> LoadTable<K> {
    /// Accounts one sample of the whole machine: the active (running and uninterruptible)
    /// tasks of each group that has tasks. `now` never goes back.
    ///
    /// A group first seen in the first sample starts from its present load, because it may
    /// be old; one first seen later had no tasks a sample ago, so it starts from zero then.
    pub fn advance(&mut self, now: Nsec, groups: impl IntoIterator<Item = (K, u32)>) {
        for (group, active) in groups {
            let fresh = || match self.previous {
                None => LoadAverage::first_seen(now, active),
                Some(previous) => LoadAverage::born(previous),
            };
            let entry = self.entries.entry(group).or_insert_with(|| Entry {
                load: fresh(),
                populated: now,
            });
            entry.load.advance(now, active);
            entry.populated = now;
        }
        for entry in self.entries.values_mut() {
            if entry.populated != now {
                entry.load.advance(now, 0);
            }
        }
        self.entries
            .retain(|_, entry| now.less(entry.populated) < FORGET_AFTER);
        self.shrink();
        self.previous = Some(now);
    }

    /// Drops the groups that have been empty for longest until the bound holds.
    fn shrink(&mut self) {
        let excess = self.entries.len().saturating_sub(MAX_GROUPS);
        if excess > 0 {
            let mut ages: Vec<Nsec> = self.entries.values().map(|entry| entry.populated).collect();
            let (older, limit, _) = ages.select_nth_unstable(excess - 1);
            let limit = *limit;
            // Of those that are equally old, as many as it takes.
            let mut equal = 1 + older.iter().filter(|age| **age == limit).count();
            self.entries.retain(|_, entry| {
                let drop = entry.populated < limit || (entry.populated == limit && equal > 0);
                if drop && entry.populated == limit {
                    equal -= 1;
                }
                !drop
            });
        }
        // A burst must not keep its memory for ever.
        if self.entries.capacity() > 1024 && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to_fit();
        }
    }

    /// The 1, 5 and 15 minute averages of a group, as [`LoadAverage::avenrun`]. A group that
    /// is not known has had no task at any sample: zero, once there was a sample.
    #[must_use]
    pub fn avenrun(&self, group: K) -> Option<[u64; 3]> {
        match self.entries.get(&group) {
            Some(entry) => Some(entry.load.avenrun()),
            None => self.previous.map(|_| [0; 3]),
        }
    }

    /// Forgets a group that was removed; its id never comes back.
    pub fn forget(&mut self, group: K) {
        self.entries.remove(&group);
    }

    /// Takes over what an earlier daemon knew of a group, unless the group is known by now.
    pub fn restore(&mut self, group: K, load: LoadAverage, now: Nsec) {
        self.entries.entry(group).or_insert(Entry {
            load,
            populated: now,
        });
    }

    /// All averages, to be kept for a later daemon.
    pub fn iter(&self) -> impl Iterator<Item = (K, &LoadAverage)> {
        self.entries
            .iter()
            .map(|(group, entry)| (*group, &entry.load))
    }

    /// How many groups are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The first grid point after `now`, counted from `start`; a sampler that sleeps until it
/// does not drift, however long a sample takes.
#[must_use]
pub const fn next_deadline(start: Nsec, now: Nsec) -> Nsec {
    let passed = now.less(start).0 / LOAD_PERIOD.0;
    start.plus(Nsec(passed.saturating_add(1).saturating_mul(LOAD_PERIOD.0)))
}

#[cfg(test)]
mod tests {
    use super::super::loadavg::FIXED_1;
    use super::*;

    const fn period(n: u64) -> Nsec {
        Nsec(1_000 + n * LOAD_PERIOD.0)
    }

    #[test]
    fn old_groups_start_from_their_load_and_new_ones_from_zero() {
        let mut table = LoadTable::default();
        assert_eq!(table.avenrun(1), None);
        table.advance(period(0), [(1, 4)]);
        assert_eq!(table.avenrun(1), Some([4 * FIXED_1; 3]));
        table.advance(period(1), [(1, 4), (2, 1)]);
        // One period of one task, as on a machine that has just booted.
        assert_eq!(table.avenrun(2), Some([164, 34, 11]));
        assert_eq!(table.avenrun(3), Some([0; 3]));
    }

    #[test]
    fn an_empty_group_decays_and_is_forgotten_in_the_end() {
        let mut table = LoadTable::default();
        table.advance(period(0), [(1, 1)]);
        table.advance(period(1), []);
        assert_eq!(table.avenrun(1).unwrap()[0], 1884);
        for n in 2..800 {
            table.advance(period(n), []);
        }
        assert!(table.is_empty());
    }

    #[test]
    fn a_removed_group_is_gone_at_once() {
        let mut table = LoadTable::default();
        table.advance(period(0), [(1, 1)]);
        table.forget(1);
        assert!(table.is_empty());
    }

    #[test]
    fn a_hundred_thousand_dead_groups_stay_within_the_bound() {
        let mut table = LoadTable::default();
        for n in 0..1000_u32 {
            let groups = (0..100).map(|group| (n * 100 + group, 1));
            table.advance(Nsec(u64::from(n) + 1), groups);
        }
        assert_eq!(table.len(), MAX_GROUPS);
        // The latest are the ones that stay.
        table.advance(Nsec(2_000), []);
        assert!(table.iter().any(|(group, _)| group == 99_999));
        assert!(
            table
                .iter()
                .all(|(group, _)| group >= 100_000 - MAX_GROUPS as u32 - 100)
        );
    }

    #[test]
    fn what_was_restored_goes_on_and_what_is_known_wins() {
        let mut table = LoadTable::default();
        table.restore(1, LoadAverage::first_seen(period(0), 8), period(0));
        table.restore(1, LoadAverage::first_seen(period(0), 2), period(0));
        table.advance(period(1), [(1, 8)]);
        assert_eq!(table.avenrun(1), Some([8 * FIXED_1; 3]));
    }

    #[test]
    fn deadlines_are_on_the_grid() {
        let start = Nsec(77);
        assert_eq!(next_deadline(start, start), Nsec(77 + LOAD_PERIOD.0));
        let late = Nsec(77 + 2 * LOAD_PERIOD.0 + 5);
        assert_eq!(next_deadline(start, late), Nsec(77 + 3 * LOAD_PERIOD.0));
    }
}
