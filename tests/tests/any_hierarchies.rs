//! Where v1 and v2 are both mounted: their cgroup ids, which are unique only within one
//! hierarchy, are never mixed.
// vm: 6.1/hybrid

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use lxcfs_tests::TestCgroup;
use lxcfs_tests::scratch::{Cgroup, Child, Work, collector_with, v2_root};
use lxcfs_user::bpf::{CgroupId, Feature};

fn inode(cgroup: &Cgroup) -> u64 {
    fs::metadata(&cgroup.path).expect("metadata").ino()
}

/// A cgroup on each of the two hierarchies, both of one id.
fn twins(v1: &TestCgroup, controller: &str) -> (Cgroup, Cgroup) {
    let mut one = Cgroup::below(&v1.dir(controller), "twin");
    let mut other = Cgroup::below(&v2_root(), "twin");
    // Ids are given out in turn, per hierarchy: the one behind catches up.
    for _ in 0..1_000_000 {
        match inode(&one).cmp(&inode(&other)) {
            std::cmp::Ordering::Less => one = Cgroup::below(&v1.dir(controller), "twin"),
            std::cmp::Ordering::Greater => other = Cgroup::below(&v2_root(), "twin"),
            std::cmp::Ordering::Equal => return (one, other),
        }
    }
    panic!("{} and {} do not meet", inode(&one), inode(&other));
}

#[test]
fn cgroups_of_one_id_in_two_hierarchies_have_their_own_tasks() {
    let collector = collector_with(&[Feature::TaskCounts]);
    let controller = collector
        .v1_controller()
        .expect("no v1 controller is counted: this test needs v1 and v2 side by side");
    let parent = TestCgroup::new("hierarchies");
    let (v1, v2) = twins(&parent, controller);
    let id = inode(&v1);
    let _burners = [(); 2].map(|()| Child::start(&v1, Work::Burn(None)));
    let _sleepers = [(); 3].map(|()| Child::start(&v2, Work::Sleep));

    let sample = collector.sample_tasks().expect("sample_tasks");
    let counts = |id| {
        let counts = sample.counts(id);
        (counts.running, counts.threads)
    };
    println!("id {id} on v2 and on the v1 hierarchy of {controller}");
    assert_eq!(counts(CgroupId::V1(id)), (2, 2));
    assert_eq!(counts(CgroupId::V2(id)).1, 3);
    assert_eq!(sample.broken_chains, 0);
}
