//! Reading kernel memory at the offsets userspace resolved.

use aya_ebpf::{
    helpers::{bpf_probe_read_kernel, generated},
    macros::map,
    maps::Array,
};
use lxcfs_common::bpf::{KernelLayout, LossCounter};

/// Where this kernel keeps its fields. Userspace overrides the value before loading.
#[unsafe(no_mangle)]
pub(crate) static LAYOUT: KernelLayout = KernelLayout::UNKNOWN;

/// What could not be recorded, by [`LossCounter`].
#[map]
static LOSSES: Array<u64> = Array::with_max_entries(LossCounter::COUNT, 0);

/// Reads a field so that the compiler does not fold its initial value.
#[inline(always)]
pub(crate) fn constant(field: &'static u32) -> u32 {
    // SAFETY: the reference is valid; the read is volatile only to survive constant folding.
    unsafe { core::ptr::read_volatile(field) }
}

/// A field of [`LAYOUT`].
macro_rules! layout {
    ($field:ident) => {
        crate::kernel::constant(&crate::kernel::LAYOUT.$field)
    };
}
pub(crate) use layout;

/// Whether a field exists on this kernel.
macro_rules! known {
    ($($field:ident),+) => {
        $(crate::kernel::layout!($field) != lxcfs_common::bpf::ABSENT)&&+
    };
}
pub(crate) use known;

/// A kernel address, typed for the verifier by how it was loaded.
pub(crate) type Address = *const u8;

/// One way of following pointers in kernel memory.
///
/// The base must not be null. A failed read gives 0, a null pointer.
pub(crate) trait Memory {
    unsafe fn u32_at(base: Address, offset: u32) -> u32;
    unsafe fn u64_at(base: Address, offset: u32) -> u64;
    unsafe fn pointer_at(base: Address, offset: u32) -> Address;
}

/// Typed loads: `base` must be a pointer the verifier knows the type of.
pub(crate) struct Direct;

impl Memory for Direct {
    #[inline(always)]
    unsafe fn u32_at(base: Address, offset: u32) -> u32 {
        // SAFETY: the verifier allows the load only inside the struct and handles faults.
        unsafe { core::ptr::read_volatile(base.add(offset as usize).cast()) }
    }

    #[inline(always)]
    unsafe fn u64_at(base: Address, offset: u32) -> u64 {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(base.add(offset as usize).cast()) }
    }

    #[inline(always)]
    unsafe fn pointer_at(base: Address, offset: u32) -> Address {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(base.add(offset as usize).cast()) }
    }
}

/// Reads by `bpf_probe_read_kernel`: any address, but refused under
/// `lockdown=confidentiality`.
pub(crate) struct Probe;

impl Memory for Probe {
    #[inline(always)]
    unsafe fn u32_at(base: Address, offset: u32) -> u32 {
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_kernel(base.add(offset as usize).cast::<u32>()) }.unwrap_or(0)
    }

    #[inline(always)]
    unsafe fn u64_at(base: Address, offset: u32) -> u64 {
        // SAFETY: as above.
        unsafe { bpf_probe_read_kernel(base.add(offset as usize).cast::<u64>()) }.unwrap_or(0)
    }

    #[inline(always)]
    unsafe fn pointer_at(base: Address, offset: u32) -> Address {
        // SAFETY: as above.
        unsafe { Self::u64_at(base, offset) as Address }
    }
}

/// Bulk read of `length` bytes, at most the size of `T`, to `target`.
#[inline(always)]
pub(crate) unsafe fn probe_into<T>(target: *mut T, length: u32, source: u64) -> bool {
    // SAFETY: the verifier checks target and length, the helper checks the source.
    unsafe { generated::bpf_probe_read_kernel(target.cast(), length, source as *const _) == 0 }
}

/// Counts something that could not be recorded; returns how often that happened, 0 when even
/// that is not known. Not atomic: the order of magnitude counts.
#[inline(always)]
pub(crate) fn lose(what: LossCounter) -> u64 {
    let Some(counter) = LOSSES.get_ptr_mut(what as u32) else { return 0 };
    // SAFETY: the pointer is into the map's value.
    unsafe {
        *counter += 1;
        *counter
    }
}

/// Whether a loss is worth a line in the log: at each doubling, so that a full table is told
/// of and does not flood it.
#[inline(always)]
pub(crate) fn is_news(lost: u64) -> bool {
    lost != 0 && lost & (lost - 1) == 0
}

/// The id of a cgroup, 0 when it cannot be read.
#[inline(always)]
pub(crate) unsafe fn cgroup_id<M: Memory>(cgroup: Address) -> u64 {
    // SAFETY: the caller checked that `cgroup` is not null.
    unsafe {
        let node = M::pointer_at(cgroup, layout!(cgroup_kn));
        if node.is_null() { 0 } else { M::u64_at(node, layout!(kernfs_id)) }
    }
}

/// The parent of a cgroup, null for the root of a hierarchy.
#[inline(always)]
pub(crate) unsafe fn cgroup_parent<M: Memory>(cgroup: Address) -> Address {
    // SAFETY: the caller checked that `cgroup` is not null.
    unsafe {
        let css = M::pointer_at(cgroup, layout!(cgroup_self) + layout!(css_parent));
        if css.is_null() { css } else { M::pointer_at(css, layout!(css_cgroup)) }
    }
}

/// The cgroup a `css_set` names on the v2 hierarchy.
#[inline(always)]
pub(crate) unsafe fn v2_cgroup<M: Memory>(css_set: Address) -> Address {
    // SAFETY: the caller checked that `css_set` is not null.
    unsafe { M::pointer_at(css_set, layout!(css_set_dfl_cgrp)) }
}

/// The cgroup a `css_set` names on the v1 hierarchy that is counted. Only to be called
/// behind `known!(gate_v1_subsys, css_set_subsys)`.
#[inline(always)]
pub(crate) unsafe fn v1_cgroup<M: Memory>(css_set: Address) -> Address {
    // SAFETY: the caller checked that `css_set` is not null.
    unsafe {
        let css = M::pointer_at(css_set, layout!(css_set_subsys) + 8 * layout!(gate_v1_subsys));
        if css.is_null() { css } else { M::pointer_at(css, layout!(css_cgroup)) }
    }
}
