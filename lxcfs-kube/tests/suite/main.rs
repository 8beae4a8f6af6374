//! Tests of the Kubernetes parts, one binary so that they link once.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod api;
mod common;
mod complete;
mod generated;
mod manifests;
mod mutation;
mod process;
mod programs;
mod taint;
mod wire;
