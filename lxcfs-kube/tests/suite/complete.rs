//! Everything around the pods: who may reach them, who scrapes them, what drains may do, and
//! what their namespace allows. Asked of every overlay, by selectors and port names.

use lxcfs_common::pod::COMPONENT_LABEL;
use lxcfs_kube::manifests::{OVERLAYS, Options, Part};
use serde_json::{Value, json};

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    let kind = |object: &&Value| object["kind"] == kind;
    objects.iter().filter(kind).collect()
}

/// Whether a label selector's `matchLabels` are among these labels.
fn selects(selector: &Value, labels: &Value) -> bool {
    let wanted = selector["matchLabels"].as_object().unwrap();
    !wanted.is_empty() && wanted.iter().all(|(key, value)| labels[key] == *value)
}

#[test]
fn every_pod_has_its_network_policy_its_scrape_and_a_port_of_that_name() {
    for overlay in OVERLAYS {
        let parts = overlay.parts.iter().chain([&Part::Monitoring]);
        let objects: Vec<Value> = parts
            .flat_map(|part| part.objects(&Options::default()).unwrap())
            .collect();
        let pods: Vec<&Value> = objects
            .iter()
            .filter(|object| object["spec"]["template"]["spec"].is_object())
            .map(|object| &object["spec"]["template"])
            .collect();
        assert!(!pods.is_empty());
        for pod in pods {
            let labels = &pod["metadata"]["labels"];
            let policies = of_kind(&objects, "NetworkPolicy");
            let policies: Vec<_> = policies
                .into_iter()
                .filter(|policy| selects(&policy["spec"]["podSelector"], labels))
                .collect();
            assert_eq!(policies.len(), 1, "{}: {labels}", overlay.name);
            let monitors = of_kind(&objects, "PodMonitor");
            let monitors: Vec<_> = monitors
                .into_iter()
                .filter(|monitor| selects(&monitor["spec"]["selector"], labels))
                .collect();
            assert_eq!(monitors.len(), 1, "{}: {labels}", overlay.name);
            let scraped = &monitors[0]["spec"]["podMetricsEndpoints"][0]["port"];
            // Each container that serves is let in and scraped.
            let lists = ["initContainers", "containers"].into_iter();
            let containers =
                lists.flat_map(|list| pod["spec"][list].as_array().into_iter().flatten());
            for container in containers {
                let Some(ports) = container["ports"].as_array() else {
                    // The holder listens to nobody, and nobody is let in.
                    assert_eq!(labels[COMPONENT_LABEL], "daemon");
                    assert_eq!(policies[0]["spec"]["ingress"], json!([]));
                    continue;
                };
                let health = ports.iter().find(|port| port["name"] == *scraped).unwrap();
                let open = policies[0]["spec"]["ingress"][0]["ports"]
                    .as_array()
                    .unwrap();
                let number = &health["containerPort"];
                assert!(open.iter().any(|port| port["port"] == *number), "{number}");
            }
        }
    }
}

#[test]
fn a_drain_leaves_one_webhook_and_a_rollout_both() {
    for part in [Part::Webhook, Part::WebhookCertManager] {
        let objects = part.objects(&Options::default()).unwrap();
        let deployment = of_kind(&objects, "Deployment")[0];
        let budget = of_kind(&objects, "PodDisruptionBudget")[0];
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        assert!(selects(&budget["spec"]["selector"], labels));
        assert_eq!(budget["spec"]["maxUnavailable"], 1);
        assert_eq!(deployment["spec"]["replicas"], 2);
        assert_eq!(
            deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"],
            0
        );
    }
}

#[test]
fn the_namespace_allows_what_the_agent_is() {
    let objects = Part::Namespace.objects(&Options::default()).unwrap();
    let labels = &objects[0]["metadata"]["labels"];
    for mode in ["enforce", "audit", "warn"] {
        assert_eq!(
            labels[format!("pod-security.kubernetes.io/{mode}")],
            "privileged"
        );
    }
}
