//! What the kernel holds of eBPF, as `bpftool` lists it, and which processes keep it there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

/// A program, map or link by its number: `("prog", 12)`.
pub type Object = (&'static str, u64);

/// One line of `bpftool`.
#[derive(Debug)]
struct Row {
    /// Its name; that of the program for a link.
    name: String,
    /// What lives as long as it does.
    needs: Vec<Object>,
    pinned: bool,
}

/// `bpftool prog show`, `map show` and `link show`.
#[derive(Debug)]
pub struct Listing(BTreeMap<Object, Row>);

impl Listing {
    /// Asks the kernel.
    ///
    /// # Panics
    /// When `bpftool` is missing or fails.
    pub fn take() -> Self {
        let mut rows = BTreeMap::new();
        for kind in ["prog", "map", "link"] {
            for row in show(kind) {
                let Some(id) = row["id"].as_u64() else {
                    continue;
                };
                let maps = row["map_ids"].as_array().into_iter().flatten();
                let maps = maps.filter_map(Value::as_u64).map(|id| ("map", id));
                let program = row["prog_id"].as_u64().map(|id| ("prog", id));
                let row = Row {
                    name: row["name"].as_str().unwrap_or_default().to_owned(),
                    needs: maps.chain(program).collect(),
                    pinned: row["pinned"]
                        .as_array()
                        .is_some_and(|paths| !paths.is_empty()),
                };
                rows.insert((kind, id), row);
            }
        }
        let names: BTreeMap<Object, String> = rows
            .iter()
            .map(|(object, row)| (*object, row.name.clone()))
            .collect();
        for row in rows.iter_mut().filter(|(object, _)| object.0 == "link") {
            let program = row.1.needs.first().and_then(|program| names.get(program));
            row.1.name = program.cloned().unwrap_or_default();
        }
        Self(rows)
    }

    /// Everything that these processes keep in the kernel.
    pub fn held_by(&self, pids: &[i32]) -> BTreeSet<Object> {
        self.kept_by(|pid| pids.contains(&pid))
    }

    /// Kind and name of each.
    pub fn names(&self, objects: &BTreeSet<Object>) -> BTreeSet<(&'static str, String)> {
        let rows = self.0.iter().filter(|(object, _)| objects.contains(object));
        rows.map(|(object, row)| (object.0, row.name.clone()))
            .collect()
    }

    /// How many there are of each kind and name.
    pub fn census(&self, objects: &BTreeSet<Object>) -> BTreeMap<String, usize> {
        let mut census = BTreeMap::new();
        for (object, row) in self.0.iter().filter(|(object, _)| objects.contains(object)) {
            *census
                .entry(format!("{} {}", object.0, row.name))
                .or_default() += 1;
        }
        census
    }

    /// What has these names and is kept by these processes or by none: what belongs to other
    /// processes under the same names is left out, what leaked is not.
    pub fn of(&self, names: &BTreeSet<(&'static str, String)>, pids: &[i32]) -> BTreeSet<Object> {
        let others = self.kept_by(|pid| !pids.contains(&pid));
        let ours = self.0.iter().filter(|(object, row)| {
            names.contains(&(object.0, row.name.clone())) && !others.contains(object)
        });
        ours.map(|(object, _)| *object).collect()
    }

    /// Names of what is pinned in a BPF file system.
    pub fn pinned(&self, names: &BTreeSet<(&'static str, String)>) -> Vec<String> {
        let pinned = self
            .0
            .iter()
            .filter(|(object, row)| row.pinned && names.contains(&(object.0, row.name.clone())));
        pinned.map(|(_, row)| row.name.clone()).collect()
    }

    /// What the descriptors of the processes keep in the kernel, directly or through another.
    fn kept_by(&self, whose: impl Fn(i32) -> bool) -> BTreeSet<Object> {
        let pids = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut todo: Vec<Object> = pids
            .filter(|pid| whose(*pid))
            .flat_map(descriptors_of)
            .collect();
        let mut kept = BTreeSet::new();
        while let Some(object) = todo.pop() {
            if kept.insert(object)
                && let Some(row) = self.0.get(&object)
            {
                todo.extend(&row.needs);
            }
        }
        kept
    }
}

/// Every object of a kind, with the paths it is pinned at.
fn show(kind: &str) -> Vec<Value> {
    let mut said = String::new();
    for _ in 0..100 {
        let output = Command::new("bpftool")
            .args(["--json", "--bpffs", kind, "show"])
            .output()
            .unwrap_or_else(|error| {
                panic!("cannot start bpftool: {error}; apt-get install bpftool")
            });
        said = String::from_utf8_lossy(&output.stdout).into_owned();
        match serde_json::from_str(&said) {
            Ok(Value::Array(rows)) if output.status.success() => return rows,
            // It stops at a link that is only being made (EAGAIN).
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    panic!("bpftool {kind} show fails: {said}");
}

/// What a process has descriptors of; nothing when it is gone.
fn descriptors_of(pid: i32) -> Vec<Object> {
    let mut held = Vec::new();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    for descriptor in descriptors.flatten() {
        let target = fs::read_link(descriptor.path()).unwrap_or_default();
        if !target.to_string_lossy().starts_with("anon_inode:bpf") {
            continue;
        }
        let number = descriptor.file_name();
        let info = format!("/proc/{pid}/fdinfo/{}", number.to_string_lossy());
        for line in fs::read_to_string(info).unwrap_or_default().lines() {
            let (key, value) = line.split_once(':').unwrap_or_default();
            let kind = match key {
                "prog_id" => "prog",
                "map_id" => "map",
                "link_id" => "link",
                _ => continue,
            };
            held.extend(value.trim().parse().ok().map(|id| (kind, id)));
        }
    }
    held
}
