//! `/proc/meminfo`: the container's memory in the host's template.
//!
//! The host's file gives order, labels and the lines that describe the machine; [`LINES`]
//! says where every known line comes from. A line the table does not know is new in the
//! kernel and is copied, so that no tool misses it.

mod derive;
mod lines;

use super::format::{put_label, put_width, split_label};
use crate::engine::AnswerError;
use crate::policy::ViewPolicy;
use crate::snapshot::{Inputs, Origin, Snapshot};
pub(crate) use derive::{HostMeminfo, Meminfo};
pub use lines::{Field, LINES, Line, Rule};

/// What [`render`] needs.
pub const INPUTS: Inputs = Inputs::HOST_MEMINFO
    .and(Inputs::MEMORY)
    .and(Inputs::SWAP)
    .and(Inputs::HUGETLB);

/// Column where the kernel's numbers begin, before their own width.
pub(super) const LABEL: usize = 16;

/// Appends the container's `/proc/meminfo`.
///
/// # Errors
/// When the snapshot lacks the host's file.
pub fn render(
    snapshot: &Snapshot,
    policy: &ViewPolicy,
    out: &mut Vec<u8>,
) -> Result<(), AnswerError> {
    let text = host_text(snapshot)?;
    let container = Meminfo::derive(snapshot, &HostMeminfo::parse(text), policy);
    out.reserve(text.len() + 64);
    let mut from = 0;
    for line in text.lines() {
        let value = split_label(line).and_then(|(name, _)| {
            let rule = lines::find(name, &mut from)?.rule;
            Some((name, rule, container.value(rule)?))
        });
        match value {
            Some((name, Rule::HugePagesTotal | Rule::HugePagesFree | Rule::HugePagesOther, n)) => {
                // A number of pages: "HugePages_Total:   %5lu", no unit.
                put_label(out, name, LABEL + 3);
                put_width(out, n, 5);
            }
            Some((name, _, n)) => {
                put_label(out, name, LABEL);
                put_width(out, n, 8);
                out.extend_from_slice(b" kB");
            }
            None => out.extend_from_slice(line.as_bytes()),
        }
        out.push(b'\n');
    }
    Ok(())
}

/// The host's file, without which there is no template.
pub(super) fn host_text(snapshot: &Snapshot) -> Result<&str, AnswerError> {
    let text = snapshot.host.meminfo.as_deref();
    text.ok_or(AnswerError::Absent("the host's /proc/meminfo"))
}

/// The line called `name`, from wherever it is in the table.
pub(super) fn line_of(name: &str) -> Option<&'static Line> {
    lines::find(name, &mut 0)
}

/// Where the value of `label` comes from.
pub(super) fn why(label: &str, snapshot: &Snapshot, policy: &ViewPolicy) -> (Origin, &'static str) {
    let host = HostMeminfo::parse(snapshot.host.meminfo.as_deref().unwrap_or(""));
    match line_of(label) {
        Some(line) => (
            Meminfo::derive(snapshot, &host, policy).origin(line.rule),
            line.formula,
        ),
        None => (
            Origin::Host("/proc/meminfo"),
            "a line this version does not know",
        ),
    }
}

#[cfg(test)]
mod tests;
