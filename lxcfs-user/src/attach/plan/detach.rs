//! Giving a container the host's files back.

use std::collections::BTreeSet;

use super::{Action, Facts, Planner, Skip, Step, carriers, is_visible};
use crate::attach::Selection;
use crate::mountinfo::{MountId, MountTable};

/// Takes every wanted mount of ours away, from the top.
pub(super) fn detach(
    table: &MountTable,
    facts: &Facts,
    selection: Option<&Selection>,
) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut table = table.clone();
    // Removing one mount can uncover another of ours; the table shrinks every round.
    loop {
        let planner = Planner {
            table: &table,
            facts,
            takeover: false,
        };
        let mut gone = BTreeSet::new();
        for mount in table.mounts() {
            let path = &mount.mount_point;
            let wanted = selection.map_or_else(
                || path.starts_with("/proc") || path.starts_with("/sys"),
                |selection| selection.contains(path),
            );
            if !wanted || !planner.is_ours(mount) || !is_visible(&table, mount) {
                continue;
            }
            let stack = table.stack(path);
            // What is taken away carries nothing: bound from a shared mount of the host, it is
            // in that mount's peer group.
            let carriers = carriers(&stack, |mount| planner.is_ours(mount));
            let action = match (stack.base, planner.shared_with_host(&carriers)) {
                (None, _) => Action::Skip(Skip::OutOfReach),
                (_, Some(skip)) => Action::Skip(skip),
                _ => {
                    gone.insert(mount.id);
                    Action::Detach {
                        mounts: vec![mount.id],
                    }
                }
            };
            let known = steps.iter_mut().find(|step| step.path == *path);
            match (known, action) {
                (Some(step), Action::Detach { mounts: more }) => {
                    if let Action::Detach { mounts } = &mut step.action {
                        mounts.extend(more);
                    }
                }
                (Some(_), _) => {}
                (None, action) => steps.push(Step {
                    path: path.clone(),
                    action,
                }),
            }
        }
        if gone.is_empty() {
            return steps;
        }
        table = without(&table, gone);
    }
}

/// The table after `gone` were lazily unmounted: what is mounted on them goes too.
pub(super) fn without(table: &MountTable, mut gone: BTreeSet<MountId>) -> MountTable {
    loop {
        let before = gone.len();
        for mount in table.mounts() {
            if gone.contains(&mount.parent) {
                gone.insert(mount.id);
            }
        }
        if gone.len() == before {
            break;
        }
    }
    let left = table.mounts().iter();
    MountTable::new(
        left.filter(|mount| !gone.contains(&mount.id))
            .cloned()
            .collect(),
    )
}
