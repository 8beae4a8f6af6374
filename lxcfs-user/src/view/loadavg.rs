//! `/proc/loadavg`: the container's load, running and total threads, newest PID.

use super::format::{put_hundredths, put_u64};
use crate::engine::AnswerError;
use crate::history::loadavg::{FIXED_1, LoadAverage};
use crate::snapshot::{Inputs, Origin, Snapshot, Tasks};
use crate::units::Nsec;

/// What [`render`] needs.
pub const INPUTS: Inputs = Inputs::TASKS;

/// The averages, or for a container not sampled yet its present load: the first read is a
/// real figure, not zeros.
fn averages(tasks: &Tasks) -> [u64; 3] {
    tasks.avenrun.unwrap_or_else(|| {
        let active = tasks.running.saturating_add(tasks.uninterruptible);
        LoadAverage::first_seen(Nsec::ZERO, active).avenrun()
    })
}

/// Appends the container's `/proc/loadavg`.
///
/// # Errors
/// When the snapshot has no task counts.
pub fn render(snapshot: &Snapshot, out: &mut Vec<u8>) -> Result<(), AnswerError> {
    let tasks = snapshot.tasks.as_ref();
    let tasks = tasks.ok_or(AnswerError::Absent("task counts of the container"))?;
    for load in averages(tasks) {
        // `loadavg_proc_show` rounds to the nearest hundredth: + FIXED_1/200.
        let rounded = u128::from(load) + u128::from(FIXED_1 / 200);
        let hundredths = rounded * 100 / u128::from(FIXED_1);
        put_hundredths(out, u64::try_from(hundredths).unwrap_or(u64::MAX));
        out.push(b' ');
    }
    put_u64(out, u64::from(tasks.running));
    out.push(b'/');
    put_u64(out, u64::from(tasks.threads));
    out.push(b' ');
    put_u64(out, u64::from(tasks.newest_pid.unwrap_or(0)));
    out.push(b'\n');
    Ok(())
}

/// Where the line comes from.
pub(super) fn why(snapshot: &Snapshot) -> (Origin, &'static str) {
    (
        snapshot
            .tasks
            .map_or(Origin::Unavailable("no task counts"), |tasks| tasks.origin),
        "kernel fixed-point averages of running + uninterruptible tasks of the whole subtree",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{container, render_with, tasks};

    fn shown(tasks: Tasks) -> String {
        let mut snapshot = container();
        snapshot.tasks = Some(tasks);
        render_with(|out| render(&snapshot, out))
    }

    #[test]
    fn the_whole_line_is_the_kernels() {
        let line = shown(Tasks {
            avenrun: Some([2048, 1024 + 512, 10]),
            running: 3,
            threads: 95,
            newest_pid: Some(147),
            ..tasks()
        });
        assert_eq!(line, "1.00 0.75 0.00 3/95 147\n");
    }

    #[test]
    fn averages_are_rounded_to_the_nearest_hundredth() {
        let load = |avenrun| {
            shown(Tasks {
                avenrun: Some([avenrun; 3]),
                ..tasks()
            })
        };
        assert!(load(11).starts_with("0.01 "), "{}", load(11));
        assert!(load(10).starts_with("0.00 "));
        assert!(load(2047).starts_with("1.00 "));
        assert!(load(u64::MAX).contains(' '));
    }

    #[test]
    fn the_first_read_is_the_present_load_not_zeros() {
        let line = shown(Tasks {
            avenrun: None,
            running: 2,
            uninterruptible: 1,
            threads: 9,
            newest_pid: None,
            ..tasks()
        });
        assert_eq!(line, "3.00 3.00 3.00 2/9 0\n");
    }
}
