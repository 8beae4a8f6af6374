//! What can go wrong while the collector runs.

use std::io;

use super::feature::Feature;

/// Why the collector has no answer. Callers fall back to cgroup files and count it.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The feature is off on this machine; the start-up report says why.
    #[error("{0} is off")]
    Off(Feature),
    /// A system call failed.
    #[error("{call}")]
    System {
        /// What was being done.
        call: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An eBPF program gave up.
    #[error("the eBPF program {program} returned {code}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What it returned.
        code: i32,
    },
}

impl BpfError {
    pub(super) fn system(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { call, source }
    }

    /// For errors of aya, whose types stay inside this module.
    pub(super) fn library(
        call: &'static str,
    ) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Self {
        move |source| Self::System {
            call,
            source: io::Error::other(source),
        }
    }
}
