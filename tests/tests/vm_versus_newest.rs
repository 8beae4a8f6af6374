//! Ours beside the newest C lxcfs, which knows cgroup v2 alone.
#![cfg(feature = "vm-tests")]
// vm: 6.12/v2 swap=512 append=psi=1 timeout=900

use lxcfs_tests::versus::compare_with;

#[test]
fn every_difference_from_the_newest_c_lxcfs_is_explained() {
    compare_with("lxcfs-sid", "7.0.0 v2");
}
