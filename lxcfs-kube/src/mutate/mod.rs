//! The decision about one pod: a pure function from the pod, the request's namespace and
//! the configuration to JSON Patch operations, warnings and reasons.
//!
//! It owns the order of the questions and the annotations written; who is chosen lives in
//! [`choose`], which files clash with the user's own mounts in [`mounts`], how a patch is
//! spelled in [`patch`]. Nothing here does I/O, and nothing ever refuses a pod.

pub mod choose;
pub mod mounts;
pub mod patch;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use lxcfs_common::catalogue::Entry;
use lxcfs_common::pod;

use choose::Chosen;
use mounts::{Fit, Slot};
use patch::Op;

/// What the webhook does to the pods it is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Puts volumes and mounts into the pod's spec for every file the runtime accepts.
    Mount,
    /// Only writes the decision; the node agent attaches everything.
    Attach,
}

/// Which over-mounts of `/proc` the cluster's runtime accepts in a container's spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// runc's fixed list; anything else fails the container, so it is left to the agent.
    Runc,
    /// crun accepts every file.
    Crun,
}

/// What a namespace's Pod Security level means for host paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodSecurity {
    /// Host paths are allowed.
    Privileged,
    /// `baseline` or `restricted`: a pod with a host path is refused.
    Confined,
}

/// Why the API server asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectedBy {
    /// The namespace carries the label; pods are in unless they opt out.
    Namespace,
    /// The pod has to opt in by annotation.
    Pod,
}

/// What happens to the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The pod is being created.
    Create,
    /// Ephemeral containers are being added; the names are those that existed before.
    AddEphemeral(Vec<String>),
    /// Anything else: never changed.
    Other,
}

/// Facts about the request that are not in the pod.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Namespace of the *request*. The object's own may still be empty at creation.
    pub namespace: &'a str,
    /// How the pod was selected.
    pub selected_by: SelectedBy,
    /// What the namespace enforces.
    pub pod_security: PodSecurity,
    /// What happens to the pod.
    pub operation: Operation,
}

/// The cluster's choices.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where lxcfs is mounted on every node, an absolute path.
    pub mountpoint: String,
    /// Mount through the spec or leave it to the agent.
    pub mode: Mode,
    /// What the nodes' runtime accepts.
    pub runtime: Runtime,
    /// Default selection of files, in the grammar of [`lxcfs_common::pod`].
    pub files: String,
    /// Files that the daemons do not serve (`lxcfs --disable`): never mounted, never attached.
    pub disable: String,
    /// Namespaces that are never touched: our own and the cluster's.
    pub excluded_namespaces: Vec<String>,
    /// Runtime classes whose pods are left alone (sandboxes with a kernel of their own).
    pub excluded_runtime_classes: Vec<String>,
    /// Whether the nodes' lxcfs mount accepts idmapped binds (Linux 6.12 or later), so
    /// that pods with `hostUsers: false` can mount it as a volume.
    pub idmapped_mounts: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mountpoint: DEFAULT_MOUNTPOINT.to_owned(),
            mode: Mode::Mount,
            runtime: Runtime::Runc,
            files: String::new(),
            disable: String::new(),
            excluded_namespaces: EXCLUDED_NAMESPACES.map(str::to_owned).to_vec(),
            excluded_runtime_classes: Vec::new(),
            idmapped_mounts: false,
        }
    }
}

/// Mountpoint on the nodes. Its parent is what pods of the agent mount, never itself.
pub const DEFAULT_MOUNTPOINT: &str = "/var/lib/lxc/lxcfs";
/// Namespaces that are never touched: ours and those of the cluster.
pub const EXCLUDED_NAMESPACES: [&str; 4] = [
    "lxcfs-system",
    "kube-system",
    "kube-public",
    "kube-node-lease",
];

/// Why a pod, or one file of it, did not get what was configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// One of our own pods.
    OwnPod,
    /// A namespace on the excluded list.
    Namespace,
    /// The pod's annotation says no.
    OptOut,
    /// The namespace is not labelled and the pod did not ask.
    NotAsked,
    /// A mirror pod: the kubelet compares it with its file.
    MirrorPod,
    /// Not a Linux pod.
    OperatingSystem,
    /// A runtime class with a kernel of its own.
    RuntimeClass,
    /// Not a creation.
    Operation,
    /// The request carries no pod, or one this version cannot read.
    NoPod,
    /// Pod Security of the namespace forbids host paths; left to the agent.
    PodSecurity,
    /// `hostUsers: false` needs an idmapped mount; left to the agent.
    HostUsers,
    /// The user mounts something there.
    Conflict,
    /// A volume of that name exists and is something else.
    VolumeName,
}

impl Reason {
    /// The word used in annotations and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::OwnPod => "own-pod",
            Self::Namespace => "namespace",
            Self::OptOut => "opt-out",
            Self::NotAsked => "not-asked",
            Self::MirrorPod => "mirror-pod",
            Self::OperatingSystem => "operating-system",
            Self::RuntimeClass => "runtime-class",
            Self::Operation => "operation",
            Self::NoPod => "no-pod",
            Self::PodSecurity => "pod-security",
            Self::HostUsers => "host-users",
            Self::Conflict => "conflict",
            Self::VolumeName => "volume-name",
        }
    }
}

/// One thing left out: the whole pod, or a file of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// `pod`, or `container/file`.
    pub subject: String,
    /// Why.
    pub reason: Reason,
}

/// What came of it, for the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Mounts were added to the spec.
    Mounted,
    /// Only the decision was written; the agent attaches.
    Deferred,
    /// Everything was already there.
    Unchanged,
    /// The pod is left exactly as it came.
    Skipped,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Decision {
    /// JSON Patch operations; empty when nothing changes.
    pub patches: Vec<Op>,
    /// What came of it.
    pub outcome: Outcome,
    /// What was left out and why, also in the pod's annotation unless the pod is skipped.
    pub skipped: Vec<Skip>,
    /// Sentences for the person who created the pod.
    pub warnings: Vec<String>,
}

impl Decision {
    /// A pod left exactly as it came.
    pub fn skip(reason: Reason) -> Self {
        Self {
            patches: Vec::new(),
            outcome: Outcome::Skipped,
            skipped: vec![Skip {
                subject: "pod".to_owned(),
                reason,
            }],
            warnings: Vec::new(),
        }
    }
}

/// Decides about one pod.
pub fn mutate(pod: &Pod, request: &Request<'_>, config: &Config) -> Decision {
    if let Some(reason) = choose::reason_to_skip(pod, request, config) {
        return Decision::skip(reason);
    }
    let chosen = Chosen::of(pod, request, config);
    let mut warnings = chosen.warnings.clone();
    let mut skipped = Vec::new();
    let deferred = choose::reason_to_defer(pod, request, config);
    if let Some(Some(reason)) = deferred {
        skipped.push(Skip {
            subject: "pod".to_owned(),
            reason,
        });
        warnings.push(defer_warning(reason).to_owned());
    }
    let plan = plan(&chosen, deferred.is_none(), pod, request, config);
    for skip in &plan.skipped {
        warnings.push(format!(
            "lxcfs: {} left out ({})",
            skip.subject,
            skip.reason.word()
        ));
    }
    skipped.extend(plan.skipped);

    let mut patches = patch::volumes(pod, &plan.volumes, &config.mountpoint);
    patches.extend(plan.mounts);
    let mounted_now = !patches.is_empty();
    if request.operation == Operation::Create {
        patches.extend(patch::annotations(
            pod,
            &[
                (pod::MOUNTED, per_container(&plan.mounted)),
                (pod::ATTACH, per_container(&plan.attach)),
                (pod::SKIPPED, skips(&skipped)),
            ],
        ));
    }
    let outcome = match (patches.is_empty(), mounted_now) {
        (true, _) => Outcome::Unchanged,
        (false, true) => Outcome::Mounted,
        (false, false) => Outcome::Deferred,
    };
    Decision {
        patches,
        outcome,
        skipped,
        warnings,
    }
}

/// Per container, the names of files.
type Names = Vec<(String, Vec<&'static str>)>;

#[derive(Default)]
struct Plan {
    volumes: Vec<&'static Entry>,
    mounts: Vec<Op>,
    mounted: Names,
    attach: Names,
    skipped: Vec<Skip>,
}

/// Places every chosen file of every chosen container: in the spec, with the agent, or
/// nowhere.
fn plan(
    chosen: &Chosen<'_>,
    in_spec: bool,
    pod: &Pod,
    request: &Request<'_>,
    config: &Config,
) -> Plan {
    let mut plan = Plan::default();
    // One look per file at the pod's volumes, however many containers want it.
    let mut slots: BTreeMap<u64, Slot> = BTreeMap::new();
    for container in &chosen.containers {
        let (mut mounted, mut attach, mut added) = (Vec::new(), Vec::new(), Vec::new());
        for entry in container.files() {
            let slot = slots
                .entry(entry.ino)
                .or_insert_with(|| mounts::slot(pod, entry, &config.mountpoint));
            let name = pod::file_name(entry);
            let mut leave_out = |reason| {
                plan.skipped.push(Skip {
                    subject: format!("{}/{name}", container.name),
                    reason,
                });
            };
            match mounts::fit(container, entry, pod, &config.mountpoint) {
                Fit::Present => mounted.push(name),
                Fit::Conflict => leave_out(Reason::Conflict),
                Fit::Free if !in_spec || !mounts::runtime_accepts(entry, config.runtime) => {
                    attach.push(name);
                }
                Fit::Free => match slot {
                    Slot::Taken => leave_out(Reason::VolumeName),
                    // A volume cannot be added to a running pod.
                    Slot::Missing(_) if request.operation != Operation::Create => {
                        attach.push(name);
                    }
                    Slot::Missing(volume) | Slot::Exists(volume) => {
                        added.push(patch::volume_mount(volume, entry));
                        mounted.push(name);
                        if matches!(slot, Slot::Missing(_))
                            && !plan.volumes.iter().any(|known| known.ino == entry.ino)
                        {
                            plan.volumes.push(entry);
                        }
                    }
                },
            }
        }
        plan.mounts.extend(patch::mounts(container, added));
        plan.mounted.push((container.name.to_owned(), mounted));
        plan.attach.push((container.name.to_owned(), attach));
    }
    plan.volumes.sort_by_key(|entry| entry.ino);
    plan
}

/// `container=file,file;…`, containers without files left out; `None` when all are.
fn per_container(names: &Names) -> Option<String> {
    let parts: Vec<String> = names
        .iter()
        .filter(|(_, files)| !files.is_empty())
        .map(|(container, files)| format!("{container}={}", files.join(",")))
        .collect();
    (!parts.is_empty()).then(|| parts.join(";"))
}

fn skips(skipped: &[Skip]) -> Option<String> {
    let parts: Vec<String> = skipped
        .iter()
        .map(|skip| format!("{}={}", skip.subject, skip.reason.word()))
        .collect();
    (!parts.is_empty()).then(|| parts.join(";"))
}

fn defer_warning(reason: Reason) -> &'static str {
    match reason {
        Reason::PodSecurity => {
            "lxcfs: Pod Security of this namespace forbids host paths; the node agent attaches the view"
        }
        _ => {
            "lxcfs: hostUsers: false cannot mount lxcfs as a volume here; the node agent attaches the view"
        }
    }
}
