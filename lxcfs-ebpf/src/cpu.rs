//! Per-CPU time of a cgroup, from the kernel's own rstat counters.
//!
//! Both programs are `raw_tp` programs that are never attached; userspace starts them with
//! `BPF_PROG_TEST_RUN`, one at a time.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, bpf_map_type::BPF_MAP_TYPE_CGROUP_ARRAY},
    macros::map,
    maps::{Array, CgroupArray, PerCpuArray},
};

use crate::kernel::{Address, Memory, Probe, known, layout, probe_into};

/// One value per CPU, of which only the addresses matter: they show where the kernel keeps
/// each CPU's data. Also the place where a pointer becomes a number.
#[map]
static ANCHOR: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Per-CPU data offset plus 1; 0 for a CPU that was offline when asked. One per possible CPU.
#[map]
static CPU_OFFSET: Array<u64> = Array::with_max_entries(1, 0);

/// The cgroup that is read, put there by userspace as a directory descriptor (v2 only).
#[map]
static CGROUP: CgroupArray = CgroupArray::with_max_entries(1, 0);

/// `cgroup_base_stat` of each possible CPU, mapped into userspace.
#[map]
static CPU_OUT: Array<[u64; 5]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

const _: u32 = BPF_MAP_TYPE_CGROUP_ARRAY;

/// Turns a pointer into a number: the verifier allows no arithmetic on map pointers, but a
/// pointer stored in a map comes back as a scalar (this needs CAP_PERFMON).
#[inline(always)]
unsafe fn as_number(place: *mut u64, pointer: *const u8) -> u64 {
    // SAFETY: `place` is a value of ANCHOR, private to this CPU while the program runs.
    unsafe {
        core::ptr::write_volatile(place.cast::<*const u8>(), pointer);
        core::ptr::read_volatile(place)
    }
}

/// Where a map keeps its first element or element pointer.
#[inline(always)]
unsafe fn first_pointer(map_address: u64) -> u64 {
    // SAFETY: the probe checks the address.
    unsafe { Probe::u64_at(map_address as Address, layout!(bpf_array_ptrs)) }
}

/// Run once on each CPU: notes the distance of its per-CPU data from the base addresses.
/// `__per_cpu_offset` itself is not in BTF, and kallsyms may hide it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/percpu_offset")]
extern "C" fn percpu_offset(context: *const u64) -> i32 {
    if !known!(bpf_array_ptrs) {
        return -1;
    }
    // SAFETY: the context holds the arguments given to BPF_PROG_TEST_RUN.
    let cpu = unsafe { *context } as u32;
    let Some(anchor) = ANCHOR.get_ptr_mut(0) else { return -1 };
    let Some(offset) = CPU_OFFSET.get_ptr_mut(cpu) else { return -1 };
    // SAFETY: both pointers are into map values.
    unsafe {
        let here = as_number(anchor, anchor.cast_const().cast());
        let base = first_pointer(as_number(anchor, (&raw const ANCHOR).cast()));
        if base == 0 {
            return -1;
        }
        *offset = here.wrapping_sub(base).wrapping_add(1);
    }
    0
}

/// Copies the counters of the cgroup in CGROUP to CPU_OUT: with its descendants if argument
/// 0 is not zero, its own tasks only otherwise.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/cgroup_cpu")]
extern "C" fn cgroup_cpu(context: *const u64) -> i32 {
    if !known!(bpf_array_ptrs, cgroup_rstat, rstat_bstat, gate_cpus, gate_bstat_len) {
        return -1;
    }
    // SAFETY: the context holds the arguments given to BPF_PROG_TEST_RUN.
    let subtree = unsafe { *context } != 0;
    let mut place = layout!(rstat_bstat);
    if subtree {
        if !known!(rstat_subtree_bstat) {
            return -1;
        }
        place = layout!(rstat_subtree_bstat);
    }
    let Some(anchor) = ANCHOR.get_ptr_mut(0) else { return -1 };
    // SAFETY: map values by checked pointers, kernel memory by probe.
    unsafe {
        let cgroup = first_pointer(as_number(anchor, (&raw const CGROUP).cast()));
        if cgroup == 0 {
            return -2;
        }
        let rstat = Probe::u64_at(cgroup as Address, layout!(cgroup_rstat));
        if rstat == 0 {
            return -3;
        }
        for cpu in 0..layout!(gate_cpus) {
            let Some(offset) = CPU_OFFSET.get(cpu) else { break };
            if *offset == 0 {
                continue;
            }
            let Some(out) = CPU_OUT.get_ptr_mut(cpu) else { break };
            let source = rstat.wrapping_add(*offset - 1).wrapping_add(u64::from(place));
            if !probe_into(out, layout!(gate_bstat_len), source) {
                return -4;
            }
        }
    }
    0
}

/// The per-CPU address a cgroup's own counters have on `cpu`, 0 when it is not known.
#[inline(always)]
pub(crate) unsafe fn own_counters<M: Memory>(cgroup: Address, cpu: u32) -> u64 {
    // SAFETY: the caller checked that `cgroup` is not null.
    unsafe {
        let rstat = M::u64_at(cgroup, layout!(cgroup_rstat));
        match CPU_OFFSET.get(cpu) {
            Some(offset) if *offset != 0 && rstat != 0 => {
                rstat.wrapping_add(*offset - 1).wrapping_add(u64::from(layout!(rstat_bstat)))
            }
            _ => 0,
        }
    }
}
