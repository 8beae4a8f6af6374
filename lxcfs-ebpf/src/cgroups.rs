//! Cgroups made and removed, containers started; and, on kernels without `subtree_bstat`,
//! the CPU times that removed cgroups leave behind.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{HashMap, RingBuf},
};
use lxcfs_common::bpf::{CarriedKey, CpuTimes, Event, EventKind, LossCounter};

use crate::{
    cpu::own_counters,
    kernel::{
        Address, Direct, Memory, Probe, cgroup_id, cgroup_parent, known, layout, lose, v2_cgroup,
    },
};

/// What happened, for userspace.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// Times of removed cgroups, added up at their nearest living ancestor.
#[map]
static CARRIED: HashMap<CarriedKey, CpuTimes> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// Arguments of `cgroup_mkdir` and `cgroup_rmdir`.
#[repr(C)]
struct CgroupArguments {
    cgroup: Address,
}

/// Arguments of `sched_process_exec`.
#[repr(C)]
struct ExecArguments {
    task: Address,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/cgroup_mkdir")]
extern "C" fn cgroup_mkdir(context: *const CgroupArguments) -> i32 {
    // SAFETY: the kernel calls the program with the tracepoint's arguments.
    unsafe { announce::<Direct>((*context).cgroup, EventKind::CgroupCreated) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/cgroup_mkdir_pr")]
extern "C" fn cgroup_mkdir_pr(context: *const CgroupArguments) -> i32 {
    // SAFETY: as above.
    unsafe { announce::<Probe>((*context).cgroup, EventKind::CgroupCreated) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/cgroup_rmdir")]
extern "C" fn cgroup_rmdir(context: *const CgroupArguments) -> i32 {
    // SAFETY: as above.
    unsafe { announce::<Direct>((*context).cgroup, EventKind::CgroupRemoved) }
}

/// `cgroup_rmdir` for kernels whose rstat forgets the times of removed cgroups.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/cgroup_gone")]
extern "C" fn cgroup_gone(context: *const CgroupArguments) -> i32 {
    // SAFETY: as above.
    unsafe {
        let cgroup = (*context).cgroup;
        carry(cgroup);
        announce::<Probe>(cgroup, EventKind::CgroupRemoved)
    }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/container_exec")]
extern "C" fn container_exec(context: *const ExecArguments) -> i32 {
    // SAFETY: as above.
    unsafe { announce_init::<Direct>((*context).task) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/container_exec_pr")]
extern "C" fn container_exec_pr(context: *const ExecArguments) -> i32 {
    // SAFETY: as above.
    unsafe { announce_init::<Probe>((*context).task) }
}

#[inline(always)]
unsafe fn announce<M: Memory>(cgroup: Address, kind: EventKind) -> i32 {
    if !known!(gate_events) || cgroup.is_null() {
        return 0;
    }
    // SAFETY: each pointer is null-checked before it is followed.
    unsafe {
        let mut hierarchy = 0;
        if known!(cgroup_root, cgroup_root_hierarchy_id) {
            let root = M::pointer_at(cgroup, layout!(cgroup_root));
            if !root.is_null() {
                hierarchy = M::u32_at(root, layout!(cgroup_root_hierarchy_id));
            }
        }
        let parent = cgroup_parent::<M>(cgroup);
        let parent_id = if parent.is_null() { 0 } else { cgroup_id::<M>(parent) };
        send(cgroup_id::<M>(cgroup), parent_id, kind, hierarchy, 0, 0);
    }
    0
}

#[inline(always)]
unsafe fn announce_init<M: Memory>(task: Address) -> i32 {
    if !known!(gate_events) || task.is_null() {
        return 0;
    }
    // SAFETY: each pointer is null-checked before it is followed.
    unsafe {
        let nsproxy = M::pointer_at(task, layout!(task_nsproxy));
        if nsproxy.is_null() {
            return 0;
        }
        let pid_ns = M::pointer_at(nsproxy, layout!(nsproxy_pid_ns));
        if pid_ns.is_null() || M::u32_at(pid_ns, layout!(pid_ns_level)) == 0 {
            return 0;
        }
        let pid = M::u32_at(task, layout!(task_pid));
        let reaper = M::pointer_at(pid_ns, layout!(pid_ns_child_reaper));
        if reaper.is_null() || M::u32_at(reaper, layout!(task_pid)) != pid {
            return 0;
        }
        let css_set = M::pointer_at(task, layout!(task_cgroups));
        if css_set.is_null() {
            return 0;
        }
        let cgroup = v2_cgroup::<M>(css_set);
        let id = if cgroup.is_null() { 0 } else { cgroup_id::<M>(cgroup) };
        send(id, 0, EventKind::ContainerExec, 0, pid, M::u32_at(pid_ns, layout!(pid_ns_inum)));
    }
    0
}

#[inline(always)]
fn send(cgroup: u64, parent: u64, kind: EventKind, hierarchy: u32, pid: u32, pid_ns: u32) {
    let mut event = MaybeUninit::<Event>::uninit();
    let e = event.as_mut_ptr();
    // SAFETY: every field is written before the event is copied out.
    let sent = unsafe {
        (&raw mut (*e).cgroup).write_volatile(cgroup);
        (&raw mut (*e).parent).write_volatile(parent);
        (&raw mut (*e).kind).write_volatile(kind as u32);
        (&raw mut (*e).hierarchy).write_volatile(hierarchy);
        (&raw mut (*e).pid).write_volatile(pid);
        (&raw mut (*e).pid_ns).write_volatile(pid_ns);
        EVENTS.output::<Event>(&*e, 0)
    };
    if sent.is_err() {
        lose(LossCounter::Events);
    }
}

/// Adds the times of a dying v2 cgroup, and what it carried itself, to its parent.
/// The kernel removes one cgroup at a time, so the updates need no atomics.
#[inline(always)]
unsafe fn carry(cgroup: Address) {
    if !known!(gate_carry, gate_cpus, gate_bstat_len, cgroup_rstat, rstat_bstat)
        || cgroup.is_null()
    {
        return;
    }
    // SAFETY: kernel memory by probe, map values by checked pointers.
    unsafe {
        let root = Probe::pointer_at(cgroup, layout!(cgroup_root));
        if root.is_null() || Probe::u32_at(root, layout!(cgroup_root_hierarchy_id)) != 0 {
            return;
        }
        let parent = cgroup_parent::<Probe>(cgroup);
        if parent.is_null() {
            return;
        }
        let from = cgroup_id::<Probe>(cgroup);
        let to = cgroup_id::<Probe>(parent);
        for cpu in 0..layout!(gate_cpus) {
            carry_one(cgroup, from, to, cpu);
        }
    }
}

#[inline(always)]
unsafe fn carry_one(cgroup: Address, from: u64, to: u64, cpu: u32) {
    // SAFETY: as in `carry`.
    unsafe {
        let mut user = 0;
        let mut system = 0;
        let mut exec = 0;
        let source = own_counters::<Probe>(cgroup, cpu);
        if source != 0 {
            user = Probe::u64_at(source as Address, layout!(bstat_utime));
            system = Probe::u64_at(source as Address, layout!(bstat_stime));
            exec = Probe::u64_at(source as Address, layout!(bstat_exec));
        }
        let old = CarriedKey { cgroup: from, cpu, pad: 0 };
        if let Some(carried) = CARRIED.get_ptr(old) {
            user += (*carried).user;
            system += (*carried).system;
            exec += (*carried).exec;
            let _ = CARRIED.remove(old);
        }
        if exec == 0 && user == 0 && system == 0 {
            return;
        }
        let new = CarriedKey { cgroup: to, cpu, pad: 0 };
        if let Some(carried) = CARRIED.get_ptr_mut(new) {
            (*carried).user += user;
            (*carried).system += system;
            (*carried).exec += exec;
        } else if CARRIED
            .insert(new, CpuTimes { user, system, exec }, u64::from(BPF_ANY))
            .is_err()
        {
            lose(LossCounter::Carried);
        }
    }
}
