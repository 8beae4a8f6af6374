//! Owns the names of containers as their cgroup paths spell them. Pure.

use serde::Serialize;

/// A container as a runtime names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ContainerRef {
    /// Who made it.
    pub runtime: Runtime,
    /// The runtime's id, or LXC's container name.
    pub id: String,
}

/// A maker of containers, as far as a cgroup path tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// dockerd.
    Docker,
    /// containerd through the CRI.
    Containerd,
    /// CRI-O.
    Crio,
    /// podman.
    Podman,
    /// LXC, LXD, Incus.
    Lxc,
    /// Kubernetes with the cgroupfs driver: the path does not say which runtime.
    Kubernetes,
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// systemd units: `docker-<id>.scope` and its like.
const SCOPES: &[(&str, Runtime)] = &[
    ("docker-", Runtime::Docker),
    ("cri-containerd-", Runtime::Containerd),
    ("crio-", Runtime::Crio),
    ("libpod-", Runtime::Podman),
];

fn component(parent: Option<&str>, name: &str) -> Option<ContainerRef> {
    let found = |runtime, id: &str| {
        Some(ContainerRef {
            runtime,
            id: id.to_owned(),
        })
    };
    if let Some(unit) = name.strip_suffix(".scope") {
        return SCOPES.iter().find_map(|(prefix, runtime)| {
            let id = unit.strip_prefix(prefix).filter(|id| is_id(id))?;
            found(*runtime, id)
        });
    }
    if let Some(name) = name.strip_prefix("lxc.payload.") {
        return found(Runtime::Lxc, name);
    }
    if let Some(id) = name.strip_prefix("libpod-").filter(|id| is_id(id)) {
        return found(Runtime::Podman, id);
    }
    let parent = parent?;
    if parent == "lxc" && !name.is_empty() {
        return found(Runtime::Lxc, name);
    }
    if !is_id(name) {
        return None;
    }
    if parent == "docker" {
        return found(Runtime::Docker, name);
    }
    if parent.starts_with("libpod") {
        return found(Runtime::Podman, name);
    }
    // kubepods/burstable/pod<uid>/<id>, or containerd's own namespaces.
    if parent.starts_with("pod") {
        return found(Runtime::Kubernetes, name);
    }
    Some(ContainerRef {
        runtime: Runtime::Containerd,
        id: name.to_owned(),
    })
}

/// The container a cgroup path belongs to. The outermost match counts: what runs inside
/// a container may name its own cgroups as it likes.
pub fn of_cgroup_path(path: &str) -> Option<ContainerRef> {
    let mut parent = None;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        if let Some(found) = component(parent, name) {
            return Some(found);
        }
        parent = Some(name);
    }
    None
}

/// The container of `/proc/PID/cgroup`'s text: the first hierarchy that tells.
pub fn of_proc_cgroup(text: &str) -> Option<ContainerRef> {
    text.lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .find_map(of_cgroup_path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "6b7a1e3f0c5d49e28a11bb22cc33dd44ee55ff660718293a4b5c6d7e8f901234";

    fn of(path: &str) -> Option<(Runtime, String)> {
        of_cgroup_path(&path.replace("ID", ID)).map(|found| (found.runtime, found.id))
    }

    #[test]
    fn every_runtimes_spelling_is_known() {
        let rows = [
            ("/docker/ID", Runtime::Docker),
            ("/system.slice/docker-ID.scope", Runtime::Docker),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-ID.scope",
                Runtime::Containerd,
            ),
            ("/kubepods/besteffort/pod12-34/ID", Runtime::Kubernetes),
            (
                "/kubepods.slice/kubepods-pod1.slice/crio-ID.scope",
                Runtime::Crio,
            ),
            ("/machine.slice/libpod-ID.scope/container", Runtime::Podman),
            ("/libpod_parent/libpod-ID", Runtime::Podman),
            ("/k8s.io/ID", Runtime::Containerd),
        ];
        for (path, runtime) in rows {
            assert_eq!(of(path), Some((runtime, ID.to_owned())), "{path}");
        }
        assert_eq!(
            of("/lxc.payload.web/init.scope"),
            Some((Runtime::Lxc, "web".into()))
        );
        assert_eq!(of("/lxc/web"), Some((Runtime::Lxc, "web".into())));
    }

    #[test]
    fn other_cgroups_are_no_containers() {
        for path in [
            "/",
            "/user.slice/user-1000.slice",
            "/system.slice/ssh.service",
            "/docker/short",
            "/libpod-conmon-ID.scope",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn the_outermost_container_counts() {
        let inner = "0".repeat(64);
        let path = format!("/docker/{ID}/docker/{inner}");
        assert_eq!(of_cgroup_path(&path).unwrap().id, ID);
    }

    #[test]
    fn the_first_hierarchy_that_tells_is_used() {
        let text = format!("12:cpu:/\n3:memory:/docker/{ID}\n0::/init.scope\n");
        assert_eq!(of_proc_cgroup(&text).unwrap().id, ID);
        assert_eq!(of_proc_cgroup("garbage\n\n0::/\n"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in ".{0,200}") {
            let _ = of_proc_cgroup(&text);
        }
    }
}
