//! What the programs cost the verifier, and that every one loads.

use std::collections::BTreeMap;

use lxcfs_tests::scratch::state_of;
use lxcfs_user::bpf::{Collector, Feature, Options};

/// Most instructions the verifier may go through, by program: well above what was measured
/// on the worst of the kernels in docs/kernel-support.md (`cgroup_cpu` and `cgroup_gone` grow
/// with the CPUs, the `_pr` ones run where kernels hardly tell). A program above it has grown
/// a loop or a branch that multiplies; look before raising the bound.
const BOUNDS: &[(&str, u32)] = &[
    ("block_backmerge", 1_000),
    ("block_backmerge_old", 1_000),
    ("block_backmerge_pr", 1_000),
    ("block_done", 1_000),
    ("block_done_pr", 1_000),
    ("block_frontmerge", 1_000),
    ("block_frontmerge_old", 1_000),
    ("block_frontmerge_pr", 1_000),
    ("cgroup_cpu", 20_000),
    ("cgroup_gone", 12_000),
    ("cgroup_mkdir", 1_000),
    ("cgroup_mkdir_pr", 1_000),
    ("cgroup_rmdir", 1_000),
    ("container_exec", 1_000),
    ("container_exec_pr", 1_000),
    ("containers", 1_000),
    ("containers_pr", 1_000),
    ("load_tasks", 15_000),
    ("load_tasks_pr", 200_000),
    ("percpu_offset", 1_000),
];

#[test]
fn every_feature_is_on_and_no_program_outgrows_the_verifier() {
    let (collector, states) = Collector::start(&Options::default());
    for feature in Feature::ALL {
        let state = state_of(&states, feature);
        println!("{state}");
        assert!(state.on, "{state}");
    }
    let bounds: BTreeMap<_, _> = BOUNDS.iter().copied().collect();
    let programs = collector.programs();
    assert!(programs.len() >= 10, "{programs:?}");
    for program in programs {
        let verified = program
            .verified
            .map_or("-".to_owned(), |count| count.to_string());
        println!(
            "{:<22} {verified:>8} {:>6} bytes",
            program.name, program.jited
        );
        let bound = bounds
            .get(program.name.as_str())
            .expect("a bound for each program");
        // Before 5.16 the kernel does not tell; its own limit is a million.
        assert!(
            program.verified.is_none_or(|count| count <= *bound),
            "{}",
            program.name
        );
    }
    for (what, count) in collector.losses() {
        assert_eq!(count, 0, "{what}");
    }
}
