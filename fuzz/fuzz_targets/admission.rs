//! Reviews that arrive at the admission webhook, whole ones and pods put into one: every
//! answer allows the pod, its patch applies, and the pod that comes of it is left alone.
#![no_main]

use json_patch::Patch;
use libfuzzer_sys::fuzz_target;
use lxcfs_common::catalogue::CATALOGUE;
use lxcfs_common::pod;
use lxcfs_kube::mutate::{Config, Mode, Runtime};
use lxcfs_kube::review::{Answer, Endpoint, answer};
use serde_json::{Value, json};

fn review(operation: &str, object: &Value) -> Vec<u8> {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "request": {"uid": "1", "namespace": "web", "operation": operation, "object": object},
    });
    serde_json::to_vec(&review).expect("JSON is written as JSON")
}

fn allows(answer: &Answer) {
    assert_eq!(answer.body["response"]["allowed"], true);
}

fuzz_target!(|bytes: &[u8]| {
    let names: Vec<&str> = CATALOGUE.iter().map(pod::file_name).collect();
    let all = Config {
        mode: Mode::Mount,
        runtime: Runtime::Crun,
        files: names.join(","),
        ..Config::default()
    };
    let configs = [Config::default(), all];
    let object = serde_json::from_slice::<Value>(bytes);
    for (endpoint, config) in Endpoint::ALL.into_iter().zip(configs.iter().cycle()) {
        allows(&answer(bytes, endpoint, config));
        let Ok(object) = &object else { continue };
        let first = answer(&review("CREATE", object), endpoint, config);
        allows(&first);
        let operations = serde_json::to_value(&first.decision.patches).expect("JSON");
        let patch: Patch = serde_json::from_value(operations).expect("RFC 6902");
        let mut patched = object.clone();
        json_patch::patch(&mut patched, &patch).expect("a patch for this pod");
        let second = answer(&review("CREATE", &patched), endpoint, config);
        assert!(second.decision.patches.is_empty(), "{patched}");
    }
});
