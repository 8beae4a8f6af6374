//! The webhook's two listeners: reviews over TLS, and a plain one for probes and metrics.
//! Owns limits, deadlines and draining. What a review means is [`crate::review`]'s.
//!
//! Endpoints: `POST /mutate/…` (TLS); `/livez`, `/readyz`, `/metrics` (plain).

pub mod metrics;
pub mod tls;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use crate::mutate::Config;
use crate::review::{Answer, Endpoint, Fault, answer, faulty, uid_in};
use metrics::Metrics;
use tls::{CurrentCertificate, TlsError};

/// Bounds on what a client may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest review read; the API server's own objects end at about 3 MiB.
    pub body_bytes: usize,
    /// Longest wait for a handshake, a request's head, and its body, each.
    pub patience: Duration,
    /// Most connections at once; further ones wait in the kernel's queue.
    pub connections: usize,
    /// How long requests are still answered after SIGTERM, while endpoints are updated.
    pub drain: Duration,
    /// How long open requests may take after that.
    pub finish: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 8 << 20,
            patience: Duration::from_secs(5),
            connections: 512,
            drain: Duration::from_secs(5),
            finish: Duration::from_secs(5),
        }
    }
}

/// Shared by both listeners and the certificate keeper.
#[derive(Debug)]
pub struct State {
    /// The cluster's choices.
    pub config: Config,
    /// Bounds.
    pub limits: Limits,
    /// Counters.
    pub metrics: Metrics,
    /// What handshakes are answered with.
    pub certificate: Arc<CurrentCertificate>,
    draining: AtomicBool,
}

impl State {
    /// A server that has no certificate yet.
    pub fn new(config: Config, limits: Limits) -> Self {
        Self {
            config,
            limits,
            metrics: Metrics::default(),
            certificate: Arc::default(),
            draining: AtomicBool::new(false),
        }
    }

    fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// Serves until `stop` resolves, then drains: not ready at once, still answering for the
/// drain time with connections closed one by one, then no new ones, then done.
pub async fn serve(
    state: Arc<State>,
    reviews: TcpListener,
    admin: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<(), TlsError> {
    let tls = tls::server_config(Arc::clone(&state.certificate))?;
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let open = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(state.limits.connections));
    let admin = tokio::spawn(serve_admin(Arc::clone(&state), admin));

    let deadline = async {
        stop.await;
        state.draining.store(true, Ordering::Relaxed);
        info!(drain = ?state.limits.drain, "draining: not ready any more, still answering");
        tokio::time::sleep(state.limits.drain).await;
    };
    tokio::pin!(deadline);
    loop {
        let place = tokio::select! {
            biased;
            () = &mut deadline => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let stream = tokio::select! {
            biased;
            () = &mut deadline => break,
            stream = accept(&reviews) => stream,
        };
        let (state, acceptor, watcher) = (Arc::clone(&state), acceptor.clone(), open.watcher());
        tokio::spawn(async move {
            let _place = place;
            let handshake = timeout(state.limits.patience, acceptor.accept(stream)).await;
            let Ok(Ok(stream)) = handshake else {
                state.metrics.fault("tls-handshake");
                return debug!("a TLS handshake failed or took too long");
            };
            let service_state = Arc::clone(&state);
            let service = service_fn(move |request| review(Arc::clone(&service_state), request));
            let connection = http(&state.limits).serve_connection(TokioIo::new(stream), service);
            if watcher.watch(connection).await.is_err() {
                state.metrics.fault("connection");
            }
        });
    }
    drop(reviews);
    if timeout(state.limits.finish, open.shutdown()).await.is_err() {
        warn!("requests were still open at the end of the drain time");
    }
    admin.abort();
    info!("drained");
    Ok(())
}

fn http(limits: &Limits) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.patience.max(IDLE));
    http
}

/// How long a kept-alive connection may be silent: longer than the API server keeps its
/// idle ones, so that it is never the server who closes a connection just being used.
const IDLE: Duration = Duration::from_secs(120);

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are one small write; waiting for more would only delay them.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                // Out of file descriptors, most likely: the ones in use will come back.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn review(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let Some(endpoint) = Endpoint::at(request.uri().path()) else {
        state.metrics.fault("unknown-path");
        return Ok(text(
            StatusCode::NOT_FOUND,
            "reviews are posted to /mutate/…\n",
        ));
    };
    if request.method() != Method::POST {
        state.metrics.fault("method");
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "reviews are posted\n"));
    }
    state.metrics.in_flight.inc();
    let answer = read_and_answer(&state, request, endpoint).await;
    state.metrics.in_flight.dec();
    state.metrics.record(&answer);
    // Words of ours and the namespace only: never a part of an object.
    match answer.fault {
        Some(fault) => warn!(fault = fault.word(), "a review could not be read"),
        None => debug!(
            namespace = answer.namespace,
            outcome = ?answer.decision.outcome,
            skipped = answer.decision.skipped.len(),
            "review"
        ),
    }
    let mut response = text(StatusCode::OK, answer.body.to_string());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if state.draining() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// How many times the limit is read and thrown away before the connection is cut.
const DISCARDED_LIMITS: usize = 16;

async fn read_and_answer(state: &State, request: Request<Incoming>, endpoint: Endpoint) -> Answer {
    let limit = state.limits.body_bytes;
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    let read = timeout(state.limits.patience, async {
        // What is too much is still taken off the wire, up to a point: a client that is
        // busy sending would not see the answer.
        let mut discarded = 0;
        while let Some(frame) = body.frame().await {
            match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(data)) if discarded == 0 && bytes.len() + data.len() <= limit => {
                    bytes.extend_from_slice(&data);
                }
                Ok(Ok(data)) => discarded += data.len(),
                Ok(Err(_trailers)) => {}
                Err(_) => return Err(Fault::Malformed),
            }
            if discarded > limit * DISCARDED_LIMITS {
                break;
            }
        }
        if discarded == 0 {
            Ok(())
        } else {
            Err(Fault::TooLarge)
        }
    })
    .await
    .unwrap_or(Err(Fault::Timeout));
    if let Err(fault) = read {
        return faulty(fault, &uid_in(&bytes));
    }
    let start = Instant::now();
    let answer = answer(&bytes, endpoint, &state.config);
    state.metrics.seconds.observe(start.elapsed().as_secs_f64());
    answer
}

async fn serve_admin(state: Arc<State>, listener: TcpListener) {
    // Probes and one scraper; anything beyond that waits.
    let places = Arc::new(Semaphore::new(16));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let stream = accept(&listener).await;
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let _place = place;
            serve_admin_connection(state, stream).await;
        });
    }
}

async fn serve_admin_connection(state: Arc<State>, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let limit = state.limits.patience;
    let service = service_fn(|request: Request<Incoming>| {
        let response = admin(&state, request.uri().path());
        async { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limit)
        .keep_alive(false);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    let _ = timeout(limit * 2, connection).await;
}

fn admin(state: &State, path: &str) -> Response<Full<Bytes>> {
    match path {
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" if state.draining() => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        "/readyz" if !state.certificate.is_set() => {
            text(StatusCode::SERVICE_UNAVAILABLE, "no certificate yet\n")
        }
        "/readyz" => text(StatusCode::OK, "ok\n"),
        "/metrics" => text(StatusCode::OK, state.metrics.text()),
        _ => text(
            StatusCode::NOT_FOUND,
            "/livez, /readyz and /metrics are here\n",
        ),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
