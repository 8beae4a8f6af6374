//! `lockdown=confidentiality`: what reads kernel memory by address is off and says so, in the
//! log, the metric and `lxcfs doctor`; everything else works as ever, and leaves nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "vm-tests")]
// vm: all/v2 append=lockdown=confidentiality

use lxcfs_tests::Lxcfs;
use lxcfs_tests::lifecycle::kill_reload_upgrade_and_stop;
use lxcfs_tests::states::{assert_off, assert_on, assert_served, metrics};
use lxcfs_user::bpf::Feature;

/// What the table in docs/kernel-support.md says is off on this kernel.
fn off_here() -> Vec<Feature> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    if version < (6, 1) {
        Feature::ALL.to_vec()
    } else if version < (6, 6) {
        vec![
            Feature::CgroupCpu,
            Feature::RemovedCgroupTimes,
            Feature::CgroupEvents,
        ]
    } else {
        vec![Feature::CgroupCpu]
    }
}

#[test]
fn only_what_reads_by_address_is_off_and_the_remedy_is_named() {
    let mode = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap();
    assert!(mode.contains("[confidentiality]"), "{mode}");
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let off = off_here();
    for feature in Feature::ALL {
        if off.contains(&feature) {
            assert_off(
                &lxcfs,
                feature.name(),
                "lockdown=confidentiality forbids bpf_probe_read_kernel",
                "boot with lockdown=integrity",
            );
        } else {
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

#[test]
fn kills_reloads_upgrades_and_a_stop_leave_the_kernel_as_it_was() {
    kill_reload_upgrade_and_stop(off_here().len() < Feature::ALL.len());
}
