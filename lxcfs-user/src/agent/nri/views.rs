//! Owns what the plugin does: mounts for a new container's spec where the runtime allows
//! them, everything else by attaching before its program starts, and healing what runs.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Plugin, api};
use crate::agent::attacher::{Attacher, Job, Method};
use crate::agent::known::Known;
use crate::agent::policy::{AgentPolicy, Decision, Subject};
use crate::attach::{AttachError, Selection, Target};
use crate::policy::CpuPolicy;

/// The plugin of this project.
#[derive(Debug)]
pub struct Views {
    /// What attaches.
    pub attacher: Arc<Attacher>,
    /// What is told here also goes for the scan.
    pub known: Arc<Known>,
    /// Who is served.
    pub policy: AgentPolicy,
    /// The daemon's mountpoint as the runtime sees it; the agent may see it elsewhere.
    pub host_mountpoint: PathBuf,
    /// Whether to add mounts to specs. Without, everything is attached at the start, and no
    /// spec ever depends on the daemon.
    pub mounts_in_spec: bool,
}

/// What the runtime tells, in the policy's terms.
fn subject(pod: &api::PodSandbox, container: &api::Container) -> Subject {
    Subject {
        name: container.name.clone(),
        namespace: pod.namespace.clone(),
        labels: Subject::join(&pod.labels, &container.labels),
        annotations: Subject::join(&pod.annotations, &container.annotations),
        cgroup: String::new(),
    }
}

impl Views {
    fn decide(
        &self,
        pod: &api::PodSandbox,
        container: &api::Container,
    ) -> (Decision, Option<CpuPolicy>) {
        let subject = subject(pod, container);
        let decision = self.policy.decide(&subject);
        let cpus = self.attacher.cpus_of(&subject);
        self.known.remember(&container.id, &decision, cpus);
        (decision, cpus)
    }

    fn target(&self, container: &api::Container) -> Result<Target, AttachError> {
        if container.pid == 0 {
            return self.attacher.find(&container.id);
        }
        Ok(Target::process(container.pid))
    }

    fn carry_out(&self, jobs: Vec<Job>) {
        match self.attacher.carry_out(jobs, Method::Nri) {
            Ok(report) => {
                for container in &report.containers {
                    if let Some(error) = &container.error {
                        tracing::warn!(pid = container.pid, %error, "container not attached");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "nothing attached"),
        }
    }
}

/// The mounts a spec needs for `files`, without those where the container has its own.
fn mounts(
    files: &Selection,
    container: &api::Container,
    from: &std::path::Path,
) -> Vec<api::Mount> {
    files
        .entries()
        .map(|entry| (format!("/{}", entry.path), entry))
        .filter(|(destination, _)| {
            let taken = |mount: &api::Mount| {
                let theirs = mount.destination.trim_end_matches('/');
                // A mount above or below ours would be hidden by it, or hide it.
                theirs == destination
                    || theirs
                        .strip_prefix(destination.as_str())
                        .is_some_and(|rest| rest.starts_with('/'))
            };
            !container.mounts.iter().any(taken)
        })
        .map(|(destination, entry)| api::Mount {
            destination,
            r#type: "bind".into(),
            source: from.join(entry.path).to_string_lossy().into_owned(),
            options: ["bind", "ro", "nosuid", "nodev", "noexec"]
                .map(str::to_owned)
                .to_vec(),
        })
        .collect()
}

impl Plugin for Views {
    fn configured(&self, runtime: &api::ConfigureRequest) {
        tracing::info!(
            runtime = %runtime.runtime_name,
            version = %runtime.runtime_version,
            "connected to the runtime's NRI"
        );
    }

    fn synchronize(&self, pods: Vec<api::PodSandbox>, containers: Vec<api::Container>) {
        let pods: HashMap<&str, &api::PodSandbox> =
            pods.iter().map(|pod| (pod.id.as_str(), pod)).collect();
        let none = api::PodSandbox::default();
        let jobs = containers
            .iter()
            .filter(|found| found.state != api::state::STOPPED)
            .filter_map(|container| {
                let pod = pods.get(container.pod_sandbox_id.as_str());
                let (decision, cpus) = self.decide(pod.copied().unwrap_or(&none), container);
                let target = self.target(container).ok()?;
                Some(Job {
                    target,
                    decision,
                    cpus,
                })
            })
            .collect();
        self.carry_out(jobs);
        self.known.nri.store(true, Ordering::Relaxed);
    }

    fn create(&self, pod: &api::PodSandbox, container: &api::Container) -> Vec<api::Mount> {
        let (decision, _) = self.decide(pod, container);
        match decision {
            Decision::Leave(_) => Vec::new(),
            Decision::Attach(_) if !self.mounts_in_spec => Vec::new(),
            // Only what is there now: a missing source would keep the container from
            // starting. The rest is attached at the start.
            Decision::Attach(files) => {
                let files = self.attacher.served(&files.allowed_by_runc());
                mounts(&files, container, &self.host_mountpoint)
            }
        }
    }

    fn start(&self, pod: &api::PodSandbox, container: &api::Container) {
        let (decision, cpus) = self.decide(pod, container);
        if let (Decision::Leave(reason), None) = (&decision, cpus) {
            return self.attacher.skip(*reason);
        }
        match self.target(container) {
            Ok(target) => self.carry_out(vec![Job {
                target,
                decision,
                cpus,
            }]),
            Err(error) => {
                self.attacher.skip_as("unknown-process");
                tracing::warn!(container = %container.id, %error, "container not attached");
            }
        }
    }

    fn gave_up(&self, reason: &'static str) {
        self.attacher.skip_as(reason);
        tracing::warn!(reason, "answered the runtime without the plugin");
    }
}
