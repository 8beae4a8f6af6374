//! What each command does: wiring, and nothing that could be tested without it.

use std::fs;
use std::future::Future;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::certs::files as certificate_files;
use crate::certs::keeper::Keeper;
use crate::certs::rotation::Lifetimes;
use crate::cli::{ConfigArgs, ManifestsArgs, TaintArgs, WebhookArgs};
use crate::manifests::{OVERLAYS, Part, files, yaml};
use crate::server::{State, serve};
use crate::taint;

/// Serves reviews until SIGTERM or SIGINT.
pub fn webhook(args: &WebhookArgs) -> anyhow::Result<()> {
    check(&args.config)?;
    // One thread: an answer takes well under a millisecond.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(run(args))
}

/// Removes a taint whenever the agent is ready, until SIGTERM or SIGINT.
pub fn start_taint(args: &TaintArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(async {
        let stop = stop_signal()?;
        let config = kube::Config::infer().await.context(
            "the node is the API server's: run in a pod with a service account, or set KUBECONFIG",
        )?;
        let client = kube::Client::try_from(config).context("cannot reach the API server")?;
        let options = taint::Options {
            node: args.node.clone(),
            key: args.taint.clone(),
            agent: args.agent,
            every: Duration::from_secs(args.check_seconds),
        };
        tokio::select! {
            () = stop => Ok(()),
            never = taint::run(kube::Api::all(client), options) => never,
        }
    })
}

/// Prints or writes manifests.
pub fn manifests(args: &ManifestsArgs) -> anyhow::Result<()> {
    check(&args.config)?;
    let options = args.options();
    if let Some(directory) = &args.write {
        for (path, text) in files::tree(&options)? {
            let path = directory.join(path);
            let parent = path.parent().unwrap_or(directory);
            fs::create_dir_all(parent)
                .and_then(|()| fs::write(&path, text))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        return Ok(());
    }
    let mut parts = Vec::new();
    for name in &args.names {
        let overlay = OVERLAYS.iter().find(|overlay| overlay.name == name);
        match (overlay, Part::named(name)) {
            // A part and an overlay of the same name: the overlay is the whole of it.
            (Some(overlay), _) => parts.extend(overlay.parts),
            (None, Some(part)) => parts.push(part),
            (None, None) => bail!("nothing is called {name:?}; names are {}", known_names()),
        }
    }
    let mut seen = Vec::new();
    parts.retain(|part| {
        !seen.contains(part) && {
            seen.push(*part);
            true
        }
    });
    let mut objects = Vec::new();
    for part in parts {
        objects.extend(part.objects(&options)?);
    }
    std::io::stdout()
        .write_all(yaml(&objects)?.as_bytes())
        .context("cannot write to standard output")
}

fn known_names() -> String {
    let overlays = OVERLAYS.iter().map(|overlay| overlay.name);
    let parts = Part::ALL.iter().map(|part| part.name());
    let mut names: Vec<&str> = overlays.chain(parts).collect();
    names.dedup();
    names.join(", ")
}

fn check(args: &ConfigArgs) -> anyhow::Result<()> {
    if !args.mountpoint.starts_with('/') {
        bail!(
            "--mountpoint {}: must be an absolute path on the nodes",
            args.mountpoint
        );
    }
    if let Some(word) = lxcfs_common::pod::not_to_switch_off(&args.disable) {
        bail!("--disable: no file is called {word:?}; see docs/virtual-files.md for the names");
    }
    if let Some(word) = lxcfs_common::pod::Selection(&args.files)
        .unknown_files()
        .next()
    {
        bail!("--files: no file is called {word:?}; see docs/virtual-files.md for the names");
    }
    Ok(())
}

async fn run(args: &WebhookArgs) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    let reviews = listen("--listen", args.listen).await?;
    let admin = listen("--admin-listen", args.admin_listen).await?;
    let state = Arc::new(State::new(args.config.config(), args.limits()));
    let every = Duration::from_secs(args.certificate_check_seconds);
    match &args.tls_dir {
        Some(directory) => {
            let follow = certificate_files::follow(Arc::clone(&state), directory.clone(), every);
            tokio::spawn(follow);
        }
        None => {
            let config = kube::Config::infer().await.context(
                "self-managed certificates need the API server: run in a pod with a service \
                 account, set KUBECONFIG, or use --tls-dir",
            )?;
            let client = kube::Client::try_from(config).context("cannot reach the API server")?;
            let names = args.names();
            let keeper = Keeper::new(client, names, Lifetimes::default(), Arc::clone(&state));
            tokio::spawn(keeper.run(every));
        }
    }
    info!(
        reviews = %reviews.local_addr()?,
        admin = %admin.local_addr()?,
        mode = ?state.config.mode,
        "serving"
    );
    serve(state, reviews, admin, stop).await?;
    Ok(())
}

async fn listen(option: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {option} {address}"))
}

fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
