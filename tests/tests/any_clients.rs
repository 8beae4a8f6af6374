//! Real clients inside a container with 256 MiB and half a CPU show the container's figures.
//! Where a client does not read files at all, the test shows that too.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
// vm: all/v2 6.1/v1

use std::time::Instant;

use lxcfs_tests::container::Shape;
use lxcfs_tests::{Burner, Container, Lxcfs, TestCgroup};

const LIMIT_KIB: u64 = 256 << 10;

/// A container with a memory limit of 256 MiB and a quota of half a CPU, so of one visible CPU.
struct Fixture {
    container: Container,
    cgroup: TestCgroup,
    started: Instant,
    lxcfs: Lxcfs,
}

fn fixture(name: &str) -> Fixture {
    fixture_with(name, &[])
}

fn fixture_with(name: &str, options: &[&str]) -> Fixture {
    let lxcfs = Lxcfs::start(options);
    let cgroup = TestCgroup::new(name);
    cgroup.limit_memory(LIMIT_KIB << 10);
    cgroup.limit_cpu(50_000, 100_000);
    let started = Instant::now();
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
    Fixture {
        container,
        cgroup,
        started,
        lxcfs,
    }
}

fn number(text: &str) -> u64 {
    text.trim()
        .parse()
        .unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

/// The numbers of the line of `text` that starts with `head`.
fn numbers(text: &str, head: &str) -> Vec<f64> {
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with(head));
    let line = line.unwrap_or_else(|| panic!("no line {head:?} in:\n{text}"));
    let rest = line.trim_start().strip_prefix(head).unwrap_or(line);
    rest.split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .filter_map(|word| word.parse().ok())
        .collect()
}

fn online_cpus_of_host() -> u64 {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    lxcfs_user::cpuset::CpuSet::parse_list(&list)
        .unwrap()
        .len()
        .into()
}

#[test]
fn free_shows_the_limit_and_sums_up() {
    let at = fixture("free");
    let text = at.container.stdout(&["free", "-k", "-w"]);
    let [total, used, free, _shared, buffers, cache, available] = numbers(&text, "Mem:")[..] else {
        panic!("{text}");
    };
    assert_eq!(total, LIMIT_KIB as f64, "{text}");
    assert_eq!(buffers, 0.0, "{text}");
    assert!(
        free <= available && available <= total && used <= total,
        "{text}"
    );
    assert!(free + cache <= total, "{text}");
    at.lxcfs.stop();
}

#[test]
fn free_follows_a_limit_that_changes_under_it() {
    let at = fixture("resize");
    at.cgroup.limit_memory(128 << 20);
    assert_eq!(
        numbers(&at.container.stdout(&["free", "-k"]), "Mem:")[0],
        131_072.0
    );
    at.cgroup.limit_memory(192 << 20);
    assert_eq!(
        numbers(&at.container.stdout(&["free", "-k"]), "Mem:")[0],
        196_608.0
    );
}

#[test]
fn top_shows_one_cpu_that_adds_up_to_a_hundred_percent() {
    let at = fixture("top");
    let _burner = Burner::start(&at.cgroup, None);
    let text = at
        .container
        .stdout(&["top", "-b", "-n", "2", "-d", "1", "-1", "-w", "200"]);
    let mem = numbers(&text, "MiB Mem :");
    assert_eq!(mem[0], 256.0, "{text}");
    let cpus: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("%Cpu"))
        .collect();
    assert_eq!(cpus.len(), 2, "one CPU in each of two screens: {text}");
    for cpu in cpus {
        assert!(cpu.starts_with("%Cpu0"), "{text}");
        let (_, fields) = cpu.split_once(':').unwrap();
        let sum: f64 = numbers(fields, "").iter().sum();
        // Eight figures, each rounded to a tenth.
        assert!((sum - 100.0).abs() < 0.5, "{cpu} adds up to {sum}");
    }
}

#[test]
fn vmstat_shows_the_container() {
    let at = fixture("vmstat");
    let text = at.container.stdout(&["vmstat", "-s"]);
    assert_eq!(numbers_before(&text, "K total memory"), LIMIT_KIB, "{text}");
    assert_eq!(numbers_before(&text, "K buffer memory"), 0, "{text}");
    at.container.stdout(&["vmstat", "1", "2"]);
}

fn numbers_before(text: &str, tail: &str) -> u64 {
    let line = text.lines().find_map(|line| line.trim().strip_suffix(tail));
    number(line.unwrap_or_else(|| panic!("no line {tail:?} in:\n{text}")))
}

#[test]
fn uptime_is_the_containers_age() {
    let at = fixture("uptime");
    let text = at.container.read("/proc/uptime");
    let elapsed = at.started.elapsed().as_secs_f64();
    let [age, idle] = numbers(&text, "")[..] else {
        panic!("{text}")
    };
    assert!(
        age <= elapsed + 0.02,
        "{age} s for a container of {elapsed} s"
    );
    assert!(
        idle <= age + 0.02,
        "one visible CPU cannot idle longer than {age} s: {idle}"
    );
    let shown = at.container.stdout(&["uptime"]);
    let load = at.container.read("/proc/loadavg");
    let averages = numbers(shown.split_once("load average").unwrap().1, "");
    assert_eq!(averages.len(), 3, "{shown}");
    assert_eq!(averages, numbers(&load, "")[..3], "{shown} against {load}");
    assert!(
        shown.contains("up 0 min") || shown.contains("up 1 min"),
        "{shown}"
    );
}

#[test]
fn w_heads_its_list_with_the_containers_uptime_and_load() {
    let at = fixture("w");
    let who = at.container.stdout(&["w"]);
    let load = at.container.read("/proc/loadavg");
    let head = who.lines().next().unwrap();
    assert!(
        head.contains("up 0 min") || head.contains("up 1 min"),
        "{head}"
    );
    let averages = numbers(head.split_once("load average").unwrap().1, "");
    assert_eq!(averages, numbers(&load, "")[..3], "{head} against {load}");
}

/// What `ps` shows of a process that started a few seconds ago: seconds between now and the
/// start it prints, and the seconds it prints as elapsed.
fn started_and_elapsed(at: &Fixture) -> (f64, f64) {
    let script = "sleep 1000 & sleep 3; \
        started=$(date -d \"$(ps -o lstart= -p $!)\" +%s); now=$(date +%s); \
        echo $((now - started)) $(ps -o etimes= -p $!); kill $!";
    let text = at.container.stdout(&["sh", "-c", script]);
    let words: Vec<f64> = text.split_whitespace().flat_map(str::parse).collect();
    let [ago, elapsed] = words[..] else {
        panic!("{text}")
    };
    (ago, elapsed)
}

/// Start times in `/proc/PID/stat` count from the machine's boot. `ps` adds them to `btime` for
/// a start, which is right. For what has elapsed it takes them from the clock, or, before
/// procps 4.0.3, from `/proc/uptime`, which is not right where that is the container's.
#[test]
fn ps_is_right_about_starts_and_about_elapsed_times_with_the_machines_uptime() {
    let near = |seconds: f64| (2.0..60.0).contains(&seconds);
    let at = fixture("started");
    let version = at.container.stdout(&["ps", "--version"]);
    let version: Vec<u32> = version
        .split(|c: char| !c.is_ascii_digit())
        .flat_map(str::parse)
        .collect();
    let asks_the_clock = version[..] >= [4, 0, 3][..];
    let (ago, elapsed) = started_and_elapsed(&at);
    assert!(near(ago), "{ago} s");
    assert_eq!(
        near(elapsed),
        asks_the_clock,
        "{elapsed} s: docs/virtual-files.md says otherwise of {version:?}"
    );
    let at = fixture_with("elapsed", &["--no-uptime"]);
    let (ago, elapsed) = started_and_elapsed(&at);
    assert!(near(ago) && near(elapsed), "{ago} s, {elapsed} s");
}

#[test]
fn ps_lists_the_containers_processes() {
    let at = fixture("ps");
    let text = at.container.stdout(&["ps", "-e", "-o", "pid=,comm="]);
    let first = text.lines().next().unwrap();
    assert!(
        first.trim().starts_with('1') && first.ends_with("sleep"),
        "{text}"
    );
    // Sampled on the kernel's own grid of five seconds.
    let _burner = Burner::start(&at.cgroup, None);
    let seen = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(200));
        numbers(&at.container.read("/proc/stat"), "procs_running ")[0] >= 1.0
    });
    assert!(seen, "a burner runs: {}", at.container.read("/proc/stat"));
    // btime stays the host's, because start times in /proc/PID/stat count from it.
    let host = std::fs::read_to_string("/proc/stat").unwrap();
    let inside = at.container.read("/proc/stat");
    assert_eq!(numbers(&inside, "btime ")[0], numbers(&host, "btime ")[0]);
}

#[test]
fn everything_that_counts_cpus_by_files_counts_one() {
    let at = fixture("count");
    for name in ["_NPROCESSORS_ONLN", "_NPROCESSORS_CONF"] {
        assert_eq!(
            number(&at.container.stdout(&["getconf", name])),
            1,
            "{name}"
        );
    }
    let list = at.container.stdout(&["lscpu", "--parse=CPU"]);
    let cpus = list.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(cpus, 1, "{list}");
    let text = at.container.stdout(&["lscpu"]);
    assert_eq!(numbers(&text, "CPU(s):")[0], 1.0, "{text}");
    let stat = at.container.read("/proc/stat");
    assert_eq!(
        stat.lines().filter(|line| line.starts_with("cpu")).count(),
        2,
        "{stat}"
    );
    let info = at.container.read("/proc/cpuinfo");
    assert_eq!(
        info.lines()
            .filter(|line| line.starts_with("processor"))
            .count(),
        1,
        "{info}"
    );
}

/// sched_getaffinity(2) is the kernel's, not a file's: only a cpuset changes it.
#[test]
fn nproc_asks_the_scheduler_and_not_a_file() {
    let at = fixture("nproc");
    let text = at.container.stdout(&["nproc"]);
    assert_eq!(
        number(&text),
        online_cpus_of_host(),
        "a quota changes no affinity"
    );
    at.cgroup.confine_cpus("0");
    assert_eq!(number(&at.container.stdout(&["nproc"])), 1);
}

/// sysinfo(2) is the kernel's, not a file's: busybox's `free` and `uptime` use it.
#[test]
fn busybox_free_asks_the_kernel_and_not_a_file() {
    let at = fixture("busybox");
    let host = std::fs::read_to_string("/proc/meminfo").unwrap();
    let host_kib = numbers(&host, "MemTotal:")[0];
    let text = at.container.stdout(&["busybox", "free", "-k"]);
    assert_eq!(numbers(&text, "Mem:")[0], host_kib, "{text}");
    // Its other tools read files, and see the container.
    let text = at
        .container
        .stdout(&["busybox", "grep", "MemTotal", "/proc/meminfo"]);
    assert_eq!(numbers(&text, "MemTotal:")[0], LIMIT_KIB as f64);
    let text = at.container.stdout(&["busybox", "top", "-b", "-n1"]);
    let mem = numbers(&text, "Mem:");
    assert!(
        mem[0] + mem[1] <= LIMIT_KIB as f64,
        "used and free of the container: {text}"
    );
}

/// The rows of "Clients that read no files" in docs/virtual-files.md: who asks the kernel
/// learns of the machine.
#[test]
fn system_calls_answer_for_the_machine() {
    let at = fixture("calls");
    let script = "import os, time\n\
        print(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 1024,\
        len(os.sched_getaffinity(0)), time.clock_gettime(time.CLOCK_BOOTTIME))";
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    let boot_time = || numbers(&read("/proc/uptime"), "")[0];
    let before = boot_time();
    let text = at.container.stdout(&["/usr/bin/python3", "-c", script]);
    let after = boot_time();
    let [memory, cpus, boot] = numbers(&text, "")[..] else {
        panic!("{text}")
    };
    assert_eq!(memory, numbers(&read("/proc/meminfo"), "MemTotal:")[0]);
    assert_eq!(cpus, online_cpus_of_host() as f64);
    assert!(
        before <= boot && boot <= after + 0.01,
        "{before} {boot} {after}"
    );
    let age = numbers(&at.container.read("/proc/uptime"), "")[0];
    assert!(age < after, "while the file has the container's age: {age}");
}

#[test]
fn mpstat_and_vmstat_see_one_cpu_and_only_touched_devices() {
    let at = fixture("sysstat");
    let text = at.container.stdout(&["mpstat", "-P", "ALL", "1", "1"]);
    let rows: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("Average:"))
        .collect();
    assert_eq!(rows.len(), 3, "a heading, all and CPU 0: {text}");
    assert!(text.contains("(1 CPU)"), "{text}");
    let text = at.container.stdout(&["iostat", "-c"]);
    assert!(text.contains("(1 CPU)"), "{text}");
    let text = at.container.stdout(&["vmstat", "-d"]);
    // Afterwards: starting vmstat may itself have touched a device.
    let devices = at.container.read("/proc/diskstats");
    for line in text.lines().skip(2) {
        let device = line.split_whitespace().next().unwrap();
        assert!(
            devices.contains(device),
            "{device} is not in the container's:\n{devices}"
        );
    }
}

/// sysstat 12.6 and newer reads `/sys/block/*/stat`, which belongs to the machine's devices.
#[test]
fn iostat_of_devices_asks_sysfs_and_not_diskstats() {
    let at = fixture("iostat");
    let text = at.container.stdout(&[
        "strace",
        "-f",
        "-e",
        "trace=openat",
        "-o",
        "/dev/stdout",
        "iostat",
        "-d",
    ]);
    assert!(
        text.contains("/sys/block") && !text.contains("/proc/diskstats"),
        "{text}"
    );
}

#[test]
fn psutil_shows_the_container() {
    let at = fixture("psutil");
    let script = "import psutil,os\n\
        v=psutil.virtual_memory(); s=psutil.swap_memory()\n\
        print(v.total, v.available, v.used, psutil.cpu_count(), len(psutil.cpu_times(percpu=True)),\n\
        psutil.cpu_count(logical=False) or 0, s.used, *os.getloadavg())";
    // The interpreter that Debian's psutil belongs to.
    let text = at.container.stdout(&["/usr/bin/python3", "-c", script]);
    let [total, available, used, cpus, times, cores, swapped, ..] = numbers(&text, "")[..] else {
        panic!("{text}");
    };
    assert_eq!(total, (LIMIT_KIB << 10) as f64);
    assert!(available <= total && used <= total, "{text}");
    assert_eq!((cpus, times, cores), (1.0, 1.0, 1.0), "{text}");
    assert_eq!(swapped, 0.0, "nothing was swapped out: {text}");
}
