//! `containers`: the inits of PID namespaces, as records in the iterator's output.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_seq_write;
use lxcfs_common::bpf::ContainerRecord;

use crate::{
    kernel::{Address, Direct, Memory, Probe, cgroup_id, known, layout, v1_cgroup, v2_cgroup},
    tasks::TaskIteration,
};

/// `struct bpf_iter_meta`
#[repr(C)]
struct IterationMeta {
    seq: *mut aya_ebpf::bindings::seq_file,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/containers")]
extern "C" fn containers(context: *const TaskIteration) -> i32 {
    // SAFETY: the kernel calls the program with the context of its section.
    unsafe { report::<Direct>(context) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/containers_pr")]
extern "C" fn containers_pr(context: *const TaskIteration) -> i32 {
    // SAFETY: as above.
    unsafe { report::<Probe>(context) }
}

/// The v2 and v1 ids of the cgroups in one `css_set`.
#[inline(always)]
unsafe fn ids_of<M: Memory>(css_set: Address) -> (u64, u64) {
    if css_set.is_null() {
        return (0, 0);
    }
    // SAFETY: each pointer is null-checked before it is followed.
    unsafe {
        let cgroup = v2_cgroup::<M>(css_set);
        let v2 = if cgroup.is_null() { 0 } else { cgroup_id::<M>(cgroup) };
        let mut v1 = 0;
        if known!(gate_v1_subsys, css_set_subsys) {
            let cgroup = v1_cgroup::<M>(css_set);
            if !cgroup.is_null() {
                v1 = cgroup_id::<M>(cgroup);
            }
        }
        (v2, v1)
    }
}

#[inline(always)]
unsafe fn report<M: Memory>(context: *const TaskIteration) -> i32 {
    // SAFETY: each pointer is null-checked before it is followed.
    unsafe {
        let meta = (*context).meta.cast::<IterationMeta>();
        let task = (*context).task;
        if task.is_null() || meta.is_null() {
            return 0;
        }
        let pid = M::u32_at(task, layout!(task_pid));
        if pid != M::u32_at(task, layout!(task_tgid)) {
            return 0;
        }
        let nsproxy = M::pointer_at(task, layout!(task_nsproxy));
        if nsproxy.is_null() {
            return 0;
        }
        let pid_ns = M::pointer_at(nsproxy, layout!(nsproxy_pid_ns));
        if pid_ns.is_null() {
            return 0;
        }
        let level = M::u32_at(pid_ns, layout!(pid_ns_level));
        if level == 0 {
            return 0;
        }
        let reaper = M::pointer_at(pid_ns, layout!(pid_ns_child_reaper));
        if reaper.is_null() || M::u32_at(reaper, layout!(task_pid)) != pid {
            return 0;
        }

        let (cgroup_v2, cgroup_v1) = ids_of::<M>(M::pointer_at(task, layout!(task_cgroups)));
        let mut cgroup_ns_inum = 0;
        let mut root = (0, 0);
        if known!(nsproxy_cgroup_ns, cgroup_ns_inum, cgroup_ns_root_cset) {
            let cgroup_ns = M::pointer_at(nsproxy, layout!(nsproxy_cgroup_ns));
            if !cgroup_ns.is_null() {
                cgroup_ns_inum = M::u32_at(cgroup_ns, layout!(cgroup_ns_inum));
                root = ids_of::<M>(M::pointer_at(cgroup_ns, layout!(cgroup_ns_root_cset)));
            }
        }
        let mut start_boottime = 0;
        if known!(task_start_boottime) {
            start_boottime = M::u64_at(task, layout!(task_start_boottime));
        }
        let mut last_pid = 0;
        if known!(pid_ns_idr_next) {
            last_pid = M::u32_at(pid_ns, layout!(pid_ns_idr_next)).saturating_sub(1);
        }

        let mut record = MaybeUninit::<ContainerRecord>::uninit();
        let r = record.as_mut_ptr();
        (&raw mut (*r).start_boottime).write_volatile(start_boottime);
        (&raw mut (*r).cgroup_v2).write_volatile(cgroup_v2);
        (&raw mut (*r).cgroup_v1).write_volatile(cgroup_v1);
        (&raw mut (*r).cgroup_ns_root_v2).write_volatile(root.0);
        (&raw mut (*r).cgroup_ns_root_v1).write_volatile(root.1);
        (&raw mut (*r).pid).write_volatile(pid);
        (&raw mut (*r).pid_ns).write_volatile(M::u32_at(pid_ns, layout!(pid_ns_inum)));
        (&raw mut (*r).cgroup_ns).write_volatile(cgroup_ns_inum);
        (&raw mut (*r).pid_ns_level).write_volatile(level);
        (&raw mut (*r).last_pid).write_volatile(last_pid);
        (&raw mut (*r).pad).write_volatile(0);
        // The kernel grows the buffer and calls again when the record did not fit.
        bpf_seq_write((*meta).seq, r.cast_const().cast(), size_of::<ContainerRecord>() as u32);
    }
    0
}
