//! Everything the `lxcfs` binary does, in layers; each imports only from those above it.
//!
//! `units`, `cpuset`, `snapshot` (data) — `host`, `cgroup` (parse; read) — `history`,
//! `view` (pure) — `container`, `collect` (gather) — `vfs`, `fuse` (serve) — `daemon`,
//! `cli` (wire). ARCHITECTURE.md draws the map.

pub mod agent;
pub mod attach;
pub mod bpf;
pub mod cgroup;
pub mod cli;
pub mod collect;
pub mod config;
pub mod container;
pub mod cpuset;
pub mod daemon;
pub mod engine;
pub mod fallback;
pub mod fuse;
pub mod history;
pub mod host;
pub mod mountinfo;
pub mod observe;
pub mod policy;
pub mod snapshot;
pub mod units;
pub mod vfs;
pub mod view;
pub mod worker;
