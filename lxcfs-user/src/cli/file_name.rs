//! Which virtual file a name means: `meminfo`, `proc/meminfo` and `/proc/meminfo` are one.
//! Pure.

use lxcfs_common::catalogue::{
    CATALOGUE, CPU_TEMPLATE, Kind, NODE_TEMPLATE, Node, TemplateKind, by_path, cpu_ino, node,
    node_ino,
};

/// Directories a name may leave out.
const PREFIXES: [&str; 4] = [
    "",
    "proc/",
    "sys/devices/system/",
    "sys/devices/system/cpu/",
];

/// The file called `name`.
pub(super) fn resolve(name: &str) -> Result<Node, String> {
    let bare = name.trim_start_matches('/');
    PREFIXES
        .iter()
        .find_map(|prefix| find(&format!("{prefix}{bare}")))
        .ok_or_else(|| {
            format!(
                "no virtual file is called {name:?}; known: {}, and below {}",
                fixed_files().collect::<Vec<_>>().join(", "),
                "sys/devices/system/cpu/cpuN and sys/devices/system/node/nodeN what the kernel \
                 has there"
            )
        })
}

/// Paths of all files with a fixed place.
fn fixed_files() -> impl Iterator<Item = &'static str> {
    CATALOGUE
        .iter()
        .filter(|entry| matches!(entry.kind, Kind::File(_)))
        .map(|entry| entry.path)
}

fn find(path: &str) -> Option<Node> {
    if let Some(entry) = by_path(path) {
        return matches!(entry.kind, Kind::File(_)).then_some(Node::Fixed(entry));
    }
    let (number, rest) = numbered(path, "sys/devices/system/cpu/cpu")
        .map(|found| (Tree::Cpu, found))
        .or_else(|| numbered(path, "sys/devices/system/node/node").map(|found| (Tree::Numa, found)))
        .map(|(tree, (number, rest))| ((tree, number), rest))?;
    let template = match number.0 {
        Tree::Cpu => CPU_TEMPLATE,
        Tree::Numa => NODE_TEMPLATE,
    };
    let index = template
        .iter()
        .position(|entry| entry.path == rest && entry.kind != TemplateKind::Dir)?;
    let ino = match number {
        (Tree::Cpu, cpu) => cpu_ino(cpu, index),
        (Tree::Numa, numa) => node_ino(numa, index),
    };
    node(ino?)
}

#[derive(Clone, Copy)]
enum Tree {
    Cpu,
    Numa,
}

/// Splits `<prefix>12/rest` into 12 and `rest`.
fn numbered<'a>(path: &'a str, prefix: &str) -> Option<(u32, &'a str)> {
    let (number, rest) = path.strip_prefix(prefix)?.split_once('/')?;
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fixed(name: &str) -> &'static str {
        match resolve(name) {
            Ok(Node::Fixed(entry)) => entry.path,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn a_file_has_three_names() {
        for name in ["meminfo", "proc/meminfo", "/proc/meminfo"] {
            assert_eq!(fixed(name), "proc/meminfo");
        }
        assert_eq!(fixed("pressure/cpu"), "proc/pressure/cpu");
        assert_eq!(fixed("cpu/online"), "sys/devices/system/cpu/online");
        assert_eq!(fixed("online"), "sys/devices/system/cpu/online");
        assert_eq!(fixed("node/has_cpu"), "sys/devices/system/node/has_cpu");
    }

    #[test]
    fn files_of_one_cpu_and_one_node_are_found() {
        let path = |node| match node {
            Ok(Node::Cpu(cpu, index)) => (cpu, CPU_TEMPLATE[index].path),
            Ok(Node::Numa(numa, index)) => (numa, NODE_TEMPLATE[index].path),
            other => panic!("{other:?}"),
        };
        let core_id = (3, "topology/core_id");
        assert_eq!(path(resolve("cpu3/topology/core_id")), core_id);
        assert_eq!(
            path(resolve("/sys/devices/system/cpu/cpu3/topology/core_id")),
            core_id
        );
        assert_eq!(path(resolve("node/node1/meminfo")), (1, "meminfo"));
    }

    #[test]
    fn anything_else_lists_what_there_is() {
        for name in [
            "memifno",
            "proc",
            "cpu0",
            "cpu0/topology",
            "cpu99999/online",
            "",
        ] {
            let error = resolve(name).unwrap_err();
            assert!(error.contains("proc/meminfo"), "{error}");
            assert!(error.contains("cpuN"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_found_or_refused(name in ".{0,60}") {
            let _ = resolve(&name);
        }
    }
}
