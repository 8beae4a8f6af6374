//! `marker-fs MOUNTPOINT TEXT`: serves every file of the catalogue with TEXT and its own
//! path as content, mounted with the type and source name of lxcfs. A stand-in for the
//! daemon where a test needs to know which server answered.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, bail};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, Request,
};
use lxcfs_common::catalogue::{CATALOGUE, Entry, Kind, by_path};

const TTL: Duration = Duration::from_secs(3600);

struct MarkerFs {
    text: String,
}

fn entry(ino: INodeNo) -> Option<&'static Entry> {
    CATALOGUE.iter().find(|entry| entry.ino == ino.0)
}

fn attr(entry: &Entry) -> FileAttr {
    let kind = match entry.kind {
        Kind::Dir => FileType::Directory,
        Kind::File(_) => FileType::RegularFile,
    };
    FileAttr {
        ino: INodeNo(entry.ino),
        size: if kind == FileType::Directory { 0 } else { 4096 },
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: entry.mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for MarkerFs {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = entry(parent).zip(name.to_str()).and_then(|(parent, name)| {
            by_path(format!("{}/{name}", parent.path).trim_start_matches('/'))
        });
        match found {
            Some(entry) => reply.entry(&TTL, &attr(entry), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match entry(ino) {
            Some(entry) => reply.attr(&TTL, &attr(entry)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(
            FileHandle(0),
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
        );
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // Only a read(2) has an owner. The other kind fills the page cache for sendfile(2) or
        // splice(2), which would share one caller's text with all; refused, busybox and
        // others fall back to read(2). With size 0 they would take the file for empty.
        if lock_owner.is_none() {
            return reply.error(Errno::EINVAL);
        }
        let Some(entry) = entry(ino) else {
            return reply.error(Errno::ENOENT);
        };
        let text = format!("{} /{}\n", self.text, entry.path);
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(text.len());
        let to = (from + size as usize).min(text.len());
        reply.data(&text.as_bytes()[from..to]);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(parent) = entry(ino) else {
            return reply.error(Errno::ENOENT);
        };
        let children = CATALOGUE.iter().skip(1).filter(|entry| {
            let (above, _) = entry.path.rsplit_once('/').unwrap_or(("", entry.path));
            above == parent.path
        });
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, child) in children.enumerate().skip(from) {
            let name = child.path.rsplit('/').next().unwrap_or(child.path);
            if reply.add(INodeNo(child.ino), at as u64 + 1, attr(child).kind, name) {
                break;
            }
        }
        reply.ok();
    }
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(mountpoint), Some(text)) = (args.next(), args.next()) else {
        bail!("usage: marker-fs MOUNTPOINT TEXT");
    };
    let device: OwnedFd = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .context("/dev/fuse: is the fuse module loaded?")?
        .into();
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
        device.as_raw_fd()
    );
    nix::mount::mount(
        Some("lxcfs"),
        mountpoint.as_str(),
        Some("fuse.lxcfs"),
        nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV,
        Some(options.as_str()),
    )
    .with_context(|| format!("mounting on {mountpoint}"))?;
    let mut config = fuser::Config::default();
    config.n_threads = Some(2);
    let session =
        fuser::Session::from_fd(MarkerFs { text }, device, fuser::SessionACL::All, config)?;
    session.run()?;
    Ok(())
}
