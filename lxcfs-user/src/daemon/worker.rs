//! A worker: the engine with its sources, and around it logs, metrics and control.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lxcfs_holder::outside::{self, Hello, Joined};

use super::keep::Keeper;
use super::launch::{Typed, holder_socket};
use super::parts::Parts;
use crate::agent::Attacher;
use crate::attach::EngineOptions;
use crate::bpf::{self, Sampler};
use crate::collect::live::{LiveEngine, LiveOptions};
use crate::collect::sampler::LoadSampler;
use crate::config::{Config, Listen};
use crate::engine::{AnswerError, Engine};
use crate::observe::holder::{Holder, value_of};
use crate::observe::listener::{self, Access, Endpoints};
use crate::observe::log;
use crate::observe::metrics::{
    BPF_CODE_BYTES, BPF_LOSSES, BPF_PROGRAMS, BPF_VERIFIED, Figures, HOST_VIEW, Metrics, Source,
};
use crate::observe::probe::MountProbe;
use crate::observe::requests::{Observed, Requests};
use crate::observe::sources::{Build, Features, Process};
use crate::policy::{CpuPolicy, Named};
use crate::worker::{HistoryStore, OnOrphaned, WorkerOptions};

/// For eBPF to be loaded before a mount is served for the first time. Later, and on a machine so
/// slow, cgroup files answer until it is.
const EBPF_PATIENCE: Duration = Duration::from_secs(3);
/// A request that takes longer has met a stuck thread.
const STUCK: Duration = Duration::from_secs(30);
/// For the mount to answer a readiness check.
const READY_DEADLINE: Duration = Duration::from_secs(1);

/// The engine's options for `config`.
fn live_options(config: &Config) -> LiveOptions {
    LiveOptions {
        policy: config.views,
        ttl: config.cache_ttl,
        ..LiveOptions::default()
    }
}

/// How a worker comes by the connection.
pub enum Origin {
    /// The holder started it, and was started by this command.
    Holder(Typed),
    /// A server did, and it has to offer itself to the holder.
    Outside {
        /// The holder's socket.
        holder: PathBuf,
        /// What it says there.
        hello: Hello,
    },
}

/// Serves as the holder's worker until killed.
///
/// # Errors
/// When it cannot start; the connection is untouched then.
pub fn run(config: &Config, origin: Origin) -> Result<()> {
    let mut config = config.clone();
    let mut options = live_options(&config);
    let mut status_socket = holder_socket(&config);
    log::start(config.log_level, config.log_format);
    let from_server = matches!(origin, Origin::Outside { .. });
    let on_orphaned: Option<OnOrphaned> = match origin {
        Origin::Holder(typed) => Some(Box::new(move || typed.start_again())),
        Origin::Outside { holder, hello } => {
            let joined = join(&holder, &hello)?;
            options.proc = joined.proc.map(Arc::new);
            options.cgroups_as_host = joined.cgroups;
            // Mounting in containers is the agent's work, and not allowed here.
            config.heal = false;
            status_socket = holder;
            // The server takes care: it is there to offer another worker to another holder.
            None
        }
    };
    let config = &config;
    let started = Instant::now();
    crate::host::memory::configure();
    let parts = Arc::new(Parts::new(&options)?);
    load_in_background(&parts, config.ebpf)?;
    let requests = Arc::new(Requests::default());
    let engine: Arc<dyn Engine> = Arc::new(Observed::new(
        Arc::clone(&parts.engine),
        Arc::clone(&requests),
    ));
    // Set when this process takes over, before its first answer.
    let keeper: Arc<OnceLock<Keeper>> = Arc::default();
    let on_active = {
        let (config, parts) = (config.clone(), Arc::clone(&parts));
        let keeper = Arc::clone(&keeper);
        Box::new(move |store: HistoryStore| {
            let keeper = keeper.get_or_init(|| Keeper::take_over(&parts, store));
            let holder = Arc::new(Holder(status_socket));
            if let Err(error) = activate(&config, &parts, requests, holder, keeper, started) {
                // Readers are served; what is missing is said and not worth an outage.
                tracing::error!("{error:#}");
            }
        })
    };
    let on_command = {
        let (parts, keeper) = (Arc::clone(&parts), Arc::clone(&keeper));
        Box::new(move |command: &str| {
            let answer = command_of(&parts.engine, command);
            // Known to the successor before it is known to whoever asked.
            if let Some(keeper) = keeper.get() {
                keeper.save(&parts);
            }
            answer
        })
    };
    let on_takeover = {
        let (parts, keeper) = (Arc::clone(&parts), Arc::clone(&keeper));
        Box::new(move |store: &HistoryStore| {
            keeper.get_or_init(|| Keeper::take_over(&parts, store.clone()));
        })
    };
    let before_first = {
        let parts = Arc::clone(&parts);
        Box::new(move || {
            parts.wait_for_ebpf(Some(EBPF_PATIENCE));
        })
    };
    let options = WorkerOptions {
        before_first: Some(before_first),
        on_active: Some(on_active),
        on_takeover: Some(on_takeover),
        on_command: Some(on_command),
        on_orphaned,
        from_server,
    };
    crate::worker::run(options, engine).context("the worker cannot serve")
}

/// Waits until the holder takes this process as a worker.
fn join(holder: &Path, hello: &Hello) -> Result<Joined> {
    let mut said = String::new();
    let waiting = |why: &str| {
        if said != why {
            tracing::info!("waiting: {why}");
            why.clone_into(&mut said);
        }
    };
    outside::join(holder, hello, waiting).with_context(|| {
        let holder = holder.display();
        format!("the holder at {holder} does not take this worker")
    })
}

/// Loads eBPF beside everything else, and less urgently: a worker that is to replace a dead one
/// must not wait for it.
fn load_in_background(parts: &Arc<Parts>, ebpf: bool) -> Result<()> {
    let parts = Arc::clone(parts);
    std::thread::Builder::new()
        .name("lxcfs-ebpf".to_owned())
        .spawn(move || {
            crate::worker::not_urgent();
            parts.load(ebpf);
            // It needs megabytes for a moment; a standby may wait for days after it.
            crate::host::memory::trim();
        })
        .context("cannot start the thread that loads eBPF")?;
    Ok(())
}

/// What only the worker that serves may do.
fn activate(
    config: &Config,
    parts: &Arc<Parts>,
    requests: Arc<Requests>,
    holder: Arc<Holder>,
    keeper: &Keeper,
    started: Instant,
) -> Result<()> {
    let sampler = LoadSampler::start(&parts.engine).context("cannot start the sampler")?;
    let attacher = Arc::new(Attacher::new(&config.mountpoint, EngineOptions::default()));
    listen(config, parts, requests, holder, &attacher, started)?;
    parts.wait_for_ebpf(None);
    if let Some((tasks, collector)) = parts.tasks() {
        let engine = Arc::downgrade(&parts.engine);
        let on_event = move |event| {
            if let bpf::CgroupEvent::Removed { cgroup } = event
                && let Some(engine) = engine.upgrade()
            {
                engine.resolver().note_removed(cgroup.id);
            }
        };
        match Sampler::start(Arc::clone(collector), keeper.loads(), Box::new(on_event)) {
            Ok(sampler) => {
                tasks.use_sampler(sampler);
                let told = bpf::Feature::CgroupEvents;
                if parts.features().iter().any(|it| it.name == told && it.on) {
                    parts.engine.resolver().expect_removals();
                }
            }
            Err(error) => tracing::warn!(%error, "tasks are counted at each request only"),
        }
    }
    report_start(config, parts, keeper.first);
    keeper
        .start(Arc::clone(parts), sampler)
        .context("cannot start the thread that saves")?;
    if config.heal {
        heal(attacher);
    }
    Ok(())
}

/// One line per feature, with the remedy where it is off. Every worker tells of what is off,
/// because the configuration or its rights may be others than its predecessor's; of what
/// works, at the log's debug level, unless it is the daemon's first.
fn report_start(config: &Config, parts: &Parts, first: bool) {
    let layout = parts.engine.resolver().cgroups();
    if !first {
        tracing::info!(worker = std::process::id(), "this worker goes on");
    } else {
        tracing::info!(
            cgroups = layout.layout.name(),
            ttl_ms = config.cache_ttl.as_millis(),
            "serving {}",
            config.mountpoint.display()
        );
    }
    for feature in parts.features() {
        if first || !feature.on {
            tracing::info!("{feature}");
        } else {
            tracing::debug!("{feature}");
        }
    }
}

/// Commands that reach the worker through the holder.
fn command_of(engine: &LiveEngine, command: &str) -> Result<String, String> {
    match command {
        "toggle-host-view" => {
            let on = !engine.host_view();
            engine.set_host_view(on);
            let now = if on { "the host's" } else { "the container's" };
            tracing::info!("SIGUSR2: views show {now} values");
            Ok(format!("views show {now} values"))
        }
        _ => match command.strip_prefix("cpus ") {
            Some(words) => cpus_command(engine, words),
            None => Err(format!("unknown command {command:?}")),
        },
    }
}

/// `TID [quota|cpuset|host|default]`: tells or sets which rule counts the CPUs of the
/// container that the thread is in.
fn cpus_command(engine: &LiveEngine, words: &str) -> Result<String, String> {
    let (tid, rule) = words.split_once(' ').unwrap_or((words, ""));
    let tid = tid
        .parse()
        .map_err(|error| format!("{tid:?} is no thread id: {error}"))?;
    let failed = |error: AnswerError| error.to_string();
    if rule.is_empty() {
        return engine
            .cpus(tid)
            .map(|cpus| cpus.name().to_owned())
            .map_err(failed);
    }
    let cpus = match rule {
        "default" => None,
        _ => Some(CpuPolicy::from_name(rule).ok_or_else(|| {
            format!("{rule:?} counts no CPUs; known: quota, cpuset, host, default")
        })?),
    };
    let path = engine.set_cpus(tid, cpus).map_err(failed)?;
    tracing::info!(container = %path, cpus = rule, "CPUs are counted by the container's own rule");
    Ok(format!("{path}: CPUs by {rule}"))
}

#[derive(Debug)]
struct HostView(Arc<LiveEngine>);

/// The programs in the kernel, and what they could not record.
struct Programs(Arc<Parts>);

/// What eBPF can do.
struct LateFeatures(Arc<Parts>);

impl std::fmt::Debug for LateFeatures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LateFeatures").finish_non_exhaustive()
    }
}

impl Source for LateFeatures {
    fn figures(&self, out: &mut Figures) {
        if let Some(features) = self.0.shared_features() {
            Features(features).figures(out);
        }
    }
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs").finish_non_exhaustive()
    }
}

impl Source for Programs {
    fn figures(&self, out: &mut Figures) {
        if let Some(collector) = self.0.bpf() {
            let programs = collector.programs();
            out.count(BPF_PROGRAMS, &[], programs.len() as u64);
            for program in &programs {
                if let Some(verified) = program.verified {
                    out.count(BPF_VERIFIED, &[&program.name], u64::from(verified));
                }
                out.count(BPF_CODE_BYTES, &[&program.name], u64::from(program.jited));
            }
            for (table, lost) in collector.losses() {
                out.count(BPF_LOSSES, &[table], lost);
            }
        }
    }
}

impl Source for HostView {
    fn figures(&self, out: &mut Figures) {
        out.count(HOST_VIEW, &[], u64::from(self.0.host_view()));
    }
}

fn listen(
    config: &Config,
    parts: &Arc<Parts>,
    requests: Arc<Requests>,
    holder: Arc<Holder>,
    attacher: &Arc<Attacher>,
    started: Instant,
) -> Result<()> {
    let program = std::env::current_exe().unwrap_or_else(|_gone| PathBuf::from("/proc/self/exe"));
    let program = intact(program);
    let probe = Arc::new(MountProbe::new(
        program,
        config.mountpoint.clone(),
        READY_DEADLINE,
    ));
    let sources: Vec<Arc<dyn Source>> = vec![
        Arc::new(Build),
        Arc::clone(&requests) as Arc<dyn Source>,
        Arc::clone(parts.engine.fallbacks()) as Arc<dyn Source>,
        Arc::new(LateFeatures(Arc::clone(parts))),
        Arc::new(Programs(Arc::clone(parts))),
        Arc::new(HostView(Arc::clone(&parts.engine))),
        Arc::clone(&holder) as Arc<dyn Source>,
        Arc::clone(&probe) as Arc<dyn Source>,
        Arc::clone(attacher) as Arc<dyn Source>,
        Arc::new(Process),
    ];
    let status = {
        let (config, parts) = (config.clone(), Arc::clone(parts));
        move || status(&config, &parts, &holder, started)
    };
    let endpoints = Arc::new(Endpoints {
        live: Box::new(move || match requests.oldest() {
            Some(age) if age > STUCK => Err(format!(
                "a serving thread has worked on one answer for {} s",
                age.as_secs()
            )),
            _ => Ok(()),
        }),
        ready: Box::new(move || probe.check()),
        metrics: Metrics::new(sources),
        status: Box::new(status),
    });
    let mut listeners = vec![(Listen::Unix(config.control_socket()), Access::Control)];
    listeners.extend(config.metrics.clone().map(|at| (at, Access::Public)));
    listener::start(listeners, endpoints).context("cannot start the control thread")
}

/// The program itself, also when its file was replaced while we run.
fn intact(program: PathBuf) -> PathBuf {
    if program.as_os_str().as_bytes().ends_with(b" (deleted)") {
        Path::new("/proc/self/exe").to_owned()
    } else {
        program
    }
}

fn status(config: &Config, parts: &Parts, holder: &Holder, started: Instant) -> String {
    let held = holder.status();
    let number = |key: &str| value_of(&held, key).and_then(|value| value.parse::<u64>().ok());
    let features: Vec<_> = parts
        .features()
        .iter()
        .map(|feature| {
            serde_json::json!({
                "name": feature.name.name(),
                "on": feature.on,
                "reason": feature.reason,
                "remedy": feature.remedy,
                "fallback": feature.name.fallback(),
            })
        })
        .collect();
    let deaths = number("worker_deaths").unwrap_or(0);
    let upgrades = number("upgrades").unwrap_or(0);
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "mountpoint": config.mountpoint,
        "cgroups": parts.engine.resolver().cgroups().layout.name(),
        "worker_pid": std::process::id(),
        "holder_pid": number("holder"),
        "standby_ready": number("standby_ready") == Some(1),
        "program": value_of(&held, "program"),
        "answers": number("answers"),
        "uptime_seconds": started.elapsed().as_secs(),
        "workers_started": deaths + upgrades + 1,
        "host_view": parts.engine.host_view(),
        "features": features,
    })
    .to_string()
}

/// Replaces dead mounts of ours, left by a daemon that was lost with all its descriptors.
fn heal(attacher: Arc<Attacher>) {
    let work = move || {
        let totals = attacher.heal_all()?.totals();
        if totals.healed + totals.failed + totals.unreached > 0 {
            tracing::info!(
                healed = totals.healed,
                failed = totals.failed,
                unreached = totals.unreached,
                "dead mounts of lxcfs in containers; `lxcfs heal --verbose` tells more"
            );
        }
        Ok::<(), crate::attach::AttachError>(())
    };
    let spawned = std::thread::Builder::new()
        .name("lxcfs-heal".to_owned())
        .spawn(move || {
            if let Err(error) = work() {
                tracing::warn!(%error, "dead mounts in containers were not looked for");
            }
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "dead mounts in containers are not looked for");
    }
}
