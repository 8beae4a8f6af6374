//! The optional start taint: one more container beside the agent, the only one of the pod with
//! a token, and the permission to read and patch nodes.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde_json::{Value, json};

use super::agent::AGENT_PORT;
use super::{ManifestError, Options, cluster_meta, typed};

const NAME: &str = "lxcfs-start-taint";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Adds it to the agent's objects when it is asked for.
pub(super) fn add(options: &Options, objects: &mut Vec<Value>) -> Result<(), ManifestError> {
    if !options.start_taint {
        return Ok(());
    }
    for object in objects.iter_mut() {
        if object["metadata"]["name"] != "lxcfs-agent" {
            continue;
        }
        match object["kind"].as_str() {
            Some("DaemonSet") => {
                let pod = &mut object["spec"]["template"]["spec"];
                push(&mut pod["containers"], container(options));
                push(&mut pod["volumes"], token());
                *object = typed::<DaemonSet>(object.take())?;
            }
            Some("NetworkPolicy") => {
                // Out: the API server, whose address differs by cluster.
                object["spec"]["policyTypes"] = json!(["Ingress"]);
                *object = typed::<NetworkPolicy>(object.take())?;
            }
            _ => {}
        }
    }
    objects.extend(permissions(options)?);
    Ok(())
}

fn push(list: &mut Value, value: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(value);
    }
}

fn container(options: &Options) -> Value {
    let resources = json!({"cpu": "10m", "memory": "32Mi"});
    json!({
        "name": "start-taint",
        "image": options.image,
        "imagePullPolicy": "IfNotPresent",
        "command": [
            "lxcfs-webhook", "start-taint", "--node=$(NODE_NAME)",
            format!("--agent=127.0.0.1:{AGENT_PORT}"),
        ],
        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        // As the others of the pod: Guaranteed.
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "token", "mountPath": TOKEN, "readOnly": true}],
    })
}

/// What `automountServiceAccountToken` would mount into every container, for this one alone.
fn token() -> Value {
    json!({"name": "token", "projected": {"defaultMode": 0o444, "sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {
            "name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}],
        }},
        {"downwardAPI": {
            "items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}],
        }},
    ]}})
}

/// Nodes cannot be told apart by RBAC: each agent may patch every node, and nothing else.
fn permissions(options: &Options) -> Result<[Value; 2], ManifestError> {
    const RBAC: &str = "rbac.authorization.k8s.io/v1";
    Ok([
        typed::<ClusterRole>(json!({
            "apiVersion": RBAC, "kind": "ClusterRole", "metadata": cluster_meta(NAME, "agent"),
            "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]}],
        }))?,
        typed::<ClusterRoleBinding>(json!({
            "apiVersion": RBAC, "kind": "ClusterRoleBinding",
            "metadata": cluster_meta(NAME, "agent"),
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME,
            },
            "subjects": [{
                "kind": "ServiceAccount", "name": "lxcfs-agent", "namespace": options.namespace,
            }],
        }))?,
    ])
}
