use super::*;
use crate::cgroup::layout::{Hierarchy, Layout};
use crate::cgroup::reader::Reader;

const PAGE: Bytes = Bytes(4096);
const MAX_V1: &str = "9223372036854771712\n";

/// A plain directory tree that stands for one hierarchy.
struct Tree {
    root: tempfile::TempDir,
    reader: Reader,
}

impl Tree {
    fn new(version: Version, files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(vec![Hierarchy {
            version,
            mount_point: "/".into(),
            names: vec![],
        }]);
        let reader = Reader::new(&layout, root.path(), 1000).unwrap();
        let tree = Self { root, reader };
        files.iter().for_each(|(path, text)| tree.write(path, text));
        tree
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn chain(&self, path: &str) -> Chain {
        self.reader.chain(0, path).unwrap()
    }
}

fn v2(files: &[(&str, &str)]) -> Tree {
    Tree::new(Version::V2, files)
}

fn v1(files: &[(&str, &str)]) -> Tree {
    Tree::new(Version::V1, files)
}

fn from(origin: Origin) -> (u16, &'static str) {
    match origin {
        Origin::Cgroup {
            levels_up, file, ..
        } => (levels_up, file),
        other => panic!("{other:?}"),
    }
}

const fn value(bytes: u64) -> Limit<Bytes> {
    Limit::Value(Bytes(bytes))
}

#[test]
fn memory_not_enabled_in_the_leaf_comes_from_the_nearest_ancestor() {
    // F11: C lxcfs shows the host here.
    let tree = v2(&[
        ("pod/memory.max", "1000\n"),
        ("pod/memory.current", "300\n"),
        ("pod/memory.stat", "anon 200\n"),
        ("pod/leaf/cgroup.controllers", "cpu\n"),
    ]);
    let memory = memory(&tree.chain("/pod/leaf"), false, PAGE)
        .unwrap()
        .unwrap();
    assert_eq!(memory.limit.value, value(1000));
    assert_eq!(from(memory.limit.origin), (1, "memory.max"));
    assert_eq!(memory.usage.value, Bytes(300));
    assert_eq!(from(memory.stat.origin), (1, "memory.stat"));
    assert_eq!(memory.stat.value.anon, Some(Bytes(200)));
    assert_eq!(memory.headroom.unwrap().value, Bytes(700));
}

#[test]
fn memory_high_is_a_limit_only_when_asked_for() {
    let tree = v2(&[
        ("c/memory.max", "max\n"),
        ("c/memory.high", "500\n"),
        ("c/memory.current", "100\n"),
        ("c/memory.stat", ""),
    ]);
    let chain = tree.chain("/c");
    assert_eq!(
        memory(&chain, false, PAGE).unwrap().unwrap().limit.value,
        Limit::Max
    );
    let high = memory(&chain, true, PAGE).unwrap().unwrap();
    assert_eq!(high.limit.value, value(500));
    assert_eq!(from(high.limit.origin), (0, "memory.high"));
    assert_eq!(high.headroom.unwrap().value, Bytes(400));
}

#[test]
fn a_limit_changed_underneath_shows_at_the_next_read() {
    let tree = v2(&[
        ("c/memory.max", "500\n"),
        ("c/memory.current", "100\n"),
        ("c/memory.stat", ""),
    ]);
    let chain = tree.chain("/c");
    let limit = || memory(&chain, false, PAGE).unwrap().unwrap().limit.value;
    assert_eq!(limit(), value(500));
    tree.write("c/memory.max", "0\n");
    assert_eq!(limit(), value(0));
}

#[test]
fn without_the_controller_anywhere_nothing_is_made_up() {
    // The root's own figures are the host's and must not be taken.
    let tree = v2(&[("memory.stat", "anon 1\n"), ("c/cgroup.controllers", "")]);
    assert!(memory(&tree.chain("/c"), false, PAGE).unwrap().is_none());
    assert!(swap(&tree.chain("/c"), PAGE).unwrap().is_none());
    assert!(cpu_time(&tree.chain("/")).unwrap().is_none());
    assert!(pressure(&tree.chain("/"), 0).unwrap().is_none());
}

#[test]
fn v1_memory_counts_parents_only_when_they_are_hierarchical() {
    let level = |path: &str, limit: &str, hierarchy: &str| {
        [
            (format!("{path}memory.limit_in_bytes"), limit.to_owned()),
            (format!("{path}memory.usage_in_bytes"), "10\n".to_owned()),
            (format!("{path}memory.stat"), "total_rss 4\n".to_owned()),
            (format!("{path}memory.use_hierarchy"), hierarchy.to_owned()),
        ]
    };
    for (hierarchy, expected) in [("1\n", value(100)), ("0\n", Limit::Max)] {
        let files: Vec<_> = level("p/", "100\n", hierarchy)
            .into_iter()
            .chain(level("p/c/", MAX_V1, "1\n"))
            .collect();
        let files: Vec<_> = files
            .iter()
            .map(|(p, t)| (p.as_str(), t.as_str()))
            .collect();
        let tree = v1(&files);
        let memory = memory(&tree.chain("/p/c"), false, PAGE).unwrap().unwrap();
        assert_eq!(memory.limit.value, expected);
        assert_eq!(memory.stat.value.anon, Some(Bytes(4)));
    }
}

#[test]
fn v1_swap_is_the_difference_of_the_chain_minima() {
    let tree = v1(&[
        ("p/memory.limit_in_bytes", "100\n"),
        ("p/memory.memsw.limit_in_bytes", "150\n"),
        ("p/memory.usage_in_bytes", "40\n"),
        ("p/memory.memsw.usage_in_bytes", "60\n"),
        ("p/c/memory.limit_in_bytes", "120\n"),
        ("p/c/memory.memsw.limit_in_bytes", MAX_V1),
        ("p/c/memory.usage_in_bytes", "30\n"),
        ("p/c/memory.memsw.usage_in_bytes", "35\n"),
    ]);
    let swap = swap(&tree.chain("/p/c"), PAGE).unwrap().unwrap();
    assert_eq!(swap.limit.value, value(50));
    assert_eq!(swap.usage.value, Bytes(5));
    assert!(swap.headroom.unwrap().value <= Bytes(45));
}

#[test]
fn v1_swap_without_memsw_files_is_unknown() {
    let tree = v1(&[
        ("c/memory.limit_in_bytes", "100\n"),
        ("c/memory.usage_in_bytes", "1\n"),
    ]);
    assert!(swap(&tree.chain("/c"), PAGE).unwrap().is_none());
}

#[test]
fn swap_used_beyond_a_lowered_limit_is_never_negative() {
    // F8 and F13: the limit was lowered while pages were out.
    let tree = v2(&[
        ("c/memory.swap.max", "10\n"),
        ("c/memory.swap.current", "30\n"),
    ]);
    let swap = swap(&tree.chain("/c"), PAGE).unwrap().unwrap();
    assert_eq!(swap.headroom.unwrap().value, Bytes::ZERO);
    assert_eq!(swap.usage.value, Bytes(30));
}

#[test]
fn the_effective_cpuset_beats_the_requested_one_and_is_inherited() {
    // F10.
    let tree = v2(&[
        ("cpuset.cpus.effective", "0-7\n"),
        ("pod/cpuset.cpus.effective", "2-3\n"),
        ("pod/c/cpuset.cpus", "0-7\n"),
    ]);
    let found = cpuset(&tree.chain("/pod/c")).unwrap().unwrap();
    assert_eq!(found.value.to_string(), "2-3");
    assert_eq!(from(found.origin), (1, "cpuset.cpus.effective"));
    let v1_tree = v1(&[
        ("cpuset.effective_cpus", "0-3\n"),
        ("c/cpuset.effective_cpus", "\n"),
    ]);
    let found = cpuset(&v1_tree.chain("/c")).unwrap().unwrap();
    assert_eq!(found.value.to_string(), "0-3");
}

#[test]
fn the_pods_quota_counts() {
    // F30.
    let tree = v2(&[
        ("pod/cpu.max", "150000 100000\n"),
        ("pod/c/cpu.max", "max 100000\n"),
    ]);
    let online = CpuSet::first(8);
    let chain = tree.chain("/pod/c");
    let cpus = cpus(None, Some(&chain), &online).unwrap();
    assert_eq!(cpus.effective.value, online);
    let quota = cpus.quota.unwrap();
    assert_eq!((quota.value.quota.0, from(quota.origin).0), (150_000, 1));
    let v1_tree = v1(&[
        ("p/cpu.cfs_quota_us", "50000\n"),
        ("p/cpu.cfs_period_us", "100000\n"),
        ("p/c/cpu.cfs_quota_us", "-1\n"),
        ("p/c/cpu.cfs_period_us", "100000\n"),
    ]);
    let quota = quota_of(&v1_tree);
    assert_eq!(quota, Some((50_000, 1)));
}

fn quota_of(tree: &Tree) -> Option<(u64, u16)> {
    let found = quota(&tree.chain("/p/c")).unwrap()?;
    Some((found.value.quota.0, from(found.origin).0))
}

#[test]
fn v1_cpu_time_is_per_cpu_and_adds_up() {
    let tree = v1(&[("c/cpuacct.usage_all", "cpu user system\n0 10 1\n1 20 2\n")]);
    let time = cpu_time(&tree.chain("/c")).unwrap().unwrap();
    assert_eq!((time.usage.0, time.user.0, time.system.0), (33, 30, 3));
    assert_eq!(time.per_cpu.unwrap().len(), 2);
    let old = v1(&[
        ("c/cpuacct.usage", "30\n"),
        ("c/cpuacct.stat", "user 2\nsystem 1\n"),
    ]);
    let time = cpu_time(&old.chain("/c")).unwrap().unwrap();
    assert_eq!((time.user.0, time.system.0), (20, 10));
    assert!(time.per_cpu.is_none());
}

#[test]
fn huge_pages_have_a_chain_too() {
    let tree = v2(&[
        ("p/hugetlb.2MB.max", "4194304\n"),
        ("p/hugetlb.2MB.current", "2097152\n"),
        ("p/c/hugetlb.2MB.max", "max\n"),
        ("p/c/hugetlb.2MB.current", "0\n"),
    ]);
    let found = hugetlb(&tree.chain("/p/c"), &[Bytes(2 << 20), Bytes(1 << 30)], PAGE).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].limit.value, value(4 << 20));
    assert_eq!(found[0].usage.value, Bytes(0));
    let unlimited = v1(&[
        ("c/hugetlb.2MB.limit_in_bytes", "9223372036852678656\n"),
        ("c/hugetlb.2MB.usage_in_bytes", "0\n"),
    ]);
    let found = hugetlb(&unlimited.chain("/c"), &[Bytes(2 << 20)], PAGE).unwrap();
    assert_eq!(found[0].limit.value, Limit::Max);
}

#[test]
fn v1_devices_prefer_the_recursive_files() {
    let tree = v1(&[
        ("c/blkio.throttle.io_service_bytes", "8:0 Read 1\n"),
        (
            "c/blkio.throttle.io_service_bytes_recursive",
            "8:0 Read 9\n",
        ),
        ("c/blkio.throttle.io_serviced_recursive", "8:0 Read 2\n"),
    ]);
    let found = io(&tree.chain("/c")).unwrap().unwrap();
    assert_eq!(found.value[0].read_bytes, Bytes(9));
    assert_eq!(found.value[0].reads, 2);
}

#[test]
fn v1_devices_come_from_bfq_where_throttling_counts_nothing() {
    // Kernels 6.1 and 6.18 without a throttle limit, as recorded.
    let throttle = [
        ("c/blkio.throttle.io_service_bytes_recursive", "Total 0\n"),
        (
            "c/blkio.throttle.io_serviced_recursive",
            "254:0 Read 0\n254:0 Total 0\nTotal 0\n",
        ),
    ];
    let none = io(&v1(&throttle).chain("/c")).unwrap().unwrap();
    assert!(none.value.is_empty());
    let file = |found: &Decided<Vec<IoDevice>>| match found.origin {
        Origin::Cgroup { file, .. } => file,
        _ => "",
    };
    assert_eq!(file(&none), "blkio.throttle.io_service_bytes_recursive");
    let bfq = [
        ("c/blkio.bfq.io_service_bytes_recursive", "8:0 Read 4096\n"),
        ("c/blkio.bfq.io_serviced_recursive", "8:0 Read 1\n"),
    ];
    let both: Vec<_> = throttle.into_iter().chain(bfq).collect();
    let found = io(&v1(&both).chain("/c")).unwrap().unwrap();
    assert_eq!(found.value[0].read_bytes, Bytes(4096));
    assert_eq!(file(&found), "blkio.bfq.io_service_bytes_recursive");
}
