//! Plain types that cross a boundary: between the kernel's eBPF side and userspace
//! (records, configuration), and between the daemon and everything that has to name a
//! virtual file without being the daemon (attach, webhook, manifests, docs).
//!
//! Nothing here does I/O and nothing here allocates.
#![no_std]

pub mod bpf;
pub mod catalogue;
pub mod pod;
