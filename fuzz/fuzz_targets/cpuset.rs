//! CPU lists: what is accepted is printed and read back as the same set.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lxcfs_user::cpuset::CpuSet;

fuzz_target!(|text: &str| {
    if let Ok(set) = CpuSet::parse_list(text) {
        let printed = set.to_string();
        assert_eq!(CpuSet::parse_list(&printed).expect("our own text"), set);
        let _ = set.to_mask(set.last().unwrap_or(0).saturating_add(1));
    }
});
