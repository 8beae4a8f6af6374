//! Files of `/proc/PID` that a process can write itself into: its name is its own choice.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lxcfs_user::host::task;

fuzz_target!(|text: &str| {
    if let Some(stat) = task::TaskStat::parse(text) {
        let _ = stat.start(100);
        let _ = stat.start(0);
    }
    let _ = task::ns_pids(text);
    let _ = task::tgid(text);
    let _ = task::namespace_inode(text);
    let _ = task::boottime_offset(text);
});
