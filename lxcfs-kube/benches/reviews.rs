//! How long the webhook takes to answer: the program over TLS, as an API server asks it.
//!
//! `cargo bench -p lxcfs-kube` prints it. The aim is an answer within 10 ms.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

#[path = "../tests/suite/process.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod process;

use std::time::{Duration, Instant};

use lxcfs_kube::certs::authority::perform;
use lxcfs_kube::certs::rotation::{Lifetimes, Step};
use process::{NAME, Tls, Webhook};
use serde_json::{Value, json};
use time::OffsetDateTime;

const PATH: &str = "/mutate/namespace/privileged";
/// Reviews per connection and row.
const ROUNDS: usize = 1000;

/// A review of a pod with so many containers, each with so much else in it.
fn review(containers: usize, variables: usize) -> Vec<u8> {
    let environment: Vec<Value> = (0..variables)
        .map(|n| json!({"name": format!("VARIABLE_{n}"), "value": "a value of usual length"}))
        .collect();
    let container = |n: usize| {
        json!({
            "name": format!("c{n}"), "image": "image", "env": environment,
            "resources": {"limits": {"cpu": "1", "memory": "128Mi"}},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        })
    };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {
            "containers": (0..containers).map(container).collect::<Vec<_>>(),
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    });
    let review = json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "u",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "web", "operation": "CREATE", "object": pod,
        },
    });
    review.to_string().into_bytes()
}

/// Times of reviews over so many connections at once, in ascending order.
fn measure(webhook: &Webhook, bundle: &str, connections: usize, body: &[u8]) -> Vec<Duration> {
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|_| scope.spawn(|| one_connection(webhook, bundle, body)))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap());
        joined.flatten().collect()
    });
    times.sort_unstable();
    times
}

fn one_connection(webhook: &Webhook, bundle: &str, body: &[u8]) -> Vec<Duration> {
    let mut tls = Tls::connect(webhook.reviews, bundle).unwrap();
    let mut ask = || {
        let began = Instant::now();
        let (status, _, answer) = tls.exchange("POST", PATH, body).unwrap();
        let time = began.elapsed();
        assert_eq!(status, 200);
        assert!(String::from_utf8(answer).unwrap().contains("\"patch\""));
        time
    };
    ask();
    (0..ROUNDS).map(|_| ask()).collect()
}

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    let names = [NAME.to_owned()];
    let stored = perform(Step::Create, None, &names, now, &Lifetimes::default());
    let stored = stored.unwrap().unwrap();
    for (file, text) in [
        ("tls.crt", &stored.serving.certificate),
        ("tls.key", &stored.serving.key),
    ] {
        std::fs::write(directory.path().join(file), text).unwrap();
    }
    let webhook = Webhook::start(&["--tls-dir", directory.path().to_str().unwrap()], None);
    webhook.wait_ready();
    let bundle = stored.bundle();
    println!("pod                       connections     median     99 %    worst  (ms)");
    for (name, containers, variables) in [
        ("one container", 1, 0),
        ("3 containers, 20 values", 3, 20),
        ("20 containers, 200 values", 20, 200),
    ] {
        let body = review(containers, variables);
        for connections in [1, 8] {
            let times = measure(&webhook, &bundle, connections, &body);
            let at = |share: f64| {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    clippy::cast_precision_loss,
                    reason = "an index out of a share of a small count"
                )]
                let index = (share * (times.len() - 1) as f64) as usize;
                times[index].as_secs_f64() * 1e3
            };
            println!(
                "{name:<25} {connections:>11} {:>10.2} {:>8.2} {:>8.2}",
                at(0.5),
                at(0.99),
                at(1.0)
            );
        }
    }
}
