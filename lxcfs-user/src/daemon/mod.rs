//! Wiring: what `lxcfs MOUNTPOINT` and its worker are made of, and nothing else.
//!
//! [`launch`] turns the process that was started into the holder; the holder starts
//! [`worker`]s, or [`server`] does elsewhere. [`ebpf`] plugs the eBPF collector into the engine,
//! field by field; [`saved`] is what one worker leaves to the next, and `keep` sees to it that it
//! is left.

pub mod ebpf;
mod keep;
pub mod launch;
pub mod parts;
pub mod pidfile;
pub mod saved;
pub mod server;
pub mod worker;
