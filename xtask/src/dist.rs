//! `cargo xtask dist`: static binaries for amd64 and arm64, from Debian's packages alone.
//!
//! amd64 takes the installed toolchain. For arm64 it has no standard library, so Debian's
//! `rustc` of the `rust-web` package compiles with the arm64 standard library of the same
//! version, unpacked into a sysroot of our own; `gcc-aarch64-linux-gnu` links. Both link
//! glibc statically (`+crt-static`): nothing of ours loads a library or looks a name up,
//! which is what static glibc cannot do well.
//!
//! Debian has no standard library for musl. Who has rustup's builds it with `--libc musl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use object::{Architecture, Object, ObjectSection};

use crate::command::{cargo, output, repository, run};
use crate::vm::{Cache, Suite};

/// Builds static binaries for release: target/dist/ARCH/{lxcfs,lxcfs-webhook}.
#[derive(Parser)]
pub(crate) struct Args {
    /// Which processors (both when none is named).
    #[arg(long, value_enum)]
    arch: Vec<Arch>,
    /// Which C library; musl needs `rustup target add`.
    #[arg(long, value_enum, default_value_t = Libc::Gnu)]
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

    /// Whether this machine runs its binaries without help.
    fn is_native(self) -> bool {
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
    if libc == Libc::Musl {
        require_standard_library(target)?;
        if !arch.is_native() {
            let (upper, lower) = (
                target.to_uppercase().replace('-', "_"),
                target.replace('-', "_"),
            );
            cargo
                .env(format!("CARGO_TARGET_{upper}_LINKER"), cross("gcc", arch))
                .env(format!("CC_{lower}"), cross("gcc", arch));
        }
    } else if arch == Arch::Arm64 && !arch.is_native() {
        flags += &format!(" --sysroot {}", arm64_sysroot()?.display());
        cargo
            .env("RUSTC", "/usr/bin/rustc")
            .env("CC_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-gcc")
            .env(
                "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
                "aarch64-linux-gnu-gcc",
            );
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
        let mut strip = Command::new(cross("strip", arch));
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

/// A tool of Debian's for binaries of this processor.
fn cross(tool: &str, arch: Arch) -> String {
    match arch {
        Arch::Arm64 if !arch.is_native() => format!("aarch64-linux-gnu-{tool}"),
        _ => tool.to_owned(),
    }
}

/// Fails unless the compiler in use has this target's standard library.
fn require_standard_library(target: &str) -> Result<()> {
    let mut rustc = Command::new("rustc");
    rustc.current_dir(repository());
    let found = output(rustc.args(["--print", "target-libdir", "--target", target]))?;
    if !Path::new(found.trim()).exists() {
        bail!("{target} has no standard library here: rustup target add {target}");
    }
    Ok(())
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
        .context("cannot run it: for arm64, apt-get install qemu-user")?;
    Ok(version.trim().to_owned())
}

/// A sysroot with the arm64 standard library of Debian's rustc.
fn arm64_sysroot() -> Result<PathBuf> {
    for (file, package) in [
        ("/usr/bin/rustc", "rustc-web"),
        ("/usr/bin/aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
        ("/usr/aarch64-linux-gnu/lib/libc.a", "libc6-dev-arm64-cross"),
    ] {
        if !Path::new(file).exists() {
            bail!("{file} is missing: apt-get install {package}");
        }
    }
    let version = output(Command::new("/usr/bin/rustc").arg("--version"))?;
    let release = version.split_whitespace().nth(1).unwrap_or_default();
    let (major_minor, _) = release.rsplit_once('.').context("rustc has no version")?;
    let cache = Cache::open()?;
    let root = cache.entry(&format!("rust-std-arm64-{release}"), |root| {
        let suite = Suite::fetch_arm64(&cache, "bookworm")?;
        let packages = [
            "libstd-rust-web-dev".to_owned(),
            format!("libstd-rust-web-{major_minor}"),
        ];
        suite.unpack(&packages, root)
    })?;
    Ok(root.join("usr"))
}
