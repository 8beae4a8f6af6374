//! `lxcfs doctor`: what works on this machine, what does not, and what to do about it.
//!
//! [`gather`] looks (it starts and changes nothing), [`Diagnosis`] is what was found, and
//! its text is a pure function of it.

mod containers;
mod gather;

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::args::DoctorArgs;

/// How a finding is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    /// As it should be.
    Ok,
    /// A fact that is neither good nor bad.
    Note,
    /// Works, but less well than it could.
    Weak,
    /// Does not work.
    Broken,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    name: String,
    /// How it is.
    state: State,
    /// What was found.
    text: String,
    /// What to do; empty when nothing has to be done.
    remedy: String,
}

impl Finding {
    fn new(name: &str, state: State, text: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            state,
            text: text.into(),
            remedy: String::new(),
        }
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

/// One container and our mounts in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ContainerFinding {
    /// A process in it.
    pid: u32,
    /// Runtime and id, if its cgroup tells.
    container: Option<String>,
    /// Files that answer.
    alive: Vec<String>,
    /// Files whose daemon is gone.
    dead: Vec<String>,
    /// Files left alone, with the reason.
    skipped: Vec<(String, String)>,
    /// Why nothing is known about it.
    error: Option<String>,
}

impl ContainerFinding {
    fn state(&self) -> State {
        if !self.dead.is_empty() {
            State::Broken
        } else if self.error.is_some() {
            State::Weak
        } else if self.alive.is_empty() {
            State::Note
        } else {
            State::Ok
        }
    }
}

/// Everything found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Diagnosis {
    version: &'static str,
    machine: Vec<Finding>,
    daemon: Vec<Finding>,
    features: Vec<Finding>,
    containers: Vec<ContainerFinding>,
}

pub(super) fn doctor(args: &DoctorArgs) -> Result<ExitCode> {
    let diagnosis = gather::gather(args);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&diagnosis)?);
    } else {
        print!("{}", diagnosis.text());
    }
    Ok(if diagnosis.worst() == State::Broken {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

impl Diagnosis {
    fn findings(&self) -> impl Iterator<Item = &Finding> {
        [&self.machine, &self.daemon, &self.features]
            .into_iter()
            .flatten()
    }

    fn worst(&self) -> State {
        let findings = self.findings().map(|finding| finding.state);
        let containers = self.containers.iter().map(ContainerFinding::state);
        findings.chain(containers).max().unwrap_or(State::Ok)
    }

    /// For people.
    fn text(&self) -> String {
        let mut out = format!("lxcfs {}\n", self.version);
        for (title, findings) in [
            ("Machine", &self.machine),
            ("Daemon", &self.daemon),
            ("Features", &self.features),
        ] {
            if findings.is_empty() {
                continue;
            }
            // Writing to a String cannot fail.
            let _ = writeln!(out, "\n{title}");
            for finding in findings {
                let _ = writeln!(
                    out,
                    "  {} {:<22} {}",
                    mark(finding.state),
                    finding.name,
                    finding.text
                );
                if !finding.remedy.is_empty() {
                    let _ = writeln!(out, "    {:<22} -> {}", "", finding.remedy);
                }
            }
        }
        let _ = writeln!(out, "\nContainers");
        if self.containers.is_empty() {
            let _ = writeln!(out, "  none found");
        }
        for container in &self.containers {
            let name = container.container.as_deref().unwrap_or("no container id");
            let _ = writeln!(
                out,
                "  {} pid {:<18} {name}: {}",
                mark(container.state()),
                container.pid,
                container.sum()
            );
            for (file, reason) in &container.skipped {
                let _ = writeln!(out, "    {file}: {reason}");
            }
            if !container.dead.is_empty() {
                let _ = writeln!(out, "    dead: {}", container.dead.join(" "));
                let _ = writeln!(out, "    -> lxcfs heal --pid {}", container.pid);
            }
        }
        let _ = writeln!(out, "\n{}", self.verdict());
        out
    }

    fn verdict(&self) -> &'static str {
        match self.worst() {
            State::Ok | State::Note => "All is well.",
            State::Weak => "It works; what is marked ~ could be better.",
            State::Broken => "What is marked ! does not work.",
        }
    }
}

impl ContainerFinding {
    fn sum(&self) -> String {
        if let Some(error) = &self.error {
            return error.clone();
        }
        if self.alive.is_empty() && self.dead.is_empty() {
            return "sees the host (lxcfs attach gives it its own view)".to_owned();
        }
        let mut parts = vec![format!("{} files alive", self.alive.len())];
        if !self.dead.is_empty() {
            parts.push(format!("{} dead", self.dead.len()));
        }
        if !self.skipped.is_empty() {
            parts.push(format!("{} left alone", self.skipped.len()));
        }
        parts.join(", ")
    }
}

fn mark(state: State) -> char {
    match state {
        State::Ok => '+',
        State::Note => ' ',
        State::Weak => '~',
        State::Broken => '!',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_the_findings_and_their_remedies() {
        let diagnosis = Diagnosis {
            version: "1.2.3",
            machine: vec![
                Finding::new("kernel", State::Note, "6.1.0"),
                Finding::new("cgroups", State::Ok, "v2, every controller"),
            ],
            daemon: vec![
                Finding::new("daemon", State::Broken, "not running")
                    .remedy("systemctl start lxcfs"),
            ],
            features: vec![
                Finding::new("block_times", State::Weak, "off, no BTF")
                    .remedy("a kernel with CONFIG_DEBUG_INFO_BTF"),
            ],
            containers: vec![
                ContainerFinding {
                    pid: 42,
                    container: Some("docker 0123456789ab".to_owned()),
                    alive: vec!["/proc/stat".to_owned()],
                    dead: vec!["/proc/meminfo".to_owned()],
                    skipped: vec![("/proc/uptime".to_owned(), "its own tmpfs".to_owned())],
                    error: None,
                },
                ContainerFinding {
                    pid: 43,
                    container: None,
                    alive: Vec::new(),
                    dead: Vec::new(),
                    skipped: Vec::new(),
                    error: None,
                },
            ],
        };
        assert_eq!(
            diagnosis.text(),
            "\
lxcfs 1.2.3

Machine
    kernel                 6.1.0
  + cgroups                v2, every controller

Daemon
  ! daemon                 not running
                           -> systemctl start lxcfs

Features
  ~ block_times            off, no BTF
                           -> a kernel with CONFIG_DEBUG_INFO_BTF

Containers
  ! pid 42                 docker 0123456789ab: 1 files alive, 1 dead, 1 left alone
    /proc/uptime: its own tmpfs
    dead: /proc/meminfo
    -> lxcfs heal --pid 42
    pid 43                 no container id: sees the host (lxcfs attach gives it its own view)

What is marked ! does not work.
"
        );
    }

    #[test]
    fn json_has_the_same_findings() {
        let diagnosis = Diagnosis {
            version: "1.2.3",
            machine: vec![Finding::new("kernel", State::Weak, "old").remedy("a newer one")],
            daemon: Vec::new(),
            features: Vec::new(),
            containers: Vec::new(),
        };
        let json = serde_json::to_value(&diagnosis).unwrap();
        assert_eq!(json["machine"][0]["state"], "weak");
        assert_eq!(json["machine"][0]["remedy"], "a newer one");
    }
}
