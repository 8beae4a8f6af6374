//! The command line: options as typed, and what they turn into.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lxcfs_common::pod;

use crate::certs::keeper::Names;
use crate::manifests::Options;
use crate::mutate::{Config, DEFAULT_MOUNTPOINT, EXCLUDED_NAMESPACES, Mode, Runtime};
use crate::server::Limits;

/// The Kubernetes parts of lxcfs.
#[derive(Debug, Parser)]
#[command(name = "lxcfs-webhook", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer the API server's admission reviews of pods
    Webhook(WebhookArgs),
    /// Print Kubernetes manifests, or write them as kustomize directories and a Helm chart
    Manifests(ManifestsArgs),
    /// Remove this node's start taint once the agent beside it is ready
    StartTaint(TaintArgs),
}

/// Options of `start-taint`.
#[derive(Args, Debug)]
#[command(after_help = "\
Runs beside the agent, in the pods that `lxcfs manifests --start-taint` makes. Nodes get the\n\
taint from their kubelet: --register-with-taints=lxcfs/not-ready=:NoSchedule. It is never set\n\
from here, and an agent that is not ready any more does not bring it back.")]
pub struct TaintArgs {
    /// The node
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node: String,
    /// The taint's key
    #[arg(long, default_value = pod::START_TAINT, value_name = "KEY")]
    pub taint: String,
    /// Where the agent's /readyz is
    #[arg(long, default_value = "127.0.0.1:9101", value_name = "ADDRESS")]
    pub agent: SocketAddr,
    /// How often a node without the taint is looked at again, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..))]
    pub check_seconds: u64,
}

/// Options of `manifests`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:\n  \
  lxcfs manifests simple | kubectl apply -f -\n  \
  lxcfs manifests --image registry.example/lxcfs:1 webhook | kubectl apply -f -\n  \
  lxcfs manifests --write deploy && kubectl apply -k deploy/kubernetes/overlays/webhook")]
pub struct ManifestsArgs {
    /// Overlays (simple, least-privilege, webhook, cert-manager, policy) or single parts
    #[arg(value_name = "NAME", required_unless_present = "write")]
    pub names: Vec<String>,
    /// Write everything below this directory instead of printing
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "names")]
    pub write: Option<PathBuf>,
    /// Image with lxcfs and lxcfs-webhook
    #[arg(long)]
    pub image: Option<String>,
    /// Namespace of everything that is ours
    #[arg(long, default_value = EXCLUDED_NAMESPACES[0])]
    pub namespace: String,
    /// The agent serves every container that does not say no, without being asked
    #[arg(long)]
    pub all: bool,
    /// The agent serves every pod of this namespace that does not say no; may be repeated
    #[arg(long = "serve-namespace", value_name = "NAMESPACE")]
    pub serve_namespaces: Vec<String>,
    /// The agent removes its node's taint lxcfs/not-ready when it is ready
    #[arg(long)]
    pub start_taint: bool,
    /// What the webhook and the policy decide by.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Options of `webhook`.
#[derive(Args, Debug)]
#[command(after_help = "\
Certificates are either self-managed (the default: kept and rotated in a Secret, trusted by\n\
patching the webhook configuration's caBundle) or, with --tls-dir, files that somebody else\n\
renews, such as cert-manager. Both are reloaded while serving.\n\n\
A pod speaks to lxcfs by annotations: lxcfs/inject, lxcfs/containers, lxcfs/files,\n\
lxcfs/container-files and lxcfs/mode; see docs/kubernetes.md.")]
pub struct WebhookArgs {
    /// Where reviews are answered, over TLS
    #[arg(long, default_value = "0.0.0.0:9443", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Where /livez, /readyz and /metrics are, plain
    #[arg(long, default_value = "0.0.0.0:9444", value_name = "ADDRESS")]
    pub admin_listen: SocketAddr,
    /// What decisions are made by.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Largest review read, in bytes; a larger one is answered "allowed, unchanged"
    #[arg(long, default_value_t = 8 << 20, value_name = "BYTES")]
    pub body_limit: usize,
    /// How long requests are still answered after SIGTERM, in seconds
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    pub drain_seconds: u64,
    /// Serve tls.crt and tls.key of this directory instead of self-managed certificates
    #[arg(long, value_name = "DIRECTORY")]
    pub tls_dir: Option<PathBuf>,
    /// Self-managed: namespace of the Secret and the Service
    #[arg(
        long,
        env = "POD_NAMESPACE",
        default_value = "lxcfs-system",
        value_name = "NAMESPACE"
    )]
    pub namespace: String,
    /// Self-managed: the Secret that keeps authority and certificate
    #[arg(
        long,
        default_value = "lxcfs-webhook-certificates",
        value_name = "NAME"
    )]
    pub tls_secret: String,
    /// Self-managed: the Service the API server calls
    #[arg(long, default_value = "lxcfs-webhook", value_name = "NAME")]
    pub service: String,
    /// Self-managed: the MutatingWebhookConfiguration whose caBundle is kept in step
    #[arg(long, default_value = "lxcfs-webhook", value_name = "NAME")]
    pub webhook_configuration: String,
    /// How often certificates are looked at, in seconds
    #[arg(long, default_value_t = 30, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..))]
    pub certificate_check_seconds: u64,
}

/// The cluster's choices, for the webhook and for the manifests alike.
#[derive(Args, Debug)]
pub struct ConfigArgs {
    /// Where lxcfs is mounted on every node
    #[arg(long, default_value = DEFAULT_MOUNTPOINT, value_name = "PATH")]
    pub mountpoint: String,
    /// mount: put volumes into the pod's spec; attach: only write the decision for the agent
    #[arg(long, value_enum, default_value_t = ModeArg::Mount)]
    pub mode: ModeArg,
    /// The nodes' runtime: runc refuses some files in a spec, those are left to the agent
    #[arg(long, value_enum, default_value_t = RuntimeArg::Runc)]
    pub runtime: RuntimeArg,
    /// Files of a pod that names none: a list like meminfo,cpuinfo or a change like -cpu,+node
    #[arg(
        long,
        default_value = "",
        allow_hyphen_values = true,
        value_name = "SELECTION"
    )]
    pub files: String,
    /// Files that the daemons do not serve (lxcfs --disable), whatever a pod asks for
    #[arg(long, default_value = "", value_name = "LIST")]
    pub disable: String,
    /// A namespace that is never touched; may be repeated
    #[arg(
        long = "exclude-namespace",
        default_values = EXCLUDED_NAMESPACES,
        value_name = "NAMESPACE"
    )]
    pub exclude_namespaces: Vec<String>,
    /// A runtime class that is never touched (a sandbox with its own kernel); may be repeated
    #[arg(long = "exclude-runtime-class", value_name = "CLASS")]
    pub exclude_runtime_classes: Vec<String>,
    /// All nodes run Linux 6.12 or later: pods with `hostUsers: false` can mount lxcfs too
    #[arg(long)]
    pub idmapped_mounts: bool,
}

/// `--mode`
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ModeArg {
    /// Volumes in the spec.
    Mount,
    /// The decision only.
    Attach,
}

/// `--runtime`
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RuntimeArg {
    /// runc
    Runc,
    /// crun
    Crun,
}

impl ConfigArgs {
    /// The cluster's choices.
    pub fn config(&self) -> Config {
        Config {
            mountpoint: self.mountpoint.clone(),
            mode: match self.mode {
                ModeArg::Mount => Mode::Mount,
                ModeArg::Attach => Mode::Attach,
            },
            runtime: match self.runtime {
                RuntimeArg::Runc => Runtime::Runc,
                RuntimeArg::Crun => Runtime::Crun,
            },
            files: self.files.clone(),
            disable: self.disable.clone(),
            excluded_namespaces: self.exclude_namespaces.clone(),
            excluded_runtime_classes: self.exclude_runtime_classes.clone(),
            idmapped_mounts: self.idmapped_mounts,
        }
    }
}

impl ManifestsArgs {
    /// What differs between clusters; our own namespace is always excluded.
    pub fn options(&self) -> Options {
        let mut config = self.config.config();
        let excluded = &mut config.excluded_namespaces;
        if !excluded.contains(&self.namespace) {
            excluded.retain(|name| name != EXCLUDED_NAMESPACES[0]);
            excluded.insert(0, self.namespace.clone());
        }
        let defaults = Options::default();
        Options {
            namespace: self.namespace.clone(),
            image: self.image.clone().unwrap_or(defaults.image),
            config,
            all: self.all,
            namespaces: self.serve_namespaces.clone(),
            start_taint: self.start_taint,
        }
    }
}

impl WebhookArgs {
    /// Bounds.
    pub fn limits(&self) -> Limits {
        Limits {
            body_bytes: self.body_limit,
            drain: Duration::from_secs(self.drain_seconds),
            ..Limits::default()
        }
    }

    /// Where self-managed certificates are kept.
    pub fn names(&self) -> Names {
        Names {
            namespace: self.namespace.clone(),
            secret: self.tls_secret.clone(),
            service: self.service.clone(),
            configuration: self.webhook_configuration.clone(),
        }
    }
}
