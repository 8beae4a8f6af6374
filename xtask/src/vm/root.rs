//! The root image of the virtual machines: Debian stable with every client the tests use.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::apt::Suite;
use super::cache::{Cache, fingerprint, remove};
use super::image;
use super::mirror;
use crate::command::{is_root, output, run};

/// The suite of the image. It must be at least as new as the machine that compiles the binaries.
const SUITE: &str = "trixie";
/// What the image holds besides Debian's required packages.
const PACKAGES: &[&str] = &[
    // The machine itself.
    "bpftool",
    "busybox",
    "ca-certificates",
    "dbus",
    "e2fsprogs",
    "fuse3",
    "iproute2",
    "jq",
    "kmod",
    "mount",
    "psmisc",
    "strace",
    "systemd-sysv",
    "udev",
    "util-linux",
    // Clients whose output is asserted.
    "default-jre-headless",
    "htop",
    "nodejs",
    "procps",
    "prometheus-node-exporter",
    "python3-psutil",
    "sysstat",
    "tmux",
    // Container runtimes, and C lxcfs for its LXC hook.
    "crun",
    "lxc",
    "lxcfs",
    "podman",
    "runc",
    "uidmap",
];
/// Builds of other suites, unpacked side by side: suite, package, place.
const ASIDE: &[(&str, &str, &str)] = &[
    ("bookworm", "lxcfs", "opt/lxcfs-bookworm"),
    ("sid", "lxcfs", "opt/lxcfs-sid"),
    ("sid", "containerd", "opt/containerd-sid"),
    // containerd makes pods with user namespaces from runc 1.2 on.
    ("sid", "runc", "opt/runc-sid"),
];
const RECIPE: &str = include_str!("root.sh");
/// Room for what tests write. The file is sparse; unwritten blocks cost nothing.
const SPARE_BYTES: u64 = 4 << 30;

/// The root image from the cache, rebuilt when its recipe or package list changed.
pub(crate) fn fetch(cache: &Cache) -> Result<PathBuf> {
    let aside = ASIDE
        .iter()
        .flat_map(|(suite, package, place)| [*suite, *package, *place]);
    let recipe = fingerprint(
        [SUITE, RECIPE]
            .into_iter()
            .chain(PACKAGES.iter().copied())
            .chain(aside),
    );
    let path = cache.entry(&format!("root-{recipe}.img"), |partial| {
        if !is_root() {
            bail!("building the root image of the virtual machines needs root (debootstrap)");
        }
        let tree = partial.with_extension("tree");
        remove(&tree)?;
        build(cache, &tree)?;
        println!("Writing the root image");
        image::make_ext4(&tree, partial, SPARE_BYTES)?;
        remove(&tree)
    })?;
    cache.retire("root-", &path)?;
    Ok(path)
}

fn build(cache: &Cache, tree: &Path) -> Result<()> {
    println!("Building a Debian {SUITE} root image (once; some minutes)");
    let log = cache.path("root.log");
    let log_file = fs::File::create(&log)?;
    let quietly = |command: &mut Command| {
        command
            .stdout(log_file.try_clone()?)
            .stderr(log_file.try_clone()?);
        run(command).map_err(|error| error.context(format!("see {}", log.display())))
    };
    let mirror = mirror::find()?;
    let mut debootstrap = Command::new("debootstrap");
    debootstrap
        .args(["--variant=minbase", "--include=ca-certificates", SUITE])
        .arg(tree);
    quietly(debootstrap.arg(&mirror.debian))?;
    fs::write(
        tree.join("etc/apt/apt.conf.d/00caller"),
        callers_apt_settings()?,
    )?;
    println!(
        "Installing {} packages and what they need into it",
        PACKAGES.len()
    );
    let mut install = Command::new("unshare");
    install
        .args(["--mount", "/bin/sh", "-c", RECIPE, "root.sh"])
        .arg(tree)
        .arg(SUITE)
        .args([&mirror.debian, &mirror.security]);
    quietly(install.args(PACKAGES))?;
    for (suite, package, place) in ASIDE {
        let suite = Suite::fetch(cache, suite)?;
        let mut packages = vec![(*package).to_owned()];
        packages.extend(
            suite
                .depends(package)?
                .into_iter()
                .filter(|name| name.starts_with("libfuse3-")),
        );
        suite.unpack(&packages, &tree.join(place))?;
    }
    Ok(())
}

/// The proxy and date settings that this machine's own apt needs to reach the archive.
fn callers_apt_settings() -> Result<String> {
    let all = output(Command::new("apt-config").args(["dump", "Acquire"]))?;
    let wanted = |line: &&str| line.contains("Proxy") || line.contains("::Check-");
    Ok(all
        .lines()
        .filter(wanted)
        .map(|line| format!("{line}\n"))
        .collect())
}
