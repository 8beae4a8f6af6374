//! `/proc/PID/mountinfo`: both readers, and looking up any path that comes out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lxcfs_user::cgroup::layout::Layout;
use lxcfs_user::mountinfo::parse;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(table) = parse(bytes) {
        for mount in table.mounts() {
            let _ = table.walk(&mount.mount_point);
            let _ = table.stack(&mount.mount_point).top();
        }
    }
    let text = String::from_utf8_lossy(bytes);
    if let Ok(layout) = Layout::detect(&text, |_| "cpu memory".to_owned()) {
        assert!(!layout.hierarchies.is_empty());
        let _ = layout.paths(&text);
    }
});
