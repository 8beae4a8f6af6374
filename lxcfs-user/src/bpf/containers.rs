//! The inits of all PID namespaces other than the host's.

use std::os::fd::{AsFd, OwnedFd};

use lxcfs_common::bpf::ContainerRecord;

use super::error::BpfError;
use super::feature::Feature;
use super::load::Loaded;
use super::rollup::CgroupId;
use super::sys;
use crate::units::Nsec;

/// The init of one PID namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerInit {
    /// PID in the host's namespace.
    pub pid: u32,
    /// `CLOCK_BOOTTIME` when it started. With [`Self::pid_ns`] it tells a container from a
    /// later one that got the same namespace number.
    pub start: Nsec,
    /// Inode of the PID namespace.
    pub pid_ns: u32,
    /// Depth of the PID namespace, at least 1.
    pub pid_ns_level: u32,
    /// Inode of the cgroup namespace, 0 when unknown.
    pub cgroup_ns: u32,
    /// Last PID the namespace gave out.
    pub last_pid: Option<u32>,
    /// The init's cgroup on v2.
    pub cgroup_v2: Option<CgroupId>,
    /// The init's cgroup on the v1 hierarchy that is counted.
    pub cgroup_v1: Option<CgroupId>,
    /// Root of the init's cgroup namespace on v2.
    pub cgroup_ns_root_v2: Option<CgroupId>,
    /// Root of the init's cgroup namespace on the v1 hierarchy that is counted.
    pub cgroup_ns_root_v1: Option<CgroupId>,
}

impl From<&ContainerRecord> for ContainerInit {
    fn from(record: &ContainerRecord) -> Self {
        let v2 = |id| (id != 0).then_some(CgroupId::V2(id));
        let v1 = |id| (id != 0).then_some(CgroupId::V1(id));
        Self {
            pid: record.pid,
            start: Nsec(record.start_boottime),
            pid_ns: record.pid_ns,
            pid_ns_level: record.pid_ns_level,
            cgroup_ns: record.cgroup_ns,
            last_pid: (record.last_pid != 0).then_some(record.last_pid),
            cgroup_v2: v2(record.cgroup_v2),
            cgroup_v1: v1(record.cgroup_v1),
            cgroup_ns_root_v2: v2(record.cgroup_ns_root_v2),
            cgroup_ns_root_v1: v1(record.cgroup_ns_root_v1),
        }
    }
}

/// Whole records of an iterator's output; a cut-off rest is left out.
fn decode(bytes: &[u8]) -> Vec<ContainerInit> {
    bytes
        .chunks_exact(size_of::<ContainerRecord>())
        .map(bytemuck::pod_read_unaligned::<ContainerRecord>)
        .map(|record| ContainerInit::from(&record))
        .collect()
}

/// Walks all tasks for inits.
pub(super) struct ContainerWalk {
    link: OwnedFd,
}

impl ContainerWalk {
    pub(super) fn new(loaded: &Loaded) -> Result<Self, BpfError> {
        let program = ["containers", "containers_pr"]
            .into_iter()
            .find_map(|name| loaded.program_fd(name))
            .ok_or(BpfError::Off(Feature::ContainerInits))?;
        let link = sys::iterator_link(program.as_fd())
            .map_err(BpfError::system("making the container iterator"))?;
        Ok(Self { link })
    }

    pub(super) fn read(&self) -> Result<Vec<ContainerInit>, BpfError> {
        let mut bytes = Vec::new();
        sys::walk(self.link.as_fd(), &mut bytes)
            .map_err(BpfError::system("walking the tasks for containers"))?;
        Ok(decode(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_ids_are_none() {
        let record = ContainerRecord {
            pid: 5,
            cgroup_v2: 9,
            ..Default::default()
        };
        let mut bytes = bytemuck::bytes_of(&record).to_vec();
        bytes.push(1);
        let decoded = decode(&bytes);
        assert_eq!(decoded.len(), 1);
        assert_eq!(decoded[0].cgroup_v2, Some(CgroupId::V2(9)));
        assert_eq!(decoded[0].cgroup_v1, None);
        assert_eq!(decoded[0].last_pid, None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_decode(bytes: Vec<u8>) {
            proptest::prop_assert_eq!(decode(&bytes).len(), bytes.len() / 64);
        }
    }
}
