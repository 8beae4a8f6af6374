//! Owns finding containers without asking any runtime: every mount namespace of the
//! machine, one process of each, and the container its cgroup names.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::identity::{self, ContainerRef};
use super::{AttachError, FS_TYPE};

/// A mount namespace, by the inode of `/proc/PID/ns/mnt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountNs(pub u64);

/// One mount namespace that is not the host's.
#[derive(Clone, Debug)]
pub struct Discovered {
    /// A process in it, by the host's numbers: the init of its PID namespace if there is
    /// one, else the lowest.
    pub pid: u32,
    /// The namespace.
    pub mnt_ns: MountNs,
    /// The container, as far as the process's cgroup tells.
    pub container: Option<ContainerRef>,
    /// The text of `/proc/PID/cgroup`, for rules over paths.
    pub cgroup: String,
    /// Whether any mount of our type is in it, live or dead.
    pub has_ours: bool,
}

/// Looks through a procfs.
#[derive(Clone, Debug)]
pub struct Scan {
    proc: PathBuf,
}

impl Default for Scan {
    fn default() -> Self {
        Self::new("/proc")
    }
}

/// Larger mount tables are not searched here; the engine reports such a container.
const MOUNTINFO_LIMIT: u64 = 32 << 20;

impl Scan {
    /// Scans the procfs mounted at `proc`; it must be of the host's PID namespace.
    pub fn new(proc: impl Into<PathBuf>) -> Self {
        Self { proc: proc.into() }
    }

    /// The mount namespaces that count as the host's: this thread's, this process's and
    /// that of PID 1.
    ///
    /// # Errors
    /// When this process's own cannot be read.
    pub fn host_namespaces(&self) -> Result<Vec<MountNs>, AttachError> {
        let own = self.proc.join("thread-self/ns/mnt");
        let mut found = vec![namespace(&own).map_err(|err| AttachError::io(own, err))?];
        // Without the right to look at PID 1, nothing of its could be changed either.
        for process in ["self", "1"] {
            found.extend(namespace(&self.proc.join(process).join("ns/mnt")).ok());
        }
        Ok(found)
    }

    /// One entry per mount namespace other than the host's, ordered by process number.
    /// Processes that end while being looked at are left out.
    ///
    /// # Errors
    /// When the procfs itself cannot be listed.
    pub fn containers(&self) -> Result<Vec<Discovered>, AttachError> {
        let host = self.host_namespaces()?;
        let listing =
            std::fs::read_dir(&self.proc).map_err(|err| AttachError::io(self.proc.clone(), err))?;
        let mut pids: Vec<u32> = listing
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        pids.sort_unstable();
        let mut namespaces: BTreeMap<MountNs, (u32, bool)> = BTreeMap::new();
        for pid in pids {
            let dir = self.proc.join(pid.to_string());
            let Ok(ns) = namespace(&dir.join("ns/mnt")) else {
                continue;
            };
            if host.contains(&ns) {
                continue;
            }
            match namespaces.get(&ns) {
                Some((_, true)) => {}
                Some((_, false)) => {
                    if is_namespace_init(&dir) {
                        namespaces.insert(ns, (pid, true));
                    }
                }
                None => {
                    namespaces.insert(ns, (pid, is_namespace_init(&dir)));
                }
            }
        }
        let mut found: Vec<Discovered> = namespaces
            .into_iter()
            .filter_map(|(mnt_ns, (pid, _))| self.describe(pid, mnt_ns))
            .collect();
        found.sort_by_key(|found| found.pid);
        Ok(found)
    }

    /// The mount namespace of one process, if it is not the host's and the process still
    /// lives.
    ///
    /// # Errors
    /// When this process's own namespace cannot be read.
    pub fn process(&self, pid: u32) -> Result<Option<Discovered>, AttachError> {
        let Ok(ns) = namespace(&self.proc.join(pid.to_string()).join("ns/mnt")) else {
            return Ok(None);
        };
        if self.host_namespaces()?.contains(&ns) {
            return Ok(None);
        }
        Ok(self.describe(pid, ns))
    }

    fn describe(&self, pid: u32, mnt_ns: MountNs) -> Option<Discovered> {
        let dir = self.proc.join(pid.to_string());
        let cgroup = std::fs::read(dir.join("cgroup")).ok()?;
        let cgroup = String::from_utf8_lossy(&cgroup).into_owned();
        let mountinfo = read_bounded(&dir.join("mountinfo"), MOUNTINFO_LIMIT).ok()?;
        let needle = format!(" - {FS_TYPE} ");
        Some(Discovered {
            pid,
            mnt_ns,
            container: identity::of_proc_cgroup(&cgroup),
            cgroup,
            has_ours: memchr(&mountinfo, needle.as_bytes()),
        })
    }

    /// The container whose id begins with `id`.
    ///
    /// # Errors
    /// None or several such containers, or no procfs.
    pub fn by_id(&self, id: &str) -> Result<Discovered, AttachError> {
        let mut fitting: Vec<Discovered> = self
            .containers()?
            .into_iter()
            .filter(|found| {
                let container = found.container.as_ref();
                container.is_some_and(|container| container.id.starts_with(id))
            })
            .collect();
        let mut ids: Vec<String> = fitting
            .iter()
            .filter_map(|found| Some(found.container.as_ref()?.id.clone()))
            .collect();
        ids.dedup();
        match (ids.len(), fitting.is_empty() || id.is_empty()) {
            (_, true) => Err(AttachError::UnknownContainer { id: id.to_owned() }),
            (1, _) => Ok(fitting.swap_remove(0)),
            _ => Err(AttachError::AmbiguousContainer {
                id: id.to_owned(),
                found: ids.join(", "),
            }),
        }
    }
}

pub(super) fn namespace(path: &Path) -> std::io::Result<MountNs> {
    std::fs::metadata(path).map(|meta| MountNs(meta.ino()))
}

/// Whether the process is number 1 in its own PID namespace (`NSpid:` of its status).
fn is_namespace_init(dir: &Path) -> bool {
    let Ok(status) = std::fs::read(dir.join("status")) else {
        return false;
    };
    let status = String::from_utf8_lossy(&status);
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| {
        let numbers: Vec<&str> = numbers.split_ascii_whitespace().collect();
        numbers.len() > 1 && numbers.last() == Some(&"1")
    })
}

pub(super) fn read_bounded(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut text = Vec::new();
    std::fs::File::open(path)?
        .take(limit)
        .read_to_end(&mut text)?;
    Ok(text)
}

fn memchr(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}
