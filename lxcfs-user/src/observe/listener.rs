//! Serves health, metrics and control: one thread with its own small runtime, apart from
//! the threads that answer readers.
//!
//! * `GET /livez`: the serving threads make progress.
//! * `GET /readyz`: the mount answers through the kernel within its deadline.
//! * `GET /metrics`: Prometheus's text format.
//! * `GET /status`: JSON; control socket only.
//! * `PUT /log-level?LEVEL`: control socket only.
//!
//! The control socket is for root alone (mode 0600).

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::http::{self, Method, Request, Response};
use super::log;
use super::metrics::{CONTENT_TYPE, Metrics};
use crate::config::{Listen, LogLevel};
use crate::policy::Named as _;

/// Connections served at once per listener; the next ones wait in the kernel's queue.
const CONNECTIONS: usize = 16;
/// For a request head to arrive, and again for the response to leave.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between attempts to bind an address that somebody else still has.
const BIND_AGAIN: Duration = Duration::from_secs(2);

/// A check with one line of explanation when it fails.
pub type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What can be asked.
pub struct Endpoints {
    /// Whether the serving threads make progress; must not block.
    pub live: Check,
    /// Whether the mount answers; may block for its own deadline.
    pub ready: Check,
    /// Every figure.
    pub metrics: Metrics,
    /// The state as JSON; may block for a moment.
    pub status: Box<dyn Fn() -> String + Send + Sync>,
}

/// How much a listener may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Health and metrics.
    Public,
    /// Everything.
    Control,
}

/// Starts serving on every address, in a thread of its own. An address that is taken is
/// tried again until it is free: the worker before us may still be leaving.
///
/// # Errors
/// When the thread or its runtime cannot start.
pub fn start(listeners: Vec<(Listen, Access)>, endpoints: Arc<Endpoints>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_name("lxcfs-observe")
        .build()?;
    std::thread::Builder::new()
        .name("lxcfs-observe".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                let mut tasks = tokio::task::JoinSet::new();
                for (listen, access) in listeners {
                    tasks.spawn(serve(listen, access, Arc::clone(&endpoints)));
                }
                while tasks.join_next().await.is_some() {}
            });
        })?;
    Ok(())
}

async fn serve(listen: Listen, access: Access, endpoints: Arc<Endpoints>) {
    // Per listener: whoever crowds the public one must not shut us out of control.
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let listener = bind(&listen, access).await;
    tracing::debug!(address = %listen, "health and metrics are served");
    loop {
        // Held by the connection until it is over.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let stream = match &listener {
            Listener::Unix(listener) => listener.accept().await.map(|(s, _)| Stream::Unix(s)),
            Listener::Tcp(listener) => listener.accept().await.map(|(s, _)| Stream::Tcp(s)),
        };
        let endpoints = Arc::clone(&endpoints);
        match stream {
            Ok(stream) => {
                tokio::spawn(async move {
                    match stream {
                        Stream::Unix(stream) => connection(stream, access, endpoints).await,
                        Stream::Tcp(stream) => connection(stream, access, endpoints).await,
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: a busy loop would not give any back.
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

enum Stream {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

async fn bind(listen: &Listen, access: Access) -> Listener {
    let mut told = false;
    loop {
        let result = match listen {
            Listen::Unix(path) => bind_unix(path, access).map(Listener::Unix),
            Listen::Tcp(address) => TcpListener::bind(address).await.map(Listener::Tcp),
        };
        match result {
            Ok(listener) => return listener,
            Err(error) if !told => {
                told = true;
                tracing::warn!(address = %listen, %error, "cannot listen yet; trying again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(BIND_AGAIN).await;
    }
}

/// Binds beside `path` and renames over it: a client finds the old worker's socket or
/// ours, never none, and never one with the wrong mode.
fn bind_unix(path: &Path, access: Access) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if let Ok(there) = std::fs::symlink_metadata(path) {
        use std::os::unix::fs::FileTypeExt as _;
        if !there.file_type().is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "exists and is not a socket; remove it or choose another path",
            ));
        }
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    let mode = match access {
        Access::Control => 0o600,
        Access::Public => 0o660,
    };
    let renamed = std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = renamed {
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(listener)
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    access: Access,
    endpoints: Arc<Endpoints>,
) {
    let request = match timeout(PATIENCE, receive(&mut stream)).await {
        Ok(Ok(Some(request))) => Ok(request),
        // Went away before it had said anything.
        Ok(Ok(None)) => return,
        Ok(Err(response)) => Err(response),
        Err(_elapsed) => Err(Response::text(408, "no request within 5 s")),
    };
    let head = matches!(&request, Ok(request) if request.method == Method::Head);
    let response = match request {
        // Checks may block, and the text of a scrape is work: not on the accepting thread.
        Ok(request) => tokio::task::spawn_blocking(move || answer(&request, access, &endpoints))
            .await
            .unwrap_or_else(|_error| Response::text(503, "the answer failed")),
        Err(response) => response,
    };
    let send = async {
        stream.write_all(&response.to_bytes(head)).await?;
        stream.shutdown().await
    };
    let _ = timeout(PATIENCE, send).await;
}

async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<Request>, Response> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
        }
        if let Some(request) = http::parse(&bytes)? {
            return Ok(Some(request));
        }
    }
}

/// What `request` gets; the one place that knows every path.
fn answer(request: &Request, access: Access, endpoints: &Endpoints) -> Response {
    let control = access == Access::Control;
    if request.method == Method::Put && !control {
        return Response::text(405, "GET and HEAD only");
    }
    match (request.method, request.path.as_str()) {
        (Method::Put, "/log-level") => set_level(request.query.as_deref()),
        (Method::Put, _) => Response::text(404, "nothing to change there"),
        (_, "/livez") => health((endpoints.live)()),
        (_, "/readyz") => health((endpoints.ready)()),
        (_, "/metrics") => Response {
            status: 200,
            content_type: CONTENT_TYPE,
            body: endpoints.metrics.text(),
        },
        (_, "/status") if control => Response {
            status: 200,
            content_type: "application/json",
            body: (endpoints.status)() + "\n",
        },
        _ => Response::text(404, "try /livez, /readyz or /metrics"),
    }
}

fn health(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => Response::text(200, "ok"),
        Err(why) => Response::text(503, why),
    }
}

fn set_level(level: Option<&str>) -> Response {
    let Some(level) = level.and_then(LogLevel::from_name) else {
        let names: Vec<_> = LogLevel::NAMES.iter().map(|(name, ..)| *name).collect();
        return Response::text(400, format!("one of {}", names.join(", ")));
    };
    match log::set_level(level) {
        Ok(()) => Response::text(200, format!("log level {}", level.name())),
        Err(why) => Response::text(503, why),
    }
}

#[cfg(test)]
mod tests;
