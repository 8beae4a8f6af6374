//! Standard libraries that Debian's compiler lacks, as sysroots in the cache.
//!
//! For glibc on arm64 Debian has a package. For musl it has none, but the source of the
//! standard library, musl and LLVM's unwinder are packages: the standard library is compiled
//! as Rust's own build does, and start files and archives go where the compiler looks for
//! those of its musl targets (`self-contained`). From then on linking is as with rustup.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Arch, Libc};
use crate::command::{cargo, output, run};
use crate::vm::cache::remove;
use crate::vm::{Cache, Suite};

/// Debian's compiler: of the version that its standard libraries are for.
pub(super) const RUSTC: &str = "/usr/bin/rustc";

/// LLVM's unwinder is compiled for glibc and prints its own panics with the checking
/// variant of fprintf, the one function of it that musl does not have.
const CHECKED_PRINT: &str = "\
#include <stdarg.h>
int vfprintf(void *, const char *, va_list);
int __fprintf_chk(void *stream, int flag, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int count = vfprintf(stream, format, arguments);
    va_end(arguments);
    return count;
}
";

/// A sysroot of Debian's with the standard library for this processor and C library.
pub(super) fn debian(arch: Arch, libc: Libc) -> Result<PathBuf> {
    let version = output(Command::new(RUSTC).arg("--version"))?;
    let release = version
        .split_whitespace()
        .nth(1)
        .context("rustc has no version")?;
    let cache = Cache::open()?;
    match libc {
        Libc::Gnu => packaged(&cache, arch, release),
        Libc::Musl => cache.entry(&name(arch, release), |root| {
            let work = cache.path(&format!("{}.build", name(arch, release)));
            remove(&work)?;
            fs::create_dir_all(&work)?;
            build(&cache, arch, &work, root)?;
            remove(&work)
        }),
    }
}

fn name(arch: Arch, release: &str) -> String {
    format!("rust-std-musl-{}-{release}", arch.name())
}

/// How C of our dependencies is compiled: with musl's headers and none of the system's.
pub(super) fn c_flags(arch: Arch, sysroot: &Path) -> Result<String> {
    let own = gcc_file(arch, "include")?;
    Ok(format!(
        "-nostdinc -isystem {} -isystem {}",
        sysroot.join("include").display(),
        own.display()
    ))
}

/// The standard library as Debian packages it for another processor.
fn packaged(cache: &Cache, arch: Arch, release: &str) -> Result<PathBuf> {
    let (major_minor, _) = release.rsplit_once('.').context("rustc has no version")?;
    let entry = format!("rust-std-{}-{release}", arch.name());
    let root = cache.entry(&entry, |root| {
        let packages = [
            "libstd-rust-web-dev".to_owned(),
            format!("libstd-rust-web-{major_minor}"),
        ];
        suite(cache, arch)?.unpack(&packages, root)
    })?;
    Ok(root.join("usr"))
}

fn suite(cache: &Cache, arch: Arch) -> Result<Suite> {
    match arch {
        Arch::Amd64 => Suite::fetch(cache, "bookworm"),
        Arch::Arm64 => Suite::fetch_arm64(cache, "bookworm"),
    }
}

/// Builds the standard library for musl and gathers what links with it below `root`.
fn build(cache: &Cache, arch: Arch, work: &Path, root: &Path) -> Result<()> {
    let target = arch.target(Libc::Musl);
    let source = work.join("source");
    Suite::fetch(cache, "bookworm")?.unpack(&["rust-web-src".to_owned()], &source)?;
    let parts = work.join("parts");
    let packages = ["musl-dev", "libunwind-14-dev"].map(str::to_owned);
    suite(cache, arch)?.unpack(&packages, &parts)?;

    let library = only_entry(&source.join("usr/src"))?.join("library");
    println!("Compiling the standard library for {target} from Debian's rust-web-src");
    let vendored = library.join("vendor");
    let out = work.join("target");
    run(cargo()
        // Below its directory: the workspace here and its toolchain file are not meant.
        .current_dir(&library)
        .args([
            "build",
            "--release",
            "--manifest-path",
            "sysroot/Cargo.toml",
        ])
        .args(["--features", "panic-unwind,backtrace", "--target", target])
        .arg("--target-dir")
        .arg(&out)
        // What the tests of the standard library need is not among the vendored packages.
        .arg("-Zavoid-dev-deps")
        .args(["--config", "source.crates-io.replace-with='vendored'"])
        .args([
            "--config",
            &format!("source.vendored.directory='{}'", vendored.display()),
        ])
        .env("RUSTC", RUSTC)
        .env("RUSTC_BOOTSTRAP", "1")
        // As in Rust's own build: unstable unless marked, and fit for link-time optimisation.
        .env(
            "RUSTFLAGS",
            "-Zforce-unstable-if-unmarked -Cembed-bitcode=yes",
        )
        .env("__CARGO_DEFAULT_LIB_METADATA", "stablestd"))?;

    let libraries = root.join("lib/rustlib").join(target).join("lib");
    let contained = libraries.join("self-contained");
    fs::create_dir_all(&contained)?;
    for entry in fs::read_dir(out.join(target).join("release/deps"))? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "rlib")
        {
            copy(&path, &libraries)?;
        }
    }
    let (triple, _) = target.split_once('-').context("a target has parts")?;
    let musl = parts.join(format!("usr/lib/{triple}-linux-musl"));
    for file in ["crt1.o", "rcrt1.o", "crti.o", "crtn.o", "libc.a"] {
        copy(&musl.join(file), &contained)?;
    }
    for file in ["crtbegin.o", "crtbeginS.o", "crtend.o", "crtendS.o"] {
        copy(&gcc_file(arch, file)?, &contained)?;
    }
    copy(&parts.join("usr/lib/llvm-14/lib/libunwind.a"), &contained)?;
    let checked = work.join("checked-print.c");
    let object = work.join("checked-print.o");
    fs::write(&checked, CHECKED_PRINT)?;
    run(Command::new(arch.tool("gcc"))
        .args(["-O2", "-c"])
        .arg(&checked)
        .arg("-o")
        .arg(&object))?;
    run(Command::new(arch.tool("ar"))
        .arg("r")
        .arg(contained.join("libunwind.a"))
        .arg(&object))?;
    // For dependencies with C in them.
    let headers = parts.join(format!("usr/include/{triple}-linux-musl"));
    run(Command::new("cp")
        .arg("-r")
        .arg(headers)
        .arg(root.join("include")))
}

/// A file of gcc's own, where its installation has it.
fn gcc_file(arch: Arch, name: &str) -> Result<PathBuf> {
    let mut gcc = Command::new(arch.tool("gcc"));
    let path = output(gcc.arg(format!("-print-file-name={name}")))?;
    let path = PathBuf::from(path.trim());
    // What it does not have, it repeats.
    anyhow::ensure!(path.is_absolute(), "{} has no {name}", arch.tool("gcc"));
    Ok(path)
}

fn only_entry(directory: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(directory)
        .with_context(|| format!("no {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir());
    entries
        .next()
        .with_context(|| format!("{} is empty", directory.display()))
}

fn copy(file: &Path, directory: &Path) -> Result<()> {
    let name = file.file_name().context("a file has a name")?;
    fs::copy(file, directory.join(name))
        .with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(())
}
