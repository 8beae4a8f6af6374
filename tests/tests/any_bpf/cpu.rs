//! Per-CPU time of cgroups, against `cpu.stat`.

use std::os::fd::AsFd;
use std::time::Duration;

use lxcfs_user::bpf::{Collector, Feature};
use lxcfs_user::snapshot::PerCpuTime;

use lxcfs_tests::scratch::{Cgroup, Child, Work, collector_with};

const FEATURES: &[Feature] = &[Feature::CgroupCpu, Feature::RemovedCgroupTimes];

fn read(collector: &Collector, cgroup: &Cgroup) -> Vec<PerCpuTime> {
    collector
        .cgroup_cpu(cgroup.open().as_fd())
        .expect("cgroup_cpu")
}

fn total_usec(times: &[PerCpuTime]) -> u64 {
    times
        .iter()
        .map(|time| time.user.0 + time.system.0)
        .sum::<u64>()
        / 1_000
}

/// The sum over CPUs lies between the kernel's totals read before and after, give or take 1 ms.
fn assert_sum_is_the_kernels(collector: &Collector, cgroup: &Cgroup) -> Vec<PerCpuTime> {
    let before = cgroup.usage_usec();
    let times = read(collector, cgroup);
    let after = cgroup.usage_usec();
    let sum = total_usec(&times);
    assert!(
        before.saturating_sub(1_000) <= sum && sum <= after + 1_000,
        "{sum} us summed over CPUs, {before} to {after} us in cpu.stat of {}",
        cgroup.path.display()
    );
    times
}

fn run_for(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

#[test]
fn a_leaf_sums_to_cpu_stat_while_it_burns_and_after() {
    let collector = collector_with(FEATURES);
    let cgroup = Cgroup::new("leaf");
    let child = Child::start(&cgroup, Work::Burn(None));
    run_for(300);
    assert_sum_is_the_kernels(&collector, &cgroup);
    child.stop();
    let times = assert_sum_is_the_kernels(&collector, &cgroup);
    assert!(total_usec(&times) > 0);
}

#[test]
fn a_burner_pinned_to_one_cpu_shows_there_only() {
    let collector = collector_with(FEATURES);
    let cpus = std::thread::available_parallelism()
        .expect("CPU count")
        .get();
    assert!(cpus >= 2, "this test needs a machine with two CPUs");
    for cpu in 0..2 {
        let cgroup = Cgroup::new("pinned");
        let child = Child::start(&cgroup, Work::Burn(Some(cpu)));
        run_for(400);
        child.stop();
        let times = assert_sum_is_the_kernels(&collector, &cgroup);
        let burnt = times[cpu].user.0 + times[cpu].system.0;
        let elsewhere: u64 = times
            .iter()
            .filter(|time| time.cpu as usize != cpu)
            .map(|time| time.user.0 + time.system.0)
            .sum();
        // What runs elsewhere is the child's start, before it pins itself.
        assert!(
            burnt > 4 * elsewhere,
            "CPU {cpu}: {burnt} ns there, {elsewhere} ns elsewhere"
        );
    }
}

#[test]
fn an_idle_cgroup_is_idle_while_its_sibling_burns() {
    let collector = collector_with(FEATURES);
    let (idle, busy) = (Cgroup::new("idle"), Cgroup::new("busy"));
    let _sleeper = Child::start(&idle, Work::Sleep);
    let _burner = Child::start(&busy, Work::Burn(None));
    run_for(100);
    let start = total_usec(&read(&collector, &idle));
    run_for(400);
    assert_eq!(total_usec(&read(&collector, &idle)), start);
    assert!(total_usec(&read(&collector, &busy)) > 0);
}

#[test]
fn a_nested_tree_sums_to_cpu_stat_and_removed_children_stay_in_it() {
    let collector = collector_with(FEATURES);
    let top = Cgroup::new("nested");
    let middle = top.child("middle");
    let inner = middle.child("inner");
    let leaf = middle.child("leaf");
    let burners = [
        Child::start(&inner, Work::Burn(Some(0))),
        Child::start(&leaf, Work::Burn(Some(1))),
    ];
    run_for(400);
    for burner in &burners {
        burner.stop();
    }
    let before = assert_sum_is_the_kernels(&collector, &top);
    assert_sum_is_the_kernels(&collector, &middle);

    drop(burners);
    drop(inner);
    let after_one = assert_sum_is_the_kernels(&collector, &top);
    drop(leaf);
    drop(middle);
    let after_all = assert_sum_is_the_kernels(&collector, &top);
    for cpu in 0..before.len() {
        let exec = |times: &[PerCpuTime]| times[cpu].user.0 + times[cpu].system.0;
        assert!(
            exec(&before) <= exec(&after_one),
            "CPU {cpu} lost time with inner"
        );
        assert!(
            exec(&after_one) <= exec(&after_all),
            "CPU {cpu} lost time with middle"
        );
    }
}

#[test]
fn the_cgroup_read_last_is_let_go() {
    let collector = collector_with(FEATURES);
    let root = lxcfs_tests::scratch::v2_root().join("cgroup.stat");
    let dying = || {
        let stat = std::fs::read_to_string(&root).expect("cgroup.stat of the root");
        stat.lines()
            .find_map(|line| line.strip_prefix("nr_dying_descendants "))
            .and_then(|number| number.parse::<u64>().ok())
            .expect("nr_dying_descendants")
    };
    let cgroup = Cgroup::new("let-go");
    read(&collector, &cgroup);
    let id = cgroup.id();
    drop(cgroup);
    let held = dying();
    collector.release_cgroup();
    lxcfs_tests::scratch::wait_until(&format!("{id:?} is freed"), || dying() < held);
}
