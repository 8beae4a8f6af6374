//! `lxcfs agent`, `lxcfs nri` and `lxcfs hook`: from arguments to the agent's options, and
//! the process around it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use super::args::{AgentArgs, HookArgs, PolicyArgs, RuntimeArgs};
use crate::agent::hook::{self, When};
use crate::agent::{Agent, AgentOptions, AgentPolicy, Attacher};
use crate::attach::{EngineOptions, Selection};
use crate::config::{self, DEFAULT_RUNTIME_DIR};
use crate::observe::listener::{self, Access, Endpoints};
use crate::observe::metrics::{Metrics, Source};
use crate::observe::sources::{Build, Process};
use crate::observe::{log, probe::MountProbe};

/// Which runtimes are listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sources {
    /// NRI, Docker, events and scan.
    All,
    /// NRI and scan.
    NriOnly,
}

fn policy(args: &PolicyArgs) -> Result<AgentPolicy> {
    // Checked here, so that a misspelt file is an error now and not silence later.
    Selection::parse(&args.files)?;
    Ok(AgentPolicy {
        all: args.all,
        cgroups: args.cgroup.clone(),
        namespaces: args.namespace.clone(),
        excluded_namespaces: args.exclude_namespace.clone(),
        files: args.files.clone(),
    })
}

fn socket(path: &Path) -> Option<PathBuf> {
    (path != Path::new("off")).then(|| path.to_owned())
}

/// Where the daemon takes commands.
fn control(args: &RuntimeArgs) -> PathBuf {
    let dir = args.runtime_dir.as_deref();
    config::holder_socket(dir.unwrap_or_else(|| Path::new(DEFAULT_RUNTIME_DIR)))
}

fn options(args: &AgentArgs, sources: Sources) -> Result<AgentOptions> {
    let docker = socket(&args.docker).filter(|_| sources == Sources::All);
    Ok(AgentOptions {
        mountpoint: args.mount.clone(),
        host_mountpoint: args
            .host_mount
            .clone()
            .unwrap_or_else(|| args.mount.clone()),
        policy: policy(&args.policy)?,
        control: control(&args.runtime),
        nri: socket(&args.nri),
        docker,
        mounts_in_spec: !args.no_spec_mounts,
        events: !args.no_ebpf,
        scan_interval: (args.scan_seconds > 0).then(|| Duration::from_secs(args.scan_seconds)),
        ..AgentOptions::default()
    })
}

/// Time one check of the mount may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT.
pub(super) fn agent(args: &AgentArgs, sources: Sources) -> Result<ExitCode> {
    log::start(
        args.log_level.unwrap_or_default(),
        args.log_format.unwrap_or_default(),
    );
    // Before any thread exists, so that all of them leave the signals to this one.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("blocking signals")?;
    let agent = Agent::start(options(args, sources)?).context("starting the agent")?;
    if let Some(listen) = &args.metrics {
        let ready = agent.is_ready();
        let program = std::env::current_exe().context("finding this program")?;
        let probe = Arc::new(MountProbe::new(program, args.mount.clone(), PROBE_DEADLINE));
        let attacher: Arc<dyn Source> = agent.attacher();
        let endpoints = Endpoints {
            live: {
                let health = agent.health();
                Box::new(move || health.live(Instant::now()))
            },
            ready: {
                let probe = Arc::clone(&probe);
                Box::new(move || {
                    probe.check()?;
                    ready()
                        .then_some(())
                        .ok_or_else(|| "containers have not been healed yet".to_owned())
                })
            },
            metrics: Metrics::new(vec![
                Arc::new(Build),
                attacher,
                agent.health(),
                probe,
                Arc::new(Process),
            ]),
            status: Box::new(|| "{}".to_owned()),
        };
        listener::start(vec![(listen.clone(), Access::Public)], Arc::new(endpoints))
            .context("starting the listener")?;
    }
    let signal = signals.wait().context("waiting for a signal")?;
    tracing::info!(%signal, "leaving; containers keep their views");
    drop(agent);
    Ok(ExitCode::SUCCESS)
}

/// Answers a hook. Prints what went wrong and succeeds all the same: the runtime would
/// otherwise refuse the container.
pub(super) fn hook(args: &HookArgs) -> Result<ExitCode> {
    if args.print {
        let program = std::env::current_exe().context("finding this program")?;
        let when = if args.policy.all {
            When::Always
        } else {
            When::Asked
        };
        print!("{}", hook::hooks_d(&program, &args.mount, &when));
        return Ok(ExitCode::SUCCESS);
    }
    let attacher = Attacher::new(
        &args.mount,
        EngineOptions {
            deadline: Duration::from_millis(400),
            ..EngineOptions::default()
        },
    )
    .commanding(control(&args.runtime));
    let done = policy(&args.policy).and_then(|policy| {
        let state = hook::read_state(std::io::stdin().lock())?;
        Ok(hook::run(&state, &policy, &attacher)?)
    });
    match done {
        Ok(report) => {
            for container in &report.containers {
                if let Some(error) = &container.error {
                    eprintln!("lxcfs hook: {error}; the container sees the host's values");
                }
            }
        }
        Err(err) => eprintln!("lxcfs hook: {err:#}; the container sees the host's values"),
    }
    Ok(ExitCode::SUCCESS)
}
