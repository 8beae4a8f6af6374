//! `lockdown=confidentiality`: what reads kernel memory by address is off and says so, in the
//! log, the metric and `lxcfs doctor`; everything else works as ever, and leaves nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "vm-tests")]
// vm: 6.12/v2 append=lockdown=confidentiality

use lxcfs_tests::Lxcfs;
use lxcfs_tests::states::{assert_off, assert_on, assert_served, metrics};
use lxcfs_user::bpf::Feature;

#[test]
fn only_what_reads_by_address_is_off_and_the_remedy_is_named() {
    let mode = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap();
    assert!(mode.contains("[confidentiality]"), "{mode}");
    let lxcfs = Lxcfs::start::<&str>(&[]);
    assert_off(
        &lxcfs,
        "cgroup_cpu",
        "lockdown=confidentiality forbids bpf_probe_read_kernel",
        "boot with lockdown=integrity",
    );
    for feature in Feature::ALL {
        if feature != Feature::CgroupCpu {
            assert_on(&lxcfs, feature.name());
        }
    }
    assert_served(&lxcfs);
    let text = metrics(&lxcfs);
    let spread = "lxcfs_fallbacks_total{field=\"stat\",reason=\"no_per_cpu_time\"} ";
    let counted = text.lines().find_map(|line| line.strip_prefix(spread));
    assert!(counted.is_some_and(|count| count != "0"), "{text}");
    lxcfs.stop();
}
