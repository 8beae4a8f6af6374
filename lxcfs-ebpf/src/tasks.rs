//! `load_tasks`: one walk over all threads, counting per set of cgroups.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    macros::map,
    maps::{Array, HashMap},
};
use aya_log_ebpf::warn;
use lxcfs_common::bpf::{
    CgroupNode, LossCounter, MAX_CGROUP_DEPTH, TaskSet, WALK_INTRODUCED, WALK_NUMBER,
    WALK_LEFT, WALK_WORDS, is_further_out,
};

use crate::kernel::{
    Address, Direct, Memory, Probe, cgroup_id, cgroup_parent, is_news, known, layout, lose,
    v1_cgroup, v2_cgroup,
};

const TASK_UNINTERRUPTIBLE: u32 = 0x2;
const TASK_NOLOAD: u32 = 0x400;
/// 6.1 and later; no other state uses the bit before.
const TASK_FROZEN: u32 = 0x8000;

/// Counts per `css_set`, by its address: one look-up per task however many hierarchies there
/// are, and the ids are followed once per set and walk. A set freed and another made at its
/// address within one walk would share a row; the next walk puts that right.
#[map]
static TASK_SETS: HashMap<u64, TaskSet> = HashMap::with_max_entries(32_768, BPF_F_NO_PREALLOC);

/// The v2 hierarchy as far as tasks have been seen in it.
#[map]
static TREE_V2: HashMap<u64, CgroupNode> = HashMap::with_max_entries(32_768, BPF_F_NO_PREALLOC);

/// The same of the v1 hierarchy that is counted. Ids are unique only within one hierarchy, so
/// the two tables are never mixed.
#[map]
static TREE_V1: HashMap<u64, CgroupNode> = HashMap::with_max_entries(32_768, BPF_F_NO_PREALLOC);

/// Number of the present walk, set by userspace before it starts, how many cgroups have been put
/// into the two trees, and where a loop over all tasks is; see [`WALK_NUMBER`] and those after it.
#[map]
pub(crate) static WALK: Array<u64> = Array::with_max_entries(WALK_WORDS, 0);

/// What new entries start from; constants, so that no `memset` is called for them.
// A mangled name would hold a hash of the checkout's path: the object must not.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
static EMPTY: TaskSet = TaskSet {
    generation: 0,
    cgroup_v2: 0,
    cgroup_v1: 0,
    running: 0,
    uninterruptible: 0,
    threads: 0,
    processes: 0,
    last_pid: 0,
    last_pid_level: 0,
};
// A mangled name would hold a hash of the checkout's path: the object must not.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
static NOWHERE: CgroupNode = CgroupNode { parent: 0, level: 0, pad: 0 };

/// `struct bpf_iter__task`
#[repr(C)]
pub(crate) struct TaskIteration {
    pub(crate) meta: Address,
    pub(crate) task: Address,
}

/// What one thread adds to its cgroup.
struct Share {
    running: u32,
    uninterruptible: u32,
    processes: u32,
    last_pid: u32,
    last_pid_level: u32,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/load_tasks")]
extern "C" fn load_tasks(context: *const TaskIteration) -> i32 {
    // SAFETY: the kernel calls the program with the context of its section.
    unsafe { count::<Direct>(context) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/load_tasks_pr")]
extern "C" fn load_tasks_pr(context: *const TaskIteration) -> i32 {
    // SAFETY: as above.
    unsafe { count::<Probe>(context) }
}

#[inline(always)]
unsafe fn count<M: Memory>(context: *const TaskIteration) -> i32 {
    // SAFETY: each pointer is null-checked before it is followed.
    unsafe {
        let task = (*context).task;
        if task.is_null() {
            return 0;
        }
        let Some(generation) = WALK.get(WALK_NUMBER) else { return 0 };
        count_task::<M, false>(task, *generation);
    }
    0
}

/// Says that the loop met what it cannot do. Putting a cgroup into the trees takes a loop of its
/// own, and with that, or with a line for the log, the verifier comes to no end.
#[inline(always)]
unsafe fn leave_to_iterator() {
    if let Some(left) = WALK.get_ptr_mut(WALK_LEFT) {
        // SAFETY: the pointer is into the map's value.
        unsafe { *left += 1 };
    }
}

/// Counts one thread in its set of cgroups. `LOOP` is true in `load_tasks_loop`.
#[inline(always)]
pub(crate) unsafe fn count_task<M: Memory, const LOOP: bool>(task: Address, generation: u64) {
    // SAFETY: the caller checked that `task` is not null; each pointer is checked before it is
    // followed.
    unsafe {
        let css_set = M::pointer_at(task, layout!(task_cgroups));
        if css_set.is_null() {
            return;
        }
        let address = css_set as u64;
        let mut entry = TASK_SETS.get_ptr_mut(address);
        if entry.is_none() {
            let _ = TASK_SETS.insert(address, &EMPTY, u64::from(BPF_NOEXIST));
            entry = TASK_SETS.get_ptr_mut(address);
        }
        let Some(set) = entry else {
            if LOOP {
                leave_to_iterator();
                return;
            }
            let lost = lose(LossCounter::Tasks);
            if is_news(lost) {
                warn!(&(), "the table of tasks is full: {} tasks not counted so far", lost);
            }
            return;
        };
        if (*set).generation != generation {
            renew::<M, LOOP>(set, css_set, generation);
        }
        let share = share_of::<M>(task);
        (*set).running += share.running;
        (*set).uninterruptible += share.uninterruptible;
        (*set).threads += 1;
        (*set).processes += share.processes;
        if share.last_pid != 0
            && ((*set).last_pid == 0
                || is_further_out(share.last_pid_level, (*set).last_pid_level))
        {
            (*set).last_pid = share.last_pid;
            (*set).last_pid_level = share.last_pid_level;
        }
    }
}

/// The first task of a set in a walk: counts start at zero, the cgroups are looked up.
#[inline(always)]
unsafe fn renew<M: Memory, const LOOP: bool>(set: *mut TaskSet, css_set: Address, generation: u64) {
    // SAFETY: `set` is a map value that one walk at a time writes; `css_set` is not null.
    unsafe {
        // Cgroups that had tasks in the walk before are in the trees still: userspace drops only
        // those without. Their ids are read again all the same, as a freed set's place may hold
        // another one.
        let recent = (*set).generation.wrapping_add(1) == generation;
        let (v2, v1) = if recent { ((*set).cgroup_v2, (*set).cgroup_v1) } else { (0, 0) };
        (*set).generation = generation;
        // Volatile: side by side, LLVM would make a call to memset of them.
        (&raw mut (*set).running).write_volatile(0);
        (&raw mut (*set).uninterruptible).write_volatile(0);
        (&raw mut (*set).threads).write_volatile(0);
        (&raw mut (*set).processes).write_volatile(0);
        (&raw mut (*set).last_pid).write_volatile(0);
        (&raw mut (*set).last_pid_level).write_volatile(0);
        (*set).cgroup_v2 = place::<M, LOOP>(&TREE_V2, v2_cgroup::<M>(css_set), v2);
        if known!(gate_v1_subsys, css_set_subsys) {
            (*set).cgroup_v1 = place::<M, LOOP>(&TREE_V1, v1_cgroup::<M>(css_set), v1);
        }
    }
}

/// The id of a cgroup, which is put into the table of its hierarchy if it is new there;
/// `present` is known to be there, 0 for none.
#[inline(always)]
unsafe fn place<M: Memory, const LOOP: bool>(
    tree: &HashMap<u64, CgroupNode>,
    cgroup: Address,
    present: u64,
) -> u64 {
    if cgroup.is_null() {
        return 0;
    }
    // SAFETY: `cgroup` is not null.
    unsafe {
        let id = cgroup_id::<M>(cgroup);
        if id != present && tree.get_ptr(id).is_none() {
            if LOOP {
                leave_to_iterator();
            } else {
                introduce::<M>(tree, cgroup, id);
            }
        }
        id
    }
}

#[inline(always)]
unsafe fn share_of<M: Memory>(task: Address) -> Share {
    // SAFETY: the caller checked that `task` is not null.
    unsafe {
        let state = M::u32_at(task, layout!(task_state));
        let leads =
            M::u32_at(task, layout!(task_pid)) == M::u32_at(task, layout!(task_tgid));
        let mut share = Share {
            running: (state == 0) as u32,
            uninterruptible: 0,
            processes: leads as u32,
            last_pid: 0,
            last_pid_level: 0,
        };
        if state & TASK_UNINTERRUPTIBLE != 0 && state & (TASK_NOLOAD | TASK_FROZEN) == 0 {
            let frozen = layout!(gate_frozen_flags);
            if frozen == 0 || M::u32_at(task, layout!(task_flags)) & frozen == 0 {
                share.uninterruptible = 1;
            }
        }
        if leads && known!(task_nsproxy, nsproxy_pid_ns, pid_ns_level, pid_ns_idr_next) {
            let nsproxy = M::pointer_at(task, layout!(task_nsproxy));
            if !nsproxy.is_null() {
                let pid_ns = M::pointer_at(nsproxy, layout!(nsproxy_pid_ns));
                if !pid_ns.is_null() {
                    // The cursor of the allocator stands behind the last PID given out.
                    let next = M::u32_at(pid_ns, layout!(pid_ns_idr_next));
                    share.last_pid = next.saturating_sub(1);
                    share.last_pid_level = M::u32_at(pid_ns, layout!(pid_ns_level));
                }
            }
        }
        share
    }
}

/// Records a cgroup seen for the first time, and its ancestors up to a known one.
#[inline(always)]
unsafe fn introduce<M: Memory>(table: &HashMap<u64, CgroupNode>, leaf: Address, leaf_id: u64) {
    let mut cgroup = leaf;
    let mut id = leaf_id;
    // SAFETY: `cgroup` is not null: the caller checked the first, the loop the others.
    unsafe {
        for _ in 0..MAX_CGROUP_DEPTH {
            let parent = cgroup_parent::<M>(cgroup);
            let parent_id = if parent.is_null() { 0 } else { cgroup_id::<M>(parent) };
            if table.insert(id, &NOWHERE, u64::from(BPF_NOEXIST)).is_err() {
                return;
            }
            if let Some(introduced) = WALK.get_ptr_mut(WALK_INTRODUCED) {
                *introduced += 1;
            }
            let Some(node) = table.get_ptr_mut(id) else { return };
            (*node).parent = parent_id;
            if known!(cgroup_level) {
                (*node).level = M::u32_at(cgroup, layout!(cgroup_level));
            }
            if parent.is_null() || table.get_ptr(parent_id).is_some() {
                return;
            }
            cgroup = parent;
            id = parent_id;
        }
    }
    lose(LossCounter::Depth);
}
