//! Owns talking to dockerd over its socket: which containers run, and which start.
//!
//! tokio and hyper work on a thread of their own here; the rest of the program sees a
//! callback. Answers are read with a size limit and a deadline, because the socket may
//! belong to anything that speaks HTTP.

pub mod message;
#[cfg(test)]
mod tests;

pub use message::{Inspected, Started};

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Why dockerd could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// Nobody listens on the socket.
    #[error("{path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// What answers does not speak HTTP, or stopped in the middle.
    #[error("{what}: {source}")]
    Http {
        /// The request.
        what: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// dockerd refuses.
    #[error("{what}: dockerd answered {status}")]
    Status {
        /// The request.
        what: String,
        /// HTTP's number.
        status: u16,
    },
    /// No answer in time.
    #[error("{what}: no answer within {limit:?}")]
    Deadline {
        /// The request.
        what: String,
        /// The time waited.
        limit: Duration,
    },
    /// The runtime for the connection could not be set up.
    #[error("cannot start the event loop: {0}")]
    EventLoop(#[source] std::io::Error),
}

impl DockerError {
    /// The metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Connect { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "absent"
            }
            Self::Connect { .. } | Self::EventLoop(_) => "socket",
            Self::Http { .. } => "protocol",
            Self::Status { .. } => "refused",
            Self::Deadline { .. } => "silent",
        }
    }
}

/// Limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct DockerOptions {
    /// Time one answer may take.
    pub deadline: Duration,
    /// Largest answer, and longest event, in bytes.
    pub limit: usize,
}

impl Default for DockerOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(5),
            limit: 16 << 20,
        }
    }
}

/// What is told while following dockerd.
#[derive(Debug)]
pub enum News {
    /// Everything that runs; comes first, after the events are subscribed to, so that no
    /// start is missed in between.
    Running(Vec<Inspected>),
    /// A container has started.
    Started(Inspected),
}

struct Client<'a> {
    socket: &'a Path,
    options: DockerOptions,
}

impl Client<'_> {
    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, DockerError> {
        let stream =
            UnixStream::connect(self.socket)
                .await
                .map_err(|source| DockerError::Connect {
                    path: self.socket.to_owned(),
                    source,
                })?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|err| http("handshake", err))?;
        // Ends with the sender; errors reach whoever reads the body.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    async fn open(&self, path: &str) -> Result<Incoming, DockerError> {
        let mut sender = self.connect().await?;
        let request = Request::get(path)
            .header("Host", "docker")
            .body(Empty::new())
            .map_err(|err| http(path, err))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|err| http(path, err))?;
        let status = response.status();
        if !status.is_success() {
            return Err(DockerError::Status {
                what: path.to_owned(),
                status: status.as_u16(),
            });
        }
        Ok(response.into_body())
    }

    /// One whole answer.
    async fn get(&self, path: &str) -> Result<Bytes, DockerError> {
        let whole = async {
            let body = self.open(path).await?;
            let body = Limited::new(body, self.options.limit);
            let collected = body.collect().await.map_err(|source| DockerError::Http {
                what: path.to_owned(),
                source,
            })?;
            Ok(collected.to_bytes())
        };
        self.in_time(path, whole).await
    }

    async fn in_time<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, DockerError>>,
    ) -> Result<T, DockerError> {
        let limit = self.options.deadline;
        tokio::time::timeout(limit, work)
            .await
            .unwrap_or_else(|_elapsed| {
                Err(DockerError::Deadline {
                    what: what.to_owned(),
                    limit,
                })
            })
    }

    /// `None` when it has ended meanwhile or is not to be understood.
    async fn inspect(&self, id: &str) -> Option<Inspected> {
        // The id comes from dockerd and becomes part of a path.
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let text = self.get(&format!("/containers/{id}/json")).await.ok()?;
        message::inspected(&text)
    }

    async fn running(&self) -> Result<Vec<Inspected>, DockerError> {
        let text = self.get("/containers/json").await?;
        let mut found = Vec::new();
        for id in message::listed(&text) {
            found.extend(self.inspect(&id).await);
        }
        Ok(found)
    }
}

fn http(what: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> DockerError {
    DockerError::Http {
        what: what.to_owned(),
        source: source.into(),
    }
}

/// `filters={"type":["container"],"event":["start"]}`, percent-encoded.
const EVENTS: &str =
    "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22start%22%5D%7D";

async fn follow_on(
    client: Client<'_>,
    tell: &mut dyn FnMut(News),
    mut stop: tokio::sync::oneshot::Receiver<()>,
) -> Result<(), DockerError> {
    let mut events = client.in_time(EVENTS, client.open(EVENTS)).await?;
    tell(News::Running(client.running().await?));
    let mut lines = message::Lines::new(client.options.limit);
    loop {
        let frame = tokio::select! {
            _ = &mut stop => return Ok(()),
            frame = events.frame() => frame,
        };
        let Some(frame) = frame else {
            return Err(DockerError::Http {
                what: EVENTS.to_owned(),
                source: "dockerd ended the stream".into(),
            });
        };
        let frame = frame.map_err(|source| DockerError::Http {
            what: EVENTS.to_owned(),
            source: source.into(),
        })?;
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        let whole = lines.push(&bytes).ok_or_else(|| DockerError::Http {
            what: EVENTS.to_owned(),
            source: "an event is longer than the limit".into(),
        })?;
        for started in whole.iter().filter_map(|line| message::started(line)) {
            if let Some(inspected) = client.inspect(&started.id).await {
                tell(News::Started(inspected));
            }
        }
    }
}

/// Follows dockerd on the calling thread until `stop` is sent or dropped.
///
/// # Errors
/// dockerd is absent, refuses, or ends the connection.
pub fn follow(
    socket: &Path,
    options: DockerOptions,
    tell: &mut dyn FnMut(News),
    stop: tokio::sync::oneshot::Receiver<()>,
) -> Result<(), DockerError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DockerError::EventLoop)?;
    runtime.block_on(follow_on(Client { socket, options }, tell, stop))
}
