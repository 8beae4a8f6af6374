//! Whatever keeps eBPF off, the daemon serves, and says why and what would help: in one line
//! of its log per feature, in a metric and in `lxcfs doctor`. `vm_lockdown` has the one state
//! that needs a machine booted for it; a daemon in a PID namespace of its own, or without the
//! capabilities to mount, does not start at all (`any_bpf_lifecycle` has the collector in both).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
// vm: 6.12/v2

use std::path::Path;

use lxcfs_tests::states::{assert_off, assert_served, metrics};
use lxcfs_tests::{Lxcfs, require_root};
use lxcfs_user::bpf::Feature;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Starts a daemon in surroundings that `prepare` makes and checks what it says. On a thread
/// of its own, which alone has the surroundings, and hands them to the daemon.
fn state(arguments: &'static [&str], prepare: fn(), reason: &str, remedy: &str) {
    require_root();
    std::thread::scope(|scope| {
        let checks =
            scope.spawn(|| {
                prepare();
                let lxcfs = Lxcfs::start(arguments);
                for feature in Feature::ALL {
                    assert_off(&lxcfs, feature.name(), reason, remedy);
                }
                assert!(metrics(&lxcfs).contains("lxcfs_bpf_programs 0\n"));
                assert_served(&lxcfs);
                assert!(metrics(&lxcfs).contains(
                    "lxcfs_fallbacks_total{field=\"loadavg\",reason=\"tasks_by_procfs\"}"
                ));
                lxcfs.stop();
            });
        if let Err(panic) = checks.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A mount namespace of this thread's own.
fn private_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&Path>, "/", None::<&Path>, flags, None::<&Path>).unwrap();
}

#[test]
fn no_ebpf_is_said_with_the_way_back() {
    state(
        &["--no-ebpf"],
        || {},
        "switched off by --no-ebpf",
        "start without --no-ebpf",
    );
}

#[test]
fn a_kernel_without_btf_is_said() {
    let hidden = || {
        private_mounts();
        let flags = MsFlags::MS_RDONLY;
        mount(
            Some("none"),
            "/sys/kernel/btf",
            Some("tmpfs"),
            flags,
            None::<&Path>,
        )
        .unwrap();
    };
    state(
        &[],
        hidden,
        "/sys/kernel/btf/vmlinux cannot be read",
        "CONFIG_DEBUG_INFO_BTF=y",
    );
}

#[test]
fn a_kernel_that_is_too_old_is_said() {
    // The version that /proc tells is the one that counts.
    let old = || {
        private_mounts();
        let file = std::env::temp_dir().join(format!("lxcfs-test-{}-release", std::process::id()));
        std::fs::write(&file, "5.4.0-150-generic\n").unwrap();
        let target = "/proc/sys/kernel/osrelease";
        let bound = mount(
            Some(&file),
            target,
            None::<&Path>,
            MsFlags::MS_BIND,
            None::<&Path>,
        );
        std::fs::remove_file(&file).unwrap();
        bound.unwrap();
    };
    state(
        &[],
        old,
        "kernel 5.4 has no task iterator",
        "a kernel of 5.8 or later",
    );
}

#[test]
fn a_refused_system_call_is_said() {
    state(&[], refuse_bpf, "os error 1", "allow bpf(2)");
}

/// Has bpf(2) fail with EPERM for this thread and its children, as container runtimes do.
fn refuse_bpf() {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let give = libc::BPF_RET | libc::BPF_K;
    let number = u32::try_from(libc::SYS_bpf).unwrap();
    let mut filter = [
        // The number of the call is the first word of the data.
        instruction(load, 0, 0, 0),
        instruction(equal, 0, 1, number),
        instruction(
            give,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned(),
        ),
        instruction(give, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program outlives the call, which copies it.
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}
