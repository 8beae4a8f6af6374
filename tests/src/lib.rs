//! Guards shared by the tests on the real kernel: what they make vanishes with them, also when a
//! test fails. `CONTRIBUTING.md` says where a test goes.

pub mod burner;
pub mod capture;
pub mod cgroup;
pub mod chaos;
pub mod container;
pub mod containerd;
pub mod cri;
pub mod disk;
pub mod docker;
pub mod footprint;
pub mod lifecycle;
pub mod mount;
pub mod node;
pub mod package;
pub mod place;
pub mod podman;
pub mod reader;
pub mod report;
pub mod scratch;
pub mod serve;
pub mod split;
pub mod states;
pub mod steady;
pub mod subject;
pub mod versus;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub use burner::Burner;
pub use cgroup::{Layout, TestCgroup};
pub use container::Container;
pub use mount::Lxcfs;
pub use place::Place;
pub use podman::Podman;

/// The `lxcfs` to test: `LXCFS_BIN` where that is set (virtual machines set it), otherwise the
/// workspace's own debug build, brought up to date once per test process.
///
/// # Panics
/// When it does not build: cargo's message is on stderr.
pub fn lxcfs_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("LXCFS_BIN") {
            return path.into();
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(&cargo)
            .args(["build", "--quiet", "-p", "lxcfs-user", "--bin", "lxcfs"])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .status()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", cargo.display()));
        assert!(status.success(), "lxcfs does not build");
        // A test executable is target/debug/deps/NAME; lxcfs is one level up.
        let own = std::env::current_exe().unwrap_or_else(|error| panic!("no own path: {error}"));
        let debug = own.ancestors().nth(2).unwrap_or(Path::new("/"));
        debug.join("lxcfs")
    })
}

/// Fails unless the test may mount and make cgroups.
///
/// # Panics
/// When not run as root.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test mounts and makes cgroups: run it as root, as `cargo xtask test` says"
    );
}

/// Runs a program to its end and returns its standard output.
///
/// # Panics
/// When it cannot start or fails; the message holds its standard error.
pub fn stdout_of(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub mod fixture;
pub mod kernel_bpf;
