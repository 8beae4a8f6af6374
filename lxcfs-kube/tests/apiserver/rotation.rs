//! Under load on a real server: a new authority, the end of a replica, and the start taint
//! under the permissions that the manifests grant.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Endpoints, Node, Secret};
use kube::api::{Patch, PatchParams};
use lxcfs_kube::certs::authority::{Stored, perform};
use lxcfs_kube::certs::keeper::Names;
use lxcfs_kube::certs::rotation::{Lifetimes, Step};
use lxcfs_kube::taint;
use time::OffsetDateTime;
use tokio::runtime::Runtime;

use super::*;

const SECRET: &str = "lxcfs-webhook-certificates";

fn dns() -> Vec<String> {
    let names = Names {
        namespace: "lxcfs-system".to_owned(),
        secret: SECRET.to_owned(),
        service: "lxcfs-webhook".to_owned(),
        configuration: "lxcfs-webhook".to_owned(),
    };
    names.dns()
}

/// The certificates where the replicas look for them.
struct Kept<'a> {
    runtime: &'a Runtime,
    secrets: Api<Secret>,
}

impl Kept<'_> {
    fn write(&self, stored: &Stored) {
        let data = stored.to_data().into_iter();
        let data: serde_json::Map<_, _> = data
            .map(|(key, value)| (key, serde_json::to_value(ByteString(value)).unwrap()))
            .collect();
        let mut secret = self.runtime.block_on(self.secrets.get(SECRET)).unwrap();
        secret.data = serde_json::from_value(Value::Object(data)).unwrap();
        let params = PostParams::default();
        let replaced = self.secrets.replace(SECRET, &params, &secret);
        self.runtime.block_on(replaced).unwrap();
    }

    fn read(&self) -> Stored {
        let secret = self.runtime.block_on(self.secrets.get(SECRET)).unwrap();
        let data = secret.data.unwrap().into_iter();
        Stored::from_data(&data.map(|(key, value)| (key, value.0)).collect()).unwrap()
    }
}

/// Pods created one after the other: how many, and how many of them without volumes.
#[derive(Default)]
struct Load {
    created: AtomicUsize,
    missed: AtomicUsize,
    stop: AtomicBool,
}

impl Load {
    fn run(&self, server: &Server) {
        let runtime = runtime();
        let client = runtime.block_on(async { server.client("admin") });
        while !self.stop.load(Relaxed) {
            let number = self.created.load(Relaxed);
            let pod = pod_named("web", &format!("load-{number}"), |_| ());
            // A pod that is refused fails the test: nothing of ours may hold one up.
            let pod = runtime.block_on(create(&client, &pod)).unwrap();
            if volumes(&pod) != 9 {
                self.missed.fetch_add(1, Relaxed);
            }
            self.created.fetch_add(1, Relaxed);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// So many further pods, and how many of them were missed.
    fn more(&self, count: usize) -> usize {
        let (created, missed) = (self.created.load(Relaxed), self.missed.load(Relaxed));
        wait("pods to be created", || {
            self.created.load(Relaxed) >= created + count
        });
        self.missed.load(Relaxed) - missed
    }
}

struct StopOnDrop<'a>(&'a Load);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
    }
}

#[test]
fn an_authority_is_rotated_and_a_replica_killed_while_pods_are_created() {
    let runtime = runtime();
    let (server, admin) = installed(&runtime);
    let kept = Kept {
        runtime: &runtime,
        secrets: Api::namespaced(admin.clone(), "lxcfs-system"),
    };
    // An authority near its end: made so long ago that it has little left.
    let lifetimes = Lifetimes::default();
    let long_ago = OffsetDateTime::now_utc() - lifetimes.authority + lifetimes.serving;
    let old = perform(Step::Create, None, &dns(), long_ago, &lifetimes).unwrap();
    kept.write(&old.unwrap());

    let address = own_address();
    let config = server.kubeconfig("webhook");
    let start = || Webhook::start_on(&address, &[], Some(Path::new(&config)));
    let mut one = start();
    let two = start();
    for replica in [&one, &two] {
        replica.wait_ready();
        wait("the caBundle", || {
            replica.metric("lxcfs_webhook_ca_bundle_in_step") == 1.0
        });
    }
    let both = endpoints(&address, &[&one, &two]);
    runtime.block_on(create(&admin, &both)).unwrap();
    let load = Load::default();
    std::thread::scope(|scope| {
        let stop = StopOnDrop(&load);
        scope.spawn(|| load.run(&server));
        wait("the webhook to be called", || load.more(20) == 0);

        // The next authority is trusted from now on and signs in a few seconds.
        let mut aged = kept.read();
        aged.next = None;
        let introduced = OffsetDateTime::now_utc() - lifetimes.overlap + Duration::from_secs(6);
        let aged = perform(Step::Introduce, Some(aged), &dns(), introduced, &lifetimes);
        let aged = aged.unwrap().unwrap();
        kept.write(&aged);
        let before = load.missed.load(Relaxed);
        wait("the next authority to sign", || {
            kept.read().previous.is_some()
        });
        let rotated = kept.read();
        assert_eq!(rotated.authority, aged.next.unwrap());
        wait("both replicas to follow", || {
            [&one, &two].iter().all(|replica| {
                let bundle = &rotated.authority.certificate;
                process::Tls::connect(replica.reviews, bundle).is_ok()
            })
        });
        assert_eq!(load.more(100), 0, "pods were missed after the rotation");
        assert_eq!(load.missed.load(Relaxed), before, "and none during it");

        // Killed without a word: pods are created all the same, and meet the other one as
        // soon as the endpoints say so.
        one.signal("KILL");
        one.exit();
        let missed = load.more(50);
        let services: Api<Endpoints> = Api::namespaced(admin.clone(), "lxcfs-system");
        let left = endpoints(&address, &[&two]);
        let (params, change) = (
            PatchParams::default(),
            Patch::Merge(json!({"subsets": left["subsets"]})),
        );
        let patched = services.patch("lxcfs-webhook", &params, &change);
        runtime.block_on(patched).unwrap();
        wait("the other replica to be asked alone", || load.more(20) == 0);
        assert_eq!(load.more(50), 0);
        drop(stop);
        println!(
            "{} pods, none missed by the rotation, {missed} of 50 while a dead replica was \
             still an endpoint, none refused",
            load.created.load(Relaxed)
        );
    });
}

#[test]
fn the_agents_account_may_remove_its_taint_and_nothing_else() {
    let runtime = runtime();
    let (server, admin) = installed(&runtime);
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker-1"},
        "spec": {"taints": [
            {"key": "other", "effect": "NoExecute"},
            {"key": pod::START_TAINT, "effect": "NoSchedule"},
        ]},
    });
    runtime.block_on(create(&admin, &node)).unwrap();
    let ready = TcpListener::bind("127.0.0.1:0").unwrap();
    let agent = ready.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in ready.incoming().flatten() {
            use std::io::{Read as _, Write as _};
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nok\n");
        }
    });
    let options = taint::Options {
        node: "worker-1".to_owned(),
        key: pod::START_TAINT.to_owned(),
        agent,
        every: Duration::from_secs(60),
    };
    let account = runtime.block_on(async { server.client("agent") });
    let nodes: Api<Node> = Api::all(account.clone());
    assert_eq!(runtime.block_on(taint::pass(&nodes, &options)), Ok(true));
    assert_eq!(runtime.block_on(taint::pass(&nodes, &options)), Ok(false));
    let left = runtime.block_on(nodes.get("worker-1")).unwrap();
    let left: Vec<String> = left
        .spec
        .unwrap()
        .taints
        .unwrap()
        .into_iter()
        .map(|taint| taint.key)
        .collect();
    assert!(left.contains(&"other".to_owned()) && !left.contains(&pod::START_TAINT.to_owned()));
    // Nothing else: not a list of nodes, no secret, no pod.
    let refused = |error: kube::Error| error.to_string().contains("forbidden");
    let list = runtime
        .block_on(nodes.list(&Default::default()))
        .map(|_| ());
    assert!(refused(list.unwrap_err()));
    let secrets: Api<Secret> = Api::namespaced(account, "lxcfs-system");
    let secret = runtime.block_on(secrets.get(SECRET)).map(|_| ());
    assert!(refused(secret.unwrap_err()));
}
