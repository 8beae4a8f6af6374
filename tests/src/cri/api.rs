//! Owns the messages of the container runtime interface (`runtime.v1`) that the tests send or
//! read; fields they have no use for are left out.

use std::collections::HashMap;

/// `NamespaceMode`.
pub mod mode {
    /// Shared by the pod's containers.
    pub const POD: i32 = 0;
    /// The container's own.
    pub const CONTAINER: i32 = 1;
    /// The node's.
    pub const NODE: i32 = 2;
}

/// No fields.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Empty {}

/// What a pod is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSandboxConfig {
    /// Its names.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodSandboxMetadata>,
    /// Where its containers' logs go.
    #[prost(string, tag = "3")]
    pub log_directory: String,
    /// Its annotations.
    #[prost(map = "string, string", tag = "7")]
    pub annotations: HashMap<String, String>,
    /// What only Linux has.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandboxConfig>,
}

/// A pod's names.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSandboxMetadata {
    /// In its namespace.
    #[prost(string, tag = "1")]
    pub name: String,
    /// In the cluster.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Of Kubernetes.
    #[prost(string, tag = "3")]
    pub namespace: String,
}

/// A pod on Linux.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxPodSandboxConfig {
    /// The cgroup that holds its containers' own.
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
    /// How its first container is confined.
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<LinuxSandboxSecurityContext>,
}

/// How a pod's first container is confined.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxSandboxSecurityContext {
    /// Its namespaces.
    #[prost(message, optional, tag = "1")]
    pub namespace_options: Option<NamespaceOption>,
    /// Its user.
    #[prost(message, optional, tag = "3")]
    pub run_as_user: Option<Int64Value>,
    /// Nothing can be written.
    #[prost(bool, tag = "4")]
    pub readonly_rootfs: bool,
    /// Its system call filter.
    #[prost(message, optional, tag = "9")]
    pub seccomp: Option<SecurityProfile>,
}

/// Namespaces, each a [`mode`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct NamespaceOption {
    /// Network.
    #[prost(int32, tag = "1")]
    pub network: i32,
    /// Processes.
    #[prost(int32, tag = "2")]
    pub pid: i32,
    /// Users; none for the node's.
    #[prost(message, optional, tag = "5")]
    pub userns_options: Option<UserNamespace>,
}

/// A user namespace.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UserNamespace {
    /// [`mode::POD`] or [`mode::NODE`].
    #[prost(int32, tag = "1")]
    pub mode: i32,
    /// Users.
    #[prost(message, repeated, tag = "2")]
    pub uids: Vec<IdMapping>,
    /// Groups.
    #[prost(message, repeated, tag = "3")]
    pub gids: Vec<IdMapping>,
}

/// A range of a user namespace's map.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct IdMapping {
    /// First one on the node.
    #[prost(uint32, tag = "1")]
    pub host_id: u32,
    /// First one inside.
    #[prost(uint32, tag = "2")]
    pub container_id: u32,
    /// How many.
    #[prost(uint32, tag = "3")]
    pub length: u32,
}

/// A system call filter; the default is the runtime's.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SecurityProfile {
    /// 0: the runtime's default.
    #[prost(int32, tag = "1")]
    pub profile_type: i32,
}

/// A number that may be absent.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Int64Value {
    /// The number.
    #[prost(int64, tag = "1")]
    pub value: i64,
}

/// `RunPodSandbox`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RunPodSandboxRequest {
    /// The pod.
    #[prost(message, optional, tag = "1")]
    pub config: Option<PodSandboxConfig>,
    /// The name of a runtime in containerd's configuration.
    #[prost(string, tag = "2")]
    pub runtime_handler: String,
}

/// A pod or a container by its id: answers of `RunPodSandbox` and `CreateContainer`, requests of
/// `StartContainer`, `StopPodSandbox` and `RemovePodSandbox`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Id {
    /// The id.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `CreateContainer`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateContainerRequest {
    /// Its pod.
    #[prost(string, tag = "1")]
    pub pod_sandbox_id: String,
    /// What it is.
    #[prost(message, optional, tag = "2")]
    pub config: Option<ContainerConfig>,
    /// What its pod is.
    #[prost(message, optional, tag = "3")]
    pub sandbox_config: Option<PodSandboxConfig>,
}

/// What a container is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerConfig {
    /// Its name.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ContainerMetadata>,
    /// Its image.
    #[prost(message, optional, tag = "2")]
    pub image: Option<ImageSpec>,
    /// Its program.
    #[prost(string, repeated, tag = "3")]
    pub command: Vec<String>,
    /// Its arguments.
    #[prost(string, repeated, tag = "4")]
    pub args: Vec<String>,
    /// Where its output goes, below the pod's directory.
    #[prost(string, tag = "11")]
    pub log_path: String,
    /// What only Linux has.
    #[prost(message, optional, tag = "15")]
    pub linux: Option<LinuxContainerConfig>,
}

/// A container's name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerMetadata {
    /// In its pod.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// An image.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageSpec {
    /// Its name.
    #[prost(string, tag = "1")]
    pub image: String,
}

/// A container on Linux.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxContainerConfig {
    /// Its limits.
    #[prost(message, optional, tag = "1")]
    pub resources: Option<LinuxContainerResources>,
    /// How it is confined.
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<LinuxContainerSecurityContext>,
}

/// Limits.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct LinuxContainerResources {
    /// Period in microseconds.
    #[prost(int64, tag = "1")]
    pub cpu_period: i64,
    /// CPU time per period, in microseconds.
    #[prost(int64, tag = "2")]
    pub cpu_quota: i64,
    /// Memory, in bytes.
    #[prost(int64, tag = "4")]
    pub memory_limit_in_bytes: i64,
}

/// How a container is confined.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxContainerSecurityContext {
    /// Its capabilities.
    #[prost(message, optional, tag = "1")]
    pub capabilities: Option<Capability>,
    /// Its namespaces.
    #[prost(message, optional, tag = "3")]
    pub namespace_options: Option<NamespaceOption>,
    /// Its user.
    #[prost(message, optional, tag = "5")]
    pub run_as_user: Option<Int64Value>,
    /// Nothing can be written.
    #[prost(bool, tag = "7")]
    pub readonly_rootfs: bool,
    /// No set-user-ID program helps.
    #[prost(bool, tag = "11")]
    pub no_new_privs: bool,
    /// Files that are hidden.
    #[prost(string, repeated, tag = "13")]
    pub masked_paths: Vec<String>,
    /// Files that cannot be written.
    #[prost(string, repeated, tag = "14")]
    pub readonly_paths: Vec<String>,
    /// Its system call filter.
    #[prost(message, optional, tag = "15")]
    pub seccomp: Option<SecurityProfile>,
}

/// Capabilities beside the runtime's default ones.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Capability {
    /// Taken away; `ALL` for all.
    #[prost(string, repeated, tag = "2")]
    pub drop_capabilities: Vec<String>,
}

/// `UpdateContainerResources`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateContainerResourcesRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Its new limits.
    #[prost(message, optional, tag = "2")]
    pub linux: Option<LinuxContainerResources>,
}

/// `ExecSync`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecSyncRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Program and arguments.
    #[prost(string, repeated, tag = "2")]
    pub cmd: Vec<String>,
    /// Most time it may take, in seconds.
    #[prost(int64, tag = "3")]
    pub timeout: i64,
}

/// Answer to `ExecSync`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecSyncResponse {
    /// Its output.
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    /// Its errors.
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    /// Its exit status.
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
}
