//! The kernel's type information, and every question that is asked of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lxcfs_user::bpf::btf::Btf;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(btf) = Btf::parse(bytes, |_| true) {
        let _ = btf.field("task_struct", "cgroups.dfl_cgrp");
        let _ = btf.enumerator("cgroup_subsys_id", "cpu_cgrp_id");
        let _ = btf.has_function("cgroup_rstat_updated");
        let _ = btf.tracepoint_arguments("block_rq_complete");
    }
});
