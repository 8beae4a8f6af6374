//! Owns one NRI session: registering with the runtime over its socket, answering its
//! calls in time, and handing containers to a [`Plugin`].
//!
//! It fails open: whatever goes wrong here, the runtime gets an empty answer within the
//! bound, and containers start. Everything read from the socket has a size limit.

pub mod api;
pub mod mux;
mod session;
pub mod ttrpc;
pub mod views;

#[cfg(test)]
mod tests;

pub use session::{Session, SessionOptions};

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum NriError {
    /// The runtime's socket failed or was never there.
    #[error("NRI socket: {0}")]
    Socket(#[source] std::io::Error),
    /// The peer does not speak the protocol.
    #[error("NRI peer breaks the protocol: {0}")]
    Protocol(&'static str),
    /// The runtime does not want this plugin.
    #[error("the runtime refuses the plugin: {0}")]
    Refused(String),
    /// The runtime accepted the connection and then said nothing.
    #[error("the runtime did not configure the plugin in time")]
    NotConfigured,
}

impl NriError {
    /// The metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Socket(err) if err.kind() == std::io::ErrorKind::NotFound => "absent",
            Self::Socket(_) => "socket",
            Self::Protocol(_) => "protocol",
            Self::Refused(_) => "refused",
            Self::NotConfigured => "silent",
        }
    }
}

/// What is done with containers the runtime tells about. Every method must return soon;
/// it is given up after the session's bound.
pub trait Plugin: Send + Sync + 'static {
    /// The session is up.
    fn configured(&self, runtime: &api::ConfigureRequest);
    /// Everything that exists; called once per session.
    fn synchronize(&self, pods: Vec<api::PodSandbox>, containers: Vec<api::Container>);
    /// A container is about to be created: mounts for its spec.
    fn create(&self, pod: &api::PodSandbox, container: &api::Container) -> Vec<api::Mount>;
    /// A container exists and its program waits.
    fn start(&self, pod: &api::PodSandbox, container: &api::Container);
    /// A call was answered without the plugin, for this reason.
    fn gave_up(&self, reason: &'static str);
}
