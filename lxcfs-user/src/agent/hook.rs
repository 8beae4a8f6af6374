//! Owns the OCI hook: `lxcfs hook` attaches to a container that podman or CRI-O creates,
//! after its namespaces exist and before its program runs; and the files that make them
//! call it.
//!
//! The stage is `createRuntime`: it runs on the host, with the container's mounts made and
//! its root not yet changed. The hook always succeeds: a container never fails to start
//! for want of a view.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use super::attacher::{Attacher, Job, Method};
use super::policy::{AgentPolicy, Decision, Subject};
use crate::attach::{AttachError, Report, Target};
use crate::mountinfo;

/// Largest state or bundle configuration that is read, in bytes.
const LIMIT: u64 = 4 << 20;

/// Why the hook did nothing.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The state on standard input cannot be read.
    #[error("container state on standard input: {0}")]
    State(#[source] std::io::Error),
    /// It is not the JSON of the OCI runtime specification.
    #[error("container state on standard input: {0}")]
    StateFormat(#[source] serde_json::Error),
    /// The state names no process: the hook is configured for a stage before creation.
    #[error(
        "the container state names no process (status {status:?}); use the stage createRuntime"
    )]
    NoProcess {
        /// The state's status.
        status: String,
    },
    /// The bundle's configuration cannot be read.
    #[error("{path}: {source}")]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// Attaching failed.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// The state a runtime hands to its hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct State {
    /// The container's id.
    #[serde(default)]
    pub id: String,
    /// `creating`, `created`, `running`, `stopped`.
    #[serde(default)]
    pub status: String,
    /// Its init, by the numbers of the runtime's PID namespace.
    #[serde(default)]
    pub pid: u32,
    /// Directory of its configuration.
    #[serde(default)]
    pub bundle: PathBuf,
    /// Annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    root: Root,
}

#[derive(Default, Deserialize)]
struct Root {
    #[serde(default)]
    path: PathBuf,
}

/// Parses the state.
///
/// # Errors
/// It is no JSON object, or names no process.
pub fn parse_state(text: &[u8]) -> Result<State, HookError> {
    let state: State = serde_json::from_slice(text).map_err(HookError::StateFormat)?;
    if state.pid == 0 {
        return Err(HookError::NoProcess {
            status: state.status,
        });
    }
    Ok(state)
}

/// The directory that will be the container's root, in the host's view, without symlinks.
fn root_of(bundle: &Path) -> Result<PathBuf, HookError> {
    let path = bundle.join("config.json");
    let fail = |source| HookError::Bundle {
        path: path.clone(),
        source,
    };
    let mut text = Vec::new();
    let file = std::fs::File::open(&path).map_err(fail)?;
    file.take(LIMIT).read_to_end(&mut text).map_err(fail)?;
    let config: Config = serde_json::from_slice(&text).map_err(|err| fail(err.into()))?;
    bundle.join(config.root.path).canonicalize().map_err(fail)
}

/// Where the container's root lies in the view of its process: `None` when the process
/// has already moved there.
fn pending_root(pid: u32, bundle: &Path) -> Result<Option<PathBuf>, HookError> {
    let path = PathBuf::from(format!("/proc/{pid}/mountinfo"));
    let text = std::fs::read(&path).map_err(|source| HookError::Bundle {
        path: path.clone(),
        source,
    })?;
    let table = mountinfo::parse(&text)
        .map_err(|source| AttachError::Mountinfo { pid, source })
        .map_err(HookError::Attach)?;
    let root = root_of(bundle)?;
    // Runtimes make the root a mount point before they change to it.
    let is_there = table.mounts().iter().any(|mount| mount.mount_point == root);
    Ok(is_there.then_some(root))
}

/// Decides and attaches for the container that `state` describes.
///
/// # Errors
/// Nothing could be attached; the caller reports it and lets the container start.
pub fn run(state: &State, policy: &AgentPolicy, attacher: &Attacher) -> Result<Report, HookError> {
    let subject = Subject {
        name: state
            .annotations
            .get("io.kubernetes.container.name")
            .cloned()
            .unwrap_or_default(),
        annotations: state.annotations.clone(),
        ..Subject::default()
    };
    let decision = policy.decide(&subject);
    let cpus = attacher.cpus_of(&subject);
    if let (Decision::Leave(reason), None) = (&decision, cpus) {
        attacher.skip(*reason);
        return Ok(Report::default());
    }
    let target = Target {
        root: pending_root(state.pid, &state.bundle)?,
        ..Target::process(state.pid)
    };
    Ok(attacher.carry_out(
        vec![Job {
            target,
            decision,
            cpus,
        }],
        Method::Hook,
    )?)
}

/// Reads the state from `input`.
///
/// # Errors
/// It cannot be read or parsed.
pub fn read_state(input: impl Read) -> Result<State, HookError> {
    let mut text = Vec::new();
    input
        .take(LIMIT)
        .read_to_end(&mut text)
        .map_err(HookError::State)?;
    parse_state(&text)
}

/// For whom the runtime shall call the hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// Every container that does not opt out.
    Always,
    /// Containers with one of the opt-in annotations.
    Asked,
}

/// The file for podman's and CRI-O's `hooks.d`, which makes them call `program hook`.
pub fn hooks_d(program: &Path, mountpoint: &Path, when: &When) -> String {
    let mut args = vec![
        "lxcfs".to_owned(),
        "hook".to_owned(),
        "--mount".to_owned(),
        mountpoint.to_string_lossy().into_owned(),
    ];
    let condition = match when {
        When::Always => {
            args.push("--all".to_owned());
            json!({ "always": true })
        }
        // Patterns; the hook itself reads the value, so that off stays off.
        When::Asked => json!({ "annotations": {
            "^(lxcfs/inject|io\\.kubernetes\\.container\\.lxcfsEnable|lxcfs/attach|.*lxcfs.*/(mutate|enable|inject))$": ".*"
        } }),
    };
    let file = json!({
        "version": "1.0.0",
        "hook": { "path": program, "args": args, "timeout": 5 },
        "when": condition,
        "stages": ["createRuntime"],
    });
    format!("{file:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_the_specification_is_read() {
        let text = br#"{"ociVersion":"1.0.2","id":"abc","status":"creating","pid":4422,
            "bundle":"/run/c","annotations":{"lxcfs/inject":"true"},"new":1}"#;
        let state = parse_state(text).unwrap();
        assert_eq!((state.id.as_str(), state.pid), ("abc", 4422));
        assert_eq!(state.annotations["lxcfs/inject"], "true");
    }

    #[test]
    fn a_state_without_a_process_names_the_right_stage() {
        let text = parse_state(br#"{"status":"stopped"}"#)
            .unwrap_err()
            .to_string();
        assert!(text.contains("createRuntime"), "{text}");
        assert!(matches!(
            read_state(&b"not json"[..]),
            Err(HookError::StateFormat(_))
        ));
        assert!(read_state(std::io::repeat(b'[')).is_err());
    }

    #[test]
    fn the_hook_file_calls_the_program_at_the_right_stage() {
        let text = hooks_d(
            Path::new("/usr/bin/lxcfs"),
            Path::new("/var/lib/lxcfs"),
            &When::Asked,
        );
        let file: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(file["version"], "1.0.0");
        assert_eq!(file["hook"]["path"], "/usr/bin/lxcfs");
        assert_eq!(file["hook"]["args"][0], "lxcfs");
        assert_eq!(file["hook"]["args"][1], "hook");
        assert_eq!(file["stages"], json!(["createRuntime"]));
        assert!(file["when"]["annotations"].is_object());
        let always = hooks_d(Path::new("/l"), Path::new("/m"), &When::Always);
        let file: serde_json::Value = serde_json::from_str(&always).unwrap();
        assert_eq!(file["when"], json!({"always": true}));
        assert_eq!(file["hook"]["args"][4], "--all");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = parse_state(&bytes);
        }
    }
}
