//! Owns the decision: a container's mounts, what is wanted, and which devices are dead,
//! in; steps out. Pure, so that every case is a table row in `tests`.
//!
//! Rules, in order of weight: only mounts of this file system are ever removed or
//! replaced; nothing is attached on top of a working mount; a second run plans nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lxcfs_common::catalogue::{self, Kind};
use serde::Serialize;

use super::{FS_TYPE, Selection};
use crate::mountinfo::{Device, Mount, MountId, MountTable, Stack};

mod detach;
#[cfg(test)]
mod tests;

use detach::detach;

/// Whether the server behind a device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It answers.
    Alive,
    /// Its connection is gone for good: every access gives `ENOTCONN`.
    Dead,
    /// No answer in time; nothing is known.
    Unresponsive,
}

/// What somebody wants of a container's mounts.
#[derive(Clone, Debug)]
pub enum Goal {
    /// Every selected file attached, and every dead mount replaced.
    Attach {
        /// The files.
        selection: Selection,
        /// Replace working mounts of another lxcfs too.
        takeover: bool,
    },
    /// Every dead mount replaced; nothing added.
    Heal,
    /// The host's files again.
    Detach {
        /// Only these; `None` for all of ours.
        selection: Option<Selection>,
    },
}

/// What is known besides the container's own table.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Device of the live mount to attach from, if there is one.
    pub served: Option<Device>,
    /// What was found out about every other device of our type.
    pub liveness: BTreeMap<Device, Liveness>,
    /// Peer groups of the host's own mounts: an event there would reach the host.
    pub host_peers: BTreeSet<u32>,
}

/// Why a path is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Skip {
    /// The file is attached and works.
    UpToDate,
    /// The path is not the expected place of a procfs or sysfs.
    NotKernelFs {
        /// File system type found there.
        found: String,
    },
    /// The path lies outside the process's root directory.
    OutOfReach,
    /// The container has its own mount there.
    UserMount {
        /// Its file system type.
        found: String,
    },
    /// Another running lxcfs serves this path.
    OtherInstance {
        /// Its device number.
        device: String,
    },
    /// A mount of our type whose server does not answer.
    Unresponsive {
        /// Its device number.
        device: String,
    },
    /// The mount below shares its events with the host's.
    SharedWithHost {
        /// The peer group.
        group: u32,
    },
    /// A mount of our type that shows a file this version does not have.
    UnknownFile {
        /// The file.
        root: PathBuf,
    },
    /// The kernel of this machine has no such file to cover.
    NoSuchFile,
    /// The daemon does not serve this file.
    NotServed,
}

impl Skip {
    /// The metric's label; `None` where there was nothing to do.
    pub fn label(&self) -> Option<&'static str> {
        Some(match self {
            Self::UpToDate => return None,
            Self::NotKernelFs { .. } => "not-kernel-fs",
            Self::OutOfReach => "out-of-reach",
            Self::UserMount { .. } => "user-mount",
            Self::OtherInstance { .. } => "other-instance",
            Self::Unresponsive { .. } => "unresponsive",
            Self::SharedWithHost { .. } => "shared-with-host",
            Self::UnknownFile { .. } => "unknown-file",
            Self::NoSuchFile => "no-such-file",
            Self::NotServed => "not-served",
        })
    }
}

/// What to do at one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Mount `source` where no mount of ours is.
    Attach {
        /// Path inside our file system.
        source: PathBuf,
        /// The mount the target lies on.
        base: MountId,
    },
    /// Put `source` in the place of dead mounts.
    Replace {
        /// Path inside our file system.
        source: PathBuf,
        /// The dead mounts, top first.
        dead: Vec<MountId>,
    },
    /// Remove these mounts, top first.
    Detach {
        /// Ours, live or dead.
        mounts: Vec<MountId>,
    },
    /// Leave the path alone.
    Skip(Skip),
}

/// One path and what to do there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Absolute path, relative to the container's root.
    pub path: PathBuf,
    /// What to do.
    pub action: Action,
}

/// Devices of our type in the table that are not the served one: their state has to be
/// found out before planning. With each, the path of one visible mount of it.
pub fn devices_to_probe(table: &MountTable, served: Option<Device>) -> BTreeMap<Device, PathBuf> {
    table
        .mounts()
        .iter()
        .filter(|mount| mount.fs_type == FS_TYPE && Some(mount.device) != served)
        .filter(|mount| is_visible(table, mount))
        .map(|mount| (mount.device, mount.mount_point.clone()))
        .collect()
}

fn is_visible(table: &MountTable, mount: &Mount) -> bool {
    table
        .stack(&mount.mount_point)
        .top()
        .is_some_and(|top| top.id == mount.id)
}

/// The path inside our file system that a mount of our type shows, if this version has
/// it. The kernel adds a marker to the root of a mount whose directory entry is gone.
fn source_of(mount: &Mount) -> Option<PathBuf> {
    let text = mount.root.to_str()?;
    let root = text.strip_suffix("//deleted").unwrap_or(text);
    let path = root.trim_start_matches('/');
    let known = catalogue::by_path(path).is_some()
        || ["sys/devices/system/cpu/", "sys/devices/system/node/"]
            .iter()
            .any(|tree| path.starts_with(tree));
    // Never a path that climbs: it is joined to the mountpoint later.
    let plain = path.split('/').all(|part| part != "..");
    (known && plain).then(|| PathBuf::from(root))
}

/// Whether `base` shows at `path` what the kernel puts there: `/proc/meminfo` must be
/// `/meminfo` of a procfs, wherever that procfs is bound from.
fn kernel_fs_at(base: &Mount, path: &Path) -> bool {
    let expected = [("proc", "/proc"), ("sysfs", "/sys")]
        .into_iter()
        .find_map(|(fs_type, prefix)| Some((fs_type, path.strip_prefix(prefix).ok()?)));
    let Some((fs_type, below)) = expected else {
        return false;
    };
    let Ok(rest) = path.strip_prefix(&base.mount_point) else {
        return false;
    };
    base.fs_type == fs_type && base.root.join(rest) == Path::new("/").join(below)
}

/// What lies below a path once the layers that `leave` are gone.
fn carriers<'a>(stack: &Stack<'a>, leave: impl Fn(&Mount) -> bool) -> Stack<'a> {
    let layers = stack.layers.iter().copied();
    Stack {
        base: stack.base,
        layers: layers.filter(|mount| !leave(mount)).collect(),
    }
}

struct Planner<'a> {
    table: &'a MountTable,
    facts: &'a Facts,
    takeover: bool,
}

/// How a mount of our type counts.
enum Ours {
    Live,
    Replaceable,
    Other(Skip),
}

impl Planner<'_> {
    fn classify(&self, mount: &Mount) -> Option<Ours> {
        if mount.fs_type != FS_TYPE {
            return None;
        }
        if Some(mount.device) == self.facts.served {
            return Some(Ours::Live);
        }
        let device = mount.device.to_string();
        Some(match self.facts.liveness.get(&mount.device) {
            Some(Liveness::Dead) => Ours::Replaceable,
            Some(Liveness::Alive) if self.takeover => Ours::Replaceable,
            Some(Liveness::Alive) => Ours::Other(Skip::OtherInstance { device }),
            Some(Liveness::Unresponsive) | None => Ours::Other(Skip::Unresponsive { device }),
        })
    }

    fn is_replaceable(&self, mount: &Mount) -> bool {
        matches!(self.classify(mount), Some(Ours::Replaceable))
    }

    /// Whether it may be taken away.
    fn is_ours(&self, mount: &Mount) -> bool {
        matches!(self.classify(mount), Some(Ours::Live | Ours::Replaceable))
    }

    fn shared_with_host(&self, stack: &Stack<'_>) -> Option<Skip> {
        // An event on any mount that carries another one reaches that mount's peers.
        stack
            .base
            .into_iter()
            .chain(stack.layers.iter().copied())
            .filter_map(|mount| mount.shared)
            .find(|group| self.facts.host_peers.contains(group))
            .map(|group| Skip::SharedWithHost { group })
    }

    /// The dead layers on top of a path and what replaces them.
    fn replace(&self, path: &Path, stack: &Stack<'_>) -> Action {
        if stack.base.is_none() {
            return Action::Skip(Skip::OutOfReach);
        }
        // The dead layer's own peer group does not matter, only those below it.
        let carriers = carriers(stack, |mount| self.is_replaceable(mount));
        if let Some(skip) = self.shared_with_host(&carriers) {
            return Action::Skip(skip);
        }
        let dead: Vec<&Mount> = stack
            .layers
            .iter()
            .rev()
            .copied()
            .take_while(|mount| self.is_replaceable(mount))
            .collect();
        let below = stack.layers.len().checked_sub(dead.len() + 1);
        let ids = dead.iter().map(|mount| mount.id).collect();
        // A script mounted the new one first and the dead one over it: uncover it.
        if let Some(at) = below
            && matches!(self.classify(stack.layers[at]), Some(Ours::Live))
        {
            return Action::Detach { mounts: ids };
        }
        let Some(source) = dead.first().copied().and_then(source_of) else {
            let root = dead
                .first()
                .map_or_else(PathBuf::new, |mount| mount.root.clone());
            return Action::Skip(Skip::UnknownFile { root });
        };
        // On a path of the kernel only the file of that name makes sense.
        let source = match catalogue::by_path(path.to_str().unwrap_or("").trim_start_matches('/')) {
            Some(entry) if matches!(entry.kind, Kind::File(_)) => Path::new("/").join(entry.path),
            _ => source,
        };
        Action::Replace { source, dead: ids }
    }

    fn attach(&self, path: &Path, is_dir: bool) -> Action {
        let stack = self.table.stack(path);
        if let Some(top) = stack.layers.last() {
            return match self.classify(top) {
                Some(Ours::Replaceable) => self.replace(path, &stack),
                Some(Ours::Live) if source_of(top).as_deref() == Some(path) => {
                    Action::Skip(Skip::UpToDate)
                }
                Some(Ours::Other(skip)) => Action::Skip(skip),
                Some(Ours::Live) | None => Action::Skip(Skip::UserMount {
                    found: top.fs_type.clone(),
                }),
            };
        }
        let Some(base) = stack.base else {
            return Action::Skip(Skip::OutOfReach);
        };
        // A parent directory of ours, bound as a whole, already shows the file.
        if matches!(self.classify(base), Some(Ours::Live))
            && source_of(base).as_deref() == Some(&base.mount_point)
        {
            return Action::Skip(Skip::UpToDate);
        }
        if !kernel_fs_at(base, path) {
            return Action::Skip(Skip::NotKernelFs {
                found: base.fs_type.clone(),
            });
        }
        if is_dir && let Some(user) = self.user_mount_below(path) {
            return Action::Skip(Skip::UserMount {
                found: user.fs_type.clone(),
            });
        }
        if let Some(skip) = self.shared_with_host(&stack) {
            return Action::Skip(skip);
        }
        Action::Attach {
            source: path.to_owned(),
            base: base.id,
        }
    }

    /// A mount of the container's own inside a directory that is about to be covered.
    /// Runtimes hide parts of sysfs behind tmpfs or a device node; covering those again
    /// uncovers nothing, because our tree does not have what they hide.
    fn user_mount_below(&self, path: &Path) -> Option<&Mount> {
        self.table
            .mounts()
            .iter()
            .filter(|mount| mount.mount_point != path && mount.mount_point.starts_with(path))
            .find(|mount| !matches!(mount.fs_type.as_str(), FS_TYPE | "tmpfs" | "devtmpfs"))
    }

    /// Paths that carry a mount of our type, and what becomes of each.
    fn heal(&self) -> BTreeMap<PathBuf, Action> {
        let mut actions = BTreeMap::new();
        for mount in self.table.mounts() {
            if mount.fs_type != FS_TYPE || actions.contains_key(&mount.mount_point) {
                continue;
            }
            let stack = self.table.stack(&mount.mount_point);
            let Some(top) = stack.layers.last() else {
                continue;
            };
            let action = match self.classify(top) {
                Some(Ours::Replaceable) => self.replace(&mount.mount_point, &stack),
                Some(Ours::Other(skip)) => Action::Skip(skip),
                Some(Ours::Live) => Action::Skip(Skip::UpToDate),
                None => continue,
            };
            actions.insert(mount.mount_point.clone(), action);
        }
        actions
    }
}

/// Puts directories before what lies in them, and leaves that out when the directory is
/// mounted anew or uncovered: it goes with the old mount or is hidden by the new one.
fn in_order(actions: BTreeMap<PathBuf, Action>) -> Vec<Step> {
    let mut renewed: Vec<PathBuf> = Vec::new();
    let mut steps = Vec::new();
    // A map of paths is ordered by component: parents come first.
    for (path, action) in actions {
        if renewed.iter().any(|above| path.starts_with(above)) {
            continue;
        }
        if !matches!(action, Action::Skip(_)) {
            renewed.push(path.clone());
        }
        steps.push(Step { path, action });
    }
    steps
}

/// Whether carrying out `steps` can bring mounts to light that were hidden: a dead mount
/// was taken off a live one, and the plan has to be made again.
pub fn uncovers(steps: &[Step], goal: &Goal) -> bool {
    !matches!(goal, Goal::Detach { .. })
        && steps
            .iter()
            .any(|step| matches!(step.action, Action::Detach { .. }))
}

/// Decides what to do. Steps are to be carried out in order.
pub fn plan(table: &MountTable, facts: &Facts, goal: &Goal) -> Vec<Step> {
    match goal {
        Goal::Detach { selection } => detach(table, facts, selection.as_ref()),
        Goal::Heal => in_order(
            Planner {
                table,
                facts,
                takeover: false,
            }
            .heal(),
        ),
        Goal::Attach {
            selection,
            takeover,
        } => {
            let planner = Planner {
                table,
                facts,
                takeover: *takeover,
            };
            let mut actions = planner.heal();
            for entry in selection.entries() {
                let path = Path::new("/").join(entry.path);
                let action = planner.attach(&path, entry.kind == Kind::Dir);
                actions.insert(path, action);
            }
            in_order(actions)
        }
    }
}
