//! The sources on real cgroups and namespaces: who a caller is, what limits it, what it uses,
//! and what is left when it goes.
// vm: all/v2
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lxcfs_common::catalogue::{Node, by_path, cpu_ino, node};
use lxcfs_tests::container::Shape;
use lxcfs_tests::{Burner, Container, TestCgroup};
use lxcfs_user::collect::explain::Whom;
use lxcfs_user::collect::live::{LiveEngine, LiveOptions};
use lxcfs_user::container::boundary::Rule;
use lxcfs_user::container::resolve::{Caller, View};
use lxcfs_user::engine::{AnswerError, Caller as Asking, Engine as _};
use lxcfs_user::fallback::Fallback;
use lxcfs_user::policy::{BoundaryPolicy, ViewPolicy};
use lxcfs_user::snapshot::{Controller, Inputs, Origin, Snapshot};
use lxcfs_user::units::{Bytes, Limit};

const MIB: u64 = 1 << 20;

fn engine() -> Arc<LiveEngine> {
    engine_with(BoundaryPolicy::Auto)
}

/// Without sharing of answers, so that every read is a new one.
fn engine_with(boundary: BoundaryPolicy) -> Arc<LiveEngine> {
    lxcfs_tests::require_root();
    let options = LiveOptions {
        policy: ViewPolicy {
            boundary,
            ..ViewPolicy::default()
        },
        ttl: Duration::ZERO,
        ..LiveOptions::default()
    };
    let engine = LiveEngine::start(&options).unwrap_or_else(|error| panic!("{error}"));
    Arc::new(engine)
}

/// A container without any of our files, with or without a cgroup namespace.
fn container(cgroup: &TestCgroup, cgroup_namespace: bool) -> Container {
    let shape = Shape {
        cgroup_namespace,
        user_namespace: false,
        files: Vec::new(),
    };
    Container::start(cgroup, Path::new("/"), &shape)
}

fn file(path: &str) -> Node {
    Node::Fixed(by_path(path).unwrap())
}

fn asking(tid: u32) -> Asking {
    Asking { tid, uid: 0 }
}

fn seen(engine: &LiveEngine, pid: u32) -> Caller {
    match engine.resolver().resolve(pid).unwrap() {
        View::Container(caller) => caller,
        View::Host => panic!("{pid} is taken for a process of the host"),
    }
}

fn snapshot(engine: &LiveEngine, pid: u32) -> Snapshot {
    engine.full_snapshot(&seen(engine, pid)).unwrap()
}

fn read(engine: &LiveEngine, pid: u32, path: &str) -> Result<String, AnswerError> {
    let mut out = Vec::new();
    engine.render(asking(pid), file(path), &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

/// The number in a line of meminfo, in KiB.
fn kib(meminfo: &str, name: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in {meminfo}"))
}

fn decided(origin: Origin) -> (u16, &'static str) {
    match origin {
        Origin::Cgroup {
            levels_up, file, ..
        } => (levels_up, file),
        other => panic!("{other:?}"),
    }
}

/// A sleeping process in `cgroup`, ended with the guard.
struct Sleeper(Child);

impl Sleeper {
    fn start(cgroup: &TestCgroup) -> Self {
        let child = Command::new("sleep").arg("infinity").spawn().unwrap();
        cgroup.add(child.id());
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cgroup that a container makes for itself: in every hierarchy, without enabling any v2
/// controller, which the kernel forbids while its parent holds processes.
struct Sub(Vec<PathBuf>);

impl Sub {
    fn new(parents: &[PathBuf], name: &str) -> Self {
        let make = |parent: &PathBuf| {
            let path = parent.join(name);
            fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            // A fresh v1 cpuset takes no process until it has both.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(text) = fs::read_to_string(parent.join(file))
                    && !text.trim().is_empty()
                    && path.join(file).exists()
                {
                    fs::write(path.join(file), text.trim()).unwrap();
                }
            }
            path
        };
        Self(parents.iter().map(make).collect())
    }

    fn add(&self, pid: u32) {
        for path in &self.0 {
            fs::write(path.join("cgroup.procs"), pid.to_string()).unwrap();
        }
    }
}

impl Drop for Sub {
    fn drop(&mut self) {
        for path in &self.0 {
            // Busy until the last process has been reaped.
            for _ in 0..100 {
                if fs::remove_dir(path).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

#[test]
fn a_container_is_the_root_of_its_cgroup_namespace() {
    let engine = engine();
    let cgroup = TestCgroup::new("cgroupns");
    cgroup.limit_memory(64 * MIB);
    let inside = container(&cgroup, true);
    let caller = seen(&engine, inside.init_pid());
    assert_eq!(caller.container.rule, Rule::CgroupNamespace);
    assert_eq!(caller.container.path(), cgroup.path());
    let memory = snapshot(&engine, inside.init_pid()).memory.unwrap();
    assert_eq!(memory.limit.value, Limit::Value(Bytes(64 * MIB)));
    assert_eq!(decided(memory.limit.origin).0, 0);
    let meminfo = read(&engine, inside.init_pid(), "proc/meminfo").unwrap();
    assert_eq!(kib(&meminfo, "MemTotal"), 64 * 1024);
    assert!(kib(&meminfo, "MemFree") <= kib(&meminfo, "MemTotal"));
    // Nothing was guessed on the way.
    assert_eq!(engine.fallbacks().get(Fallback::CgroupnsUnknown), 0);
}

#[test]
fn a_process_deeper_in_the_namespace_has_the_same_container() {
    let engine = engine();
    let cgroup = TestCgroup::new("deeper");
    let inside = container(&cgroup, true);
    let child = Sub::new(&cgroup.dirs(), "service");
    // A process of the container in a cgroup of its own, as systemd inside makes them.
    let name = format!("{}-marker", cgroup.path().replace('/', "_"));
    let mut service = Command::new("nsenter")
        .args(["--target", &inside.init_pid().to_string()])
        .args(["--pid", "--cgroup", "--", "sh", "-c", "read end", &name])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child_named(&name);
    child.add(pid);
    let caller = seen(&engine, pid);
    assert_eq!(caller.container.path(), cgroup.path());
    assert_eq!(
        caller.container.key,
        seen(&engine, inside.init_pid()).container.key
    );
    drop(inside);
    let _ = service.kill();
    let _ = service.wait();
}

/// The process whose command line ends in `name`, inside the PID namespace it was put into.
fn child_named(name: &str) -> u32 {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < Duration::from_secs(60), "no {name}");
        let found = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let is_shell =
                line.starts_with(b"sh\0") && line.ends_with(format!("{name}\0").as_bytes());
            is_shell.then_some(pid)
        });
        if let Some(pid) = found {
            return pid;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn without_a_cgroup_namespace_the_pid_namespace_decides() {
    let engine = engine();
    let cgroup = TestCgroup::new("pidns");
    let inside = container(&cgroup, false);
    let caller = seen(&engine, inside.init_pid());
    assert_eq!(caller.container.rule, Rule::PidNamespace);
    assert_eq!(caller.container.path(), cgroup.path());
    let tasks = snapshot(&engine, inside.init_pid()).tasks.unwrap();
    // As the container counts: its init, or what its init started.
    assert!(tasks.newest_pid.is_some_and(|pid| pid < 100), "{tasks:?}");
    let named = engine_with(BoundaryPolicy::Runtime);
    let resolved = named.resolver().resolve(inside.init_pid()).unwrap();
    assert!(matches!(resolved, View::Host), "{resolved:?}");
}

#[test]
fn a_runtimes_name_is_enough_without_any_namespace() {
    let engine = engine();
    let parent = TestCgroup::new("docker");
    let cgroup = parent.child(&"0123456789abcdef".repeat(4));
    let sub = cgroup.child("sub");
    let process = Sleeper::start(&sub);
    let caller = seen(&engine, process.pid());
    assert!(matches!(caller.container.rule, Rule::RuntimeName(_)));
    assert_eq!(caller.container.path(), cgroup.path());
    let explained = engine
        .explain(Whom::Pid(process.pid()), file("proc/meminfo"))
        .unwrap();
    assert!(explained.rule.contains("named by its runtime"));
    assert!(!explained.lines.is_empty());
    drop(process);
    drop(sub);
}

#[test]
fn the_host_gets_its_own_text_byte_for_byte() {
    let engine = engine();
    let own = std::process::id();
    assert!(matches!(engine.resolver().resolve(own), Ok(View::Host)));
    for path in [
        "proc/swaps",
        "proc/slabinfo",
        "sys/devices/system/cpu/online",
    ] {
        let text = read(&engine, own, path).unwrap();
        let kernel = fs::read_to_string(Path::new("/").join(path)).unwrap();
        // slabinfo counts while it is read; its heading does not.
        assert_eq!(text.lines().next(), kernel.lines().next(), "{path}");
        if path != "proc/slabinfo" {
            assert_eq!(text, kernel, "{path}");
        }
    }
    let topology = node(cpu_ino(0, 2).unwrap()).unwrap();
    let mut out = Vec::new();
    engine.render(asking(own), topology, &mut out).unwrap();
    let kernel = fs::read("/sys/devices/system/cpu/cpu0/topology/core_id").unwrap();
    assert_eq!(out, kernel);
}

#[test]
fn a_parents_limit_and_its_siblings_use_count() {
    let engine = engine();
    let pod = TestCgroup::new("pod");
    pod.limit_memory(96 * MIB);
    let cgroup = pod.child("one");
    let sibling = pod.child("two");
    cgroup.limit_memory(80 * MIB);
    let inside = container(&cgroup, true);
    let before = snapshot(&engine, inside.init_pid()).memory.unwrap();
    assert_eq!(before.limit.value, Limit::Value(Bytes(80 * MIB)));
    // 64 MiB of the sibling's leave less than the container's own limit.
    let mut eater = Command::new("sh")
        .args([
            "-c",
            "read go; head -c 64M /dev/zero | tail -c 64M | { read x; }; :",
        ])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    sibling.add(eater.id());
    drop(eater.stdin.take());
    let start = Instant::now();
    loop {
        let memory = snapshot(&engine, inside.init_pid()).memory.unwrap();
        let headroom = memory.headroom.unwrap();
        if decided(headroom.origin).0 == 1 && headroom.value.0 < 60 * MIB {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "{headroom:?}");
        if eater.try_wait().unwrap().is_some() {
            eater = Command::new("sh")
                .args([
                    "-c",
                    "head -c 64M /dev/zero | tail -c 64M >/dev/null; sleep 1",
                ])
                .spawn()
                .unwrap();
            sibling.add(eater.id());
        }
    }
    let _ = eater.kill();
    let _ = eater.wait();
    pod.limit_memory(72 * MIB);
    let after = snapshot(&engine, inside.init_pid()).memory.unwrap();
    assert_eq!(after.limit.value, Limit::Value(Bytes(72 * MIB)));
    assert_eq!(decided(after.limit.origin).0, 1);
    drop(inside);
}

#[test]
fn a_limit_changed_underneath_shows_at_the_next_read() {
    let engine = engine();
    let cgroup = TestCgroup::new("resize");
    let inside = container(&cgroup, true);
    for mib in [64, 48, 80] {
        cgroup.limit_memory(mib * MIB);
        let meminfo = read(&engine, inside.init_pid(), "proc/meminfo").unwrap();
        assert_eq!(kib(&meminfo, "MemTotal"), mib * 1024);
    }
    cgroup.limit_cpu(50_000, 100_000);
    cgroup.confine_cpus("0");
    let cpus = snapshot(&engine, inside.init_pid()).cpus.unwrap();
    assert_eq!(cpus.effective.value.to_string(), "0");
    assert_eq!(cpus.quota.unwrap().value.quota.0, 50_000);
    assert_eq!(
        read(&engine, inside.init_pid(), "sys/devices/system/cpu/online").unwrap(),
        "0\n"
    );
    assert_eq!(
        engine
            .visible_cpus(asking(inside.init_pid()))
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn cpu_time_is_the_containers_and_on_the_cpu_it_burnt() {
    let engine = engine();
    let cgroup = TestCgroup::new("burn");
    let inside = container(&cgroup, true);
    let child = Sub::new(&cgroup.dirs(), "deep");
    let time = || snapshot(&engine, inside.init_pid()).cpu_time.unwrap();
    let before = time();
    let burner = Burner::start(&cgroup, Some(1));
    child.add(burner.pid());
    let start = Instant::now();
    while time().usage.less(before.usage).0 < 300_000_000 {
        assert!(start.elapsed() < Duration::from_secs(120), "nothing burnt");
        std::thread::sleep(Duration::from_millis(50));
    }
    let after = time();
    assert_eq!(after.user.plus(after.system), after.usage);
    // Where the kernel tells CPUs apart (v1; v2 with eBPF), it was CPU 1.
    if let (Some(before), Some(after)) = (before.per_cpu, after.per_cpu) {
        let used = |cpu: u32| {
            let of = |rows: &[lxcfs_user::snapshot::PerCpuTime]| {
                let row = rows.iter().find(|row| row.cpu == cpu);
                row.map_or(0, |row| row.user.plus(row.system).0)
            };
            of(&after) - of(&before)
        };
        assert!(used(1) > 10 * used(0), "{} and {}", used(0), used(1));
    }
    let stat = read(&engine, inside.init_pid(), "proc/stat").unwrap();
    assert!(stat.starts_with("cpu  "), "{stat}");
    drop(burner);
    drop(child);
}

#[test]
fn tasks_are_counted_at_any_depth() {
    let engine = engine();
    let top = TestCgroup::new("depth");
    let inside = container(&top, true);
    let mut levels = vec![Sub::new(&top.dirs(), "1")];
    for name in ["2", "3", "4", "5"] {
        let next = Sub::new(&levels.last().unwrap().0, name);
        levels.push(next);
    }
    let burners = [4, 1].map(|level: usize| {
        let burner = Burner::start(&top, None);
        levels[level].add(burner.pid());
        burner
    });
    let start = Instant::now();
    loop {
        let tasks = snapshot(&engine, inside.init_pid()).tasks.unwrap();
        if tasks.running >= 2 {
            assert!(tasks.threads >= 3, "{tasks:?}");
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{tasks:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    // The first read is a real sample, not zeros.
    let fresh = self::engine();
    let loadavg = read(&fresh, inside.init_pid(), "proc/loadavg").unwrap();
    let first: f64 = loadavg.split(' ').next().unwrap().parse().unwrap();
    assert!(first >= 0.5, "{loadavg}");
    drop(burners);
    while let Some(level) = levels.pop() {
        drop(level);
    }
}

#[test]
fn a_caller_that_moves_is_seen_where_it_is() {
    let engine = engine();
    let parent = TestCgroup::new("move");
    let [one, two] = ["a", "b"].map(|digit| parent.child(&digit.repeat(64)));
    let process = Sleeper::start(&one);
    let path = |pid| seen(&engine, pid).container.path().to_owned();
    assert_eq!(path(process.pid()), one.path());
    assert_eq!(path(process.pid()), one.path());
    two.add(process.pid());
    assert_eq!(path(process.pid()), two.path());
    drop(process);
}

#[test]
fn a_vanished_cgroup_is_an_error_and_never_the_host() {
    let engine = engine();
    let parent = TestCgroup::new("gone");
    let name = "c".repeat(64);
    let cgroup = parent.child(&name);
    cgroup.limit_memory(40 * MIB);
    let process = Sleeper::start(&cgroup);
    let pid = process.pid();
    let caller = seen(&engine, pid);
    drop(process);
    drop(cgroup);
    let error = engine.full_snapshot(&caller).unwrap_err();
    assert!(matches!(error, AnswerError::Gone { .. }), "{error}");
    let error = read(&engine, pid, "proc/meminfo").unwrap_err();
    assert!(matches!(error, AnswerError::Caller { .. }), "{error}");
    // Another cgroup of the same name is another container.
    let again = parent.child(&name);
    again.limit_memory(56 * MIB);
    let process = Sleeper::start(&again);
    let meminfo = read(&engine, process.pid(), "proc/meminfo").unwrap();
    assert_eq!(kib(&meminfo, "MemTotal"), 56 * 1024);
    assert_ne!(
        seen(&engine, process.pid()).container.key,
        caller.container.key
    );
    drop(process);
}

#[test]
fn what_is_gone_is_let_go() {
    let engine = engine();
    let parent = TestCgroup::new("sweep");
    let baseline = engine.resolver().cgroups().reader.descriptors();
    {
        let cgroups: Vec<_> = (0..20)
            .map(|n| parent.child(&format!("{n:064x}")))
            .collect();
        let processes: Vec<_> = cgroups.iter().map(Sleeper::start).collect();
        for process in &processes {
            read(&engine, process.pid(), "proc/meminfo").unwrap();
        }
        assert_eq!(engine.resolver().sizes()[2], 20);
    }
    let gone = engine.resolver().sweep(1);
    assert_eq!(gone.len(), 20);
    engine.collector().store.forget(&gone);
    assert_eq!(engine.resolver().sizes()[2], 0);
    assert!(engine.collector().store.is_empty());
    for _ in 0..10 {
        engine.resolver().sweep(1);
    }
    let now = engine.resolver().cgroups().reader.descriptors();
    assert!(now <= baseline + 2, "{now} of {baseline}");
}

#[test]
fn what_is_told_to_be_gone_is_looked_for_at_once() {
    let engine = engine();
    let parent = TestCgroup::new("told");
    let cgroup = parent.child(&format!("{:064x}", 7));
    let process = Sleeper::start(&cgroup);
    let container = seen(&engine, process.pid()).container;
    let resolver = engine.resolver();
    assert!(resolver.wants_sweep(1), "nobody tells");
    resolver.expect_removals();
    assert!(!resolver.wants_sweep(1));
    // Of some other hierarchy's or no container's cgroup nobody here knows anything.
    resolver.note_removed(u64::MAX);
    assert!(!resolver.wants_sweep(1));
    resolver.note_removed(container.key.inode);
    assert!(resolver.wants_sweep(1));
    assert!(!resolver.wants_sweep(1), "once");
    assert!(resolver.wants_sweep(60), "what was not told");
}

/// Nested directories in one hierarchy only, removed innermost first.
struct Deep(Vec<PathBuf>);

impl Deep {
    fn new(top: &Path, levels: usize) -> Self {
        let mut deep = Self(Vec::new());
        let mut path = top.to_owned();
        for _ in 0..levels {
            path.push("n");
            fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            deep.0.push(path.clone());
        }
        deep
    }
}

impl Drop for Deep {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            let _ = fs::remove_dir(path);
        }
    }
}

#[test]
fn two_thousand_nested_cgroups_are_served() {
    let engine = engine();
    let top = TestCgroup::new("nest");
    top.limit_cpu(150_000, 100_000);
    // Two bytes a level: PATH_MAX holds no more than these.
    let levels = (4000 - top.dir("cpu").as_os_str().len()) / 2;
    let deep = Deep::new(&top.dir("cpu"), levels.min(2000));
    assert!(deep.0.len() > 1900, "{}", deep.0.len());
    let bottom = deep.0.last().unwrap();
    let relative = bottom.strip_prefix(top.dir("cpu")).unwrap();
    let path = format!("{}/{}", top.path(), relative.display());
    let caller = Caller {
        container: engine.resolver().container_at(&path).unwrap(),
        timens_offset: 0,
    };
    for _ in 0..2 {
        let snapshot = engine
            .collector()
            .snapshot(&caller, Inputs::CPUS, &engine.policy())
            .unwrap();
        let quota = snapshot.cpus.unwrap().quota.unwrap();
        assert_eq!(quota.value.quota.0, 150_000);
        assert_eq!(usize::from(decided(quota.origin).0), deep.0.len());
    }
}

#[test]
fn a_time_namespace_moves_what_its_callers_see() {
    let engine = engine();
    let parent = TestCgroup::new("timens");
    let cgroup = parent.child(&"d".repeat(64));
    let mut unshare = Command::new("unshare")
        .args(["--time", "--boottime", "1000", "--fork", "--kill-child"])
        .args(["sh", "-c", "read end", "timens-marker"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child_named("timens-marker");
    cgroup.add(pid);
    let caller = seen(&engine, pid);
    assert_eq!(caller.timens_offset, 1_000_000_000_000);
    let age = engine.full_snapshot(&caller).unwrap().age.unwrap();
    assert!(age.start <= age.now);
    let _ = unshare.kill();
    let _ = unshare.wait();
}

#[test]
fn threads_that_lead_no_process_are_told_too() {
    let engine = engine();
    let tid = std::thread::spawn(move || {
        let tid = nix::unistd::gettid().as_raw() as u32;
        assert!(matches!(engine.resolver().resolve(tid), Ok(View::Host)));
        assert!(matches!(engine.resolver().resolve(tid), Ok(View::Host)));
        tid
    })
    .join()
    .unwrap();
    let engine = self::engine();
    let error = engine.resolver().resolve(tid).unwrap_err();
    assert!(matches!(error, AnswerError::Caller { .. }), "{error}");
    let error = engine.resolver().resolve(0).unwrap_err();
    assert!(error.to_string().contains("PID namespace"), "{error}");
}

#[test]
fn every_controller_says_where_the_container_is() {
    let engine = engine();
    let cgroup = TestCgroup::new("where");
    let inside = container(&cgroup, true);
    let explained = engine
        .explain(Whom::Pid(inside.init_pid()), file("proc/uptime"))
        .unwrap();
    assert!(explained.rule.contains("cgroup namespace"));
    for controller in [Controller::Memory, Controller::Cpu, Controller::Cpuset] {
        let found = explained.cgroups.iter().find(|(c, _)| *c == controller);
        assert_eq!(found.map(|(_, path)| path.as_str()), Some(cgroup.path()));
    }
    let by_path = engine
        .explain(Whom::Cgroup(cgroup.path()), file("proc/meminfo"))
        .unwrap();
    assert_eq!(by_path.rule, Rule::Given.to_string());
    let directory = cgroup.dir("memory");
    let by_directory = engine
        .explain(
            Whom::Cgroup(directory.to_str().unwrap()),
            file("proc/meminfo"),
        )
        .unwrap();
    assert_eq!(by_directory.container.unwrap().path(), cgroup.path());
}

#[test]
fn a_container_without_a_process_gets_its_start_with_the_first_one() {
    let engine = engine();
    let cgroup = TestCgroup::new("empty");
    let origin = || {
        let whom = Whom::Cgroup(cgroup.path());
        let explained = engine.explain(whom, file("proc/uptime")).unwrap();
        explained.lines[0].origin
    };
    assert!(matches!(origin(), Origin::Unavailable(_)), "{:?}", origin());
    let inside = container(&cgroup, true);
    assert!(matches!(origin(), Origin::Host(_)), "{:?}", origin());
    drop(inside);
}
