//! The CPU counters a container has been shown, per CPU it sees.
//!
//! Tools subtract two reads of `/proc/stat`, so what counts is how the counters move:
//! never backwards, and every line by exactly the time that passed. The machine's facts do
//! not behave like that: usage arrives per physical CPU or only as a total, from one
//! source or another, and the number of CPUs shown follows the quota. This module turns
//! such readings into lines that do:
//!
//! * Between two readings every shown CPU has the elapsed time to give. Usage measured on
//!   its physical CPU is put there, that of a CPU that is not shown on one of those that are;
//!   what does not fit is poured into what is left of the others.
//! * Totals decide amounts, per-CPU figures decide places: so changing the source cannot
//!   make a counter jump.
//! * Usage that does not fit (readings are not taken at one instant) waits for the next
//!   reading, up to a second per CPU.
//! * A CPU that is not shown any more keeps its counters and stays in the total, as an
//!   offline CPU does in the kernel's file.
//! * Before the first reading lies the container's whole past, handled the same way: the
//!   first line shown is the past spread over the CPUs, not zeros.

mod bytes;
mod times;

use crate::cpuset::CPU_LIMIT;
use crate::snapshot::{CpuTime, PerCpuTime};
use crate::units::Nsec;
pub use times::Times;
use times::scaled;

/// Most usage that waits for the next reading, per shown CPU.
const CARRY_PER_CPU: u64 = 1_000_000_000;
/// A total that falls by more than this is another cgroup's, not another source's.
const RESTART: u64 = 1_000_000_000;

/// One reading of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// `CLOCK_BOOTTIME` of the reading.
    pub now: Nsec,
    /// `CLOCK_BOOTTIME` at which the container started; used by the first reading only.
    pub start: Nsec,
    /// The CPUs shown, ascending, each with the physical CPU whose time belongs there.
    pub shown: &'a [(u32, u32)],
    /// Time used since the container was created; `None` if nothing gives it.
    pub time: Option<&'a CpuTime>,
}

/// One CPU that is or was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    cpu: u32,
    shown: bool,
    times: Times,
}

/// The totals of the last reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    now: Nsec,
    usage: Nsec,
    user: Nsec,
    system: Nsec,
}

/// The counters shown to one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuHistory {
    last: Option<Totals>,
    /// Ascending by CPU.
    lines: Vec<Line>,
    /// The last per-CPU figures, ascending; empty before there were any.
    raw: Vec<PerCpuTime>,
    /// Used time that did not fit yet.
    carry: Times,
}

/// Room for one interval on one line.
struct Slot {
    line: usize,
    own: Times,
}

impl CpuHistory {
    /// The lines shown by the last reading, ascending by CPU number.
    pub fn lines(&self) -> impl Iterator<Item = (u32, Times)> + '_ {
        let shown = self.lines.iter().filter(|line| line.shown);
        shown.map(|line| (line.cpu, line.times))
    }

    /// The sum over every CPU ever shown: the line without a number.
    #[must_use]
    pub fn total(&self) -> Times {
        let mut total = Times::default();
        self.lines.iter().for_each(|line| total.add(line.times));
        total
    }

    /// Accounts the time since the last reading.
    pub fn advance(&mut self, reading: &Reading<'_>) {
        let before = self.last.unwrap_or(Totals {
            now: reading.start,
            ..Totals::default()
        });
        let elapsed = reading.now.less(before.now).0;
        let (mut slots, homes) = self.open_slots(reading.shown);
        let mut pool = std::mem::take(&mut self.carry);
        self.place(&before, reading.time, &homes, &mut slots, &mut pool);
        overflow(&mut slots, elapsed, &mut pool);
        pour(&mut slots, elapsed, &mut pool);
        if self.last.is_some() {
            let most = CARRY_PER_CPU.saturating_mul(slots.len() as u64);
            self.carry = pool.part(most);
        }
        for slot in &slots {
            if let Some(line) = self.lines.get_mut(slot.line) {
                line.times.add(slot.own);
                line.times.idle = line
                    .times
                    .idle
                    .saturating_add(elapsed.saturating_sub(slot.own.used()));
            }
        }
        self.remember(&before, reading);
    }

    /// Marks what is shown and makes room on every line that was or is: the CPUs that
    /// disappear with this reading were there until it. Returns the slot of each physical
    /// CPU, ascending.
    fn open_slots(&mut self, shown: &[(u32, u32)]) -> (Vec<Slot>, Vec<(u32, usize)>) {
        let mut before = Vec::with_capacity(self.lines.len());
        for line in &mut self.lines {
            if std::mem::take(&mut line.shown) {
                before.push(line.cpu);
            }
        }
        for (cpu, _) in shown.iter().filter(|(cpu, _)| *cpu < CPU_LIMIT) {
            match self.lines.binary_search_by_key(cpu, |line| line.cpu) {
                Ok(at) => {
                    if let Some(line) = self.lines.get_mut(at) {
                        line.shown = true;
                    }
                }
                Err(at) => self.lines.insert(
                    at,
                    Line {
                        cpu: *cpu,
                        shown: true,
                        times: Times::default(),
                    },
                ),
            }
        }
        let mut slots = Vec::with_capacity(self.lines.len());
        let mut homes = Vec::with_capacity(shown.len());
        for (at, line) in self.lines.iter().enumerate() {
            if line.shown || before.binary_search(&line.cpu).is_ok() {
                let found = shown.binary_search_by_key(&line.cpu, |(cpu, _)| *cpu);
                let home = found.ok().filter(|_| line.shown);
                let home = home.and_then(|found| shown.get(found));
                homes.extend(home.map(|(_, home)| (*home, slots.len())));
                slots.push(Slot {
                    line: at,
                    own: Times::default(),
                });
            }
        }
        homes.sort_unstable();
        (slots, homes)
    }

    /// Puts the time used since `before` where it was used, or into the pool.
    fn place(
        &self,
        before: &Totals,
        time: Option<&CpuTime>,
        homes: &[(u32, usize)],
        slots: &mut [Slot],
        pool: &mut Times,
    ) {
        let Some(time) = time else { return };
        let used = time.usage.less(before.usage).0;
        let per_cpu = self.per_cpu_since(time);
        let measured = per_cpu
            .iter()
            .fold(0u64, |sum, (_, times)| sum.saturating_add(times.used()));
        let mut placed = 0u64;
        for (cpu, times) in &per_cpu {
            let share = times.part_scaled(used, measured);
            placed = placed.saturating_add(share.used());
            let home = homes.binary_search_by_key(cpu, |(home, _)| *home).ok();
            // A CPU that is not shown has a home, too, always the same: what one CPU does shows on
            // one, not a little on each.
            let folded = || (*cpu as usize).checked_rem(homes.len());
            let slot = home
                .or_else(folded)
                .and_then(|at| homes.get(at))
                .and_then(|(_, slot)| slots.get_mut(*slot));
            slot.map_or(&mut *pool, |slot| &mut slot.own).add(share);
        }
        // All of it where nothing tells the CPUs apart, else what rounding left.
        let rest = used.saturating_sub(placed);
        let user = time.user.less(before.user).0;
        let system = time.system.less(before.system).0;
        let both = user.saturating_add(system);
        let system = scaled(system, rest, both).min(rest);
        pool.add(Times {
            user: rest.saturating_sub(system),
            system,
            ..Times::default()
        });
    }

    /// What each physical CPU used since the last per-CPU figures.
    fn per_cpu_since(&self, time: &CpuTime) -> Vec<(u32, Times)> {
        let Some(now) = &time.per_cpu else {
            return Vec::new();
        };
        if self.raw.is_empty() && self.last.is_some() {
            // The source has just appeared: its figures are since the container's start,
            // the interval is not.
            return Vec::new();
        }
        let since = now.iter().map(|now| {
            let found = self.raw.binary_search_by_key(&now.cpu, |raw| raw.cpu);
            let before = found.ok().and_then(|at| self.raw.get(at));
            let before = before.copied().unwrap_or_default();
            let user = now.user.less(before.user).0;
            let nice = now.nice.less(before.nice).0.min(user);
            let times = Times {
                user: user.saturating_sub(nice),
                nice,
                system: now.system.less(before.system).0,
                idle: 0,
            };
            (now.cpu, times)
        });
        since.collect()
    }

    fn remember(&mut self, before: &Totals, reading: &Reading<'_>) {
        let mut last = *before;
        last.now = match self.last {
            Some(last) => last.now.max(reading.now),
            None => reading.now,
        };
        if let Some(time) = reading.time {
            // Two sources never agree to the nanosecond; waiting for the larger one to be
            // reached again keeps the difference from being counted twice.
            let restarted = time.usage.plus(Nsec(RESTART)) < before.usage;
            last.usage = if restarted {
                time.usage
            } else {
                time.usage.max(before.usage)
            };
            (last.user, last.system) = (time.user, time.system);
            if let Some(per_cpu) = &time.per_cpu {
                self.raw.clear();
                self.raw
                    .extend(per_cpu.iter().filter(|time| time.cpu < CPU_LIMIT));
                self.raw.sort_unstable_by_key(|time| time.cpu);
                self.raw.dedup_by_key(|time| time.cpu);
            }
        }
        self.last = Some(last);
    }
}

/// Moves what a CPU cannot have done in `elapsed` to the pool.
fn overflow(slots: &mut [Slot], elapsed: u64, pool: &mut Times) {
    for slot in slots {
        if slot.own.used() > elapsed {
            let kept = slot.own.part(elapsed);
            slot.own.subtract(kept);
            pool.add(slot.own);
            slot.own = kept;
        }
    }
}

/// Spreads the pool over the idle time of all slots, in proportion to it.
fn pour(slots: &mut [Slot], elapsed: u64, pool: &mut Times) {
    let spare = |slot: &Slot| elapsed.saturating_sub(slot.own.used());
    let total_spare = slots
        .iter()
        .fold(0u64, |sum, slot| sum.saturating_add(spare(slot)));
    let amount = pool.used().min(total_spare);
    let mut give = |slot: &mut Slot, share: u64| {
        let part = pool.part(share);
        pool.subtract(part);
        slot.own.add(part);
        part.used()
    };
    let mut left = amount;
    for slot in slots.iter_mut() {
        let share = scaled(spare(slot), amount, total_spare).min(left);
        left = left.saturating_sub(give(slot, share));
    }
    // Rounding down left less than a nanosecond per CPU.
    for slot in slots.iter_mut() {
        let share = left.min(spare(slot));
        left = left.saturating_sub(give(slot, share));
    }
}

#[cfg(test)]
mod tests;
