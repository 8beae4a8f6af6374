//! Containers as their runtimes name their cgroups. Pure.
//!
//! Paths nest: Docker inside LXC, Kubernetes inside Docker. The innermost name is the
//! container of whoever is below it.

use std::fmt;

/// Who made the cgroup, as far as its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Runtime {
    Docker,
    Containerd,
    Crio,
    Podman,
    /// A bare 64-digit id: the cgroupfs driver of Docker, containerd or Kubernetes.
    CgroupfsDriver,
    BuildKit,
    Lxc,
    /// A scope of systemd-machined, or systemd-nspawn's service.
    Machine,
    /// Amazon ECS task ids.
    Ecs,
    /// Some other runtime that names a systemd scope by a 64-digit id.
    Scope,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Crio => "cri-o",
            Self::Podman => "podman",
            Self::CgroupfsDriver => "container id",
            Self::BuildKit => "buildkit",
            Self::Lxc => "lxc",
            Self::Machine => "machine",
            Self::Ecs => "ecs",
            Self::Scope => "scope",
        })
    }
}

/// A cgroup that is a container by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    /// Path of the container's cgroup: a prefix of what was asked about.
    pub path: &'a str,
    /// Whose naming it follows.
    pub runtime: Runtime,
}

/// The innermost container that `path` is in, or is.
#[must_use]
pub fn innermost(path: &str) -> Option<Named<'_>> {
    let mut found = None;
    let mut parent = "";
    let mut grandparent = "";
    for (start, component) in components(path) {
        if let Some(runtime) = name_of(component, parent, grandparent) {
            let end = start + component.len();
            found = Some(Named {
                path: &path[..end],
                runtime,
            });
        }
        (grandparent, parent) = (parent, component);
    }
    found
}

/// Every component with its byte offset.
fn components(path: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut start = 0;
    path.split('/').filter_map(move |component| {
        let at = start;
        start += component.len() + 1;
        (!component.is_empty()).then_some((at, component))
    })
}

fn name_of(component: &str, parent: &str, grandparent: &str) -> Option<Runtime> {
    lxc(component, parent)
        .or_else(|| machine(component, parent))
        .or_else(|| identified(component))
        .or_else(|| match (grandparent, parent) {
            (_, "buildkit") => Some(Runtime::BuildKit),
            ("ecs", _) if is_ecs_container(component) => Some(Runtime::Ecs),
            _ => None,
        })
}

/// `lxc.payload.NAME` (4.0 and later, Incus and LXD too), `lxc.payload/NAME`, `lxc/NAME`
/// (3.x, Proxmox). `lxc.monitor` is the host's.
fn lxc(component: &str, parent: &str) -> Option<Runtime> {
    let is_name = match parent {
        "lxc" | "lxc.payload" => true,
        _ => component
            .strip_prefix("lxc.payload.")
            .is_some_and(|name| !name.is_empty()),
    };
    is_name.then_some(Runtime::Lxc)
}

/// `machine-NAME.scope`, and nspawn's `systemd-nspawn@NAME.service`, whose `payload` holds
/// the container and whose `supervisor` does not. A virtual machine's scope holds the
/// emulator, a process of the host.
fn machine(component: &str, parent: &str) -> Option<Runtime> {
    let is_service = |name: &str| name.starts_with("systemd-nspawn@") && name.ends_with(".service");
    let is_scope = |name: &str| {
        name.strip_prefix("machine-")
            .and_then(|name| name.strip_suffix(".scope"))
            .is_some_and(|name| !name.is_empty() && !name.starts_with("qemu\\x2d"))
    };
    let is_machine = is_service(component)
        || is_scope(component)
        || (component == "payload" && (is_service(parent) || is_scope(parent)));
    is_machine.then_some(Runtime::Machine)
}

/// Names that carry a 64-digit id:
/// `ID`, `PREFIX-ID`, `PREFIX-ID.scope`, `SLICE:PREFIX:ID`.
fn identified(component: &str) -> Option<Runtime> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    if is_id(name) {
        return Some(Runtime::CgroupfsDriver);
    }
    let (prefix, id) = name.rsplit_once(['-', ':'])?;
    if !is_id(id) || prefix.ends_with("conmon") {
        return None;
    }
    // A systemd cgroup name given to the cgroupfs driver: `system.slice:docker:ID`.
    let prefix = prefix.rsplit(':').next().unwrap_or(prefix);
    Some(match prefix {
        "docker" => Runtime::Docker,
        "cri-containerd" | "containerd" | "nerdctl" => Runtime::Containerd,
        "crio" => Runtime::Crio,
        "libpod" | "libpod-payload" => Runtime::Podman,
        _ if component.ends_with(".scope") || component.contains(':') => Runtime::Scope,
        // `machine-libpod_pod_ID.slice` and the like are groups, not containers.
        _ => return None,
    })
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `TASK-NUMBER` or a Docker id below the task: `/ecs/TASK/TASK-1234567890`.
fn is_ecs_container(component: &str) -> bool {
    component.split_once('-').is_some_and(|(task, number)| {
        task.len() == 32
            && task.bytes().all(|byte| byte.is_ascii_hexdigit())
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Strips the leaves into which an init process moves itself, so that the whole container
/// is meant and not only its init (F27): systemd's `init.scope`, Docker-in-Docker's
/// `init`, nspawn's `supervisor`.
#[must_use]
pub fn without_init_leaf(path: &str) -> &str {
    for leaf in ["/init.scope", "/init", "/supervisor"] {
        if let Some(parent) = path.strip_suffix(leaf) {
            return if parent.is_empty() { "/" } else { parent };
        }
    }
    path
}

#[cfg(test)]
mod tests;
