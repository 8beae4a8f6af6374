//! The webhook over thousands of generated pods: what must hold for every pod, whatever
//! its author, other webhooks and older lxcfs deployments put into it.

use std::collections::BTreeSet;

use lxcfs_common::catalogue::CATALOGUE;
use lxcfs_common::pod;
use lxcfs_kube::mutate::{
    Config, Mode, Operation, Outcome, PodSecurity, Request, Runtime, SelectedBy,
};
use lxcfs_kube::review::{Endpoint, answer};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use crate::common::{admit, annotation};

const CASES: u32 = 4000;

/// Absent, null or present: three ways a list can be empty.
fn field(value: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        2 => Just(None),
        1 => Just(Some(Value::Null)),
        4 => value.prop_map(Some),
    ]
}

fn object(fields: Vec<(&'static str, Option<Value>)>) -> Value {
    let fields = fields
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Value::Object(fields.collect::<Map<_, _>>())
}

fn volume_name() -> impl Strategy<Value = &'static str> {
    select(vec![
        "data",
        "z",
        "lxcfs-meminfo",
        "lxcfs-cpu",
        "lxcfs-proc-stat",
        "meminfo",
        "lxcfs",
    ])
}

fn volume() -> impl Strategy<Value = Value> {
    let source = prop_oneof![
        Just(json!({"emptyDir": {}})),
        select(vec![
            "/var/lib/lxc/lxcfs/proc/meminfo",
            "/var/lib/lxc//lxcfs/proc/stat/",
            "/var/lib/lxc/lxcfs/sys/devices/system/cpu",
            "/var/lib/lxcfs/proc/meminfo",
            "/var/lib/lxc",
            "/proc",
        ])
        .prop_map(|path| json!({"hostPath": {"path": path}})),
        Just(json!({"hostPath": {"path": "/var/lib/lxc/lxcfs/proc/uptime", "type": "File"}})),
    ];
    (volume_name(), source).prop_map(|(name, mut source)| {
        source["name"] = name.into();
        source
    })
}

fn mount() -> impl Strategy<Value = Value> {
    let path = select(vec![
        "/data",
        "/proc/meminfo",
        "/proc/stat/",
        "/proc/./uptime",
        "//proc//loadavg",
        "/proc",
        "/sys/devices/system/cpu",
        "/sys/devices/system/cpu/online",
        "/sys",
        "/host/proc",
        "/proc2",
    ]);
    (volume_name(), path, any::<bool>()).prop_map(|(name, path, sub)| {
        let mut mount = json!({"name": name, "mountPath": path});
        if sub {
            mount["subPath"] = "proc/meminfo".into();
        }
        mount
    })
}

fn container(name: &'static str) -> impl Strategy<Value = Value> {
    (
        field(vec(mount(), 0..4).prop_map(Value::from)),
        any::<bool>(),
    )
        .prop_map(move |(mounts, limited)| {
            let limits = json!({"limits": {"memory": "64Mi", "cpu": "1500m"}});
            object(vec![
                ("name", Some(name.into())),
                ("image", Some("image".into())),
                ("volumeMounts", mounts),
                ("resources", limited.then_some(limits)),
            ])
        })
}

fn containers(names: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let all: Vec<_> = names.iter().map(|name| container(name)).collect();
    (all, 1..=names.len()).prop_map(|(all, many)| Value::from(all[..many].to_vec()))
}

fn annotations() -> impl Strategy<Value = Value> {
    let keys = vec![
        pod::INJECT,
        pod::RUNTIME_OPT_IN,
        "lxcfs-admission-webhook.aliyun.com/mutate",
        "mutating.lxcfs-admission-webhook.io/enable",
        "lxcfs-admission-webhook.aliyun.com/status",
        pod::CONTAINERS,
        pod::FILES,
        pod::CONTAINER_FILES,
        pod::MODE,
        pod::ATTACH,
        pod::SKIPPED,
        "kubernetes.io/config.mirror",
        "team/note",
    ];
    let values = prop_oneof![
        select(vec![
            "true",
            "False",
            "no",
            "attach",
            "mutated",
            "app",
            "-app",
            "app,init",
            "none",
            "meminfo,cpuinfo",
            "-swaps,+node",
            "pressure",
            "cpu/online",
            "app=stat;db=-cpu",
            "init=none;app=default,+cpu/online",
            "=;;=,",
            "",
        ])
        .prop_map(str::to_owned),
        ".{0,40}",
    ];
    vec((select(keys), values), 0..5).prop_map(|pairs| {
        Value::Object(
            pairs
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value.into()))
                .collect(),
        )
    })
}

pub(crate) fn any_pod() -> impl Strategy<Value = Value> {
    (
        field(annotations()),
        field(vec(volume(), 0..4).prop_map(distinct)),
        containers(&["app", "db", "web"]),
        field(containers(&["init", "sidecar"])),
        select(vec![None, Some(true), Some(false)]),
        select(vec![None, Some("linux"), Some("windows")]),
    )
        .prop_map(|(annotations, volumes, containers, init, host_users, os)| {
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": object(vec![("name", Some("p".into())), ("annotations", annotations)]),
                "spec": object(vec![
                    ("volumes", volumes),
                    ("containers", Some(containers)),
                    ("initContainers", init),
                    ("hostUsers", host_users.map(Value::from)),
                    ("os", os.map(|name| json!({"name": name}))),
                    ("nodeName", Some("n1".into())),
                ]),
            })
        })
}

/// Volumes with a name of their own each, as the API demands.
fn distinct(volumes: Vec<Value>) -> Value {
    let mut seen = BTreeSet::new();
    let volumes = volumes
        .into_iter()
        .filter(|volume| seen.insert(volume["name"].to_string()));
    volumes.collect::<Vec<_>>().into()
}

fn any_request() -> impl Strategy<Value = Request<'static>> {
    (
        select(vec!["web", "kube-system"]),
        select(vec![
            SelectedBy::Namespace,
            SelectedBy::Namespace,
            SelectedBy::Pod,
        ]),
        select(vec![
            PodSecurity::Privileged,
            PodSecurity::Privileged,
            PodSecurity::Confined,
        ]),
    )
        .prop_map(|(namespace, selected_by, pod_security)| Request {
            namespace,
            selected_by,
            pod_security,
            operation: Operation::Create,
        })
}

fn any_config() -> impl Strategy<Value = Config> {
    (
        select(vec![Mode::Mount, Mode::Mount, Mode::Attach]),
        select(vec![Runtime::Runc, Runtime::Crun]),
        select(vec!["", "meminfo,cpuinfo", "+node", "-cpu"]),
        any::<bool>(),
        select(vec!["/var/lib/lxc/lxcfs", "/var/lib/lxc/lxcfs/"]),
        select(vec!["", "", "meminfo,pressure", "cpu"]),
    )
        .prop_map(
            |(mode, runtime, files, idmapped_mounts, mountpoint, disable)| Config {
                mode,
                runtime,
                files: files.to_owned(),
                idmapped_mounts,
                mountpoint: mountpoint.to_owned(),
                disable: disable.to_owned(),
                ..Config::default()
            },
        )
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// Everything of a pod that is not ours to change.
fn without_additions(before: &Value, after: &Value) -> Value {
    let mut pod = after.clone();
    let restore = |pod: &mut Value, pointer: &str, member: &str| {
        let original = before
            .pointer(pointer)
            .and_then(|parent| parent.get(member))
            .cloned();
        let parent = pod
            .pointer_mut(pointer)
            .and_then(Value::as_object_mut)
            .unwrap();
        match original {
            Some(original) => parent.insert(member.to_owned(), original),
            None => parent.remove(member),
        };
    };
    restore(&mut pod, "/spec", "volumes");
    for field in ["containers", "initContainers"] {
        for index in 0..list(before, &format!("/spec/{field}")).len() {
            restore(&mut pod, &format!("/spec/{field}/{index}"), "volumeMounts");
        }
    }
    restore(&mut pod, "/metadata", "annotations");
    pod
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn twice_is_once_and_nothing_of_the_users_moves(
        pod in any_pod(), request in any_request(), config in any_config(),
    ) {
        let (once, decision) = admit(&pod, &request, &config);
        let (twice, again) = admit(&once, &request, &config);
        prop_assert_eq!(&once, &twice, "applied twice differs; second patch {:?}", again.patches);
        prop_assert!(again.patches.is_empty());
        prop_assert_eq!(&again.skipped, &decision.skipped);

        // Additions aside, the pod is the one that came.
        prop_assert_eq!(&without_additions(&pod, &once), &pod);
        for pointer in pointers(&pod) {
            let (old, new) = (list(&pod, &pointer), list(&once, &pointer));
            prop_assert!(new.starts_with(old), "{} changed or moved", pointer);
        }
        // So are the annotations, but for our three.
        let no_annotations = Map::new();
        let of = |pod: &Value| pod["metadata"]["annotations"].as_object().unwrap_or(&no_annotations).clone();
        let (mut old, mut new) = (of(&pod), of(&once));
        for key in [pod::MOUNTED, pod::ATTACH, pod::SKIPPED] {
            old.remove(key);
            new.remove(key);
        }
        prop_assert_eq!(old, new);
    }

    #[test]
    fn what_is_added_is_what_the_api_and_the_runtime_accept(
        pod in any_pod(), request in any_request(), config in any_config(),
    ) {
        let (after, decision) = admit(&pod, &request, &config);
        if decision.outcome == Outcome::Skipped {
            prop_assert_eq!(&after, &pod);
            return Ok(());
        }
        let old_volumes = list(&pod, "/spec/volumes").len();
        let volumes = list(&after, "/spec/volumes");
        let names: BTreeSet<_> = volumes.iter().map(|volume| volume["name"].to_string()).collect();
        prop_assert_eq!(names.len(), volumes.len(), "volume names are unique");
        for volume in &volumes[old_volumes..] {
            let kind = volume["hostPath"]["type"].as_str();
            prop_assert!(matches!(kind, Some("File" | "Directory")), "F5: a host path without type");
            let path = volume["hostPath"]["path"].as_str().unwrap();
            prop_assert!(path.starts_with("/var/lib/lxc/lxcfs/") && !path.contains("//"));
        }
        for pointer in pointers(&pod).into_iter().skip(1) {
            let old = list(&pod, &pointer).len();
            let mounts = list(&after, &pointer);
            for (at, mount) in mounts.iter().enumerate().skip(old) {
                let path = mount["mountPath"].as_str().unwrap();
                let entry = CATALOGUE.iter().find(|entry| format!("/{}", entry.path) == path);
                prop_assert!(entry.is_some_and(|entry| entry.runc_allows || config.runtime == Runtime::Crun));
                prop_assert!(names.contains(&mount["name"].to_string()), "a mount without its volume");
                prop_assert_eq!(&mount["readOnly"], &Value::Bool(true));
                let others = mounts.iter().enumerate().filter(|(other, _)| *other != at);
                for (_, other) in others {
                    prop_assert!(!nested(path, other["mountPath"].as_str().unwrap()), "{} clashes", path);
                }
            }
        }
        if request.pod_security == PodSecurity::Confined || config.mode == Mode::Attach {
            prop_assert_eq!(&after["spec"], &pod["spec"]);
        }
        // A file is mounted, attached or skipped, and never two of them.
        let mounted = annotation(&after, pod::MOUNTED).unwrap_or_default();
        let attach = annotation(&after, pod::ATTACH).unwrap_or_default();
        let mut seen = BTreeSet::new();
        for value in [mounted, attach] {
            for (container, files) in pod::per_container(value) {
                for file in files.words() {
                    prop_assert!(pod::by_file_name(file).is_some());
                    prop_assert!(seen.insert((container.to_owned(), file.to_owned())));
                }
            }
        }
    }

    #[test]
    fn a_pod_that_says_no_is_never_touched(mut pod in any_pod(), request in any_request(), config in any_config()) {
        if !pod["metadata"]["annotations"].is_object() {
            pod["metadata"]["annotations"] = json!({});
        }
        pod["metadata"]["annotations"][pod::INJECT] = "false".into();
        let (after, decision) = admit(&pod, &request, &config);
        prop_assert_eq!(decision.outcome, Outcome::Skipped);
        prop_assert_eq!(after, pod);
    }
}

/// Reviews as an API server writes them, cut off or overwritten somewhere.
fn any_review_bytes() -> impl Strategy<Value = Vec<u8>> {
    let broken = (
        any_pod(),
        any::<proptest::sample::Index>(),
        vec(any::<u8>(), 0..8),
    )
        .prop_map(|(pod, at, bytes)| {
            let review = json!({
                "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
                "request": {"uid": "u", "namespace": "web", "operation": "CREATE", "object": pod},
            });
            let mut text = review.to_string().into_bytes();
            let at = at.index(text.len());
            if bytes.is_empty() {
                text.truncate(at);
            }
            for (place, byte) in text[at..].iter_mut().zip(bytes) {
                *place = byte;
            }
            text
        });
    prop_oneof![3 => broken, 1 => vec(any::<u8>(), 0..200)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_sequence_gets_an_answer_and_the_answer_is_allowed(body in any_review_bytes()) {
        for endpoint in Endpoint::ALL {
            let answer = answer(&body, endpoint, &Config::default());
            prop_assert_eq!(&answer.body["response"]["allowed"], &Value::Bool(true));
            prop_assert!(answer.body["response"]["uid"].is_string());
            if answer.fault.is_some() {
                prop_assert!(answer.body["response"]["patch"].is_null());
            }
        }
    }
}

/// The volumes, then the mounts of every container.
fn pointers(pod: &Value) -> Vec<String> {
    let mut pointers = vec!["/spec/volumes".to_owned()];
    for field in ["initContainers", "containers"] {
        for index in 0..list(pod, &format!("/spec/{field}")).len() {
            pointers.push(format!("/spec/{field}/{index}/volumeMounts"));
        }
    }
    pointers
}

/// Whether one path is the other or above it, by walking both.
fn nested(one: &str, other: &str) -> bool {
    let walk = |path: &str| {
        std::path::Path::new(path)
            .components()
            .collect::<std::path::PathBuf>()
    };
    let (one, other) = (walk(one), walk(other));
    one.starts_with(&other) || other.starts_with(&one)
}
