//! What a container reads of eBPF through the whole daemon: its own forks, its newest PID, the
//! times of its disks, and counters that never go back, whether eBPF is there or not.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
// vm: all/v2

use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use lxcfs_tests::container::Shape;
use lxcfs_tests::disk::{BLOCKS, disk};
use lxcfs_tests::scratch::wait_until;
use lxcfs_tests::states::metrics;
use lxcfs_tests::{Burner, Container, Lxcfs, TestCgroup, lxcfs_binary, stdout_of};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn processes(container: &Container) -> u64 {
    let text = container.read("/proc/stat");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("processes "));
    line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

#[test]
fn forks_are_the_containers_own_and_never_go_back() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new("forks");
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
    let host = || {
        let text = std::fs::read_to_string("/proc/stat").unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("processes "));
        line.unwrap().parse::<u64>().unwrap()
    };
    // Files answer before eBPF is loaded.
    wait_until("forks are counted", || processes(&container) > 0);
    let before = processes(&container);
    assert!(
        (1..1000).contains(&before) && before < host(),
        "{before} since the start of a new container"
    );
    // Forks of the host are not the container's.
    for _ in 0..50 {
        assert!(Command::new("true").status().unwrap().success());
    }
    container.stdout(&["sh", "-c", "for i in $(seq 100); do (:); done"]);
    let mut seen = before;
    wait_until("100 forks are counted", || {
        let now = processes(&container);
        assert!(now >= seen, "{now} after {seen}");
        seen = now;
        now >= before + 100
    });
    // Each read of ours is a process in the container as well, and little else is.
    let exact = processes(&container);
    let next = processes(&container);
    assert!(
        exact <= next && next < before + 100 + 700,
        "{before} {next}"
    );
    // A worker that dies takes nothing with it.
    let kept = processes(&container);
    kill(Pid::from_raw(worker(&lxcfs)), Signal::SIGKILL).unwrap();
    let after = processes(&container);
    assert!(
        kept <= after && after < kept + 100,
        "{kept} before, {after} after a worker's death"
    );
    lxcfs.stop();
}

/// The numbers of `/proc/stat` that only grow: user, nice, system and idle of every CPU, and forks.
fn growing(container: &Container) -> Vec<(String, Vec<u64>)> {
    let text = container.read("/proc/stat");
    text.lines()
        .filter(|line| line.starts_with("cpu") || line.starts_with("processes"))
        .map(|line| {
            let (name, numbers) = line.split_once(' ').unwrap();
            let numbers = numbers.split_whitespace().take(4);
            (
                name.to_owned(),
                numbers.map(|n| n.parse().unwrap()).collect(),
            )
        })
        .collect()
}

#[test]
fn no_counter_goes_back_when_workers_die_right_after_an_answer() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new("back");
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
    // From the very first answer on, and with and without a standby that has loaded its eBPF.
    for round in 0..30 {
        let before = growing(&container);
        kill(Pid::from_raw(worker(&lxcfs)), Signal::SIGKILL).unwrap();
        let after = growing(&container);
        assert_eq!(before.len(), after.len());
        for ((name, before), (_, after)) in before.iter().zip(&after) {
            let grows = before
                .iter()
                .zip(after)
                .all(|(before, after)| before <= after);
            assert!(grows, "round {round}: {name} {before:?}, then {after:?}");
        }
        container.stdout(&[
            "sh",
            "-c",
            "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done",
        ]);
    }
    lxcfs.stop();
}

/// The process that answers.
fn worker(lxcfs: &Lxcfs) -> i32 {
    let runtime = format!("--runtime-dir={}", lxcfs.runtime_dir().display());
    let mut found = None;
    wait_until("the daemon tells its worker", || {
        let status = Command::new(lxcfs_binary())
            .args(["status", "--json", &runtime])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        let digits = text.split("\"worker_pid\":").nth(1).map(|rest| {
            rest.trim_start()
                .chars()
                .take_while(char::is_ascii_digit)
                .collect::<String>()
        });
        found = digits.and_then(|digits| digits.parse().ok());
        found.is_some()
    });
    found.unwrap()
}

/// Has the host give out PIDs that no small container has.
fn raise_pids_of_the_host() {
    let path = "/proc/sys/kernel/ns_last_pid";
    let last: u32 = fs::read_to_string(path).unwrap().trim().parse().unwrap();
    if last < FOREIGN {
        fs::write(path, FOREIGN.to_string()).unwrap();
    }
}

/// What the containers here do not reach, and the host has passed.
const FOREIGN: u32 = 15_000;

/// A process of the host that somebody put into a container's cgroup: an exec that has not
/// entered yet looks like this.
struct Stranger(Child);

impl Stranger {
    fn start(cgroup: &TestCgroup) -> Self {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(child.id() > FOREIGN, "{}", child.id());
        cgroup.add(child.id());
        Self(child)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Threads and newest PID in each line that a reader has written so far.
fn seen_by_reader(lines: &Path) -> Vec<(u32, u32)> {
    let text = fs::read_to_string(lines).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let parsed = whole.lines().map(|line| {
        let mut fields = line.split(' ').skip(3);
        let threads = fields.next().unwrap().split_once('/').unwrap().1;
        (
            threads.parse().unwrap(),
            fields.next().unwrap().parse().unwrap(),
        )
    });
    parsed.collect()
}

#[test]
fn a_process_of_the_host_in_the_containers_cgroup_never_shows_its_pid() {
    raise_pids_of_the_host();
    for arguments in [&[][..], &["--no-ebpf"]] {
        let lxcfs = Lxcfs::start::<&str>(arguments);
        let state = if arguments.is_empty() { "on" } else { "off" };
        wait_until("eBPF is there, or not", || {
            lxcfs.log().contains(&format!("task_counts: {state}"))
        });
        let cgroup = TestCgroup::new("stranger");
        let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
        let (lines, stop) = (
            lxcfs.runtime_dir().join("lines"),
            lxcfs.runtime_dir().join("stop"),
        );
        // A shell that reads without a process more, so that the strangers are the newest.
        let script = format!(
            "while [ ! -e '{}' ]; do read line </proc/loadavg && echo \"$line\" >>'{}'; \
             read line </proc/uptime; done",
            stop.display(),
            lines.display()
        );
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| container.run(&["sh", "-c", &script]));
            wait_until("the reader reads", || seen_by_reader(&lines).len() > 2);
            let strangers = [(); 20].map(|()| Stranger::start(&cgroup));
            let with_strangers = || {
                let seen = seen_by_reader(&lines);
                seen.into_iter().filter(|(threads, _)| *threads >= 20)
            };
            wait_until("strangers are counted", || with_strangers().count() > 20);
            drop(strangers);
            fs::write(&stop, "").unwrap();
            assert!(reader.join().unwrap().status.success());
        });
        let seen = seen_by_reader(&lines);
        let foreign = seen.iter().find(|(_, pid)| *pid >= FOREIGN || *pid == 0);
        assert!(foreign.is_none(), "{arguments:?}: {foreign:?}");
        drop(container);
        lxcfs.stop();
    }
}

/// Everything in `/proc/stat` and `/proc/uptime` that only ever grows, by name.
fn counters(container: &Container) -> Vec<(String, f64)> {
    let text = container.stdout(&["cat", "/proc/uptime", "/proc/stat"]);
    let text = format!("uptime {text}");
    let mut counters = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap();
        if !name.starts_with("cpu") && !["uptime", "ctxt", "processes"].contains(&name) {
            continue;
        }
        for (field, word) in words.enumerate() {
            counters.push((format!("{name} {field}"), word.parse().unwrap()));
        }
    }
    counters
}

#[test]
fn no_counter_goes_back_when_ebpf_goes_and_comes_and_when_the_worker_changes() {
    let directory = tempfile::TempDir::with_prefix("lxcfs-test-").unwrap();
    let config = directory.path().join("lxcfs.toml");
    let set = |off: bool| fs::write(&config, format!("no-ebpf = {off}\n")).unwrap();
    set(false);
    let lxcfs = Lxcfs::start(&["--config".as_ref(), config.as_os_str()]);
    let cgroup = TestCgroup::new("monotone");
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
    // One CPU is left for loading eBPF, which is not urgent.
    let _burner = Burner::start(&cgroup, Some(0));
    let shows = |state: &str| {
        metrics(&lxcfs).contains(&format!(
            "lxcfs_feature{{feature=\"cgroup_cpu\",state=\"{state}\"}} 1\n"
        ))
    };
    wait_until("eBPF is there", || shows("on"));
    wait_until("forks are counted", || processes(&container) > 0);

    let mut seen = counters(&container);
    let mut look = |after: &str| {
        for _ in 0..4 {
            let now = counters(&container);
            for ((name, before), (same, now)) in seen.iter().zip(&now) {
                assert_eq!(name, same);
                assert!(now >= before, "after {after}, {name}: {before}, then {now}");
            }
            assert_eq!(seen.len(), now.len());
            seen = now;
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        seen.clone()
    };
    let start = look("the start");
    let upgrade = || {
        let before = worker(&lxcfs);
        let runtime = format!("--runtime-dir={}", lxcfs.runtime_dir().display());
        stdout_of(Command::new(lxcfs_binary()).args(["upgrade", &runtime]));
        wait_until("another worker serves", || worker(&lxcfs) != before);
    };
    set(true);
    upgrade();
    look("eBPF goes");
    wait_until("eBPF is off", || shows("off"));
    look("eBPF has gone");
    set(false);
    upgrade();
    look("eBPF comes");
    wait_until("eBPF is on", || shows("on"));
    look("eBPF has come");
    lxcfs.signal(Signal::SIGUSR1);
    look("a reload");
    // And they have gone on: the burner burns, the container gets older, each look is a process.
    for name in ["cpu 0", "uptime 0", "processes 0"] {
        let of = |all: &[(String, f64)]| all.iter().find(|(known, _)| known == name).unwrap().1;
        wait_until(&format!("{name} has grown"), || {
            of(&counters(&container)) > of(&start)
        });
    }
    drop(container);
    lxcfs.stop();
}

#[test]
fn diskstats_has_the_times_of_the_containers_own_requests() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    wait_until("eBPF is there", || lxcfs.log().contains("block_times: on"));
    let (reading, idle) = (TestCgroup::new("reading"), TestCgroup::new("idle"));
    let start = |cgroup| Container::start(cgroup, &lxcfs.mountpoint(), &Shape::default());
    let (reading, idle) = (start(&reading), start(&idle));
    let disk = disk();
    // From `reads` on, as in the kernel's Documentation/admin-guide/iostats.rst.
    let line = |container: &Container| {
        let text = container.read("/proc/diskstats");
        let line = text
            .lines()
            .find(|line| line.split_whitespace().nth(2) == Some(&disk.name))?;
        let fields = line.split_whitespace().skip(3);
        Some(fields.map(|field| field.parse().unwrap()).collect())
    };
    let dd = format!("if={}", disk.source.display());
    let count = format!("count={BLOCKS}");
    reading.stdout(&["dd", &dd, "of=/dev/null", "bs=16k", &count, "iflag=direct"]);
    wait_until("the times are there", || {
        line(&reading).is_some_and(|fields: Vec<u64>| fields[3] > 0 && fields[9] > 0)
    });
    let fields = line(&reading).unwrap();
    println!("{}: {fields:?}", disk.name);
    let blocks = u64::from(BLOCKS);
    assert!(
        fields[0] >= blocks && fields[2] >= blocks * 32,
        "{fields:?}"
    );
    // One request at a time: the disk is busy for a part of the time that they take.
    assert!(fields[8] == 0 && fields[9] <= fields[3] + 1, "{fields:?}");
    let others = line(&idle).unwrap_or_default();
    assert!(
        others.first().is_none_or(|reads| *reads < blocks),
        "{others:?}"
    );
    drop((reading, idle));
    lxcfs.stop();
}
