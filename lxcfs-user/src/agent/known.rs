//! Owns what runtimes have told about containers, so that the scan, which sees only
//! processes, does not decide differently.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::policy::{AgentPolicy, Decision, Reason, Subject};
use crate::attach::Discovered;
use crate::attach::identity::Runtime;
use crate::policy::CpuPolicy;

/// What a runtime's word about a container came to.
#[derive(Debug)]
struct Told {
    decision: Decision,
    cpus: Option<CpuPolicy>,
    /// The scan that saw the container last.
    seen: u64,
}

#[derive(Debug, Default)]
struct Entries {
    /// By container id.
    decisions: BTreeMap<String, Told>,
    scan: u64,
}

/// Decisions made from labels and annotations, by container id.
#[derive(Debug, Default)]
pub struct Known {
    entries: Mutex<Entries>,
    /// Whether the runtime's NRI tells of every container.
    pub nri: AtomicBool,
    /// Whether dockerd tells of every container.
    pub docker: AtomicBool,
    /// Whether the kernel tells of containers that start.
    pub events: AtomicBool,
}

/// Scans a container may be absent from before it is forgotten: a runtime tells of it
/// before it has a process.
const PATIENCE: u64 = 3;

impl Known {
    /// Remembers a decision, and the rule for its CPUs that the container asked for.
    pub fn remember(&self, id: &str, decision: &Decision, cpus: Option<CpuPolicy>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let scan = entries.scan;
        let told = Told {
            decision: decision.clone(),
            cpus,
            seen: scan,
        };
        entries.decisions.insert(id.to_owned(), told);
    }

    /// The rule that a container asked for, from the same word.
    pub fn cpus(&self, found: &Discovered) -> Option<CpuPolicy> {
        let id = &found.container.as_ref()?.id;
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.decisions.get(id)?.cpus
    }

    /// Decides for what a scan found. A container whose runtime is being listened to, and
    /// has not told of it yet, is left to that runtime's word.
    pub fn decide(&self, found: &Discovered, policy: &AgentPolicy) -> Decision {
        let subject = Subject {
            cgroup: first_path(&found.cgroup),
            ..Subject::default()
        };
        let Some(container) = &found.container else {
            // Services with a mount namespace of their own are nobody's container.
            let named = AgentPolicy {
                all: false,
                ..policy.clone()
            };
            return named.decide(&subject);
        };
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let scan = entries.scan;
        if let Some(told) = entries.decisions.get_mut(&container.id) {
            told.seen = scan;
            return told.decision.clone();
        }
        let told = match container.runtime {
            Runtime::Docker => self.docker.load(Ordering::Relaxed),
            Runtime::Containerd | Runtime::Crio | Runtime::Kubernetes => {
                self.nri.load(Ordering::Relaxed)
            }
            Runtime::Podman | Runtime::Lxc => false,
        };
        if told {
            return Decision::Leave(Reason::NotAsked);
        }
        policy.decide(&subject)
    }

    /// A scan begins: containers not seen for a while are forgotten.
    pub fn next_scan(&self) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.scan += 1;
        let oldest = entries.scan.saturating_sub(PATIENCE);
        entries.decisions.retain(|_, told| told.seen >= oldest);
    }
}

/// The longest path of `/proc/PID/cgroup`: the hierarchy a runtime really uses.
fn first_path(cgroup: &str) -> String {
    let paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.max_by_key(|path| path.len()).unwrap_or("").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::discover::MountNs;
    use crate::attach::identity::of_cgroup_path;

    const ID: &str = "6b7a1e3f0c5d49e28a11bb22cc33dd44ee55ff660718293a4b5c6d7e8f901234";

    fn found(path: &str) -> Discovered {
        let path = path.replace("ID", ID);
        Discovered {
            pid: 10,
            mnt_ns: MountNs(1),
            container: of_cgroup_path(&path),
            cgroup: format!("1:name=systemd:/\n4:memory:{path}\n0::/\n"),
            has_ours: false,
        }
    }

    fn all() -> AgentPolicy {
        AgentPolicy {
            all: true,
            ..AgentPolicy::default()
        }
    }

    fn attaches(decision: &Decision) -> bool {
        matches!(decision, Decision::Attach(_))
    }

    #[test]
    fn a_runtimes_word_stands_above_the_scan() {
        let known = Known::default();
        let docker = found("/docker/ID");
        assert!(attaches(&known.decide(&docker, &all())));
        known.remember(ID, &Decision::Leave(Reason::OptedOut), None);
        assert_eq!(
            known.decide(&docker, &all()),
            Decision::Leave(Reason::OptedOut)
        );
    }

    #[test]
    fn a_container_its_runtime_has_not_told_of_yet_waits() {
        let known = Known::default();
        known.docker.store(true, Ordering::Relaxed);
        assert!(!attaches(&known.decide(&found("/docker/ID"), &all())));
        assert!(attaches(&known.decide(&found("/kubepods/podx/ID"), &all())));
        known.nri.store(true, Ordering::Relaxed);
        assert!(!attaches(
            &known.decide(&found("/kubepods/podx/ID"), &all())
        ));
        assert!(attaches(&known.decide(&found("/lxc.payload.web"), &all())));
    }

    #[test]
    fn a_service_with_its_own_mounts_is_no_container_unless_named() {
        let known = Known::default();
        let service = found("/system.slice/udevd.service");
        assert!(!attaches(&known.decide(&service, &all())));
        let named = AgentPolicy {
            cgroups: vec!["/system.slice/udevd.*".into()],
            ..AgentPolicy::default()
        };
        assert!(attaches(&known.decide(&service, &named)));
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let known = Known::default();
        known.remember(
            ID,
            &Decision::Leave(Reason::OptedOut),
            Some(CpuPolicy::Host),
        );
        assert_eq!(known.cpus(&found("/docker/ID")), Some(CpuPolicy::Host));
        for _ in 0..PATIENCE {
            known.next_scan();
        }
        assert!(!attaches(&known.decide(&found("/docker/ID"), &all())));
        for _ in 0..=PATIENCE {
            known.next_scan();
        }
        assert!(attaches(&known.decide(&found("/docker/ID"), &all())));
        // Ten thousand dead containers do not stay.
        for number in 0..10_000 {
            known.remember(
                &number.to_string(),
                &Decision::Leave(Reason::OptedOut),
                None,
            );
        }
        for _ in 0..=PATIENCE {
            known.next_scan();
        }
        assert!(known.entries.lock().unwrap().decisions.is_empty());
    }
}
