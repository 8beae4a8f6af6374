//! Which Debian packages each purpose needs, and installing the missing ones.
//!
//! Nothing is installed silently: the list is printed first. The system's apt sources are never
//! edited; what a stock Debian cannot install is fetched through private lists (see `vm`).

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};

use crate::command::{is_root, run, shown};

/// Installs the Debian packages that the given purposes need (all of them when none is named).
#[derive(Parser)]
pub(crate) struct Args {
    /// What to prepare for.
    #[arg(value_enum)]
    purposes: Vec<Purpose>,
    /// Only print what is missing; exit 1 if anything is.
    #[arg(long)]
    dry_run: bool,
}

/// A reason to need packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Purpose {
    /// Compile and link the workspace.
    Build,
    /// `cargo xtask run`: a container and the tools shown beside the host.
    Run,
    /// Native tests: real containers and real clients.
    Test,
    /// Virtual machines: QEMU, kernels, a Debian root image.
    Vm,
    /// `cargo xtask build-ebpf` with Debian's own compiler.
    Ebpf,
    /// `cargo xtask dist` and `cargo xtask image`: compilers and an emulator for arm64.
    Dist,
    /// `cargo xtask fuzz`: libFuzzer is written in C++.
    Fuzz,
}

/// One requirement: the package, and a file that is there when it is installed.
#[derive(Debug, PartialEq, Eq)]
struct Requirement {
    package: &'static str,
    file: &'static str,
}

const fn needs(package: &'static str, file: &'static str) -> Requirement {
    Requirement { package, file }
}

const BUILD: &[Requirement] = &[
    needs("gcc", "/usr/bin/cc"),
    needs("libc6-dev", "/usr/include/stdio.h"),
    needs("git", "/usr/bin/git"),
];

const RUN: &[Requirement] = &[
    needs("procps", "/usr/bin/free"),
    needs("podman", "/usr/bin/podman"),
    needs("runc", "/usr/sbin/runc"),
    needs("util-linux", "/usr/bin/unshare"),
    needs("mount", "/usr/bin/mount"),
    needs("busybox-static", "/bin/busybox"),
];

const TEST: &[Requirement] = &[
    needs("uidmap", "/usr/bin/newuidmap"),
    needs("sysstat", "/usr/bin/mpstat"),
    needs("htop", "/usr/bin/htop"),
    needs("tmux", "/usr/bin/tmux"),
    needs("strace", "/usr/bin/strace"),
    needs(
        "python3-psutil",
        "/usr/lib/python3/dist-packages/psutil/__init__.py",
    ),
    needs("iproute2", "/usr/bin/ip"),
    needs("bpftool", "/usr/sbin/bpftool"),
    needs("curl", "/usr/bin/curl"),
    needs("openssl", "/usr/bin/openssl"),
    // Manifests and metrics: checked by Prometheus's tool and a validator from PyPI.
    needs("prometheus", "/usr/bin/promtool"),
    needs("python3-venv", "/usr/share/doc/python3-venv"),
];

const VM: &[Requirement] = &[
    needs("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    needs("debootstrap", "/usr/sbin/debootstrap"),
    needs(
        "debian-archive-keyring",
        "/usr/share/keyrings/debian-archive-keyring.gpg",
    ),
    needs("e2fsprogs", "/sbin/mke2fs"),
    needs("busybox-static", "/bin/busybox"),
    needs("kmod", "/sbin/depmod"),
    needs("xz-utils", "/usr/bin/xz"),
    needs("zstd", "/usr/bin/zstd"),
    needs("binutils", "/usr/bin/strip"),
];

/// Only where the kept object is built anew; see `build_ebpf`.
const EBPF: &[Requirement] = &[
    needs("rustc-web", "/usr/bin/rustc"),
    needs(
        "libstd-rust-web-dev-bpf",
        "/usr/lib/rustlib/bpfel-unknown-none",
    ),
    needs("llvm-22-dev", "/usr/include/llvm-22"),
    needs("libpolly-22-dev", "/usr/lib/llvm-22/lib/libPolly.a"),
    needs("zlib1g-dev", "/usr/include/zlib.h"),
    needs("libzstd-dev", "/usr/include/zstd.h"),
    needs("libxml2-dev", "/usr/include/libxml2"),
];

const FUZZ: &[Requirement] = &[needs("g++", "/usr/bin/g++")];

const DIST: &[Requirement] = &[
    needs("rustc-web", "/usr/bin/rustc"),
    needs("gcc-aarch64-linux-gnu", "/usr/bin/aarch64-linux-gnu-gcc"),
    needs("libc6-dev-arm64-cross", "/usr/aarch64-linux-gnu/lib/libc.a"),
    needs("qemu-user", "/usr/bin/qemu-aarch64"),
    needs("binutils", "/usr/bin/strip"),
    needs("podman", "/usr/bin/podman"),
    needs("runc", "/usr/sbin/runc"),
    needs("skopeo", "/usr/bin/skopeo"),
];

impl Purpose {
    fn requirements(self) -> Vec<&'static Requirement> {
        let lists: &[&[Requirement]] = match self {
            Self::Build => &[BUILD],
            Self::Run => &[BUILD, RUN],
            Self::Test => &[BUILD, RUN, TEST],
            Self::Vm => &[BUILD, VM],
            Self::Ebpf => &[BUILD, EBPF],
            Self::Dist => &[BUILD, DIST],
            Self::Fuzz => &[BUILD, FUZZ],
        };
        lists.iter().copied().flatten().collect()
    }
}

impl Args {
    /// Installs, or with `--dry-run` only reports.
    pub(crate) fn run(self) -> Result<ExitCode> {
        let purposes: &[Purpose] = if self.purposes.is_empty() {
            Purpose::value_variants()
        } else {
            &self.purposes
        };
        if self.dry_run {
            let missing = missing(purposes);
            for package in &missing {
                println!("{package}");
            }
            return Ok(if missing.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        ensure(purposes)?;
        println!("Everything needed is installed.");
        Ok(ExitCode::SUCCESS)
    }
}

/// Installs what `purposes` need and this machine lacks, after saying so.
///
/// # Errors
/// When the machine has no apt, when we are not root (the message holds the command to run), or
/// when apt fails or leaves something missing.
pub(crate) fn ensure(purposes: &[Purpose]) -> Result<()> {
    let wanted = missing(purposes);
    if wanted.is_empty() {
        return Ok(());
    }
    let mut install = apt_get();
    install
        .args(["install", "-y", "--no-install-recommends"])
        .args(&wanted);
    if !is_root() {
        bail!(
            "missing Debian packages: {}\nInstall them with: sudo {}",
            wanted.join(" "),
            shown(&install)
        );
    }
    println!("Installing Debian packages: {}", wanted.join(" "));
    // The lists of a fresh machine or image are empty or too old to name files that still exist.
    run(apt_get().arg("update")).context("cannot refresh the package lists")?;
    run(&mut install)?;
    let still = missing(purposes);
    if !still.is_empty() {
        bail!(
            "apt-get succeeded, but these packages lack the file we look for: {}",
            still.join(" ")
        );
    }
    Ok(())
}

/// Packages whose file is absent, each once, in the order of the lists above.
fn missing(purposes: &[Purpose]) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for requirement in purposes.iter().flat_map(|purpose| purpose.requirements()) {
        let absent = std::fs::metadata(requirement.file).is_err();
        if absent && !packages.contains(&requirement.package) {
            packages.push(requirement.package);
        }
    }
    packages
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
    command.args(["-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=5"]);
    command
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use clap::ValueEnum;

    use super::{Purpose, Requirement};

    #[test]
    fn a_package_is_recognised_by_one_file_everywhere() {
        let mut seen: HashMap<&str, &Requirement> = HashMap::new();
        for requirement in Purpose::value_variants()
            .iter()
            .flat_map(|p| p.requirements())
        {
            assert!(requirement.file.starts_with('/'), "{requirement:?}");
            let first = seen.entry(requirement.package).or_insert(requirement);
            assert_eq!(*first, requirement);
        }
    }
}
