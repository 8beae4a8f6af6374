//! A FUSE file system with one file that costs nothing: the floor to compare with.

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request,
    SessionACL,
};

/// As long as ours, so that LOOKUP and GETATTR are as rare as there.
const TTL: Duration = Duration::from_secs(3600);
const FILE: INodeNo = INodeNo(2);

struct Null {
    content: Vec<u8>,
}

fn attr(ino: INodeNo) -> FileAttr {
    let directory = ino == INodeNo::ROOT;
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if directory {
            FileType::Directory
        } else {
            FileType::RegularFile
        },
        perm: if directory { 0o755 } else { 0o444 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        flags: 0,
        blksize: 4096,
    }
}

impl Filesystem for Null {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "file" {
            reply.entry(&TTL, &attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|from| self.content.get(from..));
        let rest = rest.unwrap_or_default();
        reply.data(&rest[..rest.len().min(size as usize)]);
    }
}

/// Serves `size` bytes at `mountpoint/file` with `loops` threads until unmounted.
pub(crate) fn serve(mountpoint: &Path, loops: usize, size: usize) -> Result<()> {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("null".into()), MountOption::RO];
    config.acl = SessionACL::All;
    config.n_threads = Some(loops);
    let null = Null {
        content: vec![b'0'; size],
    };
    fuser::mount(null, mountpoint, &config)
        .with_context(|| format!("mounting the null file system on {}", mountpoint.display()))
}
