//! From the thread that asks to the container it belongs to.
//!
//! [`cgroup_path`] and [`boundary`] decide and are pure; [`facts`] gathers what they need
//! from `/proc`, and [`resolve`] remembers the outcome
//! (`threads`: by thread).

pub mod boundary;
pub mod cgroup_path;
pub mod facts;
pub mod pidfd;
pub mod resolve;
mod threads;

use std::sync::Arc;

use crate::cgroup::layout::{HierarchyIndex, Layout};
use crate::cgroup::reader::{Chain, Dir, ReadError, Reader};
use crate::snapshot::Controller;

use boundary::{Boundary, Paths, Rule};
use facts::Pin;

/// A cgroup that never comes again: ids are not re-used within their hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupKey {
    /// v1 and v2 ids must not be mixed.
    pub hierarchy: HierarchyIndex,
    /// Inode number of its directory.
    pub inode: u64,
}

/// A container: its cgroups, held open.
#[derive(Debug)]
pub struct Container {
    /// Identity, in the hierarchy that names it.
    pub key: CgroupKey,
    /// How it was found.
    pub rule: Rule,
    /// Its path per [`Controller`], as the snapshot wants them.
    pub paths: Arc<[Option<Box<str>>; 8]>,
    /// The PID namespace of the first caller, when that was not the host's.
    pub pid_namespace: Option<Arc<Pin>>,
    chains: [Option<Chain>; 8],
    v2: Option<Arc<Dir>>,
}

impl Container {
    /// Opens the cgroups of a boundary.
    ///
    /// # Errors
    /// [`ReadError::Gone`] when one is gone already.
    pub fn open(
        reader: &Reader,
        layout: &Layout,
        boundary: &Boundary,
        pid_namespace: Option<Arc<Pin>>,
    ) -> Result<Self, ReadError> {
        let mut by_hierarchy: Vec<Option<Chain>> = vec![None; layout.hierarchies.len()];
        let naming = naming_hierarchy(layout, &boundary.paths);
        let mut chains: [Option<Chain>; 8] = Default::default();
        for controller in Controller::ALL {
            let index = match controller {
                Controller::Unified => Some(naming),
                _ => layout.index_of(controller),
            };
            let Some(index) = index else { continue };
            let Some(path) = boundary.paths.get(index).and_then(Option::as_deref) else {
                continue;
            };
            if by_hierarchy[index].is_none() {
                by_hierarchy[index] = Some(reader.chain(index, path)?);
            }
            chains[controller as usize] = by_hierarchy[index].clone();
        }
        let gone = || ReadError::Gone {
            path: boundary
                .paths
                .iter()
                .flatten()
                .next()
                .map_or_else(String::new, |path| path.to_string()),
        };
        let dir = chains[Controller::Unified as usize]
            .as_ref()
            .and_then(|chain| chain.first())
            .ok_or_else(gone)?;
        let key = CgroupKey {
            hierarchy: dir.hierarchy(),
            inode: dir.inode(),
        };
        let paths = Controller::ALL.map(|controller| {
            let chain = chains[controller as usize].as_ref()?;
            Some(Box::from(chain.first()?.path()))
        });
        let v2 = match layout.v2() {
            Some(index) => match boundary.paths.get(index).and_then(Option::as_deref) {
                Some(path) => Some(reader.dir(index, path)?),
                None => None,
            },
            None => None,
        };
        Ok(Self {
            key,
            v2,
            rule: boundary.rule,
            paths: Arc::new(paths),
            pid_namespace,
            chains,
        })
    }

    /// The cgroup and its ancestors in the hierarchy of `controller`; `None` where that is
    /// not mounted.
    #[must_use]
    pub const fn chain(&self, controller: Controller) -> Option<&Chain> {
        self.chains[controller as usize].as_ref()
    }

    /// Its own cgroup in the hierarchy of `controller`.
    #[must_use]
    pub fn dir(&self, controller: Controller) -> Option<&Arc<Dir>> {
        self.chain(controller)?.first()
    }

    /// Its own cgroup in the v2 tree, which has pressure and eBPF's CPU times.
    #[must_use]
    pub const fn v2_dir(&self) -> Option<&Arc<Dir>> {
        self.v2.as_ref()
    }

    /// Its path in the hierarchy that names it.
    #[must_use]
    pub fn path(&self) -> &str {
        self.dir(Controller::Unified).map_or("/", |dir| dir.path())
    }

    /// Whether its cgroup still exists.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.dir(Controller::Unified)
            .is_some_and(|dir| dir.is_alive())
    }

    /// Every directory of its chains, once per hierarchy.
    pub(crate) fn own_dirs(&self) -> impl Iterator<Item = &Arc<Dir>> {
        Controller::ALL
            .iter()
            .filter_map(|controller| self.dir(*controller))
            .chain(&self.v2)
    }
}

/// The hierarchy that tells containers apart: v2 if it does, else the v1 hierarchy of
/// systemd, else the first whose path is not the root.
fn naming_hierarchy(layout: &Layout, paths: &Paths) -> HierarchyIndex {
    let tells = |index: &HierarchyIndex| {
        paths
            .get(*index)
            .and_then(Option::as_deref)
            .is_some_and(|path| path != "/")
    };
    let systemd = layout
        .hierarchies
        .iter()
        .position(|hierarchy| hierarchy.names.iter().any(|name| name == "name=systemd"));
    let controllers = [
        Controller::Memory,
        Controller::Cpuacct,
        Controller::Cpu,
        Controller::Pids,
        Controller::Io,
        Controller::Cpuset,
    ];
    layout
        .v2()
        .into_iter()
        .chain(systemd)
        .chain(controllers.iter().filter_map(|c| layout.index_of(*c)))
        .chain(0..layout.hierarchies.len())
        .find(tells)
        .or(layout.v2())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::layout::{Hierarchy, Version};

    fn hierarchy(version: Version, names: &[&str]) -> Hierarchy {
        Hierarchy {
            version,
            mount_point: format!("/{}", names.first().unwrap_or(&"v2")).into(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn a_hybrid_container_is_named_where_it_has_a_name() {
        let layout = Layout::new(vec![
            hierarchy(Version::V1, &["cpu"]),
            hierarchy(Version::V1, &["memory"]),
            hierarchy(Version::V2, &[]),
        ]);
        let named = |paths: [&str; 3]| {
            let paths: Paths = paths.iter().map(|path| Some((*path).into())).collect();
            naming_hierarchy(&layout, &paths)
        };
        assert_eq!(named(["/a", "/a", "/a"]), 2);
        assert_eq!(named(["/a", "/a", "/"]), 1);
        assert_eq!(named(["/a", "/", "/"]), 0);
        assert_eq!(named(["/", "/", "/"]), 2);
    }
}
