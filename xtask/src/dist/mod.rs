//! `cargo xtask dist`: static binaries for amd64 and arm64, from Debian's packages alone.
//!
//! They link musl: a static musl binary looks nothing up at run time. Where the toolchain in
//! use has the target's standard library (rustup's does after `rustup target add`), it
//! builds them; otherwise Debian's `rustc-web` does, with a standard library made from
//! Debian's source of it (`sysroot`). `gcc-aarch64-linux-gnu` links for arm64, and every
//! binary is started once, the foreign one with `qemu-user`.
//!
//! `--libc gnu` links glibc statically instead: nothing of ours loads a library or looks a
//! name up, which is what static glibc cannot do well.

mod sysroot;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use object::{Architecture, Object, ObjectSection};

use crate::command::{cargo, output, repository, run};
use crate::setup::{self, Purpose};

/// Builds static binaries for release: target/dist/ARCH/{lxcfs,lxcfs-webhook}.
#[derive(Parser)]
pub(crate) struct Args {
    /// Which processors (both when none is named).
    #[arg(long, value_enum)]
    arch: Vec<Arch>,
    /// Which C library.
    #[arg(long, value_enum, default_value_t = Libc::Musl)]
    libc: Libc,
    /// Build without optimisation: to try the route, not to ship.
    #[arg(long)]
    debug: bool,
}

/// A C library to link statically.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Libc {
    /// glibc
    Gnu,
    /// musl
    Musl,
}

/// A processor we ship for, in the words of container images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// x86-64
    Amd64,
    /// AArch64
    Arm64,
}

impl Arch {
    pub(crate) const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    const fn target(self, libc: Libc) -> &'static str {
        match (self, libc) {
            (Self::Amd64, Libc::Gnu) => "x86_64-unknown-linux-gnu",
            (Self::Arm64, Libc::Gnu) => "aarch64-unknown-linux-gnu",
            (Self::Amd64, Libc::Musl) => "x86_64-unknown-linux-musl",
            (Self::Arm64, Libc::Musl) => "aarch64-unknown-linux-musl",
        }
    }

    const fn architecture(self) -> Architecture {
        match self {
            Self::Amd64 => Architecture::X86_64,
            Self::Arm64 => Architecture::Aarch64,
        }
    }

    /// A tool of Debian's for binaries of this processor.
    fn tool(self, name: &str) -> String {
        match self {
            Self::Arm64 if !self.is_native() => format!("aarch64-linux-gnu-{name}"),
            _ => name.to_owned(),
        }
    }

    /// Whether this machine runs its binaries without help.
    pub(crate) fn is_native(self) -> bool {
        let target = self.target(Libc::Gnu);
        std::env::consts::ARCH == target.split('-').next().unwrap_or_default()
    }
}

/// What an image or an archive is made of.
pub(crate) const BINARIES: [&str; 2] = ["lxcfs", "lxcfs-webhook"];

/// Where the binaries of a processor end up.
pub(crate) fn directory(arch: Arch) -> PathBuf {
    repository().join("target/dist").join(arch.name())
}

impl Args {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        setup::ensure(&[Purpose::Dist])?;
        let archs = if self.arch.is_empty() {
            &Arch::ALL[..]
        } else {
            &self.arch
        };
        for arch in archs {
            build(*arch, self.libc, self.debug)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn build(arch: Arch, libc: Libc, debug: bool) -> Result<()> {
    let target = arch.target(libc);
    println!("Building static binaries for {}: {target}", arch.name());
    let mut cargo = cargo();
    // A target directory of its own: another compiler must not invalidate the usual one.
    let target_dir = repository().join("target/static").join(arch.name());
    cargo
        .args([
            "build",
            "--locked",
            "--bins",
            "-p",
            "lxcfs-user",
            "-p",
            "lxcfs-kube",
        ])
        .args(["--target", target])
        .arg("--target-dir")
        .arg(&target_dir);
    if !debug {
        cargo.arg("--release");
    }
    let mut flags = "-C target-feature=+crt-static".to_owned();
    let variable = target.replace('-', "_");
    if !arch.is_native() {
        cargo.env(
            format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()),
            arch.tool("gcc"),
        );
    }
    cargo.env(format!("CC_{variable}"), arch.tool("gcc"));
    if !has_standard_library(target)? {
        let sysroot = sysroot::debian(arch, libc)?;
        flags += &format!(" --sysroot {}", sysroot.display());
        cargo.env("RUSTC", sysroot::RUSTC);
        if libc == Libc::Musl {
            cargo.env(
                format!("CFLAGS_{variable}"),
                sysroot::c_flags(arch, &sysroot)?,
            );
        }
    }
    // Flags for the target alone: build scripts and macros run here and stay dynamic.
    run(cargo.env("RUSTFLAGS", flags).env_remove("RUSTUP_TOOLCHAIN"))?;

    let profile = if debug { "debug" } else { "release" };
    let out = directory(arch);
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    for name in BINARIES {
        let from = target_dir.join(target).join(profile).join(name);
        let to = out.join(name);
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        let mut strip = Command::new(arch.tool("strip"));
        run(strip.arg(&to))?;
        check(&to, arch)?;
        println!(
            "{}: {} KiB, {}",
            to.display(),
            fs::metadata(&to)?.len() / 1024,
            starts(&to, arch)?
        );
    }
    Ok(())
}

/// Whether the compiler in use has this target's standard library.
fn has_standard_library(target: &str) -> Result<bool> {
    let mut rustc = Command::new("rustc");
    rustc.current_dir(repository());
    let found = output(rustc.args(["--print", "target-libdir", "--target", target]))?;
    Ok(Path::new(found.trim()).exists())
}

/// The binary is for this processor and asks for no loader.
fn check(binary: &Path, arch: Arch) -> Result<()> {
    let bytes = fs::read(binary)?;
    let file = object::File::parse(&*bytes)
        .with_context(|| format!("{} is no ELF file", binary.display()))?;
    if file.architecture() != arch.architecture() {
        bail!("{} is for {:?}", binary.display(), file.architecture());
    }
    if file
        .sections()
        .any(|section| section.name() == Ok(".interp"))
    {
        bail!("{} is not static: it asks for a loader", binary.display());
    }
    Ok(())
}

/// Runs it, on an emulated processor where needed, and returns its version.
fn starts(binary: &Path, arch: Arch) -> Result<String> {
    let mut command = if arch.is_native() {
        Command::new(binary)
    } else {
        let mut qemu = Command::new("qemu-aarch64");
        qemu.arg(binary);
        qemu
    };
    let version = output(command.arg("--version"))
        .with_context(|| format!("cannot run {}", binary.display()))?;
    Ok(version.trim().to_owned())
}
