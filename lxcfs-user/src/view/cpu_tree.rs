//! `/sys/devices/system/cpu`: lists of CPUs, and per CPU its topology.
//!
//! With sequential numbers the container has one package of N single-threaded cores, as in
//! its `cpuinfo`. With physical numbers the host's packages and cores are kept, as far as
//! its `cpuinfo` tells them.

use lxcfs_common::catalogue::{CPU_TEMPLATE, FileId};

use super::cpuinfo::{Block, Cpuinfo};
use super::cpus::{self, VisibleCpus};
use super::format::put_u64;
use crate::cpuset::CpuSet;
use crate::engine::AnswerError;
use crate::policy::{CpuNumbering, ViewPolicy};
use crate::snapshot::{Inputs, Snapshot};

/// What `render_list` needs.
pub const INPUTS: Inputs = cpus::INPUTS;

/// What `render_cpu` needs: the host's topology only with its numbers.
#[must_use]
pub fn inputs(policy: &ViewPolicy) -> Inputs {
    match policy.cpu_numbering {
        CpuNumbering::Sequential => INPUTS,
        CpuNumbering::Physical => INPUTS.and(Inputs::HOST_CPUINFO),
    }
}

/// x86's "no cluster known"; a cluster of one core is not worth a number.
const NO_CLUSTER: u64 = 65_535;

/// Appends one of the files directly in the directory.
pub(super) fn render_list(id: FileId, snapshot: &Snapshot, policy: &ViewPolicy, out: &mut Vec<u8>) {
    let visible = cpus::derive(snapshot, policy);
    match id {
        FileId::CpuOnline | FileId::CpuPossible | FileId::CpuPresent => {
            put_list(out, &visible.numbers);
        }
        FileId::CpuKernelMax => {
            put_u64(out, u64::from(visible.numbers.last().unwrap_or(0)));
            out.push(b'\n');
        }
        // No CPU of the container is offline or isolated.
        FileId::CpuOffline | FileId::CpuIsolated => out.push(b'\n'),
        // Reading uevent of the subsystem gives nothing in the kernel either.
        _ => {}
    }
}

/// A list in the kernel's format and its line end.
pub(super) fn put_list(out: &mut Vec<u8>, set: &CpuSet) {
    use std::io::Write as _;
    // Writing to a Vec cannot fail.
    let _ = writeln!(out, "{set}");
}

/// A mask as wide as the container's highest CPU number, and its line end.
pub(super) fn put_mask(out: &mut Vec<u8>, set: &CpuSet, nr_cpu_ids: u32) {
    out.extend_from_slice(set.to_mask(nr_cpu_ids).as_bytes());
    out.push(b'\n');
}

/// Where one CPU sits.
struct Place {
    package: u64,
    die: u64,
    core: u64,
    /// CPUs of the same core.
    threads: CpuSet,
    /// CPUs of the same package.
    siblings: CpuSet,
}

impl Place {
    fn of(cpu: u32, visible: &VisibleCpus, cpuinfo: Option<&str>) -> Self {
        if !visible.physical {
            return Self {
                package: 0,
                die: 0,
                core: u64::from(cpu),
                threads: [cpu].into_iter().collect(),
                siblings: visible.numbers.clone(),
            };
        }
        let host = Cpuinfo::parse(cpuinfo.unwrap_or(""));
        let place = |block: &Block<'_>| {
            let package = block.number("physical id").unwrap_or(0);
            let core = block.number("core id").unwrap_or(u64::from(block.cpu));
            (package, core)
        };
        let own = host.blocks.iter().find(|block| block.cpu == cpu);
        let (package, core) = own.map_or((0, u64::from(cpu)), place);
        let same = |wanted: &dyn Fn((u64, u64)) -> bool| -> CpuSet {
            let blocks = host.blocks.iter().filter(|block| wanted(place(block)));
            let cpus = blocks.map(|block| block.cpu).chain([cpu]);
            cpus.filter(|cpu| visible.numbers.contains(*cpu)).collect()
        };
        Self {
            package,
            die: 0,
            core,
            threads: same(&|other| other == (package, core)),
            siblings: same(&|other| other.0 == package),
        }
    }
}

/// Appends the file `index` of [`CPU_TEMPLATE`] of CPU `cpu`.
///
/// # Errors
/// When the container has no such CPU or the entry is not a file.
pub(super) fn render_cpu(
    cpu: u32,
    index: usize,
    snapshot: &Snapshot,
    policy: &ViewPolicy,
    out: &mut Vec<u8>,
) -> Result<(), AnswerError> {
    let visible = cpus::derive(snapshot, policy);
    if !visible.numbers.contains(cpu) {
        return Err(AnswerError::Absent("a CPU of this number in the container"));
    }
    let path = CPU_TEMPLATE.get(index).map_or("", |entry| entry.path);
    let place = Place::of(cpu, &visible, snapshot.host.cpuinfo.as_deref());
    let ids = visible.nr_cpu_ids();
    let alone: CpuSet = [cpu].into_iter().collect();
    let name = path.strip_prefix("topology/").unwrap_or(path);
    let (name, list) = name
        .strip_suffix("_list")
        .map_or((name, false), |name| (name, true));
    let set = match name {
        "thread_siblings" | "core_cpus" => Some(&place.threads),
        "core_siblings" | "package_cpus" | "die_cpus" => Some(&place.siblings),
        "cluster_cpus" => Some(&alone),
        _ => None,
    };
    let number = match name {
        "core_id" => place.core,
        "physical_package_id" => place.package,
        "die_id" => place.die,
        "cluster_id" => NO_CLUSTER,
        "online" => 1,
        _ if set.is_some() => 0,
        _ => return Err(AnswerError::Absent("a file of this name in the cpu tree")),
    };
    match set {
        Some(set) if list => put_list(out, set),
        Some(set) => put_mask(out, set, ids),
        None => {
            put_u64(out, number);
            out.push(b'\n');
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::CpuPolicy;
    use crate::view::testing::{container, cpus, render_with, x86_cpuinfo};

    fn list(id: FileId, snapshot: &Snapshot, policy: &ViewPolicy) -> String {
        let mut out = Vec::new();
        render_list(id, snapshot, policy, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// Every file of one CPU, by name.
    fn tree(cpu: u32, snapshot: &Snapshot, policy: &ViewPolicy) -> Vec<(String, String)> {
        let files = CPU_TEMPLATE.iter().enumerate().skip(2);
        files
            .map(|(index, entry)| {
                let text = render_with(|out| render_cpu(cpu, index, snapshot, policy, out));
                let name = entry.path.trim_start_matches("topology/");
                (name.to_owned(), text.trim_end().to_owned())
            })
            .collect()
    }

    #[test]
    fn every_list_shows_the_one_number_f15() {
        let snapshot = cpus(container(), "4-7", Some((250_000, 100_000)));
        let policy = ViewPolicy::default();
        for id in [FileId::CpuOnline, FileId::CpuPossible, FileId::CpuPresent] {
            assert_eq!(list(id, &snapshot, &policy), "0-2\n");
        }
        assert_eq!(list(FileId::CpuKernelMax, &snapshot, &policy), "2\n");
        assert_eq!(list(FileId::CpuOffline, &snapshot, &policy), "\n");
        assert_eq!(list(FileId::CpuIsolated, &snapshot, &policy), "\n");
        assert_eq!(list(FileId::CpuUevent, &snapshot, &policy), "");
    }

    #[test]
    fn topology_is_one_package_of_single_threaded_cores() {
        let snapshot = cpus(container(), "4-6", None);
        let expected = [
            ("core_id", "1"),
            ("physical_package_id", "0"),
            ("die_id", "0"),
            ("cluster_id", "65535"),
            ("thread_siblings", "2"),
            ("thread_siblings_list", "1"),
            ("core_siblings", "7"),
            ("core_siblings_list", "0-2"),
            ("core_cpus", "2"),
            ("core_cpus_list", "1"),
            ("package_cpus", "7"),
            ("package_cpus_list", "0-2"),
            ("die_cpus", "7"),
            ("die_cpus_list", "0-2"),
            ("cluster_cpus", "2"),
            ("cluster_cpus_list", "1"),
            ("online", "1"),
        ];
        let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(tree(1, &snapshot, &ViewPolicy::default()), expected);
    }

    #[test]
    fn physical_numbers_keep_the_hosts_cores() {
        let mut snapshot = cpus(container(), "1,4-5", None);
        // Two threads per core: CPUs 4 and 5 are one core.
        let host = x86_cpuinfo(8).replace("core id\t\t: 5", "core id\t\t: 4");
        snapshot.host.cpuinfo = Some(host);
        let policy = ViewPolicy {
            cpus: CpuPolicy::Cpuset,
            cpu_numbering: CpuNumbering::Physical,
            ..ViewPolicy::default()
        };
        let files = tree(5, &snapshot, &policy);
        let file = |name: &str| &files.iter().find(|(file, _)| file == name).unwrap().1;
        assert_eq!(file("core_id"), "4");
        assert_eq!(file("thread_siblings_list"), "4-5");
        assert_eq!(file("thread_siblings"), "30");
        assert_eq!(file("package_cpus_list"), "1,4-5");
        assert_eq!(list(FileId::CpuOnline, &snapshot, &policy), "1,4-5\n");
        assert_eq!(list(FileId::CpuKernelMax, &snapshot, &policy), "5\n");
    }

    #[test]
    fn a_cpu_beyond_the_containers_is_absent() {
        let snapshot = cpus(container(), "0-1", None);
        let shown = render_cpu(2, 2, &snapshot, &ViewPolicy::default(), &mut Vec::new());
        assert!(matches!(shown, Err(AnswerError::Absent(_))));
        let shown = render_cpu(0, 1, &snapshot, &ViewPolicy::default(), &mut Vec::new());
        assert!(matches!(shown, Err(AnswerError::Absent(_))));
    }
}
