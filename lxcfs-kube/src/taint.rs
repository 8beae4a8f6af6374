//! The optional start taint: a node that registers with it takes no ordinary pod before the
//! agent on it is ready. This removes the taint once the agent says so, and never sets one:
//! no node loses pods because of us.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tracing::{info, warn};

/// Longest wait for the agent's answer.
const ANSWER: Duration = Duration::from_secs(3);
/// Between attempts while the agent is not ready or the API server does not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// Whose taint, and when to remove it.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node.
    pub node: String,
    /// The taint's key; all its effects go.
    pub key: String,
    /// The agent's listener.
    pub agent: SocketAddr,
    /// Between looks at a node that has no such taint: one that registers anew gets it again.
    pub every: Duration,
}

/// The JSON patch that removes every taint with this key; `None` when there is none. Each
/// removal first tests what it removes: a list that changed meanwhile fails the whole patch.
pub fn removal(node: &Node, key: &str) -> Option<Vec<Value>> {
    let taints = node.spec.as_ref()?.taints.as_ref()?;
    let mut steps = Vec::new();
    // From the end, so that the places before stay what they are.
    for (at, taint) in taints.iter().enumerate().rev() {
        if taint.key == key {
            let path = format!("/spec/taints/{at}");
            steps.push(json!({"op": "test", "path": path, "value": taint}));
            steps.push(json!({"op": "remove", "path": path}));
        }
    }
    (!steps.is_empty()).then_some(steps)
}

/// Watches the agent and the node until the process ends.
pub async fn run(nodes: Api<Node>, options: Options) -> ! {
    let mut said = String::new();
    loop {
        let pause = match pass(&nodes, &options).await {
            Ok(removed) => {
                if removed {
                    info!(node = options.node, taint = options.key, "taint removed");
                }
                said.clear();
                options.every
            }
            Err(problem) => {
                // Once per problem and not once a second.
                if problem != said {
                    warn!(
                        node = options.node,
                        taint = options.key,
                        problem,
                        "taint stays"
                    );
                    said = problem;
                }
                AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// One look; `true` when a taint was removed.
///
/// # Errors
/// One line: the agent is not ready, or the API server refuses.
pub async fn pass(nodes: &Api<Node>, options: &Options) -> Result<bool, String> {
    let Options { node, key, .. } = options;
    ready(options.agent).await?;
    let refused = |action: &str, error: &kube::Error| {
        format!("cannot {action} node {node}: {}", crate::chain(error))
    };
    let found = nodes.get(node).await;
    let found = found.map_err(|error| refused("get", &error))?;
    let Some(steps) = removal(&found, key) else {
        return Ok(false);
    };
    let patch = serde_json::from_value(Value::Array(steps));
    let patch = patch.map_err(|error| format!("the patch is not one: {error}"))?;
    let patched = nodes
        .patch(node, &PatchParams::default(), &Patch::Json::<()>(patch))
        .await;
    patched.map_err(|error| refused("patch", &error))?;
    Ok(true)
}

/// Whether `/readyz` answers 200.
async fn ready(agent: SocketAddr) -> Result<(), String> {
    let ask = async {
        let mut stream = TcpStream::connect(agent).await?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = match tokio::time::timeout(ANSWER, ask).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(format!("the agent at {agent}: {error}")),
        Err(_) => return Err(format!("the agent at {agent} does not answer")),
    };
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(());
    }
    let why = answer.trim_end().lines().last().unwrap_or_default();
    Err(format!("the agent is not ready: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(taints: Value) -> Node {
        let node = json!({"metadata": {"name": "n"}, "spec": {"taints": taints}});
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn only_taints_with_the_key_go_and_the_others_stay_in_order() {
        let taints = json!([
            {"key": "a", "effect": "NoSchedule"},
            {"key": "lxcfs/not-ready", "effect": "NoSchedule"},
            {"key": "b", "effect": "NoExecute", "value": "v"},
            {"key": "lxcfs/not-ready", "effect": "NoExecute"},
        ]);
        let node = node(taints);
        let steps = removal(&node, "lxcfs/not-ready").unwrap();
        let patch: json_patch::Patch = serde_json::from_value(Value::Array(steps)).unwrap();
        let mut object = serde_json::to_value(&node).unwrap();
        json_patch::patch(&mut object, &patch).unwrap();
        let left: Vec<_> = object["spec"]["taints"]
            .as_array()
            .unwrap()
            .iter()
            .collect();
        assert_eq!(left.len(), 2);
        assert_eq!(
            (&left[0]["key"], &left[1]["key"]),
            (&"a".into(), &"b".into())
        );
        // Against a list that changed meanwhile, nothing is removed.
        let mut changed = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
        let before = changed.clone();
        assert!(json_patch::patch(&mut changed, &patch).is_err());
        assert_eq!(changed, before);
    }

    #[test]
    fn without_the_taint_nothing_is_asked_for() {
        assert_eq!(removal(&node(json!([])), "lxcfs/not-ready"), None);
        assert_eq!(removal(&Node::default(), "lxcfs/not-ready"), None);
        let other = node(json!([{"key": "lxcfs/not-ready-yet", "effect": "NoSchedule"}]));
        assert_eq!(removal(&other, "lxcfs/not-ready"), None);
    }
}
