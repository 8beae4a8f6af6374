//! Whether the daemon stands where it can see every container: in the host's PID and
//! cgroup namespaces. Anywhere else it would serve nonsense, so it refuses to start.

use super::reader::HostReader;
use super::task::namespace_inode;

/// Inode numbers of the initial namespaces, fixed by the kernel (`include/linux/proc_ns.h`).
const INITIAL_PID: u64 = 0xEFFF_FFFC;
const INITIAL_CGROUP: u64 = 0xEFFF_FFFB;

/// The daemon cannot see the host from where it runs.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PositionError {
    /// Callers outside its PID namespace would all be pid 0.
    #[error(
        "the daemon runs in a PID namespace of its own and cannot tell callers apart; \
         start it in the host's (Kubernetes: hostPID: true, docker: --pid=host)"
    )]
    Pid,
    /// Every cgroup path would be relative to its own.
    #[error(
        "the daemon runs in a cgroup namespace of its own and sees no other cgroup; start it \
         in the host's (docker: --cgroupns=host; Kubernetes: a privileged container, or \
         hostPID with CAP_SYS_ADMIN so that it can join that of PID 1)"
    )]
    Cgroup,
    /// The links of `/proc/self/ns` cannot be read.
    #[error("/proc/self/ns/{0} cannot be read; mount /proc")]
    Unknown(&'static str),
}

/// Inode numbers of the namespaces that say "host".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostNamespaces {
    /// PID namespace.
    pub pid: u64,
    /// Cgroup namespace.
    pub cgroup: u64,
    /// Time namespace; `None` before 5.6.
    pub time: Option<u64>,
}

fn own(host: &HostReader, kind: &'static str) -> Result<u64, PositionError> {
    host.read_proc_link(&format!("self/ns/{kind}"))
        .ok()
        .and_then(|target| namespace_inode(target.to_str()?))
        .ok_or(PositionError::Unknown(kind))
}

/// The daemon's own namespaces, whatever they are.
///
/// # Errors
/// [`PositionError::Unknown`].
pub fn own_namespaces(host: &HostReader) -> Result<HostNamespaces, PositionError> {
    Ok(HostNamespaces {
        pid: own(host, "pid")?,
        cgroup: own(host, "cgroup")?,
        time: own(host, "time").ok(),
    })
}

/// Checks that the namespaces are the machine's initial ones. Pure.
///
/// # Errors
/// The one that is not, with the remedy.
pub const fn check(namespaces: &HostNamespaces) -> Result<(), PositionError> {
    if namespaces.pid != INITIAL_PID {
        return Err(PositionError::Pid);
    }
    if namespaces.cgroup != INITIAL_CGROUP {
        return Err(PositionError::Cgroup);
    }
    Ok(())
}

/// Joins PID 1's cgroup namespace. Only the calling thread moves, so this is for the very
/// start of the program. Needs the host's PID namespace and `CAP_SYS_ADMIN`.
///
/// # Errors
/// As `open` and `setns` have them.
pub fn join_host_cgroup_namespace() -> std::io::Result<()> {
    let namespace = std::fs::File::open("/proc/1/ns/cgroup")?;
    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWCGROUP)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_in_a_namespace_of_its_own_is_refused_with_the_remedy() {
        let host = HostNamespaces {
            pid: INITIAL_PID,
            cgroup: INITIAL_CGROUP,
            time: None,
        };
        assert_eq!(check(&host), Ok(()));
        let own_pid = HostNamespaces { pid: 17, ..host };
        let error = check(&own_pid).unwrap_err().to_string();
        assert!(error.contains("hostPID") && error.contains("--pid=host"));
        let own_cgroup = HostNamespaces { cgroup: 17, ..host };
        let error = check(&own_cgroup).unwrap_err().to_string();
        assert!(error.contains("--cgroupns=host"));
    }

    #[test]
    fn the_machine_that_runs_the_tests_has_namespaces() {
        let host = HostReader::live().unwrap();
        let own = own_namespaces(&host).unwrap();
        assert!(own.pid > 0 && own.cgroup > 0);
    }
}
