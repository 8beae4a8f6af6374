//! The Kubernetes parts: the admission webhook, its certificates, the policy pack that
//! does the same without a server, and the manifests of all of it.
//!
//! Policy lives here, in the API; the mounts are the node agent's work. The privileged
//! daemon depends on nothing in this crate.

pub mod certs;
pub mod cli;
pub mod manifests;
pub mod mutate;
pub mod review;
pub mod run;
pub mod server;
pub mod taint;

/// An error with all its causes on one line, for a log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
