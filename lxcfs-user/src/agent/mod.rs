//! Owns the node agent: learning of containers from whatever the node offers (NRI, Docker
//! events, the kernel's own word by eBPF, a scan of all processes), deciding by policy, and attaching. Nothing here can
//! keep a container from starting.
//!
//! All sources work side by side. The runtimes' own word comes first, because it carries
//! labels and annotations and comes before a program starts; the scan finds what nobody
//! tells of, and heals.

pub mod attacher;
pub mod docker;
mod events;
pub mod health;
pub mod hook;
pub mod known;
pub mod nri;
pub mod policy;
mod run;

pub use attacher::{Attacher, Job, Method};
pub use policy::{AgentPolicy, Decision, Reason, Subject};
pub use run::{Agent, AgentOptions};
