//! The file system without FUSE: inodes, attributes, listings, open files, errno.
//!
//! Owns what a file *is*; what it *says* is the [`Engine`]'s, how requests arrive is `fuse`'s.
//! Semantics are those of the kernel's seq files: any offset, end of file gives nothing, a
//! read at offset 0 starts a new text.

pub mod errno;
pub mod opens;
pub mod psi;
pub mod tree;

use std::cell::RefCell;
use std::sync::Arc;

use lxcfs_common::catalogue::{self, FileId, Ino, Kind, Node};

pub use errno::{Errno, Refusal};
pub use opens::{Arena, Held, OpenFiles, SnapshotTable};
pub use tree::{Attr, DirEntry};

use crate::engine::{Caller, Engine};
use psi::{Pressure, Triggers};

/// A read of an open file.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// Who reads.
    pub caller: Caller,
    /// Inode.
    pub ino: Ino,
    /// Handle from [`Vfs::open`].
    pub handle: u64,
    /// Offset in bytes.
    pub offset: u64,
    /// Most bytes wanted.
    pub size: usize,
    /// Identifies the request, also when it is replayed.
    pub request: u64,
}

/// A write to an open file.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Who writes.
    pub caller: Caller,
    /// Inode.
    pub ino: Ino,
    /// Handle from [`Vfs::open`].
    pub handle: u64,
    /// The bytes.
    pub data: &'a [u8],
    /// Identifies the request, also when it is replayed.
    pub request: u64,
}

/// `DEFAULT_POLLMASK` of the kernel: always readable and writable.
const ALWAYS: u32 = (libc::POLLIN | libc::POLLOUT | libc::POLLRDNORM | libc::POLLWRNORM) as u32;

/// The file system.
pub struct Vfs {
    engine: Arc<dyn Engine>,
    opens: Arc<dyn OpenFiles>,
    triggers: Arc<Triggers>,
}

fn pressure_file(node: Node) -> Option<FileId> {
    match node {
        Node::Fixed(entry) => match entry.kind {
            Kind::File(
                id @ (FileId::PressureCpu
                | FileId::PressureMemory
                | FileId::PressureIo
                | FileId::PressureIrq),
            ) => Some(id),
            _ => None,
        },
        Node::Cpu(..) | Node::Numa(..) => None,
    }
}

thread_local! {
    /// Each serving thread renders into one buffer for ever.
    static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A buffer that grew beyond this is given back after the request.
const KEEP_BUFFER: usize = 256 * 1024;

impl Vfs {
    /// Serves what `engine` says.
    pub fn new(
        engine: Arc<dyn Engine>,
        opens: Arc<dyn OpenFiles>,
        triggers: Arc<Triggers>,
    ) -> Self {
        Self {
            engine,
            opens,
            triggers,
        }
    }

    fn node(&self, ino: Ino) -> Result<Node, Errno> {
        catalogue::node(ino)
            .filter(|node| tree::exists(&*self.engine, *node))
            .ok_or_else(|| Refusal::NotFound.into())
    }

    fn attr(&self, node: Node) -> Attr {
        tree::attr(node, self.engine.possible_cpus().len())
    }

    /// A file that was looked up before, and so existed: asking the machine again would cost
    /// every read a path walk. One that is gone since is found out by rendering it.
    fn file(&self, ino: Ino) -> Result<Node, Errno> {
        let node = catalogue::node(ino).ok_or(Refusal::NotFound)?;
        if tree::is_dir(node) {
            Err(Refusal::IsADirectory.into())
        } else {
            Ok(node)
        }
    }

    /// Attributes of `ino`.
    ///
    /// # Errors
    /// ENOENT.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, Errno> {
        Ok(self.attr(self.node(ino)?))
    }

    /// Attributes of the child `name` of directory `parent`.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, Errno> {
        let node = self.node(parent)?;
        if !tree::is_dir(node) {
            return Err(Refusal::NotADirectory.into());
        }
        let name = std::str::from_utf8(name).map_err(|_not_ours| Refusal::NotFound)?;
        tree::lookup(&*self.engine, node, name)
            .map(|node| self.attr(node))
            .ok_or_else(|| Refusal::NotFound.into())
    }

    /// Opens `ino` with `open(2)` flags; returns a handle.
    ///
    /// # Errors
    /// EACCES for writing anything but a pressure file, EISDIR, ENOENT.
    pub fn open(&self, ino: Ino, flags: i32) -> Result<u64, Errno> {
        let node = self.file(ino)?;
        // The files of a CPU come and go with it.
        if !matches!(node, Node::Fixed(_)) {
            self.node(ino)?;
        }
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
        if writes && pressure_file(node).is_none() {
            return Err(Refusal::ReadOnlyFile.into());
        }
        Ok(self.opens.open())
    }

    /// Reads; `deliver` gets the bytes, none at the end of file.
    ///
    /// # Errors
    /// Those of [`Engine::render`], EISDIR, ENOENT.
    pub fn read<T>(&self, read: Read, deliver: impl FnOnce(&[u8]) -> T) -> Result<T, Errno> {
        let node = self.file(read.ino)?;
        TEXT.with_borrow_mut(|text| {
            text.clear();
            let result = self
                .read_into(node, read, text)
                .map(|part| deliver(&text[part]));
            if text.capacity() > KEEP_BUFFER {
                *text = Vec::new();
            }
            result
        })
    }

    fn read_into(
        &self,
        node: Node,
        read: Read,
        text: &mut Vec<u8>,
    ) -> Result<std::ops::Range<usize>, Errno> {
        let Read {
            caller,
            ino,
            handle,
            offset,
            size,
            request,
        } = read;
        // A read at offset 0 starts a new text, unless it is the replay of the very read that
        // made the present one: its reader may have the beginning already.
        let replayed = offset == 0 && self.opens.made_by(handle, ino) == Some(request);
        if offset > 0 || replayed {
            match self.opens.read(handle, ino, offset, size, text) {
                Held::Served => return Ok(0..text.len()),
                Held::Ended => return Ok(0..0),
                Held::Unknown => {}
            }
        }
        self.engine.render(caller, node, text)?;
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(text.len());
        let end = start.saturating_add(size).min(text.len());
        let whole = end == text.len();
        // Published before the reply leaves: the next read must find it.
        self.opens.keep(handle, ino, request, text, whole);
        Ok(start..end)
    }

    /// Writes a PSI trigger.
    ///
    /// # Errors
    /// EACCES for any other file; see [`Triggers::set`].
    pub fn write(&self, write: Write<'_>) -> Result<usize, Errno> {
        let file = pressure_file(self.file(write.ino)?).ok_or(Refusal::ReadOnlyFile)?;
        let Write {
            caller,
            handle,
            request,
            data,
            ..
        } = write;
        self.triggers
            .set(&*self.engine, caller, file, handle, request, data)?;
        Ok(data.len())
    }

    /// Poll events of an open file. `waiter` is woken when that may change.
    ///
    /// # Errors
    /// ENOENT, EISDIR.
    pub fn poll(&self, ino: Ino, handle: u64, waiter: Option<u64>) -> Result<u32, Errno> {
        if pressure_file(self.file(ino)?).is_none() {
            return Ok(ALWAYS);
        }
        Ok(match self.triggers.poll(handle, waiter) {
            Pressure::Broken => ALWAYS | (libc::POLLERR | libc::POLLPRI) as u32,
            Pressure::Fired => ALWAYS | libc::POLLPRI as u32,
            Pressure::Quiet => ALWAYS,
        })
    }

    /// Closes an open file; harmless when repeated.
    pub fn release(&self, handle: u64) {
        self.opens.close(handle);
        self.triggers.close(handle);
    }

    /// Entries of directory `ino` after `cookie`, `.` and `..` first.
    ///
    /// # Errors
    /// ENOTDIR, ENOENT, those of the engine.
    pub fn readdir(&self, caller: Caller, ino: Ino, cookie: u64) -> Result<Vec<DirEntry>, Errno> {
        let node = self.node(ino)?;
        if !tree::is_dir(node) {
            return Err(Refusal::NotADirectory.into());
        }
        // No inode below 1 exists, so small cookies are free; fixed entries start at 2.
        let dots = [(1, "."), (DOTDOT, "..")].map(|(cookie, name)| DirEntry {
            cookie,
            ino,
            is_dir: true,
            name: name.to_owned(),
        });
        let mut listed = tree::list(
            &*self.engine,
            node,
            || self.engine.visible_cpus(caller),
            || self.engine.visible_nodes(caller),
        )?;
        // Room for the second dot below the first inode.
        listed.iter_mut().for_each(|entry| entry.cookie += 1);
        let all = dots.into_iter().chain(listed);
        Ok(all.filter(|entry| entry.cookie > cookie).collect())
    }
}

/// Cookie of `..`; listed entries are moved up by one to make room for it.
const DOTDOT: u64 = 2;

#[cfg(test)]
pub(crate) mod tests;
