//! Ours beside the last C lxcfs that knows cgroup v1.
#![cfg(feature = "vm-tests")]
// vm: 6.1/v1 swap=512 timeout=900
// vm: 6.12/v2 swap=512 append=psi=1 timeout=900

use lxcfs_tests::cgroup::{Layout, layout};
use lxcfs_tests::versus::compare_with;

#[test]
fn every_difference_from_the_last_c_lxcfs_with_v1_is_explained() {
    let version = match layout() {
        Layout::V2 => "5.0.3 v2",
        Layout::V1 | Layout::Hybrid => "5.0.3 v1",
    };
    compare_with("lxcfs-bookworm", version);
}
