//! Load averages of one container in the kernel's fixed-point arithmetic
//! (`include/linux/sched/loadavg.h`, `kernel/sched/loadavg.c`).
//!
//! The sampler calls [`LoadAverage::advance`] whenever it has a count; the grid, missed
//! samples and decay are kept here.

use super::{seal, sealed};
use crate::units::Nsec;

/// Fractional bits of an average.
pub const FSHIFT: u32 = 11;
/// 1.0
pub const FIXED_1: u64 = 1 << FSHIFT;
/// Decay per period of the 1, 5 and 15 minute averages: 1/exp(5 s/1 min) and so on.
pub const EXP: [u64; 3] = [1884, 2014, 2037];
/// `LOAD_FREQ` is 5 s and one tick, so that tasks waking every 5 s are not counted always
/// or never; the tick of 250 Hz, Debian's choice.
pub const LOAD_PERIOD: Nsec = Nsec(5_004_000_000);

const MAGIC: u32 = u32::from_le_bytes(*b"LXla");
const VERSION: u32 = 1;

/// The averages of one container and where on the grid they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadAverage {
    avenrun: [u64; 3],
    /// The grid point of the last sample; `None` before the first.
    sampled: Option<Nsec>,
}

impl LoadAverage {
    /// A container seen from its birth: averages rise from zero, as on a machine that boots.
    #[must_use]
    pub const fn born(now: Nsec) -> Self {
        Self {
            avenrun: [0; 3],
            sampled: Some(now),
        }
    }

    /// A container that ran before it was first seen, with `active` tasks now: its present
    /// load is the best guess for its past.
    #[must_use]
    pub const fn first_seen(now: Nsec, active: u32) -> Self {
        Self {
            avenrun: [active as u64 * FIXED_1; 3],
            sampled: Some(now),
        }
    }

    /// The 1, 5 and 15 minute averages with [`FSHIFT`] fractional bits.
    #[must_use]
    pub const fn avenrun(&self) -> [u64; 3] {
        self.avenrun
    }

    /// Accounts `active` (running + uninterruptible) tasks counted at `now`. Returns how
    /// many periods that closed; missed ones count as having had the same load, as the
    /// kernel does after a tickless sleep.
    pub fn advance(&mut self, now: Nsec, active: u32) -> u64 {
        let Some(sampled) = self.sampled else {
            *self = Self::first_seen(now, active);
            return 0;
        };
        let periods = now.less(sampled).0 / LOAD_PERIOD.0;
        if periods == 0 {
            return 0;
        }
        let active = u64::from(active) * FIXED_1;
        for (load, exp) in self.avenrun.iter_mut().zip(EXP) {
            *load = decayed(*load, power(exp, periods), active);
        }
        self.sampled = Some(sampled.plus(Nsec(periods * LOAD_PERIOD.0)));
        periods
    }

    /// The state as bytes; see the module above.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(56);
        for field in [MAGIC, VERSION, u32::from(self.sampled.is_some()), 0] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&self.sampled.unwrap_or_default().0.to_le_bytes());
        for load in self.avenrun {
            bytes.extend_from_slice(&load.to_le_bytes());
        }
        seal(bytes)
    }

    /// What [`to_bytes`](Self::to_bytes) wrote; anything else gives a fresh state.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::decode(bytes).unwrap_or_default()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = sealed(bytes)?;
        if (fields.u32()?, fields.u32()?) != (MAGIC, VERSION) {
            return None;
        }
        let (seen, _padding) = (fields.u32()?, fields.u32()?);
        let sampled = Nsec(fields.u64()?);
        let avenrun = [fields.u64()?, fields.u64()?, fields.u64()?];
        // More than 2^32 tasks cannot be: such a state is not ours.
        let sane = avenrun.iter().all(|load| *load <= FIXED_1 << 32);
        (sane && fields.0.is_empty()).then_some(Self {
            avenrun,
            sampled: (seen == 1).then_some(sampled),
        })
    }
}

/// One step of the kernel's `calc_load`: towards `active`, rounded up while rising so that
/// the average can reach it.
fn decayed(load: u64, exp: u64, active: u64) -> u64 {
    let weighted = u128::from(load) * u128::from(exp)
        + u128::from(active) * u128::from(FIXED_1.saturating_sub(exp));
    let rounding = if active >= load { FIXED_1 - 1 } else { 0 };
    ((weighted + u128::from(rounding)) >> FSHIFT) as u64
}

/// `base` to the `exponent` in fixed point, each product rounded to nearest; the kernel's
/// `calc_load_n` takes n missed periods in log n steps with it.
fn power(base: u64, exponent: u64) -> u64 {
    let product = |a: u64, b: u64| (a * b + (1 << (FSHIFT - 1))) >> FSHIFT;
    let (mut result, mut square, mut left) = (FIXED_1, base, exponent);
    while left > 0 {
        if left & 1 == 1 {
            result = product(result, square);
        }
        square = product(square, square);
        left >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(mut load: LoadAverage, start: Nsec, active: u32, periods: u64) -> LoadAverage {
        for n in 1..=periods {
            load.advance(start.plus(Nsec(n * LOAD_PERIOD.0)), active);
        }
        load
    }

    #[test]
    fn one_task_from_birth_follows_the_kernels_published_curve() {
        // 1 - 1884/2048 rounded up, the first value /proc/loadavg shows after boot: 0.08.
        let load = after(LoadAverage::born(Nsec(7)), Nsec(7), 1, 1);
        assert_eq!(load.avenrun(), [164, 34, 11]);
        // After a minute the 1-minute average has risen by 1 - 1/e.
        let load = after(LoadAverage::born(Nsec(7)), Nsec(7), 1, 12);
        assert!((1290..=1310).contains(&load.avenrun()[0]), "{load:?}");
    }

    #[test]
    fn a_steady_load_is_reached_and_kept_and_an_idle_one_ends_at_zero() {
        let load = after(LoadAverage::born(Nsec(0)), Nsec(0), 3, 2000);
        assert_eq!(load.avenrun(), [3 * FIXED_1; 3]);
        let start = Nsec(2000 * LOAD_PERIOD.0);
        assert_eq!(after(load, start, 0, 20_000).avenrun(), [0; 3]);
    }

    #[test]
    fn the_first_sight_of_a_running_container_is_its_present_load() {
        let mut load = LoadAverage::default();
        assert_eq!(load.advance(Nsec(5), 4), 0);
        assert_eq!(load.avenrun(), [4 * FIXED_1; 3]);
    }

    #[test]
    fn samples_between_grid_points_change_nothing_and_do_not_stretch_the_period() {
        let mut load = LoadAverage::born(Nsec(0));
        assert_eq!(load.advance(Nsec(5_000_000_000), 9), 0);
        assert_eq!(load.avenrun(), [0; 3]);
        // Late by two seconds, then the next one on time: both count.
        assert_eq!(load.advance(Nsec(7_000_000_000), 1), 1);
        assert_eq!(load.advance(Nsec(2 * LOAD_PERIOD.0), 1), 1);
        assert_eq!(load.advance(Nsec(0), 1), 0);
    }

    #[test]
    fn missed_samples_decay_by_the_power_of_the_factor() {
        // 1884/2048 to the 12th is 1/e within the fixed point's rounding.
        assert!(
            (748..=760).contains(&power(EXP[0], 12)),
            "{}",
            power(EXP[0], 12)
        );
        let mut load = LoadAverage::first_seen(Nsec(0), 1);
        assert_eq!(load.advance(Nsec(12 * LOAD_PERIOD.0), 0), 12);
        assert_eq!(load.avenrun()[0], power(EXP[0], 12));
        // A container frozen for a year costs no more steps than this.
        load.advance(Nsec(365 * 86_400 * 1_000_000_000), 0);
        assert_eq!(load.avenrun(), [0; 3]);
    }

    proptest! {
        #[test]
        fn averages_stay_between_what_was_sampled(
            samples in prop::collection::vec((0u64..60_000_000_000, 0u32..100_000), 1..200),
        ) {
            let mut load = LoadAverage::default();
            let mut now = Nsec(0);
            let (mut least, mut most) = (u64::MAX, 0);
            for (step, active) in samples {
                now = now.plus(Nsec(step));
                load.advance(now, active);
                least = least.min(u64::from(active) * FIXED_1);
                most = most.max(u64::from(active) * FIXED_1);
                for average in load.avenrun() {
                    prop_assert!(average >= least.saturating_sub(1) && average <= most);
                }
            }
        }

        #[test]
        fn missed_samples_agree_with_single_steps(
            active in 0u32..1000, past in 0u32..1000, periods in 1u64..500,
        ) {
            let stepped = after(LoadAverage::first_seen(Nsec(0), past), Nsec(0), active, periods);
            let mut jumped = LoadAverage::first_seen(Nsec(0), past);
            jumped.advance(Nsec(periods * LOAD_PERIOD.0), active);
            for (a, b) in stepped.avenrun().into_iter().zip(jumped.avenrun()) {
                // Single steps lose up to one unit each, which decay bounds to 1/(1-exp).
                let bound = 200 + u64::from(active.max(past)) * 40;
                prop_assert!(a.abs_diff(b) <= bound, "{a} and {b}");
            }
        }

        #[test]
        fn bytes_round_trip_and_malformed_bytes_give_a_fresh_state(
            now: u64, active: u32, at in 0usize..64, flip in 1u8..,
            junk in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let load = LoadAverage::first_seen(Nsec(now), active);
            let mut bytes = load.to_bytes();
            prop_assert_eq!(LoadAverage::from_bytes(&bytes), load);
            prop_assert_eq!(LoadAverage::from_bytes(&junk), LoadAverage::default());
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert_eq!(LoadAverage::from_bytes(&bytes), LoadAverage::default());
        }

        #[test]
        fn no_input_overflows(steps in prop::collection::vec((any::<u64>(), any::<u32>()), 0..20)) {
            let mut load = LoadAverage::default();
            for (now, active) in steps {
                load.advance(Nsec(now), active);
            }
        }
    }
}
