//! Owns which virtual files a container gets: the catalogue's defaults, or what the user
//! named. Pure.

use std::collections::BTreeSet;

use lxcfs_common::catalogue::{self, Attach, CATALOGUE, Entry, Kind};

use super::AttachError;

/// A set of catalogue entries, by their path without the leading slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    paths: BTreeSet<&'static str>,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            paths: catalogue::attached_by_default()
                .map(|entry| entry.path)
                .collect(),
        }
    }
}

/// Whether an entry can be bound on its own.
fn bindable(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::File(_)) || entry.attach != Attach::Within
}

fn find(name: &str) -> Option<Vec<&'static str>> {
    let name = name.trim_matches('/');
    let exact = catalogue::by_path(name).filter(|entry| bindable(entry));
    if let Some(entry) = exact {
        return Some(vec![entry.path]);
    }
    // `pressure`, `proc/pressure`: all files of that directory.
    let below: Vec<&'static str> = CATALOGUE
        .iter()
        .filter(|entry| bindable(entry) && entry.attach == Attach::Default)
        .filter(|entry| {
            entry
                .path
                .rsplit_once('/')
                .is_some_and(|(parent, _)| parent == name || parent == format!("proc/{name}"))
        })
        .map(|entry| entry.path)
        .collect();
    if !below.is_empty() && name != "proc" {
        return Some(below);
    }
    for prefix in ["proc/", "sys/devices/system/"] {
        let path = format!("{prefix}{name}");
        if let Some(entry) = catalogue::by_path(&path).filter(|entry| bindable(entry)) {
            return Some(vec![entry.path]);
        }
    }
    None
}

impl Selection {
    /// Nothing at all.
    pub fn none() -> Self {
        Self {
            paths: BTreeSet::new(),
        }
    }

    /// Parses a list such as `meminfo,cpuinfo,/proc/pressure/cpu,cpu`, `default,node`
    /// or `-uptime` (the defaults without that file). `pressure` means all of it.
    ///
    /// # Errors
    /// A name that the catalogue does not have.
    pub fn parse(list: &str) -> Result<Self, AttachError> {
        let names: Vec<&str> = list
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .collect();
        let only_removals = names.iter().all(|name| name.starts_with('-'));
        let mut selection = if only_removals {
            Self::default()
        } else {
            Self::none()
        };
        for name in names {
            let (remove, bare) = match name.strip_prefix('-') {
                Some(bare) => (true, bare),
                None => (false, name),
            };
            let found = if bare == "default" {
                Self::default().paths.into_iter().collect()
            } else {
                find(bare).ok_or_else(|| AttachError::UnknownFile {
                    name: bare.to_owned(),
                    known: known(),
                })?
            };
            for path in found {
                if remove {
                    selection.paths.remove(path);
                } else {
                    selection.paths.insert(path);
                }
            }
        }
        Ok(selection)
    }

    /// Entries in catalogue order.
    pub fn entries(&self) -> impl Iterator<Item = &'static Entry> + '_ {
        CATALOGUE
            .iter()
            .filter(|entry| self.paths.contains(entry.path))
    }

    /// The entries that runc accepts in a container's spec.
    #[must_use]
    pub fn allowed_by_runc(&self) -> Self {
        Self {
            paths: self
                .entries()
                .filter(|entry| entry.runc_allows)
                .map(|entry| entry.path)
                .collect(),
        }
    }

    /// Whether `path` (with its leading slash) is selected.
    pub fn contains(&self, path: &std::path::Path) -> bool {
        path.to_str()
            .is_some_and(|path| self.paths.contains(path.trim_start_matches('/')))
    }

    /// Nothing selected.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }
}

fn known() -> String {
    let names: Vec<&str> = CATALOGUE
        .iter()
        .filter(|entry| bindable(entry))
        .map(|entry| entry.path)
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(list: &str) -> Vec<&'static str> {
        Selection::parse(list)
            .unwrap()
            .entries()
            .map(|entry| entry.path)
            .collect()
    }

    #[test]
    fn short_and_full_names_mean_the_same_file() {
        assert_eq!(paths("meminfo"), ["proc/meminfo"]);
        assert_eq!(paths("/proc/meminfo"), ["proc/meminfo"]);
        assert_eq!(paths("cpu"), ["sys/devices/system/cpu"]);
        assert_eq!(paths("pressure/cpu"), ["proc/pressure/cpu"]);
        assert_eq!(
            paths("/sys/devices/system/cpu/online"),
            ["sys/devices/system/cpu/online"]
        );
    }

    #[test]
    fn a_directory_of_files_means_all_of_them() {
        assert_eq!(paths("pressure").len(), 4);
        assert_eq!(paths("/proc/pressure"), paths("pressure"));
    }

    #[test]
    fn removals_alone_start_from_the_defaults() {
        let all = Selection::default().entries().count();
        assert_eq!(paths("-uptime").len(), all - 1);
        assert!(!paths("-uptime").contains(&"proc/uptime"));
        assert_eq!(paths("default,node").len(), all + 1);
        assert_eq!(paths("stat,-stat").len(), 0);
        assert_eq!(
            paths(""),
            Selection::default()
                .entries()
                .map(|e| e.path)
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let text = Selection::parse("memifno").unwrap_err().to_string();
        assert!(
            text.contains("memifno") && text.contains("proc/meminfo"),
            "{text}"
        );
        assert!(Selection::parse("proc").is_err());
    }

    #[test]
    fn runc_gets_neither_vmstat_nor_pressure() {
        let allowed = Selection::default().allowed_by_runc();
        assert!(allowed.contains("/proc/meminfo".as_ref()));
        assert!(allowed.contains("/sys/devices/system/cpu".as_ref()));
        assert!(!allowed.contains("/proc/vmstat".as_ref()));
        assert!(!allowed.contains("/proc/pressure/cpu".as_ref()));
    }
}
