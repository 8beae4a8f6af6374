//! What a container, or whoever names one, must not be able to make attaching do.

use std::os::unix::fs::MetadataExt;

use lxcfs_user::attach::discover::MountNs;

use super::*;

fn host_mounts() -> String {
    std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo")
}

#[test]
fn a_fake_proc_with_symlinks_is_refused() {
    let dir = host();
    let server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    let mut subject = Subject::start(&SUBJECT, &[]).unwrap();
    for command in [
        "tmpfs /tmp",
        "file /tmp/victim",
        "tmpfs /proc",
        "symlink /tmp/victim /proc/meminfo",
    ] {
        assert_eq!(subject.ask(command).unwrap(), "ok", "{command}");
    }
    let (inside, host) = (subject.mountinfo().unwrap(), host_mounts());
    let report = run(&engine(&server.mountpoint), &subject, &attach("meminfo"));
    assert_eq!(
        *outcome(&report, "/proc/meminfo"),
        Outcome::Skipped(Skip::NotKernelFs {
            found: "tmpfs".into()
        })
    );
    assert_eq!(subject.mountinfo().unwrap(), inside);
    assert_eq!(host_mounts(), host);
}

#[test]
fn a_container_that_races_the_walk_changes_nothing_but_itself() {
    let dir = host();
    let server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    for options in [&[][..], &["--userns"][..]] {
        let mut subject = Subject::start(&SUBJECT, options).unwrap();
        for command in ["tmpfs /tmp", "file /tmp/victim", "flip /proc"] {
            assert_eq!(subject.ask(command).unwrap(), "ok", "{command}");
        }
        let host = host_mounts();
        let place = |line: &str| line.split(' ').nth(4).unwrap_or("").to_owned();
        // The machine may have mounts of lxcfs of its own.
        let inherited: Vec<_> = subject.mountinfo().unwrap().lines().map(place).collect();
        let engine = engine(&server.mountpoint);
        let goal = attach("meminfo,stat,uptime");
        let mut outcomes = std::collections::BTreeMap::new();
        for _ in 0..300 {
            for goal in [&goal, &Goal::Detach { selection: None }] {
                for step in run(&engine, &subject, goal).steps {
                    let name = format!("{:?}", step.outcome);
                    let name = name.split([' ', '(']).next().unwrap_or("").to_owned();
                    *outcomes.entry(name).or_insert(0) += 1;
                }
            }
        }
        println!("600 runs against a racing container {options:?}: {outcomes:?}");
        assert_eq!(subject.ask("read /tmp/victim").unwrap(), "ok untouched");
        for line in subject.mountinfo().unwrap().lines() {
            let at = place(line);
            assert!(
                !line.contains("fuse.lxcfs") || at.starts_with("/proc/") || inherited.contains(&at),
                "{line}"
            );
        }
        assert_eq!(host_mounts(), host);
    }
}

#[test]
fn a_flood_of_mounts_costs_only_its_own_container() {
    let dir = host();
    let server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    let mut hostile = Subject::start(&SUBJECT, &[]).unwrap();
    assert_eq!(hostile.ask("tmpfs /mnt").unwrap(), "ok");
    assert_eq!(hostile.ask("flood 3000 /mnt").unwrap(), "ok");
    let mut victim = Subject::start(&SUBJECT, &[]).unwrap();
    let options = EngineOptions {
        mountinfo_limit: 64 << 10,
        ..EngineOptions::default()
    };
    let limited = Arc::new(Engine::open(&server.mountpoint, options).unwrap());
    let targets = vec![Target::process(hostile.pid), Target::process(victim.pid)];
    let report = limited.run(targets.clone(), &attach("meminfo"));
    let refused = report.containers[0].error.clone().unwrap();
    assert!(refused.contains("more than 65536 bytes"), "{refused}");
    assert_eq!(
        victim.ask("read /proc/meminfo").unwrap(),
        "ok one /proc/meminfo"
    );
    // With the ordinary limit the flooded container is served as well.
    let report = engine(&server.mountpoint).run(targets, &attach("meminfo"));
    assert!(report.succeeded(), "{report:?}");
    assert_eq!(
        hostile.ask("read /proc/meminfo").unwrap(),
        "ok one /proc/meminfo"
    );
}

#[test]
fn a_process_number_that_was_reused_is_noticed() {
    let dir = host();
    let server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    let (first, mut second) = (
        Subject::start(&SUBJECT, &[]).unwrap(),
        Subject::start(&SUBJECT, &[]).unwrap(),
    );
    let ns = std::fs::metadata(format!("/proc/{}/ns/mnt", first.pid))
        .unwrap()
        .ino();
    // As if the number of the first had come to the second between finding and entering.
    let reused = Target {
        mnt_ns: Some(MountNs(ns)),
        ..Target::process(second.pid)
    };
    let engine = engine(&server.mountpoint);
    let report = engine.run(vec![reused], &attach("meminfo"));
    assert_eq!(
        report.containers[0].error.as_deref(),
        Some(format!("process {} is gone", second.pid).as_str())
    );
    assert!(
        second
            .ask("read /proc/meminfo")
            .unwrap()
            .starts_with("ok MemTotal")
    );
    let ended = first.pid;
    drop(first);
    let report = engine.run(vec![Target::process(ended)], &attach("meminfo"));
    assert!(report.containers[0].error.is_some(), "{report:?}");
}

#[test]
fn the_host_itself_is_refused() {
    let dir = host();
    let server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    let host = host_mounts();
    let engine = engine(&server.mountpoint);
    let report = engine.run(
        vec![Target::process(std::process::id()), Target::process(1)],
        &attach("default"),
    );
    let error = report.containers[0].error.as_deref().unwrap_or("");
    assert!(error.contains("host's mount namespace"), "{report:?}");
    assert!(report.containers[1].error.is_some(), "{report:?}");
    assert_eq!(host_mounts(), host);
}

#[test]
fn a_procfs_shared_with_the_host_is_refused() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    const NONE: Option<&str> = None;
    let dir = host();
    let server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    let root = dir.path().join("image");
    let proc = root.join("proc");
    std::fs::create_dir_all(&proc).unwrap();
    mount(Some("proc"), &proc, Some("proc"), MsFlags::empty(), NONE).unwrap();
    mount(NONE, &proc, NONE, MsFlags::MS_SHARED, NONE).unwrap();
    // Made without cutting propagation: its /proc is a peer of the host's mount.
    let subject = Subject::start(
        &SUBJECT,
        &["--keep-propagation", "--root", root.to_str().unwrap()],
    )
    .unwrap();
    let host = host_mounts();
    let report = run(&engine(&server.mountpoint), &subject, &attach("meminfo"));
    let unchanged = host_mounts() == host;
    drop(subject);
    umount2(&proc, MntFlags::MNT_DETACH).unwrap();
    assert!(
        matches!(
            outcome(&report, "/proc/meminfo"),
            Outcome::Skipped(Skip::SharedWithHost { .. })
        ),
        "{report:?}"
    );
    assert!(unchanged);
}
