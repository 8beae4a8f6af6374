//! Whether the daemon stands where it can see every container: in the host's PID and
//! cgroup namespaces. Anywhere else it would serve nonsense, so it refuses to start.

use crate::cgroup::layout::namespace_root;

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
         in the host's (docker: --cgroupns=host; Kubernetes: a privileged container)"
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

/// Where the daemon stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Namespaces that are taken for the host's.
    pub namespaces: HostNamespaces,
    /// Root of the daemon's own cgroup namespace in the v2 tree, as the host has it, when it is
    /// not in the host's: paths are read relative to it.
    pub cgroup_root: Option<String>,
}

impl Place {
    /// Of a daemon that nobody told anything.
    ///
    /// # Errors
    /// [`PositionError::Unknown`].
    pub fn own(host: &HostReader) -> Result<Self, PositionError> {
        Ok(Self {
            namespaces: own_namespaces(host)?,
            cgroup_root: None,
        })
    }

    /// Of one in a cgroup namespace of its own, when somebody in the host's tells its
    /// `/proc/PID/cgroup`: with the v2 path in both sights the rest can be told, too.
    #[must_use]
    pub fn told(self, as_host: &str, as_here: &str) -> Self {
        if self.namespaces.cgroup == INITIAL_CGROUP {
            return self;
        }
        let unified = |text: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix("0::").map(str::to_owned))
        };
        let root = unified(as_host)
            .zip(unified(as_here))
            .and_then(|(host, here)| namespace_root(&host, &here).map(str::to_owned));
        let Some(root) = root else { return self };
        Self {
            namespaces: HostNamespaces {
                cgroup: INITIAL_CGROUP,
                ..self.namespaces
            },
            cgroup_root: Some(root),
        }
    }
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
    fn a_server_in_its_own_cgroup_namespace_finds_the_rest_by_what_it_is_told() {
        let namespaces = HostNamespaces {
            pid: INITIAL_PID,
            cgroup: 17,
            time: None,
        };
        let own = Place {
            namespaces,
            cgroup_root: None,
        };
        let told = |host, here| own.clone().told(host, here);
        let placed = told("1:cpu:/x\n0::/pods/a/c\n", "1:cpu:/x\n0::/c\n");
        assert_eq!(placed.cgroup_root.as_deref(), Some("/pods/a"));
        assert_eq!(check(&placed.namespaces), Ok(()));
        for unclear in [told("", "0::/"), told("0::/pods/a", "0::/../b")] {
            assert_eq!(check(&unclear.namespaces), Err(PositionError::Cgroup));
        }
        let at_home = Place {
            namespaces: HostNamespaces {
                cgroup: INITIAL_CGROUP,
                ..namespaces
            },
            cgroup_root: None,
        };
        assert_eq!(at_home.clone().told("0::/a", "0::/a"), at_home);
    }

    #[test]
    fn the_machine_that_runs_the_tests_has_namespaces() {
        let host = HostReader::live().unwrap();
        let own = own_namespaces(&host).unwrap();
        assert!(own.pid > 0 && own.cgroup > 0);
    }
}
