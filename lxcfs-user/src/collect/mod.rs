//! Gathers a [`Snapshot`](crate::snapshot::Snapshot) of a container and answers requests
//! with it.
//!
//! [`collector`] reads, from the cgroups, the host and what [`source`] plugs in; [`store`]
//! keeps what has memory; [`sampler`] runs on the kernel's 5 s grid; [`single_flight`]
//! shares an answer among readers; [`live`] is the engine made of all this; [`explain`] is
//! for `lxcfs show`.

pub mod collector;
pub mod explain;
pub mod live;
pub mod sampler;
pub mod single_flight;
pub mod source;
pub mod store;
pub mod tasks;
