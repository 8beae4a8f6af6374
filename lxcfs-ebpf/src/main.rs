//! The eBPF programs of lxcfs.
//!
//! None of them is attached to a scheduler path. The walks (`load_tasks`, `containers`) run
//! when userspace reads their iterator, `load_tasks_loop`, `percpu_offset` and `cgroup_cpu` when it
//! starts them with `BPF_PROG_TEST_RUN`; the others sit on events that are rare (a cgroup
//! made or removed, a container started) or that cost far more than the count (a disk
//! request done).
//!
//! # Rules of this crate
//!
//! * Field offsets come from [`kernel::LAYOUT`], which userspace fills from the running
//!   kernel's BTF; there is no CO-RE. An absent field is a branch the verifier never enters.
//! * Loads go through [`kernel::Direct`] (typed loads the verifier checks; they work under
//!   `lockdown=confidentiality`) or [`kernel::Probe`] (`bpf_probe_read_kernel`). Programs
//!   ending in `_pr` use the latter, for kernels below 6.1: there a direct load through a
//!   null pointer in a program that has a subprogram oopses the kernel.
//! * So: null-check every pointer before loading through it, and no BPF-to-BPF calls. LLVM
//!   makes a call to `memset` of a zeroed struct; copy a zero constant or write field by
//!   field. `cargo xtask build-ebpf` refuses an object that has such a call.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod block;
mod cgroups;
mod containers;
mod cpu;
mod kernel;
mod task_loop;
mod tasks;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No program keeps a path to here: the verifier would refuse the endless loop.
    loop {}
}

/// The kernel asks for a GPL-compatible licence before it allows the tracing helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
