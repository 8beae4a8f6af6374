use super::*;
use proptest::prelude::*;
use std::os::unix::ffi::OsStrExt;

const PODMAN: &str = "\
610 609 0:63 / / rw,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b
611 610 0:67 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
612 610 0:68 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
613 610 0:69 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
614 611 0:51 /proc/meminfo /proc/meminfo rw,nosuid,nodev shared:7 master:3 propagate_from:2 - fuse.lxcfs lxcfs rw,user_id=0,group_id=0,allow_other
615 614 0:52 /proc/meminfo /proc/meminfo rw,nosuid,nodev - fuse.lxcfs lxcfs rw
616 611 0:67 /sys /proc/sys ro,nosuid,nodev,noexec,relatime - proc proc rw
617 610 254:1 /odd\\040dir\\134x /mnt/a\\011b\\012c rw unbindable newtag - ext4 /dev/disk\\043one rw
";

#[test]
fn every_field_of_a_line_is_read() {
    let table = parse(PODMAN.as_bytes()).unwrap();
    assert_eq!(table.mounts().len(), 8);
    let bound = table.by_id(MountId(614)).unwrap();
    assert_eq!(bound.parent, MountId(611));
    assert_eq!(
        bound.device,
        Device {
            major: 0,
            minor: 51
        }
    );
    assert_eq!(bound.root, Path::new("/proc/meminfo"));
    assert_eq!((bound.shared, bound.master), (Some(7), Some(3)));
    assert_eq!(bound.fs_type, "fuse.lxcfs");
    let odd = table.by_id(MountId(617)).unwrap();
    assert_eq!(odd.root, Path::new("/odd dir\\x"));
    assert_eq!(odd.mount_point, Path::new("/mnt/a\tb\nc"));
    assert_eq!(odd.source, "/dev/disk#one");
    assert_eq!((odd.shared, odd.master), (None, None));
}

#[test]
fn a_stack_lists_layers_bottom_first_above_their_base() {
    let table = parse(PODMAN.as_bytes()).unwrap();
    let stack = table.stack(Path::new("/proc/meminfo"));
    assert_eq!(stack.base.unwrap().id, MountId(611));
    let layers: Vec<u32> = stack.layers.iter().map(|layer| layer.id.0).collect();
    assert_eq!(layers, [614, 615]);
    assert_eq!(stack.top().unwrap().id, MountId(615));
    let bare = table.stack(Path::new("/proc/stat"));
    assert_eq!((bare.base.unwrap().id.0, bare.layers.len()), (611, 0));
}

#[test]
fn a_mount_hidden_by_a_later_one_above_it_is_not_on_the_path() {
    // /proc/stat was bound on the first procfs; a second procfs then covered /proc.
    let table = parse(
        b"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / /proc rw - proc proc rw\n\
          3 2 0:9 /proc/stat /proc/stat rw - fuse.lxcfs lxcfs rw\n4 2 0:6 / /proc rw - proc proc rw\n",
    )
    .unwrap();
    let stack = table.stack(Path::new("/proc/stat"));
    assert_eq!(stack.base.unwrap().id, MountId(4));
    assert!(stack.layers.is_empty());
}

#[test]
fn a_shorter_mount_point_is_crossed_before_a_longer_one() {
    // Both hang on the root mount: /proc/stat was bound onto the image's own directory
    // before a procfs covered it.
    let table = parse(
        b"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:9 /x /proc/stat rw - fuse.lxcfs lxcfs rw\n\
          3 1 0:5 / /proc rw - proc proc rw\n",
    )
    .unwrap();
    assert_eq!(
        table.stack(Path::new("/proc/stat")).top().unwrap().id,
        MountId(3)
    );
}

#[test]
fn a_name_that_only_begins_alike_is_another_path() {
    let table = parse(
        b"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / /proc rw - proc proc rw\n\
          3 2 0:9 /x /proc/st rw - tmpfs t rw\n",
    )
    .unwrap();
    assert!(table.stack(Path::new("/proc/stat")).layers.is_empty());
}

#[test]
fn a_chrooted_process_has_mounts_without_a_root_mount() {
    let table = parse(
        b"40 27 0:5 / /proc rw - proc proc rw\n41 40 0:9 /x /proc/stat rw - fuse.lxcfs l rw\n",
    )
    .unwrap();
    let stack = table.stack(Path::new("/proc/stat"));
    assert_eq!((stack.base.unwrap().id.0, stack.layers.len()), (40, 1));
    assert!(table.stack(Path::new("/sys")).base.is_none());
}

#[test]
fn a_table_seen_from_a_directory_has_only_what_lies_in_it() {
    let table = parse(
        b"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / /proc rw - proc proc rw\n\
          3 1 0:6 / /run/c/rootfs rw - overlay o rw\n4 3 0:5 / /run/c/rootfs/proc rw - proc proc rw\n",
    )
    .unwrap();
    let inside = table.below(Path::new("/run/c/rootfs"));
    assert_eq!(inside.mounts().len(), 2);
    assert_eq!(
        inside.stack(Path::new("/proc")).top().unwrap().id,
        MountId(4)
    );
    assert_eq!(
        inside.walk(Path::new("/etc")).last().unwrap().id,
        MountId(3)
    );
}

#[test]
fn malformed_lines_name_their_number_and_field() {
    let err = parse(b"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 05 / /proc rw - proc proc rw\n")
        .unwrap_err();
    assert_eq!(
        err,
        ParseError {
            line: 2,
            what: "device"
        }
    );
    assert_eq!(parse(b"1 0 8:1 / / rw").unwrap_err().what, "separator");
    assert!(parse(b"").unwrap().mounts().is_empty());
}

#[test]
fn this_machines_own_table_parses_and_ends_at_its_proc() {
    let text = std::fs::read("/proc/self/mountinfo").unwrap();
    let table = parse(&text).unwrap();
    assert_eq!(
        table.walk(Path::new("/proc")).last().unwrap().fs_type,
        "proc"
    );
}

fn escape(bytes: &[u8]) -> String {
    let mut out = String::new();
    for &byte in bytes {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => out.push_str(&format!("\\{byte:03o}")),
            _ => out.push(byte as char),
        }
    }
    out
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(table) = parse(&bytes) {
            let _ = table.stack(Path::new("/proc/meminfo"));
        }
    }

    #[test]
    fn what_the_kernel_escapes_comes_back(name in "[ -~\t\n]{1,40}", id in any::<u32>(), minor in 0u32..1 << 20) {
        let line = format!("{id} 7 0:{minor} /{0} /m{0} rw,a=b shared:1 - fuse.{1} {0}x rw", escape(name.as_bytes()), "lxcfs");
        let table = parse(line.as_bytes()).unwrap();
        let mount = &table.mounts()[0];
        prop_assert_eq!(mount.id, MountId(id));
        prop_assert_eq!(mount.device.minor, minor);
        prop_assert_eq!(mount.root.as_os_str().as_bytes().to_vec(), format!("/{name}").into_bytes());
        prop_assert_eq!(mount.mount_point.as_os_str().as_bytes().to_vec(), format!("/m{name}").into_bytes());
    }

    #[test]
    fn any_tree_of_mounts_is_walked_to_an_end(parents in proptest::collection::vec((0u32..12, 0usize..4), 1..12)) {
        let points = ["/", "/proc", "/proc/stat", "/sys"];
        let mounts = parents.iter().enumerate().map(|(id, &(parent, point))| Mount {
            id: MountId(id as u32), parent: MountId(parent), device: Device { major: 0, minor: 1 },
            root: "/".into(), mount_point: points[point].into(), shared: None, master: None,
            fs_type: "proc".into(), source: "proc".into(),
        }).collect();
        let table = MountTable::new(mounts);
        prop_assert!(table.walk(Path::new("/proc/stat")).len() <= parents.len() + 1);
    }
}
