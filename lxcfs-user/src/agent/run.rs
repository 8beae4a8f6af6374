//! The control loop: one thread per source, each connecting again when its peer goes away.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::attacher::{Attacher, Job, Method};
use super::docker::{self, DockerOptions, Inspected, News};
use super::events::{Started, Wake};
use super::health::{Health, Runtime};
use super::known::Known;
use super::nri::views::Views;
use super::nri::{Session, SessionOptions};
use super::policy::{AgentPolicy, Subject};
use crate::attach::{AttachError, EngineOptions, Report, Scan, Target};

/// What the agent shall do.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The daemon's mountpoint as the agent sees it.
    pub mountpoint: PathBuf,
    /// The same as runtimes see it.
    pub host_mountpoint: PathBuf,
    /// Where the daemon takes commands.
    pub control: PathBuf,
    /// Who is served.
    pub policy: AgentPolicy,
    /// The runtime's NRI socket; `None` not to use NRI.
    pub nri: Option<PathBuf>,
    /// dockerd's socket; `None` not to use it.
    pub docker: Option<PathBuf>,
    /// Whether NRI adds mounts to specs, or everything is attached at the start.
    pub mounts_in_spec: bool,
    /// Whether to listen, by eBPF, for containers that start.
    pub events: bool,
    /// Time between scans; `None` to rely on the runtimes' word alone.
    pub scan_interval: Option<Duration>,
    /// Time between attempts to reach a runtime.
    pub reconnect: Duration,
    /// Limits of attaching.
    pub engine: EngineOptions,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            mountpoint: "/var/lib/lxcfs".into(),
            host_mountpoint: "/var/lib/lxcfs".into(),
            control: "/run/lxcfs/holder.sock".into(),
            policy: AgentPolicy::default(),
            nri: Some("/var/run/nri/nri.sock".into()),
            docker: Some("/var/run/docker.sock".into()),
            mounts_in_spec: true,
            events: true,
            scan_interval: Some(Duration::from_secs(10)),
            reconnect: Duration::from_secs(2),
            // Opening the mount and attaching each take at most this: together they stay
            // below the bound a runtime is kept waiting.
            engine: EngineOptions {
                deadline: Duration::from_millis(400),
                ..EngineOptions::default()
            },
        }
    }
}

/// Ends waits of all threads.
#[derive(Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
    nri: Mutex<Option<UnixStream>>,
    docker: Mutex<Option<oneshot::Sender<()>>>,
    events: Mutex<Option<Wake>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stop {
    fn is_stopped(&self) -> bool {
        *lock(&self.stopped)
    }

    /// Waits; `false` when it is time to end.
    fn wait(&self, time: Duration) -> bool {
        let stopped = lock(&self.stopped);
        let waited = self
            .changed
            .wait_timeout_while(stopped, time, |stopped| !*stopped);
        let (stopped, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !*stopped
    }

    fn stop(&self) {
        *lock(&self.stopped) = true;
        self.changed.notify_all();
        if let Some(socket) = lock(&self.nri).take() {
            // Ends the session's read; a socket that is closed already is as good.
            let _ = socket.shutdown(Shutdown::Both);
        }
        drop(lock(&self.docker).take());
        if let Some(wake) = lock(&self.events).take() {
            wake.now();
        }
    }
}

struct Shared {
    options: AgentOptions,
    attacher: Arc<Attacher>,
    known: Arc<Known>,
    health: Arc<Health>,
    stop: Stop,
    healed_once: AtomicBool,
}

/// A running agent; it ends when dropped.
pub struct Agent {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Agent {
    /// Starts all sources.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(options: AgentOptions) -> std::io::Result<Self> {
        let known: Arc<Known> = Arc::default();
        let shared = Arc::new(Shared {
            attacher: Arc::new(
                Attacher::new(&options.mountpoint, options.engine.clone())
                    .commanding(options.control.clone()),
            ),
            health: Arc::new(Health::new(Arc::clone(&known))),
            known,
            stop: Stop::default(),
            healed_once: AtomicBool::new(false),
            options,
        });
        let mut agent = Self {
            shared,
            threads: Vec::new(),
        };
        if agent.shared.options.nri.is_some() {
            agent.shared.health.follows(Runtime::Nri);
            agent.spawn("lxcfs-nri", follow_nri)?;
        }
        if agent.shared.options.docker.is_some() {
            agent.shared.health.follows(Runtime::Docker);
            agent.spawn("lxcfs-docker", follow_docker)?;
        }
        if agent.shared.options.events {
            agent.shared.health.follows(Runtime::Kernel);
            agent.spawn("lxcfs-events", follow_events)?;
        }
        if agent.shared.options.scan_interval.is_some() {
            agent.spawn("lxcfs-scan", scan)?;
        }
        Ok(agent)
    }

    fn spawn(&mut self, name: &'static str, work: fn(&Shared)) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name.to_owned());
        self.threads.push(thread.spawn(move || {
            let _noticed = Noticed(&shared, name);
            work(&shared);
        })?);
        Ok(())
    }

    /// What the agent tells about itself.
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.shared.health)
    }

    /// What attaches, and counts.
    pub fn attacher(&self) -> Arc<Attacher> {
        Arc::clone(&self.shared.attacher)
    }

    /// Whether every container that existed has been looked at once, with the daemon there.
    pub fn is_ready(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || {
            let told = &shared.known;
            let listening = told.nri.load(Ordering::Relaxed) || told.docker.load(Ordering::Relaxed);
            shared.healed_once.load(Ordering::Relaxed)
                || (shared.options.scan_interval.is_none() && listening)
        }
    }

    /// Whether the runtime's NRI is connected.
    pub fn has_nri(&self) -> bool {
        self.shared.known.nri.load(Ordering::Relaxed)
    }

    /// Whether the kernel tells of containers that start.
    pub fn has_events(&self) -> bool {
        self.shared.known.events.load(Ordering::Relaxed)
    }

    /// Whether dockerd is connected.
    pub fn has_docker(&self) -> bool {
        self.shared.known.docker.load(Ordering::Relaxed)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shared.stop.stop();
        for thread in self.threads.drain(..) {
            // A panic was printed by the thread itself.
            let _ = thread.join();
        }
    }
}

/// Notices that a thread panics. One that returns has said why, and others do its work.
struct Noticed<'a>(&'a Shared, &'static str);

impl Drop for Noticed<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.health.ended(self.1);
        }
    }
}

/// Remembers the last complaint, so that an absent runtime is one line and not one per
/// attempt.
#[derive(Default)]
struct Complaint(String);

impl Complaint {
    fn say(&mut self, source: &'static str, what: &str) {
        if self.0 != what {
            tracing::info!(source, reason = what, "not connected; trying again");
            what.clone_into(&mut self.0);
        }
    }
}

fn follow_nri(shared: &Shared) {
    let Some(socket) = &shared.options.nri else {
        return;
    };
    let views = Arc::new(Views {
        attacher: Arc::clone(&shared.attacher),
        known: Arc::clone(&shared.known),
        policy: shared.options.policy.clone(),
        host_mountpoint: shared.options.host_mountpoint.clone(),
        mounts_in_spec: shared.options.mounts_in_spec,
    });
    let mut complaint = Complaint::default();
    while !shared.stop.is_stopped() {
        let plugin: Arc<dyn super::nri::Plugin> = Arc::clone(&views) as Arc<_>;
        let ended = nri_session(shared, socket, plugin);
        shared.known.nri.store(false, Ordering::Relaxed);
        match ended {
            Ok(()) => complaint = Complaint::default(),
            Err(err) => {
                shared.health.failed(Runtime::Nri, err.label());
                complaint.say("nri", &err.to_string());
            }
        }
        if !shared.stop.wait(shared.options.reconnect) {
            return;
        }
    }
}

fn nri_session(
    shared: &Shared,
    socket: &Path,
    plugin: Arc<dyn super::nri::Plugin>,
) -> Result<(), super::nri::NriError> {
    let session = Session::connect(socket, plugin, SessionOptions::default())?;
    *lock(&shared.stop.nri) = Some(session.stopper()?);
    if shared.stop.is_stopped() {
        return Ok(());
    }
    session.run()
}

fn follow_docker(shared: &Shared) {
    let Some(socket) = &shared.options.docker else {
        return;
    };
    let mut complaint = Complaint::default();
    while !shared.stop.is_stopped() {
        let (stop, stopped) = oneshot::channel();
        *lock(&shared.stop.docker) = Some(stop);
        let mut tell = |news| docker_news(shared, news);
        let ended = docker::follow(socket, DockerOptions::default(), &mut tell, stopped);
        shared.known.docker.store(false, Ordering::Relaxed);
        match ended {
            Ok(()) => return,
            Err(err) => {
                shared.health.failed(Runtime::Docker, err.label());
                complaint.say("docker", &err.to_string());
            }
        }
        if !shared.stop.wait(shared.options.reconnect) {
            return;
        }
    }
}

fn docker_news(shared: &Shared, news: News) {
    let containers = match news {
        News::Running(containers) => {
            shared.known.docker.store(true, Ordering::Relaxed);
            tracing::info!(running = containers.len(), "connected to dockerd");
            containers
        }
        News::Started(container) => vec![container],
    };
    let jobs = containers
        .into_iter()
        .map(|container| docker_job(shared, container))
        .collect();
    carry_out(shared, jobs, Method::Docker);
}

/// Attaches what the kernel says has just started, in the order NRI, Docker, events, scan: a
/// container whose runtime is listened to is left to that runtime's word.
fn follow_events(shared: &Shared) {
    let mut started = match Started::listen() {
        Ok(started) => started,
        Err(reason) => {
            tracing::info!(%reason, "containers that start are not announced; scans find them");
            shared.health.failed(Runtime::Kernel, "unavailable");
            return;
        }
    };
    *lock(&shared.stop.events) = Some(started.waker());
    shared.known.events.store(true, Ordering::Relaxed);
    tracing::info!("listening for containers that start");
    while !shared.stop.is_stopped() {
        let jobs = started.next().into_iter().filter_map(|pid| {
            let found = Scan::default().process(pid).ok().flatten()?;
            let decision = shared.known.decide(&found, &shared.options.policy);
            let cpus = shared.known.cpus(&found);
            matches!(decision, super::Decision::Attach(_)).then(|| Job {
                target: found.into(),
                decision,
                cpus,
            })
        });
        carry_out(shared, jobs.collect(), Method::Event);
    }
    shared.known.events.store(false, Ordering::Relaxed);
}

fn docker_job(shared: &Shared, container: Inspected) -> Job {
    // Docker has no annotations: labels say the same words.
    let subject = Subject {
        name: container.name,
        annotations: container.labels,
        ..Subject::default()
    };
    let decision = shared.options.policy.decide(&subject);
    let cpus = shared.attacher.cpus_of(&subject);
    shared.known.remember(&container.id, &decision, cpus);
    Job {
        target: Target::process(container.pid),
        decision,
        cpus,
    }
}

fn carry_out(shared: &Shared, jobs: Vec<Job>, method: Method) -> Option<Report> {
    match shared.attacher.carry_out(jobs, method) {
        Ok(report) => {
            for container in &report.containers {
                if let Some(error) = &container.error {
                    tracing::warn!(pid = container.pid, %error, "container not attached");
                }
            }
            Some(report)
        }
        Err(error) => {
            tracing::warn!(%error, "nothing attached");
            None
        }
    }
}

fn scan(shared: &Shared) {
    let Some(usual) = shared.options.scan_interval else {
        return;
    };
    loop {
        shared.health.beat(Instant::now(), usual);
        match scan_once(shared) {
            Ok(served) => {
                if served {
                    shared.healed_once.store(true, Ordering::Relaxed);
                }
            }
            Err(error) => tracing::warn!(%error, "scan failed"),
        }
        // Until the daemon is there, look often: containers are waiting.
        let ready = shared.healed_once.load(Ordering::Relaxed);
        let interval = if ready {
            usual
        } else {
            usual.min(Duration::from_secs(1))
        };
        if !shared.stop.wait(interval) {
            return;
        }
    }
}

/// Looks at every mount namespace; `false` when there was nothing to attach from.
fn scan_once(shared: &Shared) -> Result<bool, AttachError> {
    shared.known.next_scan();
    let found = Scan::default().containers()?;
    let ours = found.iter().filter(|found| found.has_ours).count();
    let jobs: Vec<Job> = found
        .into_iter()
        .filter_map(|found| {
            let decision = shared.known.decide(&found, &shared.options.policy);
            let cpus = shared.known.cpus(&found);
            let wanted = matches!(decision, super::Decision::Attach(_)) || cpus.is_some();
            (wanted || found.has_ours).then(|| Job {
                target: found.into(),
                decision,
                cpus,
            })
        })
        .collect();
    if jobs.is_empty() {
        shared.attacher.set_stale(0);
        return Ok(shared.attacher.is_served());
    }
    let report = carry_out(shared, jobs, Method::Scan);
    // Without a daemon every mount found may be dead; with one, what could not be healed.
    let stale = report.as_ref().map_or(ours, Report::stale);
    shared.attacher.set_stale(stale as u64);
    Ok(report.is_some())
}
