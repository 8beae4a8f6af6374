//! Shared by the tests of this crate: pods from YAML, and an API server's half of
//! admission (apply the patch with somebody else's JSON Patch implementation).

use k8s_openapi::api::core::v1::Pod;
use lxcfs_kube::mutate::{Config, Decision, Operation, PodSecurity, Request, SelectedBy, mutate};
use serde_json::{Value, json};

/// A request in a labelled namespace without Pod Security.
pub(crate) fn request() -> Request<'static> {
    Request {
        namespace: "web",
        selected_by: SelectedBy::Namespace,
        pod_security: PodSecurity::Privileged,
        operation: Operation::Create,
    }
}

/// A pod of one plain container.
pub(crate) fn plain_pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    })
}

/// The pod (or pod template) in a YAML file of `tests/data`.
pub(crate) fn pod_in(file: &str) -> Value {
    let path = format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let object: Value = serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"));
    match object.pointer("/spec/template") {
        None => object,
        Some(template) => {
            let mut pod = template.clone();
            pod["apiVersion"] = "v1".into();
            pod["kind"] = "Pod".into();
            pod
        }
    }
}

/// The typed pod.
pub(crate) fn typed(pod: &Value) -> Pod {
    serde_json::from_value(pod.clone()).unwrap_or_else(|error| panic!("no pod: {error}\n{pod:#}"))
}

/// Decides and applies, as the API server does.
pub(crate) fn admit(pod: &Value, request: &Request<'_>, config: &Config) -> (Value, Decision) {
    let decision = mutate(&typed(pod), request, config);
    (apply(pod, &decision), decision)
}

/// Applies a decision's patch with an independent implementation of RFC 6902.
pub(crate) fn apply(pod: &Value, decision: &Decision) -> Value {
    let text = serde_json::to_string(&decision.patches).unwrap();
    let patch: json_patch::Patch = serde_json::from_str(&text).unwrap();
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &patch)
        .unwrap_or_else(|error| panic!("patch refused: {error}\n{text}\n{pod:#}"));
    patched
}

/// Applies the patch of an AdmissionReview's response.
pub(crate) fn apply_patch(pod: &Value, response: &Value) -> Value {
    let mut patched = pod.clone();
    if !response["patch"].is_null() {
        let patch: k8s_openapi::ByteString =
            serde_json::from_value(response["patch"].clone()).unwrap();
        let patch: json_patch::Patch = serde_json::from_slice(&patch.0).unwrap();
        json_patch::patch(&mut patched, &patch).unwrap();
    }
    patched
}

/// Mount paths of container `index` of `list`, in order.
pub(crate) fn mount_paths(pod: &Value, list: &str, index: usize) -> Vec<String> {
    pod["spec"][list][index]["volumeMounts"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|mount| mount["mountPath"].as_str().unwrap().to_owned())
        .collect()
}

/// An annotation of the pod.
pub(crate) fn annotation<'a>(pod: &'a Value, key: &str) -> Option<&'a str> {
    pod["metadata"]["annotations"][key].as_str()
}
