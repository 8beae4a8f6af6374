//! The written image as others see it: skopeo reads it for every processor, podman loads it
//! and runs what is in it, containerd's ctr imports it under its name.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::{output, run};
use crate::dist::Arch;
use crate::setup::{self, Purpose};
use crate::vm::{Cache, Suite};

/// Fails unless the layout holds the image for each processor and this one's runs.
pub(super) fn check(layout: &Path, name: &str, archs: &[Arch]) -> Result<()> {
    setup::ensure(&[Purpose::Dist])?;
    for arch in archs {
        let described = output(
            Command::new("skopeo")
                .args(["--override-arch", arch.name(), "inspect"])
                .arg(format!("oci:{}", layout.display())),
        )?;
        let described: Value = serde_json::from_str(&described)?;
        if described["Architecture"] != arch.name() {
            bail!("asked for {}, skopeo finds {described}", arch.name());
        }
    }
    let directory = tempfile::TempDir::with_prefix("lxcfs-image-")
        .context("cannot create a temporary directory")?;
    let archive = directory.path().join("archive.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(layout)
        .arg("-cf")
        .arg(&archive)
        .arg("."))?;
    import(directory.path(), &archive, name)?;
    if archs.iter().any(|arch| arch.is_native()) {
        load_and_run(directory.path(), &archive, name)?;
    }
    println!("{name}: read by skopeo, imported by ctr, loaded and run by podman");
    Ok(())
}

fn load_and_run(directory: &Path, archive: &Path, name: &str) -> Result<()> {
    run(podman(directory).arg("load").arg("-i").arg(archive))?;
    for (arguments, expected) in [
        (
            &["--version"][..],
            concat!("lxcfs ", env!("CARGO_PKG_VERSION")),
        ),
        // The other program, found by the first one.
        (&["manifests", "simple"], "kind: DaemonSet"),
    ] {
        let printed = output(
            podman(directory)
                .args(["run", "--rm", "--network=none", "--log-driver=none"])
                // Where raising limits is not permitted, podman's own defaults are too high.
                .args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"])
                .args(["--read-only", "--cap-drop=all", name])
                .args(arguments),
        )?;
        if !printed.contains(expected) {
            bail!("{name} {arguments:?} printed no {expected:?}:\n{printed}");
        }
    }
    Ok(())
}

/// podman with a store in `directory`.
fn podman(directory: &Path) -> Command {
    let mut podman = Command::new("podman");
    for (option, below) in [
        ("--root", "root"),
        ("--runroot", "run"),
        ("--tmpdir", "tmp"),
    ] {
        podman.arg(option).arg(directory.join(below));
    }
    podman.args(["--runtime=runc", "--cgroup-manager=cgroupfs"]);
    podman.args(["--events-backend=none", "--storage-driver=vfs"]);
    podman
}

/// Imports the archive into a containerd of its own.
fn import(directory: &Path, archive: &Path, name: &str) -> Result<()> {
    let cache = Cache::open()?;
    let programs = cache.entry("containerd-bookworm", |root| {
        Suite::fetch(&cache, "bookworm")?.unpack(&["containerd".to_owned()], root)
    })?;
    let programs = programs.join("usr/bin");
    let at = |below: &str| directory.join("containerd").join(below);
    fs::create_dir_all(at(""))?;
    fs::write(
        at("config.toml"),
        "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
    )?;
    let socket = at("socket");
    let containerd = Command::new(programs.join("containerd"))
        .args(["--log-level=error", "--config"])
        .arg(at("config.toml"))
        .arg("--root")
        .arg(at("root"))
        .arg("--state")
        .arg(at("state"))
        .arg("--address")
        .arg(&socket)
        .spawn()
        .context("cannot start containerd")?;
    let _containerd = Killed(containerd);
    let ctr = || {
        let mut ctr = Command::new(programs.join("ctr"));
        ctr.arg("--address").arg(&socket);
        ctr.args(["--namespace=k8s.io", "images"]);
        ctr
    };
    for _ in 0..600 {
        if socket.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    run(ctr()
        .args(["import", "--no-unpack", "--all-platforms"])
        .arg(archive))?;
    let listed = output(ctr().args(["ls", "-q"]))?;
    if !listed.lines().any(|line| line == name) {
        bail!("ctr imported no {name}: {listed}");
    }
    Ok(())
}

/// A process that ends with its value.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
