//! `lxcfs show FILE`: what a container reads, without a mount; `--explain` says why.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use lxcfs_holder::control::{Request, ask};

use super::args::ShowArgs;
use super::{file_name, file_settings};
use crate::collect::explain::{Explanation, Whom};
use crate::collect::live::LiveOptions;
use crate::config::{self, DEFAULT_RUNTIME_DIR, LogFormat, LogLevel, Settings};
use crate::daemon::parts::Parts;
use crate::observe::log;
use crate::policy::{CpuPolicy, Named as _};
use crate::snapshot::{Controller, Origin};

/// For the daemon to say how it counts a container's CPUs.
const DAEMON_DEADLINE: Duration = Duration::from_millis(500);

pub(super) fn show(args: &ShowArgs) -> Result<ExitCode> {
    let node = file_name::resolve(&args.file).map_err(anyhow::Error::msg)?;
    let settings = args.views.settings().over(file_settings(&args.config)?);
    log::start(LogLevel::Error, LogFormat::Human);
    let options = LiveOptions {
        policy: settings.views()?,
        ..LiveOptions::default()
    };
    let parts = Parts::new(&options)?;
    parts.load(!settings.no_ebpf.unwrap_or(false));
    let own = std::process::id();
    if args.cgroup.is_none() && args.views.cpus.is_none() {
        as_served(&parts, &settings, args.pid.unwrap_or(own));
    }
    let (whom, who) = match &args.cgroup {
        Some(path) => (Whom::Cgroup(path), format!("cgroup {path}")),
        None => {
            let pid = args.pid.unwrap_or(own);
            (Whom::Pid(pid), format!("process {pid}"))
        }
    };
    let found = parts
        .engine
        .explain(whom, node)
        .with_context(|| format!("cannot tell what {who} sees"))?;
    let mut stdout = std::io::stdout().lock();
    let written = if args.json {
        writeln!(stdout, "{}", json(&found))
    } else if args.explain {
        stdout.write_all(explained(&found, &args.file, &who).as_bytes())
    } else {
        stdout.write_all(&found.text)
    };
    match written {
        // `| head` has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        other => {
            other.context("cannot write to stdout")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Counts CPUs by the container's own rule, if the running daemon has been told one.
fn as_served(parts: &Parts, settings: &Settings, pid: u32) {
    let dir = settings.runtime_dir.as_deref();
    let socket = config::holder_socket(dir.unwrap_or_else(|| Path::new(DEFAULT_RUNTIME_DIR)));
    let request = Request::Command(format!("cpus {pid}"));
    // Without a daemon, or for a process of the host, there is no such rule.
    if let Ok(Ok(rule)) = ask(&socket, &request, DAEMON_DEADLINE)
        && let Some(cpus) = CpuPolicy::from_name(&rule)
    {
        let _ = parts.engine.set_cpus(pid, Some(cpus));
    }
}

/// Every line, its value, what decided it and by which rule.
fn explained(found: &Explanation, file: &str, who: &str) -> String {
    let mut out = format!("{file} for {who}\nwhose view: {}\n", found.rule);
    // Writing to a String cannot fail.
    for (controllers, path) in grouped(&found.cgroups) {
        let _ = writeln!(out, "  {controllers}: {path}");
    }
    if found.lines.is_empty() {
        out.push_str("the host's own text, byte for byte:\n");
        out.push_str(&String::from_utf8_lossy(&found.text));
        return out;
    }
    out.push('\n');
    let width = |pick: fn(&crate::view::ExplainLine) -> &str| {
        let widths = found.lines.iter().map(|line| pick(line).chars().count());
        widths.max().unwrap_or(0).min(40)
    };
    let (label, value) = (width(|line| &line.line), width(|line| &line.value));
    for line in &found.lines {
        let _ = writeln!(
            out,
            "{:<label$}  {:<value$}  {}; {}",
            line.line,
            line.value,
            origin(&line.origin, &found.cgroups),
            line.rule
        );
    }
    out
}

/// Paths with the controllers that have them, in the controllers' order.
fn grouped(cgroups: &[(Controller, String)]) -> Vec<(String, &str)> {
    let mut groups: Vec<(String, &str)> = Vec::new();
    for (controller, path) in cgroups {
        let name = match controller {
            Controller::Unified => "name",
            other => crate::cgroup::layout::v1_name(*other),
        };
        match groups.iter_mut().find(|(_, known)| known == path) {
            Some((names, _)) => {
                names.push(' ');
                names.push_str(name);
            }
            None => groups.push((name.to_owned(), path)),
        }
    }
    groups
}

/// Where a value came from, in words.
fn origin(origin: &Origin, cgroups: &[(Controller, String)]) -> String {
    match origin {
        Origin::Cgroup {
            controller,
            levels_up,
            file,
        } => {
            let path = cgroups
                .iter()
                .find(|(known, _)| known == controller)
                .map_or("?", |(_, path)| path.as_str());
            let place = match levels_up {
                0 => "own cgroup".to_owned(),
                1 => "parent".to_owned(),
                n => format!("{n} levels up"),
            };
            format!("{file} of {} ({place})", ancestor(path, *levels_up))
        }
        Origin::Host(file) => format!("host's {file}"),
        Origin::Bpf(program) => format!("eBPF program {program}"),
        Origin::Derived(rule) => format!("derived: {rule}"),
        Origin::Unavailable(why) => format!("not available: {why}"),
    }
}

/// `path` without its last `levels` names.
fn ancestor(path: &str, levels: u16) -> &str {
    let mut path = path;
    for _ in 0..levels {
        path = match path.rsplit_once('/') {
            Some((parent, _)) if !parent.is_empty() => parent,
            _ => return "/",
        };
    }
    path
}

fn json(found: &Explanation) -> serde_json::Value {
    let lines: Vec<_> = found
        .lines
        .iter()
        .map(|line| {
            serde_json::json!({
                "line": line.line,
                "value": line.value,
                "source": origin(&line.origin, &found.cgroups),
                "rule": line.rule,
            })
        })
        .collect();
    let cgroups: serde_json::Map<_, _> = grouped(&found.cgroups)
        .into_iter()
        .map(|(controllers, path)| (controllers, path.into()))
        .collect();
    serde_json::json!({
        "rule": found.rule,
        "cgroups": cgroups,
        "text": String::from_utf8_lossy(&found.text),
        "lines": lines,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::ExplainLine;

    fn sample() -> Explanation {
        let line = |line: &str, value: &str, origin| ExplainLine {
            line: line.to_owned(),
            value: value.to_owned(),
            origin,
            rule: "a rule",
        };
        Explanation {
            container: None,
            rule: "root of the caller's cgroup namespace".to_owned(),
            cgroups: vec![
                (Controller::Memory, "/pod/ab".to_owned()),
                (Controller::Cpu, "/pod/ab".to_owned()),
                (Controller::Io, "/".to_owned()),
            ],
            lines: vec![
                line(
                    "MemTotal",
                    "98304 kB",
                    Origin::Cgroup {
                        controller: Controller::Memory,
                        levels_up: 1,
                        file: "memory.max",
                    },
                ),
                line("DirectMap4k", "1 kB", Origin::Host("/proc/meminfo")),
            ],
            text: b"MemTotal: 98304 kB\n".to_vec(),
            snapshot: None,
        }
    }

    #[test]
    fn an_explanation_names_container_limit_ancestor_and_rule() {
        assert_eq!(
            explained(&sample(), "meminfo", "process 42"),
            "\
meminfo for process 42
whose view: root of the caller's cgroup namespace
  memory cpu: /pod/ab
  blkio: /

MemTotal     98304 kB  memory.max of /pod (parent); a rule
DirectMap4k  1 kB      host's /proc/meminfo; a rule
"
        );
    }

    #[test]
    fn ancestors_end_at_the_root() {
        assert_eq!(ancestor("/a/b/c", 0), "/a/b/c");
        assert_eq!(ancestor("/a/b/c", 2), "/a");
        assert_eq!(ancestor("/a/b/c", 3), "/");
        assert_eq!(ancestor("/", 5), "/");
    }

    #[test]
    fn json_has_text_and_lines() {
        let json = json(&sample());
        assert_eq!(json["lines"][0]["source"], "memory.max of /pod (parent)");
        assert_eq!(json["cgroups"]["memory cpu"], "/pod/ab");
    }
}
