//! What a machine holds that a service could leave behind: mounts, cgroups, files, connections.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where services put files, besides their program. Other file systems below are not entered.
const PLACES: &[&str] = &["/run", "/etc", "/var/lib", "/dev/shm", "/sys/fs/bpf"];
/// For what systemd and the kernel remove a moment after the last command has returned.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything at one moment, by kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint(BTreeMap<String, BTreeSet<String>>);

impl Footprint {
    /// Looks at the host, and at the mounts of the containers with these init processes.
    ///
    /// # Panics
    /// When a mount table cannot be read.
    pub fn take(containers: &[u32]) -> Self {
        let mut all = BTreeMap::new();
        let host = std::iter::once(("host".to_owned(), "self".to_owned()));
        let containers = containers
            .iter()
            .map(|pid| (format!("container {pid}"), pid.to_string()));
        for (name, pid) in host.chain(containers) {
            let path = format!("/proc/{pid}/mountinfo");
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            let lines = text.lines().map(str::to_owned).collect();
            all.insert(format!("mounts of {name}"), lines);
        }
        let mut cgroups = BTreeSet::new();
        for root in cgroup_roots() {
            walk(Path::new(&root), &mut |path, meta| {
                if meta.is_dir() {
                    cgroups.insert(path.display().to_string());
                }
            });
        }
        all.insert("cgroups".to_owned(), cgroups);
        let mut files = BTreeSet::new();
        for place in PLACES {
            walk(Path::new(place), &mut |path, meta| {
                files.insert(entry(path, meta));
            });
        }
        all.insert("files".to_owned(), files);
        let connections = fs::read_dir("/sys/fs/fuse/connections")
            .into_iter()
            .flatten();
        let connections = connections
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned());
        all.insert("FUSE connections".to_owned(), connections.collect());
        Self(all)
    }

    /// Leaves files out whose path starts with one of `prefixes`: what belongs to others.
    #[must_use]
    pub fn without(mut self, prefixes: &[&str]) -> Self {
        if let Some(files) = self.0.get_mut("files") {
            files.retain(|file| !prefixes.iter().any(|prefix| file.starts_with(prefix)));
        }
        self
    }

    /// What `self` has less and more than `before`, a line each.
    pub fn difference(&self, before: &Self) -> String {
        let mut text = String::new();
        let none = BTreeSet::new();
        for (kind, was) in &before.0 {
            let is = self.0.get(kind).unwrap_or(&none);
            for (sign, lines) in [("gone", was.difference(is)), ("left", is.difference(was))] {
                for line in lines {
                    let _ = writeln!(text, "{sign}, {kind}: {line}");
                }
            }
        }
        text
    }
}

/// Waits until `now` gives what there was before.
///
/// # Panics
/// When it does not in time; the message holds the difference.
pub fn assert_restored(before: &Footprint, mut now: impl FnMut() -> Footprint) {
    let end = Instant::now() + PATIENCE;
    loop {
        let difference = now().difference(before);
        if difference.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "not as before:\n{difference}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Size and time tell whether a file of the configuration was changed; others change by themselves.
fn entry(path: &Path, meta: &fs::Metadata) -> String {
    let name = path.display();
    if path.starts_with("/etc") && meta.is_file() {
        return format!(
            "{name} {} bytes, changed {}.{}",
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec()
        );
    }
    let kind = if meta.is_dir() { "/" } else { "" };
    format!("{name}{kind}")
}

fn cgroup_roots() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut roots = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        if let (Some(place), Some("cgroup" | "cgroup2")) = (words.next(), words.next()) {
            roots.push(place.to_owned());
        }
    }
    roots
}

/// Visits everything below `top`, on its file system alone. What vanishes meanwhile is not there.
fn walk(top: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata)) {
    let Ok(device) = fs::symlink_metadata(top).map(|meta| meta.dev()) else {
        return;
    };
    let mut directories = vec![top.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = fs::symlink_metadata(&path) else {
                continue;
            };
            visit(&path, &meta);
            if meta.is_dir() && meta.dev() == device {
                directories.push(path);
            }
        }
    }
}
