//! CPU time of one v2 cgroup on each CPU, from the kernel's rstat counters.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::fs::FileExt;

use aya::Ebpf;
use aya::maps::{Array, CgroupArray, HashMap as HashTable, MapData};
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun};
use lxcfs_common::bpf::{CarriedKey, CpuTimes, KernelLayout};

use super::error::BpfError;
use super::feature::Feature;
use super::load::{Loaded, Plain, data, on_demand};
use super::plan::Plan;
use super::sys::MappedArray;
use super::tree::{MAX_DEPTH, children, id};
use crate::snapshot::PerCpuTime;
use crate::units::Nsec;

/// Bytes of one CPU's entry in the answer.
const ENTRY: usize = 40;

/// What the counters of one CPU hold, before scaling. Nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RawTimes {
    user: u64,
    system: u64,
    exec: u64,
    nice: u64,
}

impl RawTimes {
    fn add(&mut self, other: Self) {
        self.user = self.user.saturating_add(other.user);
        self.system = self.system.saturating_add(other.system);
        self.exec = self.exec.saturating_add(other.exec);
        self.nice = self.nice.saturating_add(other.nice);
    }

    /// Splits the exact run time by the ticks, as the kernel's `cputime_adjust` does: the
    /// ticks are samples, so only their ratio is used, and user + system is the run time.
    fn scaled(self, cpu: u32) -> PerCpuTime {
        let ticks = u128::from(self.user) + u128::from(self.system);
        let exec = u128::from(self.exec);
        let share = |part: u64| {
            // At most `exec`, because no part is more than all the ticks.
            u64::try_from(exec * u128::from(part) / ticks.max(1)).unwrap_or(self.exec)
        };
        let user = if ticks == 0 {
            self.exec
        } else {
            share(self.user).min(self.exec)
        };
        let nice = if ticks == 0 {
            0
        } else {
            share(self.nice.min(self.user)).min(user)
        };
        PerCpuTime {
            cpu,
            user: Nsec(user),
            system: Nsec(self.exec - user),
            nice: Nsec(nice),
        }
    }
}

/// Reader of the counters; one call at a time.
pub(super) struct CpuReader {
    cgroup: CgroupArray<MapData>,
    out: MappedArray,
    carried: Option<HashTable<MapData, Plain<CarriedKey>, Plain<CpuTimes>>>,
    offsets: Array<MapData, u64>,
    layout: KernelLayout,
    nice: Option<u32>,
    subtree: bool,
    cpus: u32,
}

impl CpuReader {
    /// Takes what it needs out of the loaded object and finds each CPU's data.
    pub(super) fn new(loaded: &mut Loaded, plan: &Plan) -> Result<Self, BpfError> {
        let off = || BpfError::Off(Feature::CgroupCpu);
        let opening = |error| BpfError::library("opening the maps of cgroup_cpu")(error);
        let cpus = plan.layout.gate_cpus;
        let out_map = loaded.map("CPU_OUT").ok_or_else(off)?;
        let out_data = data(&out_map).ok_or_else(off)?;
        let out = MappedArray::new(out_data.fd().as_fd(), cpus as usize * ENTRY)
            .map_err(BpfError::system("mapping CPU_OUT"))?;
        let cgroup = CgroupArray::try_from(loaded.map("CGROUP").ok_or_else(off)?)
            .map_err(|error| opening(Box::new(error)))?;
        let offsets = Array::try_from(loaded.map("CPU_OFFSET").ok_or_else(off)?)
            .map_err(|error| opening(Box::new(error)))?;
        let subtree = plan.layout.rstat_subtree_bstat != lxcfs_common::bpf::ABSENT;
        let carried = if !subtree && loaded.has(Feature::RemovedCgroupTimes) {
            let map = loaded.map("CARRIED").ok_or_else(off)?;
            Some(HashTable::try_from(map).map_err(|error| opening(Box::new(error)))?)
        } else {
            None
        };
        let mut reader = Self {
            cgroup,
            out,
            carried,
            offsets,
            layout: plan.layout,
            nice: plan.bstat_nice,
            subtree,
            cpus,
        };
        reader.find_cpus(&loaded.ebpf)?;
        Ok(reader)
    }

    /// Asks each CPU where its per-CPU data is. Offline CPUs stay unknown; ask again when
    /// CPUs come online. Returns how many answered.
    pub(super) fn find_cpus(&mut self, ebpf: &Ebpf) -> Result<u32, BpfError> {
        let program = on_demand(ebpf, "percpu_offset", Feature::CgroupCpu)?;
        let mut found = 0;
        for cpu in 0..self.cpus {
            let mut options = RawTracePointRunOptions::new();
            options.args[0] = u64::from(cpu);
            options.cpu = Some(cpu);
            match program.test_run(options) {
                Ok(result) if result.return_value == 0 => found += 1,
                Ok(result) => {
                    let code = result.return_value.cast_signed();
                    return Err(BpfError::Program {
                        program: "percpu_offset",
                        code,
                    });
                }
                // ENXIO: possible but not online.
                Err(_) => {}
            }
        }
        if found == 0 {
            return Err(BpfError::Program {
                program: "percpu_offset",
                code: 0,
            });
        }
        Ok(found)
    }

    /// Whether the place of this CPU's data is known.
    pub(super) fn knows(&self, cpu: u32) -> bool {
        self.offsets.get(&cpu, 0).is_ok_and(|offset| offset != 0)
    }

    /// Times of the cgroup's whole subtree on each CPU. `directory` must be open for reading.
    pub(super) fn read(
        &mut self,
        ebpf: &Ebpf,
        directory: BorrowedFd<'_>,
    ) -> Result<Vec<PerCpuTime>, BpfError> {
        let program = on_demand(ebpf, "cgroup_cpu", Feature::CgroupCpu)?;
        let mut sums = vec![RawTimes::default(); self.cpus as usize];
        if self.subtree {
            self.add_one(program, directory, &mut sums)?;
        } else {
            self.add_tree(program, directory, &mut sums, 0)?;
        }
        Ok(sums
            .into_iter()
            .zip(0..)
            .map(|(times, cpu)| times.scaled(cpu))
            .collect())
    }

    /// Lets go of the cgroup read last, which the map otherwise keeps in memory.
    pub(super) fn release(&mut self) {
        // Nothing there is as good.
        let _ = self.cgroup.unset(0);
    }

    fn add_one(
        &mut self,
        program: &RawTracePoint,
        directory: BorrowedFd<'_>,
        sums: &mut [RawTimes],
    ) -> Result<(), BpfError> {
        self.cgroup
            .set(0, directory.as_raw_fd(), 0)
            .map_err(|error| BpfError::library("naming the cgroup to read")(Box::new(error)))?;
        let mut options = RawTracePointRunOptions::new();
        options.args[0] = u64::from(self.subtree);
        let result = program
            .test_run(options)
            .map_err(|error| BpfError::library("running cgroup_cpu")(Box::new(error)))?;
        if result.return_value != 0 {
            let code = result.return_value.cast_signed();
            return Err(BpfError::Program {
                program: "cgroup_cpu",
                code,
            });
        }
        for (cpu, sum) in sums.iter_mut().enumerate() {
            let word = |offset: u32| self.out.word((cpu * ENTRY + offset as usize) / 8);
            sum.add(RawTimes {
                user: word(self.layout.bstat_utime),
                system: word(self.layout.bstat_stime),
                exec: word(self.layout.bstat_exec),
                nice: self.nice.map_or(0, word),
            });
        }
        Ok(())
    }

    /// Without `subtree_bstat`: own times of each living descendant, and what the removed
    /// ones left behind.
    fn add_tree(
        &mut self,
        program: &RawTracePoint,
        directory: BorrowedFd<'_>,
        sums: &mut [RawTimes],
        depth: u32,
    ) -> Result<(), BpfError> {
        self.add_one(program, directory, sums)?;
        self.add_carried(directory, sums)?;
        if depth == MAX_DEPTH {
            return Ok(());
        }
        for child in children(directory).map_err(BpfError::system("listing child cgroups"))? {
            match self.add_tree(program, child.as_fd(), sums, depth + 1) {
                // Removed meanwhile: it is among the carried times of the next read.
                Err(BpfError::System { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn add_carried(
        &self,
        directory: BorrowedFd<'_>,
        sums: &mut [RawTimes],
    ) -> Result<(), BpfError> {
        let Some(carried) = &self.carried else {
            return Ok(());
        };
        let cgroup = id(directory).map_err(BpfError::system("reading a cgroup's id"))?;
        for (sum, cpu) in sums.iter_mut().zip(0..) {
            let key = CarriedKey {
                cgroup,
                cpu,
                pad: 0,
            };
            if let Ok(Plain(times)) = carried.get(&Plain(key), 0) {
                let CpuTimes { user, system, exec } = times;
                sum.add(RawTimes {
                    user,
                    system,
                    exec,
                    nice: 0,
                });
            }
        }
        Ok(())
    }
}

/// Brings the kernel's sums of the subtree up to date; reading `cpu.stat` does that.
pub(super) fn flush(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the name is a C string; the result is checked.
    let fd = unsafe {
        libc::openat(
            directory.as_raw_fd(),
            c"cpu.stat".as_ptr(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    let file = unsafe { File::from_raw_fd(fd) };
    file.read_at(&mut [0; 512], 0).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_only_give_the_ratio() {
        let times = RawTimes {
            user: 30,
            system: 10,
            exec: 1_000,
            nice: 15,
        }
        .scaled(3);
        assert_eq!(
            (times.cpu, times.user.0, times.system.0, times.nice.0),
            (3, 750, 250, 375)
        );
    }

    #[test]
    fn without_ticks_all_is_user() {
        let times = RawTimes {
            exec: 77,
            ..Default::default()
        }
        .scaled(0);
        assert_eq!((times.user.0, times.system.0), (77, 0));
    }

    proptest::proptest! {
        #[test]
        fn parts_always_make_the_whole(user: u64, system: u64, exec: u64, nice: u64) {
            let times = RawTimes { user, system, exec, nice }.scaled(0);
            proptest::prop_assert_eq!(times.user.0 + times.system.0, exec);
            proptest::prop_assert!(times.nice <= times.user);
        }
    }
}
