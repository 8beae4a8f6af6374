//! Owns the decision which containers get a view and which files of it, from what a
//! runtime tells. Pure. The default is: only what somebody asked for.

use std::collections::{BTreeMap, HashMap};

use lxcfs_common::catalogue::{Attach, CATALOGUE};
use lxcfs_common::pod;

use crate::attach::Selection;
use crate::policy::{CpuPolicy, Named};

/// Whom to serve without being asked in the container's own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentPolicy {
    /// Every container, unless it opts out.
    pub all: bool,
    /// Containers whose cgroup path matches one of these; `*` stands for any characters.
    pub cgroups: Vec<String>,
    /// Kubernetes namespaces all of whose pods are served, unless they opt out.
    pub namespaces: Vec<String>,
    /// Kubernetes namespaces that are never served.
    pub excluded_namespaces: Vec<String>,
    /// Files for containers that do not choose, in the pods' grammar; empty for the default.
    pub files: String,
}

/// What is known of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its name in the pod.
    pub name: String,
    /// The pod's namespace in Kubernetes; empty elsewhere.
    pub namespace: String,
    /// Labels of pod and container.
    pub labels: BTreeMap<String, String>,
    /// Annotations of pod and container; elsewhere the container's labels, which serve the
    /// same purpose there.
    pub annotations: BTreeMap<String, String>,
    /// Its cgroup path, when known.
    pub cgroup: String,
}

impl Subject {
    /// Joins maps of pod and container; the container's entries win.
    pub fn join(
        pod: &HashMap<String, String>,
        container: &HashMap<String, String>,
    ) -> BTreeMap<String, String> {
        let entries = pod.iter().chain(container);
        entries.map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }
}

/// Why a container is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Nobody asked for a view.
    NotAsked,
    /// It says no.
    OptedOut,
    /// It is one of this project's own.
    OwnPod,
    /// Its namespace is excluded.
    Namespace,
    /// The pod names other containers.
    NotNamed,
    /// No file is selected.
    NoFiles,
}

impl Reason {
    /// The metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotAsked => "not-asked",
            Self::OptedOut => "opted-out",
            Self::OwnPod => "own-pod",
            Self::Namespace => "namespace",
            Self::NotNamed => "not-named",
            Self::NoFiles => "no-files",
        }
    }
}

/// What to do with a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Attach these files.
    Attach(Selection),
    /// Attach nothing; dead mounts are healed all the same.
    Leave(Reason),
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

impl Subject {
    /// The rule by which it wants its CPUs counted, if it asks for one.
    ///
    /// # Errors
    /// What it says instead of the name of a rule.
    pub fn cpus(&self) -> Result<Option<CpuPolicy>, &str> {
        match self.annotation(pod::CPUS) {
            None => Ok(None),
            Some(name) => CpuPolicy::from_name(name).map(Some).ok_or(name),
        }
    }
}

impl AgentPolicy {
    /// Decides for one container.
    pub fn decide(&self, subject: &Subject) -> Decision {
        if subject.labels.contains_key(pod::COMPONENT_LABEL) {
            return Decision::Leave(Reason::OwnPod);
        }
        if self.excluded_namespaces.contains(&subject.namespace) {
            return Decision::Leave(Reason::Namespace);
        }
        let annotations = subject.annotations.iter();
        let wish = pod::wish(annotations.map(|(key, value)| (key.as_str(), value.as_str())));
        if wish == Some(false) {
            return Decision::Leave(Reason::OptedOut);
        }
        // What admission decided for this very container stands above everything else.
        if let Some(decided) = subject.annotation(pod::ATTACH) {
            return match pod::for_container(decided, &subject.name) {
                Some(list) => chosen(Selection::lenient(list.0)),
                None if wish == Some(true) => Decision::Leave(Reason::NotNamed),
                None => Decision::Leave(Reason::NotAsked),
            };
        }
        let wanted = wish == Some(true)
            || self.all
            || (!subject.namespace.is_empty() && self.namespaces.contains(&subject.namespace))
            || self
                .cgroups
                .iter()
                .any(|pattern| matches(pattern, &subject.cgroup));
        if !wanted {
            return Decision::Leave(Reason::NotAsked);
        }
        let only = pod::Selection(subject.annotation(pod::CONTAINERS).unwrap_or_default());
        if !only.picks(true, |word| word == subject.name) {
            return Decision::Leave(Reason::NotNamed);
        }
        chosen(self.files_of(subject))
    }

    /// The files a container's annotations choose.
    fn files_of(&self, subject: &Subject) -> Selection {
        let of_pod = pod::Selection(subject.annotation(pod::FILES).unwrap_or(&self.files));
        let own = subject
            .annotation(pod::CONTAINER_FILES)
            .and_then(|value| pod::for_container(value, &subject.name));
        CATALOGUE
            .iter()
            .filter(|entry| {
                let by_pod = of_pod.picks_entry(entry.attach == Attach::Default, entry);
                own.map_or(by_pod, |own| own.picks_entry(by_pod, entry))
            })
            .collect()
    }
}

fn chosen(selection: Selection) -> Decision {
    if selection.is_empty() {
        Decision::Leave(Reason::NoFiles)
    } else {
        Decision::Attach(selection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_may_name_the_rule_for_its_cpus() {
        let asked = |value| {
            let subject = subject(&[(pod::CPUS, value)]);
            subject.cpus().map_err(str::to_owned)
        };
        assert_eq!(asked("cpuset"), Ok(Some(CpuPolicy::Cpuset)));
        assert_eq!(asked("host"), Ok(Some(CpuPolicy::Host)));
        assert_eq!(asked("four"), Err("four".to_owned()));
        assert_eq!(subject(&[]).cpus(), Ok(None));
    }

    fn subject(annotations: &[(&str, &str)]) -> Subject {
        Subject {
            name: "app".into(),
            namespace: "shop".into(),
            annotations: annotations
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            ..Subject::default()
        }
    }

    fn decide(annotations: &[(&str, &str)]) -> Decision {
        AgentPolicy::default().decide(&subject(annotations))
    }

    fn files(list: &str) -> Decision {
        Decision::Attach(Selection::parse(list).unwrap())
    }

    #[test]
    fn nobody_is_served_unasked() {
        assert_eq!(decide(&[]), Decision::Leave(Reason::NotAsked));
        assert_eq!(
            decide(&[("unrelated", "true")]),
            Decision::Leave(Reason::NotAsked)
        );
    }

    #[test]
    fn asking_and_refusing_work_in_every_known_spelling() {
        for key in ["lxcfs/inject", "io.kubernetes.container.lxcfsEnable"] {
            assert_eq!(decide(&[(key, "True")]), files(""), "{key}");
            assert_eq!(
                decide(&[(key, "no")]),
                Decision::Leave(Reason::OptedOut),
                "{key}"
            );
        }
    }

    #[test]
    fn a_general_rule_does_not_overrule_a_refusal() {
        let policy = AgentPolicy {
            all: true,
            ..AgentPolicy::default()
        };
        assert_eq!(policy.decide(&subject(&[])), files(""));
        assert_eq!(
            policy.decide(&subject(&[("lxcfs/inject", "false")])),
            Decision::Leave(Reason::OptedOut)
        );
    }

    #[test]
    fn own_pods_and_excluded_namespaces_are_never_touched() {
        let mut own = subject(&[("lxcfs/inject", "true")]);
        own.labels
            .insert(pod::COMPONENT_LABEL.into(), "agent".into());
        let policy = AgentPolicy {
            all: true,
            excluded_namespaces: vec!["shop".into()],
            ..AgentPolicy::default()
        };
        assert_eq!(
            policy.decide(&subject(&[("lxcfs/inject", "true")])),
            Decision::Leave(Reason::Namespace)
        );
        assert_eq!(
            AgentPolicy::default().decide(&own),
            Decision::Leave(Reason::OwnPod)
        );
    }

    #[test]
    fn containers_and_files_are_chosen_per_name() {
        let on = ("lxcfs/inject", "true");
        assert_eq!(
            decide(&[on, (pod::CONTAINERS, "-app")]),
            Decision::Leave(Reason::NotNamed)
        );
        assert_eq!(
            decide(&[on, (pod::FILES, "meminfo,stat")]),
            files("meminfo,stat")
        );
        assert_eq!(
            decide(&[
                on,
                (pod::FILES, "meminfo,stat"),
                (pod::CONTAINER_FILES, "app=-stat")
            ]),
            files("meminfo")
        );
        assert_eq!(
            decide(&[on, (pod::FILES, "none")]),
            Decision::Leave(Reason::NoFiles)
        );
    }

    #[test]
    fn what_admission_wrote_for_this_container_decides() {
        assert_eq!(
            decide(&[(pod::ATTACH, "app=vmstat,pressure;db=meminfo")]),
            files("vmstat,pressure")
        );
        assert_eq!(
            decide(&[(pod::ATTACH, "db=meminfo")]),
            Decision::Leave(Reason::NotAsked)
        );
    }

    #[test]
    fn cgroup_patterns_choose_what_no_runtime_describes() {
        let policy = AgentPolicy {
            cgroups: vec!["/lxc.payload.*".into(), "*/web-*.scope".into()],
            ..AgentPolicy::default()
        };
        for (cgroup, chosen) in [
            ("/lxc.payload.db/init.scope", true),
            ("/machine.slice/web-3.scope", true),
            ("/machine.slice/web-3.scope/inner", false),
            ("/docker/x", false),
        ] {
            let subject = Subject {
                cgroup: cgroup.into(),
                ..Subject::default()
            };
            let decision = policy.decide(&subject);
            assert_eq!(matches!(decision, Decision::Attach(_)), chosen, "{cgroup}");
        }
    }

    #[test]
    fn patterns_match_whole_paths() {
        assert!(matches("a*b*c", "axxbyyc") && matches("*", "") && matches("x", "x"));
        assert!(!matches("a*b*c", "axxbyyd") && !matches("x", "xy") && !matches("ab*ab", "ab"));
    }
}
