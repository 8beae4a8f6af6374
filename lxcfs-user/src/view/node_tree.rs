//! `/sys/devices/system/node`: one node 0 with every CPU and all memory of the container.
//!
//! A container's memory and CPUs are not counted per node by its cgroup in a way that would
//! let N renumbered CPUs keep their distance, so a machine with one node is shown: what
//! programs then do (no binding, one arena) is right for a container.

use lxcfs_common::catalogue::{FileId, NODE_TEMPLATE};

use super::cpu_tree::{put_list, put_mask};
use super::cpus;
use super::format::{put_label, put_width};
use super::meminfo::{self, HostMeminfo, Meminfo, Rule};
use crate::cpuset::CpuSet;
use crate::engine::AnswerError;
use crate::policy::ViewPolicy;
use crate::snapshot::{Inputs, Origin, Snapshot};
use crate::units::Kib;

/// What `render_node` needs for entry `index` of [`NODE_TEMPLATE`].
#[must_use]
pub fn inputs(index: usize) -> Inputs {
    match NODE_TEMPLATE.get(index).map(|entry| entry.path) {
        Some("meminfo") => meminfo::INPUTS,
        Some("cpulist" | "cpumap") => cpus::INPUTS,
        _ => Inputs::default(),
    }
}

/// The nodes a container sees.
#[must_use]
pub fn visible() -> CpuSet {
    CpuSet::first(1)
}

/// Appends one of the files directly in the directory: all say node 0.
pub(super) fn render_list(_id: FileId, out: &mut Vec<u8>) {
    put_list(out, &visible());
}

/// Lines of `node_read_meminfo` in the kernel's order, as far as a container has them.
const LINES: &[&str] = &[
    "SwapCached",
    "Active",
    "Inactive",
    "Active(anon)",
    "Inactive(anon)",
    "Active(file)",
    "Inactive(file)",
    "Unevictable",
    "Mlocked",
    "Dirty",
    "Writeback",
    "FilePages",
    "Mapped",
    "AnonPages",
    "Shmem",
    "KernelStack",
    "PageTables",
    "SecPageTables",
    "KReclaimable",
    "Slab",
    "SReclaimable",
    "SUnreclaim",
    "AnonHugePages",
    "ShmemHugePages",
    "FileHugePages",
];

/// Appends the file `index` of [`NODE_TEMPLATE`] of node `node`.
///
/// # Errors
/// When the container has no such node, the entry is not a file, or the snapshot lacks the
/// host's meminfo.
pub(super) fn render_node(
    node: u32,
    index: usize,
    snapshot: &Snapshot,
    policy: &ViewPolicy,
    out: &mut Vec<u8>,
) -> Result<(), AnswerError> {
    if !visible().contains(node) {
        return Err(AnswerError::Absent(
            "a node of this number in the container",
        ));
    }
    match NODE_TEMPLATE.get(index).map(|entry| entry.path) {
        Some("cpulist") => put_list(out, &cpus::derive(snapshot, policy).numbers),
        Some("cpumap") => {
            let cpus = cpus::derive(snapshot, policy);
            put_mask(out, &cpus.numbers, cpus.nr_cpu_ids());
        }
        Some("distance") => out.extend_from_slice(b"10\n"),
        Some("meminfo") => {
            let host = HostMeminfo::parse(meminfo::host_text(snapshot)?);
            put_meminfo(out, snapshot, &host, policy);
        }
        _ => return Err(AnswerError::Absent("a file of this name in the node tree")),
    }
    Ok(())
}

fn put_meminfo(out: &mut Vec<u8>, snapshot: &Snapshot, host: &HostMeminfo, policy: &ViewPolicy) {
    let container = Meminfo::derive(snapshot, host, policy);
    let total = container.value(Rule::Total).map_or(host.total, Kib);
    let free = container.value(Rule::Free).map_or(host.free, Kib);
    let mut put = |name: &str, kib: Kib| {
        out.extend_from_slice(b"Node 0 ");
        put_label(out, name, meminfo::LABEL);
        put_width(out, kib.0, 8);
        out.extend_from_slice(b" kB\n");
    };
    put("MemTotal", total);
    put("MemFree", free);
    put("MemUsed", total.less(free));
    for name in LINES {
        let line = meminfo::line_of(in_meminfo(name));
        if let Some(kib) = line.and_then(|line| container.value(line.rule)) {
            put(name, Kib(kib));
        }
    }
}

/// The name of a line in `/proc/meminfo`: page cache is called otherwise there.
fn in_meminfo(name: &str) -> &str {
    match name {
        "FilePages" => "Cached",
        name => name,
    }
}

/// Where a line of node 0's meminfo, or without a label the rest of the tree, comes from.
pub(super) fn why(label: &str, snapshot: &Snapshot, policy: &ViewPolicy) -> (Origin, &'static str) {
    match label {
        "" => (
            Origin::Derived("one node"),
            "one node with every CPU and all memory of the container",
        ),
        "MemUsed" => (Origin::Derived("meminfo"), "MemTotal - MemFree"),
        label => meminfo::why(in_meminfo(label), snapshot, policy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{container, cpus, render_with};

    fn file(name: &str, snapshot: &Snapshot) -> String {
        let index = NODE_TEMPLATE.iter().position(|entry| entry.path == name);
        let policy = ViewPolicy::default();
        render_with(|out| render_node(0, index.unwrap(), snapshot, &policy, out))
    }

    #[test]
    fn node_0_has_every_cpu_and_the_containers_memory_f15() {
        let snapshot = cpus(container(), "2-5", None);
        assert_eq!(file("cpulist", &snapshot), "0-3\n");
        assert_eq!(file("cpumap", &snapshot), "f\n");
        assert_eq!(file("distance", &snapshot), "10\n");
        let meminfo = file("meminfo", &snapshot);
        assert!(
            meminfo.starts_with(
                "Node 0 MemTotal:         262144 kB\n\
                 Node 0 MemFree:          163840 kB\n\
                 Node 0 MemUsed:           98304 kB\n"
            ),
            "{meminfo}"
        );
        assert!(
            meminfo.contains("Node 0 FilePages:         40960 kB\n"),
            "{meminfo}"
        );
    }

    #[test]
    fn other_nodes_are_absent() {
        let shown = render_node(1, 1, &container(), &ViewPolicy::default(), &mut Vec::new());
        assert!(matches!(shown, Err(AnswerError::Absent(_))));
        let mut out = Vec::new();
        render_list(FileId::NodeOnline, &mut out);
        assert_eq!(out, b"0\n");
    }
}
