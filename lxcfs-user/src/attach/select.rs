//! Owns which virtual files a container gets: the catalogue's defaults, or what the user
//! named in the grammar of [`lxcfs_common::pod`]. Pure.

use std::collections::BTreeSet;

use lxcfs_common::catalogue::{self, CATALOGUE, Entry};
use lxcfs_common::pod;

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

impl FromIterator<&'static Entry> for Selection {
    /// Entries that cannot be bound on their own are left out.
    fn from_iter<T: IntoIterator<Item = &'static Entry>>(entries: T) -> Self {
        Self {
            paths: entries
                .into_iter()
                .filter(|entry| pod::attachable(entry))
                .map(|entry| entry.path)
                .collect(),
        }
    }
}

impl Selection {
    /// Nothing at all.
    pub fn none() -> Self {
        Self {
            paths: BTreeSet::new(),
        }
    }

    /// Reads a list such as `meminfo,cpuinfo,pressure/cpu,cpu`, `default,node` or
    /// `-uptime` (the defaults without that file). `pressure` means all of it.
    ///
    /// # Errors
    /// A name that the catalogue does not have.
    pub fn parse(list: &str) -> Result<Self, AttachError> {
        match pod::Selection(list).unknown_files().next() {
            Some(name) => Err(AttachError::UnknownFile {
                name: name.to_owned(),
                known: known(),
            }),
            None => Ok(Self::lenient(list)),
        }
    }

    /// The same for lists that come from a pod: unknown names select nothing.
    pub fn lenient(list: &str) -> Self {
        CATALOGUE
            .iter()
            .filter(|entry| pod::Selection(list).picks_file(entry))
            .collect()
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

    /// What is in this selection and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            paths: self.paths.difference(&other.paths).copied().collect(),
        }
    }

    /// Nothing selected.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }
}

fn known() -> String {
    let names: Vec<&str> = CATALOGUE
        .iter()
        .filter(|entry| pod::attachable(entry))
        .map(pod::file_name)
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_list_selects_files_of_the_catalogue_or_is_refused(
            list in "(-?/?(proc|sys|cpu|meminfo|pressure|default|none|.{0,5})[,/ ]?){0,6}",
        ) {
            let lenient = Selection::lenient(&list);
            prop_assert!(lenient.entries().count() <= CATALOGUE.len());
            if let Ok(strict) = Selection::parse(&list) {
                let paths = |of: &Selection| -> Vec<&str> {
                    of.entries().map(|entry| entry.path).collect()
                };
                prop_assert_eq!(paths(&strict), paths(&lenient));
            }
        }
    }

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
        assert_eq!(
            paths("-pressure").len(),
            Selection::default().entries().count() - 4
        );
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
            text.contains("memifno") && text.contains("meminfo"),
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
