//! The Helm chart, made from the same objects: values stand where the objects differ
//! between clusters, and each part is a template of its own behind a value.
//!
//! Templates use two constructs only, `{{ .Values.… }}` in text and one `if` around a
//! file, so that a test can render them without Helm and compare with the parts.

use std::collections::BTreeMap;

use super::{ManifestError, Options, Part, yaml};

/// What a part's value must be for it to be rendered: part, value, content.
pub const SWITCHES: &[(Part, &str, &str)] = &[
    (Part::AgentSimple, "agent.profile", "simple"),
    (
        Part::AgentLeastPrivilege,
        "agent.profile",
        "least-privilege",
    ),
    (Part::Webhook, "webhook.certificates", "self-managed"),
    (
        Part::WebhookCertManager,
        "webhook.certificates",
        "cert-manager",
    ),
    (Part::Policy, "policy.enabled", "true"),
    (Part::Monitoring, "monitoring.enabled", "true"),
];

/// Where a part's template is.
pub fn path(part: Part) -> String {
    format!("helm/lxcfs/templates/{}.yaml", part.name())
}

/// Path and content of the chart's files.
pub fn chart(options: &Options) -> Result<BTreeMap<String, String>, ManifestError> {
    let mut files = BTreeMap::new();
    for (part, value, wanted) in SWITCHES {
        // A value that may be a boolean or a word compares as text.
        let text = format!(
            "{{{{- if eq (toString .Values.{value}) \"{wanted}\" }}}}\n{}{{{{- end }}}}\n",
            template(*part, options)?
        );
        files.insert(path(*part), text);
    }
    let version = env!("CARGO_PKG_VERSION");
    files.insert(
        "helm/lxcfs/Chart.yaml".to_owned(),
        format!(
            "apiVersion: v2\nname: lxcfs\ntype: application\nversion: {version}\n\
             appVersion: {version:?}\n\
             description: Shows every container its own memory, CPUs, uptime and load\n\
             kubeVersion: '>=1.30.0-0'\n"
        ),
    );
    files.insert("helm/lxcfs/values.yaml".to_owned(), values(options));
    Ok(files)
}

/// The objects of a part with values in place of what differs.
fn template(part: Part, options: &Options) -> Result<String, ManifestError> {
    let marked = Options {
        namespace: "lxcfs-helm-namespace".to_owned(),
        image: "lxcfs-helm-image".to_owned(),
        config: crate::mutate::Config {
            mountpoint: "/lxcfs-helm-parent/lxcfs-helm-name".to_owned(),
            files: "lxcfs-helm-files".to_owned(),
            excluded_namespaces: options
                .config
                .excluded_namespaces
                .iter()
                .map(|name| match name == &options.namespace {
                    true => "lxcfs-helm-namespace".to_owned(),
                    false => name.clone(),
                })
                .collect(),
            ..options.config.clone()
        },
        ..options.clone()
    };
    // Braces of our own text (alerts) first, or Helm would read them.
    let text = yaml(&part.objects(&marked)?)?
        .replace("{{", "{{ \"{{\" }}")
        .replace("lxcfs-helm-namespace", "{{ .Release.Namespace }}")
        .replace("lxcfs-helm-image", "{{ .Values.image }}")
        .replace(
            "/lxcfs-helm-parent/lxcfs-helm-name",
            "{{ .Values.mountpoint }}",
        )
        .replace("/lxcfs-helm-parent", "{{ dir .Values.mountpoint }}")
        .replace("lxcfs-helm-files", "{{ .Values.files }}");
    Ok(text)
}

fn values(options: &Options) -> String {
    let Options { image, config, .. } = options;
    let mountpoint = &config.mountpoint;
    format!(
        "# Image with lxcfs and lxcfs-webhook.\n\
         image: {image}\n\
         # Where lxcfs is mounted on the nodes; pods of the agent mount its parent.\n\
         mountpoint: {mountpoint}\n\
         # Files of a pod that names none: meminfo,cpuinfo or -cpu,+node; see docs/kubernetes.md.\n\
         files: default\n\
         agent:\n  # simple, least-privilege or none\n  profile: simple\n\
         webhook:\n  # self-managed, cert-manager or none (no webhook)\n  certificates: none\n\
         policy:\n  # The same without a server; Kubernetes 1.36 and later.\n  enabled: false\n\
         monitoring:\n  # PodMonitors and alerts of the Prometheus operator.\n  enabled: false\n"
    )
}
