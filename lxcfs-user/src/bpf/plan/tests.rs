use super::*;
use crate::bpf::layout::{Subsystems, Tracepoints};

/// A kernel with everything, at made-up places.
fn types() -> KernelTypes {
    let mut layout = KernelLayout::UNKNOWN;
    let fields: &mut [u32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut layout));
    for (index, field) in fields.iter_mut().enumerate() {
        *field = index as u32 * 8;
    }
    KernelTypes {
        layout,
        bstat_nice: Some(24),
        subsystems: Subsystems {
            cpu: Some(1),
            cpuacct: Some(2),
            ..Default::default()
        },
        iter_task: true,
        task_loop: None,
        tracepoints: Tracepoints {
            cgroup_mkdir: true,
            cgroup_rmdir: true,
            sched_process_exec: true,
            block_rq_complete: true,
            block_moves: Some(1),
            block_merges: Some(1),
        },
        attach_points: Vec::new(),
    }
}

fn facts(kernel: (u32, u32)) -> Facts {
    Facts {
        disabled: false,
        kernel,
        types: Ok(types()),
        host_pid_ns: true,
        host_user_ns: true,
        capable: true,
        confidential: false,
        cpus: 4,
        v1: V1Controllers::default(),
        v2_mounted: true,
    }
}

fn without_subtree(kernel: (u32, u32)) -> Facts {
    let mut old = types();
    old.layout.rstat_subtree_bstat = ABSENT;
    Facts {
        types: Ok(old),
        ..facts(kernel)
    }
}

fn programs(plan: &Plan, feature: Feature) -> Vec<&'static str> {
    match decision(plan, feature) {
        Decision::Load(programs, _) => programs.iter().map(|program| program.name).collect(),
        _ => Vec::new(),
    }
}

fn decision(plan: &Plan, feature: Feature) -> &Decision {
    plan.decisions
        .iter()
        .find(|(name, _)| *name == feature)
        .map(|(_, decision)| decision)
        .unwrap()
}

fn reason(plan: &Plan, feature: Feature) -> &str {
    match decision(plan, feature) {
        Decision::Off { reason, .. } => reason,
        other => panic!("{feature} is not off: {other:?}"),
    }
}

#[test]
fn the_loop_over_tasks_needs_the_kernels_functions_and_direct_loads() {
    let with = |kernel| {
        let mut facts = facts(kernel);
        facts.types.as_mut().unwrap().task_loop = Some([7, 8, 9]);
        plan(&facts)
    };
    assert_eq!(with((6, 12)).task_loop, Some([7, 8, 9]));
    assert_eq!(with((5, 15)).task_loop, None);
    assert_eq!(plan(&facts((6, 6))).task_loop, None);
}

#[test]
fn kernels_get_the_programs_that_fit() {
    let new = plan(&facts((6, 12)));
    assert_eq!(programs(&new, Feature::TaskCounts), ["load_tasks"]);
    assert_eq!(
        programs(&new, Feature::CgroupCpu),
        ["percpu_offset", "cgroup_cpu"]
    );
    assert_eq!(
        programs(&new, Feature::CgroupEvents),
        ["cgroup_mkdir", "cgroup_rmdir"]
    );
    assert!(matches!(
        decision(&new, Feature::RemovedCgroupTimes),
        Decision::NotNeeded(_)
    ));
    assert_eq!(new.layout.gate_frozen_flags, 0);

    let middle = plan(&without_subtree((6, 1)));
    assert_eq!(programs(&middle, Feature::TaskCounts), ["load_tasks"]);
    assert_eq!(
        programs(&middle, Feature::RemovedCgroupTimes),
        ["cgroup_gone"]
    );
    assert_eq!(
        programs(&middle, Feature::CgroupEvents),
        ["cgroup_mkdir", "cgroup_gone"]
    );

    let old = plan(&without_subtree((5, 10)));
    assert_eq!(programs(&old, Feature::TaskCounts), ["load_tasks_pr"]);
    assert_eq!(programs(&old, Feature::ContainerInits), ["containers_pr"]);
    assert_eq!(
        programs(&old, Feature::CgroupEvents),
        ["cgroup_mkdir_pr", "cgroup_gone"]
    );
    assert_eq!(old.layout.gate_frozen_flags, PF_FROZEN);
    assert_eq!(old.layout.gate_carry, 1);
}

#[test]
fn no_program_that_loads_directly_runs_before_6_1() {
    for kernel in [(5, 8), (5, 10), (5, 15), (6, 0)] {
        for (feature, decision) in plan(&without_subtree(kernel)).decisions {
            let Decision::Load(programs, _) = decision else {
                continue;
            };
            for program in programs {
                let probing = program.name.ends_with("_pr")
                    || matches!(program.name, "cgroup_gone" | "percpu_offset" | "cgroup_cpu");
                assert!(probing, "{feature} loads {} on {kernel:?}", program.name);
            }
        }
    }
}

#[test]
fn obstacles_switch_everything_off_and_name_the_remedy() {
    let base = facts((6, 12));
    let table = [
        (
            Facts {
                disabled: true,
                ..base.clone()
            },
            "--no-ebpf",
            "",
        ),
        (
            Facts {
                kernel: (5, 4),
                ..base.clone()
            },
            "5.4",
            "5.8",
        ),
        (
            Facts {
                host_pid_ns: false,
                ..base.clone()
            },
            "PID namespace",
            "hostPID",
        ),
        (
            Facts {
                host_user_ns: false,
                ..base.clone()
            },
            "user namespace",
            "host's",
        ),
        (
            Facts {
                capable: false,
                ..base.clone()
            },
            "CAP_BPF",
            "CAP_PERFMON",
        ),
        (
            Facts {
                types: Err("no BTF".to_owned()),
                ..base
            },
            "no BTF",
            "CONFIG_DEBUG_INFO_BTF",
        ),
    ];
    for (facts, why, what) in table {
        let plan = plan(&facts);
        assert_eq!(plan.decisions.len(), Feature::ALL.len());
        for (_, decision) in &plan.decisions {
            let Decision::Off { reason, remedy } = decision else {
                panic!("{decision:?}")
            };
            assert!(reason.contains(why), "{reason}");
            assert!(remedy.contains(what), "{remedy}");
        }
    }
}

#[test]
fn confidentiality_leaves_the_direct_loads() {
    let plan = plan(&Facts {
        confidential: true,
        ..facts((6, 12))
    });
    assert_eq!(programs(&plan, Feature::TaskCounts), ["load_tasks"]);
    assert_eq!(
        programs(&plan, Feature::CgroupEvents),
        ["cgroup_mkdir", "cgroup_rmdir"]
    );
    assert!(reason(&plan, Feature::CgroupCpu).contains("confidentiality"));
    let old = super::plan(&Facts {
        confidential: true,
        ..without_subtree((5, 15))
    });
    assert!(reason(&old, Feature::TaskCounts).contains("confidentiality"));
}

#[test]
fn merges_are_counted_by_the_program_that_fits_the_tracepoint() {
    let mut old = without_subtree((5, 10));
    if let Ok(types) = &mut old.types {
        types.tracepoints.block_merges = Some(3);
        types.tracepoints.block_moves = Some(2);
    }
    assert_eq!(
        programs(&plan(&old), Feature::BlockTimes),
        [
            "block_done_pr",
            "block_backmerge_old",
            "block_frontmerge_old",
            "block_issue_old",
            "block_requeue_old"
        ]
    );
    let unknown = Facts {
        kernel: (6, 12),
        ..old
    };
    assert!(reason(&plan(&unknown), Feature::BlockTimes).contains("block_bio_backmerge"));
}

#[test]
fn a_missing_field_is_named_and_hurts_only_its_feature() {
    let mut lacking = types();
    lacking.layout.bio_blkg = ABSENT;
    let plan = plan(&Facts {
        types: Ok(lacking),
        ..facts((6, 12))
    });
    assert!(reason(&plan, Feature::BlockTimes).contains("bio_blkg"));
    assert_eq!(programs(&plan, Feature::TaskCounts), ["load_tasks"]);
}

#[test]
fn the_counted_v1_hierarchy_is_that_of_cpu_if_it_is_on_one() {
    let v1 = V1Controllers {
        cpu: true,
        cpuacct: true,
        ..Default::default()
    };
    let both = plan(&Facts {
        v1,
        ..facts((6, 12))
    });
    assert_eq!(
        (both.v1_controller, both.layout.gate_v1_subsys),
        (Some("cpu"), 1)
    );
    let v1 = V1Controllers {
        cpuacct: true,
        ..Default::default()
    };
    assert_eq!(
        plan(&Facts {
            v1,
            ..facts((6, 12))
        })
        .v1_controller,
        Some("cpuacct")
    );
    let none = plan(&facts((6, 12)));
    assert_eq!(
        (none.v1_controller, none.layout.gate_v1_subsys),
        (None, ABSENT)
    );
}

#[test]
fn without_v2_or_before_5_10_there_is_no_per_cpu_time() {
    let no_v2 = plan(&Facts {
        v2_mounted: false,
        ..facts((6, 12))
    });
    assert!(reason(&no_v2, Feature::CgroupCpu).contains("v2"));
    let early = plan(&without_subtree((5, 8)));
    assert!(reason(&early, Feature::CgroupCpu).contains("5.10"));
    assert!(reason(&early, Feature::RemovedCgroupTimes).contains("5.10"));
}
