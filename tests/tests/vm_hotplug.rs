//! CPUs that go and come while the daemon runs: counters go on, and what ran on a CPU that is
//! gone is not forgotten.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "vm-tests")]
// vm: all/v2

use std::fs;
use std::os::fd::AsFd;
use std::time::Duration;

use lxcfs_tests::container::Shape;
use lxcfs_tests::scratch::{Cgroup, Child, Work, collector_with, wait_until};
use lxcfs_tests::{Burner, Container, Lxcfs, TestCgroup};
use lxcfs_user::bpf::{Collector, Feature};

/// CPU 1, online again when dropped.
struct SecondCpu;

impl SecondCpu {
    fn set(&self, online: bool) {
        let word = if online { "1" } else { "0" };
        fs::write("/sys/devices/system/cpu/cpu1/online", word).unwrap();
    }
}

impl Drop for SecondCpu {
    fn drop(&mut self) {
        self.set(true);
    }
}

/// Time on each CPU in nanoseconds; the sum is what the kernel says.
fn times(collector: &Collector, cgroup: &Cgroup) -> Vec<u64> {
    let before = cgroup.usage_usec();
    let times = collector.cgroup_cpu(cgroup.open().as_fd()).unwrap();
    let after = cgroup.usage_usec();
    let times: Vec<u64> = times
        .iter()
        .map(|time| time.user.0 + time.system.0)
        .collect();
    let sum = times.iter().sum::<u64>() / 1_000;
    assert!(
        before.saturating_sub(1_000) <= sum && sum <= after + 1_000,
        "{sum} us over {times:?}, {before} to {after} us in cpu.stat"
    );
    times
}

fn burn(cgroup: &Cgroup, cpu: usize) {
    let child = Child::start(cgroup, Work::Burn(Some(cpu)));
    std::thread::sleep(Duration::from_millis(400));
    child.stop();
}

#[test]
fn times_of_a_cpu_stay_while_it_is_offline_and_go_on_afterwards() {
    let collector = collector_with(&[Feature::CgroupCpu]);
    let cpu = SecondCpu;
    let cgroup = Cgroup::new("hotplug");
    burn(&cgroup, 1);
    let online = times(&collector, &cgroup);
    assert!(online[1] > 0, "{online:?}");

    cpu.set(false);
    assert!(times(&collector, &cgroup)[1] >= online[1]);
    burn(&cgroup, 0);
    let offline = times(&collector, &cgroup);
    assert!(offline[0] > online[0] && offline[1] >= online[1]);

    // One that starts now cannot know the place of CPU 1 before it is back.
    let late = collector_with(&[Feature::CgroupCpu]);
    assert!(late.knows_cpu(0) && !late.knows_cpu(1));
    cpu.set(true);
    late.refresh_cpus().unwrap();
    assert!(late.knows_cpu(1));
    burn(&cgroup, 1);
    for collector in [&collector, &late] {
        let again = times(collector, &cgroup);
        assert!(
            again[0] >= offline[0] && again[1] > offline[1],
            "{offline:?} {again:?}"
        );
    }
}

/// Every counter of every `cpu` line.
fn counters(container: &Container) -> Vec<(String, Vec<u64>)> {
    let text = container.read("/proc/stat");
    let lines = text.lines().filter(|line| line.starts_with("cpu"));
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap().to_owned();
            (name, words.map(|word| word.parse().unwrap()).collect())
        })
        .collect()
}

#[test]
fn a_containers_counters_never_go_back_and_its_cpus_follow() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let cpu = SecondCpu;
    let cgroup = TestCgroup::new("hotplug-view");
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
    let _burners = [(); 2].map(|()| Burner::start(&cgroup, None));
    let mut seen = counters(&container);
    let mut follow = |cpus: usize, what: &str| {
        wait_until(what, || {
            let now = counters(&container);
            for (name, before) in &seen {
                let Some((_, after)) = now.iter().find(|(other, _)| other == name) else {
                    continue;
                };
                // Idle time of the sum goes with its CPU; what was used does not.
                let fields = before.iter().zip(after).enumerate();
                for (field, (before, after)) in fields.filter(|(field, _)| *field != 3) {
                    assert!(
                        after >= before,
                        "{name} field {field}: {before}, then {after}"
                    );
                }
            }
            seen = now;
            seen.len() == cpus + 1
        });
    };
    follow(2, "two CPUs");
    cpu.set(false);
    follow(1, "one CPU");
    // Past the next look for CPUs, which is every 5 s.
    std::thread::sleep(Duration::from_secs(6));
    follow(1, "one CPU still");
    cpu.set(true);
    follow(2, "two CPUs again");
    std::thread::sleep(Duration::from_secs(6));
    follow(2, "two CPUs still");
    drop(container);
    lxcfs.stop();
}
