//! The manifests and the webhook in front of a real kube-apiserver with etcd: what it
//! accepts, what it sends, and what becomes of pods.
//!
//! `cargo xtask apiserver` builds kube-apiserver 1.20 from Debian's source and runs this.
//! That release knows admissionregistration v1 but no matchConditions, no native sidecars
//! and no policies: those are left to the schemas and to `cargo xtask policy`.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod rotation;

#[path = "../suite/process.rs"]
#[expect(dead_code, reason = "shared with the suite, which uses all of it")]
mod process;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kube::{Client, Config};
use lxcfs_common::pod;
use lxcfs_kube::manifests::{Options, Part};
use serde_json::{Value, json};

use process::{Webhook, wait};

/// The account of the manifests, so that their permissions are what is tested.
const ACCOUNT: &str = "system:serviceaccount:lxcfs-system:lxcfs-webhook";

const AGENT: &str = "system:serviceaccount:lxcfs-system:lxcfs-agent";

struct Server {
    children: Vec<Child>,
    directory: tempfile::TempDir,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn program(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable);
    path.unwrap_or_else(|| panic!("{variable} is not set: run `cargo xtask apiserver`"))
        .into()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Server {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let log = |name: &str| Stdio::from(std::fs::File::create(at(name)).unwrap());
        let (clients, peers, port) = (free_port(), free_port(), free_port());
        let (clients, peers) = (
            format!("http://127.0.0.1:{clients}"),
            format!("http://127.0.0.1:{peers}"),
        );
        let etcd = Command::new(program("LXCFS_ETCD"))
            .arg("--data-dir")
            .arg(at("etcd"))
            .args([
                "--listen-client-urls",
                &clients,
                "--advertise-client-urls",
                &clients,
            ])
            .args([
                "--listen-peer-urls",
                &peers,
                "--initial-advertise-peer-urls",
                &peers,
            ])
            .args(["--initial-cluster", &format!("default={peers}")])
            .stderr(log("etcd.log"))
            .spawn()
            .unwrap();
        let openssl = Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(at("key"))
            .arg("2048")
            .stderr(Stdio::null())
            .status();
        assert!(
            openssl.is_ok_and(|status| status.success()),
            "apt-get install openssl"
        );
        let tokens =
            format!("admin,admin,1,\"system:masters\"\nwebhook,{ACCOUNT},2\nagent,{AGENT},3\n");
        std::fs::write(at("tokens"), tokens).unwrap();
        let file = |option: &str, name: &str| format!("--{option}={}", at(name).display());
        let server = Command::new(program("LXCFS_KUBE_APISERVER"))
            .arg(format!("--etcd-servers={clients}"))
            .arg(format!("--secure-port={port}"))
            .args([
                "--bind-address=127.0.0.1",
                "--service-account-issuer=https://kubernetes",
            ])
            .args([file("cert-dir", "certs"), file("token-auth-file", "tokens")])
            .args([
                file("service-account-key-file", "key"),
                file("service-account-signing-key-file", "key"),
            ])
            .args([
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.96.0.0/16",
            ])
            // There is no kube-proxy: services are resolved to endpoints by the server.
            .args([
                "--enable-aggregator-routing=true",
                "--allow-privileged",
                "--disable-admission-plugins=ServiceAccount",
            ])
            .stderr(log("apiserver.log"))
            .spawn()
            .unwrap();
        Self {
            children: vec![etcd, server],
            directory,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
        }
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    fn client(&self, token: &str) -> Client {
        let mut config = Config::new(self.url().parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(token.to_owned().into());
        Client::try_from(config).unwrap()
    }

    fn kubeconfig(&self, token: &str) -> PathBuf {
        let path = self.directory.path().join(format!("kubeconfig-{token}"));
        let cluster = json!({"server": self.url(), "insecure-skip-tls-verify": true});
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {"token": token}}],
        });
        std::fs::write(&path, text.to_string()).unwrap();
        path
    }
}

/// Creates an object of any kind; the server's refusal is the error.
async fn create(client: &Client, object: &Value) -> Result<Value, kube::Error> {
    let (group, version) = match object["apiVersion"].as_str().unwrap().split_once('/') {
        Some((group, version)) => (group, version),
        None => ("", "v1"),
    };
    let kind = object["kind"].as_str().unwrap();
    let plural = match kind.to_lowercase() {
        kind if kind.ends_with('y') => format!("{}ies", kind.trim_end_matches('y')),
        kind if kind.ends_with('s') => kind,
        kind => format!("{kind}s"),
    };
    let resource =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), &plural);
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
    let created = api.create(&PostParams::default(), &object).await?;
    Ok(serde_json::to_value(created).unwrap())
}

fn pod_named(namespace: &str, name: &str, edit: impl FnOnce(&mut Value)) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    });
    edit(&mut pod);
    pod
}

fn volumes(pod: &Value) -> usize {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let ours = volumes.filter(|volume| volume["name"].as_str().unwrap().starts_with("lxcfs-"));
    ours.count()
}

/// The webhook listens where the server can reach it: an endpoint may not be loopback.
fn own_address() -> String {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Sends nothing: connecting only chooses the address.
    socket
        .connect("192.0.2.1:9")
        .expect("no network interface with a route");
    socket.local_addr().unwrap().ip().to_string()
}

fn endpoints(address: &str, webhooks: &[&Webhook]) -> Value {
    let subsets: Vec<Value> = webhooks
        .iter()
        .map(|webhook| {
            json!({
                "addresses": [{"ip": address}],
                "ports": [{"name": "reviews", "port": webhook.reviews.port(), "protocol": "TCP"}],
            })
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "lxcfs-webhook", "namespace": "lxcfs-system"},
        "subsets": subsets,
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// A server with the manifests applied and two namespaces, `web` asking for views.
fn installed(runtime: &tokio::runtime::Runtime) -> (Server, Client) {
    let server = Server::start();
    // The client's background work needs the runtime from its making on.
    let admin = runtime.block_on(async { server.client("admin") });
    let log = || {
        std::fs::read_to_string(server.directory.path().join("apiserver.log")).unwrap_or_default()
    };
    wait("the API server", || {
        let found = runtime.block_on(async { admin.apiserver_version().await });
        found.is_ok() && log().contains("Serving securely")
    });
    wait("the default roles", || {
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(admin.clone());
        runtime.block_on(namespaces.get("kube-system")).is_ok()
    });

    // Every object of every part that this release can know.
    let options = Options {
        start_taint: true,
        ..Options::default()
    };
    let later = [
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyBinding",
        "PodDisruptionBudget",
    ];
    for part in [Part::Namespace, Part::AgentLeastPrivilege, Part::Webhook] {
        for mut object in part.objects(&options).unwrap() {
            if later.contains(&object["kind"].as_str().unwrap()) {
                continue;
            }
            // A DaemonSet's `maxSurge` came with 1.22, and no unavailable pod is allowed only with it.
            let rolling = object.pointer_mut("/spec/updateStrategy/rollingUpdate");
            if let Some(Value::Object(rolling)) = rolling
                && rolling.remove("maxSurge").is_some()
            {
                rolling.remove("maxUnavailable");
            }
            let created = runtime.block_on(create(&admin, &object));
            created.unwrap_or_else(|error| panic!("{error}\n{object:#}"));
        }
    }
    for (name, label) in [("web", Some("enabled")), ("plain", None)] {
        let mut labels = json!({"kubernetes.io/metadata.name": name});
        if let Some(label) = label {
            labels[pod::NAMESPACE_LABEL] = label.into();
        }
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        });
        runtime.block_on(create(&admin, &namespace)).unwrap();
    }
    (server, admin)
}

#[test]
fn pods_meet_the_webhook_of_the_manifests_on_a_real_server() {
    let runtime = runtime();
    let (server, admin) = installed(&runtime);
    let ask = |pod: Value| runtime.block_on(create(&admin, &pod));

    // Nobody listens yet: pods start, as they are.
    let pod = ask(pod_named("web", "before", |_| ())).unwrap();
    assert_eq!(volumes(&pod), 0);

    // The webhook under its own account: makes certificates, has itself trusted.
    let address = own_address();
    let config = server.kubeconfig("webhook");
    let start = || Webhook::start_on(&address, &[], Some(Path::new(&config)));
    let mut one = start();
    one.wait_ready();
    wait("the caBundle", || {
        one.metric("lxcfs_webhook_ca_bundle_in_step") == 1.0
    });
    runtime
        .block_on(create(&admin, &endpoints(&address, &[&one])))
        .unwrap();

    let mut name = 0;
    let mut try_pod = |namespace: &str, edit: &dyn Fn(&mut Value)| {
        name += 1;
        ask(pod_named(namespace, &format!("p{name}"), edit)).unwrap()
    };
    // The server learns of configuration and endpoints by watching.
    wait("the webhook to be called", || {
        volumes(&try_pod("web", &|_| ())) == 9
    });

    let injected = try_pod("web", &|pod| {
        pod["spec"]["initContainers"] = json!([{"name": "init", "image": "i"}])
    });
    let mounts = |list: &str| {
        injected["spec"][list][0]["volumeMounts"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!((mounts("containers"), mounts("initContainers")), (9, 9));
    assert!(injected["metadata"]["annotations"][pod::ATTACH].is_string());

    assert_eq!(volumes(&try_pod("plain", &|_| ())), 0);
    let asked =
        |pod: &mut Value| pod["metadata"]["annotations"] = json!({pod::RUNTIME_OPT_IN: "True"});
    assert_eq!(volumes(&try_pod("plain", &asked)), 9);
    let denied = |pod: &mut Value| {
        pod["metadata"]["annotations"] =
            json!({"lxcfs-admission-webhook.aliyun.com/mutate": "off"});
    };
    assert_eq!(volumes(&try_pod("web", &denied)), 0);
    let ours = |pod: &mut Value| pod["metadata"]["labels"] = json!({pod::COMPONENT_LABEL: "agent"});
    assert_eq!(volumes(&try_pod("web", &ours)), 0);
    assert_eq!(volumes(&try_pod("lxcfs-system", &asked)), 0);
    assert_eq!(volumes(&try_pod("kube-system", &asked)), 0);
    let clash = |pod: &mut Value| {
        pod["spec"]["volumes"] = json!([{"name": "own", "emptyDir": {}}]);
        pod["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "own", "mountPath": "/proc/stat"}]);
    };
    let clashing = try_pod("web", &clash);
    assert_eq!(volumes(&clashing), 8);
    assert_eq!(
        clashing["metadata"]["annotations"][pod::SKIPPED],
        "app/stat=conflict"
    );

    // Killed: pods start, as they are.
    one.signal("KILL");
    one.exit();
    assert_eq!(volumes(&try_pod("web", &|_| ())), 0);

    // Nothing but what the manifests grant was tried.
    let log = one.log();
    assert!(!log.to_lowercase().contains("forbidden"), "{log}");
}
