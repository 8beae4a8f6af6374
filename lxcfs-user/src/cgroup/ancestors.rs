//! Minima over a cgroup and its ancestors. Pure.
//!
//! A limit holds for a whole subtree, so what a container may use is the minimum over the
//! chain; what is left is the minimum of what is left at every limited level, because
//! siblings eat from the same pot.

use crate::snapshot::{Controller, Decided, Origin, Quota};
use crate::units::{Bytes, Limit};

/// One level of the chain that has the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// 0 = the container's own cgroup.
    pub levels_up: u16,
    /// Its limit.
    pub limit: Limit<Bytes>,
    /// The file that gave the limit.
    pub file: &'static str,
    /// Its use, read only where there is a limit.
    pub usage: Option<Bytes>,
}

/// The outcome of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tightest {
    /// The tightest limit and the level that decided; the nearest level when none limits.
    pub limit: Decided<Limit<Bytes>>,
    /// What is left, and the level that decided; `None` without any limit.
    pub headroom: Option<Decided<Bytes>>,
}

const fn origin(controller: Controller, level: &Level) -> Origin {
    Origin::Cgroup {
        controller,
        levels_up: level.levels_up,
        file: level.file,
    }
}

/// Folds the levels of a chain, nearest first. `None` when no level has the controller.
#[must_use]
pub fn tightest(controller: Controller, levels: &[Level]) -> Option<Tightest> {
    let nearest = levels.first()?;
    let mut limit = Decided {
        value: Limit::Max,
        origin: origin(controller, nearest),
    };
    let mut headroom: Option<Decided<Bytes>> = None;
    for level in levels {
        let Limit::Value(value) = level.limit else {
            continue;
        };
        // On a tie the nearest level is named.
        if limit.value.value().is_none_or(|tightest| value < tightest) {
            limit = Decided {
                value: Limit::Value(value),
                origin: origin(controller, level),
            };
        }
        // A limit whose use cannot be read leaves at most the limit itself.
        let left = value.less(level.usage.unwrap_or(Bytes::ZERO));
        if headroom.is_none_or(|least| left < least.value) {
            headroom = Some(Decided {
                value: left,
                origin: origin(controller, level),
            });
        }
    }
    Some(Tightest { limit, headroom })
}

/// The tightest quota of a chain, nearest first, compared as quota over period.
#[must_use]
pub fn tightest_quota(
    file: &'static str,
    levels: impl IntoIterator<Item = (u16, Quota)>,
) -> Option<Decided<Quota>> {
    let mut tightest: Option<Decided<Quota>> = None;
    for (levels_up, quota) in levels {
        let less = |other: &Quota| {
            u128::from(quota.quota.0) * u128::from(other.period.0)
                < u128::from(other.quota.0) * u128::from(quota.period.0)
        };
        if tightest.as_ref().is_none_or(|found| less(&found.value)) {
            tightest = Some(Decided {
                value: quota,
                origin: Origin::Cgroup {
                    controller: Controller::Cpu,
                    levels_up,
                    file,
                },
            });
        }
    }
    tightest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Usec;
    use proptest::prelude::*;

    fn level(levels_up: u16, limit: Option<u64>, usage: u64) -> Level {
        Level {
            levels_up,
            limit: limit.map_or(Limit::Max, |bytes| Limit::Value(Bytes(bytes))),
            file: "memory.max",
            usage: Some(Bytes(usage)),
        }
    }

    fn decided_by(origin: Origin) -> u16 {
        match origin {
            Origin::Cgroup { levels_up, .. } => levels_up,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_parent_tighter_than_its_child_decides() {
        let found = tightest(
            Controller::Memory,
            &[
                level(0, Some(512), 10),
                level(1, Some(256), 200),
                level(2, None, 900),
            ],
        )
        .unwrap();
        assert_eq!(found.limit.value, Limit::Value(Bytes(256)));
        assert_eq!(decided_by(found.limit.origin), 1);
        assert_eq!(found.headroom.unwrap().value, Bytes(56));
    }

    #[test]
    fn siblings_under_a_pod_limit_reduce_what_is_free() {
        // The container has the tighter limit, the pod has less left.
        let found = tightest(
            Controller::Memory,
            &[level(0, Some(300), 10), level(1, Some(400), 390)],
        )
        .unwrap();
        assert_eq!(found.limit.value, Limit::Value(Bytes(300)));
        assert_eq!(decided_by(found.limit.origin), 0);
        let headroom = found.headroom.unwrap();
        assert_eq!(
            (headroom.value, decided_by(headroom.origin)),
            (Bytes(10), 1)
        );
    }

    #[test]
    fn use_above_a_lowered_limit_leaves_nothing() {
        let found = tightest(Controller::Memory, &[level(0, Some(100), 150)]).unwrap();
        assert_eq!(found.headroom.unwrap().value, Bytes::ZERO);
    }

    #[test]
    fn a_limit_of_zero_wins() {
        let found = tightest(
            Controller::Memory,
            &[level(0, Some(0), 0), level(1, Some(5), 0)],
        )
        .unwrap();
        assert_eq!(found.limit.value, Limit::Value(Bytes(0)));
    }

    #[test]
    fn no_limit_anywhere_is_no_headroom_and_the_nearest_level() {
        let found = tightest(Controller::Memory, &[level(1, None, 5), level(2, None, 9)]).unwrap();
        assert_eq!(found.limit.value, Limit::Max);
        assert_eq!(decided_by(found.limit.origin), 1);
        assert_eq!(found.headroom, None);
        assert_eq!(tightest(Controller::Memory, &[]), None);
    }

    #[test]
    fn quotas_with_different_periods_are_compared_as_ratios() {
        let quota = |quota, period| Quota {
            quota: Usec(quota),
            period: Usec(period),
        };
        let found = tightest_quota(
            "cpu.max",
            [
                (0, quota(200_000, 100_000)),
                (1, quota(15_000, 10_000)),
                (2, quota(150_000, 100_000)),
            ],
        )
        .unwrap();
        assert_eq!(found.value, quota(15_000, 10_000));
        assert_eq!(decided_by(found.origin), 1);
        assert_eq!(tightest_quota("cpu.max", []), None);
    }

    proptest! {
        #[test]
        fn the_minimum_is_a_minimum(
            chain in prop::collection::vec((prop::option::of(any::<u64>()), any::<u64>()), 0..12)
        ) {
            let levels: Vec<_> = chain
                .iter()
                .enumerate()
                .map(|(up, (limit, usage))| level(up as u16, *limit, *usage))
                .collect();
            let found = tightest(Controller::Memory, &levels);
            prop_assert_eq!(found.is_some(), !chain.is_empty());
            if let Some(found) = found {
                let least = chain.iter().filter_map(|(limit, _)| *limit).min();
                prop_assert_eq!(found.limit.value.value().map(|b| b.0), least);
                let left = chain
                    .iter()
                    .filter_map(|(limit, usage)| limit.map(|l| l.saturating_sub(*usage)))
                    .min();
                prop_assert_eq!(found.headroom.map(|h| h.value.0), left);
            }
        }
    }
}
