//! Looks at the machine and the daemon. Nothing is started, mounted or written.

use std::path::{Path, PathBuf};

use super::super::args::{DoctorArgs, FileArgs};
use super::super::{file_settings, remote};
use super::{Diagnosis, Finding, State, containers};
use crate::cgroup::layout::{Layout, Version};
use crate::config::{DEFAULT_RUNTIME_DIR, Settings, control_socket};
use crate::host::{position, reader::HostReader};
use crate::mountinfo;
use crate::observe::client;
use crate::snapshot::Controller;

pub(super) fn gather(args: &DoctorArgs) -> Diagnosis {
    let (settings, settings_problem) = match file_settings(&FileArgs::default()) {
        Ok(settings) => (settings, None),
        Err(error) => (Settings::default(), Some(format!("{error:#}"))),
    };
    let mountpoint = args
        .mount
        .clone()
        .or(settings.mountpoint)
        .unwrap_or_else(|| PathBuf::from("/var/lib/lxcfs"));
    let runtime_dir = args.runtime.runtime_dir.clone().or(settings.runtime_dir);
    let runtime_dir = runtime_dir.unwrap_or_else(|| DEFAULT_RUNTIME_DIR.into());
    let mut daemon = Vec::new();
    if let Some(problem) = settings_problem {
        daemon.push(Finding::new("configuration", State::Broken, problem));
    }
    let status = status(&runtime_dir);
    daemon.push(running(&status, &runtime_dir));
    daemon.extend(mount(&mountpoint));
    let features = match &status {
        Ok(status) => features(status),
        Err(_) => Vec::new(),
    };
    let containers = containers::look(&mountpoint).unwrap_or_else(|problem| {
        daemon.push(
            Finding::new("containers", State::Weak, problem).remedy("run lxcfs doctor as root"),
        );
        Vec::new()
    });
    Diagnosis {
        version: env!("CARGO_PKG_VERSION"),
        machine: machine(),
        daemon,
        features,
        containers,
    }
}

fn machine() -> Vec<Finding> {
    let mut found = vec![kernel()];
    match HostReader::live() {
        Ok(host) => found.push(match position::own_namespaces(&host) {
            Ok(own) => match position::check(&own) {
                Ok(()) => Finding::new("namespaces", State::Ok, "the host's PID and cgroups"),
                // The error says what to do.
                Err(error) => Finding::new("namespaces", State::Broken, error.to_string()),
            },
            Err(error) => Finding::new("namespaces", State::Broken, error.to_string()),
        }),
        Err(error) => found.push(Finding::new("procfs", State::Broken, error.to_string())),
    }
    found.push(cgroups());
    found.push(fuse_device());
    found.extend(request_timeout());
    found.push(if Path::new("/proc/pressure/cpu").exists() {
        Finding::new("pressure", State::Ok, "PSI is on")
    } else {
        Finding::new(
            "pressure",
            State::Note,
            "this kernel has no PSI; containers get no /proc/pressure",
        )
        .remedy("boot with psi=1 where the kernel is built with CONFIG_PSI")
    });
    found.extend(views_of_the_kernel(Path::new("/proc/sys/kernel")));
    found
}

/// Switches below /proc/sys/kernel of kernels that show containers values of their own:
/// Alibaba Cloud Linux and TencentOS Server. Other kernels do not have them.
const OWN_VIEWS: [&str; 2] = ["rich_container_enable", "container_cpuquota_aware"];

fn views_of_the_kernel(sysctls: &Path) -> Option<Finding> {
    let is_on = |name: &str| {
        let value = std::fs::read_to_string(sysctls.join(name)).unwrap_or_default();
        value.trim().parse::<i64>().is_ok_and(|value| value != 0)
    };
    let name = OWN_VIEWS.into_iter().find(|name| is_on(name))?;
    let text = format!(
        "kernel.{name} is on: the kernel shows containers values of its own; files of lxcfs cover them"
    );
    let finding = Finding::new("kernel's views", State::Note, text);
    Some(finding.remedy(format!(
        "one of the two is enough: sysctl kernel.{name}=0, or do not inject"
    )))
}

fn kernel() -> Finding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|word| word.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (5, 10) {
        return Finding::new("kernel", State::Weak, release.to_owned())
            .remedy("5.10 is the oldest kernel this is tested on");
    }
    let gapless = if version >= (6, 5) {
        "healing leaves no gap"
    } else {
        "healing shows the host's file for a moment (gapless from 6.5 on)"
    };
    Finding::new("kernel", State::Note, format!("{release}; {gapless}"))
}

fn cgroups() -> Finding {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let controllers =
        |root: &Path| std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let layout = match Layout::detect(&text, controllers) {
        Ok(layout) => layout,
        Err(error) => return Finding::new("cgroups", State::Broken, error.to_string()),
    };
    let on = |wanted: Version| {
        let names = [
            (Controller::Memory, "memory"),
            (Controller::Cpu, "cpu"),
            (Controller::Cpuset, "cpuset"),
            (Controller::Io, "io"),
            (Controller::Hugetlb, "hugetlb"),
            (Controller::Pids, "pids"),
        ]
        .into_iter()
        .filter(|(controller, _)| {
            let hierarchy = layout.hierarchy_of(*controller);
            hierarchy.is_some_and(|hierarchy| hierarchy.version == wanted)
        })
        .map(|(_, name)| name);
        names.collect::<Vec<_>>().join(" ")
    };
    let parts: Vec<String> = [("v2", on(Version::V2)), ("v1", on(Version::V1))]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(version, names)| format!("{version}: {names}"))
        .collect();
    let text = format!("{} ({})", layout.name(), parts.join("; "));
    let missing = [Controller::Memory, Controller::Cpu]
        .iter()
        .any(|controller| layout.hierarchy_of(*controller).is_none());
    if missing {
        return Finding::new("cgroups", State::Weak, text).remedy(
            "no memory or cpu controller: limits cannot be seen; remove cgroup_disable= from \
             the kernel's command line, or enable them in cgroup.subtree_control",
        );
    }
    Finding::new("cgroups", State::Ok, text)
}

fn fuse_device() -> Finding {
    if Path::new("/dev/fuse").exists() {
        Finding::new("fuse", State::Ok, "/dev/fuse is there")
    } else {
        Finding::new("fuse", State::Broken, "/dev/fuse is missing")
            .remedy("modprobe fuse; in a container, pass the device")
    }
}

/// A limit that aborts the connection for good during an outage that we would survive.
fn request_timeout() -> Option<Finding> {
    let name = "fs.fuse.default_request_timeout";
    let path = "/proc/sys/fs/fuse/default_request_timeout";
    let seconds: u64 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    (seconds > 0).then(|| {
        Finding::new("fuse timeout", State::Weak, format!("{name} = {seconds}")).remedy(format!(
            "sysctl {name}=0: it would abort the mount when a restart takes longer"
        ))
    })
}

fn status(runtime_dir: &Path) -> Result<serde_json::Value, String> {
    let answer =
        client::get(&control_socket(runtime_dir), "/status").map_err(|error| {
            match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                    "not running".to_owned()
                }
                _ => error.to_string(),
            }
        })?;
    serde_json::from_str(&answer.body).map_err(|error| format!("unexpected answer: {error}"))
}

fn running(status: &Result<serde_json::Value, String>, runtime_dir: &Path) -> Finding {
    match status {
        Ok(status) => Finding::new("daemon", State::Ok, remote::one_line(status)),
        Err(problem) => Finding::new(
            "daemon",
            State::Broken,
            format!(
                "{problem} (asked {})",
                control_socket(runtime_dir).display()
            ),
        )
        .remedy("systemctl start lxcfs, or: lxcfs /var/lib/lxcfs"),
    }
}

fn mount(mountpoint: &Path) -> Option<Finding> {
    let text = std::fs::read("/proc/self/mountinfo").ok()?;
    let table = mountinfo::parse(&text).ok()?;
    let found = table.stack(mountpoint).layers.last().copied().cloned();
    let name = "mount";
    let Some(found) = found else {
        return Some(Finding::new(
            name,
            State::Broken,
            format!("nothing is mounted on {}", mountpoint.display()),
        ));
    };
    if found.fs_type != crate::attach::FS_TYPE {
        let text = format!("{} is a mount of {}", mountpoint.display(), found.fs_type);
        return Some(Finding::new(name, State::Broken, text));
    }
    Some(
        match remote::probe_mount(mountpoint, std::time::Duration::from_secs(2)) {
            Ok(()) => Finding::new(name, State::Ok, format!("{} answers", mountpoint.display())),
            Err(problem) => Finding::new(name, State::Broken, problem)
                .remedy("start lxcfs again: it replaces a dead mount of its own"),
        },
    )
}

/// The rows the daemon reported when it started.
fn features(status: &serde_json::Value) -> Vec<Finding> {
    let rows = status["features"].as_array().cloned().unwrap_or_default();
    let text =
        |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    rows.iter()
        .map(|row| {
            let on = row["on"].as_bool().unwrap_or(false);
            let (state, word) = if on {
                (State::Ok, "on")
            } else {
                (State::Weak, "off")
            };
            let mut what = format!("{word}: {}", text(row, "reason"));
            if !on && !text(row, "fallback").is_empty() {
                what = format!("{what}; {}", text(row, "fallback"));
            }
            Finding::new(&text(row, "name"), state, what).remedy(text(row, "remedy"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_with_views_of_its_own_is_told() {
        let sysctls = tempfile::tempdir().unwrap();
        assert!(views_of_the_kernel(sysctls.path()).is_none());
        for name in OWN_VIEWS {
            let file = sysctls.path().join(name);
            std::fs::write(&file, "0\n").unwrap();
            assert!(views_of_the_kernel(sysctls.path()).is_none());
            std::fs::write(&file, "1\n").unwrap();
            let finding = views_of_the_kernel(sysctls.path()).unwrap();
            assert!(finding.text.contains(name), "{}", finding.text);
            std::fs::write(&file, "0\n").unwrap();
        }
    }
}
