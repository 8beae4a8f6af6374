//! Clients in a container with a quota of one and a half CPUs show what it burns: no more than
//! its own, and all of it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
// vm: 6.12/v2

use std::time::Instant;

use lxcfs_tests::container::Shape;
use lxcfs_tests::{Burner, Container, Lxcfs, TestCgroup};

/// What a client shows and what the kernel counted meanwhile differ by the moments of the two
/// looks, in CPUs. A client that showed the machine, or spread nothing, would be off by more.
const TOLERANCE: f64 = 0.3;

struct Burning {
    container: Container,
    cgroup: TestCgroup,
    _burners: [Burner; 2],
    _lxcfs: Lxcfs,
}

fn burning(name: &str) -> Burning {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new(name);
    cgroup.limit_memory(256 << 20);
    cgroup.limit_cpu(150_000, 100_000);
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
    let burners = [(); 2].map(|()| Burner::start(&cgroup, None));
    Burning {
        container,
        cgroup,
        _burners: burners,
        _lxcfs: lxcfs,
    }
}

impl Burning {
    /// CPU time used, in microseconds.
    fn usage(&self) -> f64 {
        if self.cgroup.is_v1("cpuacct") {
            let text = self.cgroup.read("cpuacct.usage");
            return text.trim().parse::<f64>().unwrap() / 1e3;
        }
        let text = self.cgroup.read("cpu.stat");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        line.unwrap().parse().unwrap()
    }

    /// Runs a client inside. Its output, and the CPUs that were used meanwhile.
    fn run(&self, arguments: &[&str]) -> (String, f64) {
        let (start, before) = (Instant::now(), self.usage());
        let text = self.container.stdout(arguments);
        let used = self.usage() - before;
        let cpus = used / start.elapsed().as_micros() as f64;
        assert!(cpus < 1.5 + TOLERANCE, "the quota holds: {cpus} CPUs");
        (text, cpus)
    }
}

/// The words of a line as numbers, from the end backwards.
fn last_number(line: &str) -> f64 {
    let word = line.split_whitespace().last().unwrap();
    word.parse()
        .unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn assert_shown(client: &str, idle: &[f64], cpus: f64, text: &str) {
    assert_eq!(idle.len(), 2, "{client} shows two CPUs:\n{text}");
    let busy: f64 = idle.iter().map(|idle| 1.0 - idle / 100.0).sum();
    println!("{client}: {busy:.2} CPUs shown, {cpus:.2} used");
    assert!(
        (busy - cpus).abs() <= TOLERANCE,
        "{client} shows {busy} CPUs, {cpus} were used:\n{text}"
    );
}

#[test]
fn mpstat_shows_what_the_container_burns() {
    let at = burning("mpstat");
    let (text, cpus) = at.run(&["mpstat", "-P", "ALL", "4", "1"]);
    let rows: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("Average:") && !line.contains("%idle"))
        .collect();
    let all = rows.first().map(|line| last_number(line)).unwrap();
    let idle: Vec<f64> = rows.iter().skip(1).map(|line| last_number(line)).collect();
    assert_shown("mpstat", &idle, cpus, &text);
    assert!(
        (all - idle.iter().sum::<f64>() / 2.0).abs() < 1.0,
        "the line of all is the mean:\n{text}"
    );
}

#[test]
fn top_shows_what_the_container_burns() {
    let at = burning("top");
    let arguments = ["top", "-b", "-n", "2", "-d", "4", "-1", "-w", "200"];
    let (text, cpus) = at.run(&arguments);
    // Wide screens show two CPUs in a line; the first screen counts from the start.
    let cpu_lines = text.lines().filter(|line| line.starts_with("%Cpu"));
    let cpus_shown = cpu_lines.flat_map(|line| line.split("%Cpu").skip(1));
    let idle: Vec<f64> = cpus_shown
        .skip(2)
        .map(|figures| {
            let (before, _) = figures.split_once(" id").unwrap();
            last_number(&before.replace(',', " "))
        })
        .collect();
    assert_shown("top", &idle, cpus, &text);
}

#[test]
fn psutil_shows_what_the_container_burns() {
    let at = burning("psutil");
    let script = "import psutil\nprint(*psutil.cpu_percent(interval=4, percpu=True))";
    let (text, cpus) = at.run(&["/usr/bin/python3", "-c", script]);
    let idle: Vec<f64> = text
        .split_whitespace()
        .map(|word| 100.0 - word.parse::<f64>().unwrap())
        .collect();
    assert_shown("psutil", &idle, cpus, &text);
}
