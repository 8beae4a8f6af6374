//! Everything a cluster needs, as objects: one *part* per thing somebody may want or not,
//! *overlays* that combine parts, and the files of both for `kubectl apply -k` and Helm.
//!
//! Objects are written as JSON and go through their Kubernetes type: a field that the
//! type does not know is an error here and not a surprise in the cluster.

pub mod agent;
pub mod files;
pub mod helm;
pub mod monitoring;
pub mod policy;
mod start_taint;
pub mod webhook;

use k8s_openapi::api::core::v1::Namespace;
use lxcfs_common::pod;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::mutate::{Config, DEFAULT_MOUNTPOINT, EXCLUDED_NAMESPACES, Mode, Runtime};

/// Why manifests cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// An object does not survive its own type.
    #[error("{kind} {name}: not a valid object: {problem}")]
    Object {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The mountpoint has no parent of its own, which the agent has to mount.
    #[error(
        "mountpoint {0}: must be absolute and two directories deep, like {DEFAULT_MOUNTPOINT}: \
         pods mount its parent, and that cannot be the root"
    )]
    Mountpoint(String),
    /// Text could not be written as YAML.
    #[error("cannot write YAML")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// What differs between clusters.
#[derive(Clone, Debug)]
pub struct Options {
    /// Namespace of everything that is ours.
    pub namespace: String,
    /// Container image with `lxcfs` and `lxcfs-webhook`.
    pub image: String,
    /// What the webhook and the policy decide by.
    pub config: Config,
    /// The agent serves every container that does not say no, without being asked.
    pub all: bool,
    /// The agent serves every pod of these namespaces that does not say no. Unlike webhook
    /// and policy it cannot see a namespace's labels.
    pub namespaces: Vec<String>,
    /// The agent removes the start taint of its node when it is ready.
    pub start_taint: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: EXCLUDED_NAMESPACES[0].to_owned(),
            image: format!("localhost/lxcfs:{}", env!("CARGO_PKG_VERSION")),
            config: Config::default(),
            all: false,
            namespaces: Vec::new(),
            start_taint: false,
        }
    }
}

impl Options {
    /// The directory of the node that pods of the agent mount, with the mountpoint's name
    /// in it. Never the mountpoint: a dead one would keep the agent's own pod from starting.
    pub fn parent(&self) -> Result<&str, ManifestError> {
        let path = self.config.mountpoint.trim_end_matches('/');
        match path.rsplit_once('/') {
            Some((parent, name))
                if parent.len() > 1 && parent.starts_with('/') && !name.is_empty() =>
            {
                Ok(parent)
            }
            _ => Err(ManifestError::Mountpoint(path.to_owned())),
        }
    }

    /// The words of the webhook's command line for the configuration.
    fn config_arguments(&self) -> Vec<String> {
        let config = &self.config;
        let mut arguments = vec![format!("--mountpoint={}", config.mountpoint)];
        if config.mode == Mode::Attach {
            arguments.push("--mode=attach".to_owned());
        }
        if config.runtime == Runtime::Crun {
            arguments.push("--runtime=crun".to_owned());
        }
        if !config.files.is_empty() {
            arguments.push(format!("--files={}", config.files));
        }
        if !config.disable.is_empty() {
            arguments.push(format!("--disable={}", config.disable));
        }
        if config.idmapped_mounts {
            arguments.push("--idmapped-mounts".to_owned());
        }
        let excluded = config.excluded_namespaces.iter();
        arguments.extend(excluded.map(|name| format!("--exclude-namespace={name}")));
        let excluded = config.excluded_runtime_classes.iter();
        arguments.extend(excluded.map(|name| format!("--exclude-runtime-class={name}")));
        arguments
    }
}

/// Something somebody may want or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Our namespace.
    Namespace,
    /// The daemon and the agent in one DaemonSet, both privileged.
    AgentSimple,
    /// A privileged holder that no update restarts, server and agent with capabilities.
    AgentLeastPrivilege,
    /// The webhook with self-managed certificates.
    Webhook,
    /// The webhook with cert-manager's certificates.
    WebhookCertManager,
    /// The policy that does the same without a server.
    Policy,
    /// Scraping and alerts by the Prometheus operator.
    Monitoring,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Namespace,
        Self::AgentSimple,
        Self::AgentLeastPrivilege,
        Self::Webhook,
        Self::WebhookCertManager,
        Self::Policy,
        Self::Monitoring,
    ];

    /// Its name, also of its directory.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::AgentSimple => "agent-simple",
            Self::AgentLeastPrivilege => "agent-least-privilege",
            Self::Webhook => "webhook",
            Self::WebhookCertManager => "webhook-cert-manager",
            Self::Policy => "policy",
            Self::Monitoring => "monitoring",
        }
    }

    /// The part of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }

    /// Its objects.
    pub fn objects(self, options: &Options) -> Result<Vec<Value>, ManifestError> {
        match self {
            Self::Namespace => Ok(vec![namespace(options)?]),
            Self::AgentSimple => agent::simple(options),
            Self::AgentLeastPrivilege => agent::least_privilege(options),
            Self::Webhook => webhook::self_managed(options),
            Self::WebhookCertManager => webhook::cert_manager(options),
            Self::Policy => policy::objects(options),
            Self::Monitoring => monitoring::objects(options),
        }
    }
}

/// Parts that make a whole.
#[derive(Clone, Copy, Debug)]
pub struct Overlay {
    /// Its name, also of its directory.
    pub name: &'static str,
    /// For whom.
    pub about: &'static str,
    /// What it is made of.
    pub parts: &'static [Part],
}

/// All overlays.
pub const OVERLAYS: &[Overlay] = &[
    Overlay {
        name: "simple",
        about: "Node agent only: pods are found on the node, nothing in the API",
        parts: &[Part::Namespace, Part::AgentSimple],
    },
    Overlay {
        name: "least-privilege",
        about: "Node agent only, split so that only the small daemon is privileged",
        parts: &[Part::Namespace, Part::AgentLeastPrivilege],
    },
    Overlay {
        name: "webhook",
        about: "Node agent and admission webhook, for users of the lxcfs webhooks before",
        parts: &[Part::Namespace, Part::AgentSimple, Part::Webhook],
    },
    Overlay {
        name: "cert-manager",
        about: "The same with certificates by cert-manager",
        parts: &[Part::Namespace, Part::AgentSimple, Part::WebhookCertManager],
    },
    Overlay {
        name: "policy",
        about: "Node agent and admission policy, no server (Kubernetes 1.36 and later)",
        parts: &[Part::Namespace, Part::AgentLeastPrivilege, Part::Policy],
    },
];

/// Writes objects as a stream of YAML documents.
pub fn yaml(objects: &[Value]) -> Result<String, ManifestError> {
    let mut text = String::new();
    for (at, object) in objects.iter().enumerate() {
        if at > 0 {
            text.push_str("---\n");
        }
        text.push_str(&serde_saphyr::to_string(object)?);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

/// Passes an object through its type; whatever the type does not know is an error.
fn typed<T: Serialize + DeserializeOwned>(object: Value) -> Result<Value, ManifestError> {
    let problem = |problem: String| ManifestError::Object {
        kind: object["kind"].as_str().unwrap_or("?").to_owned(),
        name: object["metadata"]["name"]
            .as_str()
            .unwrap_or("?")
            .to_owned(),
        problem,
    };
    let read: T = serde_json::from_value(object.clone()).map_err(|e| problem(e.to_string()))?;
    let back = serde_json::to_value(&read).map_err(|e| problem(e.to_string()))?;
    match difference(&object, &back, String::new()) {
        None => Ok(back),
        Some(path) => Err(problem(format!("{path} is not known to its type"))),
    }
}

/// Where two values first differ.
fn difference(written: &Value, read: &Value, path: String) -> Option<String> {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            written.iter().find_map(|(key, value)| match read.get(key) {
                Some(other) => difference(value, other, format!("{path}.{key}")),
                None => Some(format!("{path}.{key}")),
            })
        }
        (Value::Array(written), Value::Array(read)) if written.len() == read.len() => written
            .iter()
            .zip(read)
            .enumerate()
            .find_map(|(at, (one, other))| difference(one, other, format!("{path}[{at}]"))),
        (one, other) => (one != other).then_some(path),
    }
}

/// Labels of an object of ours.
fn labels(component: &str) -> Value {
    json!({
        "app.kubernetes.io/name": "lxcfs",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/version": env!("CARGO_PKG_VERSION"),
    })
}

/// Labels of a pod of ours: with the one by which admission leaves it alone.
fn pod_labels(component: &str) -> Value {
    let mut labels = labels(component);
    labels[pod::COMPONENT_LABEL] = component.into();
    labels
}

/// What finds the pods of a component.
fn selector(component: &str) -> Value {
    json!({pod::COMPONENT_LABEL: component})
}

fn meta(options: &Options, name: &str, component: &str) -> Value {
    json!({"name": name, "namespace": options.namespace, "labels": labels(component)})
}

fn cluster_meta(name: &str, component: &str) -> Value {
    json!({"name": name, "labels": labels(component)})
}

fn namespace(options: &Options) -> Result<Value, ManifestError> {
    // The daemon mounts on the node, which only `privileged` allows.
    let mut labels = labels("namespace");
    for mode in ["enforce", "audit", "warn"] {
        labels[format!("pod-security.kubernetes.io/{mode}")] = "privileged".into();
    }
    typed::<Namespace>(json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": options.namespace, "labels": labels},
    }))
}
