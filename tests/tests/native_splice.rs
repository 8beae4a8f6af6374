//! Programs that do not read(2): sendfile(2), splice(2) and mmap(2) go through the page
//! cache, which is shared by all containers. busybox's `cat` tries sendfile first.

use std::fs::File;
use std::io::Write;
use std::process::Command;

use lxcfs_common::catalogue::{Kind, attached_by_default};
use lxcfs_tests::{Lxcfs, stdout_of};

#[test]
fn busybox_cat_shows_every_file_whole() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    for entry in attached_by_default().filter(|entry| matches!(entry.kind, Kind::File(_))) {
        let file = lxcfs.file(entry.path);
        // Not on every kernel: /proc/pressure/irq.
        let Ok(read) = std::fs::read_to_string(&file) else {
            continue;
        };
        let cat = stdout_of(Command::new("busybox").arg("cat").arg(&file));
        assert_eq!(
            cat.lines().count(),
            read.lines().count(),
            "{}: {cat:?}",
            entry.path
        );
    }
}

#[test]
fn no_text_reaches_the_page_cache_that_containers_share() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    for path in ["proc/meminfo", "sys/devices/system/cpu/online"] {
        let from = File::open(lxcfs.file(path)).unwrap();
        let to = File::options().write(true).open("/dev/null").unwrap();
        let sent = nix::sys::sendfile::sendfile(&to, &from, None, 4096);
        assert_eq!(sent, Err(nix::errno::Errno::EINVAL), "{path}");
    }
}

#[test]
fn the_announced_size_misleads_neither_tail_nor_copying() {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let uptime = lxcfs.file("proc/swaps");
    let whole = std::fs::read_to_string(&uptime).unwrap();
    for tail in [&["tail", "-n1"][..], &["busybox", "tail", "-n1"][..]] {
        let last = stdout_of(Command::new(tail[0]).args(&tail[1..]).arg(&uptime));
        assert_eq!(last.trim_end(), whole.lines().last().unwrap(), "{tail:?}");
    }
    let copy = tempfile::NamedTempFile::new().unwrap();
    copy.as_file().flush().unwrap();
    for cp in [&["cp"][..], &["busybox", "cp"][..]] {
        stdout_of(
            Command::new(cp[0])
                .args(&cp[1..])
                .arg(&uptime)
                .arg(copy.path()),
        );
        assert_eq!(
            std::fs::read_to_string(copy.path()).unwrap(),
            whole,
            "{cp:?}"
        );
    }
}
