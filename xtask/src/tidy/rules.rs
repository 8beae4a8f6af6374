//! The rules of the source tree, as tables, and the check of one file against them.
//!
//! ARCHITECTURE.md explains them. A rule changes here, in the same commit as the code that needs it.

use super::source::{NamedPath, paths, without_unit_tests};

/// Modules of `lxcfs-user`, lowest layer first. A module may use itself and lower layers only.
const LAYERS: &[&[&str]] = &[
    &["units", "cpuset", "mountinfo"],
    &["snapshot", "policy"],
    &["engine"],
    &["history"],
    &["view"],
    &["config", "cgroup"],
    &["host"],
    &["container", "bpf"],
    &["collect"],
    &["vfs"],
    &["attach", "fuse", "observe"],
    &["worker"],
    &["agent"],
    &["daemon"],
    &["cli"],
];

/// Crates that only some places of `lxcfs-user` may name.
const OWNED_CRATES: &[(&str, &[&str])] = &[
    ("aya", &["bpf"]),
    ("aya_obj", &["bpf"]),
    ("aya_log", &["bpf"]),
    ("fuser", &["fuse"]),
    ("clap", &["cli"]),
    ("prometheus_client", &["observe"]),
    ("tokio", &["agent", "observe"]),
    ("anyhow", &["main", "cli", "daemon"]),
    ("kube", &[]),
    ("k8s_openapi", &[]),
];

/// Places of `lxcfs-user` without effects: time and facts are arguments there.
const PURE: &[&str] = &[
    "units",
    "cpuset",
    "mountinfo",
    "snapshot",
    "policy",
    "history",
    "view",
    "cgroup",
    "host",
];
/// The files of pure places that do the reading for them.
const READERS: &[&str] = &[
    "cgroup/reader",
    "cgroup/source",
    "host/memory",
    "host/reader",
    "host/position",
];
/// What has an effect, or depends on when and where it runs.
const EFFECTS: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "nix",
    "rustix",
    "libc",
    "tracing",
    "log",
    "tokio",
    "aya",
    "fuser",
];

/// Files that hold one subject all the same, with their own ceiling.
const LONGER: &[(&str, usize)] = &[
    // Whose container a caller is in: one decision, and the cache that must not change it.
    ("lxcfs-user/src/container/resolve.rs", 720),
];
/// Code lines above which a file holds more than one subject, and the same for files of tests.
const CODE_LINES: usize = 650;
const TEST_LINES: usize = 800;

/// Checks the file at `path`, relative to the top of the repository; returns what is wrong.
pub(crate) fn check(path: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let code = without_unit_tests(text);
    sizes(path, text, code, &mut wrong);
    if !is_test(path) && !text.starts_with("//!") {
        wrong.push(format!("{path}: opens without saying what it owns (//!)"));
    }
    unfinished(path, text, &mut wrong);
    let named = if is_test(path) {
        Vec::new()
    } else {
        paths(code)
    };
    if let Some(place) = path.strip_prefix("lxcfs-user/src/") {
        for name in &named {
            user_imports(path, place, name, &mut wrong);
        }
    }
    if path.starts_with("lxcfs-common/src/") {
        for name in named.iter().filter(|name| name.starts_with("std")) {
            wrong.push(format!(
                "{path}:{}: lxcfs-common runs in the kernel too: no std",
                name.line
            ));
        }
    }
    wrong
}

/// Whether the whole file is tests.
fn is_test(path: &str) -> bool {
    let part = |part: &str| matches!(part, "tests" | "testing.rs" | "benches");
    path.ends_with("tests.rs") || path.split('/').any(part)
}

fn sizes(path: &str, text: &str, code: &str, wrong: &mut Vec<String>) {
    let (lines, most) = if is_test(path) {
        (text.lines().count(), TEST_LINES)
    } else {
        let own = LONGER.iter().find(|(file, _)| *file == path);
        (
            code.lines().count(),
            own.map_or(CODE_LINES, |(_, most)| *most),
        )
    };
    if lines > most {
        wrong.push(format!(
            "{path}: {lines} lines (most: {most}): split it by subject"
        ));
    }
}

fn unfinished(path: &str, text: &str, wrong: &mut Vec<String>) {
    // Spelled in halves, so that this file does not accuse itself.
    let marks = [
        ["FIX", "ME"],
        ["todo", "!("],
        ["unimplemented", "!("],
        ["#[ig", "nore"],
    ];
    for (number, line) in text.lines().enumerate() {
        if let Some(mark) = marks.iter().find(|mark| line.contains(&mark.concat())) {
            wrong.push(format!(
                "{path}:{}: {} is left in",
                number + 1,
                mark.concat()
            ));
        }
    }
}

fn user_imports(path: &str, place: &str, name: &NamedPath, wrong: &mut Vec<String>) {
    let module = place
        .split('/')
        .next()
        .unwrap_or(place)
        .trim_end_matches(".rs");
    let line = name.line;
    for (krate, places) in OWNED_CRATES {
        if name.segments.len() > 1 && name.starts_with(krate) && !places.contains(&module) {
            let allowed = if places.is_empty() {
                "lxcfs-kube"
            } else {
                &places.join(", ")
            };
            wrong.push(format!("{path}:{line}: {krate} belongs in {allowed}"));
        }
    }
    if is_pure(place, module) {
        let effect = EFFECTS
            .iter()
            .find(|e| name.starts_with(e) && name.segments.len() > 1);
        if let Some(effect) = effect {
            wrong.push(format!(
                "{path}:{line}: {effect} in a pure module: pass the fact in"
            ));
        }
    }
    let Some(used) = used_module(place, name) else {
        return;
    };
    if module == "lib" || module == "main" || used == module {
        return;
    }
    match (layer(module), layer(&used)) {
        (None, _) => wrong.push(format!(
            "{path}: add {module} to LAYERS in xtask/src/tidy/rules.rs"
        )),
        (Some(own), Some(other)) if other >= own => wrong.push(format!(
            "{path}:{line}: {module} may not use {used}: it is no lower layer"
        )),
        _ => {}
    }
}

fn is_pure(place: &str, module: &str) -> bool {
    let reads = READERS.iter().any(|reader| {
        place
            .strip_prefix(reader)
            .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    });
    let plan = place
        .split('/')
        .any(|part| part == "plan" || part == "plan.rs");
    !reads && (plan || PURE.contains(&module))
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The top module that a path of the same crate leads to.
fn used_module(place: &str, name: &NamedPath) -> Option<String> {
    let mut segments = name.segments.iter();
    let first = segments.next()?;
    if first == "crate" || first == "lxcfs_user" {
        return segments
            .next()
            .filter(|module| layer(module).is_some())
            .cloned();
    }
    // `super::` from the module that the file is.
    let mut own: Vec<&str> = place.trim_end_matches(".rs").split('/').collect();
    if own.last() == Some(&"mod") {
        own.pop();
    }
    let mut rest = name.segments.as_slice();
    while rest.first().is_some_and(|segment| segment == "super") {
        own.pop();
        rest = &rest[1..];
    }
    let climbed = rest.len() < name.segments.len();
    let target = own.first().copied().or(rest.first().map(String::as_str))?;
    (climbed && layer(target).is_some()).then(|| target.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{CODE_LINES, check};

    /// The complaints about a file that holds `code` after its opening line.
    fn complaints(path: &str, code: &str) -> Vec<String> {
        check(path, &format!("//! A made-up file.\n{code}"))
    }

    #[track_caller]
    fn refused(path: &str, code: &str, reason: &str) {
        let wrong = complaints(path, code);
        assert!(
            wrong.iter().any(|line| line.contains(reason)),
            "{path}: {code}: {wrong:?}"
        );
    }

    #[track_caller]
    fn accepted(path: &str, code: &str) {
        assert_eq!(complaints(path, code), Vec::<String>::new());
    }

    #[test]
    fn owned_crates_stay_in_their_place() {
        for (krate, place) in [
            ("aya", "bpf/load.rs"),
            ("fuser", "fuse/adapter.rs"),
            ("clap", "cli/args.rs"),
            ("prometheus_client", "observe/metrics.rs"),
            ("tokio", "agent/mod.rs"),
            ("anyhow", "daemon/mod.rs"),
        ] {
            let code = format!("use {krate}::Thing;");
            accepted(&format!("lxcfs-user/src/{place}"), &code);
            refused(
                "lxcfs-user/src/vfs/mod.rs",
                &code,
                &format!("{krate} belongs in"),
            );
        }
        refused(
            "lxcfs-user/src/agent/nri.rs",
            "fn f(p: kube::Pod) {}",
            "lxcfs-kube",
        );
    }

    #[test]
    fn pure_modules_have_no_effects() {
        for effect in [
            "std::fs::read",
            "std::env::var",
            "std::thread::spawn",
            "nix::unistd::getpid",
        ] {
            let code = format!("fn f() {{ {effect}() }}");
            refused("lxcfs-user/src/view/meminfo.rs", &code, "pure module");
            refused("lxcfs-user/src/attach/plan.rs", &code, "pure module");
            refused("lxcfs-user/src/cgroup/v2.rs", &code, "pure module");
            accepted("lxcfs-user/src/cgroup/reader.rs", &code);
            accepted("lxcfs-user/src/attach/apply.rs", &code);
        }
        refused(
            "lxcfs-user/src/history/cpu.rs",
            "use std::time::{Duration, Instant};",
            "Instant",
        );
        accepted("lxcfs-user/src/history/cpu.rs", "use std::time::Duration;");
        accepted(
            "lxcfs-user/src/view/stat.rs",
            "#[cfg(test)]\nmod tests { use std::fs; }",
        );
        accepted("lxcfs-user/src/cgroup/source/tests.rs", "use std::fs;");
    }

    #[test]
    fn layers_only_look_down() {
        accepted("lxcfs-user/src/view/stat.rs", "use crate::units::Ticks;");
        accepted("lxcfs-user/src/view/stat.rs", "use super::format::Columns;");
        accepted(
            "lxcfs-user/src/cli/mod.rs",
            "use crate::{daemon, config::Config};",
        );
        refused(
            "lxcfs-user/src/units.rs",
            "use crate::view::stat;",
            "units may not use view",
        );
        refused(
            "lxcfs-user/src/view/stat.rs",
            "use crate::cgroup::v2;",
            "view may not use cgroup",
        );
        refused(
            "lxcfs-user/src/vfs/inode.rs",
            "fn f() { crate::fuse::run() }",
            "vfs may not use",
        );
        refused(
            "lxcfs-user/src/vfs/inode.rs",
            "use super::super::cli;",
            "vfs may not use cli",
        );
        refused(
            "lxcfs-user/src/invented.rs",
            "use crate::units::Bytes;",
            "add invented to LAYERS",
        );
    }

    #[test]
    fn common_has_no_std() {
        refused("lxcfs-common/src/lib.rs", "use std::vec::Vec;", "no std");
        accepted("lxcfs-common/src/lib.rs", "use core::mem;");
    }

    #[test]
    fn files_stay_small_and_say_what_they_own() {
        let long = "fn f() {}\n".repeat(CODE_LINES);
        refused("xtask/src/long.rs", &long, "split it");
        accepted("xtask/src/tests.rs", &long);
        assert!(!check("xtask/src/a.rs", "fn f() {}\n").is_empty());
    }

    #[test]
    fn nothing_unfinished_stays() {
        refused(
            "xtask/src/a.rs",
            concat!("fn f() { todo", "!() }"),
            "left in",
        );
        refused(
            "tests/tests/native_a.rs",
            concat!("#[ig", "nore]\nfn f() {}"),
            "left in",
        );
    }
}
