//! The webhook as a program, over real TLS: what an API server sends, what a broken one
//! sends, certificates changing underneath, and ends of processes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use lxcfs_kube::certs::authority::{Stored, perform};
use lxcfs_kube::certs::rotation::{Lifetimes, Step};
use lxcfs_kube::review::Endpoint;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::api::{Api, CONFIGURATION, SECRET, kubeconfig};
use crate::common::{apply_patch, plain_pod};
use crate::process::{Tls, Webhook, wait};

const LABELLED: &str = "/mutate/namespace/privileged";
const SECRET_WORD: &str = "hunter2-must-never-be-logged";

/// A review as the API server sends it for a new pod.
fn review(uid: &str) -> Value {
    let mut pod = plain_pod();
    pod["spec"]["containers"][0]["env"] = json!([{"name": "PASSWORD", "value": SECRET_WORD}]);
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": uid,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "web", "operation": "CREATE", "dryRun": false,
            "object": pod, "oldObject": null,
        },
    })
}

fn lifetimes() -> Lifetimes {
    Lifetimes::default()
}

fn names() -> Vec<String> {
    vec![crate::process::NAME.to_owned()]
}

/// A new authority with a serving certificate.
fn certificates() -> Stored {
    let now = OffsetDateTime::now_utc();
    perform(Step::Create, None, &names(), now, &lifetimes())
        .unwrap()
        .unwrap()
}

fn write_pair(directory: &Path, stored: &Stored) {
    std::fs::write(directory.join("tls.crt"), &stored.serving.certificate).unwrap();
    std::fs::write(directory.join("tls.key"), &stored.serving.key).unwrap();
}

/// A webhook with certificates in files, and the bundle to trust.
fn with_files(more: &[&str]) -> (Webhook, String, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let stored = certificates();
    write_pair(directory.path(), &stored);
    let mut arguments = vec!["--tls-dir", directory.path().to_str().unwrap()];
    arguments.extend(more);
    let webhook = Webhook::start(&arguments, None);
    webhook.wait_ready();
    (webhook, stored.bundle(), directory)
}

fn allowed(answer: &Value, uid: &str) {
    assert_eq!(answer["response"]["allowed"], true, "{answer}");
    assert_eq!(answer["response"]["uid"], uid, "{answer}");
    assert_eq!(answer["kind"], "AdmissionReview");
}

#[test]
fn a_review_is_answered_with_a_patch_that_applies() {
    let (webhook, bundle, _directory) = with_files(&[]);
    let mut tls = Tls::connect(webhook.reviews, &bundle).unwrap();
    for (endpoint, mounts) in Endpoint::ALL.into_iter().zip([9, 0, 0, 0]) {
        let body = review("u-1").to_string();
        let (answer, _) = tls.review(endpoint.path(), body.as_bytes()).unwrap();
        allowed(&answer, "u-1");
        let pod = apply_patch(&review("u-1")["request"]["object"], &answer["response"]);
        let found = pod["spec"]["volumes"].as_array().map_or(0, Vec::len);
        assert_eq!(found, mounts, "{}", endpoint.path());
    }
    assert_eq!(
        webhook.metric("lxcfs_webhook_decisions_total{outcome=\"mounted\"}"),
        1.0
    );
    assert_eq!(
        webhook.metric("lxcfs_webhook_skips_total{reason=\"pod-security\"}"),
        1.0
    );
    assert_eq!(
        webhook.metric("lxcfs_webhook_skips_total{reason=\"not-asked\"}"),
        2.0
    );
}

#[test]
fn reviews_recorded_from_a_kube_apiserver_are_answered() {
    let (webhook, bundle, _directory) = with_files(&[]);
    let mut tls = Tls::connect(webhook.reviews, &bundle).unwrap();
    for (file, mounted) in [
        // A pod of a controller: no name and no namespace yet, managed fields.
        ("recorded-review-generated-name.json", [9, 9]),
        // A dry run, a pod without annotations.
        ("recorded-review-dry-run.json", [9, 0]),
    ] {
        let path = format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
        let body = std::fs::read(&path).unwrap();
        let sent: Value = serde_json::from_slice(&body).unwrap();
        let (answer, _) = tls.review(LABELLED, &body).unwrap();
        allowed(&answer, sent["request"]["uid"].as_str().unwrap());
        let pod = apply_patch(&sent["request"]["object"], &answer["response"]);
        let ours = |list: &str| {
            let paths = crate::common::mount_paths(&pod, list, 0).into_iter();
            paths
                .filter(|path| path.starts_with("/proc/") || path.starts_with("/sys/"))
                .count()
        };
        assert_eq!(
            [ours("containers"), ours("initContainers")],
            mounted,
            "{file}"
        );
    }
    assert!(!webhook.log().contains(SECRET_WORD));
}

#[test]
fn bad_input_is_allowed_unchanged_and_counted() {
    let (webhook, bundle, _directory) = with_files(&["--body-limit", "65536"]);
    let faults =
        |kind: &str| webhook.metric(&format!("lxcfs_webhook_faults_total{{kind=\"{kind}\"}}"));
    let ask = |body: &[u8]| {
        let mut tls = Tls::connect(webhook.reviews, &bundle).unwrap();
        tls.review(LABELLED, body).unwrap().0
    };
    for broken in [
        "",
        "{",
        "null",
        "[]",
        "\u{0}",
        r#"{"kind":"AdmissionReview"}"#,
        "{\"request\":1}",
    ] {
        allowed(&ask(broken.as_bytes()), "");
    }
    assert_eq!(faults("malformed"), 7.0);

    // Cut off in the middle: the answer still reaches the request it belongs to.
    let cut = review("u-cut").to_string();
    let cut =
        r#"{"kind":"AdmissionReview","request":{"uid":"u-cut","object":"#.to_owned() + &cut[..40];
    allowed(&ask(cut.as_bytes()), "u-cut");

    for version in ["admission.k8s.io/v2", "v1", ""] {
        let mut unknown = review("u-2");
        unknown["apiVersion"] = version.into();
        let answer = ask(unknown.to_string().as_bytes());
        allowed(&answer, "u-2");
        assert!(answer["response"]["patch"].is_null());
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    }
    assert_eq!(faults("unknown-version"), 3.0);

    let mut old = review("u-3");
    old["apiVersion"] = "admission.k8s.io/v1beta1".into();
    let answer = ask(old.to_string().as_bytes());
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1beta1");
    assert!(answer["response"]["patch"].is_string());

    for object in [
        json!(null),
        json!("pod"),
        json!({"metadata": {}, "spec": {"containers": SECRET_WORD}}),
        // No place to write annotations to.
        json!({"spec": {"containers": [{"name": "app"}]}}),
    ] {
        let mut odd = review("u-4");
        odd["request"]["object"] = object;
        allowed(&ask(odd.to_string().as_bytes()), "u-4");
    }
    assert_eq!(faults("unreadable-object"), 4.0);

    let mut huge = serde_json::to_string(&review("u-5")).unwrap();
    huge = huge.replacen(
        "{",
        &format!(
            "{{\"request\":{{\"uid\":\"u-5\",\"x\":\"{}\"}},",
            "a".repeat(1 << 20)
        ),
        1,
    );
    allowed(&ask(huge.as_bytes()), "u-5");
    assert_eq!(faults("too-large"), 1.0);

    for (method, path, status) in [("POST", "/elsewhere", 404), ("GET", LABELLED, 405)] {
        let mut tls = Tls::connect(webhook.reviews, &bundle).unwrap();
        assert_eq!(tls.exchange(method, path, b"").unwrap().0, status);
    }
    assert!(
        !webhook.log().contains(SECRET_WORD),
        "a part of an object was logged"
    );
    assert!(ask(review("u-6").to_string().as_bytes())["response"]["patch"].is_string());
}

#[test]
fn a_client_that_sends_nothing_does_not_keep_others_waiting() {
    use std::io::Write;
    let (webhook, bundle, _directory) = with_files(&[]);
    let idle: Vec<_> = (0..64)
        .map(|at| {
            let mut stream = std::net::TcpStream::connect(webhook.reviews).unwrap();
            if at % 2 == 0 {
                stream.write_all(b"not tls at all\r\n\r\n").unwrap();
            }
            stream
        })
        .collect();
    let mut tls = Tls::connect(webhook.reviews, &bundle).unwrap();
    allowed(
        &tls.review(LABELLED, review("u").to_string().as_bytes())
            .unwrap()
            .0,
        "u",
    );
    wait("failed handshakes to be counted", || {
        webhook.metric("lxcfs_webhook_faults_total{kind=\"tls-handshake\"}") >= 32.0
    });
    drop(idle);
}

/// Reviews in a loop over new and kept connections until told to stop; how many.
fn load(
    webhook: &Webhook,
    bundle: impl Fn() -> String + Send + 'static,
) -> (Arc<AtomicBool>, std::thread::JoinHandle<usize>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (done, address) = (Arc::clone(&stop), webhook.reviews);
    let thread = std::thread::spawn(move || {
        let mut answered = 0;
        while !done.load(Ordering::Relaxed) {
            let mut tls = Tls::connect(address, &bundle()).expect("a handshake failed");
            for _ in 0..5 {
                let body = review("u").to_string();
                let (answer, _) = tls
                    .review(LABELLED, body.as_bytes())
                    .expect("a review failed");
                allowed(&answer, "u");
                answered += 1;
            }
        }
        answered
    });
    (stop, thread)
}

#[test]
fn mounted_certificates_are_replaced_under_load_without_a_failed_review() {
    let (webhook, bundle, directory) = with_files(&[]);
    let second = certificates();
    let both = bundle + &second.bundle();
    let (stop, thread) = load(&webhook, move || both.clone());
    // First a broken pair: the good one stays.
    std::fs::write(directory.path().join("tls.key"), "no key").unwrap();
    wait("the broken pair to be noticed", || {
        webhook.metric("lxcfs_webhook_certificate_events_total{kind=\"unreadable\"}") > 0.0
    });
    write_pair(directory.path(), &second);
    let only_second = second.bundle();
    wait("the new certificate", || {
        Tls::connect(webhook.reviews, &only_second).is_ok()
    });
    stop.store(true, Ordering::Relaxed);
    assert!(thread.join().unwrap() > 0);
    let expiry = webhook.metric("lxcfs_webhook_certificate_expiry_timestamp_seconds");
    assert!(expiry > OffsetDateTime::now_utc().unix_timestamp() as f64);
}

#[test]
fn two_replicas_share_one_authority_and_keep_the_configuration_in_step() {
    let (api, directory) = (Api::start(), tempfile::tempdir().unwrap());
    let config = api.kubeconfig(directory.path());
    let replicas = [
        Webhook::start(&[], Some(&config)),
        Webhook::start(&[], Some(&config)),
    ];
    replicas.iter().for_each(Webhook::wait_ready);
    wait("the caBundle", || api.bundle().is_some());
    let bundle = api.bundle().unwrap();
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 1);
    for replica in &replicas {
        let mut tls = Tls::connect(replica.reviews, &bundle).unwrap();
        allowed(
            &tls.review(LABELLED, review("u").to_string().as_bytes())
                .unwrap()
                .0,
            "u",
        );
    }
    // Somebody applies the manifests again: the bundle comes back.
    let mut bare = api.get(CONFIGURATION).unwrap();
    bare["webhooks"][1]["clientConfig"]["caBundle"] = "b2xk".into();
    api.put(CONFIGURATION, bare);
    wait("the caBundle to come back", || {
        api.bundle().as_ref() == Some(&bundle)
    });
    // Exactly the permissions of the manifests, on exactly two objects.
    let allowed = [
        format!("GET {SECRET}"),
        format!("PUT {SECRET}"),
        format!("GET {CONFIGURATION}"),
        format!("PATCH {CONFIGURATION}"),
    ];
    for request in api.log() {
        assert!(allowed.contains(&request), "{request}");
    }
    let log = replicas[0].log() + &replicas[1].log();
    assert!(!log.contains("PRIVATE KEY"));
}

#[test]
fn an_authority_is_rotated_under_load_without_a_failed_review() {
    let (api, directory) = (Api::start(), tempfile::tempdir().unwrap());
    // An authority near its end: made so long ago that it has little left.
    let long_ago = OffsetDateTime::now_utc() - lifetimes().authority + lifetimes().serving;
    let old = perform(Step::Create, None, &names(), long_ago, &lifetimes()).unwrap();
    store(&api, &old.unwrap());
    let webhook = Webhook::start(&[], Some(&api.kubeconfig(directory.path())));
    webhook.wait_ready();
    wait("the next authority to be trusted", || {
        api.bundle()
            .is_some_and(|bundle| bundle.matches("BEGIN CERTIFICATE").count() == 2)
    });
    let first = stored(&api);
    let from_api = api.clone();
    let (stop, thread) = load(&webhook, move || from_api.bundle().unwrap());
    // Time passes: the next authority was introduced longer ago than the overlap.
    let waited = OffsetDateTime::now_utc() - lifetimes().overlap * 2;
    let mut aged = first.clone();
    aged.next = None;
    let aged = perform(Step::Introduce, Some(aged), &names(), waited, &lifetimes())
        .unwrap()
        .unwrap();
    store(&api, &aged);
    wait("the next authority to sign", || {
        stored(&api).previous.is_some()
    });
    let second = stored(&api);
    assert_eq!(second.authority, aged.next.unwrap());
    assert_eq!(second.previous, Some(first.authority.certificate));
    let only_new = second.authority.certificate;
    wait("the new certificate", || {
        Tls::connect(webhook.reviews, &only_new).is_ok()
    });
    stop.store(true, Ordering::Relaxed);
    assert!(thread.join().unwrap() > 0);
}

fn store(api: &Api, stored: &Stored) {
    let mut secret = api.get(SECRET).unwrap();
    let data = stored.to_data().into_iter();
    let data: serde_json::Map<_, _> = data
        .map(|(key, value)| {
            (
                key,
                serde_json::to_value(k8s_openapi::ByteString(value)).unwrap(),
            )
        })
        .collect();
    secret["data"] = data.into();
    api.put(SECRET, secret);
}

fn stored(api: &Api) -> Stored {
    let secret: k8s_openapi::api::core::v1::Secret =
        serde_json::from_value(api.get(SECRET).unwrap()).unwrap();
    let data = secret.data.unwrap().into_iter();
    Stored::from_data(&data.map(|(key, value)| (key, value.0)).collect()).unwrap()
}

#[test]
fn without_an_api_server_it_is_not_ready_and_says_why_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let webhook = Webhook::start(&[], Some(&kubeconfig(directory.path(), nobody)));
    wait("the failure to be counted", || {
        webhook.metric("lxcfs_webhook_certificate_events_total{kind=\"failed\"}") >= 2.0
    });
    assert_eq!(
        webhook.admin("/readyz"),
        (503, "no certificate yet\n".to_owned())
    );
    assert_eq!(webhook.admin("/livez").0, 200);
    assert!(
        webhook
            .log()
            .contains("cannot get secret lxcfs-webhook-certificates")
    );

    // With one that loses the configuration it serves, and the metric says so.
    let api = Api::start();
    api.delete(CONFIGURATION);
    let webhook = Webhook::start(&[], Some(&api.kubeconfig(directory.path())));
    webhook.wait_ready();
    assert_eq!(webhook.metric("lxcfs_webhook_ca_bundle_in_step"), 0.0);
    let mut tls = Tls::connect(webhook.reviews, &stored(&api).bundle()).unwrap();
    allowed(
        &tls.review(LABELLED, review("u").to_string().as_bytes())
            .unwrap()
            .0,
        "u",
    );
}

#[test]
fn one_of_two_replicas_may_be_killed() {
    let (api, directory) = (Api::start(), tempfile::tempdir().unwrap());
    let config = api.kubeconfig(directory.path());
    let mut one = Webhook::start(&[], Some(&config));
    let two = Webhook::start(&[], Some(&config));
    one.wait_ready();
    two.wait_ready();
    wait("the caBundle", || api.bundle().is_some());
    let bundle = api.bundle().unwrap();
    // A client with two endpoints, as the service gives them: what one refuses it asks
    // the other, once.
    let addresses = [one.reviews, two.reviews];
    let missed = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let (count, done) = (Arc::clone(&missed), Arc::clone(&stop));
    let client = std::thread::spawn(move || {
        let body = review("u").to_string();
        let ask =
            |at: usize| Tls::connect(addresses[at % 2], &bundle)?.review(LABELLED, body.as_bytes());
        let mut answered = 0;
        while !done.load(Ordering::Relaxed) {
            match ask(answered).or_else(|_| ask(answered + 1)) {
                Ok((answer, _)) => allowed(&answer, "u"),
                Err(_) => drop(count.fetch_add(1, Ordering::Relaxed)),
            }
            answered += 1;
        }
        answered
    });
    wait("some answers", || {
        two.metric("lxcfs_webhook_decisions_total{outcome=\"mounted\"}") > 5.0
    });
    one.signal("KILL");
    one.exit();
    let before = two.metric("lxcfs_webhook_decisions_total{outcome=\"mounted\"}");
    wait("the other to answer all", || {
        two.metric("lxcfs_webhook_decisions_total{outcome=\"mounted\"}") > before + 20.0
    });
    stop.store(true, Ordering::Relaxed);
    assert!(client.join().unwrap() > 20);
    assert_eq!(missed.load(Ordering::Relaxed), 0);
}

#[test]
fn sigterm_drains() {
    let (mut webhook, bundle, _directory) = with_files(&["--drain-seconds", "2"]);
    let mut kept = Tls::connect(webhook.reviews, &bundle).unwrap();
    let body = review("u").to_string();
    assert!(!kept.review(LABELLED, body.as_bytes()).unwrap().1);
    webhook.signal("TERM");
    wait("not ready", || webhook.admin("/readyz").0 == 503);
    // Endpoints are being updated: old and new connections are still answered, and told
    // to go elsewhere.
    let (answer, close) = kept.review(LABELLED, body.as_bytes()).unwrap();
    allowed(&answer, "u");
    assert!(close);
    let mut fresh = Tls::connect(webhook.reviews, &bundle).unwrap();
    allowed(&fresh.review(LABELLED, body.as_bytes()).unwrap().0, "u");
    assert!(webhook.exit().success());
    std::thread::sleep(Duration::from_millis(10));
    assert!(webhook.log().contains("drained"));
    assert!(Tls::connect(webhook.reviews, &bundle).is_err());
}

#[test]
fn promtool_accepts_the_metrics() {
    let (webhook, bundle, _directory) = with_files(&[]);
    let mut tls = Tls::connect(webhook.reviews, &bundle).unwrap();
    tls.review(LABELLED, review("u").to_string().as_bytes())
        .unwrap();
    tls.review(LABELLED, b"{").unwrap();
    let (_, text) = webhook.admin("/metrics");
    let mut promtool = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("promtool is missing: apt-get install prometheus");
    std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), text.as_bytes()).unwrap();
    assert!(promtool.wait().unwrap().success(), "{text}");
}
