//! `cargo xtask image`: a container image from nothing but the static binaries, written as
//! an OCI image layout. No registry, no base image and no container tool is needed to make
//! it; docker, podman, skopeo and ctr load it.
//!
//! The same binaries give the same bytes: the layer is a plain tar with fixed times and
//! owners, and nothing records when it was made.

mod check;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde_json::{Value, json};

use crate::command::{output, repository, run};
use crate::dist::{Arch, BINARIES, directory};

/// Packs target/dist into a container image: an OCI layout for one or both processors.
#[derive(Parser)]
#[command(after_help = "\
Build the binaries first: cargo xtask dist.\n\
Load it: skopeo copy oci:target/dist/image containers-storage:localhost/lxcfs:TAG\n\
         skopeo copy oci:target/dist/image docker-daemon:localhost/lxcfs:TAG\n\
         tar -C target/dist/image -cf - . | ctr -n k8s.io images import -")]
pub(crate) struct Args {
    /// Which processors (those in target/dist when none is named).
    #[arg(long, value_enum)]
    arch: Vec<Arch>,
    /// Where the layout goes.
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
    /// Name recorded in the layout.
    #[arg(long, default_value = concat!("localhost/lxcfs:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// Then has skopeo read it, ctr import it, and podman load and run it.
    #[arg(long)]
    check: bool,
}

impl Args {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let built = |arch: &Arch| {
            BINARIES
                .iter()
                .all(|name| directory(*arch).join(name).is_file())
        };
        let archs: Vec<Arch> = match self.arch.is_empty() {
            true => Arch::ALL.into_iter().filter(built).collect(),
            false => self.arch.clone(),
        };
        if archs.is_empty() || !archs.iter().all(built) {
            bail!("target/dist lacks binaries: run `cargo xtask dist` first");
        }
        let out = self
            .out
            .clone()
            .unwrap_or_else(|| repository().join("target/dist/image"));
        if out.exists() {
            fs::remove_dir_all(&out).with_context(|| format!("cannot clear {}", out.display()))?;
        }
        let layout = Layout::create(&out)?;
        let manifests = archs
            .iter()
            .map(|arch| layout.image(*arch))
            .collect::<Result<Vec<_>>>()?;
        // One image for all processors: an index, and the layout's own index names it.
        let index = layout.json(
            "application/vnd.oci.image.index.v1+json",
            &json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": manifests,
            }),
        )?;
        layout.finish(index, &self.name)?;
        println!("{}: {} for {}", out.display(), self.name, names(&archs));
        if self.check {
            check::check(&out, &self.name, &archs)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn names(archs: &[Arch]) -> String {
    archs
        .iter()
        .map(|arch| arch.name())
        .collect::<Vec<_>>()
        .join(", ")
}

/// An OCI image layout being written.
struct Layout {
    root: PathBuf,
}

impl Layout {
    fn create(root: &Path) -> Result<Self> {
        fs::create_dir_all(root.join("blobs/sha256"))?;
        fs::write(
            root.join("oci-layout"),
            json!({"imageLayoutVersion": "1.0.0"}).to_string(),
        )?;
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// One processor's image; returns its descriptor.
    fn image(&self, arch: Arch) -> Result<Value> {
        let tree = self.root.join("tree");
        lay_out(&tree, &directory(arch))?;
        let layer = self.root.join("layer");
        run(Command::new("tar")
            .args([
                "--sort=name",
                "--mtime=@0",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
            ])
            .args(["--format=ustar", "-C"])
            .arg(&tree)
            .arg("-cf")
            .arg(&layer)
            .arg("."))?;
        fs::remove_dir_all(&tree)?;
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar", &layer)?;
        let config = self.json(
            "application/vnd.oci.image.config.v1+json",
            &json!({
                "architecture": arch.name(),
                "os": "linux",
                "config": {
                    "Env": ["PATH=/usr/bin"],
                    "Entrypoint": ["/usr/bin/lxcfs"],
                    "Labels": {
                        "org.opencontainers.image.title": "lxcfs",
                        "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                        "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
                    },
                },
                // Uncompressed, so the layer's digest is also that of its content.
                "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
            }),
        )?;
        let mut manifest = self.json(
            "application/vnd.oci.image.manifest.v1+json",
            &json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config,
                "layers": [layer],
            }),
        )?;
        manifest["platform"] = json!({"architecture": arch.name(), "os": "linux"});
        Ok(manifest)
    }

    fn json(&self, media_type: &str, value: &Value) -> Result<Value> {
        let path = self.root.join("new-blob");
        fs::write(&path, value.to_string())?;
        self.blob(media_type, &path)
    }

    /// Moves a file among the blobs; returns its descriptor.
    fn blob(&self, media_type: &str, file: &Path) -> Result<Value> {
        let sum = output(Command::new("sha256sum").arg("--binary").arg(file))?;
        let digest = sum
            .split_whitespace()
            .next()
            .context("sha256sum printed nothing")?;
        let size = fs::metadata(file)?.len();
        fs::rename(file, self.root.join("blobs/sha256").join(digest))?;
        Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size}))
    }

    fn finish(&self, mut index: Value, name: &str) -> Result<()> {
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        index["annotations"] = json!({
            "org.opencontainers.image.ref.name": tag,
            "io.containerd.image.name": name,
        });
        let index = json!({"schemaVersion": 2, "manifests": [index]});
        fs::write(self.root.join("index.json"), index.to_string())?;
        Ok(())
    }
}

/// The image's files: the binaries, and the directories that a read-only root must have.
fn lay_out(tree: &Path, binaries: &Path) -> Result<()> {
    for directory in [
        "usr/bin",
        "proc",
        "sys/fs/cgroup",
        "dev",
        "run/lxcfs",
        "var/lib/lxc",
        "var/run/nri",
        "etc",
        "tls",
    ] {
        fs::create_dir_all(tree.join(directory))?;
    }
    for name in BINARIES {
        let to = tree.join("usr/bin").join(name);
        fs::copy(binaries.join(name), &to)
            .with_context(|| format!("cannot copy {}", binaries.join(name).display()))?;
        set_mode(&to, 0o755)?;
    }
    // tar records what it finds: not what this user's umask happens to be.
    run(Command::new("chmod").args(["-R", "u=rwX,go=rX"]).arg(tree))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot change the mode of {}", path.display()))
}
