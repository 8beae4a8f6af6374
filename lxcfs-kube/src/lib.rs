//! Admission webhook, policies and manifests for Kubernetes.
