//! Finding out what this machine allows, before anything is loaded.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::layout;
use super::plan::{Facts, V1Controllers};

/// `PROC_PID_INIT_INO` and `PROC_USER_INIT_INO`: the inodes of the initial namespaces.
const INITIAL_PID_NS: u64 = 0xEFFF_FFFC;
const INITIAL_USER_NS: u64 = 0xEFFF_FFFD;

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Gathers the facts. Whatever cannot be read counts as the less favourable answer.
pub(super) fn facts(disabled: bool, btf: &Path) -> Facts {
    Facts {
        disabled,
        kernel: kernel_version(),
        types: if disabled {
            Err("not read".to_owned())
        } else {
            kernel_types(btf)
        },
        host_pid_ns: inode("/proc/self/ns/pid") == Some(INITIAL_PID_NS),
        host_user_ns: inode("/proc/self/ns/user").is_none_or(|inode| inode == INITIAL_USER_NS),
        capable: capable(&read("/proc/self/status")),
        confidential: read("/sys/kernel/security/lockdown").contains("[confidentiality]"),
        cpus: possible_cpus(&read("/sys/devices/system/cpu/possible")),
        v1: v1_controllers(&read("/proc/cgroups")),
        v2_mounted: read("/proc/self/mountinfo").contains(" - cgroup2 "),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn inode(path: &str) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.ino())
}

fn kernel_types(path: &Path) -> Result<layout::KernelTypes, String> {
    let bytes =
        fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    layout::resolve(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}

fn kernel_version() -> (u32, u32) {
    let release = read("/proc/sys/kernel/osrelease");
    parse_version(&release).unwrap_or((0, 0))
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn capable(status: &str) -> bool {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let has = |capability: u32| effective >> capability & 1 == 1;
    has(CAP_SYS_ADMIN) || (has(CAP_BPF) && has(CAP_PERFMON))
}

/// Highest possible CPU number plus one; the list may have holes.
fn possible_cpus(list: &str) -> u32 {
    crate::cpuset::CpuSet::parse_list(list.trim())
        .ok()
        .and_then(|set| set.last())
        .map_or(1, |last| last.saturating_add(1))
}

/// Number of the v1 hierarchy that a controller is on.
pub(super) fn v1_hierarchy(controller: &str) -> Option<u32> {
    hierarchy_of(&read("/proc/cgroups"), controller).filter(|number| *number != 0)
}

/// Second column of the controller's line; 0 is v2.
fn hierarchy_of(cgroups: &str, controller: &str) -> Option<u32> {
    cgroups.lines().find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        (columns.next() == Some(controller)).then(|| columns.next()?.parse().ok())?
    })
}

fn v1_controllers(cgroups: &str) -> V1Controllers {
    let on_v1 = |name| hierarchy_of(cgroups, name).is_some_and(|number| number != 0);
    V1Controllers {
        cpu: on_v1("cpu"),
        cpuacct: on_v1("cpuacct"),
        memory: on_v1("memory"),
        pids: on_v1("pids"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text: String) {
            let _ = parse_version(&text);
            let _ = capable(&text);
            let _ = possible_cpus(&text);
        }

        #[test]
        fn a_version_is_read_whatever_follows(
            major: u32, minor: u32, rest in "([^0-9].*)?",
        ) {
            let release = format!("{major}.{minor}{rest}");
            prop_assert_eq!(parse_version(&release), Some((major, minor)));
        }
    }

    #[test]
    fn versions_of_distributions_parse() {
        assert_eq!(parse_version("6.18.44-fc-v657\n"), Some((6, 18)));
        assert_eq!(parse_version("5.10.0-32-cloud-amd64"), Some((5, 10)));
        assert_eq!(parse_version("7.3-rc7"), Some((7, 3)));
        assert_eq!(parse_version("linux"), None);
    }

    #[test]
    fn either_set_of_capabilities_will_do() {
        let status = |bits: u64| format!("Name:\tx\nCapEff:\t{bits:016x}\n");
        assert!(capable(&status(1 << CAP_SYS_ADMIN)));
        assert!(capable(&status(1 << CAP_BPF | 1 << CAP_PERFMON)));
        assert!(!capable(&status(1 << CAP_BPF)));
        assert!(!capable(""));
    }

    #[test]
    fn hierarchy_zero_is_v2() {
        let text = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t3\t1\t1\nmemory\t0\t9\t1\n";
        let expected = V1Controllers {
            cpu: true,
            ..Default::default()
        };
        assert_eq!(v1_controllers(text), expected);
    }

    #[test]
    fn possible_cpus_count_to_the_highest_number() {
        assert_eq!(possible_cpus("0-1\n"), 2);
        assert_eq!(possible_cpus("0,4-7\n"), 8);
        assert_eq!(possible_cpus(""), 1);
    }
}
