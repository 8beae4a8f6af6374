//! Owns the messages of NRI's protocol `nri.pkg.api.v1alpha1` that this plugin reads or
//! writes; fields it has no use for are left out and skipped when decoding.

use std::collections::HashMap;

/// The service the runtime calls.
pub const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
/// The service the plugin calls.
pub const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";

/// Events a plugin can subscribe to; bit N-1 of the mask stands for number N.
pub mod event {
    /// Before a container is created: the spec can be changed.
    pub const CREATE_CONTAINER: i32 = 4;
    /// The container exists and its program has not started.
    pub const START_CONTAINER: i32 = 6;

    /// The mask of some events.
    pub const fn mask(events: &[i32]) -> i32 {
        let (mut mask, mut at) = (0, 0);
        while at < events.len() {
            mask |= 1 << (events[at] - 1);
            at += 1;
        }
        mask
    }
}

/// No fields.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Empty {}

/// `Runtime.RegisterPlugin`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegisterPluginRequest {
    /// Name, letters and dashes.
    #[prost(string, tag = "1")]
    pub plugin_name: String,
    /// Two digits: the order in which plugins are called.
    #[prost(string, tag = "2")]
    pub plugin_idx: String,
}

/// `Plugin.Configure`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfigureRequest {
    /// Configuration found under the plugin's name.
    #[prost(string, tag = "1")]
    pub config: String,
    /// For instance `containerd`.
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    /// Its version.
    #[prost(string, tag = "3")]
    pub runtime_version: String,
    /// Time a request may take, in milliseconds.
    #[prost(int64, tag = "5")]
    pub request_timeout: i64,
}

/// Answer to `Plugin.Configure`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ConfigureResponse {
    /// Mask of events wanted.
    #[prost(int32, tag = "2")]
    pub events: i32,
}

/// `Plugin.Synchronize`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SynchronizeRequest {
    /// Pods that exist.
    #[prost(message, repeated, tag = "1")]
    pub pods: Vec<PodSandbox>,
    /// Containers that exist.
    #[prost(message, repeated, tag = "2")]
    pub containers: Vec<Container>,
    /// Another part follows.
    #[prost(bool, tag = "3")]
    pub more: bool,
}

/// Answer to `Plugin.Synchronize`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct SynchronizeResponse {
    /// Parts are understood.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// `Plugin.CreateContainer` and, with the same first fields, `Plugin.StartContainer`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerRequest {
    /// Its pod.
    #[prost(message, optional, tag = "1")]
    pub pod: Option<PodSandbox>,
    /// The container.
    #[prost(message, optional, tag = "2")]
    pub container: Option<Container>,
}

/// `Plugin.StateChange`: how runtimes up to NRI 0.9 tell of a start.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StateChangeEvent {
    /// One of [`event`].
    #[prost(int32, tag = "1")]
    pub event: i32,
    /// Its pod.
    #[prost(message, optional, tag = "2")]
    pub pod: Option<PodSandbox>,
    /// The container, for container events.
    #[prost(message, optional, tag = "3")]
    pub container: Option<Container>,
}

/// Answer to `Plugin.CreateContainer`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateContainerResponse {
    /// Changes to the new container's spec.
    #[prost(message, optional, tag = "1")]
    pub adjust: Option<ContainerAdjustment>,
}

/// Changes to a spec.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerAdjustment {
    /// Mounts to add.
    #[prost(message, repeated, tag = "3")]
    pub mounts: Vec<Mount>,
}

/// A pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSandbox {
    /// The runtime's id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Name in Kubernetes.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Namespace in Kubernetes.
    #[prost(string, tag = "4")]
    pub namespace: String,
    /// Labels.
    #[prost(map = "string, string", tag = "5")]
    pub labels: HashMap<String, String>,
    /// Annotations.
    #[prost(map = "string, string", tag = "6")]
    pub annotations: HashMap<String, String>,
}

/// A container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Container {
    /// The runtime's id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Id of its pod.
    #[prost(string, tag = "2")]
    pub pod_sandbox_id: String,
    /// Name in the pod.
    #[prost(string, tag = "3")]
    pub name: String,
    /// One of [`state`].
    #[prost(int32, tag = "4")]
    pub state: i32,
    /// Labels.
    #[prost(map = "string, string", tag = "5")]
    pub labels: HashMap<String, String>,
    /// Annotations.
    #[prost(map = "string, string", tag = "6")]
    pub annotations: HashMap<String, String>,
    /// Mounts of its spec.
    #[prost(message, repeated, tag = "9")]
    pub mounts: Vec<Mount>,
    /// Its init, by the host's numbers; 0 before it exists.
    #[prost(uint32, tag = "12")]
    pub pid: u32,
}

/// States of a container.
pub mod state {
    /// Paused.
    pub const PAUSED: i32 = 2;
    /// Running.
    pub const RUNNING: i32 = 3;
    /// Ended.
    pub const STOPPED: i32 = 4;
}

/// A mount of a spec.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    /// Path in the container.
    #[prost(string, tag = "1")]
    pub destination: String,
    /// File system type; `bind` here.
    #[prost(string, tag = "2")]
    pub r#type: String,
    /// Path on the host.
    #[prost(string, tag = "3")]
    pub source: String,
    /// Mount options.
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}
