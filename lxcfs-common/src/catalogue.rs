//! The one list of virtual files. FUSE serves it, attach binds from it, the webhook and
//! the NRI plugin mount from it, the docs are checked against it.
//!
//! **Inode numbers are an ABI.** A bind-mounted file pins its inode for as long as the
//! container lives, and no LOOKUP ever comes again, not even for a newer daemon. So
//! numbers are only ever appended, never reused and never renumbered; a test holds the
//! table against a committed copy.

/// A number the kernel uses for a file of this file system; FUSE calls it `nodeid`.
pub type Ino = u64;

/// The root of the mount, fixed by the FUSE protocol.
pub const ROOT_INO: Ino = 1;

/// First inode of the per-CPU trees; see [`cpu_ino`].
pub const CPU_BASE: Ino = 0x1_0000;
/// Inodes reserved for one `cpuN` tree.
pub const CPU_STRIDE: Ino = 0x100;
/// First inode of the per-node trees; see [`node_ino`].
pub const NODE_BASE: Ino = 0x100_0000;
/// Inodes reserved for one `nodeN` tree.
pub const NODE_STRIDE: Ino = 0x100;
/// Largest CPU number that has inodes: `NR_CPUS` is at most 8192 on any supported kernel.
pub const MAX_CPUS: u32 = 8192;
/// Largest NUMA node number that has inodes: `MAX_NUMNODES` is at most 1024.
pub const MAX_NODES: u32 = 1024;

/// Which renderer answers for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FileId {
    /// `/proc/cpuinfo`
    Cpuinfo = 0,
    /// `/proc/meminfo`
    Meminfo = 1,
    /// `/proc/stat`
    Stat = 2,
    /// `/proc/uptime`
    Uptime = 3,
    /// `/proc/diskstats`
    Diskstats = 4,
    /// `/proc/swaps`
    Swaps = 5,
    /// `/proc/loadavg`
    Loadavg = 6,
    /// `/proc/slabinfo`
    Slabinfo = 7,
    /// `/proc/vmstat`
    Vmstat = 8,
    /// `/proc/pressure/cpu`
    PressureCpu = 9,
    /// `/proc/pressure/memory`
    PressureMemory = 10,
    /// `/proc/pressure/io`
    PressureIo = 11,
    /// `/proc/pressure/irq`
    PressureIrq = 12,
    /// `/sys/devices/system/cpu/online`
    CpuOnline = 13,
    /// `/sys/devices/system/cpu/possible`
    CpuPossible = 14,
    /// `/sys/devices/system/cpu/present`
    CpuPresent = 15,
    /// `/sys/devices/system/cpu/offline`
    CpuOffline = 16,
    /// `/sys/devices/system/cpu/kernel_max`
    CpuKernelMax = 17,
    /// `/sys/devices/system/cpu/isolated`
    CpuIsolated = 18,
    /// `/sys/devices/system/cpu/uevent`
    CpuUevent = 19,
    /// `/sys/devices/system/node/online`
    NodeOnline = 20,
    /// `/sys/devices/system/node/possible`
    NodePossible = 21,
    /// `/sys/devices/system/node/has_cpu`
    NodeHasCpu = 22,
    /// `/sys/devices/system/node/has_memory`
    NodeHasMemory = 23,
}

/// What kind of entry a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory; its children are the entries whose path continues it.
    Dir,
    /// A file rendered at open.
    File(FileId),
}

/// How a path gets into a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// Bound over the container's own path unless the user excludes it.
    Default,
    /// Reached through a parent that is bound as a whole, or only part of the tree.
    Within,
    /// Bound only when asked for.
    OptIn,
}

/// One path of the tree.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Stable inode number.
    pub ino: Ino,
    /// Path below the mountpoint and, with a leading `/`, the path it replaces in a
    /// container. Never ends in `/`; the root is the empty string.
    pub path: &'static str,
    /// Directory or renderer.
    pub kind: Kind,
    /// Permission bits as in the kernel's own procfs or sysfs.
    pub mode: u16,
    /// How it gets into a container.
    pub attach: Attach,
    /// Whether runc accepts a bind mount over it in a container's spec. Its list ends at
    /// these files; everything else under `/proc` is refused at container creation.
    pub runc_allows: bool,
}

const fn dir(ino: Ino, path: &'static str, mode: u16, attach: Attach) -> Entry {
    Entry {
        ino,
        path,
        kind: Kind::Dir,
        mode,
        attach,
        runc_allows: false,
    }
}

const fn proc_file(ino: Ino, path: &'static str, id: FileId, mode: u16, runc: bool) -> Entry {
    Entry {
        ino,
        path,
        kind: Kind::File(id),
        mode,
        attach: Attach::Default,
        runc_allows: runc,
    }
}

const fn within(ino: Ino, path: &'static str, id: FileId, mode: u16) -> Entry {
    Entry {
        ino,
        path,
        kind: Kind::File(id),
        mode,
        attach: Attach::Within,
        runc_allows: true,
    }
}

/// Every path with a fixed inode, parents before children.
pub const CATALOGUE: &[Entry] = &[
    dir(ROOT_INO, "", 0o755, Attach::Within),
    dir(2, "proc", 0o555, Attach::Within),
    dir(3, "sys", 0o555, Attach::Within),
    dir(4, "sys/devices", 0o755, Attach::Within),
    dir(5, "sys/devices/system", 0o755, Attach::Within),
    // runc allows anything below /sys: only /proc has a list.
    Entry {
        runc_allows: true,
        ..dir(6, "sys/devices/system/cpu", 0o755, Attach::Default)
    },
    Entry {
        runc_allows: true,
        ..dir(7, "sys/devices/system/node", 0o755, Attach::OptIn)
    },
    dir(8, "proc/pressure", 0o555, Attach::Within),
    proc_file(16, "proc/cpuinfo", FileId::Cpuinfo, 0o444, true),
    proc_file(17, "proc/meminfo", FileId::Meminfo, 0o444, true),
    proc_file(18, "proc/stat", FileId::Stat, 0o444, true),
    proc_file(19, "proc/uptime", FileId::Uptime, 0o444, true),
    proc_file(20, "proc/diskstats", FileId::Diskstats, 0o444, true),
    proc_file(21, "proc/swaps", FileId::Swaps, 0o444, true),
    proc_file(22, "proc/loadavg", FileId::Loadavg, 0o444, true),
    proc_file(23, "proc/slabinfo", FileId::Slabinfo, 0o400, true),
    proc_file(24, "proc/vmstat", FileId::Vmstat, 0o444, false),
    proc_file(32, "proc/pressure/cpu", FileId::PressureCpu, 0o666, false),
    proc_file(
        33,
        "proc/pressure/memory",
        FileId::PressureMemory,
        0o666,
        false,
    ),
    proc_file(34, "proc/pressure/io", FileId::PressureIo, 0o666, false),
    proc_file(35, "proc/pressure/irq", FileId::PressureIrq, 0o666, false),
    within(
        48,
        "sys/devices/system/cpu/online",
        FileId::CpuOnline,
        0o444,
    ),
    within(
        49,
        "sys/devices/system/cpu/possible",
        FileId::CpuPossible,
        0o444,
    ),
    within(
        50,
        "sys/devices/system/cpu/present",
        FileId::CpuPresent,
        0o444,
    ),
    within(
        51,
        "sys/devices/system/cpu/offline",
        FileId::CpuOffline,
        0o444,
    ),
    within(
        52,
        "sys/devices/system/cpu/kernel_max",
        FileId::CpuKernelMax,
        0o444,
    ),
    within(
        53,
        "sys/devices/system/cpu/isolated",
        FileId::CpuIsolated,
        0o444,
    ),
    within(
        54,
        "sys/devices/system/cpu/uevent",
        FileId::CpuUevent,
        0o644,
    ),
    within(
        64,
        "sys/devices/system/node/online",
        FileId::NodeOnline,
        0o444,
    ),
    within(
        65,
        "sys/devices/system/node/possible",
        FileId::NodePossible,
        0o444,
    ),
    within(
        66,
        "sys/devices/system/node/has_cpu",
        FileId::NodeHasCpu,
        0o444,
    ),
    within(
        67,
        "sys/devices/system/node/has_memory",
        FileId::NodeHasMemory,
        0o444,
    ),
];

/// What an entry below `cpuN/` or `nodeN/` is; its position in the table is its inode
/// offset, so the tables are append-only too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateKind {
    /// A directory.
    Dir,
    /// A file whose content is derived for the caller (renumbered, narrowed).
    Derived,
    /// A file or symlink-free value of the physical device, the same for everybody.
    Physical,
}

/// One path below `cpuN/` or `nodeN/`.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// Path below `cpuN` or `nodeN`; the empty string is the directory itself.
    pub path: &'static str,
    /// Directory, derived or physical.
    pub kind: TemplateKind,
    /// Permission bits as in the kernel's sysfs.
    pub mode: u16,
}

const fn t(path: &'static str, kind: TemplateKind, mode: u16) -> Template {
    Template { path, kind, mode }
}

/// Entries of every `sys/devices/system/cpu/cpuN`, in inode order.
pub const CPU_TEMPLATE: &[Template] = &[
    t("", TemplateKind::Dir, 0o755),
    t("topology", TemplateKind::Dir, 0o755),
    t("topology/core_id", TemplateKind::Derived, 0o444),
    t("topology/physical_package_id", TemplateKind::Derived, 0o444),
    t("topology/die_id", TemplateKind::Derived, 0o444),
    t("topology/cluster_id", TemplateKind::Derived, 0o444),
    t("topology/thread_siblings", TemplateKind::Derived, 0o444),
    t(
        "topology/thread_siblings_list",
        TemplateKind::Derived,
        0o444,
    ),
    t("topology/core_siblings", TemplateKind::Derived, 0o444),
    t("topology/core_siblings_list", TemplateKind::Derived, 0o444),
    t("topology/core_cpus", TemplateKind::Derived, 0o444),
    t("topology/core_cpus_list", TemplateKind::Derived, 0o444),
    t("topology/package_cpus", TemplateKind::Derived, 0o444),
    t("topology/package_cpus_list", TemplateKind::Derived, 0o444),
    t("topology/die_cpus", TemplateKind::Derived, 0o444),
    t("topology/die_cpus_list", TemplateKind::Derived, 0o444),
    t("topology/cluster_cpus", TemplateKind::Derived, 0o444),
    t("topology/cluster_cpus_list", TemplateKind::Derived, 0o444),
    t("online", TemplateKind::Derived, 0o644),
];

/// Entries of every `sys/devices/system/node/nodeN`, in inode order.
pub const NODE_TEMPLATE: &[Template] = &[
    t("", TemplateKind::Dir, 0o755),
    t("cpulist", TemplateKind::Derived, 0o444),
    t("cpumap", TemplateKind::Derived, 0o444),
    t("distance", TemplateKind::Physical, 0o444),
    t("meminfo", TemplateKind::Derived, 0o444),
];

/// Inode of entry `index` of [`CPU_TEMPLATE`] for CPU `cpu`, or `None` beyond the table.
pub const fn cpu_ino(cpu: u32, index: usize) -> Option<Ino> {
    if cpu >= MAX_CPUS || index >= CPU_TEMPLATE.len() {
        return None;
    }
    Some(CPU_BASE + cpu as u64 * CPU_STRIDE + index as u64)
}

/// Inode of entry `index` of [`NODE_TEMPLATE`] for NUMA node `node`, or `None` beyond it.
pub const fn node_ino(node: u32, index: usize) -> Option<Ino> {
    if node >= MAX_NODES || index >= NODE_TEMPLATE.len() {
        return None;
    }
    Some(NODE_BASE + node as u64 * NODE_STRIDE + index as u64)
}

/// Any inode of this file system, decoded.
#[derive(Clone, Copy, Debug)]
pub enum Node {
    /// An entry of [`CATALOGUE`].
    Fixed(&'static Entry),
    /// An entry of a `cpuN` tree: CPU number and index into [`CPU_TEMPLATE`].
    Cpu(u32, usize),
    /// An entry of a `nodeN` tree: node number and index into [`NODE_TEMPLATE`].
    Numa(u32, usize),
}

/// Decodes an inode number; `None` for numbers this file system never handed out.
pub fn node(ino: Ino) -> Option<Node> {
    if ino < CPU_BASE {
        return CATALOGUE
            .iter()
            .find(|entry| entry.ino == ino)
            .map(Node::Fixed);
    }
    let (base, stride, entries, max) = if ino < NODE_BASE {
        (CPU_BASE, CPU_STRIDE, CPU_TEMPLATE.len(), MAX_CPUS)
    } else {
        (NODE_BASE, NODE_STRIDE, NODE_TEMPLATE.len(), MAX_NODES)
    };
    let (number, index) = ((ino - base) / stride, ((ino - base) % stride) as usize);
    if number >= max as u64 || index >= entries {
        return None;
    }
    Some(if ino < NODE_BASE {
        Node::Cpu(number as u32, index)
    } else {
        Node::Numa(number as u32, index)
    })
}

/// The entry at `path` (no leading slash).
pub fn by_path(path: &str) -> Option<&'static Entry> {
    CATALOGUE.iter().find(|entry| entry.path == path)
}

/// The path of the file that `id` renders, without a leading slash.
pub fn path_of(id: FileId) -> &'static str {
    CATALOGUE
        .iter()
        .find(|entry| entry.kind == Kind::File(id))
        .map_or("", |entry| entry.path)
}

/// Paths bound into every container unless excluded, in catalogue order.
pub fn attached_by_default() -> impl Iterator<Item = &'static Entry> {
    CATALOGUE
        .iter()
        .filter(|entry| entry.attach == Attach::Default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inode_numbers_and_paths_are_unique() {
        for (at, entry) in CATALOGUE.iter().enumerate() {
            for other in &CATALOGUE[at + 1..] {
                assert_ne!(entry.ino, other.ino, "{} and {}", entry.path, other.path);
                assert_ne!(entry.path, other.path);
            }
            assert!(entry.ino < CPU_BASE);
        }
    }

    #[test]
    fn every_parent_comes_before_its_children() {
        for (at, entry) in CATALOGUE.iter().enumerate().skip(1) {
            let parent = entry.path.rsplit_once('/').map_or("", |(parent, _)| parent);
            let found = CATALOGUE.iter().position(|other| other.path == parent);
            assert!(found.is_some_and(|found| found < at), "{}", entry.path);
        }
    }

    #[test]
    fn every_number_decodes_to_where_it_came_from() {
        for entry in CATALOGUE {
            assert!(
                matches!(node(entry.ino), Some(Node::Fixed(found)) if found.path == entry.path)
            );
        }
        for (cpu, index) in [(0, 0), (7, 3), (MAX_CPUS - 1, CPU_TEMPLATE.len() - 1)] {
            let ino = cpu_ino(cpu, index).unwrap();
            assert!(matches!(node(ino), Some(Node::Cpu(c, i)) if (c, i) == (cpu, index)));
        }
        let ino = node_ino(3, 2).unwrap();
        assert!(matches!(node(ino), Some(Node::Numa(3, 2))));
        assert!(node(0).is_none());
        assert!(node(u64::MAX).is_none());
        assert!(node(CPU_BASE + CPU_TEMPLATE.len() as u64).is_none());
    }

    #[test]
    fn the_numbers_a_running_container_may_hold_have_not_moved() {
        // First and last of each range: extend, never change.
        assert_eq!(by_path("proc/meminfo").unwrap().ino, 17);
        assert_eq!(by_path("proc/vmstat").unwrap().ino, 24);
        assert_eq!(by_path("proc/pressure/irq").unwrap().ino, 35);
        assert_eq!(by_path("sys/devices/system/cpu/online").unwrap().ino, 48);
        assert_eq!(
            by_path("sys/devices/system/node/has_memory").unwrap().ino,
            67
        );
        assert_eq!(cpu_ino(1, 2), Some(0x1_0102));
        assert_eq!(CPU_TEMPLATE[18].path, "online");
        assert_eq!(node_ino(1, 4), Some(0x100_0104));
    }
}
