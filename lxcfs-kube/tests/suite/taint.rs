//! The start taint: the program beside the agent, and what the manifests give it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lxcfs_common::pod;
use lxcfs_kube::manifests::{Options, Part};
use serde_json::{Value, json};

use crate::api::Api;
use crate::process::wait;

const NODE: &str = "/api/v1/nodes/worker-1";

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An agent's listener that is ready when told to be.
fn agent(ready: &Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, ready) = (listener.local_addr().unwrap(), Arc::clone(ready));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let status = if ready.load(Ordering::Relaxed) {
                "200 OK"
            } else {
                "503 Service Unavailable"
            };
            let _ = write!(stream, "HTTP/1.1 {status}\r\n\r\nbecause\n");
        }
    });
    address
}

fn taints(api: &Api) -> Vec<Value> {
    let node = api.get(NODE).unwrap();
    node["spec"]["taints"].as_array().unwrap().clone()
}

#[test]
fn the_taint_goes_when_the_agent_is_ready_and_again_when_the_node_comes_back() {
    let (api, directory) = (Api::start(), tempfile::tempdir().unwrap());
    let tainted = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker-1"},
        "spec": {"taints": [
            {"key": pod::START_TAINT, "effect": "NoSchedule"},
            {"key": "dedicated", "value": "db", "effect": "NoSchedule"},
        ]},
    });
    api.put(NODE, tainted.clone());
    let ready = Arc::new(AtomicBool::new(false));
    let program = Command::new(env!("CARGO_BIN_EXE_lxcfs-webhook"))
        .args(["start-taint", "--check-seconds=1"])
        .arg(format!("--agent={}", agent(&ready)))
        .env("NODE_NAME", "worker-1")
        .env("KUBECONFIG", api.kubeconfig(directory.path()))
        .stderr(Stdio::null())
        .spawn();
    let mut program = Running(program.unwrap());
    // Twice asked and not ready: nothing was even read.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!((taints(&api).len(), api.log().len()), (2, 0));
    ready.store(true, Ordering::Relaxed);
    wait("the taint to go", || taints(&api).len() == 1);
    assert_eq!(taints(&api)[0]["key"], "dedicated");
    // The node registers anew.
    api.put(NODE, tainted);
    wait("the taint to go again", || taints(&api).len() == 1);
    // It never sets one: an agent that is lost costs a node nothing.
    ready.store(false, Ordering::Relaxed);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(taints(&api).len(), 1);
    for request in api.log() {
        let known = [format!("GET {NODE}"), format!("PATCH {NODE}")];
        assert!(known.contains(&request), "{request}");
    }
    assert!(program.0.try_wait().unwrap().is_none());
}

#[test]
fn one_container_has_the_token_and_only_where_it_was_asked_for() {
    let asked = Options {
        start_taint: true,
        ..Options::default()
    };
    for part in [Part::AgentSimple, Part::AgentLeastPrivilege] {
        let plain = part.objects(&Options::default()).unwrap();
        assert!(!plain.iter().any(|object| object["kind"] == "ClusterRole"));
        let objects = part.objects(&asked).unwrap();
        let find = |kind: &str| {
            let mut found = objects.iter().filter(|object| object["kind"] == kind);
            found
                .find(|object| {
                    let name = &object["metadata"]["name"];
                    name != "lxcfs-daemon" && name != "lxcfs-server"
                })
                .unwrap()
        };
        assert_eq!(
            find("ClusterRole")["rules"],
            json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]}])
        );
        assert_eq!(
            find("ClusterRoleBinding")["subjects"][0]["name"],
            "lxcfs-agent"
        );
        assert_eq!(
            find("NetworkPolicy")["spec"]["policyTypes"],
            json!(["Ingress"])
        );
        let pod = &find("DaemonSet")["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        let containers = pod["containers"].as_array().unwrap().iter();
        let containers = containers.chain(pod["initContainers"].as_array().into_iter().flatten());
        for container in containers {
            let has_token = container["volumeMounts"]
                .to_string()
                .contains("serviceaccount");
            assert_eq!(has_token, container["name"] == "start-taint");
            if has_token {
                let security = &container["securityContext"];
                assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
                assert_eq!(security["runAsNonRoot"], true);
            }
        }
        assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    }
}
