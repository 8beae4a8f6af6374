//! The wire: an AdmissionReview in, an AdmissionReview out. Decodes, asks
//! [`mutate()`], encodes; always answers "allowed". Nothing here logs
//! or returns any part of an object: pods carry secrets.

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::mutate::{
    Config, Decision, Operation, Outcome, PodSecurity, Reason, Request, SelectedBy, mutate,
};

/// What the path of the request says. The webhook configuration has one entry per
/// combination, each with its own selector, so the API server itself tells us the
/// namespace's labels and no permission to read namespaces is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Which selector matched.
    pub selected_by: SelectedBy,
    /// What the namespace enforces.
    pub pod_security: PodSecurity,
}

impl Endpoint {
    /// All of them, in the order of the webhook configuration.
    pub const ALL: [Self; 4] = [
        Self::new(SelectedBy::Namespace, PodSecurity::Privileged),
        Self::new(SelectedBy::Namespace, PodSecurity::Confined),
        Self::new(SelectedBy::Pod, PodSecurity::Privileged),
        Self::new(SelectedBy::Pod, PodSecurity::Confined),
    ];

    const fn new(selected_by: SelectedBy, pod_security: PodSecurity) -> Self {
        Self {
            selected_by,
            pod_security,
        }
    }

    /// The path.
    pub const fn path(self) -> &'static str {
        match (self.selected_by, self.pod_security) {
            (SelectedBy::Namespace, PodSecurity::Privileged) => "/mutate/namespace/privileged",
            (SelectedBy::Namespace, PodSecurity::Confined) => "/mutate/namespace/confined",
            (SelectedBy::Pod, PodSecurity::Privileged) => "/mutate/pod/privileged",
            (SelectedBy::Pod, PodSecurity::Confined) => "/mutate/pod/confined",
        }
    }

    /// The endpoint of a path. `/mutate` alone is what the webhooks before this one
    /// listened on.
    pub fn at(path: &str) -> Option<Self> {
        let plain = (path == "/mutate").then_some(Self::ALL[0]);
        plain.or_else(|| {
            Self::ALL
                .into_iter()
                .find(|endpoint| endpoint.path() == path)
        })
    }
}

/// What was wrong with a request that was answered all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Not JSON, or not an AdmissionReview.
    Malformed,
    /// An API version this server does not know.
    Version,
    /// Larger than the limit.
    TooLarge,
    /// The body did not arrive in time.
    Timeout,
    /// The object is no pod this version can read.
    Object,
}

impl Fault {
    /// The word in the metric.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Version => "unknown-version",
            Self::TooLarge => "too-large",
            Self::Timeout => "timeout",
            Self::Object => "unreadable-object",
        }
    }

    const fn warning(self) -> &'static str {
        match self {
            Self::Malformed => "lxcfs: the webhook could not read the review; the pod is unchanged",
            Self::Version => {
                "lxcfs: the webhook knows admission.k8s.io/v1 only; the pod is unchanged"
            }
            Self::TooLarge => {
                "lxcfs: the review is larger than the webhook's limit; the pod is unchanged"
            }
            Self::Timeout => "lxcfs: the review did not arrive in time; the pod is unchanged",
            Self::Object => "lxcfs: the webhook could not read this pod; it is unchanged",
        }
    }
}

/// An answer and what to record about it.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The AdmissionReview.
    pub body: Value,
    /// What was decided.
    pub decision: Decision,
    /// What was wrong, if anything.
    pub fault: Option<Fault>,
    /// Namespace of the request, for the log.
    pub namespace: String,
}

#[derive(Deserialize)]
struct Review {
    #[serde(rename = "apiVersion")]
    api_version: Option<String>,
    request: Option<AdmissionRequest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AdmissionRequest {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    sub_resource: Option<String>,
    #[serde(default)]
    object: Value,
    #[serde(default)]
    old_object: Value,
}

const V1: &str = "admission.k8s.io/v1";
const V1BETA1: &str = "admission.k8s.io/v1beta1";

/// Answers one review.
pub fn answer(body: &[u8], endpoint: Endpoint, config: &Config) -> Answer {
    let Ok(review) = serde_json::from_slice::<Review>(body) else {
        return faulty(Fault::Malformed, &uid_in(body));
    };
    let Some(request) = review.request else {
        return faulty(Fault::Malformed, "");
    };
    let version = match review.api_version.as_deref() {
        Some(V1) => V1,
        Some(V1BETA1) => V1BETA1,
        _ => return faulty(Fault::Version, &request.uid),
    };
    let operation = match (request.operation.as_str(), request.sub_resource.as_deref()) {
        ("CREATE", None | Some("")) => Operation::Create,
        ("UPDATE", Some("ephemeralcontainers")) => {
            Operation::AddEphemeral(ephemeral_names(&request.old_object))
        }
        _ => Operation::Other,
    };
    // The API server always sends it; without, a patch has nothing to add annotations to.
    let Some(Value::Object(_)) = request.object.get("metadata") else {
        return faulty(Fault::Object, &request.uid);
    };
    let Ok(pod) = serde_json::from_value::<Pod>(request.object) else {
        return faulty(Fault::Object, &request.uid);
    };
    let facts = Request {
        namespace: &request.namespace,
        selected_by: endpoint.selected_by,
        pod_security: endpoint.pod_security,
        operation,
    };
    let decision = mutate(&pod, &facts, config);
    Answer {
        body: encode(version, &request.uid, &decision),
        decision,
        fault: None,
        namespace: request.namespace,
    }
}

/// The answer to a request that could not be read: allowed, unchanged, with a warning.
pub fn faulty(fault: Fault, uid: &str) -> Answer {
    let mut decision = Decision::skip(Reason::NoPod);
    decision.warnings.push(fault.warning().to_owned());
    Answer {
        body: encode(V1, uid, &decision),
        decision,
        fault: Some(fault),
        namespace: String::new(),
    }
}

/// The request's uid in a body that is cut off or broken further on: the API server
/// writes it first, and refuses an answer without it.
pub fn uid_in(body: &[u8]) -> String {
    const WINDOW: usize = 1024;
    const LONGEST: usize = 64;
    let text = String::from_utf8_lossy(&body[..body.len().min(WINDOW)]);
    let after = |text: &str, key: &str| {
        let (_, rest) = text.split_once(key)?;
        Some(rest.trim_start().strip_prefix(':')?.trim_start().to_owned())
    };
    after(&text, "\"request\"")
        .and_then(|request| after(&request, "\"uid\""))
        .and_then(|value| Some(value.strip_prefix('"')?.split_once('"')?.0.to_owned()))
        .filter(|uid| uid.len() <= LONGEST && uid.bytes().all(|b| b.is_ascii_graphic()))
        .unwrap_or_default()
}

fn ephemeral_names(pod: &Value) -> Vec<String> {
    pod.pointer("/spec/ephemeralContainers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|container| Some(container.get("name")?.as_str()?.to_owned()))
        .collect()
}

fn encode(version: &str, uid: &str, decision: &Decision) -> Value {
    let mut response = json!({"uid": uid, "allowed": true});
    if !decision.patches.is_empty() {
        let patch = serde_json::to_vec(&decision.patches).unwrap_or_default();
        let patch = k8s_openapi::ByteString(patch);
        response["patchType"] = "JSONPatch".into();
        response["patch"] = serde_json::to_value(patch).unwrap_or_default();
    }
    if !decision.warnings.is_empty() {
        // The API server drops everything when the total is too long.
        const MOST: usize = 8;
        let warnings: Vec<&String> = decision.warnings.iter().take(MOST).collect();
        response["warnings"] = json!(warnings);
    }
    if decision.outcome != Outcome::Unchanged {
        response["auditAnnotations"] = json!({"outcome": outcome_word(decision.outcome)});
    }
    json!({"apiVersion": version, "kind": "AdmissionReview", "response": response})
}

/// The word in metrics and audit annotations.
pub const fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Mounted => "mounted",
        Outcome::Deferred => "deferred",
        Outcome::Unchanged => "unchanged",
        Outcome::Skipped => "skipped",
    }
}
