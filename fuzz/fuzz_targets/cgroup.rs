//! Every reader of a cgroup file, v1 and v2, and the names of containers in cgroup paths.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lxcfs_user::cgroup::{parse, v1, v2};
use lxcfs_user::container::cgroup_path;
use lxcfs_user::units::Bytes;

fuzz_target!(|text: &str| {
    let _ = parse::number(text);
    let _ = parse::limit(text);
    let _ = parse::limit_v1(text, Bytes(4096));
    let _ = parse::cpu_max(text);
    let _ = parse::flat_value(text, "anon");
    let _ = parse::device_operations(text).count();
    let _ = parse::pids(text).count();
    for (_, fields) in parse::nested_keyed(text) {
        let _ = fields.count();
    }
    let (first, second) = text.split_once('\0').unwrap_or((text, ""));
    let _ = v1::memory_stat(text);
    let _ = v1::quota(first, second);
    let _ = v1::usage(first, second);
    let _ = v1::usage_all(text);
    let _ = v1::io(first, second);
    let _ = v2::memory_stat(text);
    let _ = v2::cpu_stat(text);
    let _ = v2::io_stat(text);
    let _ = cgroup_path::innermost(text);
    assert!(text.starts_with(cgroup_path::without_init_leaf(text)));
});
