//! Counters and records the eBPF programs write.

use bytemuck::{Pod, Zeroable};

/// Deepest cgroup whose ancestors the programs follow in one go.
pub const MAX_CGROUP_DEPTH: u32 = 32;

/// What one walk over all tasks counted for one `css_set`: the tasks that are in the same
/// cgroup on every hierarchy. Keyed by the set's address, which is only a number here.
///
/// Source: `iter/task`, with the kernel's own meaning of running (`__state == 0`) and
/// uninterruptible (`task_contributes_to_load`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TaskSet {
    /// Number of the walk these counts belong to; counts of another walk are zero.
    pub generation: u64,
    /// Id of the cgroup on v2.
    pub cgroup_v2: u64,
    /// Id of the cgroup on the v1 hierarchy that is counted, 0 when there is none.
    pub cgroup_v1: u64,
    /// Threads that run or wait for a CPU.
    pub running: u32,
    /// Threads in uninterruptible sleep that count as load.
    pub uninterruptible: u32,
    /// Threads, exiting ones included.
    pub threads: u32,
    /// Processes: threads that lead their group.
    pub processes: u32,
    /// Last PID given out in the PID namespace of these tasks that [`is_further_out`]; 0 when
    /// unknown.
    pub last_pid: u32,
    /// Level of that PID namespace, 0 for the initial one.
    pub last_pid_level: u32,
}
const _: () = assert!(size_of::<TaskSet>() == 48);

/// Index into the walk's words: number of the present walk. A number that does not follow the
/// one before has every cgroup looked up in the trees again.
pub const WALK_NUMBER: u32 = 0;
/// Index into the walk's words: cgroups put into the trees so far.
pub const WALK_INTRODUCED: u32 = 1;
/// Index into the walk's words: PID of the task a run of the loop begins with, 0 for the first of
/// all. The run sets it to 0 when it gets there; one that does not met the task no more.
pub const WALK_FROM: u32 = 2;
/// Index into the walk's words: PID of the task the next run begins with, 0 at the end.
pub const WALK_NEXT: u32 = 3;
/// Index into the walk's words: tasks that the present run has counted.
pub const WALK_COUNTED: u32 = 4;
/// Index into the walk's words: how many a run may count.
pub const WALK_LIMIT: u32 = 5;
/// Index into the walk's words: how often the loop met what only a walk by the iterator does: a
/// cgroup that is not in the trees yet, a full table.
pub const WALK_LEFT: u32 = 6;
/// How many words there are.
pub const WALK_WORDS: u32 = 7;

/// Stands in the object for the kernel's `bpf_iter_task_new`, the next two numbers for
/// `bpf_iter_task_next` and `bpf_iter_task_destroy`: no helper has these numbers.
pub const KFUNC_PLACEHOLDER: u32 = 0x7c5f_0000;

/// Whether a PID namespace of level `one` rather than one of level `other` names the last PID
/// of tasks that are together in a container: it is further out, and not the host's. The
/// host's comes last, because a process of the host may be in a container's cgroup for a
/// while: an exec that has not entered yet, or a runtime that starts or ends the container.
#[inline(always)]
#[must_use]
pub const fn is_further_out(one: u32, other: u32) -> bool {
    one.wrapping_sub(1) < other.wrapping_sub(1)
}

/// Where a cgroup is in its hierarchy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct CgroupNode {
    /// Id of the parent cgroup, 0 for the root.
    pub parent: u64,
    /// Depth of the cgroup, 0 for the root of the hierarchy.
    pub level: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<CgroupNode>() == 16);

/// The init of a PID namespace other than the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ContainerRecord {
    /// Start of the init since boot, nanoseconds, suspend included.
    pub start_boottime: u64,
    /// v2 cgroup id of the init.
    pub cgroup_v2: u64,
    /// Cgroup id of the init on the v1 hierarchy that is counted, 0 when there is none.
    pub cgroup_v1: u64,
    /// v2 cgroup id of the root of the init's cgroup namespace, 0 when unknown.
    pub cgroup_ns_root_v2: u64,
    /// The same on the v1 hierarchy that is counted.
    pub cgroup_ns_root_v1: u64,
    /// PID of the init in the host's namespace.
    pub pid: u32,
    /// Inode of the PID namespace. The kernel re-uses these numbers.
    pub pid_ns: u32,
    /// Inode of the cgroup namespace. The kernel re-uses these numbers.
    pub cgroup_ns: u32,
    /// Depth of the PID namespace, at least 1.
    pub pid_ns_level: u32,
    /// Last PID given out in the namespace.
    pub last_pid: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<ContainerRecord>() == 64);

/// CPU time of one cgroup on one CPU, in nanoseconds, as the kernel's rstat keeps it.
///
/// `user` and `system` are tick samples and only their ratio means anything; `exec` is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct CpuTimes {
    /// `cputime.utime`
    pub user: u64,
    /// `cputime.stime`
    pub system: u64,
    /// `cputime.sum_exec_runtime`
    pub exec: u64,
}
const _: () = assert!(size_of::<CpuTimes>() == 24);

/// Key of the times that removed child cgroups left behind on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct CarriedKey {
    /// v2 id of the living cgroup.
    pub cgroup: u64,
    /// CPU number.
    pub cpu: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<CarriedKey>() == 16);

/// What happened, in [`Event::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventKind {
    /// A cgroup was made (`cgroup_mkdir`).
    CgroupCreated = 1,
    /// A cgroup was removed (`cgroup_rmdir`).
    CgroupRemoved = 2,
    /// The init of a PID namespace other than the host's called execve.
    ContainerExec = 3,
}

impl EventKind {
    /// The kind for a number found in a record, if the number is known.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::CgroupCreated),
            2 => Some(Self::CgroupRemoved),
            3 => Some(Self::ContainerExec),
            _ => None,
        }
    }
}

/// One entry of the event ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Event {
    /// Id of the cgroup (made, removed, or the one the init is in on v2).
    pub cgroup: u64,
    /// Id of its parent; for an exec 0.
    pub parent: u64,
    /// An [`EventKind`].
    pub kind: u32,
    /// Hierarchy number of `cgroup` as in `/proc/cgroups`: 0 for the v2 hierarchy.
    pub hierarchy: u32,
    /// PID of the init in the host's namespace; 0 for cgroup events.
    pub pid: u32,
    /// Inode of the PID namespace; 0 for cgroup events.
    pub pid_ns: u32,
}
const _: () = assert!(size_of::<Event>() == 32);

/// Key of the block-request counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct BlockKey {
    /// Id of the cgroup on the hierarchy that has the io (blkio) controller.
    pub cgroup: u64,
    /// Device major number.
    pub major: u32,
    /// Device minor number.
    pub minor: u32,
    /// 0 read, 1 write, 2 discard: the order of the fields in diskstats. [`BLOCK_QUEUE`]: the
    /// device's queue; then the counters hold a [`BlockQueue`].
    pub op: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<BlockKey>() == 24);

/// [`BlockKey::op`] of the row that tells how busy the device is.
pub const BLOCK_QUEUE: u32 = 3;

/// What is under way on a device for a cgroup; shares the table of [`BlockCounters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQueue {
    /// Requests given to the driver.
    pub started: u64,
    /// Requests that came back from it, done or put back into the queue.
    pub finished: u64,
    /// Time with at least one request under way, nanoseconds.
    pub busy_nsec: u64,
    /// When `started` or `finished` last changed, on the monotonic clock.
    pub changed: u64,
}
const _: () = assert!(size_of::<BlockQueue>() == size_of::<BlockCounters>());

/// Counters of completed block requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockCounters {
    /// Requests completed.
    pub requests: u64,
    /// Bios merged into a request that was already queued.
    pub merges: u64,
    /// Time from allocation to completion, summed over requests, nanoseconds.
    pub nsec: u64,
    /// Bytes completed.
    pub bytes: u64,
}
const _: () = assert!(size_of::<BlockCounters>() == 32);

/// What the programs could not record; index into the loss counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LossCounter {
    /// Tasks not counted because the table of cgroups was full.
    Tasks = 0,
    /// Times of removed cgroups not kept because the table was full.
    Carried = 1,
    /// Events dropped because the ring was full.
    Events = 2,
    /// Block requests not counted because the table was full.
    Block = 3,
    /// Cgroups deeper than [`MAX_CGROUP_DEPTH`] whose ancestors were not all recorded.
    Depth = 4,
}

impl LossCounter {
    /// Number of loss counters.
    pub const COUNT: u32 = 5;
}
