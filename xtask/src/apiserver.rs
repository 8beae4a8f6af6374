//! `cargo xtask apiserver`: the manifests and the webhook against a real kube-apiserver.
//!
//! Debian ships kube-apiserver as source only: 1.20.2 in bookworm, complete with its
//! vendored packages, built by the Go of its time (1.15, from bullseye). etcd comes from
//! sid. All of it is unpacked and built in the cache; nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::command::{cargo, run};
use crate::vm::{Cache, Suite};

const VERSION: &str = "1.20.2";

/// Tests against a real kube-apiserver (1.5 GB and minutes of compiling, once).
#[derive(Parser)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let cache = Cache::open()?;
        let etcd = cache.entry("etcd", |root| {
            Suite::fetch(&cache, "sid")?.unpack(&["etcd-server".to_owned()], root)
        })?;
        let go = cache.entry("go-1.15", |root| {
            let packages = ["golang-1.15-go", "golang-1.15-src"].map(str::to_owned);
            Suite::fetch(&cache, "bullseye")?.unpack(&packages, root)
        })?;
        // The tree's own make copies generated files with rsync.
        let tools = cache.entry("rsync", |root| {
            let packages = ["rsync", "libpopt0", "libxxhash0"].map(str::to_owned);
            Suite::fetch(&cache, "bookworm")?.unpack(&packages, root)
        })?;
        let server = cache.entry(&format!("kube-apiserver-{VERSION}"), |server| {
            let work = cache.path("kube-apiserver.build");
            if work.exists() {
                fs::remove_dir_all(&work)?;
            }
            fs::create_dir_all(&work)?;
            let source = Suite::fetch_sources(&cache, "bookworm")?.source("kubernetes", &work)?;
            build(&source, &go, &tools)?;
            fs::rename(
                source.join("_output/local/bin/linux/amd64/kube-apiserver"),
                server,
            )?;
            fs::remove_dir_all(&work).context("cannot remove the build")
        })?;
        run(cargo()
            .args(["test", "-p", "lxcfs-kube", "--features", "kube-apiserver"])
            .args(["--test", "apiserver", "--", "--show-output"])
            .env("LXCFS_ETCD", etcd.join("usr/bin/etcd"))
            .env("LXCFS_KUBE_APISERVER", server))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn build(source: &Path, go: &Path, tools: &Path) -> Result<()> {
    if !Path::new("/usr/bin/make").exists() {
        bail!("make is missing: apt-get install make");
    }
    println!("Building kube-apiserver {VERSION} from Debian's source");
    let goroot = go.join("usr/lib/go-1.15");
    let mut path: Vec<PathBuf> = vec![goroot.join("bin"), tools.join("usr/bin")];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    run(Command::new("make")
        .current_dir(source)
        .arg("WHAT=cmd/kube-apiserver")
        .env("GOROOT", &goroot)
        .env("HOME", source)
        .env("PATH", std::env::join_paths(path)?)
        .env("LD_LIBRARY_PATH", tools.join("usr/lib/x86_64-linux-gnu"))
        // The source archive is no git tree, where its scripts would look.
        .env("KUBE_GIT_VERSION", format!("v{VERSION}"))
        .env("KUBE_GIT_MAJOR", "1")
        .env("KUBE_GIT_MINOR", "20")
        .env("KUBE_GIT_COMMIT", "debian")
        .env("KUBE_GIT_TREE_STATE", "archive"))
}
