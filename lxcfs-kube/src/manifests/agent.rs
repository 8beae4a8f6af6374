//! The DaemonSets. In the simple profile one pod per node holds the daemon (a native sidecar, so
//! that it starts first and ends last) and the agent that gives containers their views. With
//! least privilege the daemon only holds the mount, and a server answers beside it.
//!
//! No lifecycle hooks and no shell: the daemon clears a dead mount itself, the agent heals
//! before it says it is ready. Nothing is copied to the host. Pods mount the *parent* of
//! the mountpoint, because a dead mountpoint could not be mounted again.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use lxcfs_common::pod;
use serde_json::{Value, json};

use super::{ManifestError, Options, labels, meta, pod_labels, selector, start_taint, typed};

/// Port of the daemon's probes and metrics.
pub const DAEMON_PORT: u16 = 9100;
/// Port of the agent's.
pub const AGENT_PORT: u16 = 9101;

/// One DaemonSet, everything privileged: works wherever privileged pods are allowed.
pub fn simple(options: &Options) -> Result<Vec<Value>, ManifestError> {
    let spec = pod_spec(
        options,
        vec![daemon(options)?],
        vec![agent(options, json!({"privileged": true}))?],
    )?;
    let update = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}});
    let mut objects = vec![
        account(options)?,
        daemon_set(options, "lxcfs-agent", "agent", spec, update)?,
        network_policy(options, "lxcfs-agent", "agent", &[DAEMON_PORT, AGENT_PORT])?,
    ];
    start_taint::add(options, &mut objects)?;
    Ok(objects)
}

/// Three DaemonSets: a privileged one that only holds the mount and that no update restarts by
/// itself, and two with named capabilities that may be updated at will without touching a mount.
pub fn least_privilege(options: &Options) -> Result<Vec<Value>, ManifestError> {
    let on_delete = json!({"type": "OnDelete"});
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}});
    // The next server takes over while the present one answers. Two agents at a time would put
    // the same mounts into a spec.
    let surge = json!({
        "type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    });
    let pod = |container: Value| pod_spec(options, Vec::new(), vec![container]);
    let agent = agent(options, confined(&pod::AGENT_CAPABILITIES))?;
    let mut objects = vec![
        account(options)?,
        daemon_set(
            options,
            "lxcfs-daemon",
            "daemon",
            pod(holder(options)?)?,
            on_delete,
        )?,
        daemon_set(
            options,
            "lxcfs-server",
            "server",
            pod(server(options)?)?,
            surge,
        )?,
        daemon_set(options, "lxcfs-agent", "agent", pod(agent)?, rolling)?,
        network_policy(options, "lxcfs-daemon", "daemon", &[])?,
        network_policy(options, "lxcfs-server", "server", &[DAEMON_PORT])?,
        network_policy(options, "lxcfs-agent", "agent", &[AGENT_PORT])?,
    ];
    start_taint::add(options, &mut objects)?;
    Ok(objects)
}

/// With these capabilities and no way to get others.
fn confined(capabilities: &[&str]) -> Value {
    json!({
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"], "add": capabilities},
        // The default profile forbids mount(2) and looking at processes of other profiles.
        "appArmorProfile": {"type": "Unconfined"},
        "seccompProfile": {"type": "RuntimeDefault"},
        "readOnlyRootFilesystem": true,
    })
}

fn account(options: &Options) -> Result<Value, ManifestError> {
    // No token: neither daemon nor agent speaks to the API server.
    typed::<ServiceAccount>(json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": meta(options, "lxcfs-agent", "agent"),
        "automountServiceAccountToken": false,
    }))
}

fn daemon_set(
    options: &Options,
    name: &str,
    component: &str,
    spec: Value,
    update: Value,
) -> Result<Value, ManifestError> {
    typed::<DaemonSet>(json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": meta(options, name, component),
        "spec": {
            "selector": {"matchLabels": selector(component)},
            "updateStrategy": update,
            "revisionHistoryLimit": 3,
            "template": {"metadata": {"labels": pod_labels(component)}, "spec": spec},
        },
    }))
}

fn pod_spec(
    options: &Options,
    sidecars: Vec<Value>,
    containers: Vec<Value>,
) -> Result<Value, ManifestError> {
    let mut spec = json!({
        "serviceAccountName": "lxcfs-agent",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        // Readers are processes of other pods: their cgroups are found by host pid.
        "hostPID": true,
        "priorityClassName": "system-node-critical",
        "terminationGracePeriodSeconds": 30,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        // Every node, also one under pressure or not ready yet.
        "tolerations": [{"operator": "Exists"}],
        "containers": containers,
        "volumes": [
            {"name": "mounts", "hostPath": {"path": options.parent()?, "type": "DirectoryOrCreate"}},
            {"name": "run", "hostPath": {"path": "/run/lxcfs", "type": "DirectoryOrCreate"}},
            {"name": "cgroup", "hostPath": {"path": "/sys/fs/cgroup", "type": "Directory"}},
            {"name": "nri", "hostPath": {"path": "/var/run/nri", "type": "DirectoryOrCreate"}},
        ],
    });
    if !sidecars.is_empty() {
        spec["initContainers"] = sidecars.into();
    }
    Ok(spec)
}

/// Holds the mount and serves it; holder and workers are its children.
fn daemon(options: &Options) -> Result<Value, ManifestError> {
    let command = answering(options, &["lxcfs"]);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let mut container = container(options, "daemon", &command, DAEMON_PORT, ("100m", "64Mi"));
    container["restartPolicy"] = "Always".into();
    mounting(options, &mut container)?;
    Ok(container)
}

/// Holds the mount for a server, and does nothing else.
fn holder(options: &Options) -> Result<Value, ManifestError> {
    let mountpoint = options.config.mountpoint.as_str();
    let command = ["lxcfs", "--workers=outside", mountpoint];
    let mut container = container(options, "daemon", &command, DAEMON_PORT, ("50m", "32Mi"));
    if let Some(fields) = container.as_object_mut() {
        // It listens to no network, and nothing that a server does may restart it.
        for name in ["ports", "startupProbe", "livenessProbe"] {
            fields.remove(name);
        }
    }
    container["readinessProbe"] = json!({
        "exec": {"command": ["lxcfs", "probe", mountpoint]},
        "timeoutSeconds": 3, "periodSeconds": 10, "failureThreshold": 3,
    });
    mounting(options, &mut container)?;
    Ok(container)
}

/// Answers for the holder; two workers, and a process that replaces them.
fn server(options: &Options) -> Result<Value, ManifestError> {
    let command = answering(options, &["lxcfs", "serve"]);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let mut container = container(options, "server", &command, DAEMON_PORT, ("100m", "64Mi"));
    if let Some(fields) = container.as_object_mut() {
        // While there is no holder it waits, and the kubelet's back-off would outlast that. The
        // holder finds out about workers that are stuck.
        for name in ["startupProbe", "livenessProbe"] {
            fields.remove(name);
        }
    }
    container["securityContext"] = confined(&pod::SERVER_CAPABILITIES);
    container["volumeMounts"] = json!([
        {"name": "mounts", "mountPath": options.parent()?, "mountPropagation": "HostToContainer"},
        {"name": "run", "mountPath": "/run/lxcfs"},
        {"name": "cgroup", "mountPath": "/sys/fs/cgroup", "readOnly": true},
    ]);
    Ok(container)
}

/// The command of whoever answers readers.
fn answering(options: &Options, program: &[&str]) -> Vec<String> {
    let mut command: Vec<String> = program.iter().map(|word| (*word).to_owned()).collect();
    command.push(format!("--metrics=0.0.0.0:{DAEMON_PORT}"));
    if !options.config.disable.is_empty() {
        command.push(format!("--disable={}", options.config.disable));
    }
    command.push(options.config.mountpoint.clone());
    command
}

/// What mounting takes: opening /dev/fuse and propagating a mount to the node are for privileged
/// containers.
fn mounting(options: &Options, container: &mut Value) -> Result<(), ManifestError> {
    container["securityContext"] = json!({"privileged": true, "readOnlyRootFilesystem": true});
    container["volumeMounts"] = json!([
        {"name": "mounts", "mountPath": options.parent()?, "mountPropagation": "Bidirectional"},
        {"name": "run", "mountPath": "/run/lxcfs"},
        {"name": "cgroup", "mountPath": "/sys/fs/cgroup", "readOnly": true},
    ]);
    Ok(())
}

/// Finds containers and gives them their views.
fn agent(options: &Options, security: Value) -> Result<Value, ManifestError> {
    let mut security = security;
    security["readOnlyRootFilesystem"] = true.into();
    let mut command = vec![
        "lxcfs".to_owned(),
        "agent".to_owned(),
        format!("--mount={}", options.config.mountpoint),
        format!("--metrics=0.0.0.0:{AGENT_PORT}"),
        // The kubelet's containers are the runtime's: NRI or the scan knows them.
        "--docker=off".to_owned(),
    ];
    if !options.config.files.is_empty() {
        command.push(format!("--files={}", options.config.files));
    }
    if options.all {
        command.push("--all".to_owned());
    }
    let served = options.namespaces.iter();
    command.extend(served.map(|name| format!("--namespace={name}")));
    let excluded = options.config.excluded_namespaces.iter();
    command.extend(excluded.map(|name| format!("--exclude-namespace={name}")));
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let mut container = container(options, "agent", &command, AGENT_PORT, ("50m", "64Mi"));
    container["securityContext"] = security;
    container["volumeMounts"] = json!([
        {"name": "mounts", "mountPath": options.parent()?, "mountPropagation": "HostToContainer"},
        {"name": "run", "mountPath": "/run/lxcfs"},
        {"name": "cgroup", "mountPath": "/sys/fs/cgroup", "readOnly": true},
        {"name": "nri", "mountPath": "/var/run/nri"},
    ]);
    Ok(container)
}

fn container(
    options: &Options,
    name: &str,
    command: &[&str],
    port: u16,
    (cpu, memory): (&str, &str),
) -> Value {
    let get = |path: &str| json!({"httpGet": {"path": path, "port": "health"}});
    let probe = |path: &str, period: u32, failures: u32| {
        let mut probe = get(path);
        // Longer than the deadline of the check itself.
        probe["timeoutSeconds"] = 3.into();
        probe["periodSeconds"] = period.into();
        probe["failureThreshold"] = failures.into();
        probe
    };
    json!({
        "name": name,
        "image": options.image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "ports": [{"name": "health", "containerPort": port, "protocol": "TCP"}],
        // Requests equal limits, CPU and memory: Guaranteed, last to be killed.
        "resources": {
            "requests": {"cpu": cpu, "memory": memory},
            "limits": {"cpu": cpu, "memory": memory},
        },
        "startupProbe": probe("/readyz", 1, 60),
        "readinessProbe": probe("/readyz", 10, 3),
        "livenessProbe": probe("/livez", 10, 6),
    })
}

fn network_policy(
    options: &Options,
    name: &str,
    component: &str,
    ports: &[u16],
) -> Result<Value, ManifestError> {
    let ports: Vec<_> = ports
        .iter()
        .map(|port| json!({"protocol": "TCP", "port": port}))
        .collect();
    // No ports in a rule would be all of them.
    let ingress = if ports.is_empty() {
        json!([])
    } else {
        json!([{"ports": ports}])
    };
    // Probes and scrapers in, nothing out.
    typed::<NetworkPolicy>(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": options.namespace, "labels": labels(component)},
        "spec": {
            "podSelector": {"matchLabels": selector(component)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
        },
    }))
}
