//! The least that a walk over all tasks can cost: the kernel's own iteration, with a program
//! that returns at once.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use aya_obj::btf::{Btf, BtfKind};
use lxcfs_user::bpf::{iterator_link, walk};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
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

/// A loop over all tasks within one run of a program (Linux 6.7 and later), which does nothing
/// with them.
pub(crate) struct EmptyLoop {
    program: OwnedFd,
}

/// The part of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

impl EmptyLoop {
    pub(crate) fn new() -> Result<Self> {
        let call = |name: &str| -> Result<u64> { Ok(0x2085 | u64::from(function(name)?) << 32) };
        let slot = [0xa1bf, 0xffff_ffe8_0000_0107];
        let mut code = slot.to_vec();
        code.extend([0x02b7, 0x1_0000_03b7, call("bpf_iter_task_new")?]);
        code.extend(slot);
        code.extend([call("bpf_iter_task_next")?, 0xfffc_0055]);
        code.extend(slot);
        code.extend([call("bpf_iter_task_destroy")?, 0xb7, 0x95]);
        let program = load(
            &code,
            ProgLoad {
                prog_type: BPF_PROG_TYPE_RAW_TRACEPOINT,
                ..ProgLoad::default()
            },
        )?;
        Ok(Self { program })
    }

    /// One loop over all tasks.
    pub(crate) fn run(&self) -> Result<()> {
        use std::os::fd::AsRawFd;
        let mut run = TestRun {
            prog_fd: self.program.as_raw_fd().unsigned_abs(),
            ..TestRun::default()
        };
        // SAFETY: the attributes are those of the command.
        let done = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_TEST_RUN,
                &raw mut run,
                size_of::<TestRun>(),
            )
        };
        if done < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(())
    }
}

/// The id of a kernel function in the kernel's type information.
fn function(name: &str) -> Result<u32> {
    Btf::from_sys_fs()
        .and_then(|btf| btf.id_by_type_name_kind(name, BtfKind::Func))
        .with_context(|| format!("the kernel's type information has no {name}"))
}

fn empty_program() -> Result<OwnedFd> {
    // r0 = 0; exit
    load(
        &[0xb7, 0x95],
        ProgLoad {
            prog_type: BPF_PROG_TYPE_TRACING,
            expected_attach_type: BPF_TRACE_ITER,
            attach_btf_id: function("bpf_iter_task")?,
            ..ProgLoad::default()
        },
    )
}

fn load(instructions: &[u64], mut load: ProgLoad) -> Result<OwnedFd> {
    load.insn_cnt = u32::try_from(instructions.len())?;
    load.insns = instructions.as_ptr() as u64;
    load.license = c"GPL".as_ptr() as u64;
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
