use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use lxcfs_common::catalogue::ROOT_INO;

use super::psi::{NoJournal, Wake};
use super::*;
use crate::cpuset::CpuSet;
use crate::engine::AnswerError;
use crate::policy::FilesOff;

/// Answers with a number that grows: each text differs from the one before.
struct Counting {
    texts: AtomicU64,
    len: usize,
    off: FilesOff,
}

impl Engine for Counting {
    fn render(&self, caller: Caller, _node: Node, out: &mut Vec<u8>) -> Result<(), AnswerError> {
        if caller.tid == 0 {
            out.extend_from_slice(b"partial");
            return Err(AnswerError::Caller {
                tid: 0,
                reason: "not visible",
            });
        }
        let text = self.texts.fetch_add(1, Ordering::Relaxed);
        let byte = b'a' + (text % 26) as u8;
        out.resize(self.len + text as usize, byte);
        Ok(())
    }

    fn visible_cpus(&self, caller: Caller) -> Result<CpuSet, AnswerError> {
        Ok(CpuSet::first(caller.tid))
    }

    fn visible_nodes(&self, _caller: Caller) -> Result<CpuSet, AnswerError> {
        Ok(CpuSet::first(1))
    }

    fn possible_cpus(&self) -> CpuSet {
        CpuSet::first(300)
    }

    fn possible_nodes(&self) -> CpuSet {
        CpuSet::first(1)
    }

    fn exists(&self, node: Node) -> bool {
        !matches!(node, Node::Fixed(entry) if entry.kind == Kind::File(FileId::PressureIrq))
    }

    fn is_offered(&self, node: Node) -> bool {
        !self.off.has(node)
    }

    fn open_pressure(&self, _caller: Caller, _id: FileId) -> Result<OwnedFd, AnswerError> {
        Err(AnswerError::Absent("no PSI in this test"))
    }
}

struct Deaf;

impl Wake for Deaf {
    fn wake(&self, _kernel_handle: u64) {}
}

fn vfs(len: usize) -> Vfs {
    vfs_without(len, "")
}

fn vfs_without(len: usize, off: &str) -> Vfs {
    let engine = Arc::new(Counting {
        texts: AtomicU64::new(0),
        len,
        off: FilesOff::from_list(off),
    });
    let triggers = Triggers::new(Arc::new(NoJournal), Arc::new(Deaf));
    Vfs::new(engine, Arc::new(SnapshotTable::private()), triggers)
}

const CALLER: Caller = Caller { tid: 2, uid: 1000 };

fn path(vfs: &Vfs, path: &str) -> Result<Attr, Errno> {
    path.split('/')
        .try_fold(vfs.getattr(ROOT_INO)?, |at, name| {
            vfs.lookup(at.ino, name.as_bytes())
        })
}

fn read(vfs: &Vfs, ino: Ino, handle: u64, offset: u64, size: usize, request: u64) -> Vec<u8> {
    let read = Read {
        caller: CALLER,
        ino,
        handle,
        offset,
        size,
        request,
    };
    vfs.read(read, <[u8]>::to_vec).unwrap()
}

#[test]
fn every_path_of_the_catalogue_is_found_and_listed_once() {
    let vfs = vfs(10);
    let mut pending = vec![(ROOT_INO, String::new())];
    let mut found = Vec::new();
    while let Some((ino, at)) = pending.pop() {
        for entry in vfs.readdir(CALLER, ino, 2).unwrap() {
            let name = if at.is_empty() {
                entry.name.clone()
            } else {
                format!("{at}/{}", entry.name)
            };
            let attr = vfs.lookup(ino, entry.name.as_bytes()).unwrap();
            assert_eq!((attr.ino, attr.is_dir), (entry.ino, entry.is_dir), "{name}");
            if entry.is_dir {
                pending.push((entry.ino, name.clone()));
            }
            found.push(name);
        }
    }
    let listed = found.len();
    found.sort();
    found.dedup();
    assert_eq!(found.len(), listed, "a name was listed twice");
    for entry in catalogue::CATALOGUE.iter().skip(1) {
        let absent = entry.kind == Kind::File(FileId::PressureIrq);
        assert_eq!(
            found.iter().any(|name| name == entry.path),
            !absent,
            "{}",
            entry.path
        );
    }
    assert!(
        found
            .iter()
            .any(|name| name == "sys/devices/system/cpu/cpu1/topology/core_id")
    );
    assert!(
        !found.iter().any(|name| name.contains("cpu/cpu2")),
        "invisible to this caller"
    );
}

#[test]
fn what_is_switched_off_is_not_found_but_stays_where_it_is_bound() {
    let vfs = vfs_without(10, "stat,pressure,cpu");
    let names = |ino| {
        let listed = vfs.readdir(Caller { tid: 2, uid: 0 }, ino, 0).unwrap();
        listed.into_iter().map(|entry| entry.name)
    };
    for gone in [
        "proc/stat",
        "proc/pressure/io",
        "sys/devices/system/cpu",
        "sys/devices/system/cpu/online",
    ] {
        assert!(path(&vfs, gone).is_err(), "{gone}");
    }
    assert!(path(&vfs, "proc/meminfo").is_ok() && path(&vfs, "sys/devices/system/node").is_ok());
    let proc = path(&vfs, "proc").unwrap().ino;
    assert!(names(proc).all(|name| name != "stat") && names(proc).any(|name| name == "swaps"));
    // A container that has them bound from before holds the inodes and looks nothing up.
    let ino = |path| catalogue::by_path(path).unwrap().ino;
    assert!(vfs.open(ino("proc/stat"), libc::O_RDONLY).is_ok());
    let cpus = ino("sys/devices/system/cpu");
    assert!(names(cpus).any(|name| name == "online") && names(cpus).any(|name| name == "cpu1"));
    assert!(vfs.lookup(cpus, b"cpu1").is_ok() && vfs.lookup(cpus, b"online").is_ok());
}

#[test]
fn a_listing_in_parts_has_no_duplicates_when_cpus_go() {
    let vfs = vfs(10);
    let dir = path(&vfs, "sys/devices/system/cpu").unwrap().ino;
    let many = vfs.readdir(Caller { tid: 100, uid: 0 }, dir, 0).unwrap();
    let (first, rest) = many.split_at(30);
    let cookie = first.last().unwrap().cookie;
    let fewer = vfs
        .readdir(Caller { tid: 50, uid: 0 }, dir, cookie)
        .unwrap();
    assert!(fewer.len() < rest.len());
    assert!(
        fewer
            .iter()
            .all(|entry| !first.iter().any(|seen| seen.name == entry.name))
    );
}

#[test]
fn names_that_are_not_there() {
    let vfs = vfs(10);
    for name in [
        "proc/kcore",
        "proc/pressure/irq",
        "sys/devices/system/cpu/cpu300",
        "sys/devices/system/cpu/cpu01",
        "sys/devices/system/cpu/cpu",
        "sys/devices/system/cpu/cpu+1",
        "sys/devices/system/cpu/cpu99999999999",
        "sys/devices/system/cpu/cpu0/nothing",
        "sys/devices/system/node/node1",
    ] {
        assert_eq!(path(&vfs, name), Err(Errno(libc::ENOENT)), "{name}");
    }
    assert_eq!(path(&vfs, "proc/meminfo/x"), Err(Errno(libc::ENOTDIR)));
    let root = vfs.lookup(ROOT_INO, b"\xff\xfe");
    assert_eq!(root, Err(Errno(libc::ENOENT)));
    assert_eq!(vfs.getattr(u64::MAX), Err(Errno(libc::ENOENT)));
}

#[test]
fn sizes_and_modes_are_those_of_the_kernel() {
    let vfs = vfs(10);
    let meminfo = path(&vfs, "proc/meminfo").unwrap();
    assert_eq!(
        (meminfo.size, meminfo.mode, meminfo.nlink),
        (8192, 0o444, 1)
    );
    assert_eq!(path(&vfs, "proc/slabinfo").unwrap().mode, 0o400);
    let online = path(&vfs, "sys/devices/system/cpu/online").unwrap();
    assert_eq!((online.size, online.mode), (4096, 0o444));
    let cpu0 = path(&vfs, "sys/devices/system/cpu/cpu0").unwrap();
    assert_eq!((cpu0.size, cpu0.nlink, cpu0.is_dir), (0, 3, true));
}

#[test]
fn a_small_buffer_gets_one_text_and_offset_0_a_new_one() {
    let vfs = vfs(10_000);
    let ino = path(&vfs, "proc/stat").unwrap().ino;
    let handle = vfs.open(ino, libc::O_RDONLY).unwrap();
    let mut all = Vec::new();
    for request in 1.. {
        let part = read(&vfs, ino, handle, all.len() as u64, 512, request);
        if part.is_empty() {
            break;
        }
        all.extend(part);
    }
    assert_eq!(all, vec![b'a'; 10_000]);
    assert_eq!(read(&vfs, ino, handle, 0, 5, 100), b"bbbbb");
    // The replay of that read must not start another text: its reader has five bytes of this.
    assert_eq!(read(&vfs, ino, handle, 0, 5, 100), b"bbbbb");
    assert_eq!(read(&vfs, ino, handle, 5, 5, 101), b"bbbbb");
}

#[test]
fn the_end_of_file_stays_where_the_reader_saw_it() {
    let vfs = vfs(10);
    let ino = path(&vfs, "proc/uptime").unwrap().ino;
    let handle = vfs.open(ino, libc::O_RDONLY).unwrap();
    let first = read(&vfs, ino, handle, 0, 4096, 1);
    // Every text is longer than the one before; the reader must not get the difference.
    assert!(read(&vfs, ino, handle, first.len() as u64, 4096, 2).is_empty());
    let again = read(&vfs, ino, handle, 0, 4096, 3);
    assert!(again.len() > first.len());
    assert!(read(&vfs, ino, handle, again.len() as u64, 4096, 4).is_empty());
    assert!(read(&vfs, ino, handle, 1 << 40, 4096, 5).is_empty());
}

#[test]
fn an_error_leaves_nothing_behind() {
    let vfs = vfs(10);
    let ino = path(&vfs, "proc/meminfo").unwrap().ino;
    let handle = vfs.open(ino, libc::O_RDONLY).unwrap();
    let unknown = Read {
        caller: Caller { tid: 0, uid: 0 },
        ino,
        handle,
        offset: 0,
        size: 100,
        request: 1,
    };
    assert_eq!(vfs.read(unknown, <[u8]>::to_vec), Err(Errno(libc::EIO)));
    assert_eq!(read(&vfs, ino, handle, 0, 4, 2), b"aaaa");
}

#[test]
fn only_pressure_files_may_be_written() {
    let vfs = vfs(10);
    let meminfo = path(&vfs, "proc/meminfo").unwrap().ino;
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(vfs.open(meminfo, flags), Err(Errno(libc::EACCES)));
    }
    let pressure = path(&vfs, "proc/pressure/memory").unwrap().ino;
    let handle = vfs.open(pressure, libc::O_RDWR | libc::O_TRUNC).unwrap();
    let write = |ino| Write {
        caller: CALLER,
        ino,
        handle,
        data: b"some 1 2",
        request: 1,
    };
    assert_eq!(vfs.write(write(meminfo)), Err(Errno(libc::EACCES)));
    assert_eq!(
        vfs.write(write(pressure)),
        Err(Errno(libc::ENOENT)),
        "the engine's error"
    );
    assert_eq!(vfs.open(ROOT_INO, libc::O_RDONLY), Err(Errno(libc::EISDIR)));
}

#[test]
fn a_pressure_file_without_a_trigger_polls_as_an_error_and_others_as_ready() {
    let vfs = vfs(10);
    let meminfo = path(&vfs, "proc/meminfo").unwrap().ino;
    assert_eq!(vfs.poll(meminfo, 1, None), Ok(ALWAYS));
    let pressure = path(&vfs, "proc/pressure/cpu").unwrap().ino;
    let events = vfs.poll(pressure, 1, Some(9)).unwrap() as i32;
    assert!(events & i32::from(libc::POLLERR) != 0 && events & i32::from(libc::POLLPRI) != 0);
}
