//! `/proc/uptime`: how long the container runs, and how long its CPUs were idle.

use super::cpus;
use super::format::put_hundredths;
use crate::engine::AnswerError;
use crate::policy::ViewPolicy;
use crate::snapshot::{Age, Inputs, Origin, Snapshot};
use crate::units::Nsec;

/// What [`render`] needs.
pub const INPUTS: Inputs = Inputs::AGE.and(Inputs::CPU_TIME).and(cpus::INPUTS);

const HUNDREDTH: u64 = 10_000_000;

/// Field 1.
///
/// A time namespace with a boottime offset set forward continues an earlier life of the
/// container (migration): the age is advanced by it. One set back makes a clock of its
/// own, which is what the kernel's file shows: that clock (F17).
#[must_use]
pub fn uptime(age: &Age) -> Nsec {
    let offset = age.timens_offset;
    if offset >= 0 {
        age.elapsed().plus(Nsec(offset.unsigned_abs()))
    } else {
        age.now.less(Nsec(offset.unsigned_abs()))
    }
}

/// Field 2: what the N visible CPUs could have done and did not.
#[must_use]
pub fn idle(age: &Age, count: u32, usage: Nsec) -> Nsec {
    Nsec(age.elapsed().0.saturating_mul(u64::from(count))).less(usage)
}

/// Appends the container's `/proc/uptime`.
///
/// # Errors
/// When the container's start is not known.
pub fn render(
    snapshot: &Snapshot,
    policy: &ViewPolicy,
    out: &mut Vec<u8>,
) -> Result<(), AnswerError> {
    let age = snapshot.age.as_ref();
    let age = age.ok_or(AnswerError::Absent("start time of the container"))?;
    let count = cpus::derive(snapshot, policy).count();
    let usage = snapshot.cpu_time.as_ref().map_or(Nsec::ZERO, |t| t.usage);
    put_hundredths(out, uptime(age).0 / HUNDREDTH);
    out.push(b' ');
    put_hundredths(out, idle(age, count, usage).0 / HUNDREDTH);
    out.push(b'\n');
    Ok(())
}

/// Where the line comes from.
pub(super) fn why(snapshot: &Snapshot) -> (Origin, &'static str) {
    (
        snapshot
            .age
            .map_or(Origin::Unavailable("no start time"), |age| age.origin),
        "boottime now - start of the container's init; idle = N x age - usage",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{SECOND, age, container, cpu_time, cpus, render_with};

    fn shown(snapshot: &Snapshot) -> String {
        render_with(|out| render(snapshot, &ViewPolicy::default(), out))
    }

    #[test]
    fn idle_is_what_the_visible_cpus_did_not_use_f2() {
        let snapshot = cpus(age(container(), 100 * SECOND, 160 * SECOND), "0-3", None);
        let snapshot = cpu_time(snapshot, 30 * SECOND, 10 * SECOND);
        assert_eq!(shown(&snapshot), "60.00 200.00\n");
    }

    #[test]
    fn a_start_after_now_or_too_much_usage_gives_zero_not_garbage_f24() {
        let snapshot = age(container(), 160 * SECOND, 100 * SECOND);
        assert_eq!(shown(&cpu_time(snapshot, SECOND, 0)), "0.00 0.00\n");
        let snapshot = age(container(), 0, SECOND);
        assert_eq!(shown(&cpu_time(snapshot, u64::MAX, 0)), "1.00 0.00\n");
    }

    #[test]
    fn a_time_namespace_shifts_the_uptime_f17() {
        let mut snapshot = cpus(age(container(), 32 * SECOND, 33 * SECOND), "0", None);
        if let Some(age) = &mut snapshot.age {
            age.timens_offset = 1000 * SECOND as i64;
        }
        assert_eq!(shown(&snapshot), "1001.00 1.00\n");
        if let Some(age) = &mut snapshot.age {
            age.timens_offset = -(30 * SECOND as i64);
        }
        assert_eq!(shown(&snapshot), "3.00 1.00\n");
    }

    #[test]
    fn an_unknown_start_is_an_error_not_a_number() {
        let mut snapshot = container();
        snapshot.age = None;
        let shown = render(&snapshot, &ViewPolicy::default(), &mut Vec::new());
        assert!(matches!(shown, Err(AnswerError::Absent(_))));
    }
}
