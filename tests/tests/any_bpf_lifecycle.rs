//! The eBPF collector starting and stopping: what it leaves behind, which rights it needs,
//! what is off under which circumstances, and that the sampler's averages are the kernel's.
//!
//! The tests fork, so they run one at a time whatever the harness does.
// vm: all/v2

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lxcfs_tests::lifecycle::kill_reload_upgrade_and_stop;
use lxcfs_tests::scratch::{Cgroup, Child, Work, collector_with, state_of, wait_until};
use lxcfs_user::bpf::{Collector, Feature, FeatureState, Options, Sampler};

/// One test at a time: a fork copies only the calling thread, and locks that others hold.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ids of the programs and maps this process holds, as `prog 12` and `map 7`.
fn held() -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for entry in std::fs::read_dir("/proc/self/fdinfo")
        .expect("fdinfo")
        .flatten()
    {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match (words.next(), words.next()) {
                (Some("prog_id:"), Some(id)) => ids.insert(format!("prog {id}")),
                (Some("map_id:"), Some(id)) => ids.insert(format!("map {id}")),
                _ => false,
            };
        }
    }
    ids
}

/// Whether the kernel still has the program or map (`BPF_*_GET_FD_BY_ID`).
fn exists(id: &str) -> bool {
    let (kind, number) = id.split_once(' ').expect("kind and number");
    let command: libc::c_long = if kind == "prog" { 13 } else { 14 };
    let attributes: [u32; 3] = [number.parse().expect("an id"), 0, 0];
    // SAFETY: the kernel reads the three words; a descriptor it returns is closed here.
    unsafe {
        let length = size_of_val(&attributes);
        let fd = libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), length);
        if fd < 0 {
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{id}: {error}");
            return false;
        }
        libc::close(i32::try_from(fd).expect("a descriptor"));
    }
    true
}

/// Runs `work` in a forked process and returns what it wrote. The process ends with it.
fn in_child(work: impl FnOnce(&mut File)) -> (libc::pid_t, File) {
    let mut fds = [0; 2];
    // SAFETY: the array has room for both descriptors.
    assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    // SAFETY: the kernel just made both for us.
    let (reader, mut writer) = unsafe { (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])) };
    // SAFETY: `alone` keeps other tests from holding locks now.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        drop(reader);
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&mut writer)));
        drop(writer);
        // SAFETY: ends only this process.
        unsafe { libc::_exit(i32::from(worked.is_err())) }
    }
    (pid, reader)
}

fn wait_for(pid: libc::pid_t) {
    // SAFETY: our own child; a null status pointer is allowed.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
}

fn output_of(work: impl FnOnce(&mut File)) -> String {
    let (pid, mut reader) = in_child(work);
    let mut text = String::new();
    reader
        .read_to_string(&mut text)
        .expect("the child's report");
    wait_for(pid);
    text
}

fn report(states: &[FeatureState]) -> String {
    states.iter().map(|state| format!("{state}\n")).collect()
}

#[test]
fn dropping_the_collector_leaves_nothing() {
    let _alone = alone();
    let before = held();
    let collector = collector_with(&[Feature::TaskCounts, Feature::CgroupCpu]);
    let cgroup = Cgroup::new("leak");
    collector.sample_tasks().expect("sample_tasks");
    collector
        .cgroup_cpu(cgroup.open().as_fd())
        .expect("cgroup_cpu");
    let ours: Vec<_> = held().difference(&before).cloned().collect();
    assert!(ours.iter().any(|id| id.starts_with("prog")), "{ours:?}");
    assert!(ours.iter().all(|id| exists(id)));
    drop(collector);
    assert_eq!(held(), before);
    // Programs and maps are freed after a grace period.
    wait_until("all are freed", || !ours.iter().any(|id| exists(id)));
}

#[test]
fn a_killed_process_leaves_nothing() {
    let _alone = alone();
    let (pid, mut reader) = in_child(|out| {
        let (collector, _) = Collector::start(&Options::default());
        let sampler = Sampler::start(Arc::new(collector), [], Box::new(|_| ()));
        let ids: Vec<_> = held().into_iter().collect();
        writeln!(out, "{}", ids.join(",")).expect("pipe");
        std::thread::sleep(Duration::from_secs(600));
        drop(sampler);
    });
    let mut line = Vec::new();
    let mut byte = [0];
    while reader.read(&mut byte).expect("pipe") == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).expect("text");
    let ids: Vec<&str> = line.split(',').filter(|id| !id.is_empty()).collect();
    assert!(ids.len() > 5 && ids.iter().all(|id| exists(id)), "{ids:?}");
    // SAFETY: our own child.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    wait_for(pid);
    wait_until("all are freed", || !ids.iter().any(|id| exists(id)));
}

#[test]
fn a_daemon_killed_reloaded_upgraded_and_stopped_leaves_the_kernel_as_it_was() {
    let _alone = alone();
    kill_reload_upgrade_and_stop(true);
}

#[test]
fn an_ordinary_user_with_two_capabilities_can_do_everything() {
    let _alone = alone();
    let cgroup = Cgroup::new("unprivileged");
    let child = Child::start(&cgroup, Work::Burn(None));
    let id = cgroup.id();
    let directory = cgroup.open();
    let text = output_of(|out| {
        lift_locked_memory();
        become_nobody_with(&[CAP_PERFMON, CAP_BPF]);
        let (collector, states) = Collector::start(&Options::default());
        write!(out, "{}", report(&states)).expect("pipe");
        let sample = collector.sample_tasks().expect("sample_tasks");
        writeln!(out, "running {}", sample.counts(id).running).expect("pipe");
        let times = collector.cgroup_cpu(directory.as_fd()).expect("cgroup_cpu");
        let sum: u64 = times.iter().map(|time| time.user.0 + time.system.0).sum();
        writeln!(out, "burnt {}", sum > 0).expect("pipe");
        let inits = collector.containers().is_ok();
        writeln!(out, "containers {inits}").expect("pipe");
    });
    drop(child);
    assert!(!text.contains(": off"), "{text}");
    assert!(
        text.contains("running 1\nburnt true\ncontainers true\n"),
        "{text}"
    );
}

/// Before 5.11 maps count as locked memory, of which a process may have 64 KiB or a little more
/// unless its unit or CAP_SYS_RESOURCE lets it have more; since then the limit is of no account.
#[test]
fn little_locked_memory_matters_before_5_11_only_and_the_remedy_is_named() {
    let _alone = alone();
    let counted = kernel_version() < (5, 11);
    let mut cases = vec![(&[CAP_PERFMON, CAP_BPF][..], !counted)];
    if counted {
        cases.push((&[CAP_PERFMON, CAP_BPF, CAP_SYS_RESOURCE][..], true));
    }
    for (capabilities, enough) in cases {
        let text = output_of(|out| {
            limit_locked_memory(64 << 10);
            become_nobody_with(capabilities);
            let (_, states) = Collector::start(&Options::default());
            write!(out, "{}", report(&states)).expect("pipe");
        });
        if enough {
            assert!(text.contains("task_counts: on"), "{text}");
            assert!(!text.contains(": off"), "{text}");
        } else {
            assert_eq!(text.matches(": off").count(), Feature::ALL.len(), "{text}");
            assert!(text.contains("LimitMEMLOCK=infinity"), "{text}");
        }
    }
}

fn kernel_version() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("osrelease");
    let mut numbers = release.split('.').map_while(|number| number.parse().ok());
    let mut next = || numbers.next().expect("a number of the version");
    (next(), next())
}

/// Before 5.11 maps are locked memory.
fn lift_locked_memory() {
    if kernel_version() < (5, 11) {
        limit_locked_memory(libc::RLIM_INFINITY);
    }
}

/// As a service manager would, before privileges are dropped. In a forked process only.
fn limit_locked_memory(bytes: libc::rlim_t) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    // SAFETY: the pointer is to a local; the process is ours alone.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn one_capability_is_not_enough_and_the_remedy_is_named() {
    let _alone = alone();
    for capability in [CAP_PERFMON, CAP_BPF] {
        let text = output_of(|out| {
            lift_locked_memory();
            become_nobody_with(&[capability]);
            let (_, states) = Collector::start(&Options::default());
            write!(out, "{}", report(&states)).expect("pipe");
        });
        assert_eq!(text.matches(": off").count(), Feature::ALL.len(), "{text}");
        assert!(
            text.contains("AmbientCapabilities=CAP_BPF CAP_PERFMON"),
            "{text}"
        );
    }
}

#[test]
fn in_a_pid_namespace_of_its_own_everything_is_off() {
    let _alone = alone();
    let text = output_of(|out| {
        // SAFETY: no memory is touched.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWPID) }, 0);
        let inner = output_of(|out| {
            let (collector, states) = Collector::start(&Options::default());
            write!(out, "{}", report(&states)).expect("pipe");
            writeln!(out, "sample {}", collector.sample_tasks().is_ok()).expect("pipe");
        });
        write!(out, "{inner}").expect("pipe");
    });
    assert_eq!(text.matches(": off").count(), Feature::ALL.len(), "{text}");
    assert!(
        text.contains("hostPID: true") && text.contains("sample false"),
        "{text}"
    );
}

#[test]
fn switched_off_or_without_btf_nothing_is_loaded() {
    let _alone = alone();
    let before = held();
    let table = [
        (
            Options {
                enabled: false,
                ..Options::default()
            },
            "--no-ebpf",
        ),
        (
            Options {
                btf: PathBuf::from("/nonexistent/vmlinux"),
                ..Options::default()
            },
            "/nonexistent/vmlinux",
        ),
        (
            Options {
                btf: PathBuf::from("/proc/self/exe"),
                ..Options::default()
            },
            "not BTF",
        ),
    ];
    for (options, reason) in table {
        let (collector, states) = Collector::start(&options);
        for feature in Feature::ALL {
            let state = state_of(&states, feature);
            assert!(!state.on && state.reason.contains(reason), "{state}");
            assert!(!collector.has(feature));
        }
        assert!(collector.sample_tasks().is_err());
        assert_eq!(held(), before);
    }
}

#[test]
fn the_sampler_follows_burners_five_levels_deep_as_the_kernel_would() {
    let _alone = alone();
    let collector = Arc::new(collector_with(&[Feature::TaskCounts]));
    let sampler = Sampler::start(collector, [], Box::new(|_| ())).expect("sampler");
    let mut levels = vec![Cgroup::new("load")];
    for _ in 0..5 {
        let below = levels.last().expect("a level").child("below");
        levels.push(below);
    }
    let burner = Child::start(&levels[5], Work::Burn(None));
    let top = levels[0].id();

    // Counts can be had at once, averages come with the grid.
    wait_until("a walk after the start", || {
        sampler.fresh().expect("fresh").counts(top).running == 1
    });
    // The grid is the kernel's, so its next point may come at any moment.
    wait_until("a grid point", || sampler.state(top).avenrun[0] > 0);
    // What a kernel shows five, ten, … seconds after its only task began to run: 0.08 0.02 0.01.
    let steps = [[164, 34, 11], [315, 68, 22], [454, 101, 33]];
    for level in &levels {
        let shown = sampler.state(level.id()).avenrun;
        assert!(
            steps
                .iter()
                .any(|step| shown.iter().zip(step).all(|(a, b)| a.abs_diff(*b) <= 1)),
            "{shown:?}"
        );
    }
    let before = sampler.state(top).avenrun[0];
    wait_until("the next grid point", || {
        sampler.state(top).avenrun[0] > before
    });

    drop(burner);
    let high = sampler.state(top).avenrun[0];
    wait_until("the load falls", || sampler.state(top).avenrun[0] < high);
    let exported = sampler.export();
    assert!(
        exported
            .iter()
            .any(|(id, load)| *id == top && load.avenrun()[0] > 0)
    );
    while levels.pop().is_some() {}
}

#[test]
fn a_removed_cgroup_leaves_the_averages_at_once_and_restored_ones_go_on() {
    let _alone = alone();
    let features = [Feature::TaskCounts, Feature::CgroupEvents];
    let collector = Arc::new(collector_with(&features));
    let cgroup = Cgroup::new("evicted");
    let id = cgroup.id();
    let burner = Child::start(&cgroup, Work::Burn(None));
    let first = Sampler::start(collector, [], Box::new(|_| ())).expect("sampler");
    // Running before the first sample: its present load is taken for its past.
    assert_eq!(first.state(id).avenrun, [2048; 3]);
    let state = first.export();
    drop(first);

    let seen = Arc::new(Mutex::new(0));
    let handler = Arc::clone(&seen);
    let collector = Arc::new(collector_with(&features));
    let second = Sampler::start(
        collector,
        state,
        Box::new(move |_| *handler.lock().unwrap_or_else(PoisonError::into_inner) += 1),
    )
    .expect("sampler");
    assert_eq!(second.state(id).avenrun, [2048; 3]);
    drop(burner);
    drop(cgroup);
    wait_until("the removal is noticed", || {
        second.export().iter().all(|(known, _)| *known != id)
    });
    wait_until("the handler is told", || {
        *seen.lock().unwrap_or_else(PoisonError::into_inner) > 0
    });
}

const CAP_SYS_RESOURCE: u32 = 24;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityWord {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Becomes uid 65534 with these capabilities and no others. In a forked process only.
fn become_nobody_with(capabilities: &[u32]) {
    let mut words = [CapabilityWord::default(); 2];
    for capability in capabilities {
        let word = &mut words[*capability as usize / 32];
        word.effective |= 1 << (capability % 32);
        word.permitted |= 1 << (capability % 32);
    }
    let header = CapabilityHeader {
        version: 0x2008_0522,
        pid: 0,
    };
    // SAFETY: all pointers are to locals of the right types; the process is ours alone.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_KEEPCAPS, 1), 0);
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setresgid(65534, 65534, 65534), 0);
        assert_eq!(libc::setresuid(65534, 65534, 65534), 0);
        assert_eq!(
            libc::syscall(libc::SYS_capset, &raw const header, words.as_ptr()),
            0
        );
    }
}
