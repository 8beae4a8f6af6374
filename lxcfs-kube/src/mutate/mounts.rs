//! What is in the way of a mount: the user's own mounts and volumes, and what the
//! runtime accepts. Compares paths as the runtime will resolve them.

use k8s_openapi::api::core::v1::{Pod, Volume};
use lxcfs_common::catalogue::{Entry, Kind};
use lxcfs_common::pod;

use super::Runtime;
use super::choose::Container;

/// How a file fits into a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Nothing is there.
    Free,
    /// Our file is mounted there already.
    Present,
    /// The user mounts something there, above it or below it.
    Conflict,
}

/// Looks at the container's own mounts.
pub fn fit(container: &Container<'_>, entry: &Entry, pod: &Pod, mountpoint: &str) -> Fit {
    let target = segments(entry.path);
    let mut fit = Fit::Free;
    for mount in container.mounts.unwrap_or_default() {
        let there = segments(&mount.mount_path);
        if there == target && mount.sub_path.is_none() && mount.sub_path_expr.is_none() {
            let ours = volumes(pod)
                .find(|volume| volume.name == mount.name)
                .is_some_and(|volume| host_path(volume) == Some(source(mountpoint, entry)));
            if ours {
                return Fit::Present;
            }
        }
        if overlaps(&there, &target) {
            fit = Fit::Conflict;
        }
    }
    let mut devices = container.devices.iter();
    if devices.any(|device| overlaps(&segments(&device.device_path), &target)) {
        fit = Fit::Conflict;
    }
    fit
}

/// The volume of the pod that holds a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The pod has a volume of that host path, under this name.
    Exists(String),
    /// It has none; this name is free.
    Missing(String),
    /// Our name for it belongs to some other volume.
    Taken,
}

/// Looks at the pod's volumes.
pub fn slot(pod: &Pod, entry: &Entry, mountpoint: &str) -> Slot {
    let name = volume_name(entry);
    let wanted = source(mountpoint, entry);
    if let Some(volume) = volumes(pod).find(|volume| volume.name == name) {
        return if host_path(volume).as_ref() == Some(&wanted) {
            Slot::Exists(name)
        } else {
            Slot::Taken
        };
    }
    match volumes(pod).find(|volume| host_path(volume).as_ref() == Some(&wanted)) {
        Some(volume) => Slot::Exists(volume.name.clone()),
        // The API server shall still tell the user about a mount without a volume.
        None if mentioned(pod, &name) => Slot::Taken,
        None => Slot::Missing(name),
    }
}

/// Whether the runtime accepts this file in a container's spec.
pub fn runtime_accepts(entry: &Entry, runtime: Runtime) -> bool {
    entry.runc_allows || runtime == Runtime::Crun
}

/// Our name for the volume of a file, a DNS label.
pub fn volume_name(entry: &Entry) -> String {
    format!("lxcfs-{}", pod::file_name(entry).replace(['/', '_'], "-"))
}

/// Path of a file on the node.
pub fn source_path(mountpoint: &str, entry: &Entry) -> String {
    format!("{}/{}", mountpoint.trim_end_matches('/'), entry.path)
}

/// What the kubelet shall insist on. Never left out: without a type the runtime creates
/// a directory of that name when the daemon is down.
pub const fn host_path_type(entry: &Entry) -> &'static str {
    match entry.kind {
        Kind::Dir => "Directory",
        Kind::File(_) => "File",
    }
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
}

fn mentioned(pod: &Pod, volume: &str) -> bool {
    pod.spec.iter().any(|spec| {
        let init = spec.init_containers.iter().flatten();
        init.chain(&spec.containers)
            .flat_map(|container| container.volume_mounts.iter().flatten())
            .any(|mount| mount.name == volume)
    })
}

fn host_path(volume: &Volume) -> Option<Vec<&str>> {
    let path = volume.host_path.as_ref()?;
    Some(segments(&path.path))
}

fn source<'a>(mountpoint: &'a str, entry: &Entry) -> Vec<&'a str> {
    let mut path = segments(mountpoint);
    path.extend(segments(entry.path));
    path
}

/// A path as the kernel walks it, without `..`, which the API refuses in mount paths.
fn segments(path: &str) -> Vec<&str> {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect()
}

/// Whether one path is the other, or above it.
fn overlaps(one: &[&str], other: &[&str]) -> bool {
    let shorter = one.len().min(other.len());
    one[..shorter] == other[..shorter]
}
