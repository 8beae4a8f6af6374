//! Where the running kernel keeps its fields, as constants for the eBPF programs.

use bytemuck::{Pod, Zeroable};

/// The value of an offset that this kernel's BTF does not have. The programs keep each use
/// behind a comparison with it, so the verifier never sees a load at a guessed place.
pub const ABSENT: u32 = u32::MAX;

macro_rules! kernel_layout {
    ($($(#[doc = $doc:literal])+ $field:ident,)+) => {
        /// Byte offsets in this kernel's structs, and the few gates that are no offset.
        ///
        /// Userspace fills it from `/sys/kernel/btf/vmlinux` before loading; the programs
        /// see it as read-only data, so the verifier treats each field as a constant.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
        #[repr(C)]
        pub struct KernelLayout {
            $($(#[doc = $doc])+ pub $field: u32,)+
        }

        impl KernelLayout {
            /// A kernel of which nothing is known.
            pub const UNKNOWN: Self = Self { $($field: ABSENT,)+ };
            /// Number of fields.
            pub const FIELDS: usize = [$(stringify!($field)),+].len();
        }
    };
}

kernel_layout! {
    /// `task_struct.__state` (`state` before 5.14); the low four bytes of either.
    task_state,
    /// `task_struct.flags`
    task_flags,
    /// `task_struct.pid`: the thread id in the initial PID namespace.
    task_pid,
    /// `task_struct.tgid`
    task_tgid,
    /// `task_struct.start_boottime`, nanoseconds.
    task_start_boottime,
    /// `task_struct.cgroups` (`css_set`)
    task_cgroups,
    /// `task_struct.nsproxy`; the pointer is null in exiting tasks.
    task_nsproxy,
    /// `css_set.dfl_cgrp`: the cgroup on the v2 hierarchy.
    css_set_dfl_cgrp,
    /// `css_set.subsys`: array of `cgroup_subsys_state` pointers.
    css_set_subsys,
    /// `cgroup_subsys_state.cgroup`
    css_cgroup,
    /// `cgroup_subsys_state.parent`
    css_parent,
    /// `cgroup.self`, an embedded `cgroup_subsys_state`.
    cgroup_self,
    /// `cgroup.kn` (`kernfs_node`)
    cgroup_kn,
    /// `cgroup.level`: 0 for the root of a hierarchy.
    cgroup_level,
    /// `cgroup.root` (`cgroup_root`)
    cgroup_root,
    /// `cgroup_root.hierarchy_id`: 0 for the v2 hierarchy, as in `/proc/cgroups`.
    cgroup_root_hierarchy_id,
    /// `cgroup.rstat_base_cpu` (`rstat_cpu` before 6.17): per-CPU pointer.
    cgroup_rstat,
    /// `bstat` of `cgroup_rstat_base_cpu`: a `cgroup_base_stat` of the cgroup's own tasks.
    rstat_bstat,
    /// `subtree_bstat` of `cgroup_rstat_base_cpu`: with descendants, removed ones included.
    rstat_subtree_bstat,
    /// `cgroup_base_stat.cputime.stime`, nanoseconds.
    bstat_stime,
    /// `cgroup_base_stat.cputime.utime`, nanoseconds.
    bstat_utime,
    /// `cgroup_base_stat.cputime.sum_exec_runtime`, nanoseconds.
    bstat_exec,
    /// `kernfs_node.id`
    kernfs_id,
    /// `nsproxy.pid_ns_for_children`
    nsproxy_pid_ns,
    /// `nsproxy.cgroup_ns`
    nsproxy_cgroup_ns,
    /// `pid_namespace.child_reaper`: the namespace's init.
    pid_ns_child_reaper,
    /// `pid_namespace.level`: 0 for the initial namespace.
    pid_ns_level,
    /// `pid_namespace.ns.inum`
    pid_ns_inum,
    /// `pid_namespace.idr.idr_next`: one more than the last PID given out.
    pid_ns_idr_next,
    /// `cgroup_namespace.root_cset` (`css_set`)
    cgroup_ns_root_cset,
    /// `cgroup_namespace.ns.inum`
    cgroup_ns_inum,
    /// `bpf_array.ptrs`, which shares its place with `pptrs`.
    bpf_array_ptrs,
    /// `request.bio`; null for flushes.
    request_bio,
    /// `request.q` (`request_queue`)
    request_queue,
    /// `request.rq_disk` (`gendisk`), before 5.17.
    request_disk,
    /// `request.__data_len`: bytes still to be done.
    request_data_len,
    /// `request.cmd_flags`: the operation is in the low eight bits.
    request_cmd_flags,
    /// `request.start_time_ns`, on the monotonic clock; 0 when the queue keeps no times.
    request_start_time,
    /// `request_queue.disk` (`gendisk`), since 5.15.
    queue_disk,
    /// `gendisk.major`
    disk_major,
    /// `gendisk.first_minor`
    disk_first_minor,
    /// `bio.bi_blkg` (`blkcg_gq`)
    bio_blkg,
    /// `bio.bi_opf`
    bio_opf,
    /// `bio.bi_bdev` (`block_device`), since 5.12.
    bio_bdev,
    /// `bio.bi_disk` (`gendisk`), before 5.12.
    bio_disk,
    /// `block_device.bd_disk` (`gendisk`)
    bdev_disk,
    /// `blkcg_gq.blkcg`
    blkg_blkcg,
    /// `blkcg.css`, an embedded `cgroup_subsys_state`.
    blkcg_css,

    /// Bits of `task_struct.flags` that take an uninterruptible task out of the load:
    /// `PF_FROZEN` before 6.1, none afterwards (the bit means something else there).
    gate_frozen_flags,
    /// Index in `css_set.subsys` of the controller whose v1 hierarchy is counted as well;
    /// [`ABSENT`] when no controller of interest is on v1.
    gate_v1_subsys,
    /// Number of possible CPUs.
    gate_cpus,
    /// Bytes of one per-CPU read from `cgroup_base_stat`, at most 40.
    gate_bstat_len,
    /// Not [`ABSENT`] when `cgroup_gone` has to keep the times of removed cgroups.
    gate_carry,
    /// Not [`ABSENT`] when cgroup and container events are wanted.
    gate_events,
}

const _: () = assert!(size_of::<KernelLayout>() == KernelLayout::FIELDS * 4);

impl Default for KernelLayout {
    fn default() -> Self {
        Self::UNKNOWN
    }
}
