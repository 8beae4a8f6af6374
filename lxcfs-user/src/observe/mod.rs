//! What the daemon tells about itself: log lines, metrics, health, and the control socket
//! that `lxcfs status` and `lxcfs log-level` speak to.
//!
//! Nothing here is on the path of a read but the counters of [`requests`], which are plain
//! atomics. Everything else belongs to the control side and may wait, fail or be absent
//! without a reader noticing.

pub mod client;
pub mod holder;
pub mod http;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod probe;
pub mod requests;
pub mod sources;
