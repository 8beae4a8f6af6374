//! Whole files, byte for byte, for containers recorded on real kernels.
//!
//! `tests/captures/README.md` says how to record, and how to renew what is expected here
//! after a change that is meant: `LXCFS_BLESS=1 cargo test -p lxcfs-tests --test native_golden`,
//! then read the difference.

mod identities;
mod matrix;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lxcfs_common::catalogue::{
    CATALOGUE, CPU_TEMPLATE, Kind, NODE_TEMPLATE, Node, TemplateKind, by_path,
};
use lxcfs_tests::capture::{Capture, Case, Recording};
use lxcfs_user::engine::AnswerError;
use lxcfs_user::policy::ViewPolicy;
use lxcfs_user::snapshot::Origin;

/// Every recorded machine with its name and directory, unpacked once for all tests.
fn captures() -> &'static [(String, PathBuf, Capture)] {
    static CAPTURES: OnceLock<Vec<(String, PathBuf, Capture)>> = OnceLock::new();
    CAPTURES.get_or_init(|| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures");
        let entries = fs::read_dir(&directory).expect("tests/captures");
        let mut found: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.join("tree").is_file())
            .map(|path| {
                let name = path.file_name().unwrap_or_default();
                let root = Path::new(env!("CARGO_TARGET_TMPDIR"))
                    .join("captures")
                    .join(name);
                let capture = Capture::load(&path.join("tree"), &root);
                (name.to_string_lossy().into_owned(), path, capture)
            })
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    })
}

fn node(path: &str) -> Node {
    Node::Fixed(by_path(path).expect("a path of the catalogue"))
}

/// What `--memory-high` chooses.
fn with_high() -> ViewPolicy {
    ViewPolicy {
        memory_high: true,
        ..ViewPolicy::default()
    }
}

/// Every file of the mount, each with its path. What repeats the machine, or other files, is
/// there for two cases only: with all CPUs and with one.
fn files(case: &Case) -> Vec<(String, Node)> {
    let whole = ["plain", "cpuset"].contains(&&*case.name);
    let fixed = CATALOGUE.iter().filter(|entry| entry.kind != Kind::Dir);
    let mut files: Vec<_> = fixed
        .filter(|entry| whole || entry.path != "proc/cpuinfo")
        .map(|entry| (entry.path.to_owned(), Node::Fixed(entry)))
        .collect();
    // A CPU that the container does not have is not available, which shows as well.
    for cpu in (0..2).filter(|_| whole) {
        let entries = CPU_TEMPLATE.iter().enumerate();
        files.extend(
            entries
                .filter(|(_, entry)| entry.kind != TemplateKind::Dir)
                .map(|(at, entry)| {
                    let path = format!("sys/devices/system/cpu/cpu{cpu}/{}", entry.path);
                    (path, Node::Cpu(cpu, at))
                }),
        );
    }
    let entries = NODE_TEMPLATE.iter().enumerate().filter(|_| whole);
    files.extend(
        entries
            .filter(|(_, entry)| entry.kind != TemplateKind::Dir)
            .map(|(at, entry)| {
                let path = format!("sys/devices/system/node/node0/{}", entry.path);
                (path, Node::Numa(0, at))
            }),
    );
    files
}

fn rendered(recording: &Recording, case: &Case) -> String {
    let mut text = String::new();
    for (path, node) in files(case) {
        let shown = recording.render(node, &ViewPolicy::default());
        let shown = shown.unwrap_or_else(|error| format!("({error})\n"));
        // Writing to a String cannot fail.
        let _ = write!(text, "==> /{path} <==\n{shown}");
    }
    if case.name == "high" {
        let shown = recording.render(node("proc/meminfo"), &with_high());
        let shown = shown.unwrap_or_else(|error| format!("({error})\n"));
        let _ = write!(text, "==> /proc/meminfo with --memory-high <==\n{shown}");
    }
    let _ = writeln!(text, "==> what decided <==");
    for (path, lines) in [
        (
            "proc/meminfo",
            &[
                "MemTotal",
                "MemFree",
                "Cached",
                "KernelStack",
                "SwapTotal",
                "SwapFree",
            ][..],
        ),
        ("proc/stat", &["cpu", "cpu0"][..]),
        ("proc/uptime", &[""][..]),
        ("proc/diskstats", &[""][..]),
    ] {
        let explained = recording.explain(node(path), &ViewPolicy::default());
        for line in explained.expect(path) {
            if lines.contains(&line.line.as_str()) {
                let origin = origin(&line.origin);
                let _ = writeln!(text, "{path} {}: {origin}: {}", line.line, line.rule);
            }
        }
    }
    text
}

fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Cgroup {
            file, levels_up, ..
        } => format!("{file}, {levels_up} up"),
        Origin::Host(file) => format!("host's {file}"),
        Origin::Bpf(program) => format!("eBPF {program}"),
        Origin::Derived(rule) => format!("from {rule}"),
        Origin::Unavailable(reason) => format!("unavailable, {reason}"),
    }
}

#[test]
fn every_recorded_container_sees_exactly_what_is_expected() {
    let bless = std::env::var_os("LXCFS_BLESS").is_some();
    let mut different = Vec::new();
    for (_, directory, capture) in captures() {
        for case in &capture.cases {
            let shown = rendered(&capture.open(case), case);
            let path = directory.join(format!("{}.expect", case.name));
            if bless {
                fs::write(&path, &shown).expect("a writable source tree");
                continue;
            }
            let expected = fs::read_to_string(&path).unwrap_or_default();
            let first = expected
                .lines()
                .zip(shown.lines())
                .find(|(expected, shown)| expected != shown);
            if expected != shown {
                different.push(format!("{}: first difference {first:?}", path.display()));
            }
        }
    }
    assert!(
        different.is_empty(),
        "{}\nif this is meant: LXCFS_BLESS=1 cargo test -p lxcfs-tests --test native_golden",
        different.join("\n")
    );
}

/// Value of a line of one file, of every capture that has the case.
fn values(case: &str, path: &str, label: &str) -> Vec<(String, u64)> {
    values_with(&ViewPolicy::default(), case, path, label)
}

fn values_with(policy: &ViewPolicy, case: &str, path: &str, label: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for (machine, _, capture) in captures() {
        let Some(case) = capture.cases.iter().find(|known| known.name == case) else {
            continue;
        };
        let text = capture.open(case).render(node(path), policy).expect(path);
        let line = text.lines().find_map(|line| line.strip_prefix(label));
        let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        let value = value.unwrap_or_else(|| panic!("{machine}: no {label} in\n{text}"));
        found.push((machine.clone(), value));
    }
    assert!(!found.is_empty(), "no capture has the case {case}");
    found
}

#[test]
fn a_process_of_the_host_reads_what_the_kernel_wrote() {
    for (machine, _, capture) in captures() {
        let mut same = 0;
        for entry in CATALOGUE {
            let Kind::File(_) = entry.kind else { continue };
            let shown = capture.host(Node::Fixed(entry));
            match (shown, capture.recorded(entry.path)) {
                (Ok(shown), Some(recorded)) => {
                    assert!(shown == recorded, "{machine}: {}", entry.path);
                    same += 1;
                }
                (Err(AnswerError::Absent(_)), None) => {}
                (shown, _) => panic!("{machine}: {}: {shown:?}", entry.path),
            }
        }
        assert!(same >= 18, "{machine}: only {same} files");
    }
}

#[test]
fn memory_high_is_a_limit_for_whoever_asks_for_that_f12() {
    for (capture, total) in values("high", "proc/meminfo", "MemTotal:") {
        assert_eq!(total, 256 * 1024, "{capture}");
    }
    for (capture, total) in values_with(&with_high(), "high", "proc/meminfo", "MemTotal:") {
        assert_eq!(total, 96 * 1024, "{capture}");
    }
}

#[test]
fn huge_pages_are_those_the_container_may_have_f9() {
    for (label, expected) in [
        ("HugePages_Total:", 4),
        ("HugePages_Free:", 2),
        ("Hugetlb:", 8 * 1024),
    ] {
        for (capture, value) in values("hugetlb", "proc/meminfo", label) {
            assert_eq!(value, expected, "{capture}: {label}");
        }
    }
}

#[test]
fn the_limit_of_an_ancestor_is_the_memory_of_a_nested_container_f14() {
    for (capture, total) in values("nested", "proc/meminfo", "MemTotal:") {
        assert_eq!(total, 200 * 1024, "{capture}");
    }
}

#[test]
fn what_a_sibling_uses_of_the_pods_limit_is_not_free_f14() {
    for (capture, free) in values("pod", "proc/meminfo", "MemFree:") {
        // 200 MiB, of which the sibling has 64 and both have an interpreter.
        assert!((80 * 1024..136 * 1024).contains(&free), "{capture}: {free}");
    }
}

#[test]
fn memory_not_enabled_in_the_leaf_is_the_ancestors_f11() {
    for (capture, total) in values("not-enabled", "proc/meminfo", "MemTotal:") {
        assert_eq!(total, 128 * 1024, "{capture}");
    }
}

#[test]
fn a_cpuset_narrower_than_asked_for_shows_one_cpu_f10() {
    for path in ["proc/stat", "sys/devices/system/cpu/kernel_max"] {
        let label = if path == "proc/stat" { "cpu0 " } else { "" };
        assert!(!values("cpuset", path, label).is_empty());
    }
    for (capture, last) in values("cpuset", "sys/devices/system/cpu/kernel_max", "") {
        assert_eq!(last, 0, "{capture}");
    }
}

#[test]
fn mlocked_shmem_wraps_nothing_f8() {
    for (capture, anon) in values("mlocked", "proc/meminfo", "AnonPages:") {
        assert!(anon < 40 * 1024, "{capture}: {anon}");
    }
    // The kernel's counters are exact to a batch of pages per CPU.
    for (capture, shmem) in values("mlocked", "proc/meminfo", "Shmem:") {
        assert!(shmem >= 39 * 1024, "{capture}: {shmem}");
    }
}

#[test]
fn a_swap_limit_lowered_below_use_shows_no_free_swap_f8() {
    for (capture, free) in values("swap-lowered", "proc/meminfo", "SwapFree:") {
        assert_eq!(free, 0, "{capture}");
    }
    for (capture, total) in values("swap-off", "proc/meminfo", "SwapTotal:") {
        assert_eq!(total, 0, "{capture}");
    }
}

#[test]
fn v1_swap_is_the_memsw_limit_less_the_memory_limit() {
    for (capture, total) in values("memsw", "proc/meminfo", "SwapTotal:") {
        assert_eq!(total, 100 * 1024, "{capture}");
    }
    for (capture, free) in values("memsw", "proc/meminfo", "SwapFree:") {
        assert!(free < 70 * 1024, "{capture}: {free}");
    }
}

#[test]
fn stat_has_all_the_time_the_kernel_charged_f1() {
    for (machine, directory, capture) in captures() {
        let record = fs::read_to_string(directory.join("tree")).expect("a record");
        let section = |file: &str| {
            let start = record.split_once(&format!("/lxcfs-capture/plain/{file} <==\n"));
            start.and_then(|(_, rest)| rest.split("==>").next())
        };
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let v1 = section("cpuacct.usage").and_then(number);
        let v2 = || {
            let line = section("cpu.stat")?
                .lines()
                .find(|l| l.starts_with("usage_usec"))?;
            Some(number(line.strip_prefix("usage_usec")?)? * 1000)
        };
        let charged = v1.or_else(v2).expect("the record has the time used");
        let case = capture.cases.iter().find(|case| case.name == "plain");
        let recording = capture.open(case.expect("every capture has the case plain"));
        let text = recording.render(node("proc/stat"), &ViewPolicy::default());
        let text = text.expect("/proc/stat");
        let total = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("cpu "));
        let ticks = total.expect("a line for all CPUs").split_whitespace();
        let used: u64 = ticks.take(3).flat_map(str::parse::<u64>).sum();
        // Each of three columns is rounded down by itself.
        let expected = charged / 10_000_000;
        assert!(
            used <= expected && expected <= used + 3,
            "{used} {expected} {text}"
        );
        assert!(expected > 50, "{machine}: the workload was to burn");
    }
}
