//! Monotone, complete, and folded without inventing or losing time.

use proptest::prelude::*;

use super::bytes::{MAGIC, VERSION};
use super::*;
use crate::history::seal;
use crate::snapshot::Origin;

const SECOND: u64 = 1_000_000_000;

fn totals(user: u64, system: u64) -> CpuTime {
    CpuTime {
        usage: Nsec(user + system),
        user: Nsec(user),
        system: Nsec(system),
        per_cpu: None,
        origin: Origin::Derived("test"),
    }
}

fn per_cpu(cpus: &[(u32, u64, u64)]) -> CpuTime {
    let mut time = totals(
        cpus.iter().map(|cpu| cpu.1).sum(),
        cpus.iter().map(|cpu| cpu.2).sum(),
    );
    time.per_cpu = Some(
        cpus.iter()
            .map(|(cpu, user, system)| PerCpuTime {
                cpu: *cpu,
                user: Nsec(*user),
                system: Nsec(*system),
                nice: Nsec(0),
            })
            .collect(),
    );
    time
}

fn read(history: &mut CpuHistory, now: u64, shown: &[(u32, u32)], time: &CpuTime) {
    history.advance(&Reading {
        now: Nsec(now),
        start: Nsec(0),
        shown,
        time: Some(time),
    });
}

fn lines(history: &CpuHistory) -> Vec<(u32, Times)> {
    history.lines().collect()
}

fn times(user: u64, system: u64, idle: u64) -> Times {
    Times {
        user,
        nice: 0,
        system,
        idle,
    }
}

#[test]
fn the_first_read_shows_the_whole_past_not_zeros_f1() {
    let mut history = CpuHistory::default();
    read(
        &mut history,
        100 * SECOND,
        &[(0, 0), (1, 1)],
        &totals(30 * SECOND, 10 * SECOND),
    );
    let half = times(15 * SECOND, 5 * SECOND, 80 * SECOND);
    assert_eq!(lines(&history), [(0, half), (1, half)]);
    assert_eq!(history.total().sum(), 200 * SECOND);
}

#[test]
fn what_one_cpu_that_is_not_shown_does_shows_on_one_that_is_and_no_time_is_lost() {
    let mut history = CpuHistory::default();
    // A quota of two CPUs on a machine of four.
    let shown = [(0, 0), (1, 1)];
    let time = per_cpu(&[(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 4 * SECOND, 0)]);
    read(&mut history, 10 * SECOND, &shown, &time);
    let (idle, busy) = (times(0, 0, 10 * SECOND), times(4 * SECOND, 0, 6 * SECOND));
    assert_eq!(lines(&history), [(0, idle), (1, busy)]);
    // More than one CPU can do goes to the other.
    let time = per_cpu(&[
        (0, 0, 0),
        (1, 8 * SECOND, 0),
        (2, 0, 0),
        (3, 12 * SECOND, 0),
    ]);
    read(&mut history, 20 * SECOND, &shown, &time);
    let (rest, full) = (
        times(6 * SECOND, 0, 14 * SECOND),
        times(14 * SECOND, 0, 6 * SECOND),
    );
    assert_eq!(lines(&history), [(0, rest), (1, full)]);
}

#[test]
fn a_container_burning_one_cpu_shows_the_burn_on_one_cpu_f1() {
    let mut history = CpuHistory::default();
    let time = per_cpu(&[(2, 0, 0), (3, 9 * SECOND, SECOND)]);
    read(&mut history, 10 * SECOND, &[(0, 2), (1, 3)], &time);
    assert_eq!(
        lines(&history),
        [
            (0, times(0, 0, 10 * SECOND)),
            (1, times(9 * SECOND, SECOND, 0))
        ]
    );
}

#[test]
fn usage_of_more_cpus_than_shown_is_folded_into_them() {
    let mut history = CpuHistory::default();
    // 1.5 CPUs' worth on four physical CPUs, two shown.
    let quarter = 375 * SECOND / 100;
    let time = per_cpu(&[
        (0, quarter, 0),
        (1, quarter, 0),
        (2, quarter, 0),
        (3, quarter, 0),
    ]);
    read(&mut history, 10 * SECOND, &[(0, 0), (1, 1)], &time);
    let line = times(75 * SECOND / 10, 0, 25 * SECOND / 10);
    assert_eq!(lines(&history), [(0, line), (1, line)]);
}

#[test]
fn a_cpu_never_works_more_than_the_time_that_passed() {
    let mut history = CpuHistory::default();
    read(&mut history, 0, &[(0, 0), (1, 1)], &totals(0, 0));
    // Readings are not of one instant: 1.2 s of use on CPU 0 in a second.
    let time = per_cpu(&[(0, 12 * SECOND / 10, 0), (1, 0, 0)]);
    read(&mut history, SECOND, &[(0, 0), (1, 1)], &time);
    // No per-CPU figures before: spread. From the next reading on: where it was.
    let time = per_cpu(&[(0, 24 * SECOND / 10, 0), (1, 0, 0)]);
    read(&mut history, 2 * SECOND, &[(0, 0), (1, 1)], &time);
    assert_eq!(
        lines(&history),
        [
            (0, times(16 * SECOND / 10, 0, 4 * SECOND / 10)),
            (1, times(8 * SECOND / 10, 0, 12 * SECOND / 10))
        ]
    );
}

#[test]
fn what_does_not_fit_waits_for_the_next_reading() {
    let mut history = CpuHistory::default();
    read(&mut history, 0, &[(0, 0)], &totals(0, 0));
    read(
        &mut history,
        SECOND,
        &[(0, 0)],
        &totals(13 * SECOND / 10, 0),
    );
    assert_eq!(lines(&history), [(0, times(SECOND, 0, 0))]);
    read(
        &mut history,
        2 * SECOND,
        &[(0, 0)],
        &totals(13 * SECOND / 10, 0),
    );
    assert_eq!(
        lines(&history),
        [(0, times(13 * SECOND / 10, 0, 7 * SECOND / 10))]
    );
}

#[test]
fn use_before_the_first_reading_that_cannot_fit_is_not_owed_forever() {
    // Four CPUs for a day, then the quota is lowered to one and only then read.
    let mut history = CpuHistory::default();
    read(
        &mut history,
        100 * SECOND,
        &[(0, 0)],
        &totals(400 * SECOND, 0),
    );
    read(
        &mut history,
        110 * SECOND,
        &[(0, 0)],
        &totals(401 * SECOND, 0),
    );
    assert_eq!(lines(&history), [(0, times(101 * SECOND, 0, 9 * SECOND))]);
}

#[test]
fn a_lowered_and_raised_quota_keeps_every_counter() {
    let mut history = CpuHistory::default();
    let (one, two) = (&[(0, 0)][..], &[(0, 0), (1, 1)][..]);
    read(&mut history, 10 * SECOND, two, &totals(4 * SECOND, 0));
    read(&mut history, 20 * SECOND, one, &totals(6 * SECOND, 0));
    // The second CPU was there until the reading that removed it, and stays in the total.
    assert_eq!(lines(&history), [(0, times(3 * SECOND, 0, 17 * SECOND))]);
    assert_eq!(history.total(), times(6 * SECOND, 0, 34 * SECOND));
    read(&mut history, 30 * SECOND, one, &totals(6 * SECOND, 0));
    assert_eq!(history.total(), times(6 * SECOND, 0, 44 * SECOND));
    read(&mut history, 40 * SECOND, two, &totals(6 * SECOND, 0));
    assert_eq!(
        lines(&history),
        [
            (0, times(3 * SECOND, 0, 37 * SECOND)),
            (1, times(3 * SECOND, 0, 27 * SECOND))
        ]
    );
}

#[test]
fn changing_the_source_neither_loses_nor_repeats_time() {
    let mut history = CpuHistory::default();
    let shown = &[(0, 0), (1, 1)][..];
    read(
        &mut history,
        10 * SECOND,
        shown,
        &per_cpu(&[(0, 2 * SECOND, 0), (1, 0, 0)]),
    );
    read(&mut history, 20 * SECOND, shown, &totals(4 * SECOND, 0));
    read(
        &mut history,
        30 * SECOND,
        shown,
        &per_cpu(&[(0, 6 * SECOND, 0), (1, 0, 0)]),
    );
    read(
        &mut history,
        40 * SECOND,
        shown,
        &per_cpu(&[(0, 8 * SECOND, 0), (1, 0, 0)]),
    );
    assert_eq!(history.total(), times(8 * SECOND, 0, 72 * SECOND));
    assert_eq!(
        lines(&history),
        [
            (0, times(7 * SECOND, 0, 33 * SECOND)),
            (1, times(SECOND, 0, 39 * SECOND))
        ]
    );
}

#[test]
fn a_source_slightly_behind_the_last_one_does_not_count_twice() {
    let mut history = CpuHistory::default();
    let shown = &[(0, 0)][..];
    read(&mut history, 10 * SECOND, shown, &totals(2 * SECOND, 0));
    read(
        &mut history,
        11 * SECOND,
        shown,
        &totals(2 * SECOND - 900_000, 0),
    );
    read(&mut history, 12 * SECOND, shown, &totals(2 * SECOND, 0));
    assert_eq!(history.total(), times(2 * SECOND, 0, 10 * SECOND));
}

#[test]
fn a_cgroup_made_anew_goes_on_from_its_own_zero() {
    let mut history = CpuHistory::default();
    let shown = &[(0, 0)][..];
    read(&mut history, 100 * SECOND, shown, &totals(50 * SECOND, 0));
    read(&mut history, 101 * SECOND, shown, &totals(0, 0));
    read(&mut history, 103 * SECOND, shown, &totals(SECOND, 0));
    assert_eq!(history.total(), times(51 * SECOND, 0, 52 * SECOND));
}

#[test]
fn niced_time_is_told_apart_where_known() {
    let mut history = CpuHistory::default();
    let mut time = per_cpu(&[(0, 6 * SECOND, 2 * SECOND)]);
    time.per_cpu.as_mut().unwrap()[0].nice = Nsec(4 * SECOND);
    read(&mut history, 10 * SECOND, &[(0, 0)], &time);
    assert_eq!(
        lines(&history),
        [(
            0,
            Times {
                user: 2 * SECOND,
                nice: 4 * SECOND,
                system: 2 * SECOND,
                idle: 2 * SECOND
            }
        )]
    );
}

#[test]
fn nothing_known_of_usage_shows_idle_cpus() {
    let mut history = CpuHistory::default();
    history.advance(&Reading {
        now: Nsec(5 * SECOND),
        start: Nsec(SECOND),
        shown: &[(0, 0)],
        time: None,
    });
    assert_eq!(lines(&history), [(0, times(0, 0, 4 * SECOND))]);
}

/// One step of a container's life: time passes, CPUs are used, the quota or the source
/// changes, the daemon restarts.
#[derive(Clone, Debug)]
struct Step {
    elapsed: u64,
    busy: Vec<u8>,
    shown: u32,
    source: bool,
    restart: bool,
}

fn step() -> impl Strategy<Value = Step> {
    (
        0u64..20 * SECOND,
        prop::collection::vec(0u8..=100, 8),
        1u32..=8,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(elapsed, busy, shown, source, restart)| Step {
            elapsed,
            busy,
            shown,
            source,
            restart,
        })
}

proptest! {
    #[test]
    fn counters_are_monotone_and_every_line_advances_with_the_clock(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut history = CpuHistory::default();
        let mut now = SECOND;
        let mut used = [0u64; 8];
        let (mut before, mut total, mut first) = (Vec::new(), Times::default(), true);
        for step in steps {
            now += step.elapsed;
            for (cpu, busy) in used.iter_mut().zip(&step.busy) {
                *cpu += step.elapsed / 100 * u64::from(*busy);
            }
            let cpus: Vec<_> = used
                .iter()
                .enumerate()
                .map(|(cpu, used)| (cpu as u32, *used / 3, *used - *used / 3))
                .collect();
            let mut time = per_cpu(&cpus);
            if !step.source {
                time.per_cpu = None;
            }
            let shown: Vec<_> = (0..step.shown).map(|cpu| (cpu, cpu)).collect();
            history.advance(&Reading {
                now: Nsec(now),
                start: Nsec(SECOND),
                shown: &shown,
                time: Some(&time),
            });
            let after = lines(&history);
            prop_assert_eq!(after.len() as u32, step.shown);
            for (cpu, old) in &before {
                let Some((_, new)) = after.iter().find(|(other, _)| other == cpu) else {
                    continue;
                };
                let (new, old): (Times, Times) = (*new, *old);
                prop_assert!(new.user >= old.user && new.nice >= old.nice);
                prop_assert!(new.system >= old.system && new.idle >= old.idle);
                prop_assert_eq!(new.sum() - old.sum(), step.elapsed);
            }
            if first {
                prop_assert!(after.iter().all(|(_, times)| times.sum() == now - SECOND));
            }
            let new = history.total();
            prop_assert!(new.user >= total.user && new.system >= total.system);
            prop_assert!(new.idle >= total.idle);
            // Never more than was used.
            prop_assert!(new.used() <= used.iter().sum::<u64>());
            (before, total, first) = (after, new, false);
            if step.restart {
                let copy = CpuHistory::from_bytes(&history.to_bytes());
                prop_assert_eq!(&copy, &history);
                history = copy;
            }
        }
    }

    #[test]
    fn use_that_fits_is_shown_completely(
        steps in prop::collection::vec((1u64..10 * SECOND, 0u8..=100, any::<bool>()), 1..40),
        shown in 1u32..4,
    ) {
        // One physical CPU's worth of use, wherever it runs, on at least one shown CPU.
        let mut history = CpuHistory::default();
        let shown: Vec<_> = (0..shown).map(|cpu| (cpu, cpu)).collect();
        let mut now = 0;
        let mut used = [0u64; 8];
        for (elapsed, busy, source) in steps {
            now += elapsed;
            used[usize::from(busy % 8)] += elapsed * u64::from(busy) / 100;
            let cpus: Vec<_> = used
                .iter()
                .enumerate()
                .map(|(cpu, used)| (cpu as u32, *used, 0))
                .collect();
            let mut time = per_cpu(&cpus);
            if !source {
                time.per_cpu = None;
            }
            read(&mut history, now, &shown, &time);
            prop_assert_eq!(history.total().used(), used.iter().sum::<u64>());
        }
    }

    #[test]
    fn no_reading_panics(
        readings in prop::collection::vec(
            (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(),
             prop::collection::vec((any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>()), 0..6),
             prop::collection::vec((any::<u32>(), any::<u32>()), 0..6)),
            0..10,
        ),
    ) {
        let mut history = CpuHistory::default();
        for (now, start, user, system, per_cpu, shown) in readings {
            let time = CpuTime {
                usage: Nsec(user).plus(Nsec(system)),
                user: Nsec(user),
                system: Nsec(system),
                per_cpu: Some(per_cpu.into_iter().map(|(cpu, user, system, nice)| PerCpuTime {
                    cpu, user: Nsec(user), system: Nsec(system), nice: Nsec(nice),
                }).collect()),
                origin: Origin::Derived("test"),
            };
            history.advance(&Reading {
                now: Nsec(now), start: Nsec(start), shown: &shown, time: Some(&time),
            });
            let _ = (history.total(), history.lines().count());
            prop_assert_eq!(CpuHistory::from_bytes(&history.to_bytes()), history.clone());
        }
    }

    #[test]
    fn malformed_bytes_give_a_fresh_state(
        junk in prop::collection::vec(any::<u8>(), 0..300), at in any::<usize>(), flip in 1u8..,
    ) {
        prop_assert_eq!(CpuHistory::from_bytes(&junk), CpuHistory::default());
        let mut history = CpuHistory::default();
        read(&mut history, SECOND, &[(0, 0), (1, 1)], &per_cpu(&[(0, 5, 5), (7, 9, 9)]));
        let mut bytes = history.to_bytes();
        let at = at % bytes.len();
        bytes[at] ^= flip;
        prop_assert_eq!(CpuHistory::from_bytes(&bytes), CpuHistory::default());
        bytes.truncate(at);
        prop_assert_eq!(CpuHistory::from_bytes(&bytes), CpuHistory::default());
    }

    #[test]
    fn sealed_but_senseless_bytes_never_panic(words in prop::collection::vec(any::<u64>(), 0..40)) {
        let content: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut headed = [MAGIC, VERSION, 1, 1].map(u32::to_le_bytes).concat();
        headed.extend(content);
        let mut history = CpuHistory::from_bytes(&seal(headed));
        read(&mut history, SECOND, &[(0, 0)], &totals(1, 1));
    }
}
