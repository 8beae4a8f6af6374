//! From BTF to the offsets the eBPF programs want. Pure.
//!
//! A field counts as there only if its width is the expected one as well; a missing one
//! stays [`ABSENT`] and switches off what needs it. Nothing is guessed from versions.

use lxcfs_common::bpf::{ABSENT, KernelLayout};

use super::btf::{Btf, BtfError};

/// Structs, enums, functions and tracepoints the layout and the plan ask for.
const NAMES: &[&str] = &[
    "task_struct",
    "css_set",
    "cgroup_subsys_state",
    "cgroup",
    "cgroup_root",
    "cgroup_rstat_base_cpu",
    "cgroup_rstat_cpu",
    "cgroup_base_stat",
    "kernfs_node",
    "nsproxy",
    "pid_namespace",
    "cgroup_namespace",
    "bpf_array",
    "request",
    "request_queue",
    "gendisk",
    "bio",
    "block_device",
    "blkcg_gq",
    "blkcg",
    "cgroup_subsys_id",
    "bpf_iter_task",
    "bpf_iter_task_new",
    "bpf_iter_task_next",
    "bpf_iter_task_destroy",
    "btf_trace_cgroup_mkdir",
    "btf_trace_cgroup_rmdir",
    "btf_trace_sched_process_exec",
    "btf_trace_block_rq_complete",
    "btf_trace_block_rq_issue",
    "btf_trace_block_rq_requeue",
    "btf_trace_block_bio_backmerge",
    "btf_trace_block_bio_frontmerge",
];

/// Bytes of one per-CPU counter read: `cgroup_base_stat` has at most five of eight bytes.
const BSTAT_MAX: u32 = 40;

/// What the kernel offers, as far as its BTF tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelTypes {
    /// Field offsets; the gates that do not come from BTF are still [`ABSENT`].
    pub layout: KernelLayout,
    /// `cgroup_base_stat.ntime` from the start of the struct: niced user time, 6.11+.
    pub bstat_nice: Option<u32>,
    /// `enum cgroup_subsys_id`, for the controllers that matter here.
    pub subsystems: Subsystems,
    /// Whether tasks can be walked (5.8+).
    pub iter_task: bool,
    /// Numbers of `bpf_iter_task_new`, `_next` and `_destroy` (6.7+): a program can loop over
    /// tasks by itself.
    pub task_loop: Option<[u32; 3]>,
    /// Tracepoints that are there.
    pub tracepoints: Tracepoints,
    /// [`Btf::attach_points`].
    pub attach_points: Vec<u8>,
}

/// Index of controllers in `css_set.subsys`; depends on the kernel's configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Subsystems {
    /// `cpu_cgrp_id`
    pub cpu: Option<u32>,
    /// `cpuacct_cgrp_id`
    pub cpuacct: Option<u32>,
    /// `memory_cgrp_id`
    pub memory: Option<u32>,
    /// `pids_cgrp_id`
    pub pids: Option<u32>,
}

/// Which tracepoints the kernel has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tracepoints {
    /// `cgroup_mkdir`
    pub cgroup_mkdir: bool,
    /// `cgroup_rmdir`
    pub cgroup_rmdir: bool,
    /// `sched_process_exec`
    pub sched_process_exec: bool,
    /// `block_rq_complete`
    pub block_rq_complete: bool,
    /// How many arguments `block_rq_issue` and `block_rq_requeue` give, if they give as many.
    pub block_moves: Option<u32>,
    /// How many arguments `block_bio_backmerge` and `block_bio_frontmerge` give, if they
    /// agree: 1 (the bio) since 5.11, 3 (queue, request, bio) before.
    pub block_merges: Option<u32>,
}

/// Reads what is wanted out of a kernel's BTF.
pub fn resolve(bytes: &[u8]) -> Result<KernelTypes, BtfError> {
    let btf = Btf::parse(bytes, |name| {
        NAMES.iter().any(|wanted| wanted.as_bytes() == name)
    })?;
    let issue_arguments = btf.tracepoint_arguments("block_rq_issue");
    let merge_arguments = btf.tracepoint_arguments("block_bio_backmerge");
    Ok(KernelTypes {
        layout: offsets(&btf),
        bstat_nice: find(&btf, &["cgroup_base_stat"], &["ntime"], Some(8))
            .filter(|offset| offset + 8 <= BSTAT_MAX),
        subsystems: Subsystems {
            cpu: subsystem(&btf, "cpu_cgrp_id"),
            cpuacct: subsystem(&btf, "cpuacct_cgrp_id"),
            memory: subsystem(&btf, "memory_cgrp_id"),
            pids: subsystem(&btf, "pids_cgrp_id"),
        },
        iter_task: btf.has_function("bpf_iter_task"),
        task_loop: task_loop(&btf),
        attach_points: btf.attach_points(),
        tracepoints: Tracepoints {
            cgroup_mkdir: btf.tracepoint_arguments("cgroup_mkdir").is_some(),
            cgroup_rmdir: btf.tracepoint_arguments("cgroup_rmdir").is_some(),
            sched_process_exec: btf.tracepoint_arguments("sched_process_exec").is_some(),
            block_rq_complete: btf.tracepoint_arguments("block_rq_complete") == Some(3),
            block_moves: issue_arguments
                .filter(|_| issue_arguments == btf.tracepoint_arguments("block_rq_requeue")),
            block_merges: merge_arguments
                .filter(|_| merge_arguments == btf.tracepoint_arguments("block_bio_frontmerge")),
        },
    })
}

fn task_loop(btf: &Btf<'_>) -> Option<[u32; 3]> {
    Some([
        btf.function("bpf_iter_task_new")?,
        btf.function("bpf_iter_task_next")?,
        btf.function("bpf_iter_task_destroy")?,
    ])
}

/// The first of the fields that exists in the first of the structs that has it, if its
/// width is the one expected (`None`: any).
fn find(btf: &Btf<'_>, structs: &[&str], fields: &[&str], size: Option<u32>) -> Option<u32> {
    structs
        .iter()
        .flat_map(|container| fields.iter().filter_map(|path| btf.field(container, path)))
        .next()
        .filter(|field| size.is_none_or(|size| field.size == size))
        .map(|field| field.offset)
}

fn subsystem(btf: &Btf<'_>, name: &str) -> Option<u32> {
    let index = btf.enumerator("cgroup_subsys_id", name)?;
    let array = btf.field("css_set", "subsys")?;
    (index < array.size / 8).then_some(index)
}

fn offsets(btf: &Btf<'_>) -> KernelLayout {
    let one = |container: &str, path: &str, size: u32| {
        find(btf, &[container], &[path], Some(size)).unwrap_or(ABSENT)
    };
    let any =
        |container: &str, path: &str| find(btf, &[container], &[path], None).unwrap_or(ABSENT);
    let rstat = &["cgroup_rstat_base_cpu", "cgroup_rstat_cpu"];
    let state = btf
        .field("task_struct", "__state")
        .or_else(|| btf.field("task_struct", "state"));
    let within = |offset: u32| {
        if offset.saturating_add(8) <= BSTAT_MAX {
            offset
        } else {
            ABSENT
        }
    };
    KernelLayout {
        // A long before 5.14, four bytes since; the low four bytes hold every bit asked for.
        task_state: state
            .filter(|field| matches!(field.size, 4 | 8))
            .map_or(ABSENT, |field| field.offset),
        task_flags: one("task_struct", "flags", 4),
        task_pid: one("task_struct", "pid", 4),
        task_tgid: one("task_struct", "tgid", 4),
        task_start_boottime: one("task_struct", "start_boottime", 8),
        task_cgroups: one("task_struct", "cgroups", 8),
        task_nsproxy: one("task_struct", "nsproxy", 8),
        css_set_dfl_cgrp: one("css_set", "dfl_cgrp", 8),
        css_set_subsys: any("css_set", "subsys"),
        css_cgroup: one("cgroup_subsys_state", "cgroup", 8),
        css_parent: one("cgroup_subsys_state", "parent", 8),
        cgroup_self: any("cgroup", "self"),
        cgroup_kn: one("cgroup", "kn", 8),
        cgroup_level: one("cgroup", "level", 4),
        cgroup_root: one("cgroup", "root", 8),
        cgroup_root_hierarchy_id: one("cgroup_root", "hierarchy_id", 4),
        cgroup_rstat: find(btf, &["cgroup"], &["rstat_base_cpu", "rstat_cpu"], Some(8))
            .unwrap_or(ABSENT),
        rstat_bstat: find(btf, rstat, &["bstat"], None).unwrap_or(ABSENT),
        rstat_subtree_bstat: find(btf, rstat, &["subtree_bstat"], None).unwrap_or(ABSENT),
        bstat_stime: within(one("cgroup_base_stat", "cputime.stime", 8)),
        bstat_utime: within(one("cgroup_base_stat", "cputime.utime", 8)),
        bstat_exec: within(one("cgroup_base_stat", "cputime.sum_exec_runtime", 8)),
        kernfs_id: one("kernfs_node", "id", 8),
        nsproxy_pid_ns: one("nsproxy", "pid_ns_for_children", 8),
        nsproxy_cgroup_ns: one("nsproxy", "cgroup_ns", 8),
        pid_ns_child_reaper: one("pid_namespace", "child_reaper", 8),
        pid_ns_level: one("pid_namespace", "level", 4),
        pid_ns_inum: one("pid_namespace", "ns.inum", 4),
        pid_ns_idr_next: one("pid_namespace", "idr.idr_next", 4),
        cgroup_ns_root_cset: one("cgroup_namespace", "root_cset", 8),
        cgroup_ns_inum: one("cgroup_namespace", "ns.inum", 4),
        bpf_array_ptrs: any("bpf_array", "ptrs"),
        request_bio: one("request", "bio", 8),
        request_queue: one("request", "q", 8),
        request_disk: one("request", "rq_disk", 8),
        request_data_len: one("request", "__data_len", 4),
        request_cmd_flags: one("request", "cmd_flags", 4),
        request_start_time: one("request", "start_time_ns", 8),
        queue_disk: one("request_queue", "disk", 8),
        disk_major: one("gendisk", "major", 4),
        disk_first_minor: one("gendisk", "first_minor", 4),
        bio_blkg: one("bio", "bi_blkg", 8),
        bio_opf: one("bio", "bi_opf", 4),
        bio_bdev: one("bio", "bi_bdev", 8),
        bio_disk: one("bio", "bi_disk", 8),
        bdev_disk: one("block_device", "bd_disk", 8),
        blkg_blkcg: one("blkcg_gq", "blkcg", 8),
        blkcg_css: any("blkcg", "css"),
        gate_bstat_len: btf
            .field("cgroup_rstat_base_cpu", "bstat")
            .or_else(|| btf.field("cgroup_rstat_cpu", "bstat"))
            .map_or(ABSENT, |field| field.size.min(BSTAT_MAX)),
        ..KernelLayout::UNKNOWN
    }
}

#[cfg(test)]
mod tests;
