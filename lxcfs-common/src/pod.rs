//! The contract between a pod and lxcfs: labels, annotations and the small grammar inside
//! them. The webhook, the policy pack and the node agent read the same words here, so
//! that a pod means the same to all three.
//!
//! Three values share one grammar:
//!
//! * A *selection* is a comma list of names. With plain names it is exactly that list;
//!   with `+name` and `-name` only, it changes the default. `none` selects nothing and
//!   `default` stands for the default: `meminfo,cpuinfo`, `-swaps`, `default,+node`.
//! * A *per-container* value is `container=selection;container=selection`.
//! * A file is named by its path without `/proc/` or `/sys/devices/system/`: `meminfo`,
//!   `pressure/cpu`, `cpu` (the whole tree), `cpu/online`. `pressure` names the group.

use crate::catalogue::{Attach, CATALOGUE, Entry, Kind};

/// Label that switches a namespace on, as in the deployments this project replaces.
pub const NAMESPACE_LABEL: &str = "lxcfs-admission-webhook";
/// Value of [`NAMESPACE_LABEL`] that switches a namespace on.
pub const NAMESPACE_LABEL_ON: &str = "enabled";
/// Label of this project's own pods; a pod that carries it is never touched.
pub const COMPONENT_LABEL: &str = "lxcfs/component";

/// Key of the taint that keeps ordinary pods off a node until its agent is ready.
pub const START_TAINT: &str = "lxcfs/not-ready";

/// All that the agent needs to enter containers and mount there, named as manifests do; each
/// is explained in docs/capabilities.md.
pub const AGENT_CAPABILITIES: [&str; 4] =
    ["DAC_READ_SEARCH", "SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE"];

/// All that a server needs to tell readers apart and to collect with eBPF, named as manifests
/// do; each is explained in docs/capabilities.md.
pub const SERVER_CAPABILITIES: [&str; 4] = ["BPF", "DAC_READ_SEARCH", "PERFMON", "SYS_PTRACE"];

/// Label by which Pod Security admission learns what a namespace enforces.
pub const POD_SECURITY_LABEL: &str = "pod-security.kubernetes.io/enforce";

/// Our own switch: `true` or `false` for the whole pod.
pub const INJECT: &str = "lxcfs/inject";
/// Which containers: a selection over container names (default: all).
pub const CONTAINERS: &str = "lxcfs/containers";
/// Which files, for every container: a selection over file names.
pub const FILES: &str = "lxcfs/files";
/// Which files, per container: overrides [`FILES`] for the containers it names.
pub const CONTAINER_FILES: &str = "lxcfs/container-files";
/// `attach`: put nothing into the pod's spec, let the node agent attach everything.
pub const MODE: &str = "lxcfs/mode";
/// Which rule counts the container's CPUs, instead of the node's `--cpus`: `quota`, `cpuset`
/// or `host`. Read by the agent when the container starts.
pub const CPUS: &str = "lxcfs/cpus";
/// Written at admission: what the node agent has to attach, per container.
pub const ATTACH: &str = "lxcfs/attach";
/// Written at admission: what the pod's spec already mounts, per container.
pub const MOUNTED: &str = "lxcfs/mounted";
/// Written at admission: what was left out and why, `subject=reason;…`.
pub const SKIPPED: &str = "lxcfs/skipped";

/// Opt-in of the runtimes that had lxcfs built in.
pub const RUNTIME_OPT_IN: &str = "io.kubernetes.container.lxcfsEnable";
/// Annotation prefixes and suffixes by which other webhooks switch a pod on or off. A
/// key matches when it starts with the first and ends with the second.
pub const PEER_SWITCHES: &[(&str, &str)] = &[
    ("lxcfs-admission-webhook.", "/mutate"),
    ("mutating.lxcfs-admission-webhook.", "/enable"),
    ("sidecar-injector.lxcfs", "/inject"),
];

/// Words that switch on, in any case.
pub const ON: [&str; 6] = ["true", "yes", "y", "on", "1", "enabled"];
/// Words that switch off, in any case.
pub const OFF: [&str; 6] = ["false", "no", "n", "off", "0", "disabled"];

/// Reads a switch as people write it; `None` for anything else.
pub fn parse_switch(value: &str) -> Option<bool> {
    let value = value.trim();
    let is = |word: &&str| value.eq_ignore_ascii_case(word);
    if ON.iter().any(&is) {
        Some(true)
    } else if OFF.iter().any(&is) {
        Some(false)
    } else {
        None
    }
}

/// Whether an annotation key is a switch of ours, of a runtime or of another webhook.
pub fn is_switch(key: &str) -> bool {
    key == INJECT
        || key == RUNTIME_OPT_IN
        || PEER_SWITCHES
            .iter()
            .any(|(head, tail)| key.starts_with(head) && key.ends_with(tail))
}

/// What a pod's annotations say: `Some(false)` when any switch is off, else `Some(true)`
/// when any is on, else `None`. Off wins, so that nobody is surprised by a view.
pub fn wish<'a>(annotations: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<bool> {
    annotations
        .into_iter()
        .filter(|(key, _)| is_switch(key))
        .filter_map(|(_, value)| parse_switch(value))
        .reduce(|all, one| all && one)
}

/// The name of a catalogue entry in annotations and on the command line.
pub fn file_name(entry: &Entry) -> &'static str {
    let path = entry.path;
    path.strip_prefix("proc/")
        .or_else(|| path.strip_prefix("sys/devices/system/"))
        .unwrap_or(path)
}

/// Whether an entry can be bound on its own: every file, and the trees made for it.
pub fn attachable(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::File(_)) || entry.attach != Attach::Within
}

/// The attachable entry of that name, or of that absolute path.
pub fn by_file_name(name: &str) -> Option<&'static Entry> {
    let name = name.trim_start_matches('/');
    CATALOGUE
        .iter()
        .filter(|entry| attachable(entry))
        .find(|entry| file_name(entry) == name || entry.path == name)
}

/// A comma list of names that selects or changes a default; see the module's grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection<'a>(pub &'a str);

impl<'a> Selection<'a> {
    /// The words of the list, trimmed, without empty ones.
    pub fn words(self) -> impl Iterator<Item = &'a str> {
        self.0
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
    }

    /// Whether something is selected, given whether it is by default and whether a word
    /// (without its sign) names it. The last word that names it decides.
    pub fn picks(self, by_default: bool, names: impl Fn(&str) -> bool) -> bool {
        let starts_empty = self
            .words()
            .any(|word| !word.starts_with(['+', '-']) && word != "default");
        let mut picked = by_default && !starts_empty;
        for word in self.words() {
            if word == "default" {
                picked |= by_default;
            } else if let Some(word) = word.strip_prefix('-') {
                picked &= !names(word.trim());
            } else {
                picked |= names(word.strip_prefix('+').unwrap_or(word).trim());
            }
        }
        picked
    }

    /// Whether the list selects a file of the catalogue.
    pub fn picks_file(self, entry: &Entry) -> bool {
        self.picks_entry(entry.attach == Attach::Default, entry)
    }

    /// The same, changing some other default: a container's list over its pod's.
    pub fn picks_entry(self, by_default: bool, entry: &Entry) -> bool {
        attachable(entry) && self.picks(by_default, |word| names_entry(word, entry))
    }

    /// Words that name no file, for a warning to the user.
    pub fn unknown_files(self) -> impl Iterator<Item = &'a str> {
        self.words()
            .map(|word| word.strip_prefix(['+', '-']).unwrap_or(word).trim())
            .filter(|word| *word != "default" && *word != "none")
            .filter(|word| !CATALOGUE.iter().any(|entry| names_entry(word, entry)))
    }
}

/// Whether the daemon's `--disable` list switches an entry off: it, or a tree it is in.
pub fn switched_off(list: &str, entry: &Entry) -> bool {
    CATALOGUE
        .iter()
        .filter(|other| Selection(list).picks_entry(false, other))
        .any(|other| {
            let rest = entry.path.strip_prefix(other.path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
}

/// The first word of a `--disable` list that names no file: there are no signs in it.
pub fn not_to_switch_off(list: &str) -> Option<&str> {
    Selection(list)
        .words()
        .find(|word| !CATALOGUE.iter().any(|entry| names_entry(word, entry)))
}

fn names_entry(word: &str, entry: &Entry) -> bool {
    let word = word.trim_start_matches('/');
    if !attachable(entry) {
        return false;
    }
    let (name, path) = (file_name(entry), entry.path);
    // A directory that is no tree of its own (`pressure`) names what is below it.
    let group = entry.attach == Attach::Default
        && name
            .strip_prefix(word)
            .is_some_and(|rest| rest.starts_with('/'));
    !word.is_empty() && (name == word || path == word || group)
}

/// The selection that a per-container value holds for `container`; the last one wins.
pub fn for_container<'a>(value: &'a str, container: &str) -> Option<Selection<'a>> {
    per_container(value)
        .filter(|(name, _)| *name == container)
        .map(|(_, selection)| selection)
        .last()
}

/// All parts of a per-container value, in order.
pub fn per_container(value: &str) -> impl Iterator<Item = (&str, Selection<'_>)> {
    value
        .split(';')
        .filter_map(|part| part.split_once('='))
        .map(|(name, list)| (name.trim(), Selection(list)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::by_path;

    fn picked(list: &str) -> impl Fn(&str) -> bool {
        move |path| Selection(list).picks_file(by_path(path).unwrap())
    }

    #[test]
    fn switches_are_read_in_every_usual_spelling() {
        for on in ["True", "true", " yes", "ON", "1", "y", "enabled"] {
            assert_eq!(parse_switch(on), Some(true), "{on}");
        }
        for off in ["n", "no", "False", "off", "0", "NO", "disabled"] {
            assert_eq!(parse_switch(off), Some(false), "{off}");
        }
        assert_eq!(parse_switch("mutated"), None);
        assert_eq!(parse_switch(""), None);
    }

    #[test]
    fn every_peers_switch_is_understood_and_off_wins() {
        for key in [
            "lxcfs-admission-webhook.aliyun.com/mutate",
            "lxcfs-admission-webhook.kubernetes.io/mutate",
            "lxcfs-admission-webhook.raids-lab.github.io/mutate",
            "mutating.lxcfs-admission-webhook.io/enable",
            "sidecar-injector.lxcfs/inject",
            "io.kubernetes.container.lxcfsEnable",
            "lxcfs/inject",
        ] {
            assert_eq!(wish([(key, "off")]), Some(false), "{key}");
            assert_eq!(wish([(key, "True")]), Some(true), "{key}");
        }
        assert_eq!(
            wish([(INJECT, "true"), (RUNTIME_OPT_IN, "no")]),
            Some(false)
        );
        assert_eq!(wish([(INJECT, "perhaps")]), None);
        assert_eq!(
            wish([("lxcfs-admission-webhook.aliyun.com/status", "mutated")]),
            None
        );
    }

    #[test]
    fn a_selection_replaces_or_changes_the_default() {
        let default = picked("");
        assert!(default("proc/meminfo") && default("proc/pressure/io"));
        assert!(default("sys/devices/system/cpu"));
        assert!(!default("sys/devices/system/cpu/online") && !default("sys/devices/system/node"));
        assert!(!default("proc") && !default("proc/pressure"));

        let exact = picked("meminfo, /proc/stat");
        assert!(exact("proc/meminfo") && exact("proc/stat") && !exact("proc/cpuinfo"));
        let changed = picked("-swaps,+node,-pressure");
        assert!(changed("proc/meminfo") && changed("sys/devices/system/node"));
        assert!(!changed("proc/swaps") && !changed("proc/pressure/cpu"));
        let narrowed = picked("default,-cpu,+cpu/online");
        assert!(narrowed("sys/devices/system/cpu/online") && !narrowed("sys/devices/system/cpu"));
        assert!(!picked("none")("proc/meminfo"));
        assert!(picked("pressure")("proc/pressure/memory"));
    }

    #[test]
    fn a_tree_is_switched_off_with_all_that_is_in_it() {
        let off = |list, path| switched_off(list, by_path(path).unwrap());
        assert!(off("meminfo,pressure", "proc/meminfo"));
        assert!(off("meminfo,pressure", "proc/pressure/io"));
        assert!(!off("meminfo,pressure", "proc/stat") && !off("", "proc/meminfo"));
        assert!(off("cpu", "sys/devices/system/cpu"));
        assert!(off(
            "/sys/devices/system/cpu",
            "sys/devices/system/cpu/online"
        ));
        assert!(!off("cpu", "proc/cpuinfo") && !off("cpu", "sys/devices/system"));
        assert!(!off("cpu/online", "sys/devices/system/cpu"));
        for (list, wrong) in [
            ("stat, default", Some("default")),
            ("-stat", Some("-stat")),
            ("none", Some("none")),
            ("meminfo,pressure,cpu/online,node", None),
        ] {
            assert_eq!(not_to_switch_off(list), wrong);
        }
    }

    #[test]
    fn words_that_name_nothing_are_reported() {
        let mut unknown = Selection("meminfo,memnifo,-swap,none,default").unknown_files();
        assert_eq!(unknown.next(), Some("memnifo"));
        assert_eq!(unknown.next(), Some("swap"));
        assert_eq!(unknown.next(), None);
    }

    #[test]
    fn a_container_finds_its_own_selection() {
        let value = "app=meminfo,cpuinfo; db = -swaps;app=stat";
        assert_eq!(for_container(value, "app"), Some(Selection("stat")));
        assert_eq!(for_container(value, "db"), Some(Selection(" -swaps")));
        assert_eq!(for_container(value, "web"), None);
    }

    #[test]
    fn every_attachable_entry_is_found_by_its_name_and_path() {
        for entry in CATALOGUE.iter().filter(|entry| attachable(entry)) {
            assert_eq!(by_file_name(file_name(entry)).unwrap().ino, entry.ino);
            assert_eq!(by_file_name(entry.path).unwrap().ino, entry.ino);
        }
        assert!(by_file_name("proc").is_none());
    }
}
