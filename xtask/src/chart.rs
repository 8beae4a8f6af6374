//! `cargo xtask chart`: the Helm chart and the kustomize overlays through the real engines.
//!
//! Debian has no Helm, but what renders a chart is Go's text/template with the functions of
//! sprig, and it has both, and kustomize. All of it is unpacked in the cache; nothing is
//! installed.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Parser;

use crate::command::{cargo, repository, run};
use crate::policy;
use crate::vm::{Cache, Suite};

const SPRIG: &str = "golang-github-masterminds-sprig-dev";

/// Renders the Helm chart and the overlays and compares them with the manifests.
#[derive(Parser)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let cache = Cache::open()?;
        let go = policy::go_tree(&cache)?;
        let sprig = cache.entry("sprig", |root| {
            let suite = Suite::fetch(&cache, "sid")?;
            let packages = suite.needed_for(&[SPRIG])?;
            let packages: Vec<String> = packages
                .into_iter()
                .filter(|name| name.starts_with("golang-"))
                .collect();
            suite.unpack(&packages, root)
        })?;
        let kustomize = cache.entry("kustomize", |root| {
            Suite::fetch(&cache, "sid")?.unpack(&["kustomize".to_owned()], root)
        })?;
        let engine = cache.path("chart-engine");
        let goroot = go.join("usr/lib/go");
        run(Command::new(goroot.join("bin/go"))
            .args(["build", "-o"])
            .arg(&engine)
            .arg(repository().join("lxcfs-kube/tests/chart/lxcfs_chart.go"))
            .env("GOROOT", &goroot)
            .env("GOPATH", sprig.join("usr/share/gocode"))
            .env("GO111MODULE", "off")
            .env("GOTOOLCHAIN", "local")
            .env("GOCACHE", cache.path("go-build")))?;
        run(cargo()
            .args(["test", "-p", "lxcfs-kube", "--features", "chart-engines"])
            .args(["--test", "chart"])
            .env("LXCFS_CHART_ENGINE", &engine)
            .env("LXCFS_KUSTOMIZE", kustomize.join("usr/bin/kustomize")))?;
        Ok(ExitCode::SUCCESS)
    }
}
