//! What holds in every recorded container, whatever its numbers are.

use std::collections::BTreeMap;

use lxcfs_tests::capture::{Capture, Case};
use lxcfs_user::policy::ViewPolicy;

use super::{captures, node};

/// Text of a file in a case.
fn text(capture: &Capture, case: &Case, path: &str) -> String {
    let shown = capture
        .open(case)
        .render(node(path), &ViewPolicy::default());
    shown.unwrap_or_else(|error| panic!("{}: {path}: {error}", case.name))
}

/// `Name: value` lines.
fn labelled(text: &str) -> BTreeMap<&str, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            Some((name, rest.split_whitespace().next()?.parse().ok()?))
        })
        .collect()
}

/// Runs `check` for every case of every machine.
fn everywhere(check: impl Fn(&str, &Capture, &Case)) {
    for (machine, _, capture) in captures() {
        for case in &capture.cases {
            check(&format!("{machine} {}", case.name), capture, case);
        }
    }
}

#[test]
fn meminfo_adds_up_as_the_kernels() {
    everywhere(|at, capture, case| {
        let shown = text(capture, case, "proc/meminfo");
        let host = capture.recorded("proc/meminfo").expect("meminfo");
        let host = String::from_utf8(host).expect("text");
        let (lines, host) = (labelled(&shown), labelled(&host));
        let value = |name: &str| *lines.get(name).unwrap_or_else(|| panic!("{at}: {name}"));
        assert!(lines.keys().eq(host.keys()), "{at}: the kernel's lines");
        for (sum, parts) in [
            ("Active", ["Active(anon)", "Active(file)"]),
            ("Inactive", ["Inactive(anon)", "Inactive(file)"]),
            ("Slab", ["SReclaimable", "SUnreclaim"]),
        ] {
            assert_eq!(value(sum), value(parts[0]) + value(parts[1]), "{at}: {sum}");
        }
        assert_eq!(value("KReclaimable"), value("SReclaimable"), "{at}");
        for (less, more) in [
            ("MemFree", "MemAvailable"),
            ("MemAvailable", "MemTotal"),
            ("SwapFree", "SwapTotal"),
            ("Shmem", "Cached"),
            ("HugePages_Free", "HugePages_Total"),
        ] {
            assert!(
                value(less) <= value(more),
                "{at}: {less} and {more}\n{shown}"
            );
        }
        for name in [
            "MemTotal",
            "MemFree",
            "MemAvailable",
            "SwapTotal",
            "SwapFree",
        ] {
            assert!(
                value(name) <= host[name],
                "{at}: {name} is more than the machine has"
            );
        }
    });
}

#[test]
fn swaps_says_what_meminfo_says() {
    everywhere(|at, capture, case| {
        let meminfo = text(capture, case, "proc/meminfo");
        let lines = labelled(&meminfo);
        let (total, free) = (lines["SwapTotal"], lines["SwapFree"]);
        let swaps = text(capture, case, "proc/swaps");
        let fields: Vec<&str> = swaps
            .lines()
            .skip(1)
            .flat_map(str::split_whitespace)
            .collect();
        if total == 0 {
            assert!(fields.is_empty(), "{at}: {swaps}");
        } else {
            let expected = [
                "none",
                "virtual",
                &total.to_string(),
                &(total - free).to_string(),
                "0",
            ];
            assert_eq!(fields, expected, "{at}");
        }
    });
}

#[test]
fn every_cpu_has_had_the_containers_age() {
    everywhere(|at, capture, case| {
        let uptime = text(capture, case, "proc/uptime");
        let seconds: Vec<f64> = uptime.split_whitespace().flat_map(str::parse).collect();
        let [age, idle] = seconds[..] else {
            panic!("{at}: {uptime}")
        };
        let online = text(capture, case, "sys/devices/system/cpu/online");
        let cpus = if online == "0\n" { 1 } else { 2 };
        assert!(cpus == 1 || online == "0-1\n", "{at}: {online}");
        // Both are rounded down by themselves.
        assert!(
            idle <= (age + 0.01) * f64::from(cpus) + 0.005,
            "{at}: {uptime}"
        );
        let stat = text(capture, case, "proc/stat");
        let lines = stat.lines().filter(|line| line.starts_with("cpu"));
        let sums: Vec<u64> = lines
            .map(|line| {
                line.split_whitespace()
                    .skip(1)
                    .flat_map(str::parse::<u64>)
                    .sum()
            })
            .collect();
        assert_eq!(sums.len(), 1 + cpus as usize, "{at}: {stat}");
        // Each of ten columns is rounded down by itself.
        let ticks = (age * 100.0) as u64;
        for sum in &sums[1..] {
            assert!(
                ticks.abs_diff(*sum) <= 10,
                "{at}: {age} s and {sum}:\n{stat}"
            );
        }
        let all: u64 = sums[1..].iter().sum();
        assert!(all.abs_diff(sums[0]) <= 10, "{at}:\n{stat}");
    });
}
