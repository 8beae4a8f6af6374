//! Scraping and alerts for clusters with the Prometheus operator. Its types are not part
//! of Kubernetes, so these objects are plain.

use serde_json::{Value, json};

use super::{ManifestError, Options, meta, selector};

/// A PodMonitor per kind of pod, and the alerts.
pub fn objects(options: &Options) -> Result<Vec<Value>, ManifestError> {
    let monitor = |name: &str, component: &str| {
        json!({
            "apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor",
            "metadata": meta(options, name, component),
            "spec": {
                "selector": {"matchLabels": selector(component)},
                "podMetricsEndpoints": [{"port": "health", "path": "/metrics"}],
            },
        })
    };
    Ok(vec![
        monitor("lxcfs-daemon", "daemon"),
        monitor("lxcfs-server", "server"),
        monitor("lxcfs-agent", "agent"),
        monitor("lxcfs-webhook", "webhook"),
        json!({
            "apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
            "metadata": meta(options, "lxcfs", "monitoring"),
            "spec": rules(),
        }),
    ])
}

/// The alert rules, in Prometheus's own form.
pub fn rules() -> Value {
    let rule = |alert: &str, expr: &str, wait: &str, severity: &str, summary: &str| {
        json!({
            "alert": alert, "expr": expr, "for": wait, "labels": {"severity": severity},
            "annotations": {"summary": summary},
        })
    };
    json!({"groups": [{"name": "lxcfs", "rules": [
        rule(
            "LxcfsMountDoesNotAnswer", "lxcfs_mount_answers == 0", "2m", "critical",
            "Containers on {{ $labels.instance }} wait for their /proc files",
        ),
        rule(
            "LxcfsStaleMounts", "lxcfs_stale_mounts > 0", "5m", "warning",
            "Containers on {{ $labels.instance }} hold dead mounts that were not healed",
        ),
        rule(
            "LxcfsWorkerRestarts", "increase(lxcfs_worker_deaths_total[15m]) > 3", "0m", "warning",
            "The worker on {{ $labels.instance }} keeps being replaced",
        ),
        rule(
            "LxcfsAttachFails",
            "rate(lxcfs_attach_failures_total{reason!~\"gone|not-served\"}[15m]) > 0", "15m",
            "warning", "Containers on {{ $labels.instance }} keep the host's view ({{ $labels.reason }})",
        ),
        rule(
            "LxcfsWebhookCertificateEnds",
            "lxcfs_webhook_certificate_expiry_timestamp_seconds - time() < 3 * 24 * 3600", "10m",
            "critical", "The webhook's certificate was not renewed",
        ),
        rule(
            "LxcfsWebhookNotTrusted", "lxcfs_webhook_ca_bundle_in_step == 0", "10m", "warning",
            "The API server may not trust the webhook: pods are left to the node agent",
        ),
        rule(
            "LxcfsWebhookFaults", "rate(lxcfs_webhook_faults_total[15m]) > 0", "15m", "warning",
            "The webhook gets reviews it cannot read ({{ $labels.kind }})",
        ),
    ]}]})
}
