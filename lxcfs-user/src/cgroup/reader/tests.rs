use super::*;
use crate::cgroup::layout::Hierarchy;

fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Layout) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join("cg").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let layout = Layout::new(vec![Hierarchy {
        version: Version::V2,
        mount_point: "/cg".into(),
        names: vec!["memory".into()],
    }]);
    (root, layout)
}

fn text(dir: &Dir, file: &'static str) -> Option<String> {
    dir.read(file, str::to_owned).unwrap()
}

#[test]
fn a_kept_file_is_read_again_from_its_start() {
    let (root, layout) = tree(&[("a/memory.max", "100\n")]);
    let reader = Reader::new(&layout, root.path(), 100).unwrap();
    let dir = reader.dir(0, "/a").unwrap();
    assert_eq!(text(&dir, "memory.max").as_deref(), Some("100\n"));
    std::fs::write(root.path().join("cg/a/memory.max"), "9\n").unwrap();
    assert_eq!(text(&dir, "memory.max").as_deref(), Some("9\n"));
    assert_eq!(text(&dir, "memory.high"), None);
    assert_eq!(reader.descriptors(), 2);
}

#[test]
fn a_controller_enabled_later_is_seen() {
    let (root, layout) = tree(&[("a/cgroup.controllers", "")]);
    let reader = Reader::new(&layout, root.path(), 100).unwrap();
    let dir = reader.dir(0, "/a").unwrap();
    assert_eq!(text(&dir, "memory.max"), None);
    std::fs::write(root.path().join("cg/a/memory.max"), "1\n").unwrap();
    let start = Instant::now();
    while text(&dir, "memory.max").is_none() {
        assert!(start.elapsed() < Duration::from_secs(30), "never seen");
        std::thread::sleep(ABSENT_FOR / 5);
    }
}

#[test]
fn the_chain_ends_at_the_root_and_never_leaves_it() {
    let (root, layout) = tree(&[("a/b/c/memory.max", "1")]);
    let reader = Reader::new(&layout, root.path(), 100).unwrap();
    let chain = reader.chain(0, "/a/b/c").unwrap();
    let paths: Vec<_> = chain.iter().map(|dir| dir.path()).collect();
    assert_eq!(paths, ["/a/b/c", "/a/b", "/a", "/"]);
    assert!(chain[3].is_root());
    for outside in ["/../etc", "/a/../../x", "/nothing"] {
        assert!(matches!(
            reader.dir(0, outside),
            Err(ReadError::Gone { .. })
        ));
    }
}

#[test]
fn descriptors_stay_within_the_budget_and_files_come_back() {
    let names: Vec<String> = (0..300).map(|n| format!("c{n}/memory.max")).collect();
    let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "7\n")).collect();
    let (root, layout) = tree(&files);
    let reader = Reader::new(&layout, root.path(), 100).unwrap();
    for round in 0..2 {
        for n in 0..300 {
            let dir = reader.dir(0, &format!("/c{n}")).unwrap();
            assert_eq!(text(&dir, "memory.max").as_deref(), Some("7\n"), "{round}");
            assert!(reader.descriptors() <= 102, "{}", reader.descriptors());
        }
    }
}

#[test]
fn files_of_held_directories_stay_within_the_budget_too() {
    let names: Vec<String> = (0..50)
        .flat_map(|n| ["max", "high", "stat"].map(|file| format!("c{n}/memory.{file}")))
        .collect();
    let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "7\n")).collect();
    let (root, layout) = tree(&files);
    let reader = Reader::new(&layout, root.path(), 100).unwrap();
    let held: Vec<_> = (0..50)
        .map(|n| reader.dir(0, &format!("/c{n}")).unwrap())
        .collect();
    for dir in held.iter().chain(&held) {
        for file in ["memory.max", "memory.high", "memory.stat"] {
            assert_eq!(text(dir, file).as_deref(), Some("7\n"));
            assert!(reader.descriptors() <= 100, "{}", reader.descriptors());
        }
    }
}

#[test]
fn directories_that_nobody_reads_are_let_go() {
    let (root, layout) = tree(&[("a/memory.max", "1"), ("b/memory.max", "1")]);
    let reader = Reader::new(&layout, root.path(), 100).unwrap();
    let held = reader.dir(0, "/a").unwrap();
    text(&held, "memory.max");
    text(&reader.dir(0, "/b").unwrap(), "memory.max");
    assert_eq!(reader.descriptors(), 4);
    for _ in 0..4 {
        reader.sweep(1, 3);
    }
    // The held directory stays, its file does not.
    assert_eq!(reader.descriptors(), 1);
    assert_eq!(text(&held, "memory.max").as_deref(), Some("1"));
}

#[test]
fn a_removed_directory_is_not_alive() {
    let (root, layout) = tree(&[("a/memory.max", "1")]);
    let reader = Reader::new(&layout, root.path(), 100).unwrap();
    let dir = reader.dir(0, "/a").unwrap();
    assert!(dir.is_alive());
    std::fs::remove_dir_all(root.path().join("cg/a")).unwrap();
    assert!(!dir.is_alive());
}

#[test]
fn texts_larger_than_the_buffer_are_read_whole() {
    let long = "x 1\n".repeat(20_000);
    let (root, layout) = tree(&[("memory.stat", &long)]);
    let reader = Reader::new(&layout, root.path(), 100).unwrap();
    let dir = reader.dir(0, "/").unwrap();
    assert_eq!(text(&dir, "memory.stat").map(|t| t.len()), Some(long.len()));
}
