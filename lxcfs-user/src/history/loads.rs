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

/// When the kernel samples its own load: whenever its tick counter, `jiffies`, reaches a
/// multiple of `LOAD_FREQ` (5 s and one tick). A sampler that sleeps until the next point does
/// not drift, however long a sample takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    period: Nsec,
    /// The tick counter's start on `CLOCK_MONOTONIC`.
    phase: Nsec,
}

impl Grid {
    /// The grid of a kernel with this tick (`1/CONFIG_HZ`), as `/proc/timer_list` tells; when
    /// it does not, ticks are taken to have begun with the clock, some 100 ms too early.
    #[must_use]
    pub fn new(tick: Nsec, timer_list: &str) -> Self {
        Self {
            period: Nsec(5_000_000_000).plus(tick),
            phase: first_tick(tick, timer_list).unwrap_or_default(),
        }
    }

    /// Points up to `now`.
    const fn passed(self, now: Nsec) -> u64 {
        now.less(self.phase).0 / self.period.0
    }

    /// The first point after `now`.
    #[must_use]
    pub const fn next(self, now: Nsec) -> Nsec {
        let number = self.passed(now).saturating_add(1);
        self.phase.plus(Nsec(number.saturating_mul(self.period.0)))
    }

    /// The time of the last point as [`LoadTable`] counts, whose periods are
    /// [`LOAD_PERIOD`]s whatever the tick.
    #[must_use]
    pub const fn last(self, now: Nsec) -> Nsec {
        Nsec(self.passed(now).saturating_mul(LOAD_PERIOD.0))
    }
}

/// When the tick counter began, from the two clocks that `/proc/timer_list` shows.
fn first_tick(tick: Nsec, timer_list: &str) -> Option<Nsec> {
    let value = |head: &str| {
        let line = timer_list.lines().find_map(|line| line.strip_prefix(head));
        line?.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    let hz = 1_000_000_000_u64.checked_div(tick.0)?;
    // INITIAL_JIFFIES: the 32-bit counter wraps five minutes after the start.
    let initial = (1_u64 << 32).checked_sub(hz.checked_mul(300)?)?;
    let ticks = value("jiffies: ")?.checked_sub(initial)?;
    let began = value("now at ")?.checked_sub(ticks.checked_mul(tick.0)?)?;
    Some(Nsec(began))
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
    fn deadlines_are_on_the_kernels_grid() {
        for tick in [1_000_000, 4_000_000, 10_000_000] {
            let grid = Grid::new(Nsec(tick), "");
            let period = 5_000_000_000 + tick;
            assert_eq!(grid.next(Nsec(0)), Nsec(period));
            assert_eq!(grid.next(Nsec(2 * period)), Nsec(3 * period));
            assert_eq!(grid.next(Nsec(2 * period + 5)), Nsec(3 * period));
            // One point after the other is one period, whatever the tick.
            let mut load = LoadAverage::first_seen(grid.last(Nsec(7 * period)), 0);
            for n in 8..20_000 {
                assert_eq!(load.advance(grid.last(Nsec(n * period + 1)), 1), 1);
            }
        }
    }

    #[test]
    fn the_grid_starts_with_the_tick_counter() {
        // As read on a kernel of 250 Hz whose ticks began a quarter of a second late.
        let text = "Timer List Version: v0.10\nHRTIMER_MAX_CLOCK_BASES: 8\n\
            now at 14848753932644 nsecs\n\ncpu: 0\njiffies: 4298604422\n";
        let grid = Grid::new(Nsec(4_000_000), text);
        let phase = grid.phase.0;
        assert_eq!(phase, 249_932_644);
        assert_eq!(grid.next(Nsec(0)).0, phase + LOAD_PERIOD.0);
        assert_eq!(grid.next(Nsec(phase + 1)).0, phase + LOAD_PERIOD.0);
        for damaged in ["", "now at 5 nsecs\njiffies: 1\n", "now at x\njiffies: 9\n"] {
            assert_eq!(Grid::new(Nsec(4_000_000), damaged).phase, Nsec(0));
        }
    }
}
