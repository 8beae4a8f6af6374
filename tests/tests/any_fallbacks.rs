//! Whatever keeps eBPF off, the daemon serves, and says why and what would help: in one line
//! of its log per feature, in a metric and in `lxcfs doctor`. In a PID namespace of its own it
//! does not start at all, and says that. `vm_lockdown` has the one state that needs a machine
//! booted for it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
// vm: all/v2

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use lxcfs_holder::MANAGED_ENV;
use lxcfs_tests::serve::eventually;
use lxcfs_tests::states::{assert_off, assert_served, metrics};
use lxcfs_tests::{Lxcfs, lxcfs_binary, require_root};
use lxcfs_user::bpf::Feature;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Starts a daemon in surroundings that `prepare` makes and checks what it says. On a thread
/// of its own, which alone has the surroundings, and hands them to the daemon.
fn state(arguments: &'static [&str], prepare: fn(), reason: &str, remedy: &str) {
    require_root();
    std::thread::scope(|scope| {
        let checks = scope.spawn(|| {
            prepare();
            let lxcfs = Lxcfs::start(arguments);
            assert_all_off(&lxcfs, reason, remedy);
            lxcfs.stop();
        });
        if let Err(panic) = checks.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// What each place says when all is off for one reason.
fn assert_all_off(lxcfs: &Lxcfs, reason: &str, remedy: &str) {
    for feature in Feature::ALL {
        assert_off(lxcfs, feature.name(), reason, remedy);
    }
    assert!(metrics(lxcfs).contains("lxcfs_bpf_programs 0\n"));
    assert_served(lxcfs);
    let counted = "lxcfs_fallbacks_total{field=\"loadavg\",reason=\"tasks_by_procfs\"}";
    assert!(metrics(lxcfs).contains(counted));
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

/// Who mounts has CAP_SYS_ADMIN, which includes both. But a daemon that takes a mount over needs
/// no right to mount: from a holder that died, as here, or from the service manager's store.
#[test]
fn missing_capabilities_are_said() {
    let mut first = Command::new(lxcfs_binary());
    // As under a service manager: nobody but us starts another.
    first.env(MANAGED_ENV, "1");
    let lxcfs = Lxcfs::start_by::<&str>(first, &[]);
    eventually("the first daemon has eBPF", || {
        lxcfs.log().contains("block_times: on")
    });
    lxcfs.signal(Signal::SIGKILL);
    let log = File::options()
        .append(true)
        .open(lxcfs.runtime_dir().join("log"))
        .unwrap();
    let mut successor = Command::new("setpriv")
        .args(["--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all"])
        .arg("--bounding-set=-all,+sys_ptrace,+sys_chroot,+dac_read_search,+kill")
        .arg(lxcfs_binary())
        .arg("--runtime-dir")
        .args([lxcfs.runtime_dir(), &lxcfs.mountpoint()])
        .env(MANAGED_ENV, "1")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let remedy = "AmbientCapabilities=CAP_BPF CAP_PERFMON";
    assert_all_off(&lxcfs, "CAP_BPF and CAP_PERFMON are missing", remedy);
    let pid = Pid::from_raw(successor.id().cast_signed());
    kill(pid, Signal::SIGTERM).unwrap();
    successor.wait().unwrap();
}

/// There every container but those below would be unknown to it.
#[test]
fn a_pid_namespace_of_its_own_is_refused_and_the_remedy_is_named() {
    require_root();
    let directory = tempfile::TempDir::with_prefix("lxcfs-test-").unwrap();
    let mountpoint = directory.path().join("mnt");
    std::fs::create_dir(&mountpoint).unwrap();
    let inside = |arguments: &[&OsStr]| {
        Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc"])
            .arg(lxcfs_binary())
            .args(arguments)
            .arg("--runtime-dir")
            .arg(directory.path())
            .output()
            .unwrap()
    };
    let start = inside(&[mountpoint.as_os_str()]);
    assert!(!start.status.success(), "{start:?}");
    let said = String::from_utf8_lossy(&start.stderr).into_owned();
    assert!(
        said.contains("in a PID namespace of its own") && said.contains("hostPID: true"),
        "{said}"
    );
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(mountpoint.to_str().unwrap()), "{mounts}");
    assert!(!directory.path().join("lxcfs.pid").exists());
    let doctor = inside(&["doctor".as_ref()]);
    let rows = String::from_utf8_lossy(&doctor.stdout).into_owned();
    let row = rows.lines().find(|line| line.contains("namespaces"));
    assert!(
        row.is_some_and(
            |row| row.contains("in a PID namespace of its own") && row.contains("hostPID: true")
        ),
        "{rows}"
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
