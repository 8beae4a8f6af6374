//! The chart through Go's own templates and the overlays through kustomize, against the parts
//! they come from. `cargo xtask chart` brings both programs.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lxcfs_kube::manifests::{OVERLAYS, Options, helm};
use lxcfs_kube::mutate::Config;
use serde_json::{Value, json};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn program(variable: &str) -> Command {
    let path = std::env::var_os(variable);
    Command::new(path.unwrap_or_else(|| panic!("{variable} is not set: run `cargo xtask chart`")))
}

fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n")
        .filter(|text| !text.trim().is_empty())
        .map(|text| serde_saphyr::from_str(text).unwrap())
        .collect()
}

/// A template of the committed chart, as `helm template` would print it.
fn render(template: &str, values: &Value, namespace: &str) -> Vec<Value> {
    let mut engine = program("LXCFS_CHART_ENGINE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = std::fs::read_to_string(deploy().join(template)).unwrap();
    let input = json!({
        "Template": text, "Values": values,
        "Release": {"Namespace": namespace, "Name": "lxcfs"},
    });
    let mut stdin = engine.stdin.take().unwrap();
    stdin.write_all(input.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = engine.wait_with_output().unwrap();
    assert!(output.status.success(), "{template}");
    documents(&String::from_utf8(output.stdout).unwrap())
}

fn defaults() -> Value {
    let text = std::fs::read_to_string(deploy().join("helm/lxcfs/values.yaml")).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

fn set(values: &mut Value, path: &str, value: Value) {
    let pointer = format!("/{}", path.replace('.', "/"));
    *values.pointer_mut(&pointer).unwrap() = value;
}

#[test]
fn every_template_renders_the_parts_objects_and_nothing_when_switched_off() {
    // Elsewhere and otherwise than by default, so that no value can be a constant.
    let options = Options {
        namespace: "elsewhere".to_owned(),
        image: "registry.example/lxcfs:2".to_owned(),
        config: Config {
            mountpoint: "/opt/lx/view".to_owned(),
            files: "-cpu,+node".to_owned(),
            excluded_namespaces: Config::default()
                .excluded_namespaces
                .into_iter()
                .map(|name| match name.as_str() {
                    "lxcfs-system" => "elsewhere".to_owned(),
                    _ => name,
                })
                .collect(),
            ..Config::default()
        },
        ..Options::default()
    };
    for &(part, value, wanted) in helm::SWITCHES {
        let mut values = defaults();
        set(&mut values, "image", "registry.example/lxcfs:2".into());
        set(&mut values, "mountpoint", "/opt/lx/view".into());
        set(&mut values, "files", "-cpu,+node".into());
        // As a word, and as the boolean that `--set` makes of it.
        let spellings = match wanted {
            "true" => vec![json!(true), json!("true")],
            word => vec![json!(word)],
        };
        for spelling in spellings {
            set(&mut values, value, spelling);
            let rendered = render(&helm::path(part), &values, "elsewhere");
            assert_eq!(rendered, part.objects(&options).unwrap(), "{}", part.name());
        }
        set(&mut values, value, "none".into());
        assert!(render(&helm::path(part), &values, "elsewhere").is_empty());
    }
}

#[test]
fn the_charts_defaults_are_the_simple_profile_of_the_manifests() {
    let options = Options {
        config: Config {
            files: "default".to_owned(),
            ..Config::default()
        },
        ..Options::default()
    };
    for &(part, ..) in helm::SWITCHES {
        let rendered = render(&helm::path(part), &defaults(), "lxcfs-system");
        let expected = match part.name() {
            "agent-simple" => part.objects(&options).unwrap(),
            _ => Vec::new(),
        };
        assert_eq!(rendered, expected, "{}", part.name());
    }
}

#[test]
fn kustomize_builds_every_overlay_from_its_parts() {
    let named = |objects: Vec<Value>| -> BTreeMap<String, Value> {
        let name = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
        objects
            .into_iter()
            .map(|object| (name(&object), object))
            .collect()
    };
    for overlay in OVERLAYS {
        let output = program("LXCFS_KUSTOMIZE")
            .arg("build")
            .arg(deploy().join("kubernetes/overlays").join(overlay.name))
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {error}", overlay.name);
        let built = named(documents(&String::from_utf8(output.stdout).unwrap()));
        let parts = overlay.parts.iter();
        let parts = parts.flat_map(|part| part.objects(&Options::default()).unwrap());
        assert_eq!(built, named(parts.collect()), "{}", overlay.name);
    }
}
