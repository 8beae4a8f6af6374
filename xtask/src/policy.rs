//! `cargo xtask policy`: the admission policy against the webhook, by the API server's code.
//!
//! Debian packages the API server's library, so its own compiler and patcher for
//! MutatingAdmissionPolicy can be built without a registry: the packages are unpacked in the
//! cache, one test file of ours is put beside the private functions it needs, and the
//! resulting program evaluates pods for `lxcfs-kube/tests/policy`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;

use crate::command::{cargo, repository, run};
use crate::vm::{Cache, Suite};

const PACKAGES: [&str; 2] = ["golang-go", "golang-k8s-apiserver-dev"];
const PLUGIN: &str = "pkg/admission/plugin/policy/mutating";
const OURS: &str = "lxcfs_policy_test.go";

/// Compares the admission policy with the webhook (downloads 150 MB, compiles for minutes once).
#[derive(Parser)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let cache = Cache::open()?;
        let tree = go_tree(&cache)?;
        let evaluator = cache.path("policy-evaluator");
        build(&tree, &cache.path("go-build"), &evaluator)?;
        run(cargo()
            .args(["test", "-p", "lxcfs-kube", "--features", "policy-evaluator"])
            .args(["--test", "policy", "the_policy"])
            .env("LXCFS_POLICY_EVALUATOR", &evaluator))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Debian's Go compiler and the API server's library with all it depends on.
pub(crate) fn go_tree(cache: &Cache) -> Result<PathBuf> {
    cache.entry("k8s-apiserver-source", |root| {
        let suite = Suite::fetch(cache, "sid")?;
        // Of all they depend on, Go's own packages: nothing else is compiled in.
        let packages = suite.needed_for(&PACKAGES)?;
        let packages: Vec<String> = packages
            .into_iter()
            .filter(|name| name.starts_with("golang-"))
            .collect();
        suite.unpack(&packages, root)
    })
}

fn build(tree: &Path, go_cache: &Path, evaluator: &Path) -> Result<()> {
    let gopath = tree.join("usr/share/gocode");
    let apiserver = gopath.join("src/k8s.io/apiserver");
    let plugin = apiserver.join(PLUGIN);
    for entry in fs::read_dir(&plugin).with_context(|| format!("no {}", plugin.display()))? {
        let path = entry?.path();
        // The package's own tests need more than Debian packages.
        if path.to_string_lossy().ends_with("_test.go") {
            fs::remove_file(path)?;
        }
    }
    let ours = repository().join("lxcfs-kube/tests/policy").join(OURS);
    fs::copy(&ours, plugin.join(OURS)).with_context(|| format!("no {}", ours.display()))?;
    println!("Building the evaluator from Debian's {}", PACKAGES[1]);
    let goroot = tree.join("usr/lib/go");
    run(Command::new(goroot.join("bin/go"))
        .current_dir(&apiserver)
        .args(["test", "-c", "-o"])
        .arg(evaluator)
        .arg(format!("./{PLUGIN}/"))
        .env("GOROOT", &goroot)
        .env("GOPATH", &gopath)
        .env("GO111MODULE", "off")
        .env("GOTOOLCHAIN", "local")
        .env("GOCACHE", go_cache))
}
