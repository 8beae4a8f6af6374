//! What the webhook does to a pod, rule by rule. The bugs of the webhooks this one
//! replaces are tests by name.

use crate::common::{admit, annotation, mount_paths, plain_pod, pod_in, request, typed};
use lxcfs_common::pod;
use lxcfs_kube::mutate::{
    Config, Mode, Operation, Outcome, PodSecurity, Reason, Runtime, SelectedBy, mutate,
};
use serde_json::{Value, json};

const IN_SPEC: [&str; 9] = [
    "/sys/devices/system/cpu",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/uptime",
    "/proc/diskstats",
    "/proc/swaps",
    "/proc/loadavg",
    "/proc/slabinfo",
];
const BY_AGENT: &str = "vmstat,pressure/cpu,pressure/memory,pressure/io,pressure/irq";

fn reason(pod: &Value, edit: impl FnOnce(&mut Config)) -> Option<Reason> {
    let mut config = Config::default();
    edit(&mut config);
    let (after, decision) = admit(pod, &request(), &config);
    if decision.outcome == Outcome::Skipped {
        assert_eq!(&after, pod, "a skipped pod is left exactly as it came");
        return Some(decision.skipped[0].reason);
    }
    None
}

fn with(pod: Value, edit: impl FnOnce(&mut Value)) -> Value {
    let mut pod = pod;
    edit(&mut pod);
    pod
}

fn annotated(key: &str, value: &str) -> Value {
    with(plain_pod(), |pod| {
        pod["metadata"]["annotations"] = json!({key: value})
    })
}

#[test]
fn a_plain_pod_gets_every_file_its_runtime_accepts_and_a_note_for_the_rest() {
    let (pod, decision) = admit(&plain_pod(), &request(), &Config::default());
    assert_eq!(decision.outcome, Outcome::Mounted);
    assert_eq!(mount_paths(&pod, "containers", 0), IN_SPEC);
    assert_eq!(
        annotation(&pod, pod::ATTACH),
        Some(format!("app={BY_AGENT}").as_str())
    );
    assert_eq!(
        annotation(&pod, pod::MOUNTED),
        Some("app=cpu,cpuinfo,meminfo,stat,uptime,diskstats,swaps,loadavg,slabinfo")
    );
    assert_eq!(annotation(&pod, pod::SKIPPED), None);
    let meminfo = &pod["spec"]["volumes"][2];
    assert_eq!(
        *meminfo,
        json!({
            "name": "lxcfs-meminfo",
            "hostPath": {"path": "/var/lib/lxc/lxcfs/proc/meminfo", "type": "File"},
        })
    );
    assert_eq!(pod["spec"]["volumes"][0]["hostPath"]["type"], "Directory");
    assert!(decision.warnings.is_empty());
}

// The webhooks this one replaces.

#[test]
fn idoyo7_a_pod_without_annotations_is_patched_and_not_refused() {
    for metadata in [
        json!({"name": "p"}),
        json!({"name": "p", "annotations": null}),
        json!({}),
    ] {
        let pod = with(plain_pod(), |pod| pod["metadata"] = metadata);
        let (pod, _) = admit(&pod, &request(), &Config::default());
        assert!(annotation(&pod, pod::MOUNTED).is_some());
    }
}

#[test]
fn idoyo7_a_skipped_pod_carries_no_trace() {
    let pod = annotated("mutating.lxcfs-admission-webhook.io/enable", "false");
    assert_eq!(reason(&pod, |_| ()), Some(Reason::OptOut));
}

#[test]
fn idoyo7_one_clash_does_not_cost_the_whole_pod_its_view() {
    let pod = with(plain_pod(), |pod| {
        pod["spec"]["volumes"] = json!([{"name": "own", "emptyDir": {}}]);
        pod["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "own", "mountPath": "/proc/stat/"}]);
    });
    let (after, decision) = admit(&pod, &request(), &Config::default());
    let paths = mount_paths(&after, "containers", 0);
    assert_eq!(paths[0], "/proc/stat/");
    assert!(!paths[1..].contains(&"/proc/stat".to_owned()));
    assert_eq!(paths.len(), IN_SPEC.len());
    assert_eq!(annotation(&after, pod::SKIPPED), Some("app/stat=conflict"));
    assert_eq!(decision.warnings, ["lxcfs: app/stat left out (conflict)"]);
}

#[test]
fn denverdino_a_foreign_status_annotation_makes_no_broken_patch() {
    let pod = annotated("lxcfs-admission-webhook.aliyun.com/status", "pending");
    let (after, _) = admit(&pod, &request(), &Config::default());
    let status = annotation(&after, "lxcfs-admission-webhook.aliyun.com/status");
    assert_eq!(status, Some("pending"));
}

#[test]
fn denverdino_and_raids_the_requests_namespace_counts_not_the_objects() {
    let config = Config::default();
    let mut system = request();
    system.namespace = "kube-system";
    // Empty at creation from a template; and no way in by claiming another one.
    for metadata in [
        json!({"name": "p"}),
        json!({"name": "p", "namespace": "web"}),
    ] {
        let pod = with(plain_pod(), |pod| pod["metadata"] = metadata);
        let decision = mutate(&typed(&pod), &system, &config);
        assert_eq!(decision.skipped[0].reason, Reason::Namespace);
    }
    let pod = with(plain_pod(), |pod| {
        pod["metadata"]["namespace"] = "kube-system".into()
    });
    assert_eq!(
        mutate(&typed(&pod), &request(), &config).outcome,
        Outcome::Mounted
    );
}

#[test]
fn denverdino_duplicate_volume_names_cannot_refuse_the_pod() {
    let pod = with(plain_pod(), |pod| {
        pod["spec"]["volumes"] = json!([{"name": "lxcfs-meminfo", "emptyDir": {}}]);
    });
    let (after, _) = admit(&pod, &request(), &Config::default());
    assert_eq!(
        annotation(&after, pod::SKIPPED),
        Some("app/meminfo=volume-name")
    );
    assert_eq!(
        mount_paths(&after, "containers", 0).len(),
        IN_SPEC.len() - 1
    );
}

#[test]
fn cndoit18_the_users_lists_keep_their_order() {
    let volumes = json!([{"name": "z", "emptyDir": {}}, {"name": "a", "emptyDir": {}}]);
    let mounts = json!([{"name": "z", "mountPath": "/z"}, {"name": "a", "mountPath": "/a"}]);
    let pod = with(plain_pod(), |pod| {
        pod["spec"]["volumes"] = volumes.clone();
        pod["spec"]["containers"][0]["volumeMounts"] = mounts.clone();
    });
    let (after, _) = admit(&pod, &request(), &Config::default());
    assert_eq!(
        after["spec"]["volumes"].as_array().unwrap()[..2],
        *volumes.as_array().unwrap()
    );
    let after = after["spec"]["containers"][0]["volumeMounts"]
        .as_array()
        .unwrap();
    assert_eq!(after[..2], *mounts.as_array().unwrap());
}

#[test]
fn cndoit18_and_raids_pressure_files_never_reach_a_runc_spec() {
    let pod = annotated(pod::FILES, "pressure,vmstat,meminfo");
    let (after, _) = admit(&pod, &request(), &Config::default());
    assert_eq!(mount_paths(&after, "containers", 0), ["/proc/meminfo"]);
    assert_eq!(
        annotation(&after, pod::ATTACH),
        Some(format!("app={BY_AGENT}").as_str())
    );
    let crun = Config {
        runtime: Runtime::Crun,
        ..Config::default()
    };
    let (after, _) = admit(&pod, &request(), &crun);
    assert_eq!(mount_paths(&after, "containers", 0).len(), 6);
}

#[test]
fn files_the_daemons_do_not_serve_reach_no_pod_that_asks_for_them() {
    let pod = annotated(pod::FILES, "meminfo,stat,vmstat,pressure,cpu");
    let config = Config {
        disable: "stat,pressure,cpu".to_owned(),
        ..Config::default()
    };
    let (after, _) = admit(&pod, &request(), &config);
    assert_eq!(mount_paths(&after, "containers", 0), ["/proc/meminfo"]);
    assert_eq!(annotation(&after, pod::ATTACH), Some("app=vmstat"));
}

#[test]
fn all_of_them_init_containers_and_sidecars_are_containers_too() {
    let pod = with(plain_pod(), |pod| {
        pod["spec"]["initContainers"] = json!([
            {"name": "init", "image": "i"},
            {"name": "sidecar", "image": "s", "restartPolicy": "Always"},
        ]);
    });
    let (after, _) = admit(&pod, &request(), &Config::default());
    for index in [0, 1] {
        assert_eq!(mount_paths(&after, "initContainers", index), IN_SPEC);
    }
}

#[test]
fn all_of_them_own_pods_are_never_injected_whatever_selects_them() {
    let pod = with(annotated(pod::INJECT, "true"), |pod| {
        pod["metadata"]["labels"] = json!({pod::COMPONENT_LABEL: "agent"});
    });
    assert_eq!(reason(&pod, |_| ()), Some(Reason::OwnPod));
    let own = |config: &mut Config| config.excluded_namespaces = vec!["web".to_owned()];
    assert_eq!(reason(&plain_pod(), own), Some(Reason::Namespace));
}

// The rules.

#[test]
fn every_peers_opt_out_works_in_every_spelling() {
    for key in [
        "lxcfs-admission-webhook.aliyun.com/mutate",
        "lxcfs-admission-webhook.kubernetes.io/mutate",
        "lxcfs-admission-webhook.raids-lab.github.io/mutate",
        "mutating.lxcfs-admission-webhook.io/enable",
        "sidecar-injector.lxcfs/inject",
        pod::INJECT,
        pod::RUNTIME_OPT_IN,
    ] {
        for off in ["n", "no", "false", "off", "False", "OFF", "0"] {
            assert_eq!(
                reason(&annotated(key, off), |_| ()),
                Some(Reason::OptOut),
                "{key} {off}"
            );
        }
        assert_eq!(reason(&annotated(key, "yes"), |_| ()), None, "{key}");
    }
}

#[test]
fn without_a_labelled_namespace_only_pods_that_ask_are_in() {
    let mut asked = request();
    asked.selected_by = SelectedBy::Pod;
    let config = Config::default();
    let decision = mutate(&typed(&plain_pod()), &asked, &config);
    assert_eq!(decision.skipped[0].reason, Reason::NotAsked);
    let (_, decision) = admit(&pod_in("seed-annotation.yaml"), &asked, &config);
    assert_eq!(decision.outcome, Outcome::Mounted);
    let shy = annotated(pod::INJECT, "perhaps");
    let decision = mutate(&typed(&shy), &asked, &config);
    assert_eq!(decision.outcome, Outcome::Skipped);
}

#[test]
fn containers_and_files_are_chosen_one_by_one() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "annotations": {
            pod::CONTAINERS: "-proxy",
            pod::FILES: "meminfo,cpuinfo",
            pod::CONTAINER_FILES: "db=-cpuinfo,+uptime;app=default",
        }},
        "spec": {"containers": [
            {"name": "app", "image": "a"}, {"name": "proxy", "image": "p"}, {"name": "db", "image": "d"},
        ]},
    });
    let (after, decision) = admit(&pod, &request(), &Config::default());
    assert_eq!(
        mount_paths(&after, "containers", 0),
        ["/proc/cpuinfo", "/proc/meminfo"]
    );
    assert_eq!(mount_paths(&after, "containers", 1), Vec::<String>::new());
    assert_eq!(
        mount_paths(&after, "containers", 2),
        ["/proc/meminfo", "/proc/uptime"]
    );
    assert_eq!(after["spec"]["volumes"].as_array().unwrap().len(), 3);
    assert!(decision.warnings.is_empty());
}

#[test]
fn a_word_that_names_nothing_is_a_warning_and_nothing_else() {
    let pod = with(plain_pod(), |pod| {
        pod["metadata"]["annotations"] = json!({
            pod::FILES: "meminfo,memnifo", pod::CONTAINERS: "app,ap", pod::MODE: "magic",
            pod::INJECT: "perhaps",
        });
    });
    let (after, decision) = admit(&pod, &request(), &Config::default());
    assert_eq!(mount_paths(&after, "containers", 0), ["/proc/meminfo"]);
    assert_eq!(decision.warnings.len(), 4, "{:?}", decision.warnings);
}

#[test]
fn the_whole_cpu_tree_stands_for_the_files_below_it() {
    let pod = annotated(pod::FILES, "cpu,cpu/online,cpu/possible");
    let (after, _) = admit(&pod, &request(), &Config::default());
    assert_eq!(
        mount_paths(&after, "containers", 0),
        ["/sys/devices/system/cpu"]
    );
    let pod = annotated(pod::FILES, "cpu/online");
    let (after, _) = admit(&pod, &request(), &Config::default());
    assert_eq!(
        mount_paths(&after, "containers", 0),
        ["/sys/devices/system/cpu/online"]
    );
}

#[test]
fn a_namespace_that_forbids_host_paths_keeps_the_spec_and_names_the_reason() {
    let mut confined = request();
    confined.pod_security = PodSecurity::Confined;
    let (after, decision) = admit(&plain_pod(), &confined, &Config::default());
    assert_eq!(after["spec"], plain_pod()["spec"]);
    assert_eq!(decision.outcome, Outcome::Deferred);
    assert_eq!(annotation(&after, pod::SKIPPED), Some("pod=pod-security"));
    assert_eq!(annotation(&after, pod::MOUNTED), None);
    let attach = annotation(&after, pod::ATTACH).unwrap();
    assert_eq!(attach.split(',').count(), 14);
    assert_eq!(decision.warnings.len(), 1);
}

#[test]
fn user_namespace_pods_keep_their_spec_until_the_nodes_can_idmap() {
    let pod = with(plain_pod(), |pod| pod["spec"]["hostUsers"] = false.into());
    let (after, _) = admit(&pod, &request(), &Config::default());
    assert_eq!(after["spec"], pod["spec"]);
    assert_eq!(annotation(&after, pod::SKIPPED), Some("pod=host-users"));
    let idmap = Config {
        idmapped_mounts: true,
        ..Config::default()
    };
    let (after, _) = admit(&pod, &request(), &idmap);
    assert_eq!(mount_paths(&after, "containers", 0), IN_SPEC);
}

#[test]
fn attach_mode_writes_the_decision_only() {
    let attach = Config {
        mode: Mode::Attach,
        ..Config::default()
    };
    for (pod, config) in [
        (plain_pod(), attach),
        (annotated(pod::MODE, "attach"), Config::default()),
    ] {
        let (after, decision) = admit(&pod, &request(), &config);
        assert_eq!(after["spec"], pod["spec"]);
        assert_eq!(decision.outcome, Outcome::Deferred);
        assert_eq!(annotation(&after, pod::SKIPPED), None);
        assert!(decision.warnings.is_empty());
    }
}

#[test]
fn mirror_windows_and_sandboxed_pods_are_left_alone() {
    let mirror = annotated("kubernetes.io/config.mirror", "hash");
    assert_eq!(reason(&mirror, |_| ()), Some(Reason::MirrorPod));
    let windows = with(plain_pod(), |pod| {
        pod["spec"]["os"] = json!({"name": "windows"})
    });
    assert_eq!(reason(&windows, |_| ()), Some(Reason::OperatingSystem));
    let kata = with(plain_pod(), |pod| {
        pod["spec"]["runtimeClassName"] = "kata".into()
    });
    assert_eq!(reason(&kata, |_| ()), None);
    let exclude = |config: &mut Config| config.excluded_runtime_classes = vec!["kata".to_owned()];
    assert_eq!(reason(&kata, exclude), Some(Reason::RuntimeClass));
}

#[test]
fn a_mount_above_or_below_ours_is_the_users() {
    for (path, lost) in [
        ("/proc", 8),
        ("/sys", 1),
        ("/sys/devices/system/cpu/online", 1),
        ("/", 9),
    ] {
        let pod = with(plain_pod(), |pod| {
            pod["spec"]["volumes"] = json!([{"name": "own", "emptyDir": {}}]);
            pod["spec"]["containers"][0]["volumeMounts"] =
                json!([{"name": "own", "mountPath": path}]);
        });
        let (after, _) = admit(&pod, &request(), &Config::default());
        let ours = mount_paths(&after, "containers", 0).len() - 1;
        assert_eq!(ours, IN_SPEC.len() - lost, "{path}");
    }
    // Not a clash: the host's /proc elsewhere, and a name that merely begins alike.
    let pod = with(plain_pod(), |pod| {
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "own", "mountPath": "/host/proc"}, {"name": "own", "mountPath": "/proc2"}]);
    });
    let (after, _) = admit(&pod, &request(), &Config::default());
    assert_eq!(
        mount_paths(&after, "containers", 0).len(),
        IN_SPEC.len() + 2
    );
}

#[test]
fn reinvocation_after_another_webhook_covers_the_new_container_only() {
    let (once, _) = admit(&plain_pod(), &request(), &Config::default());
    let more = with(once, |pod| {
        let containers = pod["spec"]["containers"].as_array_mut().unwrap();
        containers.push(json!({"name": "proxy", "image": "p"}));
    });
    let (twice, decision) = admit(&more, &request(), &Config::default());
    assert_eq!(mount_paths(&twice, "containers", 0), IN_SPEC);
    assert_eq!(mount_paths(&twice, "containers", 1), IN_SPEC);
    assert_eq!(
        twice["spec"]["volumes"].as_array().unwrap().len(),
        IN_SPEC.len()
    );
    assert!(annotation(&twice, pod::ATTACH).unwrap().contains(";proxy="));
    assert_eq!(decision.outcome, Outcome::Mounted);
}

#[test]
fn ephemeral_containers_use_the_volumes_their_pod_has() {
    let (mut running, _) = admit(&plain_pod(), &request(), &Config::default());
    running["spec"]["ephemeralContainers"] =
        json!([{"name": "old", "image": "d"}, {"name": "debug", "image": "d"}]);
    let mut added = request();
    added.operation = Operation::AddEphemeral(vec!["old".to_owned()]);
    let (after, _) = admit(&running, &added, &Config::default());
    assert_eq!(mount_paths(&after, "ephemeralContainers", 1), IN_SPEC);
    assert_eq!(
        mount_paths(&after, "ephemeralContainers", 0),
        Vec::<String>::new()
    );
    assert_eq!(after["spec"]["volumes"], running["spec"]["volumes"]);
    assert_eq!(after["metadata"], running["metadata"]);
    // A pod that never had them: nothing can be added, nothing is broken.
    let bare = with(plain_pod(), |pod| {
        pod["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": "d"}]);
    });
    let (after, decision) = admit(&bare, &added, &Config::default());
    assert_eq!((after, decision.outcome), (bare, Outcome::Unchanged));
}

#[test]
fn other_operations_change_nothing() {
    let mut update = request();
    update.operation = Operation::Other;
    let decision = mutate(&typed(&plain_pod()), &update, &Config::default());
    assert_eq!(decision.skipped[0].reason, Reason::Operation);
}

#[test]
fn pods_that_mount_lxcfs_by_hand_are_recognised() {
    // Same mountpoint: its volumes are ours already, only what it never had is added.
    let pod = pod_in("seed-manual-volumes.yaml");
    let (after, decision) = admit(&pod, &request(), &Config::default());
    let before = mount_paths(&pod, "containers", 0);
    let paths = mount_paths(&after, "containers", 0);
    assert_eq!(paths[..before.len()], before);
    assert_eq!(paths[before.len()..], ["/proc/slabinfo".to_owned()]);
    assert_eq!(annotation(&after, pod::SKIPPED), Some("nginx/cpu=conflict"));
    assert_eq!(decision.outcome, Outcome::Mounted);
    // Another mountpoint: the user's own, left as they are.
    let pod = pod_in("seed-liveness-restart.yaml");
    let (after, _) = admit(&pod, &request(), &Config::default());
    assert_eq!(annotation(&after, pod::MOUNTED), Some("web=slabinfo"));
    assert!(
        annotation(&after, pod::SKIPPED)
            .unwrap()
            .contains("web/meminfo=conflict")
    );
}

#[test]
fn plain_workloads_of_the_seeds_get_their_view() {
    for file in ["seed-plain.yaml", "seed-web.yaml", "seed-annotation.yaml"] {
        let (after, _) = admit(&pod_in(file), &request(), &Config::default());
        assert_eq!(mount_paths(&after, "containers", 0), IN_SPEC, "{file}");
    }
}

#[test]
fn a_stale_or_forged_decision_is_replaced() {
    let pod = with(plain_pod(), |pod| {
        pod["metadata"]["annotations"] =
            json!({pod::ATTACH: "evil=meminfo", pod::SKIPPED: "x", pod::MOUNTED: "y"});
    });
    let (after, _) = admit(&pod, &request(), &Config::default());
    assert_eq!(
        annotation(&after, pod::ATTACH),
        Some(format!("app={BY_AGENT}").as_str())
    );
    assert_eq!(annotation(&after, pod::SKIPPED), None);
}
