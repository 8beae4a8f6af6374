//! `/proc/stat`: CPU time of the container on the CPUs it sees, its task counts, and the
//! machine's boot time.

use super::cpus;
use super::format::{leading_u64, put_column, put_u64};
use crate::engine::AnswerError;
use crate::history::cpu::{CpuHistory, Reading, Times};
use crate::policy::ViewPolicy;
use crate::snapshot::{Inputs, Origin, Snapshot};
use crate::units::Nsec;

/// What [`render`] needs; of the host's file only `btime` is taken.
pub const INPUTS: Inputs = Inputs::HOST_STAT
    .and(Inputs::CPU_TIME)
    .and(Inputs::TASKS)
    .and(Inputs::AGE)
    .and(cpus::INPUTS);

/// Appends the container's `/proc/stat` and moves its counters on to the snapshot's time.
///
/// # Errors
/// When the container's start is not known.
pub fn render(
    snapshot: &Snapshot,
    history: &mut CpuHistory,
    policy: &ViewPolicy,
    out: &mut Vec<u8>,
) -> Result<(), AnswerError> {
    let age = snapshot.age.as_ref();
    let age = age.ok_or(AnswerError::Absent("start time of the container"))?;
    let visible = cpus::derive(snapshot, policy);
    let shown: Vec<(u32, u32)> = visible.iter().collect();
    history.advance(&Reading {
        now: age.now,
        start: age.start,
        shown: &shown,
        time: snapshot.cpu_time.as_ref(),
    });
    out.reserve(64 * (shown.len() + 8));
    let user_hz = snapshot.facts.user_hz;
    out.extend_from_slice(b"cpu ");
    put_times(out, history.total(), user_hz);
    for (cpu, times) in history.lines() {
        out.extend_from_slice(b"cpu");
        put_u64(out, u64::from(cpu));
        put_times(out, times, user_hz);
    }
    let tasks = snapshot.tasks.as_ref();
    // Zero where nothing counts them for the container: never the host's (F15).
    put_line(out, "intr", 0);
    put_line(out, "ctxt", 0);
    put_line(out, "btime", boot_time(snapshot, age.timens_offset));
    put_line(out, "processes", tasks.and_then(|t| t.forks).unwrap_or(0));
    put_line(out, "procs_running", tasks.map_or(0, |t| t.running.into()));
    put_line(
        out,
        "procs_blocked",
        tasks.map_or(0, |t| t.uninterruptible.into()),
    );
    // One total and ten kinds of softirq.
    out.extend_from_slice(b"softirq 0 0 0 0 0 0 0 0 0 0 0\n");
    Ok(())
}

/// user nice system idle iowait irq softirq steal guest guest_nice
fn put_times(out: &mut Vec<u8>, times: Times, user_hz: u64) {
    for nsec in [times.user, times.nice, times.system, times.idle] {
        put_column(out, Nsec(nsec).to_ticks(user_hz).0);
    }
    out.extend_from_slice(b" 0 0 0 0 0 0\n");
}

fn put_line(out: &mut Vec<u8>, name: &str, value: u64) {
    out.extend_from_slice(name.as_bytes());
    put_column(out, value);
    out.push(b'\n');
}

/// The host's `btime`: start times in `/proc/PID/stat` are relative to it. The kernel moves
/// both by the boottime offset of the reader's time namespace (`timens_sub_boottime`), so
/// it is moved here too (F17).
fn boot_time(snapshot: &Snapshot, timens_offset: i64) -> u64 {
    let text = snapshot.host.stat.as_deref().unwrap_or("");
    let btime = text
        .lines()
        .find_map(|line| leading_u64(line.strip_prefix("btime ")?))
        .unwrap_or(0);
    btime.saturating_add_signed(-timens_offset.div_euclid(1_000_000_000))
}

/// Where a line comes from.
pub(super) fn why(label: &str, snapshot: &Snapshot, policy: &ViewPolicy) -> (Origin, &'static str) {
    let tasks = snapshot
        .tasks
        .map_or(Origin::Unavailable("no task counts; 0 is shown"), |t| {
            t.origin
        });
    match label {
        "btime" => (
            Origin::Host("/proc/stat"),
            "the machine's: process start times are relative to it",
        ),
        "processes" if snapshot.tasks.is_some_and(|t| t.forks.is_none()) => (
            Origin::Unavailable("forks are not counted; 0 is shown"),
            "processes forked in the container",
        ),
        "processes" => (tasks, "processes forked in the container"),
        "procs_running" => (tasks, "running and runnable tasks of the container"),
        "procs_blocked" => (tasks, "uninterruptible tasks of the container"),
        "cpu" => (
            cpu_origin(snapshot),
            "sum over every CPU the container was shown",
        ),
        label if label.starts_with("cpu") => {
            (cpu_origin(snapshot), cpus::derive(snapshot, policy).rule)
        }
        _ => (
            Origin::Unavailable("not counted per cgroup; 0 is shown"),
            "never the host's",
        ),
    }
}

fn cpu_origin(snapshot: &Snapshot) -> Origin {
    snapshot
        .cpu_time
        .as_ref()
        .map_or(Origin::Unavailable("no CPU time; idle is shown"), |time| {
            time.origin
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Tasks;
    use crate::view::testing::{SECOND, age, container, cpu_time, cpus, render_with, tasks};

    fn shown(snapshot: &Snapshot, history: &mut CpuHistory) -> String {
        render_with(|out| render(snapshot, history, &ViewPolicy::default(), out))
    }

    #[test]
    fn the_whole_file_is_the_containers_f1() {
        let snapshot = cpus(age(container(), 0, 100 * SECOND), "4-5", None);
        let mut snapshot = cpu_time(snapshot, 30 * SECOND, 10 * SECOND);
        snapshot.tasks = Some(Tasks {
            running: 2,
            uninterruptible: 1,
            forks: Some(77),
            ..tasks()
        });
        assert_eq!(
            shown(&snapshot, &mut CpuHistory::default()),
            "cpu  3000 0 1000 16000 0 0 0 0 0 0\n\
             cpu0 1500 0 500 8000 0 0 0 0 0 0\n\
             cpu1 1500 0 500 8000 0 0 0 0 0 0\n\
             intr 0\n\
             ctxt 0\n\
             btime 1795189460\n\
             processes 77\n\
             procs_running 2\n\
             procs_blocked 1\n\
             softirq 0 0 0 0 0 0 0 0 0 0 0\n"
        );
    }

    #[test]
    fn no_counter_of_the_host_shows_f15() {
        let mut snapshot = cpus(age(container(), 0, SECOND), "0", None);
        snapshot.cpu_time = None;
        snapshot.tasks = None;
        let text = shown(&snapshot, &mut CpuHistory::default());
        for line in text.lines().filter(|line| !line.starts_with("btime")) {
            assert!(
                line.starts_with("cpu") || !line.contains(['1', '2', '3', '4', '5', '6', '7']),
                "{line}"
            );
        }
        assert!(text.starts_with("cpu  0 0 0 100 0"));
    }

    #[test]
    fn top_adds_up_to_100_percent_between_two_reads() {
        let mut history = CpuHistory::default();
        let at = |now: u64, used: u64| {
            let snapshot = cpus(age(container(), 0, now), "0-3", Some((150_000, 100_000)));
            cpu_time(snapshot, used, 0)
        };
        let ticks = |text: &str| -> Vec<u64> {
            text.lines()
                .take(3)
                .map(|line| {
                    line.split_whitespace()
                        .skip(1)
                        .flat_map(str::parse::<u64>)
                        .sum()
                })
                .collect()
        };
        let before = ticks(&shown(&at(50 * SECOND, 20 * SECOND), &mut history));
        let after = ticks(&shown(&at(60 * SECOND, 35 * SECOND), &mut history));
        let moved: Vec<_> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        assert_eq!(moved, [2000, 1000, 1000]);
    }

    #[test]
    fn boot_time_follows_the_readers_time_namespace_f17() {
        let mut snapshot = age(container(), 0, SECOND);
        if let Some(age) = &mut snapshot.age {
            age.timens_offset = 1000 * SECOND as i64;
        }
        assert!(shown(&snapshot, &mut CpuHistory::default()).contains("\nbtime 1795188460\n"));
    }
}
