//! The webhook: two replicas behind a Service, the configuration that calls them, and the
//! least permission that self-managed certificates need.

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use lxcfs_common::pod;
use serde_json::{Value, json};

use super::{ManifestError, Options, cluster_meta, meta, pod_labels, policy, selector, typed};
use crate::mutate::{PodSecurity, SelectedBy};
use crate::review::Endpoint;

const NAME: &str = "lxcfs-webhook";
const SECRET: &str = "lxcfs-webhook-certificates";
const RBAC: &str = "rbac.authorization.k8s.io/v1";
const REVIEWS_PORT: u16 = 9443;
const HEALTH_PORT: u16 = 9444;

/// Certificates made, kept and rotated by the webhook itself.
pub fn self_managed(options: &Options) -> Result<Vec<Value>, ManifestError> {
    let secret = typed::<Secret>(json!({
        // Empty: the webhook fills it, and needs no permission to create one.
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": meta(options, SECRET, "webhook"),
    }))?;
    let mut objects = vec![account(options, true)?, secret];
    objects.extend(permissions(options)?);
    objects.extend(server(options, &[], None)?);
    objects.push(configuration(options, None)?);
    Ok(objects)
}

/// Certificates by cert-manager, which also keeps the caBundle.
pub fn cert_manager(options: &Options) -> Result<Vec<Value>, ManifestError> {
    let namespace = &options.namespace;
    // Types of cert-manager's own API, not part of Kubernetes.
    let issuer = json!({
        "apiVersion": "cert-manager.io/v1", "kind": "Issuer",
        "metadata": meta(options, NAME, "webhook"),
        "spec": {"selfSigned": {}},
    });
    let certificate = json!({
        "apiVersion": "cert-manager.io/v1", "kind": "Certificate",
        "metadata": meta(options, NAME, "webhook"),
        "spec": {
            "secretName": SECRET,
            "issuerRef": {"name": NAME, "kind": "Issuer"},
            "dnsNames": [format!("{NAME}.{namespace}.svc"), format!("{NAME}.{namespace}.svc.cluster.local")],
            "duration": "2160h", "renewBefore": "720h",
            "privateKey": {"algorithm": "ECDSA", "rotationPolicy": "Always"},
        },
    });
    let mut objects = vec![account(options, false)?, issuer, certificate];
    objects.extend(server(options, &["--tls-dir=/tls"], Some(SECRET))?);
    objects.push(configuration(
        options,
        Some(&format!("{namespace}/{NAME}")),
    )?);
    Ok(objects)
}

fn account(options: &Options, token: bool) -> Result<Value, ManifestError> {
    typed::<ServiceAccount>(json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": meta(options, NAME, "webhook"),
        "automountServiceAccountToken": token,
    }))
}

/// One Secret and one webhook configuration, both by name. Nothing else, and no namespace
/// or pod: what the webhook must know of them the API server tells it.
fn permissions(options: &Options) -> Result<Vec<Value>, ManifestError> {
    let subjects = json!([{
        "kind": "ServiceAccount", "name": NAME, "namespace": options.namespace,
    }]);
    let reference =
        |kind: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": NAME});
    Ok(vec![
        typed::<Role>(json!({
            "apiVersion": RBAC, "kind": "Role", "metadata": meta(options, NAME, "webhook"),
            "rules": [{
                "apiGroups": [""], "resources": ["secrets"], "resourceNames": [SECRET],
                "verbs": ["get", "update"],
            }],
        }))?,
        typed::<RoleBinding>(json!({
            "apiVersion": RBAC, "kind": "RoleBinding", "metadata": meta(options, NAME, "webhook"),
            "roleRef": reference("Role"), "subjects": subjects,
        }))?,
        typed::<ClusterRole>(json!({
            "apiVersion": RBAC, "kind": "ClusterRole", "metadata": cluster_meta(NAME, "webhook"),
            "rules": [{
                "apiGroups": ["admissionregistration.k8s.io"],
                "resources": ["mutatingwebhookconfigurations"], "resourceNames": [NAME],
                "verbs": ["get", "patch"],
            }],
        }))?,
        typed::<ClusterRoleBinding>(json!({
            "apiVersion": RBAC, "kind": "ClusterRoleBinding",
            "metadata": cluster_meta(NAME, "webhook"),
            "roleRef": reference("ClusterRole"), "subjects": subjects,
        }))?,
    ])
}

fn server(
    options: &Options,
    certificates: &[&str],
    secret: Option<&str>,
) -> Result<Vec<Value>, ManifestError> {
    let service = typed::<Service>(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": meta(options, NAME, "webhook"),
        "spec": {
            "selector": selector("webhook"),
            "ports": [{"name": "reviews", "port": 443, "targetPort": "reviews", "protocol": "TCP"}],
        },
    }))?;
    let budget = typed::<PodDisruptionBudget>(json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": meta(options, NAME, "webhook"),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector("webhook")}},
    }))?;
    let policy = typed::<NetworkPolicy>(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": meta(options, NAME, "webhook"),
        "spec": {
            "podSelector": {"matchLabels": selector("webhook")},
            // Out: only the API server, whose address differs by cluster; not limited here.
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [
                {"protocol": "TCP", "port": REVIEWS_PORT}, {"protocol": "TCP", "port": HEALTH_PORT},
            ]}],
        },
    }))?;
    Ok(vec![
        deployment(options, certificates, secret)?,
        service,
        budget,
        policy,
    ])
}

fn deployment(
    options: &Options,
    certificates: &[&str],
    secret: Option<&str>,
) -> Result<Value, ManifestError> {
    let mut command = vec![
        "lxcfs-webhook".to_owned(),
        "webhook".to_owned(),
        format!("--listen=0.0.0.0:{REVIEWS_PORT}"),
        format!("--admin-listen=0.0.0.0:{HEALTH_PORT}"),
    ];
    command.extend(certificates.iter().map(|word| (*word).to_owned()));
    command.extend(options.config_arguments());
    let probe = |path: &str| {
        json!({
            "httpGet": {"path": path, "port": "health"},
            "timeoutSeconds": 2, "periodSeconds": 5, "failureThreshold": 3,
        })
    };
    let mut container = json!({
        "name": "webhook",
        "image": options.image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "env": [{"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}],
        "ports": [
            {"name": "reviews", "containerPort": REVIEWS_PORT, "protocol": "TCP"},
            {"name": "health", "containerPort": HEALTH_PORT, "protocol": "TCP"},
        ],
        "resources": {
            "requests": {"cpu": "50m", "memory": "32Mi"},
            "limits": {"cpu": "500m", "memory": "64Mi"},
        },
        "readinessProbe": probe("/readyz"),
        "livenessProbe": probe("/livez"),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
    });
    let mut volumes = Vec::new();
    if let Some(secret) = secret {
        container["volumeMounts"] = json!([{"name": "tls", "mountPath": "/tls", "readOnly": true}]);
        volumes.push(json!({"name": "tls", "secret": {"secretName": secret}}));
    }
    let mut spec = json!({
        "serviceAccountName": NAME,
        "automountServiceAccountToken": secret.is_none(),
        "enableServiceLinks": false,
        "priorityClassName": "system-cluster-critical",
        "terminationGracePeriodSeconds": 30,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100,
            "podAffinityTerm": {
                "topologyKey": "kubernetes.io/hostname",
                "labelSelector": {"matchLabels": selector("webhook")},
            },
        }]}},
        "tolerations": [
            {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"},
        ],
        "containers": [container],
    });
    if !volumes.is_empty() {
        spec["volumes"] = volumes.into();
    }
    typed::<Deployment>(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta(options, NAME, "webhook"),
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": selector("webhook")},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": pod_labels("webhook")}, "spec": spec},
        },
    }))
}

/// One entry per selector; the path tells the server which one matched. The first layer
/// that keeps our own pods out is here, in `namespaceSelector` and `matchConditions`; the
/// second is the server's list of namespaces, the third its look at the pod's labels.
pub fn configuration(options: &Options, inject_from: Option<&str>) -> Result<Value, ManifestError> {
    let webhooks: Vec<Value> = Endpoint::ALL
        .into_iter()
        .map(|endpoint| entry(options, endpoint))
        .collect();
    let mut metadata = cluster_meta(NAME, "webhook");
    if let Some(certificate) = inject_from {
        metadata["annotations"] = json!({"cert-manager.io/inject-ca-from": certificate});
    }
    typed::<MutatingWebhookConfiguration>(json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": metadata,
        "webhooks": webhooks,
    }))
}

fn entry(options: &Options, endpoint: Endpoint) -> Value {
    let (selected, confined) = (
        endpoint.selected_by,
        endpoint.pod_security == PodSecurity::Confined,
    );
    let name = match (selected, confined) {
        (SelectedBy::Namespace, false) => "labelled.webhook.lxcfs",
        (SelectedBy::Namespace, true) => "labelled-confined.webhook.lxcfs",
        (SelectedBy::Pod, false) => "asked.webhook.lxcfs",
        (SelectedBy::Pod, true) => "asked-confined.webhook.lxcfs",
    };
    let label = if selected == SelectedBy::Namespace {
        "In"
    } else {
        "NotIn"
    };
    let enforced = if confined { "In" } else { "NotIn" };
    let mut conditions =
        vec![json!({"name": "not-lxcfs-itself", "expression": policy::not_our_pod()})];
    if selected == SelectedBy::Pod {
        conditions.push(json!({"name": "asked-for", "expression": policy::switched_on()}));
    }
    json!({
        "name": name,
        "clientConfig": {"service": {
            "name": NAME, "namespace": options.namespace, "path": endpoint.path(), "port": 443,
        }},
        "rules": [
            {
                "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"],
                "operations": ["CREATE"], "scope": "Namespaced",
            },
            {
                "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/ephemeralcontainers"],
                "operations": ["UPDATE"], "scope": "Namespaced",
            },
        ],
        "namespaceSelector": {"matchExpressions": [
            {"key": pod::NAMESPACE_LABEL, "operator": label, "values": [pod::NAMESPACE_LABEL_ON]},
            {"key": pod::POD_SECURITY_LABEL, "operator": enforced, "values": ["baseline", "restricted"]},
            {
                "key": "kubernetes.io/metadata.name", "operator": "NotIn",
                "values": options.config.excluded_namespaces,
            },
        ]},
        "matchConditions": conditions,
        "matchPolicy": "Equivalent",
        // A pod never waits for us and is never refused because of us; the node agent
        // repairs what was missed.
        "failurePolicy": "Ignore",
        "timeoutSeconds": 2,
        "reinvocationPolicy": "IfNeeded",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    })
}
