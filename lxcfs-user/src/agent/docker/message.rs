//! Owns dockerd's answers. Pure; unknown fields are ignored and missing ones empty.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A container that has started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its id.
    pub id: String,
}

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// Its id.
    pub id: String,
    /// Its name, without the slash dockerd puts before it.
    pub name: String,
    /// Its init, by the host's numbers.
    pub pid: u32,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    action: String,
    #[serde(default)]
    actor: Actor,
}

#[derive(Default, Deserialize)]
struct Actor {
    #[serde(default, rename = "ID")]
    id: String,
}

/// The container of a start event.
pub fn started(line: &[u8]) -> Option<Started> {
    let event: Event = serde_json::from_slice(line).ok()?;
    let start = event.r#type == "container" && event.action == "start";
    (start && !event.actor.id.is_empty()).then_some(Started { id: event.actor.id })
}

#[derive(Deserialize)]
struct Listed {
    #[serde(default, rename = "Id")]
    id: String,
}

/// The ids of a list of containers.
pub fn listed(text: &[u8]) -> Vec<String> {
    let list: Vec<Listed> = serde_json::from_slice(text).unwrap_or_default();
    list.into_iter().map(|listed| listed.id).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspect {
    #[serde(default)]
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    state: State,
    #[serde(default)]
    config: Config,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    #[serde(default)]
    running: bool,
    #[serde(default)]
    pid: u32,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    // dockerd writes null for no labels.
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

/// A running container; `None` when it does not run.
pub fn inspected(text: &[u8]) -> Option<Inspected> {
    let found: Inspect = serde_json::from_slice(text).ok()?;
    (found.state.running && found.state.pid != 0).then(|| Inspected {
        id: found.id,
        name: found.name.trim_start_matches('/').to_owned(),
        pid: found.state.pid,
        labels: found.config.labels.unwrap_or_default(),
    })
}

/// Cuts a stream into lines.
#[derive(Debug)]
pub struct Lines {
    pending: Vec<u8>,
    limit: usize,
}

impl Lines {
    /// Lines of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            pending: Vec::new(),
            limit,
        }
    }

    /// The lines that are whole now; `None` when one is too long.
    pub fn push(&mut self, bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
        self.pending.extend_from_slice(bytes);
        let mut whole = Vec::new();
        while let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
            let rest = self.pending.split_off(end + 1);
            let line = std::mem::replace(&mut self.pending, rest);
            whole.push(line);
        }
        (self.pending.len() <= self.limit).then_some(whole)
    }
}
