//! The manifests: every one valid in every release we promise, the committed files fresh,
//! the chart equal to the kustomize parts, and the promises of the design kept.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lxcfs_common::pod;
use lxcfs_kube::manifests::{OVERLAYS, Options, Part, files, helm, yaml};
use lxcfs_kube::mutate::{Config, EXCLUDED_NAMESPACES};
use serde_json::{Value, json};

use crate::common::pod_in;

const RELEASES: std::ops::RangeInclusive<u32> = 30..=37;
const POLICY_SINCE: u32 = 36;
const VALIDATOR: &str = "kubernetes-validate==1.37.0";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn all_objects(options: &Options) -> Vec<(Part, Value)> {
    let parts = Part::ALL.into_iter();
    parts
        .flat_map(|part| {
            part.objects(options)
                .unwrap()
                .into_iter()
                .map(move |object| (part, object))
        })
        .collect()
}

fn kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects
        .iter()
        .filter(|object| object["kind"] == kind)
        .collect()
}

/// A Python with the validator, made once in the user's cache.
fn validator() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache =
        cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"));
    let venv = cache.join("lxcfs").join(VALIDATOR.replace("==", "-"));
    let python = venv.join("bin/python");
    if !venv.join("complete").exists() {
        let run = |command: &mut Command| {
            let status = command.stdout(Stdio::null()).status();
            assert!(
                status.is_ok_and(|status| status.success()),
                "{command:?} failed: the manifests are validated by {VALIDATOR} from PyPI; \
                 needed are python3 with venv (apt-get install python3-venv) and a way to PyPI"
            );
        };
        std::fs::create_dir_all(&cache).unwrap();
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", VALIDATOR]));
        std::fs::write(venv.join("complete"), "").unwrap();
    }
    python
}

fn validate(objects: &[(u32, Value)]) -> Result<(), String> {
    let mut python = Command::new(validator())
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/validate.py"))
        .args(RELEASES.map(|minor| minor.to_string()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = serde_json::to_vec(&objects).unwrap();
    python.stdin.take().unwrap().write_all(&input).unwrap();
    let output = python.wait_with_output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn every_object_is_valid_in_every_release() {
    // Types of the cluster's add-ons have no schema here.
    let foreign = |object: &Value| {
        let api = object["apiVersion"].as_str().unwrap();
        api.starts_with("cert-manager.io/") || api.starts_with("monitoring.coreos.com/")
    };
    let with_taint = Options {
        start_taint: true,
        ..Options::default()
    };
    let mut objects: Vec<(u32, Value)> = all_objects(&Options::default())
        .into_iter()
        .chain(all_objects(&with_taint))
        .filter(|(_, object)| !foreign(object))
        .map(|(part, object)| {
            (
                if part == Part::Policy {
                    POLICY_SINCE
                } else {
                    0
                },
                object,
            )
        })
        .collect();
    assert!(objects.len() > 20);
    validate(&objects).unwrap();
    // The validator does find what is wrong.
    objects.truncate(1);
    objects[0].1["spec"] = json!({"finalisers": []});
    assert!(validate(&objects).unwrap_err().contains("finalisers"));
}

#[test]
fn a_field_unknown_to_its_type_is_an_error_of_the_generator() {
    // The generator's own check, seen through a value it does not escape.
    let odd = Options {
        config: Config {
            mountpoint: "/lxcfs".to_owned(),
            ..Config::default()
        },
        ..Options::default()
    };
    let error = Part::AgentSimple.objects(&odd).unwrap_err().to_string();
    assert!(error.contains("two directories deep"), "{error}");
}

#[test]
fn the_committed_files_are_fresh() {
    let deploy = root().join("deploy");
    for (path, text) in files::tree(&Options::default()).unwrap() {
        let found = std::fs::read_to_string(deploy.join(&path)).unwrap_or_default();
        assert!(
            found == text,
            "deploy/{path} is stale: cargo run -p lxcfs-kube -- manifests --write deploy"
        );
    }
    // And nothing is left of what is not generated any more.
    for directory in ["kubernetes/parts", "helm/lxcfs/templates"] {
        let known = files::tree(&Options::default()).unwrap();
        for found in walk(&deploy.join(directory)) {
            let path = found
                .strip_prefix(&deploy)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            assert!(
                known.contains_key(&path),
                "deploy/{path} is not generated any more"
            );
        }
    }
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(walk(&path)),
            false => found.push(path),
        }
    }
    found
}

#[test]
fn yaml_says_what_the_objects_say() {
    for (_, object) in all_objects(&Options::default()) {
        let text = yaml(std::slice::from_ref(&object)).unwrap();
        let back: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, object);
    }
}

#[test]
fn every_overlay_is_complete_and_has_no_object_twice() {
    for overlay in OVERLAYS {
        let mut seen = BTreeMap::new();
        let options = Options::default();
        for part in overlay.parts {
            for object in part.objects(&options).unwrap() {
                let id = format!("{} {}", object["kind"], object["metadata"]["name"]);
                assert!(
                    seen.insert(id.clone(), ()).is_none(),
                    "{}: {id} twice",
                    overlay.name
                );
                let namespace = object["metadata"]["namespace"].as_str();
                assert!(namespace.is_none_or(|name| name == options.namespace));
            }
        }
        assert!(seen.keys().any(|id| id.contains("DaemonSet")));
    }
}

/// Renders the chart's two constructs: values in text, and one `if` around a file.
fn render(template: &str, values: &BTreeMap<&str, &str>) -> String {
    let (condition, rest) = template.split_once("}}\n").unwrap();
    let body = rest.strip_suffix("{{- end }}\n").unwrap();
    let condition = condition
        .strip_prefix("{{- if eq (toString .Values.")
        .unwrap();
    let (value, wanted) = condition.split_once(") ").unwrap();
    if values[value] != wanted.trim().trim_matches('"') {
        return String::new();
    }
    let mut out = String::new();
    let mut rest = body;
    while let Some((before, after)) = rest.split_once("{{ ") {
        let (expression, after) = after.split_once(" }}").unwrap();
        out.push_str(before);
        out.push_str(match expression {
            "\"{{\"" => "{{",
            ".Release.Namespace" => values["namespace"],
            "dir .Values.mountpoint" => values["mountpoint"].rsplit_once('/').unwrap().0,
            other => values[other.strip_prefix(".Values.").unwrap()],
        });
        rest = after;
    }
    out + rest
}

#[test]
fn the_chart_renders_what_the_parts_are() {
    let tree = files::tree(&Options::default()).unwrap();
    let options = Options {
        namespace: "elsewhere".to_owned(),
        image: "registry.example/lxcfs:2".to_owned(),
        config: Config {
            mountpoint: "/opt/lx/view".to_owned(),
            files: "-cpu,+node".to_owned(),
            excluded_namespaces: EXCLUDED_NAMESPACES
                .map(|name| {
                    if name == "lxcfs-system" {
                        "elsewhere"
                    } else {
                        name
                    }
                    .to_owned()
                })
                .to_vec(),
            ..Config::default()
        },
        ..Options::default()
    };
    for &(part, value, wanted) in helm::SWITCHES {
        let template = &tree[&helm::path(part)];
        let mut values: BTreeMap<&str, &str> = BTreeMap::from([
            ("namespace", "elsewhere"),
            ("image", "registry.example/lxcfs:2"),
            ("mountpoint", "/opt/lx/view"),
            ("files", "-cpu,+node"),
            (value, wanted),
        ]);
        let rendered = render(template, &values);
        let documents = rendered
            .split("\n---\n")
            .map(|text| serde_saphyr::from_str(text).unwrap());
        let documents: Vec<Value> = documents.collect();
        assert_eq!(
            documents,
            part.objects(&options).unwrap(),
            "{}",
            part.name()
        );
        values.insert(value, "none");
        assert_eq!(render(template, &values), "");
    }
    let defaults: Value = serde_saphyr::from_str(&tree["helm/lxcfs/values.yaml"]).unwrap();
    assert_eq!(defaults["mountpoint"], "/var/lib/lxc/lxcfs");
    assert_eq!(defaults["agent"]["profile"], "simple");
}

// Promises of the design.

#[test]
fn each_part_of_the_split_has_its_own_rights_and_its_own_way_of_being_updated() {
    let objects = Part::AgentLeastPrivilege
        .objects(&Options::default())
        .unwrap();
    let set = |name: &str| {
        let found = objects
            .iter()
            .find(|object| object["kind"] == "DaemonSet" && object["metadata"]["name"] == name);
        found.unwrap()["spec"].clone()
    };
    let container = |name: &str| set(name)["template"]["spec"]["containers"][0].clone();
    let rights = |name: &str| container(name)["securityContext"].clone();
    assert_eq!(rights("lxcfs-daemon")["privileged"], true);
    for (name, capabilities) in [
        ("lxcfs-server", &pod::SERVER_CAPABILITIES),
        ("lxcfs-agent", &pod::AGENT_CAPABILITIES),
    ] {
        let rights = rights(name);
        assert_eq!(rights["privileged"], false);
        assert_eq!(rights["allowPrivilegeEscalation"], false);
        assert_eq!(
            rights["capabilities"],
            json!({"drop": ["ALL"], "add": capabilities})
        );
    }
    assert!(!pod::SERVER_CAPABILITIES.contains(&"SYS_ADMIN"));
    assert_eq!(set("lxcfs-daemon")["updateStrategy"]["type"], "OnDelete");
    // The next one is there before the present one goes.
    let update = &set("lxcfs-server")["updateStrategy"]["rollingUpdate"];
    assert_eq!(update, &json!({"maxSurge": 1, "maxUnavailable": 0}));
    // Nobody reaches the privileged one, and it has nothing to listen with.
    let policy = objects.iter().find(|object| {
        object["kind"] == "NetworkPolicy" && object["metadata"]["name"] == "lxcfs-daemon"
    });
    assert_eq!(policy.unwrap()["spec"]["ingress"], json!([]));
    assert!(container("lxcfs-daemon")["ports"].is_null());
    let command = container("lxcfs-daemon")["command"].to_string();
    assert!(command.contains("--workers=outside"), "{command}");
}

#[test]
fn the_agents_pods_keep_the_promises_of_the_failure_list() {
    for part in [Part::AgentSimple, Part::AgentLeastPrivilege] {
        let objects = part.objects(&Options::default()).unwrap();
        for set in kind(&objects, "DaemonSet") {
            let spec = &set["spec"]["template"]["spec"];
            let text = set.to_string();
            // F22: no lifecycle hook and no shell. F23: nothing of the host is overwritten.
            for word in [
                "lifecycle",
                "postStart",
                "/bin/sh",
                "nsenter",
                "/usr/",
                "/lib",
            ] {
                assert!(
                    !text.replace("/var/lib/", "").contains(word),
                    "{word} in {text}"
                );
            }
            // F5, F7: typed host paths, the parent and never the mountpoint.
            for volume in spec["volumes"].as_array().unwrap() {
                assert!(volume["hostPath"]["type"].is_string());
                assert_ne!(volume["hostPath"]["path"], "/var/lib/lxc/lxcfs");
            }
            assert_eq!(spec["priorityClassName"], "system-node-critical");
            assert_eq!(spec["tolerations"], json!([{"operator": "Exists"}]));
            assert_eq!(spec["automountServiceAccountToken"], false);
            let label = &set["spec"]["template"]["metadata"]["labels"][pod::COMPONENT_LABEL];
            assert!(label.is_string());
            let sidecars = spec["initContainers"].as_array().into_iter().flatten();
            for container in sidecars.chain(spec["containers"].as_array().unwrap()) {
                let resources = &container["resources"];
                assert_eq!(resources["requests"], resources["limits"], "Guaranteed");
                // Of the holder and of a server that waits for one, nothing but who uses them may
                // depend on their health.
                let apart = part == Part::AgentLeastPrivilege && container["name"] != "agent";
                for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                    match container[probe]["timeoutSeconds"].as_u64() {
                        Some(seconds) => assert!(seconds > 1),
                        None => assert!(apart && probe != "readinessProbe", "{probe}"),
                    }
                }
                // F24: liveness is the heartbeat, not the mount.
                if !apart {
                    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/livez");
                }
                // Bidirectional is for privileged containers only: the API refuses it else.
                let both_ways = container["volumeMounts"]
                    .to_string()
                    .contains("Bidirectional");
                let privileged = container["securityContext"]["privileged"] == true;
                assert!(!both_ways || privileged);
                if part == Part::AgentLeastPrivilege {
                    assert_eq!(
                        privileged, both_ways,
                        "only the part that mounts is privileged"
                    );
                }
            }
        }
    }
}

#[test]
fn the_webhook_runs_restricted_and_may_touch_two_objects() {
    let objects = Part::Webhook.objects(&Options::default()).unwrap();
    let deployment = kind(&objects, "Deployment")[0];
    let spec = &deployment["spec"]["template"]["spec"];
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        spec["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    let container = &spec["containers"][0]["securityContext"];
    assert_eq!(container["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(container["allowPrivilegeEscalation"], false);
    assert!(spec.get("volumes").is_none() && spec.get("hostPID").is_none());
    let rules: Vec<&Value> = objects
        .iter()
        .filter_map(|object| object["rules"].as_array())
        .flatten()
        .collect();
    let granted: Vec<String> = rules
        .iter()
        .map(|rule| {
            format!(
                "{} {} {}",
                rule["resources"], rule["resourceNames"], rule["verbs"]
            )
        })
        .collect();
    assert_eq!(
        granted,
        [
            r#"["secrets"] ["lxcfs-webhook-certificates"] ["get","update"]"#,
            r#"["mutatingwebhookconfigurations"] ["lxcfs-webhook"] ["get","patch"]"#,
        ]
    );
    let objects = Part::WebhookCertManager
        .objects(&Options::default())
        .unwrap();
    assert!(kind(&objects, "Role").is_empty() && kind(&objects, "ClusterRole").is_empty());
}

#[test]
fn no_pod_can_be_refused_or_held_up_by_the_configuration() {
    let objects = Part::Webhook.objects(&Options::default()).unwrap();
    let webhooks = kind(&objects, "MutatingWebhookConfiguration")[0]["webhooks"]
        .as_array()
        .unwrap();
    assert_eq!(webhooks.len(), 4);
    for webhook in webhooks {
        assert_eq!(webhook["failurePolicy"], "Ignore");
        assert_eq!(webhook["timeoutSeconds"], 2);
        assert_eq!(webhook["sideEffects"], "None");
        assert_eq!(webhook["reinvocationPolicy"], "IfNeeded");
        // Own pods, two layers here: by their label and by their namespace.
        assert!(
            webhook["matchConditions"]
                .to_string()
                .contains(pod::COMPONENT_LABEL)
        );
        assert!(
            webhook["namespaceSelector"]
                .to_string()
                .contains("lxcfs-system")
        );
    }
    // The third: the server's own list.
    let command =
        &kind(&objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["command"];
    assert!(
        command
            .to_string()
            .contains("--exclude-namespace=lxcfs-system")
    );
}

#[test]
fn the_seeds_daemonset_would_never_be_injected() {
    // Its namespace is excluded, whatever labels it carries.
    let pod = pod_in("seed-daemonset.yaml");
    let mut request = crate::common::request();
    request.namespace = "kube-system";
    let decision =
        lxcfs_kube::mutate::mutate(&crate::common::typed(&pod), &request, &Config::default());
    assert!(decision.patches.is_empty());
}

#[test]
fn the_policy_has_one_mutation_so_nothing_is_applied_by_half() {
    let objects = Part::Policy.objects(&Options::default()).unwrap();
    let spec = &kind(&objects, "MutatingAdmissionPolicy")[0]["spec"];
    assert_eq!(spec["mutations"].as_array().unwrap().len(), 1);
    assert_eq!(spec["failurePolicy"], "Ignore");
    assert_eq!(spec["reinvocationPolicy"], "IfNeeded");
}

#[test]
fn promtool_accepts_the_alerts() {
    let rules = root().join("deploy/prometheus/lxcfs.rules.yaml");
    let status = Command::new("promtool")
        .args(["check", "rules"])
        .arg(rules)
        .status();
    let status = status.expect("promtool is missing: apt-get install prometheus");
    assert!(status.success());
}

#[test]
fn the_program_prints_overlays_and_parts() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lxcfs-webhook"));
        command.arg("manifests").args(arguments).output().unwrap()
    };
    let output = run(&["--namespace", "x", "--image", "i:1", "webhook", "policy"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        !text.contains("lxcfs-system"),
        "the default namespace is not ours any more"
    );
    assert!(text.contains("image: \"i:1\"") || text.contains("image: i:1"));
    assert_eq!(text.matches("\nkind: Namespace\n").count(), 1);
    let output = run(&["wibble"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("least-privilege"));
}
