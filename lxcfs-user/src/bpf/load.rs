//! Putting the object into the kernel, feature by feature.

use std::collections::{HashMap, HashSet};
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use aya::maps::{Map, MapData};
use aya::programs::{BtfTracePoint, Iter, ProgramError, RawTracePoint};
use aya::{Btf, Ebpf, EbpfLoader, Endianness, include_bytes_aligned};
use bytemuck::Pod;

use super::error::BpfError;
use super::feature::{Feature, FeatureState};
use super::lock;
use super::plan::{Decision, Kind, Plan, Program, TASK_LOOP};

/// The programs, built by `cargo xtask build-ebpf` and kept in the tree.
pub(super) static OBJECT: &[u8] = include_bytes_aligned!("../../../lxcfs-ebpf/lxcfs.bpf.o");

/// Programs loaded at the same time at most.
const MAX_LOADERS: usize = 4;

/// Entries of the tables that are not used on this machine.
const UNUSED: u32 = 1;

/// Ring of the programs' log lines. A page of any architecture; the lines are few.
const LOG_RING: &str = "AYA_LOGS";
const LOG_RING_BYTES: u32 = 64 * 1024;

/// The offsets as a global of the object.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Constants(lxcfs_common::bpf::KernelLayout);

// SAFETY: the layout is `repr(C)`, made of u32 alone, and any bytes are a valid value.
unsafe impl aya::Pod for Constants {}

/// What is in the kernel. Dropping it removes all of it.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    /// One per feature, in the order of [`Feature::ALL`].
    pub(super) states: Vec<FeatureState>,
}

impl Loaded {
    /// Whether a feature came up.
    pub(super) fn has(&self, feature: Feature) -> bool {
        self.states
            .iter()
            .any(|state| state.name == feature && state.on)
    }

    /// A map of the object.
    pub(super) fn map(&mut self, name: &str) -> Option<Map> {
        self.ebpf.take_map(name)
    }

    /// A program's descriptor, to make links of.
    pub(super) fn program_fd(&self, name: &str) -> Option<OwnedFd> {
        let program: &Iter = self.ebpf.program(name)?.try_into().ok()?;
        program.fd().ok()?.as_fd().try_clone_to_owned().ok()
    }
}

/// A program that runs when it is asked to.
pub(super) fn on_demand<'a>(
    ebpf: &'a Ebpf,
    name: &'static str,
    feature: Feature,
) -> Result<&'a RawTracePoint, BpfError> {
    ebpf.program(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(BpfError::Off(feature))
}

/// The untyped half of a map, whatever its kind.
pub(super) fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::CgroupArray(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// Why nothing could be loaded at all.
pub(super) fn all_off(reason: &str, remedy: &str) -> Vec<FeatureState> {
    Feature::ALL
        .map(|feature| FeatureState::off(feature, reason, remedy))
        .into()
}

/// The states of a plan that loads nothing, or `None` if there is something to load.
pub(super) fn nothing_to_load(plan: &Plan) -> Option<Vec<FeatureState>> {
    plan.decisions
        .iter()
        .map(|(feature, decision)| match decision {
            Decision::Load(..) => None,
            Decision::NotNeeded(how) => Some(FeatureState::on(*feature, *how)),
            Decision::Off { reason, remedy } => Some(FeatureState::off(*feature, reason, *remedy)),
        })
        .collect()
}

/// Loads what the plan says. A feature whose programs are refused is off, with the
/// verifier's last words as the reason; the others are not touched by it. `attach_points` is
/// [`Btf::attach_points`](super::btf::Btf::attach_points).
pub(super) fn load(plan: &Plan, attach_points: &[u8], task_sets: u32) -> Result<Loaded, String> {
    let constants = Constants(plan.layout);
    let cpus = plan.layout.gate_cpus.max(1);
    let log_level = aya_log::Level::Warn as u8;
    let wanted = |feature| {
        plan.decisions
            .iter()
            .any(|(name, decision)| *name == feature && matches!(decision, Decision::Load(..)))
    };
    let mut loader = EbpfLoader::new();
    loader
        .override_global("LAYOUT", &constants, true)
        .override_global(aya_log::LEVEL, &log_level, false)
        .map_max_entries(LOG_RING, LOG_RING_BYTES)
        .map_max_entries("TASK_SETS", task_sets)
        .map_max_entries("CPU_OFFSET", cpus)
        .map_max_entries("CPU_OUT", cpus);
    if plan.v1_controller.is_none() {
        loader.map_max_entries("TREE_V1", UNUSED);
    }
    for (feature, map) in [
        (Feature::TaskCounts, "TASK_SETS"),
        (Feature::TaskCounts, "TREE_V2"),
        (Feature::RemovedCgroupTimes, "CARRIED"),
        (Feature::BlockTimes, "BLOCK"),
    ] {
        if !wanted(feature) {
            loader.map_max_entries(map, UNUSED);
        }
    }
    let mut ebpf = match plan.task_loop {
        Some(functions) => loader.load(filled_in(functions).as_bytes()),
        None => loader.load(OBJECT),
    }
    .map_err(|error| describe(&error))?;
    drop(loader);
    let btf = Btf::parse(attach_points, Endianness::default()).map_err(|error| describe(&error))?;

    let refused = load_programs(&mut ebpf, plan, &btf);
    if let Some(reason) = refused.get(TASK_LOOP.name) {
        tracing::warn!(reason, "tasks are walked by the kernel's iterator only");
    }
    let loops = ebpf
        .program(TASK_LOOP.name)
        .is_some_and(|it| it.fd().is_ok());
    let refusal = |programs: &[Program]| programs.iter().find_map(|it| refused.get(it.name));
    let states = plan
        .decisions
        .iter()
        .map(|(feature, decision)| match decision {
            Decision::Load(programs, how) => match refusal(programs) {
                None if *feature == Feature::TaskCounts && loops => {
                    FeatureState::on(*feature, format!("{how}, in a loop of its own"))
                }
                None => FeatureState::on(*feature, *how),
                Some(reason) => FeatureState::off(*feature, reason, remedy_for_refusal()),
            },
            Decision::NotNeeded(how) => FeatureState::on(*feature, *how),
            Decision::Off { reason, remedy } => FeatureState::off(*feature, reason, *remedy),
        })
        .collect();
    // What is attached for a feature that is off would only cost time.
    let used: HashSet<&str> = plan
        .programs_by_feature()
        .filter(|programs| refusal(programs).is_none())
        .flatten()
        .map(|program| program.name)
        .collect();
    for (name, program) in ebpf.programs_mut() {
        if let aya::programs::Program::BtfTracePoint(program) = program
            && !used.contains(name)
        {
            // One that is not loaded is as good.
            let _ = program.unload();
        }
    }
    Ok(Loaded { ebpf, states })
}

/// What helps when the kernel takes no part of the object, by the error it gave.
pub(super) fn remedy_for(reason: &str, kernel: (u32, u32)) -> &'static str {
    let refused = [libc::EPERM, libc::EACCES, libc::ENOSYS]
        .into_iter()
        .any(|errno| reason.contains(&format!("(os error {errno})")));
    if refused && kernel < (5, 11) {
        "before 5.11 maps count as locked memory: LimitMEMLOCK=infinity in the unit, or add \
         CAP_SYS_RESOURCE; and let the seccomp profile allow bpf(2)"
    } else if refused {
        "let the seccomp profile and security module allow bpf(2); the kernel needs \
         CONFIG_BPF_SYSCALL=y"
    } else {
        "report it with the kernel version; cgroup files serve meanwhile"
    }
}

fn remedy_for_refusal() -> &'static str {
    "report it with the kernel version; nothing else is affected"
}

/// Loads and attaches all programs of the plan; returns those that are refused, and why. The
/// verifier takes milliseconds for each, so several are loaded at a time.
fn load_programs(ebpf: &mut Ebpf, plan: &Plan, btf: &Btf) -> HashMap<&'static str, String> {
    let counts = |programs: &[Program]| programs.iter().any(|it| it.name == "load_tasks");
    let also = plan
        .task_loop
        .filter(|_| plan.programs_by_feature().any(counts))
        .map(|_numbers| &TASK_LOOP);
    // One that serves two features is loaded once.
    let mut wanted: HashMap<&str, Program> = plan
        .programs_by_feature()
        .flatten()
        .chain(also)
        .map(|program| (program.name, *program))
        .collect();
    let found: Vec<_> = ebpf
        .programs_mut()
        .filter_map(|(name, program)| Some((wanted.remove(name)?, program)))
        .collect();
    let missing = wanted.into_values().map(|program| {
        let reason = format!("{} is not in the object", program.name);
        (program.name, reason)
    });
    let refused = Mutex::new(missing.collect::<HashMap<_, _>>());
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = threads.min(MAX_LOADERS).min(found.len());
    let queue = Mutex::new(found.into_iter());
    let work = || {
        loop {
            let Some((wanted, program)) = lock(&queue).next() else {
                return;
            };
            if let Err(error) = load_one(program, wanted.kind, btf) {
                let reason = format!("{} is refused: {}", wanted.name, describe(&error));
                lock(&refused).insert(wanted.name, reason);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Without a thread more the others do its work.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    refused.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The object with the numbers of this kernel's functions, as aligned as [`OBJECT`].
fn filled_in(functions: [u32; 3]) -> Aligned {
    let mut words = vec![0_u64; OBJECT.len().div_ceil(size_of::<u64>())];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    if let Some(bytes) = bytes.get_mut(..OBJECT.len()) {
        bytes.copy_from_slice(OBJECT);
        super::kfunc::fill_in(bytes, functions);
    }
    Aligned(words)
}

/// A copy of the object.
struct Aligned(Vec<u64>);

impl Aligned {
    fn as_bytes(&self) -> &[u8] {
        let bytes: &[u8] = bytemuck::cast_slice(&self.0);
        bytes.get(..OBJECT.len()).unwrap_or(bytes)
    }
}

fn load_one(
    program: &mut aya::programs::Program,
    kind: Kind,
    btf: &Btf,
) -> Result<(), ProgramError> {
    match kind {
        Kind::TaskIterator => {
            let program: &mut Iter = program.try_into()?;
            program.load("task", btf)
        }
        Kind::OnDemand => {
            let program: &mut RawTracePoint = program.try_into()?;
            program.load()
        }
        Kind::Tracepoint(name) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load(name, btf)?;
            program.attach().map(drop)
        }
    }
}

/// What one loaded program costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramCost {
    /// Its name in the object.
    pub name: String,
    /// Instructions the verifier went through (kernel 5.16+).
    pub verified: Option<u32>,
    /// Bytes of machine code; 0 without the JIT compiler.
    pub jited: u32,
}

/// The loaded programs, by name.
pub(super) fn costs(ebpf: &Ebpf) -> Vec<ProgramCost> {
    let mut costs: Vec<_> = ebpf
        .programs()
        .filter_map(|(name, program)| {
            let info = program.info().ok()?;
            Some(ProgramCost {
                name: name.to_owned(),
                verified: info.verified_instruction_count(),
                jited: info.size_jitted(),
            })
        })
        .collect();
    costs.sort_by(|a, b| a.name.cmp(&b.name));
    costs
}

/// An error with its causes, and of a verifier log only the end.
fn describe(error: &dyn std::error::Error) -> String {
    const LOG_TAIL: usize = 600;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let start = flat
        .char_indices()
        .rev()
        .nth(LOG_TAIL)
        .map_or(0, |(index, _)| index);
    if start == 0 {
        flat
    } else {
        format!("… {}", &flat[start..])
    }
}

/// Keeps aya's idea of plain data in step with bytemuck's.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Plain<T: Pod>(pub(super) T);

// SAFETY: bytemuck's Pod asks for everything aya's does.
unsafe impl<T: Pod> aya::Pod for Plain<T> {}
