//! Owns the node agent: learning of containers from whatever the node offers (NRI, Docker
//! events, a scan of all processes), deciding by policy, and attaching. Nothing here can
//! keep a container from starting.

pub mod attacher;
pub mod docker;
pub mod hook;
pub mod nri;
pub mod policy;
