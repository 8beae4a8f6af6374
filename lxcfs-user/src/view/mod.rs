//! What every virtual file shows: pure functions from a snapshot to text.
//!
//! One module per file holds its derivation and its rendering; [`cpus`] decides the number
//! of CPUs for all of them and `meminfo` the memory figures. Nothing here reads a file, a
//! clock or an environment variable, and no input makes it panic.
//!
//! [`inputs`] says what a file needs, [`render`] writes it, [`explain`] says for every line
//! where it comes from. Files for which [`shows_host`] holds are the host's own text by the
//! operator's choice, and are not rendered here.

pub mod cpu_tree;
pub mod cpuinfo;
pub mod cpus;
pub mod diskstats;
mod format;
pub mod loadavg;
pub mod meminfo;
pub mod node_tree;
pub mod pressure;
pub mod slabinfo;
pub mod stat;
pub mod swaps;
pub mod uptime;
pub mod vmstat;

#[cfg(test)]
mod identities;
#[cfg(test)]
pub(crate) mod testing;

use lxcfs_common::catalogue::{FileId, Kind, Node};

use crate::engine::AnswerError;
use crate::history::cpu::CpuHistory;
use crate::policy::ViewPolicy;
use crate::snapshot::{Inputs, Origin, PressureKind, Snapshot};

/// One line of a file and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainLine {
    /// Its label: `MemTotal`, `cpu0`, a device name; empty for files of one value.
    pub line: String,
    /// What is shown, exactly as rendered.
    pub value: String,
    /// The file, limit and ancestor, or program that decided.
    pub origin: Origin,
    /// The formula or rule.
    pub rule: &'static str,
}

/// The file behind a node of the fixed catalogue.
fn file_of(node: Node) -> Option<FileId> {
    match node {
        Node::Fixed(entry) => match entry.kind {
            Kind::File(id) => Some(id),
            Kind::Dir => None,
        },
        Node::Cpu(..) | Node::Numa(..) => None,
    }
}

fn pressure_kind(id: FileId) -> Option<PressureKind> {
    Some(match id {
        FileId::PressureCpu => PressureKind::Cpu,
        FileId::PressureMemory => PressureKind::Memory,
        FileId::PressureIo => PressureKind::Io,
        FileId::PressureIrq => PressureKind::Irq,
        _ => return None,
    })
}

/// Whether `policy` asks for the host's own text, byte for byte, in `node`.
#[must_use]
pub fn shows_host(node: Node, policy: &ViewPolicy) -> bool {
    if policy.off.has(node) {
        return true;
    }
    match file_of(node) {
        Some(FileId::Loadavg) => !policy.loadavg,
        Some(FileId::Uptime) => !policy.uptime,
        _ => false,
    }
}

/// What must be in the snapshot to render `node`.
#[must_use]
pub fn inputs(node: Node, policy: &ViewPolicy) -> Inputs {
    let id = match node {
        Node::Cpu(..) => return cpu_tree::inputs(policy),
        Node::Numa(_, index) => return node_tree::inputs(index),
        Node::Fixed(_) => match file_of(node) {
            Some(id) => id,
            None => return Inputs::default(),
        },
    };
    match id {
        FileId::Cpuinfo => cpuinfo::INPUTS,
        FileId::Meminfo => meminfo::INPUTS,
        FileId::Stat => stat::INPUTS,
        FileId::Uptime => uptime::INPUTS,
        FileId::Diskstats => diskstats::INPUTS,
        FileId::Swaps => swaps::INPUTS,
        FileId::Loadavg => loadavg::INPUTS,
        FileId::Slabinfo => slabinfo::INPUTS,
        FileId::Vmstat => vmstat::INPUTS,
        FileId::PressureCpu | FileId::PressureMemory | FileId::PressureIo | FileId::PressureIrq => {
            pressure::INPUTS
        }
        FileId::CpuOnline
        | FileId::CpuPossible
        | FileId::CpuPresent
        | FileId::CpuOffline
        | FileId::CpuKernelMax
        | FileId::CpuIsolated
        | FileId::CpuUevent => cpu_tree::INPUTS,
        FileId::NodeOnline | FileId::NodePossible | FileId::NodeHasCpu | FileId::NodeHasMemory => {
            Inputs::default()
        }
    }
}

/// Appends to `out` what the container of `snapshot` reads in `node`. `history` is the
/// container's; only `/proc/stat` moves it on.
///
/// # Errors
/// [`AnswerError::Absent`] for directories, for CPUs and nodes the container does not have,
/// and where the snapshot lacks what [`inputs`] asked for.
pub fn render(
    node: Node,
    snapshot: &Snapshot,
    history: &mut CpuHistory,
    policy: &ViewPolicy,
    out: &mut Vec<u8>,
) -> Result<(), AnswerError> {
    let id = match node {
        Node::Cpu(cpu, index) => {
            return cpu_tree::render_cpu(cpu, index, snapshot, policy, out);
        }
        Node::Numa(number, index) => {
            return node_tree::render_node(number, index, snapshot, policy, out);
        }
        Node::Fixed(_) => file_of(node).ok_or(AnswerError::Absent("text of a directory"))?,
    };
    match id {
        FileId::Cpuinfo => cpuinfo::render(snapshot, policy, out)?,
        FileId::Meminfo => meminfo::render(snapshot, policy, out)?,
        FileId::Stat => stat::render(snapshot, history, policy, out)?,
        FileId::Uptime => uptime::render(snapshot, policy, out)?,
        FileId::Diskstats => diskstats::render(snapshot, out),
        FileId::Swaps => swaps::render(snapshot, policy, out)?,
        FileId::Loadavg => loadavg::render(snapshot, out)?,
        FileId::Slabinfo => slabinfo::render(snapshot, out),
        FileId::Vmstat => vmstat::render(snapshot, policy, out),
        FileId::PressureCpu | FileId::PressureMemory | FileId::PressureIo | FileId::PressureIrq => {
            let kind = pressure_kind(id).ok_or(AnswerError::Absent("pressure file"))?;
            pressure::render(snapshot, kind, out)?;
        }
        FileId::CpuOnline
        | FileId::CpuPossible
        | FileId::CpuPresent
        | FileId::CpuOffline
        | FileId::CpuKernelMax
        | FileId::CpuIsolated
        | FileId::CpuUevent => cpu_tree::render_list(id, snapshot, policy, out),
        FileId::NodeOnline | FileId::NodePossible | FileId::NodeHasCpu | FileId::NodeHasMemory => {
            node_tree::render_list(id, out)
        }
    }
    Ok(())
}

/// The lines of `node` as [`render`] writes them, each with what decided it. `history` is
/// not moved on.
///
/// # Errors
/// As [`render`].
pub fn explain(
    node: Node,
    snapshot: &Snapshot,
    history: &CpuHistory,
    policy: &ViewPolicy,
) -> Result<Vec<ExplainLine>, AnswerError> {
    let mut text = Vec::new();
    render(node, snapshot, &mut history.clone(), policy, &mut text)?;
    let text = String::from_utf8_lossy(&text);
    let explained = |label: &str, value: &str| {
        let (origin, rule) = why(node, label, snapshot, policy);
        ExplainLine {
            line: label.to_owned(),
            value: value.to_owned(),
            origin,
            rule,
        }
    };
    let lines = text.lines().filter(|line| !line.is_empty());
    let mut lines: Vec<_> = lines
        .map(|line| split(node, line))
        .map(|(label, value)| explained(label, value))
        .collect();
    // That there is nothing has a reason, too.
    if lines.is_empty() {
        lines.push(explained("", "(empty)"));
    }
    Ok(lines)
}

/// Label and value of a rendered line.
fn split(node: Node, line: &str) -> (&str, &str) {
    let parts = match file_of(node) {
        Some(FileId::Meminfo | FileId::Cpuinfo) => line.split_once(':'),
        Some(
            FileId::Stat
            | FileId::Vmstat
            | FileId::PressureCpu
            | FileId::PressureMemory
            | FileId::PressureIo
            | FileId::PressureIrq,
        ) => line.split_once(' '),
        None => line
            .strip_prefix("Node 0 ")
            .and_then(|line| line.split_once(':')),
        Some(_) => None,
    };
    parts.map_or(("", line), |(label, value)| (label.trim(), value.trim()))
}

fn why(
    node: Node,
    label: &str,
    snapshot: &Snapshot,
    policy: &ViewPolicy,
) -> (Origin, &'static str) {
    let cpus = || {
        let visible = cpus::derive(snapshot, policy);
        (visible.origin, visible.rule)
    };
    let one_node = node_tree::why("", snapshot, policy);
    let id = match node {
        Node::Cpu(..) => return cpus(),
        Node::Numa(..) => return node_tree::why(label, snapshot, policy),
        Node::Fixed(_) => file_of(node),
    };
    match id {
        Some(FileId::Cpuinfo) => cpuinfo::why(label, snapshot, policy),
        Some(FileId::Meminfo) => meminfo::why(label, snapshot, policy),
        Some(FileId::Stat) => stat::why(label, snapshot, policy),
        Some(FileId::Uptime) => uptime::why(snapshot),
        Some(FileId::Diskstats) => diskstats::why(snapshot),
        Some(FileId::Swaps) => swaps::why(snapshot, policy),
        Some(FileId::Loadavg) => loadavg::why(snapshot),
        Some(FileId::Slabinfo) => slabinfo::why(),
        Some(FileId::Vmstat) => vmstat::why(label, snapshot),
        Some(id) => match pressure_kind(id) {
            Some(kind) => pressure::why(kind),
            None if matches!(
                id,
                FileId::NodeOnline
                    | FileId::NodePossible
                    | FileId::NodeHasCpu
                    | FileId::NodeHasMemory
            ) =>
            {
                one_node
            }
            None => cpus(),
        },
        None => one_node,
    }
}
