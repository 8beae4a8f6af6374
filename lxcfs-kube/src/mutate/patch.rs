//! Spelling of JSON Patch (RFC 6902) operations. Lists are only ever appended to, and a
//! parent that is absent or null is added first, so a pod with no annotations, volumes or
//! mounts is as good as any other.

use k8s_openapi::api::core::v1::Pod;
use lxcfs_common::catalogue::Entry;
use serde::Serialize;
use serde_json::{Value, json};

use super::choose::Container;
use super::mounts as place;

/// One operation.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Op {
    /// Adds a member or an array element, replacing a member that exists.
    Add {
        /// JSON Pointer.
        path: String,
        /// What is added.
        value: Value,
    },
    /// Removes a member.
    Remove {
        /// JSON Pointer.
        path: String,
    },
}

fn add(path: impl Into<String>, value: Value) -> Op {
    Op::Add {
        path: path.into(),
        value,
    }
}

/// Appends to a list, creating it when it is not there.
fn append(path: &str, exists: bool, values: Vec<Value>) -> Vec<Op> {
    match (exists, values.is_empty()) {
        (_, true) => Vec::new(),
        (false, false) => vec![add(path, Value::Array(values))],
        (true, false) => values
            .into_iter()
            .map(|value| add(format!("{path}/-"), value))
            .collect(),
    }
}

/// Adds the volumes of these files.
pub fn volumes(pod: &Pod, entries: &[&Entry], mountpoint: &str) -> Vec<Op> {
    let exists = pod.spec.as_ref().is_some_and(|spec| spec.volumes.is_some());
    let volume = |entry: &&Entry| {
        json!({
            "name": place::volume_name(entry),
            "hostPath": {
                "path": place::source_path(mountpoint, entry),
                "type": place::host_path_type(entry),
            },
        })
    };
    append(
        "/spec/volumes",
        exists,
        entries.iter().map(volume).collect(),
    )
}

/// The mount of a file in a container.
pub fn volume_mount(volume: &str, entry: &Entry) -> Value {
    json!({
        "name": volume,
        "mountPath": format!("/{}", entry.path),
        "readOnly": true,
    })
}

/// Adds mounts to a container.
pub fn mounts(container: &Container<'_>, added: Vec<Value>) -> Vec<Op> {
    let (list, index) = (container.list.field(), container.index);
    let path = format!("/spec/{list}/{index}/volumeMounts");
    append(&path, container.mounts.is_some(), added)
}

/// Sets annotations that differ and removes those that no longer hold.
pub fn annotations(pod: &Pod, wanted: &[(&str, Option<String>)]) -> Vec<Op> {
    let present = pod.metadata.annotations.as_ref();
    let Some(present) = present else {
        let map: serde_json::Map<String, Value> = wanted
            .iter()
            .filter_map(|(key, value)| Some(((*key).to_owned(), value.clone()?.into())))
            .collect();
        return match map.is_empty() {
            true => Vec::new(),
            false => vec![add("/metadata/annotations", Value::Object(map))],
        };
    };
    wanted
        .iter()
        .filter_map(|(key, value)| {
            let path = format!("/metadata/annotations/{}", escape(key));
            match (present.get(*key), value) {
                (Some(old), Some(new)) if old == new => None,
                (None, None) => None,
                (Some(_), None) => Some(Op::Remove { path }),
                (_, Some(new)) => Some(add(path, new.clone().into())),
            }
        })
        .collect()
}

/// A key as a JSON Pointer token (RFC 6901).
fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}
