//! On a machine with four CPUs: which CPU a container shows its burn on, that it shows nothing of
//! what the rest of the machine burns, and that the load of a lone container is the kernel's.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "vm-tests")]
// vm: all/v2 smp=4

use std::time::Duration;

use lxcfs_tests::container::Shape;
use lxcfs_tests::scratch::{Cgroup, Child, Work, wait_until};
use lxcfs_tests::{Burner, Container, Lxcfs, TestCgroup};

/// Busy and all time on one CPU, in ticks.
#[derive(Clone, Copy, Debug)]
struct Ticks {
    cpu: usize,
    busy: u64,
    all: u64,
}

/// The `cpuN` lines.
fn cpus(container: &Container) -> Vec<Ticks> {
    let text = container.read("/proc/stat");
    let lines = text.lines().filter_map(|line| line.strip_prefix("cpu"));
    lines
        .filter(|line| !line.starts_with(' '))
        .map(|line| {
            let mut words = line
                .split_whitespace()
                .map(|word| word.parse::<u64>().unwrap());
            let cpu = usize::try_from(words.next().unwrap()).unwrap();
            let fields: Vec<u64> = words.collect();
            // user, nice, system; the rest is idle time here.
            Ticks {
                cpu,
                busy: fields[..3].iter().sum(),
                all: fields.iter().sum(),
            }
        })
        .collect()
}

/// What each CPU did between two looks, while `cgroup` used so much time.
fn between(container: &Container, cgroup: &TestCgroup, usec: u64) -> Vec<Ticks> {
    let before = cpus(container);
    let from = usage_usec(cgroup);
    wait_until("enough is burnt", || usage_usec(cgroup) > from + usec);
    let after = cpus(container);
    assert_eq!(before.len(), after.len());
    let pairs = before.into_iter().zip(after);
    pairs
        .map(|(before, after)| {
            assert_eq!(before.cpu, after.cpu);
            Ticks {
                cpu: before.cpu,
                busy: after.busy - before.busy,
                all: after.all - before.all,
            }
        })
        .collect()
}

fn usage_usec(cgroup: &TestCgroup) -> u64 {
    let text = cgroup.read("cpu.stat");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "));
    line.unwrap().parse().unwrap()
}

#[test]
fn a_burn_on_cpu_3_shows_on_one_cpu_and_an_idle_container_stays_idle() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    // Files answer before eBPF is loaded.
    wait_until("eBPF is there", || lxcfs.log().contains("cgroup_cpu: on"));
    for (quota, visible) in [(None, 4), (Some(200_000), 2)] {
        let (burning, idle) = (TestCgroup::new("burning"), TestCgroup::new("idle"));
        let host = TestCgroup::new("host");
        if let Some(quota) = quota {
            burning.limit_cpu(quota, 100_000);
            idle.limit_cpu(quota, 100_000);
        }
        let start = |cgroup| Container::start(cgroup, &lxcfs.mountpoint(), &Shape::default());
        let (one, other) = (start(&burning), start(&idle));
        let _burners = [
            Burner::start(&burning, Some(3)),
            Burner::start(&host, Some(0)),
            Burner::start(&host, Some(1)),
        ];
        let begun = usage_usec(&burning);
        wait_until("it burns", || usage_usec(&burning) > begun + 300_000);

        let seen = between(&one, &burning, 8_000_000);
        println!("burning, {visible} CPUs: {seen:?}");
        assert_eq!(seen.len(), visible);
        let most = seen.iter().max_by_key(|ticks| ticks.busy).unwrap();
        let elsewhere: u64 = seen.iter().map(|ticks| ticks.busy).sum::<u64>() - most.busy;
        // Eight seconds, some of them the looks': processes in the container, which may run
        // elsewhere and are slow on an emulated machine.
        assert!(
            most.busy > 500 && elsewhere < most.busy / 3,
            "one CPU burns: {seen:?}"
        );
        if visible == 4 {
            assert_eq!(most.cpu, 3, "{seen:?}");
        }

        let seen = between(&other, &host, 12_000_000);
        println!("idle, {visible} CPUs: {seen:?}");
        assert_eq!(seen.len(), visible);
        let busy: u64 = seen.iter().map(|ticks| ticks.busy).sum();
        let all: u64 = seen.iter().map(|ticks| ticks.all).sum();
        assert!(busy < all / 5, "idle while the machine burns: {seen:?}");
    }
    lxcfs.stop();
}

fn load(loadavg: &str) -> f64 {
    loadavg.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_load_of_a_lone_container_converges_to_the_kernels_own() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    wait_until("eBPF is there", || lxcfs.log().contains("task_counts: on"));
    let cgroup = TestCgroup::new("lone");
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
    // Without controllers of their own, so that every level may hold processes.
    let two = Cgroup::below(&cgroup.dirs()[0], "two");
    let three = two.child("three");
    let four = three.child("four");
    let five = four.child("five");
    let _burners = [&two, &three, &five].map(|at| Child::start(at, Work::Burn(None)));
    let host = || load(&std::fs::read_to_string("/proc/loadavg").unwrap());
    let inside = || load(&container.read("/proc/loadavg"));
    let first = (host(), inside());
    let start = std::time::Instant::now();
    // Twelve points of the kernel's grid, one in 5 s and a tick, and half the way to the next.
    std::thread::sleep(Duration::from_millis(12 * 5_004 + 2_000));
    let elapsed = start.elapsed().as_secs_f64();
    let last = (host(), inside());
    // What was before the first look fades alike in both.
    let fades = (1884.0_f64 / 2048.0).powf(elapsed / 5.004);
    let (kernel, shown) = (last.0 - first.0 * fades, last.1 - first.1 * fades);
    println!("in a minute: {kernel:.2} by the kernel, {shown:.2} in the container");
    // Three burners are 1.9; to miss one of them is to be off by 0.63.
    assert!(
        (kernel - shown).abs() < 0.45 && shown > 1.5,
        "{first:?}, then {last:?}: {kernel} by the kernel, {shown} in the container"
    );
    drop(container);
    lxcfs.stop();
}
