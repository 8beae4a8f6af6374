//! Who gets a view: which pods, which of their containers, and which files of each.
//! Reads annotations and labels only; what stands in the way of a mount is not its matter.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, VolumeDevice, VolumeMount};
use lxcfs_common::catalogue::{CATALOGUE, Entry};
use lxcfs_common::pod::{self, Selection};

use super::{Config, Mode, Operation, PodSecurity, Reason, Request, SelectedBy};

/// Annotation by which the kubelet marks the API copy of a static pod.
const MIRROR_POD: &str = "kubernetes.io/config.mirror";

/// Why this pod is not touched at all, if so.
pub fn reason_to_skip(pod: &Pod, request: &Request<'_>, config: &Config) -> Option<Reason> {
    let labels = pod.metadata.labels.as_ref();
    if labels.is_some_and(|labels| labels.contains_key(pod::COMPONENT_LABEL)) {
        return Some(Reason::OwnPod);
    }
    let excluded = &config.excluded_namespaces;
    if excluded.iter().any(|name| name == request.namespace) {
        return Some(Reason::Namespace);
    }
    if request.operation == Operation::Other {
        return Some(Reason::Operation);
    }
    let Some(spec) = &pod.spec else {
        return Some(Reason::NoPod);
    };
    if annotation(pod, MIRROR_POD).is_some() {
        return Some(Reason::MirrorPod);
    }
    match (wish(pod), request.selected_by) {
        (Some(false), _) => return Some(Reason::OptOut),
        (None, SelectedBy::Pod) => return Some(Reason::NotAsked),
        (Some(true), _) | (None, SelectedBy::Namespace) => {}
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Some(Reason::OperatingSystem);
    }
    let class = spec.runtime_class_name.as_ref();
    if class.is_some_and(|class| config.excluded_runtime_classes.contains(class)) {
        return Some(Reason::RuntimeClass);
    }
    None
}

/// Whether the spec stays as it is and the agent does everything: `None` for mounting,
/// `Some(None)` when that was asked for, `Some(Some(reason))` when a mount would break
/// the pod.
pub fn reason_to_defer(
    pod: &Pod,
    request: &Request<'_>,
    config: &Config,
) -> Option<Option<Reason>> {
    if config.mode == Mode::Attach || annotation(pod, pod::MODE) == Some("attach") {
        return Some(None);
    }
    if request.pod_security == PodSecurity::Confined {
        return Some(Some(Reason::PodSecurity));
    }
    let own_users = pod.spec.as_ref().and_then(|spec| spec.host_users) == Some(false);
    if own_users && !config.idmapped_mounts {
        return Some(Some(Reason::HostUsers));
    }
    None
}

/// What a pod's switches say; see [`pod::wish`].
pub fn wish(pod: &Pod) -> Option<bool> {
    let annotations = pod.metadata.annotations.iter().flatten();
    pod::wish(annotations.map(|(key, value)| (key.as_str(), value.as_str())))
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    let annotations: &BTreeMap<String, String> = pod.metadata.annotations.as_ref()?;
    annotations.get(key).map(String::as_str)
}

/// One of the pod's three lists of containers, as JSON spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// Init containers and native sidecars.
    Init,
    /// Ordinary containers.
    Main,
    /// Containers added to a running pod.
    Ephemeral,
}

impl List {
    /// The field of the pod's spec.
    pub const fn field(self) -> &'static str {
        match self {
            Self::Init => "initContainers",
            Self::Main => "containers",
            Self::Ephemeral => "ephemeralContainers",
        }
    }
}

/// One container that gets a view, and what of it.
#[derive(Clone, Debug)]
pub struct Container<'a> {
    /// Its list.
    pub list: List,
    /// Its place in that list.
    pub index: usize,
    /// Its name.
    pub name: &'a str,
    /// Its mounts; `None` when the field is absent or null.
    pub mounts: Option<&'a [VolumeMount]>,
    /// Its raw block devices, which also take a path.
    pub devices: &'a [VolumeDevice],
    default: &'a str,
    disable: &'a str,
    own: Option<Selection<'a>>,
}

impl Container<'_> {
    /// The files chosen for it, in catalogue order, a tree before and instead of what is
    /// below it.
    pub fn files(&self) -> impl Iterator<Item = &'static Entry> {
        let picks = |entry: &Entry| {
            let by_default = Selection(self.default).picks_file(entry);
            match self.own {
                // The container's list changes what the pod or cluster chose.
                Some(own) => own.picks_entry(by_default, entry),
                None => by_default,
            }
        };
        let mut trees: Vec<&str> = Vec::new();
        CATALOGUE
            .iter()
            .filter(move |entry| picks(entry) && !pod::switched_off(self.disable, entry))
            .filter(move |entry| {
                let below = |tree: &&str| {
                    let rest = entry.path.strip_prefix(tree);
                    rest.is_some_and(|rest| rest.starts_with('/'))
                };
                let covered = trees.iter().any(below);
                trees.push(entry.path);
                !covered
            })
    }
}

/// The containers of a pod that get a view.
#[derive(Clone, Debug)]
pub struct Chosen<'a> {
    /// In the order of the pod: init containers, containers, ephemeral containers.
    pub containers: Vec<Container<'a>>,
    /// Words in the pod's annotations that name nothing.
    pub warnings: Vec<String>,
}

impl<'a> Chosen<'a> {
    /// Reads the pod's annotations; a pod without a spec has no containers.
    pub fn of(pod: &'a Pod, request: &Request<'_>, config: &'a Config) -> Self {
        let only = Selection(annotation(pod, pod::CONTAINERS).unwrap_or_default());
        let default = annotation(pod, pod::FILES).unwrap_or(&config.files);
        let per_container = annotation(pod, pod::CONTAINER_FILES).unwrap_or_default();
        let mut containers = all_containers(pod, &request.operation);
        let mut warnings = unknown_words(pod);
        let known: Vec<&str> = containers.iter().map(|container| container.name).collect();
        let named = only
            .words()
            .map(|word| word.strip_prefix(['+', '-']).unwrap_or(word).trim())
            .filter(|word| *word != "default" && *word != "none")
            .chain(pod::per_container(per_container).map(|(name, _)| name));
        for name in named.filter(|name| !known.contains(name)) {
            // With ephemeral containers only those are listed here.
            if request.operation == Operation::Create {
                warnings.push(format!("lxcfs: this pod has no container {}", brief(name)));
            }
        }
        containers.retain(|container| only.picks(true, |word| word == container.name));
        for container in &mut containers {
            container.default = default;
            container.disable = &config.disable;
            container.own = pod::for_container(per_container, container.name);
        }
        Self {
            containers,
            warnings,
        }
    }
}

fn all_containers<'a>(pod: &'a Pod, operation: &Operation) -> Vec<Container<'a>> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let container = |list, index, name: &'a str, mounts: &'a Option<Vec<_>>, devices| Container {
        list,
        index,
        name,
        mounts: mounts.as_deref(),
        devices,
        default: "",
        disable: "",
        own: None,
    };
    if let Operation::AddEphemeral(before) = operation {
        return spec
            .ephemeral_containers
            .iter()
            .flatten()
            .enumerate()
            .filter(|(_, one)| !before.contains(&one.name))
            .map(|(at, one)| {
                let devices = one.volume_devices.as_deref().unwrap_or_default();
                container(List::Ephemeral, at, &one.name, &one.volume_mounts, devices)
            })
            .collect();
    }
    let init = spec.init_containers.iter().flatten().enumerate();
    let main = spec.containers.iter().enumerate();
    init.map(|(at, one)| (List::Init, at, one))
        .chain(main.map(|(at, one)| (List::Main, at, one)))
        .map(|(list, at, one)| {
            let devices = one.volume_devices.as_deref().unwrap_or_default();
            container(list, at, &one.name, &one.volume_mounts, devices)
        })
        .collect()
}

fn unknown_words(pod: &Pod) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut check = |key: &str, list: Selection<'_>| {
        for word in list.unknown_files() {
            warnings.push(format!("lxcfs: {key} names no file: {}", brief(word)));
        }
    };
    check(
        pod::FILES,
        Selection(annotation(pod, pod::FILES).unwrap_or_default()),
    );
    let per_container = annotation(pod, pod::CONTAINER_FILES).unwrap_or_default();
    for (_, list) in pod::per_container(per_container) {
        check(pod::CONTAINER_FILES, list);
    }
    if let Some(mode) = annotation(pod, pod::MODE)
        && mode != "attach"
        && mode != "mount"
    {
        warnings.push(format!("lxcfs: {} knows no {}", pod::MODE, brief(mode)));
    }
    for (key, value) in pod.metadata.annotations.iter().flatten() {
        if pod::is_switch(key) && pod::parse_switch(value).is_none() {
            warnings.push(format!(
                "lxcfs: {key} is neither on nor off: {}",
                brief(value)
            ));
        }
    }
    warnings
}

/// The user's word, short enough for a warning (the API server cuts long ones).
fn brief(word: &str) -> String {
    const LONGEST: usize = 40;
    let mut word: String = word.chars().take(LONGEST + 1).collect();
    if word.chars().count() > LONGEST {
        word.pop();
        word.push('…');
    }
    format!("{word:?}")
}
