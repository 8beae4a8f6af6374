//! The policy pack against the webhook: the same pods through both, the policy evaluated
//! by the API server's own code (Debian's golang-k8s-apiserver-dev), results equal.
//!
//! `cargo xtask policy` builds the evaluator and runs this. What CEL cannot do is left out
//! of the pods here and listed in `manifests::policy`.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "../suite/common.rs"]
#[expect(dead_code, reason = "shared with the suite, which uses all of it")]
mod common;
#[path = "../suite/generated.rs"]
mod generated;

use std::process::Command;

use lxcfs_common::pod;
use lxcfs_kube::manifests::{Options, Part};
use lxcfs_kube::mutate::{Config, Mode, Operation, PodSecurity, Request, Runtime, SelectedBy};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

const PODS: usize = 1500;

/// Takes out of a pod what the policy is documented not to do.
fn within_cel(mut pod: Value) -> Value {
    if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
        for stale in [pod::ATTACH, pod::MOUNTED, pod::SKIPPED] {
            annotations.remove(stale);
        }
    }
    let ours = |name: &str| name.starts_with("lxcfs-");
    let mut names = Vec::new();
    if let Some(volumes) = pod["spec"]["volumes"].as_array_mut() {
        volumes.retain(|volume| {
            let path = volume["hostPath"]["path"].as_str().unwrap_or_default();
            !path.starts_with("/var/lib/lxc/")
        });
        names = volumes
            .iter()
            .map(|volume| volume["name"].clone())
            .collect();
    }
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                // The API server writes quantities its own way: 2000m becomes 2.
                container.remove("resources");
            }
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.retain(|mount| {
                    let dangling =
                        ours(mount["name"].as_str().unwrap()) && !names.contains(&mount["name"]);
                    let path = mount["mountPath"].as_str().unwrap();
                    !dangling && !path.contains("//") && !path.contains("/.")
                });
                // Mounts are a map by path to the API server.
                let mut seen = Vec::new();
                mounts.retain(|mount| {
                    let fresh = !seen.contains(&mount["mountPath"]);
                    seen.push(mount["mountPath"].clone());
                    fresh
                });
            }
        }
    }
    pod
}

/// A pod without what differs in spelling only: empty fields, and the place of our own
/// elements among the user's.
fn comparable(pod: &Value) -> Value {
    let typed: k8s_openapi::api::core::v1::Pod = serde_json::from_value(pod.clone()).unwrap();
    let mut pod = serde_json::to_value(typed).unwrap();
    pod.as_object_mut().unwrap().remove("status");
    let sort = |list: &mut Value, key: &str| {
        if let Some(list) = list.as_array_mut() {
            list.sort_by_key(|one| one[key].as_str().unwrap().to_owned());
        }
    };
    sort(&mut pod["spec"]["volumes"], "name");
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            sort(&mut container["volumeMounts"], "mountPath");
        }
    }
    prune(pod)
}

fn prune(value: Value) -> Value {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(key, value)| (key, prune(value)))
                .filter(|(_, value)| !empty(value))
                .collect(),
        ),
        Value::Array(list) => Value::Array(list.into_iter().map(prune).collect()),
        other => other,
    }
}

/// The seeds' pods, in a labelled namespace and in one that is not.
fn seeds() -> impl Iterator<Item = Value> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    let files = std::fs::read_dir(directory).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".yaml")).collect();
    names.sort();
    assert!(names.len() > 5);
    names
        .into_iter()
        .flat_map(|name| [common::pod_in(&name), common::pod_in(&name)])
}

#[test]
fn the_policy_decides_as_the_webhook_does() {
    let changed = compare(&Config::default(), PODS);
    assert!(
        changed > PODS / 4,
        "only {changed} of {PODS} pods were changed at all"
    );
}

#[test]
fn the_policy_follows_every_choice_of_the_cluster_as_the_webhook_does() {
    const SOME: usize = 200;
    let attach = Config {
        mode: Mode::Attach,
        ..Config::default()
    };
    assert!(compare(&attach, SOME) > 0);
    let other = Config {
        runtime: Runtime::Crun,
        files: "-cpu,+node".to_owned(),
        excluded_runtime_classes: vec!["gvisor".to_owned(), "kata".to_owned()],
        idmapped_mounts: true,
        ..Config::default()
    };
    assert!(compare(&other, SOME) > 0);
}

/// Runs the seeds' and so many generated pods through both; how many were changed.
fn compare(config: &Config, count: usize) -> usize {
    let evaluator = std::env::var_os("LXCFS_POLICY_EVALUATOR")
        .expect("LXCFS_POLICY_EVALUATOR is not set: run `cargo xtask policy`");
    let options = Options {
        config: config.clone(),
        ..Options::default()
    };
    let policy = Part::Policy.objects(&options).unwrap().remove(0);
    let mut runner = TestRunner::deterministic();
    let strategy = generated::any_pod();
    let generated = (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current());
    let cases: Vec<(Value, Request<'_>, Value)> = seeds()
        .chain(generated)
        .enumerate()
        .map(|(at, pod)| {
            let pod = within_cel(pod);
            let (labelled, confined) = (at % 2 != 0, at % 5 == 4);
            let request = Request {
                namespace: "web",
                selected_by: if labelled {
                    SelectedBy::Namespace
                } else {
                    SelectedBy::Pod
                },
                pod_security: if confined {
                    PodSecurity::Confined
                } else {
                    PodSecurity::Privileged
                },
                operation: Operation::Create,
            };
            let mut labels = json!({});
            if labelled {
                labels[pod::NAMESPACE_LABEL] = pod::NAMESPACE_LABEL_ON.into();
            }
            if confined {
                labels[pod::POD_SECURITY_LABEL] = "restricted".into();
            }
            (pod, request, labels)
        })
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("policy"), policy.to_string()).unwrap();
    let lines: Vec<String> = cases
        .iter()
        .map(|(pod, _, labels)| json!({"pod": pod, "labels": labels}).to_string())
        .collect();
    std::fs::write(path("cases"), lines.join("\n")).unwrap();
    let status = Command::new(evaluator)
        .args(["-test.run", "TestLxcfsPolicy"])
        .env("LXCFS_POLICY", path("policy"))
        .env("LXCFS_CASES", path("cases"))
        .env("LXCFS_RESULTS", path("results"))
        .status();
    assert!(status.unwrap().success());
    let results = std::fs::read_to_string(path("results")).unwrap();
    let results: Vec<Value> = results
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(results.len(), cases.len());
    let mut changed = 0;
    for ((pod, request, labels), result) in cases.iter().zip(&results) {
        assert!(result["error"].is_null(), "{}\n{pod:#}", result["error"]);
        let (by_webhook, _) = common::admit(pod, request, config);
        let (one, other) = (comparable(&by_webhook), comparable(&result["pod"]));
        assert!(
            one == other,
            "{labels}\npod {pod:#}\nby the webhook {one:#}\nby the policy {other:#}"
        );
        // Sorted above; here the user's own stay in their order.
        let names = |pod: &Value| -> Vec<Value> {
            let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
            volumes.map(|volume| volume["name"].clone()).collect()
        };
        let (before, mut after) = (names(pod), names(&result["pod"]));
        after.retain(|name| before.contains(name));
        assert_eq!(before, after, "volumes moved");
        changed += usize::from(one != comparable(pod));
    }
    changed
}
