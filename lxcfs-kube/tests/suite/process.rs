//! The real `lxcfs-webhook` program, and a client that speaks to it as an API server
//! does: TLS with the configuration's caBundle, one keep-alive connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

/// Longest wait for anything; only ever reached by a failing test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The name the API server calls the service by.
pub(crate) const NAME: &str = "lxcfs-webhook.lxcfs-system.svc";

/// A running webhook; killed when dropped.
pub(crate) struct Webhook {
    child: Child,
    log: Arc<Mutex<String>>,
    pub(crate) reviews: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Webhook {
    /// Starts it on free ports.
    pub(crate) fn start(arguments: &[&str], kubeconfig: Option<&Path>) -> Self {
        Self::start_on("127.0.0.1", arguments, kubeconfig)
    }

    /// Starts it on free ports, reviews at this address.
    pub(crate) fn start_on(address: &str, arguments: &[&str], kubeconfig: Option<&Path>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lxcfs-webhook"));
        command
            .args(["webhook", "--admin-listen", "127.0.0.1:0"])
            .args(["--listen", &format!("{address}:0")])
            .args(["--certificate-check-seconds", "1"])
            .args(arguments)
            .env("LXCFS_LOG", "debug")
            .env("NO_COLOR", "1")
            .env_remove("KUBECONFIG")
            .stderr(Stdio::piped());
        if let Some(path) = kubeconfig {
            command.env("KUBECONFIG", path);
        }
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let sink = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut line = String::new();
            while stderr.read_line(&mut line).is_ok_and(|read| read > 0) {
                sink.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        let mut webhook = Self {
            child,
            log,
            reviews: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        wait("the start-up line", || {
            webhook.log().contains("serving reviews=")
        });
        let log = webhook.log();
        let address = |key: &str| {
            let (_, rest) = log.split_once(key).unwrap();
            rest.split_whitespace().next().unwrap().parse().unwrap()
        };
        webhook.reviews = address("reviews=");
        webhook.admin = address("admin=");
        webhook
    }

    /// Everything it logged.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// A path of the plain listener: status and body.
    pub(crate) fn admin(&self, path: &str) -> (u16, String) {
        let stream = TcpStream::connect(self.admin).unwrap();
        let mut http = Http(BufReader::new(stream));
        let (status, _, body) = http.exchange("GET", path, b"").unwrap();
        (status, String::from_utf8(body).unwrap())
    }

    /// The value of a metric's line, 0 when it is not there yet.
    pub(crate) fn metric(&self, line: &str) -> f64 {
        let (_, text) = self.admin("/metrics");
        let found = text.lines().find_map(|found| found.strip_prefix(line));
        found.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// Waits until it says it is ready.
    pub(crate) fn wait_ready(&self) {
        wait("/readyz", || self.admin("/readyz").0 == 200);
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for its end.
    pub(crate) fn exit(&mut self) -> std::process::ExitStatus {
        wait("the exit", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a condition, as long as it takes within reason.
pub(crate) fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One HTTP/1.1 connection.
pub(crate) struct Http<S>(BufReader<S>);

pub(crate) type Tls = Http<StreamOwned<ClientConnection, TcpStream>>;

impl Tls {
    /// Connects, trusting this bundle only.
    pub(crate) fn connect(address: SocketAddr, bundle: &str) -> std::io::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(NAME).unwrap();
        let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        Ok(Self(BufReader::new(StreamOwned::new(tls, stream))))
    }

    /// Posts a review; the answer and whether the server closes the connection.
    pub(crate) fn review(&mut self, path: &str, body: &[u8]) -> std::io::Result<(Value, bool)> {
        let (status, head, answer) = self.exchange("POST", path, body)?;
        assert_eq!(status, 200, "{head}");
        let close = head.to_ascii_lowercase().contains("connection: close");
        Ok((serde_json::from_slice(&answer).unwrap(), close))
    }
}

impl<S: Read + Write> Http<S> {
    /// One request and its whole response: status, head, body.
    pub(crate) fn exchange(
        &mut self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> std::io::Result<(u16, String, Vec<u8>)> {
        let stream = self.0.get_mut();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: {NAME}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )?;
        // A server that has read enough answers before everything is sent.
        let sent = stream.write_all(body).and_then(|()| stream.flush());
        let mut head = String::new();
        loop {
            let before = head.len();
            match self.0.read_line(&mut head) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if head[before..].trim().is_empty() => break,
                Ok(_) => {}
                Err(error) => return sent.and(Err(error)),
            }
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let lower = head.to_ascii_lowercase();
        let (_, length) = lower.split_once("content-length: ").unwrap();
        let length = length.lines().next().unwrap().trim().parse().unwrap();
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((status, head, body))
    }
}
