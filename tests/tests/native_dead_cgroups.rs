//! A hundred thousand cgroups that had a task each, were counted and are gone: nothing of them
//! stays, neither here nor in the kernel's tables, which would have been full three times over.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use lxcfs_tests::scratch::{Cgroup, collector_with, wait_until};
use lxcfs_user::bpf::{Feature, Sampler, TaskSample};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

const BATCH: usize = 500;
const BATCHES: usize = 200;
/// After these the memory of this process is what it is with a batch of cgroups.
const WARM_UP: usize = 10;
/// What an allocator's arenas may come to; a cgroup remembered would be 100 bytes or more.
const MOST_KIB: u64 = 4 << 10;

/// The constant of libc overflows its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A process that is born in a cgroup and waits there to be killed.
fn born_in(cgroup: &Cgroup) -> Pid {
    let directory = cgroup.open();
    // SAFETY: all-zero arguments are valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = directory.as_raw_fd() as u64;
    // SAFETY: a fork that shares nothing; the child makes system calls only.
    let pid = unsafe {
        let length = size_of_val(&arguments);
        let pid = libc::syscall(libc::SYS_clone3, &raw const arguments, length);
        if pid == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            loop {
                libc::pause();
            }
        }
        pid
    };
    assert!(pid > 0, "clone3: {}", std::io::Error::last_os_error());
    Pid::from_raw(i32::try_from(pid).expect("a pid"))
}

/// Resident memory of this process.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let words = line.and_then(|line| line.split_whitespace().next());
    words.and_then(|word| word.parse().ok()).expect("VmRSS")
}

/// A sample with all that is there now.
fn counted(sampler: &Sampler, cgroups: &[Cgroup]) -> Arc<TaskSample> {
    let mut sample = sampler.latest();
    wait_until("every cgroup is counted", || {
        sample = sampler.fresh().expect("fresh");
        cgroups
            .iter()
            .all(|cgroup| sample.counts(cgroup.id()).threads == 1)
    });
    sample
}

#[test]
fn a_hundred_thousand_dead_cgroups_leave_nothing_behind() {
    let features = [
        Feature::TaskCounts,
        Feature::CgroupCpu,
        Feature::CgroupEvents,
    ];
    let collector = Arc::new(collector_with(&features));
    let sampler =
        Sampler::start(Arc::clone(&collector), [], Box::new(|_| ())).expect("the sampler");
    let parent = Cgroup::new("dead");
    let mut warm = 0;
    for batch in 0..BATCHES {
        let cgroups: Vec<_> = (0..BATCH)
            .map(|number| parent.child(&number.to_string()))
            .collect();
        let tasks: Vec<_> = cgroups.iter().map(born_in).collect();
        let sample = counted(&sampler, &cgroups);
        assert_eq!((sample.lost_tasks, sample.broken_chains), (0, 0));
        let times = collector.cgroup_cpu(std::os::fd::AsFd::as_fd(&cgroups[0].open()));
        times.expect("cgroup_cpu");
        for task in tasks {
            kill(task, Signal::SIGKILL).expect("it waits");
            waitpid(task, None).expect("it is ours");
        }
        drop(cgroups);
        if batch == WARM_UP {
            warm = resident_kib();
        }
    }
    let grown = resident_kib().saturating_sub(warm);
    wait_until("none is in the sample or in the averages", || {
        let sample = sampler.fresh().expect("fresh");
        sample.len() < BATCH && sampler.export().len() < BATCH
    });
    // The one whose times were read last is held until the next point of the grid.
    wait_until("none is held in the kernel", || {
        parent
            .read("cgroup.stat")
            .contains("nr_dying_descendants 0\n")
    });
    println!("{grown} KiB more after {} cgroups", BATCH * BATCHES);
    assert!(
        grown < MOST_KIB,
        "{grown} KiB more than after {WARM_UP} batches"
    );
    for (what, count) in collector.losses() {
        // The ring holds what comes in a moment, and drops what comes in a flood.
        assert!(count == 0 || what == "events", "{what}: {count}");
    }
}
