//! The podman guard makes real containers with real limits and leaves nothing behind.
// vm: all/v2 6.1/v1 6.1/hybrid

use std::path::Path;

use lxcfs_tests::Podman;

/// crun needs cgroup v2 or rights that only a machine of its own gives.
fn runtimes() -> &'static [&'static str] {
    if std::env::var_os("LXCFS_IN_VM").is_some() {
        &["runc", "crun"]
    } else {
        &["runc"]
    }
}

#[test]
fn limits_and_namespaces_are_the_containers_own() {
    for runtime in runtimes() {
        let podman = Podman::start(runtime, &["--memory=64m", "--cpus=0.5", "--cpuset-cpus=0"]);
        assert_eq!(podman.stdout(&["nproc"]), "1\n", "{runtime}");
        assert_eq!(
            podman.stdout(&["sh", "-c", "echo $PPID"]),
            "0\n",
            "{runtime}"
        );
        let parent = podman.parent_cgroup();
        let v1 = parent.is_v1("memory");
        let limit = if v1 {
            "memory.limit_in_bytes"
        } else {
            "memory.max"
        };
        let own = std::fs::read_to_string(format!("/proc/{}/cgroup", podman.init_pid())).unwrap();
        let line = own
            .lines()
            .find(|line| line.contains(if v1 { ":memory:" } else { "0::" }));
        let path = line.unwrap().rsplit(':').next().unwrap();
        let below = path.strip_prefix(parent.path()).expect("below its parent");
        let file = parent.dir("memory").join(&below[1..]).join(limit);
        assert_eq!(
            std::fs::read_to_string(file).unwrap(),
            "67108864\n",
            "{runtime}"
        );
    }
}

#[test]
fn nothing_is_left() {
    for runtime in runtimes() {
        let podman = Podman::start(runtime, &[]);
        let (init, dirs) = (podman.init_pid(), podman.parent_cgroup().dirs());
        drop(podman);
        assert!(
            !Path::new(&format!("/proc/{init}/exe")).exists(),
            "{runtime}"
        );
        assert!(
            dirs.iter().all(|directory| !directory.exists()),
            "{runtime}"
        );
    }
}

#[test]
fn a_mount_over_proc_is_accepted() {
    let source = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(source.path(), "1.00 2.00\n").unwrap();
    let volume = format!("--volume={}:/proc/uptime", source.path().display());
    for runtime in runtimes() {
        let podman = Podman::start(runtime, &[&volume]);
        assert_eq!(podman.read("/proc/uptime"), "1.00 2.00\n", "{runtime}");
    }
}
