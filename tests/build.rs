//! Builds `first-look`: one static program, for images that hold nothing else.
//!
//! Static linking is a property of a whole cargo build, so the compiler is called directly.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let source = "static/first-look.rs";
    println!("cargo::rerun-if-changed={source}");
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name: &str| env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"));
    let program = PathBuf::from(variable("OUT_DIR")).join("first-look");
    let status = Command::new(variable("RUSTC"))
        .args([
            "--edition=2024",
            "-Copt-level=2",
            "-Cpanic=abort",
            "-Cstrip=symbols",
        ])
        .arg("-Ctarget-feature=+crt-static")
        .arg("--target")
        .arg(variable("TARGET"))
        .arg("-o")
        .args([program.as_os_str(), source.as_ref()])
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "{source} does not build; a static program needs libc6-dev"
    );
    println!("cargo::rustc-env=FIRST_LOOK={}", program.display());
}
