//! The Kubernetes parts: the admission webhook, its certificates, the policy pack that
//! does the same without a server, and the manifests of all of it.
//!
//! Policy lives here, in the API; the mounts are the node agent's work. The privileged
//! daemon depends on nothing in this crate.

pub mod mutate;
