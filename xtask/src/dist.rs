//! `cargo xtask dist`: static binaries for amd64 and arm64, from Debian's packages alone.
//!
//! amd64 takes the installed toolchain. For arm64 it has no standard library, so Debian's
//! `rustc` of the `rust-web` package compiles with the arm64 standard library of the same
//! version, unpacked into a sysroot of our own; `gcc-aarch64-linux-gnu` links. Both link
//! glibc statically (`+crt-static`): nothing of ours loads a library or looks a name up,
//! which is what static glibc cannot do well.

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
    /// Build without optimisation: to try the route, not to ship.
    #[arg(long)]
    debug: bool,
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

    const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
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
        std::env::consts::ARCH == self.target().split('-').next().unwrap_or_default()
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
            build(*arch, self.debug)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn build(arch: Arch, debug: bool) -> Result<()> {
    println!("Building static binaries for {}", arch.name());
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
        .args(["--target", arch.target()])
        .arg("--target-dir")
        .arg(&target_dir);
    if !debug {
        cargo.arg("--release");
    }
    let mut flags = "-C target-feature=+crt-static".to_owned();
    if arch == Arch::Arm64 && !arch.is_native() {
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
        let from = target_dir.join(arch.target()).join(profile).join(name);
        let to = out.join(name);
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        let mut strip = Command::new(match arch {
            Arch::Arm64 if !arch.is_native() => "aarch64-linux-gnu-strip",
            _ => "strip",
        });
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
