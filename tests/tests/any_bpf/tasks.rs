//! Task counts per cgroup, against what was started there.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lxcfs_user::bpf::{Collector, Feature, Options, TaskCounts};

use lxcfs_tests::scratch::{Cgroup, Child, Work, collector_with, state_of, wait_until};

const FEATURES: &[Feature] = &[Feature::TaskCounts];

fn counts(cgroup: &Cgroup) -> TaskCounts {
    let collector = collector_with(FEATURES);
    // The first walk meets the cgroup, by the kernel's iterator; the next ones may be a loop.
    let mut found = Vec::new();
    for _ in 0..3 {
        let sample = collector.sample_tasks().expect("sample_tasks");
        assert_eq!((sample.lost_tasks, sample.broken_chains), (0, 0));
        found.push(sample.counts(cgroup.id()));
    }
    assert!(
        found
            .iter()
            .all(|counts| (counts.threads, counts.processes)
                == (found[0].threads, found[0].processes)),
        "{found:?}"
    );
    found[2]
}

#[test]
fn burners_run_and_sleepers_do_not() {
    let cgroup = Cgroup::new("mixed");
    let _burners = [
        Child::start(&cgroup, Work::Burn(None)),
        Child::start(&cgroup, Work::Burn(None)),
    ];
    let sleeper = Child::start(&cgroup, Work::Sleep);
    wait_until("the sleeper sleeps", || sleeper.state() == 'S');
    let counts = counts(&cgroup);
    assert_eq!((counts.running, counts.uninterruptible), (2, 0));
    assert_eq!((counts.threads, counts.processes), (3, 3));
}

#[test]
fn threads_are_those_of_cgroup_threads() {
    let cgroup = Cgroup::new("threads");
    let _child = Child::start(&cgroup, Work::Threads(37));
    wait_until("the threads are there", || cgroup.own_threads() == 38);
    let counts = counts(&cgroup);
    assert_eq!((counts.threads, counts.processes), (38, 1));
    assert_eq!(counts.running, 0);
}

#[test]
fn a_loop_of_many_runs_counts_all_though_tasks_come_and_go() {
    let (collector, states) = Collector::start(&Options {
        tasks_per_run: 7,
        ..Options::default()
    });
    let loops = state_of(&states, FEATURES[0]).to_string();
    let loops = loops.contains("loop of its own");
    let cgroup = Cgroup::new("runs");
    let _child = Child::start(&cgroup, Work::Threads(37));
    wait_until("the threads are there", || cgroup.own_threads() == 38);
    // In our own cgroup: processes that live for a moment.
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let churn = std::thread::spawn(move || {
        while !told.load(Ordering::Relaxed) {
            assert!(Command::new("true").status().expect("true").success());
        }
    });
    let mut most = 0;
    for _ in 0..200 {
        let sample = collector.sample_tasks().expect("sample_tasks");
        assert_eq!(sample.counts(cgroup.id()).threads, 38, "{sample:?}");
        most = most.max(sample.runs);
    }
    stop.store(true, Ordering::Relaxed);
    churn.join().expect("processes start");
    // A loop whose next task ended is begun again, as a walk by the iterator.
    assert_eq!(most > 5, loops, "{most} runs");
}

#[test]
fn all_threads_of_the_machine_are_in_some_cgroup() {
    let collector = collector_with(FEATURES);
    // The kernel's own total is the second half of the fourth field; tasks come and go
    // between the two reads, so several tries are made.
    let mut seen = Vec::new();
    for _ in 0..20 {
        let before = total_of_loadavg();
        let sample = collector.sample_tasks().expect("sample_tasks");
        let after = total_of_loadavg();
        let root = sample
            .iter()
            .map(|(_, counts)| counts.threads)
            .max()
            .unwrap_or(0);
        seen.push((before, root, after));
        if before == after && u32::abs_diff(before, root) <= hidden_threads() {
            return;
        }
    }
    panic!("kernel before, walk, kernel after: {seen:?}");
}

fn total_of_loadavg() -> u32 {
    let text = std::fs::read_to_string("/proc/loadavg").expect("/proc/loadavg");
    let total = text
        .split(' ')
        .nth(3)
        .and_then(|field| field.split('/').nth(1));
    total
        .and_then(|total| total.parse().ok())
        .expect("running/total")
}

/// Threads of PID 1 beyond the first: some sandboxes hide them from iterators.
fn hidden_threads() -> u32 {
    std::fs::read_dir("/proc/1/task").map_or(0, |tasks| tasks.count() as u32)
}

#[test]
fn five_levels_deep_counts_at_every_level() {
    let top = Cgroup::new("deep");
    let mut levels = vec![top];
    for level in 1..6 {
        let below = levels.last().expect("a level").child(&format!("l{level}"));
        levels.push(below);
    }
    let _burner = Child::start(&levels[5], Work::Burn(None));
    let collector = collector_with(FEATURES);
    let sample = collector.sample_tasks().expect("sample_tasks");
    for level in &levels {
        let counts = sample.counts(level.id());
        assert_eq!(
            (counts.running, counts.threads),
            (1, 1),
            "{}",
            level.path.display()
        );
    }
    drop(_burner);
    let sample = collector.sample_tasks().expect("sample_tasks");
    assert_eq!(sample.counts(levels[0].id()).threads, 0);
    // Inside out, as rmdir wants it.
    while levels.pop().is_some() {}
}

#[test]
fn real_time_tasks_run_too() {
    let cgroup = Cgroup::new("fifo");
    let _burner = Child::start(&cgroup, Work::BurnFifo(0));
    let _other = Child::start(&cgroup, Work::Burn(Some(0)));
    wait_until("both run", || counts(&cgroup).running == 2);
}

#[test]
fn uninterruptible_sleep_counts_and_frozen_tasks_do_not() {
    let cgroup = Cgroup::new("frozen");
    let vfork = Child::start(&cgroup, Work::Vfork);
    let _burner = Child::start(&cgroup, Work::Burn(None));
    wait_until("the parent waits for its vfork child", || {
        vfork.state() == 'D'
    });
    let before = counts(&cgroup);
    assert_eq!((before.running, before.uninterruptible), (1, 1));

    cgroup.write("cgroup.freeze", "1");
    wait_until("the burner is frozen", || counts(&cgroup).running == 0);
    cgroup.write("cgroup.freeze", "0");
    wait_until("the burner runs again", || counts(&cgroup).running == 1);
}

#[test]
fn the_last_pid_is_the_kernels_own() {
    let cgroup = Cgroup::new("last-pid");
    let _child = Child::start(&cgroup, Work::Sleep);
    let collector = collector_with(FEATURES);
    let last = || {
        let text = std::fs::read_to_string("/proc/sys/kernel/ns_last_pid").expect("ns_last_pid");
        text.trim().parse::<u32>().expect("a PID")
    };
    for _ in 0..50 {
        let before = last();
        let sample = collector.sample_tasks().expect("sample_tasks");
        if before == last() {
            let found = sample.counts(cgroup.id()).last_pid.expect("a last PID");
            assert_eq!((found.pid, found.ns_level), (before, 0));
            return;
        }
    }
    panic!("processes start too fast on this machine to compare the last PID");
}

/// Walks take for granted what the one before has found.
#[test]
fn cgroups_that_come_empty_and_fill_again_between_walks_count_with_their_parent() {
    let collector = collector_with(FEATURES);
    let parent = Cgroup::new("kept");
    let first = parent.child("first");
    let mut sleepers = vec![Child::start(&first, Work::Sleep)];
    let threads = || {
        let sample = collector.sample_tasks().expect("sample_tasks");
        assert_eq!(sample.broken_chains, 0);
        [&parent, &first].map(|cgroup| sample.counts(cgroup.id()).threads)
    };
    assert_eq!(threads(), [1, 1]);
    assert_eq!(threads(), [1, 1], "nothing is new");
    let second = parent.child("second");
    let third = second.child("third");
    sleepers.push(Child::start(&third, Work::Sleep));
    assert_eq!(threads(), [2, 1]);
    drop(sleepers.remove(0));
    assert_eq!(threads(), [1, 0]);
    assert_eq!(threads(), [1, 0]);
    sleepers.push(Child::start(&first, Work::Sleep));
    assert_eq!(threads(), [2, 1]);
    sleepers.clear();
    assert_eq!(threads(), [0, 0]);
    sleepers.push(Child::start(&third, Work::Sleep));
    assert_eq!(threads(), [1, 0]);
    // Before their cgroup.
    sleepers.clear();
}

#[test]
fn removed_cgroups_leave_the_table() {
    let collector = collector_with(FEATURES);
    let before = collector.sample_tasks().expect("sample_tasks").len();
    for round in 0..3 {
        let cgroups: Vec<_> = (0..50)
            .map(|n| Cgroup::new(&format!("r{round}-{n}")))
            .collect();
        let children: Vec<_> = cgroups
            .iter()
            .map(|cgroup| Child::start(cgroup, Work::Sleep))
            .collect();
        let during = collector.sample_tasks().expect("sample_tasks");
        assert!(
            cgroups
                .iter()
                .all(|cgroup| during.counts(cgroup.id()).threads == 1)
        );
        drop(children);
        drop(cgroups);
        let after = collector.sample_tasks().expect("sample_tasks");
        assert!(
            after.len() < before + 50,
            "{} cgroups after {before}",
            after.len()
        );
    }
}
