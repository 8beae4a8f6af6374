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
use crate::snapshot::{Inputs, Snapshot};
use crate::units::Kib;

/// What [`render_node`] needs for entry `index` of [`NODE_TEMPLATE`].
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

/// Lines of `node_read_meminfo` in the kernel's order.
const LINES: &[(&str, Rule)] = &[
    ("SwapCached", Rule::SwapCached),
    ("Active", Rule::Active),
    ("Inactive", Rule::Inactive),
    ("Active(anon)", Rule::ActiveAnon),
    ("Inactive(anon)", Rule::InactiveAnon),
    ("Active(file)", Rule::ActiveFile),
    ("Inactive(file)", Rule::InactiveFile),
    ("Unevictable", Rule::Unevictable),
    ("Mlocked", Rule::Zero),
    ("Dirty", Rule::Dirty),
    ("Writeback", Rule::Writeback),
    ("FilePages", Rule::Cached),
    ("Mapped", Rule::Mapped),
    ("AnonPages", Rule::AnonPages),
    ("Shmem", Rule::Shmem),
    ("KernelStack", Rule::KernelStack),
    ("PageTables", Rule::PageTables),
    ("SecPageTables", Rule::SecPageTables),
    ("KReclaimable", Rule::SReclaimable),
    ("Slab", Rule::Slab),
    ("SReclaimable", Rule::SReclaimable),
    ("SUnreclaim", Rule::SUnreclaim),
    ("AnonHugePages", Rule::AnonHugePages),
    ("ShmemHugePages", Rule::ShmemHugePages),
    ("FileHugePages", Rule::FileHugePages),
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
            let text = snapshot.host.meminfo.as_deref();
            let text = text.ok_or(AnswerError::Absent("the host's /proc/meminfo"))?;
            let host = HostMeminfo::parse(text);
            put_meminfo(out, snapshot, &host, policy);
        }
        _ => return Err(AnswerError::Absent("a file of this name in the node tree")),
    }
    Ok(())
}

fn put_meminfo(out: &mut Vec<u8>, snapshot: &Snapshot, host: &HostMeminfo, policy: &ViewPolicy) {
    let container = Meminfo::derive(snapshot, host, policy);
    let (total, free) = container
        .as_ref()
        .map_or((host.total, host.free), |m| (m.total, m.free));
    let mut put = |name: &str, kib: Kib| {
        out.extend_from_slice(b"Node 0 ");
        put_label(out, name, 16);
        put_width(out, kib.0, 8);
        out.extend_from_slice(b" kB\n");
    };
    put("MemTotal", total);
    put("MemFree", free);
    put("MemUsed", total.less(free));
    for (name, rule) in LINES {
        if let Some(kib) = container.as_ref().and_then(|m| m.value(*rule)) {
            put(name, Kib(kib));
        }
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
