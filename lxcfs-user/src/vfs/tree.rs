//! The tree: names to inodes, attributes, directory listings.
//!
//! Everything but the sets of `cpuN` and `nodeN` directories is fixed by the catalogue, so
//! LOOKUP and GETATTR need no caller and the kernel may cache their answers for an hour.

use lxcfs_common::catalogue::{
    self, CATALOGUE, CPU_TEMPLATE, Entry, FileId, Ino, Kind, NODE_TEMPLATE, Node, Template,
    TemplateKind,
};

use crate::cpuset::CpuSet;
use crate::engine::Engine;

/// Attributes of an inode; times are those of the mount, owner is root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// A directory, else a regular file.
    pub is_dir: bool,
    /// Permission bits.
    pub mode: u16,
    /// 4096 below `/sys`, as in the kernel's own; below `/proc` see `announced_size`.
    pub size: u64,
    /// Hard links: for a directory 2 plus its fixed subdirectories.
    pub nlink: u32,
}

/// One line of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Where a listing continues after this entry. Belongs to the name, not to a position, so
    /// a listing in parts has no duplicates when CPUs come and go in between.
    pub cookie: u64,
    /// Inode number.
    pub ino: Ino,
    /// A directory, else a regular file.
    pub is_dir: bool,
    /// Name.
    pub name: String,
}

/// Whether `ino` may be looked up, opened or listed at all.
pub fn exists(engine: &dyn Engine, node: Node) -> bool {
    match node {
        Node::Fixed(Entry {
            kind: Kind::Dir, ..
        }) => true,
        Node::Fixed(_) => engine.exists(node),
        Node::Cpu(cpu, _) => engine.possible_cpus().contains(cpu) && engine.exists(node),
        Node::Numa(number, _) => engine.possible_nodes().contains(number) && engine.exists(node),
    }
}

/// Size announced for a file below `/proc`. The kernel's own say 0, which is not possible
/// here: `sendfile(2)` and `splice(2)`, which busybox's `cat` tries first, take a FUSE file
/// of size 0 for empty (`filemap_splice_read`). So it is a bound that content rarely
/// exceeds, because some readers (Node's `readFile`) stop there; and small, because GNU
/// `tail` begins at most 8 KiB before it.
fn announced_size(id: FileId, possible_cpus: u32) -> u64 {
    const LEAST: u64 = 8192;
    let per_cpu = match id {
        FileId::Cpuinfo => 2048,
        FileId::Stat => 128,
        _ => 0,
    };
    (u64::from(possible_cpus) * per_cpu)
        .max(LEAST)
        .next_multiple_of(LEAST)
}

/// Whether `node` is a directory.
pub fn is_dir(node: Node) -> bool {
    attr(node, 0).is_dir
}

/// Attributes of `node` on a machine with that many possible CPUs.
pub fn attr(node: Node, possible_cpus: u32) -> Attr {
    let size = match node {
        Node::Fixed(Entry {
            kind: Kind::File(id),
            path,
            ..
        }) if !path.starts_with("sys") => announced_size(*id, possible_cpus),
        _ => 4096,
    };
    let (ino, is_dir, mode, subdirs) = match node {
        Node::Fixed(entry) => {
            let is_dir = entry.kind == Kind::Dir;
            let subdirs = if is_dir {
                fixed_children(entry)
                    .filter(|child| child.kind == Kind::Dir)
                    .count()
            } else {
                0
            };
            (entry.ino, is_dir, entry.mode, subdirs)
        }
        Node::Cpu(cpu, index) => {
            let ino = catalogue::cpu_ino(cpu, index).unwrap_or_default();
            template_attr(ino, CPU_TEMPLATE, index)
        }
        Node::Numa(number, index) => {
            let ino = catalogue::node_ino(number, index).unwrap_or_default();
            template_attr(ino, NODE_TEMPLATE, index)
        }
    };
    Attr {
        ino,
        is_dir,
        mode,
        size: if is_dir { 0 } else { size },
        nlink: if is_dir { 2 + subdirs as u32 } else { 1 },
    }
}

fn template_attr(ino: Ino, table: &'static [Template], index: usize) -> (Ino, bool, u16, usize) {
    let Some(template) = table.get(index) else {
        return (ino, false, 0, 0);
    };
    let is_dir = template.kind == TemplateKind::Dir;
    let subdirs = template_children(table, template.path)
        .filter(|(_, child)| is_dir && child.kind == TemplateKind::Dir)
        .count();
    (ino, is_dir, template.mode, subdirs)
}

/// `child` relative to `parent` when it is exactly one level below.
fn below<'a>(parent: &str, child: &'a str) -> Option<&'a str> {
    let rest = if parent.is_empty() {
        child
    } else {
        child.strip_prefix(parent)?.strip_prefix('/')?
    };
    (!rest.is_empty() && !rest.contains('/')).then_some(rest)
}

fn fixed_children(parent: &'static Entry) -> impl Iterator<Item = &'static Entry> {
    CATALOGUE
        .iter()
        .filter(|entry| below(parent.path, entry.path).is_some())
}

fn template_children<'a>(
    table: &'static [Template],
    parent: &'a str,
) -> impl Iterator<Item = (usize, &'static Template)> + 'a {
    let at = move |(index, template): (usize, &'static Template)| {
        below(parent, template.path).map(|_| (index, template))
    };
    table.iter().enumerate().filter_map(at)
}

/// `7` out of `cpu7`, without leading zeros or signs.
fn numbered(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    let canonical = digits == "0" || !digits.starts_with('0');
    (canonical && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

const CPU_DIR: &str = "sys/devices/system/cpu";
const NODE_DIR: &str = "sys/devices/system/node";

/// Whether `child` is found in and listed by `parent`. Who sees a directory that is switched
/// off has it bound, and keeps all of it.
fn is_offered(engine: &dyn Engine, parent: Node, child: Node) -> bool {
    engine.is_offered(child) || !engine.is_offered(parent)
}

/// The child `name` of directory `parent`.
pub fn lookup(engine: &dyn Engine, parent: Node, name: &str) -> Option<Node> {
    let found = match parent {
        Node::Fixed(entry) => fixed_children(entry)
            .find(|child| below(entry.path, child.path) == Some(name))
            .map(Node::Fixed)
            .or_else(|| match entry.path {
                CPU_DIR => Some(Node::Cpu(numbered(name, "cpu")?, 0)),
                NODE_DIR => Some(Node::Numa(numbered(name, "node")?, 0)),
                _ => None,
            }),
        Node::Cpu(cpu, index) => {
            template_child(CPU_TEMPLATE, index, name).map(|i| Node::Cpu(cpu, i))
        }
        Node::Numa(n, index) => {
            template_child(NODE_TEMPLATE, index, name).map(|i| Node::Numa(n, i))
        }
    }?;
    // Numbers beyond the catalogue have no inode.
    let numbered = match found {
        Node::Fixed(_) => true,
        Node::Cpu(cpu, index) => catalogue::cpu_ino(cpu, index).is_some(),
        Node::Numa(number, index) => catalogue::node_ino(number, index).is_some(),
    };
    (numbered && exists(engine, found) && is_offered(engine, parent, found)).then_some(found)
}

fn template_child(table: &'static [Template], index: usize, name: &str) -> Option<usize> {
    let parent = table.get(index)?;
    template_children(table, parent.path)
        .find(|(_, child)| below(parent.path, child.path) == Some(name))
        .map(|(index, _)| index)
}

/// Cookies of `cpuN` and `nodeN` start here; fixed entries use their inode number.
const NUMBERED_COOKIE: u64 = 1 << 32;

/// The entries of directory `node` after `cookie`, in cookie order, without `.` and `..`.
/// `cpus` and `nodes` are asked only where they are listed.
///
/// # Errors
/// Those of `cpus` and `nodes`.
pub fn list<E>(
    engine: &dyn Engine,
    node: Node,
    cpus: impl FnOnce() -> Result<CpuSet, E>,
    nodes: impl FnOnce() -> Result<CpuSet, E>,
) -> Result<Vec<DirEntry>, E> {
    let mut entries = Vec::new();
    match node {
        Node::Fixed(entry) => {
            for child in fixed_children(entry).filter(|child| {
                exists(engine, Node::Fixed(child)) && is_offered(engine, node, Node::Fixed(child))
            }) {
                entries.push(DirEntry {
                    cookie: child.ino,
                    ino: child.ino,
                    is_dir: child.kind == Kind::Dir,
                    name: below(entry.path, child.path).unwrap_or_default().to_owned(),
                });
            }
            let (set, prefix, ino): (_, _, fn(u32, usize) -> Option<Ino>) = match entry.path {
                CPU_DIR => (cpus()?, "cpu", catalogue::cpu_ino),
                NODE_DIR => (nodes()?, "node", catalogue::node_ino),
                _ => (CpuSet::default(), "", catalogue::cpu_ino),
            };
            for number in set.iter() {
                if let Some(ino) = ino(number, 0) {
                    entries.push(DirEntry {
                        cookie: NUMBERED_COOKIE + u64::from(number),
                        ino,
                        is_dir: true,
                        name: format!("{prefix}{number}"),
                    });
                }
            }
        }
        Node::Cpu(cpu, index) => {
            list_template(
                CPU_TEMPLATE,
                index,
                |i| {
                    let there = exists(engine, Node::Cpu(cpu, i));
                    catalogue::cpu_ino(cpu, i).filter(|_| there)
                },
                &mut entries,
            );
        }
        Node::Numa(number, index) => {
            list_template(
                NODE_TEMPLATE,
                index,
                |i| {
                    let there = exists(engine, Node::Numa(number, i));
                    catalogue::node_ino(number, i).filter(|_| there)
                },
                &mut entries,
            );
        }
    }
    entries.sort_by_key(|entry| entry.cookie);
    Ok(entries)
}

fn list_template(
    table: &'static [Template],
    index: usize,
    ino: impl Fn(usize) -> Option<Ino>,
    entries: &mut Vec<DirEntry>,
) {
    let Some(parent) = table.get(index) else {
        return;
    };
    for (index, child) in template_children(table, parent.path) {
        if let (Some(ino), Some(name)) = (ino(index), below(parent.path, child.path)) {
            entries.push(DirEntry {
                cookie: ino,
                ino,
                is_dir: child.kind == TemplateKind::Dir,
                name: name.to_owned(),
            });
        }
    }
}
