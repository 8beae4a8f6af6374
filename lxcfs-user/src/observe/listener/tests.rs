use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use super::*;
use crate::observe::client;

fn endpoints(alive: Arc<AtomicBool>) -> Arc<Endpoints> {
    Arc::new(Endpoints {
        live: Box::new(move || {
            if alive.load(Relaxed) {
                Ok(())
            } else {
                Err("stuck in proc/meminfo".to_owned())
            }
        }),
        ready: Box::new(|| Ok(())),
        metrics: Metrics::new(Vec::new()),
        status: Box::new(|| r#"{"state":"serving"}"#.to_owned()),
    })
}

/// Serves on a free port and on two sockets in `dir`.
fn served(dir: &Path, alive: &Arc<AtomicBool>) -> (SocketAddr, PathBuf, PathBuf) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let (control, public) = (dir.join("lxcfs/control.sock"), dir.join("public.sock"));
    start(
        vec![
            (Listen::Unix(control.clone()), Access::Control),
            (Listen::Unix(public.clone()), Access::Public),
            (Listen::Tcp(address), Access::Public),
        ],
        endpoints(Arc::clone(alive)),
    )
    .unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).is_err() || !control.exists() || !public.exists() {
        assert!(Instant::now() < end, "the listeners did not come up");
        std::thread::sleep(Duration::from_millis(5));
    }
    (address, control, public)
}

/// What a raw request over TCP gets.
fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    // The listener may answer and close before it has read everything.
    let _ = stream.write_all(request);
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

#[test]
fn health_follows_its_checks_on_every_listener() {
    let dir = tempfile::tempdir().unwrap();
    let alive = Arc::new(AtomicBool::new(true));
    let (address, control, public) = served(dir.path(), &alive);
    for socket in [&control, &public] {
        assert_eq!(client::get(socket, "/livez").unwrap().status, 200);
        assert_eq!(client::get(socket, "/readyz").unwrap().status, 200);
    }
    alive.store(false, Relaxed);
    let response = client::get(&public, "/livez").unwrap();
    assert_eq!(response.status, 503);
    assert_eq!(response.body, "stuck in proc/meminfo\n");
    let text = raw(address, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(
        text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
        "{text}"
    );
    let text = raw(address, b"HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(text.contains("text/plain; version=0.0.4"), "{text}");
}

#[test]
fn control_is_only_for_the_control_socket() {
    let dir = tempfile::tempdir().unwrap();
    let (address, control, public) = served(dir.path(), &Arc::new(AtomicBool::new(true)));
    assert_eq!(
        client::get(&control, "/status").unwrap().body,
        "{\"state\":\"serving\"}\n"
    );
    assert_eq!(client::get(&public, "/status").unwrap().status, 404);
    assert_eq!(
        client::put(&public, "/log-level?debug").unwrap().status,
        405
    );
    let text = raw(address, b"PUT /log-level?debug HTTP/1.1\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 405"), "{text}");
    let response = client::put(&control, "/log-level?loud").unwrap();
    assert_eq!(response.status, 400);
    assert!(response.body.contains("error, warn, info, debug, trace"));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&control), mode(&public)), (0o600, 0o660));
}

#[test]
fn bad_input_gets_an_answer_and_service_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (address, ..) = served(dir.path(), &Arc::new(AtomicBool::new(true)));
    assert!(raw(address, b"\x16\x03\x01\r\n\r\n").starts_with("HTTP/1.1 400"));
    assert!(raw(address, &[b'a'; http::HEAD_LIMIT + 10]).starts_with("HTTP/1.1 431"));
    // Connections that say nothing hold their places for no longer than the patience.
    let idle: Vec<TcpStream> = (0..CONNECTIONS + 4)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    let text = raw(address, b"GET /livez HTTP/1.1\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    drop(idle);
}

#[test]
fn a_successor_takes_the_socket_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    std::fs::write(&path, "not a socket").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _context = runtime.enter();
    assert!(bind_unix(&path, Access::Control).is_err());
    std::fs::remove_file(&path).unwrap();
    let first = bind_unix(&path, Access::Control).unwrap();
    let second = bind_unix(&path, Access::Control).unwrap();
    drop(first);
    assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
    drop(second);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
