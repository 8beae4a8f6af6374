//! `/proc/cpuinfo`: the host's description of the CPUs behind those the container sees,
//! renumbered so that it agrees with every other file.
//!
//! The text is architecture-specific; what all have in common (except s390x) is one block
//! per CPU that begins with a `processor` line. Lines before the first block and a last
//! block of other lines (32-bit Arm's `Hardware`, PowerPC's `platform`) describe the machine
//! and stay.

use super::cpus::{self, VisibleCpus};
use super::format::{leading_u64, put_u64};
use crate::engine::AnswerError;
use crate::policy::ViewPolicy;
use crate::snapshot::{Inputs, Origin, Snapshot};

/// What [`render`] needs.
pub const INPUTS: Inputs = Inputs::HOST_CPUINFO.and(cpus::INPUTS);

/// One `processor` block of the host's text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block<'a> {
    /// Physical CPU number.
    pub(crate) cpu: u32,
    /// All its lines, the empty one after them included.
    pub(crate) text: &'a str,
}

impl Block<'_> {
    /// The number behind `key`, e.g. `core id`.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.text.lines().find_map(|line| {
            let (name, value) = split(line)?;
            (name == key).then(|| leading_u64(value))?
        })
    }
}

/// The parts of a host's text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cpuinfo<'a> {
    head: &'a str,
    pub(crate) blocks: Vec<Block<'a>>,
    tail: &'a str,
}

/// Splits `key<tabs>: value`; the key without white space around it.
fn split(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(':')?;
    Some((key.trim(), value))
}

impl<'a> Cpuinfo<'a> {
    pub(crate) fn parse(text: &'a str) -> Self {
        let mut starts = Vec::new();
        let mut tail = None;
        let (mut at, mut after_empty) = (0, false);
        for line in text.split_inclusive('\n') {
            let number = split(line)
                .filter(|(key, _)| *key == "processor")
                .and_then(|(_, value)| leading_u64(value));
            if let Some(cpu) = number {
                starts.push((at, u32::try_from(cpu).unwrap_or(u32::MAX)));
                tail = None;
            } else if after_empty && tail.is_none() {
                tail = Some(at);
            }
            after_empty = line.trim().is_empty();
            at += line.len();
        }
        let end = tail.unwrap_or(text.len());
        let first = starts.first().map_or(text.len(), |(at, _)| *at);
        let ends = starts.iter().skip(1).map(|(at, _)| *at).chain([end]);
        let blocks = starts.iter().zip(ends).filter_map(|((start, cpu), end)| {
            let text = text.get(*start..end)?;
            Some(Block { cpu: *cpu, text })
        });
        Self {
            head: text.get(..first).unwrap_or(""),
            blocks: blocks.collect(),
            tail: text.get(end..).filter(|_| !starts.is_empty()).unwrap_or(""),
        }
    }

    /// The block of physical CPU `home`; if it has just gone offline, another one, so that
    /// the number of blocks stays the number all files show.
    fn block(&self, home: u32, index: usize) -> Option<&Block<'a>> {
        let own = self.blocks.iter().find(|block| block.cpu == home);
        own.or_else(|| self.blocks.get(index % self.blocks.len().max(1)))
    }
}

/// Appends the container's `/proc/cpuinfo`.
///
/// # Errors
/// When the snapshot lacks the host's file.
pub fn render(
    snapshot: &Snapshot,
    policy: &ViewPolicy,
    out: &mut Vec<u8>,
) -> Result<(), AnswerError> {
    let text = snapshot.host.cpuinfo.as_deref();
    let text = text.ok_or(AnswerError::Absent("the host's /proc/cpuinfo"))?;
    let visible = cpus::derive(snapshot, policy);
    let host = Cpuinfo::parse(text);
    if host.blocks.is_empty() {
        s390x(text, &visible, out);
        return Ok(());
    }
    out.reserve(text.len());
    out.extend_from_slice(host.head.as_bytes());
    for (index, (number, home)) in visible.iter().enumerate() {
        if let Some(block) = host.block(home, index) {
            put_block(out, block, number, &visible);
        }
    }
    out.extend_from_slice(host.tail.as_bytes());
    Ok(())
}

/// One block, renumbered: with sequential numbers the container has one package of N
/// single-threaded cores, as in its `cpuN/topology`.
fn put_block(out: &mut Vec<u8>, block: &Block<'_>, number: u32, visible: &VisibleCpus) {
    for line in block.text.split_inclusive('\n') {
        let replaced = match split(line).map(|(key, _)| key) {
            Some("processor") => Some(number),
            _ if visible.physical => None,
            Some("physical id") => Some(0),
            Some("siblings" | "cpu cores") => Some(visible.count()),
            Some("core id" | "apicid" | "initial apicid") => Some(number),
            _ => None,
        };
        match (replaced, line.split_once(':')) {
            (Some(value), Some((key, _))) => {
                out.extend_from_slice(key.as_bytes());
                out.extend_from_slice(b": ");
                put_u64(out, u64::from(value));
                out.push(b'\n');
            }
            _ => out.extend_from_slice(line.as_bytes()),
        }
    }
}

/// s390x has a head with `# processors` and one `processor N: …` line per CPU, then blocks
/// that begin with `cpu number`.
fn s390x(text: &str, visible: &VisibleCpus, out: &mut Vec<u8>) {
    let renumbered = |home: u64| {
        visible
            .iter()
            .find(|(_, physical)| u64::from(*physical) == home)
    };
    let mut keep = true;
    for line in text.split_inclusive('\n') {
        let Some((key, value)) = line.split_once(':') else {
            if keep {
                out.extend_from_slice(line.as_bytes());
            }
            continue;
        };
        let name = key.trim();
        let in_line = name.strip_prefix("processor ").and_then(leading_u64);
        let starts_block = (name == "cpu number").then(|| leading_u64(value)).flatten();
        if let Some(home) = in_line.or(starts_block) {
            let shown = renumbered(home);
            if starts_block.is_some() {
                keep = shown.is_some();
            }
            match (shown, in_line) {
                (Some((number, _)), Some(_)) => {
                    out.extend_from_slice(b"processor ");
                    put_u64(out, u64::from(number));
                    out.push(b':');
                    out.extend_from_slice(value.as_bytes());
                }
                (Some((number, _)), None) => {
                    out.extend_from_slice(key.as_bytes());
                    out.extend_from_slice(b": ");
                    put_u64(out, u64::from(number));
                    out.push(b'\n');
                }
                (None, _) => {}
            }
        } else if name == "# processors" {
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(b": ");
            put_u64(out, u64::from(visible.count()));
            out.push(b'\n');
        } else if keep {
            out.extend_from_slice(line.as_bytes());
        }
    }
}

/// Where a line comes from.
pub(super) fn why(label: &str, snapshot: &Snapshot, policy: &ViewPolicy) -> (Origin, &'static str) {
    let visible = cpus::derive(snapshot, policy);
    match label {
        "processor" => (visible.origin, visible.rule),
        "siblings" | "cpu cores" | "core id" | "apicid" | "initial apicid" | "physical id"
            if !visible.physical =>
        {
            (visible.origin, "one package of N single-threaded cores")
        }
        _ => (
            Origin::Host("/proc/cpuinfo"),
            "describes the physical CPU behind this one",
        ),
    }
}

#[cfg(test)]
mod tests;
