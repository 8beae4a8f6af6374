//! `cargo xtask build-ebpf`: builds the eBPF object and replaces the kept one.
//!
//! The object is kept in the tree, so that a plain `cargo build` needs no BPF tools. What is
//! built here is the same bytes wherever it is built with the toolchain named in
//! `lxcfs-ebpf/toolchain.txt`; CI rebuilds it and fails when the kept one is stale.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use object::{Object, ObjectSection, ObjectSymbol, SectionKind};

use crate::command::{output, repository, run};

/// Builds the eBPF programs and replaces the object kept in the tree.
#[derive(Parser)]
pub(crate) struct Args {
    /// Replace nothing; exit 1 if the kept object is not what the sources give.
    #[arg(long)]
    check: bool,
    /// Build nothing; only inspect the kept object.
    #[arg(long, conflicts_with = "check")]
    inspect: bool,
}

/// Where rustup users get a compiler whose LLVM the linker understands. "Latest nightly"
/// would not do: bpf-linker's LLVM must not be older than the compiler's.
const NIGHTLY: &str = "nightly-2026-05-20";
/// Debian's rustc-web, and what libstd-rust-web-dev-bpf adds to it.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const TARGET: &str = "bpfel-unknown-none";
/// Of these crates the sources use unstable features (inline BPF assembly).
const UNSTABLE: &str = "aya_ebpf,lxcfs_ebpf";
/// A larger object has picked up debug information or a panic path.
const SIZE_LIMIT: u64 = 84 * 1024;

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let crate_dir = repository().join("lxcfs-ebpf");
        let kept = crate_dir.join("lxcfs.bpf.o");
        if self.inspect {
            print!("{}", inspect(&fs::read(&kept)?)?);
            return Ok(ExitCode::SUCCESS);
        }
        let toolchain = Toolchain::find()?;
        ensure_linker()?;
        let description = toolchain.describe()?;
        println!(
            "build-ebpf: with {}",
            description.trim().replace('\n', ", ")
        );
        let built = toolchain.build(&crate_dir)?;
        let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
        print!("{}", inspect(&bytes)?);

        let record = crate_dir.join("toolchain.txt");
        if !self.check {
            fs::write(&kept, &bytes)?;
            fs::write(&record, description)?;
            println!("build-ebpf: {} replaced", kept.display());
            return Ok(ExitCode::SUCCESS);
        }
        let old = fs::read(&kept).with_context(|| format!("reading {}", kept.display()))?;
        if old == bytes {
            println!("build-ebpf: the kept object is up to date");
            return Ok(ExitCode::SUCCESS);
        }
        let recorded = fs::read_to_string(&record).unwrap_or_default();
        if recorded == description {
            bail!("the kept object is stale: run `cargo xtask build-ebpf` and commit the result");
        }
        bail!(
            "the kept object differs, but it was built with another toolchain ({}); compare \
             with that one, or rebuild and commit",
            recorded.trim().replace('\n', ", ")
        )
    }
}

/// A compiler that can build for BPF.
enum Toolchain {
    /// `rustc-web`: `core` for BPF comes prebuilt.
    Debian,
    /// rustup's pinned nightly with `rust-src`: builds `core` itself.
    Rustup,
}

impl Toolchain {
    fn find() -> Result<Self> {
        if Path::new(DEBIAN_CORE).is_dir() && Path::new(DEBIAN_RUSTC).is_file() {
            return Ok(Self::Debian);
        }
        let installed = output(Command::new("rustup").args(["toolchain", "list"]));
        if installed.is_ok_and(|list| list.lines().any(|line| line.starts_with(NIGHTLY))) {
            return Ok(Self::Rustup);
        }
        bail!(
            "no compiler for {TARGET}. Either (Debian): apt-get install rustc-web \
             libstd-rust-web-dev-bpf; or (rustup): rustup toolchain install {NIGHTLY} --profile \
             minimal -c rust-src"
        )
    }

    fn describe(&self) -> Result<String> {
        let compiler = match self {
            Self::Debian => output(Command::new(DEBIAN_RUSTC).arg("--version"))?,
            Self::Rustup => {
                output(Command::new("rustup").args(["run", NIGHTLY, "rustc", "--version"]))?
            }
        };
        let linker = output(Command::new("bpf-linker").arg("--version"))?;
        Ok(format!("{}\n{}\n", compiler.trim(), linker.trim()))
    }

    /// Builds and returns the path of the object.
    fn build(&self, crate_dir: &Path) -> Result<PathBuf> {
        let mut command = match self {
            Self::Debian => {
                let mut command = Command::new("cargo");
                command.env("RUSTC", DEBIAN_RUSTC).args(["build"]);
                command
            }
            Self::Rustup => {
                let mut command = Command::new("rustup");
                command.args(["run", NIGHTLY, "cargo", "build", "-Z", "build-std=core"]);
                command
            }
        };
        // What the outer cargo set would choose its own compiler and flags for the build.
        for variable in [
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTDOC",
        ] {
            command.env_remove(variable);
        }
        let target_dir = crate_dir.join("target");
        command
            .args(["--release", "--locked", "--quiet", "--target", TARGET])
            .env("CARGO_TARGET_DIR", &target_dir)
            .env("RUSTC_BOOTSTRAP", UNSTABLE)
            .current_dir(crate_dir);
        run(&mut command)?;
        Ok(target_dir.join(TARGET).join("release/lxcfs-ebpf"))
    }
}

fn ensure_linker() -> Result<()> {
    if Command::new("bpf-linker").arg("--version").output().is_ok() {
        return Ok(());
    }
    ensure!(
        Path::new(LLVM_PREFIX).is_dir(),
        "bpf-linker is missing and so is the LLVM it is built with: apt-get install llvm-22-dev \
         libpolly-22-dev zlib1g-dev libzstd-dev libxml2-dev"
    );
    println!("build-ebpf: installing bpf-linker {LINKER_VERSION} with cargo install");
    run(Command::new("cargo")
        .args([
            "install",
            "bpf-linker",
            "--locked",
            "--version",
            LINKER_VERSION,
        ])
        .args(["--no-default-features", "--features", "llvm-22"])
        .env("LLVM_PREFIX", LLVM_PREFIX))
}

/// What an object must be, checked, and a report of what it is.
fn inspect(bytes: &[u8]) -> Result<String> {
    let size = bytes.len() as u64;
    ensure!(
        size <= SIZE_LIMIT,
        "the object has {size} bytes, more than {SIZE_LIMIT}"
    );
    let file = object::File::parse(bytes).context("the object is not ELF")?;
    let mut programs = BTreeMap::new();
    let mut license = None;
    for section in file.sections() {
        let name = section.name()?;
        ensure!(
            !name.starts_with(".debug") && !name.starts_with(".BTF"),
            "the object carries debug information: section {name}"
        );
        if name == "license" {
            license = Some(section.data()?.to_vec());
        }
        if section.kind() == SectionKind::Text && name != ".text" {
            let code = section.data()?;
            let calls = subprogram_calls(code);
            ensure!(
                calls == 0,
                "section {name} has {calls} BPF-to-BPF calls (a memset of a zeroed struct?); \
                 with one in it a direct load through a null pointer oopses some kernels"
            );
            programs.insert(name.to_owned(), code.len() / INSTRUCTION);
        }
    }
    let license = license.context("the object has no licence section")?;
    ensure!(
        license == b"Dual MIT/GPL\0",
        "the licence is {:?}; the kernel wants a GPL-compatible one",
        String::from_utf8_lossy(&license)
    );
    ensure!(
        file.symbols().any(|symbol| symbol.name() == Ok("LAYOUT")),
        "the object has no LAYOUT: userspace could not give it the kernel's offsets"
    );
    let mut report = format!("build-ebpf: {size} bytes, {} programs\n", programs.len());
    for (name, instructions) in programs {
        report.push_str(&format!("  {name:<28} {instructions:>5} instructions\n"));
    }
    Ok(report)
}

/// Size of one instruction.
const INSTRUCTION: usize = 8;

/// Calls of other functions of the object: `BPF_JMP | BPF_CALL` with `BPF_PSEUDO_CALL`.
fn subprogram_calls(code: &[u8]) -> usize {
    let mut calls = 0;
    let mut rest = code.chunks_exact(INSTRUCTION);
    while let Some(instruction) = rest.next() {
        match instruction {
            // A load of 64 bits is two instructions long; its second half is data.
            [0x18, ..] => drop(rest.next()),
            [0x85, registers, ..] if registers >> 4 == 1 => calls += 1,
            _ => {}
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_call_is_no_subprogram_call() {
        let helper = [0x85, 0x00, 0, 0, 1, 0, 0, 0];
        let subprogram = [0x85, 0x10, 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(subprogram_calls(&helper), 0);
        assert_eq!(subprogram_calls(&[helper, subprogram].concat()), 1);
    }

    #[test]
    fn the_second_half_of_a_long_load_is_data() {
        let load = [0x18, 0x01, 0, 0, 0, 0, 0, 0, 0x85, 0x10, 0, 0, 0, 0, 0, 0];
        assert_eq!(subprogram_calls(&load), 0);
    }

    #[test]
    fn the_kept_object_passes_inspection() {
        let kept = fs::read(repository().join("lxcfs-ebpf/lxcfs.bpf.o")).unwrap();
        let report = inspect(&kept).unwrap();
        assert!(report.contains("iter/load_tasks "), "{report}");
    }

    #[test]
    fn an_object_with_one_subprogram_call_does_not_pass() {
        let mut object = fs::read(repository().join("lxcfs-ebpf/lxcfs.bpf.o")).unwrap();
        let (start, _) = object::File::parse(&*object)
            .unwrap()
            .section_by_name("iter/load_tasks")
            .unwrap()
            .file_range()
            .unwrap();
        let start = usize::try_from(start).unwrap();
        object[start..start + INSTRUCTION].copy_from_slice(&[0x85, 0x10, 0, 0, 9, 0, 0, 0]);
        let error = inspect(&object).unwrap_err().to_string();
        assert!(
            error.contains("section iter/load_tasks has 1 BPF-to-BPF calls"),
            "{error}"
        );
    }

    #[test]
    fn rubbish_does_not_pass() {
        assert!(inspect(b"\x7fELF").is_err());
    }
}
