//! The agent as a process of its own: with nothing but the capabilities of its manifest, what
//! it tells on its listener, and runtimes that are absent, silent or hostile.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lxcfs_common::pod::AGENT_CAPABILITIES;
use lxcfs_tests::serve::eventually;
use lxcfs_tests::subject::MarkerFs;
use lxcfs_tests::{Lxcfs, Podman, lxcfs_binary, stdout_of};

const SERVER: &str = env!("CARGO_BIN_EXE_marker-fs");

/// Agents and daemons heal every container there is: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `lxcfs agent` with its listener in a directory of the test; ends with the guard.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    /// Starts it with no capability but these.
    fn start(dir: &Path, capabilities: &[&str], arguments: &[&str]) -> Self {
        let socket = dir.join("agent.sock");
        let child = confined(capabilities)
            .args(["agent", "--scan-seconds=1"])
            .arg(format!("--metrics=unix:{}", socket.display()))
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .expect("setpriv is missing: apt-get install util-linux");
        Self { child, socket }
    }

    /// Status and body of an answer; 0 while nobody listens.
    fn ask(&self, path: &str) -> (u16, String) {
        let output = Command::new("curl")
            .args(["-sS", "-w", "\n%{http_code}", "--unix-socket"])
            .arg(&self.socket)
            .arg(format!("http://agent{path}"))
            .output()
            .expect("curl is missing: apt-get install curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').unwrap_or(("", "0"));
        (code.parse().unwrap_or(0), body.to_owned())
    }

    /// A figure, labels and all before the blank; `None` while there is none.
    fn figure(&self, name: &str) -> Option<f64> {
        let (_, text) = self.ask("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line?.trim().parse().ok()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `lxcfs` with no capability but these, and no way to get others.
fn confined(capabilities: &[&str]) -> Command {
    let named = capabilities.iter().map(|name| name.to_lowercase());
    let bounds = named.fold("-all".to_owned(), |all, name| all + ",+" + &name);
    let mut setpriv = Command::new("setpriv");
    setpriv
        .args(["--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all"])
        .arg(format!("--bounding-set={bounds}"))
        .arg(lxcfs_binary());
    setpriv
}

/// Capabilities as the kernel has them: permitted and effective.
fn capabilities_of(pid: u32) -> Vec<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let masks = status.lines().filter_map(|line| {
        let mask = line
            .strip_prefix("CapPrm:")
            .or_else(|| line.strip_prefix("CapEff:"));
        u64::from_str_radix(mask?.trim(), 16).ok()
    });
    masks.collect()
}

/// The first column of the table below a heading of docs/capabilities.md.
fn documented(heading: &str) -> Vec<&'static str> {
    let text = include_str!("../../docs/capabilities.md");
    let (_, section) = text.split_once(heading).expect("the heading");
    let section = section.split("\n## ").next().unwrap_or(section);
    let rows = section.lines().filter_map(|line| line.strip_prefix("| "));
    let names = rows.filter_map(|row| row.split(' ').next());
    names.filter(|name| *name != "capability").collect()
}

/// The bits of `capabilities(7)`.
fn mask(capabilities: &[&str]) -> u64 {
    let bit = |name: &&str| match *name {
        "DAC_READ_SEARCH" => 2,
        "SYS_CHROOT" => 18,
        "SYS_PTRACE" => 19,
        "SYS_ADMIN" => 21,
        "PERFMON" => 38,
        "BPF" => 39,
        other => panic!("no number for {other}"),
    };
    capabilities.iter().map(|name| 1_u64 << bit(name)).sum()
}

fn promtool(text: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is missing: apt-get install prometheus");
    let input = promtool.stdin.as_mut().expect("piped");
    input.write_all(text.as_bytes()).expect("promtool reads");
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

#[test]
fn the_manifests_capabilities_are_enough_and_every_answer_is_right() {
    let _alone = alone();
    let dir = tempfile::TempDir::with_prefix("lxcfs-").unwrap();
    let mut server = MarkerFs::start(SERVER, &dir.path().join("fs"), "one").unwrap();
    // Its own /proc/stat stays: a file that is left alone for a reason.
    let own = dir.path().join("stat");
    std::fs::write(&own, "the container's own\n").unwrap();
    let podman = Podman::start("runc", &[&format!("-v={}:/proc/stat", own.display())]);
    let mount = format!("--mount={}", server.mountpoint.display());
    let cgroups = format!("--cgroup={}/*", podman.parent_cgroup().path());
    let arguments = [mount.as_str(), &cgroups, "--nri=off", "--docker=off"];
    let agent = Agent::start(dir.path(), &AGENT_CAPABILITIES, &arguments);

    eventually("the container's view", || {
        podman.read("/proc/meminfo").starts_with("one ")
    });
    assert_eq!(
        capabilities_of(agent.child.id()),
        [mask(&AGENT_CAPABILITIES); 2],
        "permitted and effective"
    );
    assert_eq!(podman.read("/proc/stat"), "the container's own\n");
    eventually("readiness", || agent.ask("/readyz").0 == 200);
    assert_eq!(agent.ask("/livez").0, 200);
    let kernel = "lxcfs_runtime_connected{runtime=\"kernel\"}";
    eventually("the kernel's word", || agent.figure(kernel) == Some(1.0));
    assert_eq!(agent.ask("/status").0, 404, "control is not public");
    let ok = "lxcfs_attached_total{method=\"scan\",outcome=\"ok\"}";
    eventually("the count", || agent.figure(ok) == Some(1.0));
    let left = "lxcfs_skipped_files_total{reason=\"user-mount\"}";
    assert_eq!(agent.figure(left), Some(1.0));

    // The mount dies: alive, not ready, and says which mount and why.
    server.kill().unwrap();
    drop(server);
    eventually("the loss to be noticed", || agent.ask("/readyz").0 == 503);
    assert!(agent.ask("/readyz").1.contains("proc/uptime"));
    assert_eq!(agent.ask("/livez").0, 200);
    eventually("the dead mounts to be seen", || {
        agent.figure("lxcfs_stale_mounts") > Some(0.0)
    });

    let server = MarkerFs::start(SERVER, &dir.path().join("fs"), "two").unwrap();
    eventually("the container to be healed", || {
        let read = podman.run(&["cat", "/proc/meminfo"]);
        read.stdout.starts_with(b"two ")
    });
    eventually("readiness again", || agent.ask("/readyz").0 == 200);
    eventually("the heals to be counted", || {
        let (_, text) = agent.ask("/metrics");
        text.contains("\nlxcfs_heals_total{outcome=\"replaced")
            && text.contains("\nlxcfs_stale_mounts 0\n")
    });
    let (_, text) = agent.ask("/metrics");
    for family in ["lxcfs_build_info{", "lxcfs_mount_answers 1", "process_"] {
        assert!(text.contains(family), "{family} in {text}");
    }
    promtool(&text);

    // It goes; what it gave stays.
    drop(agent);
    assert!(podman.read("/proc/meminfo").starts_with("two "));
    drop(server);
}

#[test]
fn the_agents_documented_capabilities_are_those_of_its_manifest() {
    let mut documented = documented("## The agent");
    documented.sort_unstable();
    assert_eq!(documented, AGENT_CAPABILITIES);
}

/// What a daemon tells of its features, and a container's view.
fn features(daemon: &Lxcfs) -> Vec<String> {
    let socket = daemon.runtime_dir().join("lxcfs/control.sock");
    let mut found = Vec::new();
    eventually("the control socket", || {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--unix-socket"]).arg(&socket);
        let output = curl.arg("http://lxcfs/metrics").output();
        let text = output
            .expect("curl is missing: apt-get install curl")
            .stdout;
        let text = String::from_utf8_lossy(&text).into_owned();
        found = text
            .lines()
            .filter(|line| line.starts_with("lxcfs_feature{"))
            .map(str::to_owned)
            .collect();
        !found.is_empty()
    });
    found
}

#[test]
fn the_daemons_documented_capabilities_are_enough_for_everything_it_does() {
    let _alone = alone();
    let capabilities = documented("## The daemon");
    assert!(capabilities.len() > 3, "{capabilities:?}");
    let free = Lxcfs::start::<&str>(&[]);
    let expected = features(&free);
    free.stop();
    let daemon = Lxcfs::start_by::<&str>(confined(&capabilities), &[]);
    assert_eq!(capabilities_of(daemon.pid()), [mask(&capabilities); 2]);
    assert_eq!(features(&daemon), expected);
    let podman = Podman::start("runc", &["--memory=128m"]);
    let mut attach = confined(&AGENT_CAPABILITIES);
    attach
        .args(["attach", "--pid", &podman.init_pid().to_string(), "--mount"])
        .arg(daemon.mountpoint());
    stdout_of(&mut attach);
    let meminfo = podman.read("/proc/meminfo");
    assert!(meminfo.contains("MemTotal:         131072 kB"), "{meminfo}");
    // A lost daemon's mounts are healed by the next one, as confined.
    daemon.stop();
    let next = Lxcfs::start_by::<&str>(confined(&capabilities), &[]);
    eventually("the container to be healed", || {
        let read = podman.run(&["cat", "/proc/meminfo"]);
        String::from_utf8_lossy(&read.stdout).contains("131072 kB")
    });
    next.stop();
}

#[test]
fn a_capability_less_is_a_failure_with_a_reason_and_the_container_runs_on() {
    let _alone = alone();
    let dir = tempfile::TempDir::with_prefix("lxcfs-").unwrap();
    let server = MarkerFs::start(SERVER, &dir.path().join("fs"), "one").unwrap();
    let podman = Podman::start("runc", &[]);
    let mount = format!("--mount={}", server.mountpoint.display());
    let cgroups = format!("--cgroup={}/*", podman.parent_cgroup().path());
    let arguments = [mount.as_str(), &cgroups, "--nri=off", "--docker=off"];
    for missing in ["SYS_ADMIN", "SYS_CHROOT"] {
        let kept = AGENT_CAPABILITIES.into_iter();
        let kept: Vec<&str> = kept.filter(|name| *name != missing).collect();
        assert!(kept.len() < AGENT_CAPABILITIES.len());
        let below = dir.path().join(missing);
        std::fs::create_dir(&below).unwrap();
        let agent = Agent::start(&below, &kept, &arguments);
        eventually("the failure to be counted", || {
            let (_, text) = agent.ask("/metrics");
            text.contains("lxcfs_attach_failures_total{reason=\"")
        });
        assert_eq!(agent.ask("/livez").0, 200, "without {missing}");
        assert!(podman.read("/proc/meminfo").starts_with("MemTotal"));
    }
}

#[test]
fn runtimes_that_are_absent_silent_or_hostile_are_counted_and_cost_nothing() {
    let _alone = alone();
    let dir = tempfile::TempDir::with_prefix("lxcfs-").unwrap();
    let server = MarkerFs::start(SERVER, &dir.path().join("fs"), "one").unwrap();
    let nri = dir.path().join("nri.sock");
    let listener = UnixListener::bind(&nri).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A frame of our own length and no sense, and then whatever comes.
            let _ = stream.write_all(&[0xff; 4096]);
            let _ = stream.read(&mut [0; 4096]);
        }
    });
    let podman = Podman::start("runc", &[]);
    let cgroups = format!("--cgroup={}/*", podman.parent_cgroup().path());
    let mount = format!("--mount={}", server.mountpoint.display());
    let nri = format!("--nri={}", nri.display());
    let docker = format!("--docker={}", dir.path().join("none.sock").display());
    let arguments = [mount.as_str(), &cgroups, &nri, &docker];
    let agent = Agent::start(dir.path(), &AGENT_CAPABILITIES, &arguments);

    eventually("the hostile runtime to be left, more than once", || {
        let (_, text) = agent.ask("/metrics");
        let failures = text.lines().filter_map(|line| {
            let line = line.strip_prefix("lxcfs_runtime_failures_total{runtime=\"nri\"")?;
            line.rsplit_once(' ')?.1.parse::<u64>().ok()
        });
        failures.sum::<u64>() > 1
    });
    let absent = "lxcfs_runtime_failures_total{runtime=\"docker\",reason=\"absent\"}";
    assert!(
        agent.figure(absent) > Some(0.0),
        "{:?}",
        agent.ask("/metrics")
    );
    for runtime in ["nri", "docker"] {
        let connected = format!("lxcfs_runtime_connected{{runtime=\"{runtime}\"}}");
        assert_eq!(agent.figure(&connected), Some(0.0));
    }
    // The scan does what the runtimes do not.
    eventually("the container's view", || {
        podman.read("/proc/meminfo").starts_with("one ")
    });
    assert_eq!(agent.ask("/livez").0, 200);
    assert_eq!(agent.ask("/readyz").0, 200);
    let text = stdout_of(
        Command::new("curl")
            .args(["-sS", "--unix-socket"])
            .args([agent.socket.as_os_str(), "http://agent/metrics".as_ref()]),
    );
    promtool(&text);
}
