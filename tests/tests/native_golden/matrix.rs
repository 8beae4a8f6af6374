//! What has to be recorded: every kernel with every cgroup layout in every case, and why not
//! where that is impossible.

use std::collections::BTreeSet;

use super::captures;

const KERNELS: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7"];
const LAYOUTS: [&str; 3] = ["v1", "hybrid", "v2"];

/// Whose files limit memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    V1,
    V2,
}

/// `KERNEL-LAYOUT`, the directory in `tests/captures`; whose memory controller; whether the
/// machine had swap and handed huge pages on to cgroups.
const MACHINES: [(&str, Memory, bool); 14] = [
    ("5.10-v1", Memory::V1, true),
    ("5.10-hybrid", Memory::V1, true),
    ("5.10-v2", Memory::V2, true),
    ("6.1-v1", Memory::V1, true),
    ("6.1-hybrid", Memory::V1, true),
    ("6.1-v2", Memory::V2, true),
    // Debian builds kernels from 6.11 on without the memory and cpuset controllers of v1.
    ("6.12-hybrid", Memory::V2, true),
    ("6.12-v2", Memory::V2, true),
    // Built with them, by others.
    ("6.18-v1", Memory::V1, false),
    ("6.18-hybrid", Memory::V2, true),
    ("6.18-v2", Memory::V2, true),
    ("7-hybrid", Memory::V2, true),
    ("7-v2", Memory::V2, true),
    // The machine of 6.18-v1, with v2 beside v1 and cpu apart from cpuacct.
    ("6.18-split", Memory::V1, false),
];

/// What cannot be, and why.
const IMPOSSIBLE: [(&str, &str); 2] = [
    (
        "6.12-v1",
        "Debian's 6.12 limits neither memory nor CPUs by cpuset on v1",
    ),
    ("7-v1", "nor does its 7"),
];

/// Where a case can be.
#[derive(Clone, Copy, Debug)]
enum Where {
    Everywhere,
    /// On machines with swap and huge pages.
    Extras,
    ExtrasOnV1,
    MemoryOnV2,
}

/// The cases of `record.py`. The host is a case of every machine: process 1.
const CASES: [(&str, Where); 13] = [
    ("plain", Where::Everywhere),
    ("unlimited", Where::Everywhere),
    ("nested", Where::Everywhere),
    ("pod", Where::Everywhere),
    ("mlocked", Where::Everywhere),
    ("frozen", Where::Everywhere),
    ("cpuset", Where::Everywhere),
    ("not-enabled", Where::Everywhere),
    ("hugetlb", Where::Extras),
    ("swap-off", Where::Extras),
    ("swap-lowered", Where::Extras),
    // v2 limits swap by itself, which swap-lowered has.
    ("memsw", Where::ExtrasOnV1),
    // v1 has no memory.high; its soft limit limits nothing.
    ("high", Where::MemoryOnV2),
];

#[test]
fn every_kernel_is_recorded_in_every_layout_and_every_case() {
    for kernel in KERNELS {
        for layout in LAYOUTS {
            let name = format!("{kernel}-{layout}");
            let recorded = MACHINES.iter().any(|(machine, ..)| *machine == name);
            let why_not = IMPOSSIBLE.iter().find(|(machine, _)| *machine == name);
            assert!(recorded != why_not.is_some(), "{name}: {why_not:?}");
        }
    }
    let recorded: BTreeSet<&str> = captures().iter().map(|(name, ..)| &**name).collect();
    let wanted: BTreeSet<&str> = MACHINES.iter().map(|(name, ..)| *name).collect();
    assert_eq!(
        recorded, wanted,
        "tests/captures/README.md says how to record"
    );
}

#[test]
fn every_record_is_of_the_machine_and_the_cases_it_stands_for() {
    for (name, _, capture) in captures() {
        let row = MACHINES.iter().find(|(machine, ..)| machine == name);
        let (_, memory, extras) = *row.unwrap_or_else(|| panic!("{name} is not in the table"));
        let (kernel, layout) = name.split_once('-').expect("KERNEL-LAYOUT");
        let release = capture.release();
        assert!(
            release.starts_with(&format!("{kernel}.")),
            "{name}: {release}"
        );
        let mounted = match capture.hierarchies() {
            (true, false) => "v1",
            (false, true) => "v2",
            _ => "hybrid",
        };
        assert_eq!(mounted, layout.replace("split", "hybrid"), "{name}");
        let cases: BTreeSet<&str> = capture.cases.iter().map(|case| &*case.name).collect();
        let there = |place: Where| match place {
            Where::Everywhere => true,
            Where::Extras => extras,
            Where::ExtrasOnV1 => extras && memory == Memory::V1,
            Where::MemoryOnV2 => memory == Memory::V2,
        };
        let wanted = CASES.iter().filter(|(_, place)| there(*place));
        let wanted: BTreeSet<&str> = wanted.map(|(case, _)| *case).collect();
        assert_eq!(
            cases, wanted,
            "{name}: tests/captures/README.md says how to record"
        );
    }
}
