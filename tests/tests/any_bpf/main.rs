//! The eBPF collector on the running kernel, against the kernel's own figures.
//!
//! Wants root in the initial PID and user namespaces and a mounted cgroup v2 hierarchy; a
//! lack of either is a failure that says so. No controller needs to be enabled. Runs the
//! same natively and in the virtual machines of `cargo xtask vm`.
// vm: all/v2

mod block;
mod containers;
mod cpu;
mod programs;
mod tasks;
