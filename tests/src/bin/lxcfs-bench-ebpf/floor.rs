//! The least that a walk over all tasks can cost: the kernel's own iteration, with a program
//! that returns at once.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use aya_obj::btf::{Btf, BtfKind};
use lxcfs_user::bpf::{iterator_link, walk};

const BPF_PROG_LOAD: libc::c_long = 5;
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
}

impl EmptyWalk {
    pub(crate) fn new() -> Result<Self> {
        let program = empty_program().context("loading the empty program")?;
        let link = iterator_link(program.as_fd()).context("linking the empty program")?;
        Ok(Self { link })
    }

    /// One walk over all tasks.
    pub(crate) fn walk(&self) -> Result<()> {
        Ok(walk(self.link.as_fd(), &mut Vec::new())?)
    }
}

fn empty_program() -> Result<OwnedFd> {
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
    // SAFETY: the attributes are those of the command, and their pointers valid; the kernel made
    // the descriptor for us.
    unsafe {
        let size = size_of::<ProgLoad>();
        let fd = libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw mut load, size);
        if fd < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(OwnedFd::from_raw_fd(i32::try_from(fd)?))
    }
}
