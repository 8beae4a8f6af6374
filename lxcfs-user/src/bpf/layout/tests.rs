use super::*;

fn running_kernel() -> Vec<u8> {
    std::fs::read("/sys/kernel/btf/vmlinux").expect(
        "the running kernel has no BTF; boot one built with CONFIG_DEBUG_INFO_BTF=y to test on",
    )
}

#[test]
fn the_running_kernel_has_every_field_of_the_walks() {
    let types = resolve(&running_kernel()).unwrap();
    let layout = types.layout;
    assert!(types.iter_task);
    for offset in [
        layout.task_state,
        layout.task_cgroups,
        layout.css_set_dfl_cgrp,
        layout.cgroup_kn,
        layout.kernfs_id,
        layout.cgroup_rstat,
        layout.bstat_exec,
        layout.pid_ns_idr_next,
        layout.bpf_array_ptrs,
    ] {
        assert_ne!(offset, ABSENT);
    }
    // Two fields of one struct are never in the same place.
    assert_ne!(layout.task_pid, layout.task_tgid);
    assert_eq!(layout.bstat_utime.abs_diff(layout.bstat_stime), 8);
}

#[test]
fn a_cut_or_damaged_kernel_btf_is_survived() {
    let whole = running_kernel();
    for divisor in 2..12 {
        let _ = resolve(&whole[..whole.len() / divisor]);
    }
    for step in [3_001_usize, 7_919] {
        let mut damaged = whole.clone();
        for at in (24..damaged.len()).step_by(step) {
            damaged[at] ^= 0xa5;
        }
        let _ = resolve(&damaged);
    }
}

#[test]
fn an_absent_struct_leaves_its_fields_absent() {
    // A header with empty sections is valid BTF of a kernel that has nothing.
    let mut empty = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
    empty.resize(24, 0);
    let types = resolve(&empty).unwrap();
    assert_eq!(types.layout, KernelLayout::UNKNOWN);
    assert!(!types.iter_task);
    assert_eq!(types.subsystems, Subsystems::default());
}
