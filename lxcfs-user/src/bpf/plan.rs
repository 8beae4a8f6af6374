//! Which programs to load on this kernel, and why not the others. Pure: facts in, plan out.

use lxcfs_common::bpf::{ABSENT, KernelLayout};

use super::feature::Feature;
use super::layout::KernelTypes;

/// What is known about the machine before anything is loaded.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The administrator does not want eBPF.
    pub disabled: bool,
    /// Version of the running kernel.
    pub kernel: (u32, u32),
    /// What BTF says, or why there is none.
    pub types: Result<KernelTypes, String>,
    /// The daemon is in the initial PID namespace.
    pub host_pid_ns: bool,
    /// The daemon is in the initial user namespace.
    pub host_user_ns: bool,
    /// The daemon has CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN.
    pub capable: bool,
    /// `/sys/kernel/security/lockdown` is at `confidentiality`.
    pub confidential: bool,
    /// Number of possible CPUs.
    pub cpus: u32,
    /// Which controllers are on a v1 hierarchy.
    pub v1: V1Controllers,
    /// A cgroup v2 hierarchy is mounted.
    pub v2_mounted: bool,
}

/// Controllers that are bound to a v1 hierarchy (`/proc/cgroups`, hierarchy not 0).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the kernel's controller names")]
pub struct V1Controllers {
    pub cpu: bool,
    pub cpuacct: bool,
    pub memory: bool,
    pub pids: bool,
}

/// How a program is loaded and started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `iter/task`: runs when its iterator is read.
    TaskIterator,
    /// `raw_tp` that is never attached: runs by `BPF_PROG_TEST_RUN`.
    OnDemand,
    /// Attached to this tracepoint.
    Tracepoint(&'static str),
}

/// One program to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// Its name in the object.
    pub name: &'static str,
    /// How to load it.
    pub kind: Kind,
}

/// Does most walks of `load_tasks` at less cost; it is loaded besides, and nothing fails if the
/// kernel refuses it.
pub const TASK_LOOP: Program = Program {
    name: "load_tasks_loop",
    kind: Kind::OnDemand,
};

/// What is to be done about one feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Load these; the text says how the feature then works.
    Load(Vec<Program>, &'static str),
    /// Nothing to load: the kernel does it by itself.
    NotNeeded(&'static str),
    /// Leave it off.
    Off {
        /// Why.
        reason: String,
        /// What would change it; empty when nothing has to be done.
        remedy: &'static str,
    },
}

/// The decisions, and the constants the programs get.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Offsets and gates.
    pub layout: KernelLayout,
    /// See [`KernelTypes::task_loop`].
    pub task_loop: Option<[u32; 3]>,
    /// Place of `ntime` in the counters, in bytes.
    pub bstat_nice: Option<u32>,
    /// The v1 controller whose hierarchy is counted besides v2.
    pub v1_controller: Option<&'static str>,
    /// One per [`Feature`], in the order of [`Feature::ALL`].
    pub decisions: Vec<(Feature, Decision)>,
}

impl Plan {
    /// The programs of each feature that needs any.
    pub fn programs_by_feature(&self) -> impl Iterator<Item = &[Program]> {
        self.decisions
            .iter()
            .filter_map(|(_, decision)| match decision {
                Decision::Load(programs, _) => Some(programs.as_slice()),
                Decision::NotNeeded(_) | Decision::Off { .. } => None,
            })
    }

    /// Leaves all features but these off.
    pub fn keep(&mut self, only: &[Feature]) {
        for (_, decision) in self
            .decisions
            .iter_mut()
            .filter(|(feature, _)| !only.contains(feature))
        {
            *decision = Decision::Off {
                reason: "not asked for here".to_owned(),
                remedy: "",
            };
        }
    }
}

/// Before this, tasks are walked with `bpf_probe_read_kernel`: a direct load through a null
/// pointer can oops those kernels.
const DIRECT_LOADS_SINCE: (u32, u32) = (6, 1);
/// `BPF_PROG_TEST_RUN` of raw tracepoints.
const TEST_RUN_SINCE: (u32, u32) = (5, 10);
/// Ring buffers and BPF links for iterators.
const OBJECT_SINCE: (u32, u32) = (5, 8);
const PF_FROZEN: u32 = 0x10000;

/// The offsets among those named that the kernel does not have.
macro_rules! missing {
    ($layout:expr; $($field:ident),+ $(,)?) => {
        [$((stringify!($field), $layout.$field)),+]
            .into_iter()
            .filter_map(|(name, offset)| (offset == ABSENT).then_some(name))
            .collect::<Vec<_>>()
    };
}

/// Decides everything.
#[must_use]
pub fn plan(facts: &Facts) -> Plan {
    let obstacle = obstacle(facts);
    let types = match (&facts.types, &obstacle) {
        (Ok(types), None) => types,
        _ => {
            let off = obstacle.unwrap_or(Decision::Off {
                reason: String::new(),
                remedy: "",
            });
            return Plan {
                layout: KernelLayout::UNKNOWN,
                task_loop: None,
                bstat_nice: None,
                v1_controller: None,
                decisions: Feature::ALL.map(|feature| (feature, off.clone())).into(),
            };
        }
    };

    let direct = facts.kernel >= DIRECT_LOADS_SINCE;
    let mut layout = types.layout;
    let v1 = v1_subsystem(facts, types);
    layout.gate_frozen_flags = if direct { 0 } else { PF_FROZEN };
    layout.gate_v1_subsys = v1.map_or(ABSENT, |(_, index)| index);
    layout.gate_cpus = facts.cpus;
    layout.gate_events = 1;
    if layout.rstat_subtree_bstat == ABSENT {
        layout.gate_carry = 1;
    }

    let context = Context {
        facts,
        types,
        layout: &layout,
        direct,
    };
    Plan {
        task_loop: types.task_loop.filter(|_| direct),
        bstat_nice: types.bstat_nice,
        v1_controller: v1.map(|(name, _)| name),
        decisions: Feature::ALL
            .map(|feature| (feature, context.decide(feature)))
            .into(),
        layout,
    }
}

/// What keeps everything off, if anything does.
fn obstacle(facts: &Facts) -> Option<Decision> {
    let off = |reason: &str, remedy| {
        Some(Decision::Off {
            reason: reason.to_owned(),
            remedy,
        })
    };
    if facts.disabled {
        return off(
            "switched off by --no-ebpf",
            "start without --no-ebpf (no-ebpf in lxcfs.toml)",
        );
    }
    if facts.kernel < OBJECT_SINCE {
        let (major, minor) = facts.kernel;
        return Some(Decision::Off {
            reason: format!("kernel {major}.{minor} has no task iterator"),
            remedy: "a kernel of 5.8 or later (5.10 for everything)",
        });
    }
    if !facts.host_user_ns {
        return off(
            "the daemon is in a user namespace of its own",
            "start it in the host's user namespace",
        );
    }
    if !facts.host_pid_ns {
        return off(
            "the daemon is in a PID namespace of its own and would walk that namespace only",
            "start it in the host's PID namespace (hostPID: true, --pid=host)",
        );
    }
    if !facts.capable {
        return off(
            "CAP_BPF and CAP_PERFMON are missing",
            "AmbientCapabilities=CAP_BPF CAP_PERFMON in the unit, or add both to the container",
        );
    }
    if let Err(error) = &facts.types {
        return Some(Decision::Off {
            reason: error.clone(),
            remedy: "a kernel built with CONFIG_DEBUG_INFO_BTF=y, and /sys in view",
        });
    }
    None
}

/// The v1 hierarchy that is counted: of the first of these controllers that is on one.
fn v1_subsystem(facts: &Facts, types: &KernelTypes) -> Option<(&'static str, u32)> {
    let (v1, index) = (&facts.v1, &types.subsystems);
    [
        ("cpu", v1.cpu, index.cpu),
        ("cpuacct", v1.cpuacct, index.cpuacct),
        ("memory", v1.memory, index.memory),
        ("pids", v1.pids, index.pids),
    ]
    .into_iter()
    .find_map(|(name, on_v1, index)| {
        if on_v1 {
            index.map(|index| (name, index))
        } else {
            None
        }
    })
}

struct Context<'a> {
    facts: &'a Facts,
    types: &'a KernelTypes,
    layout: &'a KernelLayout,
    direct: bool,
}

impl Context<'_> {
    fn decide(&self, feature: Feature) -> Decision {
        let how = if self.direct {
            "direct loads"
        } else {
            "bpf_probe_read_kernel"
        };
        if self.needs_probe(feature) && self.facts.confidential {
            return Decision::Off {
                reason: "lockdown=confidentiality forbids bpf_probe_read_kernel".to_owned(),
                remedy: "boot with lockdown=integrity, or a kernel of 6.6 or later for all but \
                         cgroup_cpu",
            };
        }
        let missing = self.missing(feature);
        if !missing.is_empty() {
            return Decision::Off {
                reason: format!("this kernel's BTF lacks {}", missing.join(", ")),
                remedy: "",
            };
        }
        let iterator = |direct, probing| {
            let name = if self.direct { direct } else { probing };
            Decision::Load(
                vec![Program {
                    name,
                    kind: Kind::TaskIterator,
                }],
                how,
            )
        };
        match feature {
            Feature::TaskCounts => iterator("load_tasks", "load_tasks_pr"),
            Feature::ContainerInits => iterator("containers", "containers_pr"),
            Feature::CgroupCpu => self.cgroup_cpu(),
            Feature::RemovedCgroupTimes => self.removed_times(),
            Feature::CgroupEvents => self.cgroup_events(how),
            Feature::ContainerExec => self.attached(
                &[(
                    "sched_process_exec",
                    self.types.tracepoints.sched_process_exec,
                )],
                &[("container_exec", "container_exec_pr")],
                how,
            ),
            Feature::BlockTimes => self.block_times(how),
        }
    }

    /// Whether the feature's programs read memory by helper on this kernel.
    fn needs_probe(&self, feature: Feature) -> bool {
        match feature {
            Feature::CgroupCpu => true,
            Feature::RemovedCgroupTimes | Feature::CgroupEvents if self.carries() => true,
            _ => !self.direct,
        }
    }

    fn carries(&self) -> bool {
        self.layout.rstat_subtree_bstat == ABSENT
    }

    fn cgroup_cpu(&self) -> Decision {
        if self.facts.kernel < TEST_RUN_SINCE {
            return Decision::Off {
                reason: "raw tracepoints cannot be run on demand before 5.10".to_owned(),
                remedy: "a kernel of 5.10 or later",
            };
        }
        if !self.facts.v2_mounted {
            return Decision::Off {
                reason: "no cgroup v2 hierarchy; cpuacct.usage_all serves v1".to_owned(),
                remedy: "",
            };
        }
        let program = |name| Program {
            name,
            kind: Kind::OnDemand,
        };
        Decision::Load(
            vec![program("percpu_offset"), program("cgroup_cpu")],
            if self.carries() {
                "rstat of each living descendant"
            } else {
                "rstat of the subtree"
            },
        )
    }

    fn removed_times(&self) -> Decision {
        if !self.carries() {
            return Decision::NotNeeded("the kernel keeps them itself (subtree_bstat)");
        }
        match self.cgroup_cpu() {
            Decision::Load(..) => self.attached(
                &[("cgroup_rmdir", self.types.tracepoints.cgroup_rmdir)],
                &[("cgroup_gone", "cgroup_gone")],
                "kept when a cgroup is removed, from now on",
            ),
            off => off,
        }
    }

    fn cgroup_events(&self, how: &'static str) -> Decision {
        let rmdir = if self.carries() || !self.direct {
            "cgroup_gone"
        } else {
            "cgroup_rmdir"
        };
        self.attached(
            &[
                ("cgroup_mkdir", self.types.tracepoints.cgroup_mkdir),
                ("cgroup_rmdir", self.types.tracepoints.cgroup_rmdir),
            ],
            &[("cgroup_mkdir", "cgroup_mkdir_pr"), (rmdir, rmdir)],
            how,
        )
    }

    fn block_times(&self, how: &'static str) -> Decision {
        let tracepoints = &self.types.tracepoints;
        let (backmerge, frontmerge) = match tracepoints.block_merges {
            // Before 5.11, so the probing ones in any case.
            Some(3) => (
                ("block_backmerge", "block_backmerge_old"),
                ("block_frontmerge", "block_frontmerge_old"),
            ),
            _ => (
                ("block_backmerge", "block_backmerge_pr"),
                ("block_frontmerge", "block_frontmerge_pr"),
            ),
        };
        let fits = matches!(
            (tracepoints.block_merges, self.direct),
            (Some(1), _) | (Some(3), false)
        );
        let (issue, requeue) = match tracepoints.block_moves {
            Some(2) => (
                ("block_issue", "block_issue_old"),
                ("block_requeue", "block_requeue_old"),
            ),
            _ => (
                ("block_issue", "block_issue_pr"),
                ("block_requeue", "block_requeue_pr"),
            ),
        };
        let moves_fit = matches!(
            (tracepoints.block_moves, self.direct),
            (Some(1), _) | (Some(2), false)
        );
        self.attached(
            &[
                ("block_rq_complete", tracepoints.block_rq_complete),
                ("block_bio_backmerge", fits),
                ("block_bio_frontmerge", fits),
                ("block_rq_issue", moves_fit),
                ("block_rq_requeue", moves_fit),
            ],
            &[
                ("block_done", "block_done_pr"),
                backmerge,
                frontmerge,
                issue,
                requeue,
            ],
            how,
        )
    }

    /// Programs attached to tracepoints, the direct or the probing ones.
    fn attached(
        &self,
        tracepoints: &[(&'static str, bool)],
        programs: &[(&'static str, &'static str)],
        how: &'static str,
    ) -> Decision {
        if let Some((name, _)) = tracepoints.iter().find(|(_, there)| !there) {
            return Decision::Off {
                reason: format!("this kernel has no fitting tracepoint {name}"),
                remedy: "",
            };
        }
        let programs =
            tracepoints
                .iter()
                .zip(programs)
                .map(|((tracepoint, _), (direct, probing))| Program {
                    name: if self.direct { direct } else { probing },
                    kind: Kind::Tracepoint(tracepoint),
                });
        Decision::Load(programs.collect(), how)
    }

    fn missing(&self, feature: Feature) -> Vec<&'static str> {
        let layout = self.layout;
        let mut missing = match feature {
            Feature::TaskCounts => missing!(layout; task_state, task_flags, task_pid, task_tgid,
                task_cgroups, css_set_dfl_cgrp, css_cgroup, css_parent, cgroup_self, cgroup_kn,
                kernfs_id),
            Feature::ContainerInits => missing!(layout; task_pid, task_tgid, task_cgroups,
                task_nsproxy, nsproxy_pid_ns, pid_ns_level, pid_ns_inum, pid_ns_child_reaper,
                css_set_dfl_cgrp, cgroup_kn, kernfs_id),
            Feature::CgroupCpu => missing!(layout; bpf_array_ptrs, cgroup_rstat, rstat_bstat,
                bstat_stime, bstat_utime, bstat_exec, gate_bstat_len),
            Feature::RemovedCgroupTimes => Vec::new(),
            Feature::CgroupEvents => missing!(layout; cgroup_kn, kernfs_id, cgroup_self,
                css_parent, css_cgroup, cgroup_root, cgroup_root_hierarchy_id),
            Feature::ContainerExec => missing!(layout; task_pid, task_nsproxy, task_cgroups,
                nsproxy_pid_ns, pid_ns_level, pid_ns_inum, pid_ns_child_reaper,
                css_set_dfl_cgrp, cgroup_kn, kernfs_id),
            Feature::BlockTimes => missing!(layout; request_bio, request_data_len,
                request_cmd_flags, request_start_time, disk_major, disk_first_minor, bio_blkg,
                bio_opf, blkg_blkcg, blkcg_css, css_cgroup, cgroup_kn, kernfs_id),
        };
        if feature == Feature::RemovedCgroupTimes && self.carries() {
            missing = missing!(layout; cgroup_rstat, rstat_bstat, bstat_stime, bstat_utime,
                bstat_exec, cgroup_root, cgroup_root_hierarchy_id, cgroup_self, css_parent,
                css_cgroup, cgroup_kn, kernfs_id);
        }
        if feature == Feature::BlockTimes
            && layout.queue_disk == ABSENT
            && layout.request_disk == ABSENT
        {
            missing.push("queue_disk");
        }
        missing
    }
}

#[cfg(test)]
mod tests;
