//! How fast workers that fail are replaced, and how often that is said.

use std::time::Duration;

/// Deaths in a row without one answered request after which we slow down and fall back.
pub(super) const FRUITLESS: u32 = 6;

/// Pause before the next worker, after `failures` in a row that answered nothing.
///
/// Once somebody has served, a crash is likely the fault of one request, and readers wait:
/// the first replacements start at once. Before that it is likely this machine or the
/// configuration, which the next worker will meet as well.
pub(super) fn pause(failures: u32, has_served: bool) -> Duration {
    if has_served {
        return match failures.checked_sub(FRUITLESS) {
            None => Duration::ZERO,
            Some(steps) => Duration::from_millis(10 << steps.min(7)),
        };
    }
    let steps = failures.saturating_sub(1).min(7);
    Duration::from_millis(50 << steps).min(Duration::from_secs(5))
}

/// What went wrong last, to say it once.
#[derive(Debug, Default)]
pub(super) struct Complaint(String);

impl Complaint {
    /// Whether this is another failure than the last one.
    pub(super) fn is_new(&mut self, failure: &str) -> bool {
        if self.0 == failure {
            return false;
        }
        failure.clone_into(&mut self.0);
        true
    }

    /// All is well: the same failure would be news again.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_service_is_tried_ever_more_slowly() {
        let pauses: Vec<u128> = (1..=9).map(|n| pause(n, false).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(pause(u32::MAX, false), Duration::from_secs(5));
    }

    #[test]
    fn a_crash_under_readers_is_made_good_at_once_but_not_for_ever() {
        assert!((0..FRUITLESS).all(|n| pause(n, true).is_zero()));
        assert_eq!(pause(FRUITLESS, true).as_millis(), 10);
        assert_eq!(pause(u32::MAX, true).as_millis(), 1280);
    }

    #[test]
    fn a_failure_is_said_once_until_another_or_a_success() {
        let mut complaint = Complaint::default();
        assert!(complaint.is_new("exited with status 1"));
        assert!(!complaint.is_new("exited with status 1"));
        assert!(complaint.is_new("was killed by signal 6"));
        assert!(complaint.is_new("exited with status 1"));
        complaint.forget();
        assert!(complaint.is_new("exited with status 1"));
    }
}
