//! The part of an API server that the certificate keeper talks to: one Secret and one
//! webhook configuration behind HTTP, with resource versions, conflicts and the merge of
//! webhooks by name. Everything it is asked lands in a list.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

pub(crate) const SECRET: &str =
    "/api/v1/namespaces/lxcfs-system/secrets/lxcfs-webhook-certificates";
pub(crate) const CONFIGURATION: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/lxcfs-webhook";

#[derive(Default)]
struct Store {
    objects: BTreeMap<String, Value>,
    version: u64,
    log: Vec<String>,
}

/// A running server; it ends with the test process.
#[derive(Clone)]
pub(crate) struct Api {
    address: SocketAddr,
    store: Arc<Mutex<Store>>,
}

impl Api {
    /// Starts with the objects the manifests bring.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = Self {
            address: listener.local_addr().unwrap(),
            store: Arc::default(),
        };
        api.put(
            SECRET,
            json!({
                "apiVersion": "v1", "kind": "Secret",
                "metadata": {"name": "lxcfs-webhook-certificates", "namespace": "lxcfs-system"},
            }),
        );
        let webhooks = ["a.webhook.lxcfs", "b.webhook.lxcfs"].map(|name| {
            json!({
                "name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"service": {"name": "lxcfs-webhook", "namespace": "lxcfs-system"}},
            })
        });
        api.put(CONFIGURATION, json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "lxcfs-webhook"},
            "webhooks": webhooks,
        }));
        let serving = api.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let api = serving.clone();
                std::thread::spawn(move || api.connection(&stream));
            }
        });
        api
    }

    /// A kubeconfig for it.
    pub(crate) fn kubeconfig(&self, directory: &Path) -> PathBuf {
        kubeconfig(directory, self.address)
    }

    /// Stores an object under a new resource version.
    pub(crate) fn put(&self, path: &str, mut object: Value) -> Value {
        let mut store = self.store.lock().unwrap();
        store.version += 1;
        object["metadata"]["resourceVersion"] = store.version.to_string().into();
        store.objects.insert(path.to_owned(), object.clone());
        object
    }

    /// An object as it is.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.store.lock().unwrap().objects.get(path).cloned()
    }

    /// Removes an object.
    pub(crate) fn delete(&self, path: &str) {
        self.store.lock().unwrap().objects.remove(path);
    }

    /// Requests so far, `METHOD path`.
    pub(crate) fn log(&self) -> Vec<String> {
        self.store.lock().unwrap().log.clone()
    }

    /// PEM bundle that every webhook of the configuration trusts, when they agree.
    pub(crate) fn bundle(&self) -> Option<String> {
        let configuration = self.get(CONFIGURATION)?;
        let bundles: Vec<_> = configuration["webhooks"]
            .as_array()?
            .iter()
            .map(|webhook| webhook["clientConfig"]["caBundle"].clone())
            .collect();
        let same = bundles.iter().all(|bundle| *bundle == bundles[0]);
        let bytes: k8s_openapi::ByteString = serde_json::from_value(bundles[0].clone()).ok()?;
        same.then(|| String::from_utf8(bytes.0).unwrap())
    }

    fn connection(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some((method, path, body)) = request(&mut reader) {
            let (status, answer) = self.answer(&method, &path, &body);
            let answer = answer.to_string();
            let head = format!(
                "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                answer.len()
            );
            let mut writer = stream;
            if writer.write_all((head + &answer).as_bytes()).is_err() {
                return;
            }
        }
    }

    fn answer(&self, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        let path = path.split('?').next().unwrap_or_default();
        self.store
            .lock()
            .unwrap()
            .log
            .push(format!("{method} {path}"));
        let Some(found) = self.get(path) else {
            return (404, status(404, "NotFound"));
        };
        match method {
            "GET" => (200, found),
            "PUT" => {
                let new: Value = serde_json::from_slice(body).unwrap();
                if new["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"] {
                    return (409, status(409, "Conflict"));
                }
                (200, self.put(path, new))
            }
            "PATCH" => {
                let patch: Value = serde_json::from_slice(body).unwrap();
                if !patch.is_array() {
                    return (200, self.put(path, merge_webhooks(found, &patch)));
                }
                let patch: json_patch::Patch = serde_json::from_value(patch).unwrap();
                let mut object = found;
                match json_patch::patch(&mut object, &patch) {
                    Ok(()) => (200, self.put(path, object)),
                    Err(_) => (422, status(422, "Invalid")),
                }
            }
            _ => (405, status(405, "MethodNotAllowed")),
        }
    }
}

/// A kubeconfig for whatever listens there, or for nobody.
pub(crate) fn kubeconfig(directory: &Path, address: SocketAddr) -> PathBuf {
    let path = directory.join("kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    });
    std::fs::write(&path, text.to_string()).unwrap();
    path
}

fn merge_webhooks(mut object: Value, patch: &Value) -> Value {
    for change in patch["webhooks"].as_array().unwrap() {
        let webhooks = object["webhooks"].as_array_mut().unwrap();
        let webhook = webhooks
            .iter_mut()
            .find(|webhook| webhook["name"] == change["name"]);
        webhook.unwrap()["clientConfig"]["caBundle"] = change["clientConfig"]["caBundle"].clone();
    }
    object
}

fn status(code: u16, reason: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code,
    })
}

fn request(reader: &mut BufReader<&TcpStream>) -> Option<(String, String, Vec<u8>)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((method, path, body))
}
