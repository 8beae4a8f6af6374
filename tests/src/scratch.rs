//! Cgroups and processes of a test's own making, on the v2 hierarchy, and collectors to watch them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lxcfs_user::bpf::{CgroupId, Collector, Feature, FeatureState, Options};

/// A started collector of which these features must work.
pub fn collector_with(features: &[Feature]) -> Collector {
    let (collector, states) = Collector::start(&Options::default());
    for feature in features {
        let state = state_of(&states, *feature);
        assert!(state.on, "{state}");
    }
    collector
}

/// The state of one feature.
pub fn state_of(states: &[FeatureState], feature: Feature) -> &FeatureState {
    states
        .iter()
        .find(|state| state.name == feature)
        .expect("a state for every feature")
}

/// Where the v2 hierarchy is mounted.
pub fn v2_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .and_then(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .expect("no cgroup v2 hierarchy is mounted; mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// A cgroup of the v2 hierarchy, removed with everything in it when dropped.
pub struct Cgroup {
    /// Its directory.
    pub path: PathBuf,
}

impl Cgroup {
    /// Directly below the v2 root, under a name no other test uses.
    pub fn new(name: &str) -> Self {
        Self::below(&v2_root(), name)
    }

    /// Below a directory of any hierarchy, under a name no other test uses.
    pub fn below(parent: &Path, name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("lxcfs-test-{}-{number}-{name}", std::process::id());
        Self::at(parent.join(name))
    }

    /// Below this one.
    pub fn child(&self, name: &str) -> Self {
        Self::at(self.path.join(name))
    }

    fn at(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap_or_else(|error| {
            panic!("{} cannot be made: {error}; run as root", path.display())
        });
        Self { path }
    }

    /// Its id, as the collector names it.
    pub fn id(&self) -> CgroupId {
        CgroupId::V2(fs::metadata(&self.path).expect("metadata").ino())
    }

    /// The directory, open for reading.
    pub fn open(&self) -> OwnedFd {
        fs::File::open(&self.path).expect("cgroup directory").into()
    }

    /// Writes one of its files.
    pub fn write(&self, file: &str, text: &str) {
        let path = self.path.join(file);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Reads one of its files.
    pub fn read(&self, file: &str) -> String {
        let path = self.path.join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// `usage_usec` of `cpu.stat`.
    pub fn usage_usec(&self) -> u64 {
        let stat = self.read("cpu.stat");
        let value = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        value
            .expect("usage_usec in cpu.stat")
            .parse()
            .expect("a number")
    }

    /// Lines of `cgroup.threads`, this cgroup only.
    pub fn own_threads(&self) -> usize {
        self.read("cgroup.threads").lines().count()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Exiting tasks leave a little later than their parent is told.
        wait_until("the cgroup is empty", || remove(&self.path).is_ok());
    }
}

fn remove(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Waits for a condition; a generous bound only ends a test that would hang.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..600 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("waited half a minute in vain: {what}");
}

/// What a child process does.
#[derive(Clone, Copy)]
pub enum Work {
    /// Runs without end, on this CPU if one is named.
    Burn(Option<usize>),
    /// The same as a real-time task.
    BurnFifo(usize),
    /// Sleeps, interruptibly.
    Sleep,
    /// Waits for a vfork child: uninterruptible as the load average counts it.
    Vfork,
    /// Sleeps with this many more threads than the first.
    Threads(u32),
    /// Reads so many blocks of 4 KiB, spread over the device, and ends. The descriptor is
    /// open with `O_DIRECT`.
    ReadDirect {
        /// The device.
        fd: libc::c_int,
        /// How many.
        blocks: u32,
    },
}

/// A child process, killed when dropped.
pub struct Child {
    /// Its PID.
    pub pid: libc::pid_t,
}

impl Child {
    /// Starts a child inside a cgroup.
    pub fn start(cgroup: &Cgroup, work: Work) -> Self {
        let procs = fs::OpenOptions::new()
            .write(true)
            .open(cgroup.path.join("cgroup.procs"))
            .expect("cgroup.procs");
        // SAFETY: the child calls only async-signal-safe functions until it ends.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
        if pid == 0 {
            // SAFETY: as above; the descriptor is open.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::write(procs.as_fd().as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
                    libc::_exit(111);
                }
                perform(work);
                libc::_exit(112)
            }
        }
        let child = Self { pid };
        wait_until("the child is in its cgroup", || {
            // One that has ended already was there.
            let line = pid.to_string();
            child.state() == 'Z' || cgroup.read("cgroup.procs").lines().any(|pid| pid == line)
        });
        child
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: the pid is that of our own child, not yet waited for.
        unsafe { libc::kill(self.pid, signal) };
    }

    /// State letter in `/proc/PID/stat`.
    pub fn state(&self) -> char {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let after = stat.rsplit(") ").next().unwrap_or_default();
        after.chars().next().unwrap_or('?')
    }

    /// Stops it, and waits until it has stopped.
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
        wait_until("the child has stopped", || self.state() == 'T');
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        // SAFETY: our own child; a null status pointer is allowed.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

fn pin(cpu: usize) {
    // SAFETY: an all-zero set is valid, and the pointer is to a local.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        if libc::sched_setaffinity(0, size_of_val(&set), &raw const set) != 0 {
            libc::_exit(113);
        }
    }
}

fn burn() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

fn pause() -> ! {
    loop {
        // SAFETY: no arguments.
        unsafe { libc::pause() };
    }
}

/// Runs in a child of fork: no allocation, no locks.
fn perform(work: Work) {
    match work {
        Work::Burn(cpu) => {
            if let Some(cpu) = cpu {
                pin(cpu);
            }
            burn()
        }
        Work::BurnFifo(cpu) => {
            pin(cpu);
            let parameters = libc::sched_param { sched_priority: 1 };
            // SAFETY: the pointer is to a local.
            if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } != 0
            {
                // SAFETY: ends only this child.
                unsafe { libc::_exit(114) };
            }
            burn()
        }
        Work::Sleep => pause(),
        Work::Vfork => {
            let flags = libc::CLONE_VFORK | libc::SIGCHLD;
            // SAFETY: without CLONE_VM the child has memory of its own; no pointers are given.
            unsafe {
                if libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) == 0 {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    pause()
                }
            }
        }
        Work::ReadDirect { fd, blocks } => {
            const BLOCK: usize = 4096;
            // Not side by side, so that the queue does not merge them.
            const STRIDE: i64 = 16 * 1024;
            #[repr(align(4096))]
            struct Buffer([u8; BLOCK]);
            let mut buffer = Buffer([0; BLOCK]);
            for block in 0..i64::from(blocks) {
                // SAFETY: the buffer has the length given.
                unsafe {
                    let target = buffer.0.as_mut_ptr().cast();
                    if libc::pread(fd, target, BLOCK, block * STRIDE) != BLOCK as isize {
                        libc::_exit(117);
                    }
                }
            }
            // SAFETY: ends only this child.
            unsafe { libc::_exit(0) }
        }
        Work::Threads(more) => {
            const STACK: usize = 16 * 1024;
            for _ in 0..more {
                // SAFETY: a fresh stack per thread; the threads only pause.
                unsafe {
                    let stack = libc::mmap(
                        std::ptr::null_mut(),
                        STACK,
                        libc::PROT_READ | libc::PROT_WRITE,
                        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                        -1,
                        0,
                    );
                    if stack == libc::MAP_FAILED {
                        libc::_exit(115);
                    }
                    let flags = libc::CLONE_VM
                        | libc::CLONE_FS
                        | libc::CLONE_FILES
                        | libc::CLONE_SIGHAND
                        | libc::CLONE_THREAD
                        | libc::CLONE_SYSVSEM;
                    let top = stack.cast::<u8>().add(STACK).cast();
                    if libc::clone(pause_thread, top, flags, std::ptr::null_mut()) < 0 {
                        libc::_exit(116);
                    }
                }
            }
            pause()
        }
    }
}

extern "C" fn pause_thread(_argument: *mut libc::c_void) -> libc::c_int {
    pause()
}
