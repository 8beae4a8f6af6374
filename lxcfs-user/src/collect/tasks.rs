//! Counts tasks by walking a cgroup's subtree and `/proc`: the source for kernels and
//! set-ups without eBPF. Costs about 10 µs per thread.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::dir::{Dir as OpenDir, Type};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::cgroup::layout::Version;
use crate::cgroup::parse;
use crate::cgroup::reader::{Dir, read_all};
use crate::cgroup::{v1, v2};
use crate::container::Container;
use crate::container::facts::Task;
use crate::host::reader::HostReader;
use crate::host::task::{TaskStat, ns_pids};
use crate::snapshot::{Controller, Origin};
use crate::units::Ticks;

use super::source::{TaskCounts, TaskSource};

/// Cgroups visited at most in one count, so that a container that makes them by the
/// million cannot hold the sampler up.
const MAX_CGROUPS: usize = 50_000;

/// Calls `visit` with the text of a task list of `root` and of every cgroup below it, at
/// any depth. `file` names the list for v1 or v2.
///
/// # Errors
/// When the root's list cannot be read; cgroups that vanish meanwhile are skipped.
pub fn walk(
    root: &Dir,
    file: fn(Version) -> &'static str,
    mut visit: impl FnMut(&str),
) -> io::Result<()> {
    let name = file(root.version());
    let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let top = Arc::new(openat(root.fd(), ".", directory, Mode::empty())?);
    // Each entry keeps its parent open, so that no path ever grows beyond PATH_MAX; a
    // parent is closed once its last child has been taken off.
    let mut pending: Vec<(Arc<OwnedFd>, CString)> = vec![(top, c".".to_owned())];
    let mut visited = 0;
    while let Some((parent, child)) = pending.pop() {
        visited += 1;
        if visited > MAX_CGROUPS {
            break;
        }
        let opened = openat(&*parent, child.as_c_str(), directory, Mode::empty());
        drop(parent);
        let Ok(dir) = opened.map(Arc::new) else {
            continue;
        };
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        match openat(&*dir, name, flags, Mode::empty()) {
            Ok(list) => {
                let read = read_all(&File::from(list), false, &mut visit);
                if visited == 1 {
                    read?;
                }
            }
            Err(error) if visited == 1 => return Err(error.into()),
            Err(_) => {}
        }
        let Ok(mut entries) = OpenDir::openat(&*dir, ".", directory, Mode::empty()) else {
            continue;
        };
        for entry in entries.iter().flatten() {
            let is_child = entry.file_type() == Some(Type::Directory)
                && !matches!(entry.file_name().to_bytes(), b"." | b"..");
            if is_child {
                pending.push((dir.clone(), entry.file_name().to_owned()));
            }
        }
    }
    Ok(())
}

/// The list of threads.
#[must_use]
pub const fn threads_file(version: Version) -> &'static str {
    match version {
        Version::V1 => v1::file::THREADS,
        Version::V2 => v2::file::THREADS,
    }
}

/// The list of processes.
#[must_use]
pub const fn procs_file(version: Version) -> &'static str {
    match version {
        Version::V1 => v1::file::PROCS,
        Version::V2 => v2::file::PROCS,
    }
}

/// Counts by walking `/proc`.
#[derive(Debug)]
pub struct ProcTasks {
    host: Arc<HostReader>,
    /// Below 6.1 a frozen task is in state D and told by a flag.
    pf_frozen_known: bool,
}

impl ProcTasks {
    /// For the machine of `host`. The frozen flag goes by the kernel's version, because
    /// nothing else tells what the bit means.
    #[must_use]
    pub fn new(host: Arc<HostReader>) -> Self {
        let release = host.read_proc("sys/kernel/osrelease", str::to_owned);
        let pf_frozen_known = release.is_ok_and(|release| is_below_6_1(&release));
        Self {
            host,
            pf_frozen_known,
        }
    }

    fn count_one(&self, container: &Container) -> Option<TaskCounts> {
        let root = container.dir(Controller::Unified)?;
        let mut counts = TaskCounts::default();
        let mut newest = Newest::default();
        walk(root, threads_file, |list| {
            for tid in parse::pids(list) {
                counts.threads = counts.threads.saturating_add(1);
                let path = format!("{tid}/stat");
                let Ok(Some(stat)) = self.host.read_proc(&path, TaskStat::parse) else {
                    continue;
                };
                counts.running += u32::from(stat.is_running());
                counts.uninterruptible += u32::from(stat.is_uninterruptible(self.pf_frozen_known));
                newest.add(&stat);
            }
        })
        .ok()?;
        let has_own_namespace = container.pid_namespace.is_some();
        counts.newest_pid = newest.by_age().find_map(|pid| {
            let task = Task::open(&self.host, pid).ok()?;
            as_inside(&task.read("status", ns_pids).ok()??, has_own_namespace)
        });
        Some(counts)
    }
}

/// The newest tasks seen: more than one, because the newest may be of the host.
#[derive(Debug, Default)]
struct Newest([(Ticks, u32); 8]);

impl Newest {
    fn add(&mut self, stat: &TaskStat) {
        let Some(oldest) = self.0.iter_mut().min() else {
            return;
        };
        *oldest = (*oldest).max((stat.start, stat.pid));
    }

    /// Their ids, the newest first.
    fn by_age(mut self) -> impl Iterator<Item = u32> {
        self.0.sort_unstable();
        let pids = self.0.into_iter().rev().map(|(_, pid)| pid);
        pids.filter(|pid| *pid != 0)
    }
}

/// The id of a task as its container sees it; `None` for a task of the host that is in the
/// cgroup of a container with a PID namespace of its own.
fn as_inside(pids: &[u32], has_own_namespace: bool) -> Option<u32> {
    match pids {
        [_] if has_own_namespace => None,
        pids => pids.last().copied(),
    }
}

fn is_below_6_1(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    let version = (
        numbers.next().unwrap_or(u32::MAX),
        numbers.next().unwrap_or(0),
    );
    version < (6, 1)
}

impl TaskSource for ProcTasks {
    fn origin(&self) -> Origin {
        Origin::Host("/proc/TID/stat of every thread in the container")
    }

    fn is_cheap(&self) -> bool {
        false
    }

    fn count(&self, containers: &[Arc<Container>]) -> Vec<Option<TaskCounts>> {
        containers
            .iter()
            .map(|container| self.count_one(container))
            .collect()
    }
}

/// The earliest start among the processes of a container, and its process id.
#[must_use]
pub fn oldest_process(host: &HostReader, root: &Dir) -> Option<TaskStat> {
    let mut oldest: Option<TaskStat> = None;
    let mut look = |list: &str| {
        for pid in parse::pids(list) {
            if let Ok(Some(stat)) = host.read_proc(&format!("{pid}/stat"), TaskStat::parse)
                && oldest
                    .as_ref()
                    .is_none_or(|oldest| stat.start < oldest.start)
            {
                oldest = Some(stat);
            }
        }
    };
    // A threaded cgroup has no list of processes; its threads start no earlier.
    if walk(root, procs_file, &mut look).is_err() {
        walk(root, threads_file, &mut look).ok()?;
    }
    oldest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::layout::{Hierarchy, Layout};
    use crate::cgroup::reader::Reader;

    #[test]
    fn the_frozen_flag_is_believed_below_6_1_only() {
        for (release, below) in [
            ("5.10.0-35-cloud-amd64\n", true),
            ("6.0.19", true),
            ("6.1.0-1", false),
            ("6.12", false),
            ("7.2.13", false),
            ("", false),
        ] {
            assert_eq!(is_below_6_1(release), below, "{release}");
        }
    }

    fn task(start: u64, pid: u32) -> TaskStat {
        let line = format!("{pid} (x) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {start} 0 0 0");
        TaskStat::parse(&line).unwrap()
    }

    #[test]
    fn the_newest_come_first_and_of_many_only_they_stay() {
        let mut newest = Newest::default();
        for (start, pid) in [(5, 50), (9, 91), (9, 90), (1, 10)] {
            newest.add(&task(start, pid));
        }
        assert!(newest.by_age().eq([91, 90, 50, 10]));
        let mut newest = Newest::default();
        (1..=100).for_each(|n| newest.add(&task(u64::from(n % 50), n)));
        assert!(newest.by_age().eq([99, 49, 98, 48, 97, 47, 96, 46]));
    }

    #[test]
    fn a_task_of_the_host_has_no_id_inside() {
        assert_eq!(as_inside(&[4242, 17], true), Some(17));
        assert_eq!(as_inside(&[4242], true), None);
        assert_eq!(as_inside(&[4242], false), Some(4242));
        assert_eq!(as_inside(&[4242, 17, 3], true), Some(3));
    }

    #[test]
    fn every_depth_is_visited() {
        let root = tempfile::tempdir().unwrap();
        let mut path = root.path().join("c");
        for depth in 0..200 {
            std::fs::create_dir_all(path.join("sibling")).unwrap();
            std::fs::write(path.join("cgroup.threads"), format!("{}\n", depth + 1)).unwrap();
            std::fs::write(path.join("sibling/cgroup.threads"), "9999\n0\n").unwrap();
            path = path.join("d");
        }
        let layout = Layout::new(vec![Hierarchy {
            version: Version::V2,
            mount_point: "/".into(),
            names: vec![],
        }]);
        let reader = Reader::new(&layout, root.path(), 100).unwrap();
        let dir = reader.dir(0, "/c").unwrap();
        let mut tids = Vec::new();
        walk(&dir, threads_file, |list| tids.extend(parse::pids(list))).unwrap();
        let deep = tids.iter().filter(|tid| **tid <= 200).count();
        assert_eq!((deep, tids.len()), (200, 400));
    }
}
