//! The least that a walk over all tasks can cost: the kernel's own iteration, with a program
//! that returns at once.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use aya_obj::btf::{Btf, BtfKind};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_TRACE_ITER: u32 = 28;

/// The part of `union bpf_attr` for `BPF_PROG_LOAD` up to `attach_btf_id`.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// A task iterator whose program does nothing.
pub(crate) struct EmptyWalk {
    link: OwnedFd,
    _program: OwnedFd,
}

impl EmptyWalk {
    pub(crate) fn new() -> Result<Self> {
        // r0 = 0; exit
        let instructions: [u64; 2] = [0xb7, 0x95];
        let target = Btf::from_sys_fs()
            .and_then(|btf| btf.id_by_type_name_kind("bpf_iter_task", BtfKind::Func))
            .context("the kernel's type information has no bpf_iter_task")?;
        let mut load = ProgLoad {
            prog_type: BPF_PROG_TYPE_TRACING,
            insn_cnt: 2,
            insns: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            expected_attach_type: BPF_TRACE_ITER,
            attach_btf_id: target,
            ..ProgLoad::default()
        };
        let program = bpf(BPF_PROG_LOAD, &mut load).context("loading the empty program")?;
        let mut attributes = [program.as_raw_fd().unsigned_abs(), 0, BPF_TRACE_ITER, 0];
        let link = bpf(BPF_LINK_CREATE, &mut attributes).context("linking the empty program")?;
        Ok(Self {
            link,
            _program: program,
        })
    }

    /// One walk over all tasks.
    pub(crate) fn walk(&self) -> Result<()> {
        let mut attributes = [self.link.as_raw_fd().unsigned_abs(), 0];
        let mut file = File::from(bpf(BPF_ITER_CREATE, &mut attributes)?);
        while file.read(&mut [0; 64])? > 0 {}
        Ok(())
    }
}

/// A command of `bpf(2)` that makes a descriptor.
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> Result<OwnedFd> {
    let size = size_of::<T>();
    // SAFETY: each caller gives the attributes of its command, whose pointers are valid; the
    // kernel made the descriptor for us.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size);
        if fd < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(OwnedFd::from_raw_fd(i32::try_from(fd)?))
    }
}
