//! Owns the text of `/proc/PID/mountinfo`: parsing it, and answering which mount a path
//! walk would end on. Pure; reading the file and acting on the answer is left to `attach`.
//!
//! Format: `Documentation/filesystems/proc.rst` section 3.5, written by the kernel's
//! `show_mountinfo`. Paths are relative to the root directory of the process that was
//! read, and mounts outside that root are left out by the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

#[cfg(test)]
mod tests;

/// The kernel's id of one mount, unique on the machine while the mount lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountId(pub u32);

/// Device number of a superblock. Two mounts with the same device are the same file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// Major number; 0 for file systems without a block device.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl std::fmt::Display for Device {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}:{}", self.major, self.minor)
    }
}

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Id of this mount.
    pub id: MountId,
    /// Id of the mount it is attached to; not in the list when that one is out of reach.
    pub parent: MountId,
    /// Superblock of the mounted file system.
    pub device: Device,
    /// Path inside the file system that forms the root of this mount.
    pub root: PathBuf,
    /// Where it is attached, relative to the root directory of the process read.
    pub mount_point: PathBuf,
    /// Peer group whose events this mount shares (`shared:N`).
    pub shared: Option<u32>,
    /// Peer group whose events this mount receives (`master:N`).
    pub master: Option<u32>,
    /// File system type, with its subtype behind a dot (`fuse.lxcfs`).
    pub fs_type: String,
    /// File-system specific source, often a device path or a name.
    pub source: OsString,
}

/// A line that the kernel does not write.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("mountinfo line {line}: {what}")]
pub struct ParseError {
    /// Line number, counted from 1.
    pub line: usize,
    /// Which field is missing or malformed.
    pub what: &'static str,
}

/// Undoes the kernel's `mangle_path`: `\ooo` stands for one byte.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if *first == b'\\'
            && let [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] = tail
        {
            out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = after;
            continue;
        }
        out.push(*first);
        rest = tail;
    }
    OsString::from_vec(out)
}

fn number(field: Option<&[u8]>) -> Option<u32> {
    std::str::from_utf8(field?).ok()?.parse().ok()
}

fn parse_line(line: &[u8]) -> Result<Mount, &'static str> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = number(fields.next()).ok_or("mount id")?;
    let parent = number(fields.next()).ok_or("parent id")?;
    let device = fields.next().ok_or("device")?;
    let colon = device
        .iter()
        .position(|&byte| byte == b':')
        .ok_or("device")?;
    let major = number(Some(&device[..colon])).ok_or("device major")?;
    let minor = number(Some(&device[colon + 1..])).ok_or("device minor")?;
    let root = unescape(fields.next().ok_or("root")?);
    let mount_point = unescape(fields.next().ok_or("mount point")?);
    fields.next().ok_or("mount options")?;
    let (mut shared, mut master) = (None, None);
    loop {
        // Unknown optional fields are allowed: the format promises to grow there.
        match fields.next().ok_or("separator")? {
            b"-" => break,
            tag => {
                if let Some(group) = tag.strip_prefix(b"shared:") {
                    shared = Some(number(Some(group)).ok_or("shared peer group")?);
                } else if let Some(group) = tag.strip_prefix(b"master:") {
                    master = Some(number(Some(group)).ok_or("master peer group")?);
                }
            }
        }
    }
    let fs_type = unescape(fields.next().ok_or("file system type")?);
    let source = unescape(fields.next().ok_or("source")?);
    Ok(Mount {
        id: MountId(id),
        parent: MountId(parent),
        device: Device { major, minor },
        root: root.into(),
        mount_point: mount_point.into(),
        shared,
        master,
        fs_type: fs_type.to_string_lossy().into_owned(),
        source,
    })
}

/// Parses the whole file. Lines are kept in the kernel's order.
///
/// # Errors
/// The first line that does not have the documented form.
pub fn parse(text: &[u8]) -> Result<MountTable, ParseError> {
    let mut mounts = Vec::new();
    for (at, line) in text.split(|&byte| byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        mounts.push(parse_line(line).map_err(|what| ParseError { line: at + 1, what })?);
    }
    Ok(MountTable::new(mounts))
}

/// All mounts one process can reach, with the tree they form.
#[derive(Clone, Debug, Default)]
pub struct MountTable {
    mounts: Vec<Mount>,
    children: BTreeMap<MountId, Vec<usize>>,
    /// Mounts whose parent is not in the list.
    roots: Vec<usize>,
}

impl MountTable {
    /// Builds the tree from parsed lines.
    pub fn new(mounts: Vec<Mount>) -> Self {
        let known: BTreeSet<MountId> = mounts.iter().map(|mount| mount.id).collect();
        let mut children: BTreeMap<MountId, Vec<usize>> = BTreeMap::new();
        let mut roots = Vec::new();
        for (at, mount) in mounts.iter().enumerate() {
            if mount.parent == mount.id || !known.contains(&mount.parent) {
                roots.push(at);
            } else {
                children.entry(mount.parent).or_default().push(at);
            }
        }
        Self {
            mounts,
            children,
            roots,
        }
    }

    /// The table as a process would read it whose root directory is `root`: mount points
    /// are relative to it, and mounts elsewhere are left out.
    #[must_use]
    pub fn below(&self, root: &Path) -> Self {
        let inside = self.mounts.iter().filter_map(|mount| {
            let below = mount.mount_point.strip_prefix(root).ok()?;
            Some(Mount {
                mount_point: Path::new("/").join(below),
                ..mount.clone()
            })
        });
        Self::new(inside.collect())
    }

    /// Every mount, in the kernel's order.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// The mount with this id.
    pub fn by_id(&self, id: MountId) -> Option<&Mount> {
        self.mounts.iter().find(|mount| mount.id == id)
    }

    /// The mounts a walk to `path` crosses, outermost first, without symlinks. The last
    /// one is the mount the path ends on. Empty when nothing listed holds the path: the
    /// root directory of a chrooted process need not be a mount point.
    pub fn walk(&self, path: &Path) -> Vec<&Mount> {
        let mut crossed: Vec<&Mount> = Vec::new();
        let mut candidates: &[usize] = &self.roots;
        // Each step goes to a child, and a tree has no more steps than nodes.
        while crossed.len() < self.mounts.len() {
            let next = candidates
                .iter()
                .copied()
                .filter(|&child| path.starts_with(&self.mounts[child].mount_point))
                // The walk meets the shortest mount point first; of two mounts on one
                // point the later line hides the earlier one.
                .min_by_key(|&child| {
                    let length = self.mounts[child].mount_point.as_os_str().len();
                    (length, std::cmp::Reverse(child))
                });
            let Some(child) = next else { break };
            let mount = &self.mounts[child];
            crossed.push(mount);
            candidates = self.children.get(&mount.id).map_or(&[], Vec::as_slice);
        }
        crossed
    }

    /// The mounts stacked exactly at `path`, bottom first, and the mount below them.
    pub fn stack(&self, path: &Path) -> Stack<'_> {
        let mut crossed = self.walk(path);
        let layers = crossed
            .iter()
            .position(|mount| mount.mount_point == path)
            .map_or_else(Vec::new, |at| crossed.split_off(at));
        Stack {
            base: crossed.last().copied(),
            layers,
        }
    }
}

/// What is mounted at one path.
#[derive(Clone, Debug)]
pub struct Stack<'a> {
    /// The mount that holds the path when nothing is mounted on it; `None` when it is
    /// outside the process's root.
    pub base: Option<&'a Mount>,
    /// Mounts on exactly this path, bottom first.
    pub layers: Vec<&'a Mount>,
}

impl<'a> Stack<'a> {
    /// The mount a reader of the path ends on.
    pub fn top(&self) -> Option<&'a Mount> {
        self.layers.last().copied().or(self.base)
    }
}
