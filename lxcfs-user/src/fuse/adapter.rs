//! fuser's requests as calls of the [`Vfs`], and its answers as replies.
//!
//! What may never be answered is as important as what is: an ENOSYS sticks to the connection
//! for ever, so only FLUSH gets one, and only where the kernel cannot be told otherwise. (Locks and
//! READDIRPLUS would get fuser's; they are not negotiated and cannot come.)

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, IoctlFlags, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::engine::Caller;
use crate::vfs::{Attr, Errno, Read, Refusal, Vfs, Write};

/// How long the kernel may keep names and attributes: both are fixed by the catalogue.
const TTL: Duration = Duration::from_secs(3600);
/// First protocol minor with `FOPEN_NOFLUSH` (Linux 5.16).
const NOFLUSH_SINCE: u32 = 35;

/// What happens after an answer was sent.
pub(super) trait Answered: Send + Sync {
    /// Request `unique`, read into the buffer at `address`, has been answered.
    fn answered(&self, address: usize, unique: u64);

    /// A request that needs no answer was read into the buffer at `address`.
    fn seen(&self, address: usize);
}

/// The one implementation of fuser's trait.
pub(super) struct Adapter {
    pub(super) vfs: Arc<Vfs>,
    pub(super) marks: Arc<dyn Answered>,
    /// Time stamp of every file.
    pub(super) mounted_at: SystemTime,
    /// Minor version of the protocol the kernel speaks.
    pub(super) kernel_minor: u32,
}

fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.0)
}

fn refused(refusal: Refusal) -> fuser::Errno {
    errno(refusal.into())
}

fn caller(request: &Request) -> Caller {
    Caller {
        tid: request.pid(),
        uid: request.uid(),
    }
}

impl Adapter {
    pub(super) fn new(
        vfs: Arc<Vfs>,
        marks: Arc<dyn Answered>,
        mounted_at_sec: u64,
        kernel_minor: u32,
    ) -> Self {
        let mounted_at = UNIX_EPOCH + Duration::from_secs(mounted_at_sec);
        Self {
            vfs,
            marks,
            mounted_at,
            kernel_minor,
        }
    }

    fn attributes(&self, attr: Attr) -> FileAttr {
        FileAttr {
            ino: INodeNo(attr.ino),
            size: attr.size,
            blocks: 0,
            atime: self.mounted_at,
            mtime: self.mounted_at,
            ctime: self.mounted_at,
            crtime: self.mounted_at,
            kind: if attr.is_dir {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: attr.mode,
            nlink: attr.nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// The request has been answered: the next worker need not answer it again.
    fn done(&self, request: &Request) {
        self.marks
            .answered(std::ptr::from_ref(request).addr(), request.unique().0);
    }

    fn fopen_flags(&self) -> FopenFlags {
        let noflush = if self.kernel_minor >= NOFLUSH_SINCE {
            FopenFlags::FOPEN_NOFLUSH
        } else {
            FopenFlags::empty()
        };
        FopenFlags::FOPEN_DIRECT_IO | noflush
    }
}

impl Filesystem for Adapter {
    fn forget(&self, req: &Request, _ino: INodeNo, _nlookup: u64) {
        self.marks.seen(std::ptr::from_ref(req).addr());
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.vfs.lookup(parent.0, name.as_bytes()) {
            Ok(attr) => reply.entry(&TTL, &self.attributes(attr), Generation(0)),
            Err(error) => reply.error(errno(error)),
        }
        self.done(req);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.vfs.getattr(ino.0) {
            Ok(attr) => reply.attr(&TTL, &self.attributes(attr)),
            Err(error) => reply.error(errno(error)),
        }
        self.done(req);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.vfs.open(ino.0, flags.0) {
            Ok(handle) => reply.opened(FileHandle(handle), self.fopen_flags()),
            Err(error) => reply.error(errno(error)),
        }
        self.done(req);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // read(2) names its owner (`fuse_direct_io`). Without one the kernel fills the page
        // cache, for sendfile(2), splice(2) or mmap(2), and would give the text of this
        // caller to every other one. Refused, programs fall back to read(2).
        if lock_owner.is_none() {
            reply.error(fuser::Errno::EINVAL);
            return self.done(req);
        }
        let read = Read {
            caller: caller(req),
            ino: ino.0,
            handle: fh.0,
            offset,
            size: size as usize,
            request: req.unique().0,
        };
        let mut reply = Some(reply);
        let result = self.vfs.read(read, |bytes| {
            if let Some(reply) = reply.take() {
                reply.data(bytes);
            }
        });
        if let (Err(error), Some(reply)) = (result, reply) {
            reply.error(errno(error));
        }
        self.done(req);
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let write = Write {
            caller: caller(req),
            ino: ino.0,
            handle: fh.0,
            data,
            request: req.unique().0,
        };
        match self.vfs.write(write) {
            Ok(size) => reply.written(size as u32),
            Err(error) => reply.error(errno(error)),
        }
        self.done(req);
    }

    fn poll(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        ph: PollNotifier,
        _events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let waits = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY);
        match self.vfs.poll(ino.0, fh.0, waits.then(|| ph.handle().0)) {
            Ok(events) => reply.poll(PollEvents::from_bits_retain(events)),
            Err(error) => reply.error(errno(error)),
        }
        self.done(req);
    }

    fn release(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.vfs.release(fh.0);
        reply.ok();
        self.done(req);
    }

    fn flush(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Only kernels without FOPEN_NOFLUSH ask; the answer stops them from asking again. A
        // FLUSH that waits cannot be killed, not even before it is read.
        reply.error(fuser::Errno::ENOSYS);
        self.done(req);
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.vfs.readdir(caller(req), ino.0, offset) {
            Ok(entries) => {
                for entry in entries {
                    let kind = if entry.is_dir {
                        FileType::Directory
                    } else {
                        FileType::RegularFile
                    };
                    if reply.add(INodeNo(entry.ino), entry.cookie, kind, &entry.name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
        }
        self.done(req);
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
        self.done(req);
    }

    fn access(&self, req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // With default_permissions the kernel decides by the modes and does not ask.
        reply.ok();
        self.done(req);
    }

    fn readlink(&self, req: &Request, _ino: INodeNo, reply: ReplyData) {
        reply.error(refused(Refusal::Invalid));
        self.done(req);
    }

    fn setattr(
        &self,
        req: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(refused(Refusal::FixedTree));
        self.done(req);
    }

    fn mknod(
        &self,
        req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(refused(Refusal::FixedTree));
        self.done(req);
    }

    fn mkdir(
        &self,
        req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(refused(Refusal::FixedTree));
        self.done(req);
    }

    fn unlink(&self, req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(refused(Refusal::FixedTree));
        self.done(req);
    }

    fn rmdir(&self, req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(refused(Refusal::FixedTree));
        self.done(req);
    }

    fn symlink(
        &self,
        req: &Request,
        _parent: INodeNo,
        _link_name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply.error(refused(Refusal::FixedTree));
        self.done(req);
    }

    fn rename(
        &self,
        req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(refused(Refusal::FixedTree));
        self.done(req);
    }

    fn link(
        &self,
        req: &Request,
        _ino: INodeNo,
        _newparent: INodeNo,
        _newname: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(refused(Refusal::FixedTree));
        self.done(req);
    }

    fn create(
        &self,
        req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(refused(Refusal::FixedTree));
        self.done(req);
    }

    fn fsync(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        // As the kernel's procfs: these files have no fsync.
        reply.error(refused(Refusal::Invalid));
        self.done(req);
    }

    fn fsyncdir(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(refused(Refusal::Invalid));
        self.done(req);
    }

    fn releasedir(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        reply.ok();
        self.done(req);
    }

    fn setxattr(
        &self,
        req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(refused(Refusal::Unsupported));
        self.done(req);
    }

    fn getxattr(&self, req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(refused(Refusal::Unsupported));
        self.done(req);
    }

    fn listxattr(&self, req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(refused(Refusal::Unsupported));
        self.done(req);
    }

    fn removexattr(&self, req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(refused(Refusal::Unsupported));
        self.done(req);
    }

    fn bmap(&self, req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(refused(Refusal::Invalid));
        self.done(req);
    }

    fn ioctl(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(refused(Refusal::NoIoctl));
        self.done(req);
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(refused(Refusal::Unsupported));
        self.done(req);
    }

    fn lseek(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        // Only SEEK_DATA and SEEK_HOLE come here; seq_lseek knows neither.
        reply.error(refused(Refusal::Invalid));
        self.done(req);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(refused(Refusal::Unsupported));
        self.done(req);
    }
}
