//! Docker's containers get their views by events: started before the agent and after,
//! across restarts of the daemon, the agent and dockerd.

use std::path::Path;
use std::time::{Duration, Instant};

use lxcfs_tests::Lxcfs;
use lxcfs_tests::docker::Docker;
use lxcfs_tests::subject::MarkerFs;
use lxcfs_user::agent::{Agent, AgentOptions};

const SERVER: &str = env!("CARGO_BIN_EXE_marker-fs");
const ASK: &str = "--label=lxcfs/inject=true";

fn agent(docker: &Docker, mountpoint: &Path) -> Agent {
    Agent::start(options(docker, mountpoint)).expect("threads")
}

fn options(docker: &Docker, mountpoint: &Path) -> AgentOptions {
    AgentOptions {
        mountpoint: mountpoint.to_owned(),
        host_mountpoint: mountpoint.to_owned(),
        docker: Some(docker.socket()),
        nri: None,
        // Other containers of this machine are none of this test's business.
        scan_interval: None,
        reconnect: Duration::from_millis(200),
        ..AgentOptions::default()
    }
}

/// Waits until the container reads `text` there; attaching after an event takes a moment.
fn reads(docker: &Docker, name: &str, file: &str, text: &str) {
    let began = Instant::now();
    loop {
        // Until it is healed, a read may fail.
        let mut cat = docker.docker(&["exec", name, "/bin/busybox", "cat", file]);
        let output = cat.output().map(|output| output.stdout).unwrap_or_default();
        let found = String::from_utf8_lossy(&output).into_owned();
        if found.starts_with(text) {
            return;
        }
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{name} still reads {found:?} and not {text:?} in {file}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn containers_are_served_in_any_order_of_starts_and_restarts() {
    let dir = tempfile::TempDir::with_prefix("lxcfs-").unwrap();
    let mut docker = Docker::new();
    docker.run("before", &[ASK]);
    docker.run("silent", &[]);
    let mut server = MarkerFs::start(SERVER, &dir.path().join("fs"), "one").unwrap();
    let first = agent(&docker, &server.mountpoint);

    reads(&docker, "before", "/proc/meminfo", "one ");
    docker.run("after", &[ASK, "--label=lxcfs/files=uptime,pressure"]);
    reads(&docker, "after", "/proc/uptime", "one ");
    reads(&docker, "after", "/proc/pressure/io", "one ");
    assert!(
        docker
            .read("after", "/proc/meminfo")
            .starts_with("MemTotal")
    );
    assert!(
        docker
            .read("silent", "/proc/meminfo")
            .starts_with("MemTotal")
    );

    // A restarted container is a new one for the kernel.
    let restart = docker.docker(&["restart", "-t", "0", "before"]).output();
    assert!(restart.unwrap().status.success());
    reads(&docker, "before", "/proc/meminfo", "one ");

    // The daemon is lost and comes back while no agent runs.
    drop(first);
    server.kill().unwrap();
    drop(server);
    docker.run("during", &[ASK]);
    assert!(
        docker
            .read("during", "/proc/meminfo")
            .starts_with("MemTotal")
    );
    let server = MarkerFs::start(SERVER, &dir.path().join("fs"), "two").unwrap();
    let second = agent(&docker, &server.mountpoint);
    for name in ["before", "during"] {
        reads(&docker, name, "/proc/meminfo", "two ");
    }
    reads(&docker, "after", "/proc/uptime", "two ");

    // dockerd goes away and comes back: the agent finds it again.
    docker.stop();
    docker.start();
    docker.run("again", &[ASK]);
    reads(&docker, "again", "/proc/stat", "two ");
    assert!(second.has_docker());
    drop(second);
}

/// The lines of the README, as a user copies them: every volume and every limit.
#[test]
fn the_readmes_docker_run_gives_a_container_its_own_values() {
    let readme = include_str!("../../README.md");
    let (_, lines) = readme.split_once("docker run -it ").expect("the example");
    let (lines, _) = lines
        .split_once("  debian bash")
        .expect("the example's end");
    // The other tests' dead mounts are theirs to heal.
    let daemon = Lxcfs::start(&["--no-heal"]);
    let mountpoint = daemon.mountpoint().display().to_string();
    let words = lines.replace("/var/lib/lxcfs", &mountpoint);
    let words: Vec<&str> = words
        .split_whitespace()
        .filter(|word| *word != "\\")
        .collect();
    assert!(
        words.iter().filter(|word| **word == "-v").count() > 7,
        "{words:?}"
    );
    let docker = Docker::new();
    docker.run("readme", &words);
    let meminfo = docker.read("readme", "/proc/meminfo");
    assert!(meminfo.contains("MemTotal:         262144 kB"), "{meminfo}");
    // 1.5 CPUs are two.
    let cpus = docker.read("readme", "/proc/cpuinfo");
    assert_eq!(cpus.matches("processor\t:").count(), 2, "{cpus}");
    assert_eq!(
        docker.read("readme", "/sys/devices/system/cpu/online"),
        "0-1\n"
    );
    let stat = docker.read("readme", "/proc/stat");
    assert!(
        stat.contains("\ncpu1 ") && !stat.contains("\ncpu2 "),
        "{stat}"
    );
    let uptime = docker.read("readme", "/proc/uptime");
    let up: f64 = uptime
        .split(' ')
        .next()
        .and_then(|text| text.parse().ok())
        .expect("seconds");
    assert!(up < 600.0, "{uptime}");
}

/// Reads in a container until its guard is asked; a failed read leaves a trace.
struct Reading<'a>(&'a Docker, &'a str);

impl<'a> Reading<'a> {
    fn start(docker: &'a Docker, name: &'a str) -> Self {
        let script = "while :; do for f in meminfo stat uptime loadavg vmstat; do \
                      /bin/busybox cat /proc/$f >/read || echo $f >>/failed; done; \
                      echo >>/rounds; done";
        let mut exec = docker.docker(&["exec", "-d", name, "/bin/busybox", "sh", "-c", script]);
        lxcfs_tests::stdout_of(&mut exec);
        Self(docker, name)
    }

    fn rounds(&self) -> usize {
        let mut cat = self
            .0
            .docker(&["exec", self.1, "/bin/busybox", "cat", "/rounds"]);
        cat.output().map_or(0, |output| output.stdout.len())
    }

    /// Waits for so many further rounds, and for no failed read so far.
    fn more(&self, rounds: usize) {
        let before = self.rounds();
        lxcfs_tests::serve::eventually("readers to go on", || self.rounds() > before + rounds);
        let script = [
            "exec",
            self.1,
            "/bin/busybox",
            "sh",
            "-c",
            "[ ! -e /failed ]",
        ];
        lxcfs_tests::stdout_of(&mut self.0.docker(&script));
    }
}

fn workers_of(holder: u32) -> Vec<i32> {
    let children = format!("/proc/{holder}/task/{holder}/children");
    let children = std::fs::read_to_string(children).expect("the holder runs");
    children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

#[test]
fn readers_in_containers_never_fail_while_workers_and_the_agent_come_and_go() {
    let docker = Docker::new();
    docker.run("before", &[ASK, "-m", "128m"]);
    let daemon = Lxcfs::start::<&str>(&["--no-heal"]);
    let first = agent(&docker, &daemon.mountpoint());
    let own = "MemTotal:         131072 kB";
    reads(&docker, "before", "/proc/meminfo", own);
    let reading = Reading::start(&docker, "before");
    reading.more(3);

    // Workers are killed, all at once, and a container starts meanwhile.
    for pid in workers_of(daemon.pid()) {
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
    docker.run("during", &[ASK, "-m", "128m"]);
    reads(&docker, "during", "/proc/meminfo", own);
    let second = Reading::start(&docker, "during");
    reading.more(3);

    // The agent goes and comes; then the worker is replaced by the binary on disk.
    drop(first);
    reading.more(3);
    let agent = agent(&docker, &daemon.mountpoint());
    daemon.signal(nix::sys::signal::Signal::SIGUSR1);
    docker.run("after", &[ASK, "-m", "128m"]);
    reads(&docker, "after", "/proc/meminfo", own);
    reading.more(3);
    second.more(3);
    drop(agent);
}

#[test]
fn a_label_chooses_the_rule_for_a_containers_cpus_and_workers_do_not_forget_it() {
    let docker = Docker::new();
    docker.run("quota", &[ASK, "--cpus=0.5"]);
    docker.run(
        "host",
        &[ASK, "-m", "128m", "--cpus=0.5", "--label=lxcfs/cpus=host"],
    );
    docker.run("wrong", &[ASK, "--cpus=0.5", "--label=lxcfs/cpus=four"]);
    let daemon = Lxcfs::start::<&str>(&["--no-heal"]);
    let options = AgentOptions {
        control: daemon.runtime_dir().join("lxcfs/holder.sock"),
        ..options(&docker, &daemon.mountpoint())
    };
    let agent = Agent::start(options).expect("threads");
    reads(&docker, "quota", "/sys/devices/system/cpu/online", "0\n");
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    assert_ne!(online, "0\n", "this test needs a machine with two CPUs");
    reads(&docker, "wrong", "/sys/devices/system/cpu/online", "0\n");
    let as_many = |name: &str| {
        let text = docker.read(name, "/proc/cpuinfo");
        text.matches("processor\t:").count()
    };
    let all = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let all = all.matches("processor\t:").count();
    let own = "MemTotal:         131072 kB";
    reads(&docker, "host", "/proc/meminfo", own);
    assert_eq!(
        docker.read("host", "/sys/devices/system/cpu/online"),
        online
    );
    assert_eq!((as_many("quota"), as_many("host")), (1, all));

    for pid in workers_of(daemon.pid()) {
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
    assert_eq!((as_many("quota"), as_many("host")), (1, all));
    drop(agent);
}
