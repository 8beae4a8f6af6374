//! Attach, heal and detach on the running kernel, in containers made of real namespaces. Kernels
//! before 6.5 cannot mount beneath another mount and take the other way.
// vm: all/v2

mod hostile;

use std::path::Path;
use std::sync::{Arc, LazyLock};

use lxcfs_tests::serve::test_program;
use lxcfs_tests::subject::{MarkerFs, Subject};
use lxcfs_user::attach::{
    ContainerReport, Engine, EngineOptions, Goal, Outcome, Report, Scan, Selection, Skip, Target,
};

static SERVER: LazyLock<String> = LazyLock::new(|| program("marker-fs"));
static SUBJECT: LazyLock<String> = LazyLock::new(|| program("subject"));

fn program(name: &str) -> String {
    test_program(name).to_string_lossy().into_owned()
}

/// A mount namespace for this test alone, standing for the host's: tests run side by side.
fn host() -> tempfile::TempDir {
    use nix::mount::{MsFlags, mount};
    const NONE: Option<&str> = None;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("tests need root");
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).expect("private mounts");
    tempfile::tempdir().expect("temporary directory")
}

fn engine(at: &Path) -> Arc<Engine> {
    Arc::new(Engine::open(at, EngineOptions::default()).expect("live mount"))
}

fn attach(files: &str) -> Goal {
    Goal::Attach {
        selection: Selection::parse(files).expect("known files"),
        takeover: false,
    }
}

fn run(engine: &Arc<Engine>, subject: &Subject, goal: &Goal) -> ContainerReport {
    engine
        .run(vec![Target::process(subject.pid)], goal)
        .containers
        .remove(0)
}

fn outcome<'a>(report: &'a ContainerReport, path: &str) -> &'a Outcome {
    let step = report
        .steps
        .iter()
        .find(|step| step.path == Path::new(path));
    &step
        .unwrap_or_else(|| panic!("{path} is missing: {report:?}"))
        .outcome
}

/// The table without the kernel's numbers, which a new mount always changes.
fn shape(mountinfo: &str) -> Vec<String> {
    mountinfo
        .lines()
        .map(|line| line.splitn(3, ' ').nth(2).unwrap_or("").to_owned())
        .collect()
}

#[test]
fn attached_files_answer_and_detach_brings_the_hosts_back() {
    let dir = host();
    let server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    let mut subject = Subject::start(&SUBJECT, &[]).unwrap();
    let before = subject.mountinfo().unwrap();
    let engine = engine(&server.mountpoint);

    let report = run(&engine, &subject, &attach("default"));
    assert_eq!(report.error, None, "{report:?}");
    assert_eq!(*outcome(&report, "/proc/meminfo"), Outcome::Attached);
    assert_eq!(
        *outcome(&report, "/sys/devices/system/cpu"),
        Outcome::Attached
    );
    assert_eq!(
        subject.ask("read /proc/meminfo").unwrap(),
        "ok one /proc/meminfo"
    );
    assert_eq!(
        subject.ask("read /proc/vmstat").unwrap(),
        "ok one /proc/vmstat"
    );
    assert_eq!(
        subject.ask("read /sys/devices/system/cpu/online").unwrap(),
        "ok one /sys/devices/system/cpu/online"
    );

    // A second run finds nothing to do and adds no mount.
    let attached = subject.mountinfo().unwrap();
    let again = run(&engine, &subject, &attach("default"));
    for step in &again.steps {
        assert!(matches!(step.outcome, Outcome::Skipped(_)), "{step:?}");
    }
    assert_eq!(subject.mountinfo().unwrap(), attached);

    let report = run(&engine, &subject, &Goal::Detach { selection: None });
    assert_eq!(*outcome(&report, "/proc/meminfo"), Outcome::Detached);
    assert!(
        subject
            .ask("read /proc/meminfo")
            .unwrap()
            .starts_with("ok MemTotal:")
    );
    assert_eq!(subject.mountinfo().unwrap(), before);
}

#[test]
fn a_container_with_its_own_user_namespace_is_served_the_same() {
    let dir = host();
    let mut server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    let mut subject = Subject::start(&SUBJECT, &["--userns"]).unwrap();
    let report = run(
        &engine(&server.mountpoint),
        &subject,
        &attach("meminfo,cpu,pressure/cpu"),
    );
    assert_eq!(
        *outcome(&report, "/proc/meminfo"),
        Outcome::Attached,
        "{report:?}"
    );
    assert_eq!(
        subject.ask("read /proc/meminfo").unwrap(),
        "ok one /proc/meminfo"
    );

    server.kill().unwrap();
    drop(server);
    let server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "two").unwrap();
    let report = run(&engine(&server.mountpoint), &subject, &Goal::Heal);
    assert!(
        matches!(outcome(&report, "/proc/meminfo"), Outcome::Replaced { .. }),
        "{report:?}"
    );
    assert_eq!(
        subject.ask("read /proc/meminfo").unwrap(),
        "ok two /proc/meminfo"
    );
}

#[test]
fn a_root_directory_without_any_program_is_enough() {
    // An empty image: nothing to execute, and a root that is no mount point.
    let dir = host();
    let server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    let root = dir.path().join("image");
    std::fs::create_dir_all(&root).unwrap();
    let mut subject = Subject::start(&SUBJECT, &["--root", root.to_str().unwrap()]).unwrap();
    let report = run(&engine(&server.mountpoint), &subject, &attach("stat,cpu"));
    assert_eq!(
        *outcome(&report, "/proc/stat"),
        Outcome::Attached,
        "{report:?}"
    );
    assert_eq!(
        *outcome(&report, "/sys/devices/system/cpu"),
        Outcome::Skipped(Skip::OutOfReach)
    );
    assert_eq!(subject.ask("read /proc/stat").unwrap(), "ok one /proc/stat");
}

#[test]
fn a_busy_reader_never_sees_the_hosts_value_while_being_healed() {
    let release = nix::sys::utsname::uname().unwrap();
    let release = release.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|n| n.parse::<u32>().ok());
    let kernel = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let dir = host();
    let mut server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "mark0").unwrap();
    let mut subject = Subject::start(&SUBJECT, &[]).unwrap();
    run(&engine(&server.mountpoint), &subject, &attach("meminfo"));
    let mounts = subject.mountinfo().unwrap().lines().count();
    subject.ask("watch /proc/meminfo").unwrap();
    for round in 1..=20 {
        server.kill().unwrap();
        drop(server);
        server = MarkerFs::start(&SERVER, &dir.path().join("fs"), &format!("mark{round}")).unwrap();
        let report = run(&engine(&server.mountpoint), &subject, &Goal::Heal);
        let gapless = kernel >= (6, 5);
        assert_eq!(
            *outcome(&report, "/proc/meminfo"),
            Outcome::Replaced { gapless },
            "{report:?}"
        );
        assert_eq!(subject.mountinfo().unwrap().lines().count(), mounts);
    }
    // The watcher must get to read from the last server too.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let seen = subject.ask("watched").unwrap();
    println!("a busy reader saw over 20 losses: {seen}");
    assert!(seen.contains("ok mark20="), "{seen}");
    assert!(
        seen.contains("err 107="),
        "ENOTCONN must have been seen: {seen}"
    );
    if kernel >= (6, 5) {
        assert!(!seen.contains("MemTotal"), "{seen}");
    }
}

#[test]
fn without_the_gapless_call_healing_works_too() {
    let dir = host();
    let mut server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    let mut subject = Subject::start(&SUBJECT, &[]).unwrap();
    run(
        &engine(&server.mountpoint),
        &subject,
        &attach("meminfo,cpu"),
    );
    let before = shape(&subject.mountinfo().unwrap()).len();
    server.kill().unwrap();
    drop(server);
    let server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "two").unwrap();
    let options = EngineOptions {
        gapless: false,
        ..EngineOptions::default()
    };
    let engine = Arc::new(Engine::open(&server.mountpoint, options).unwrap());
    let report = run(&engine, &subject, &Goal::Heal);
    assert_eq!(
        *outcome(&report, "/proc/meminfo"),
        Outcome::Replaced { gapless: false }
    );
    assert_eq!(
        subject.ask("read /proc/meminfo").unwrap(),
        "ok two /proc/meminfo"
    );
    assert_eq!(shape(&subject.mountinfo().unwrap()).len(), before);
}

#[test]
fn three_losses_and_heals_leave_the_same_number_of_mounts() {
    let dir = host();
    let mut subject = Subject::start(&SUBJECT, &[]).unwrap();
    let mut server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "s0").unwrap();
    let bare = subject.mountinfo().unwrap();
    run(&engine(&server.mountpoint), &subject, &attach("default"));
    let count = subject.mountinfo().unwrap().lines().count();
    for round in 1..=3 {
        server.kill().unwrap();
        drop(server);
        assert_eq!(subject.ask("read /proc/stat").unwrap(), "err 107");
        server = MarkerFs::start(&SERVER, &dir.path().join("fs"), &format!("s{round}")).unwrap();
        let engine = engine(&server.mountpoint);
        for _ in 0..2 {
            let report = run(&engine, &subject, &Goal::Heal);
            assert_eq!(report.error, None);
            assert_eq!(
                subject.mountinfo().unwrap().lines().count(),
                count,
                "{report:?}"
            );
        }
        assert_eq!(
            subject.ask("read /proc/stat").unwrap(),
            format!("ok s{round} /proc/stat")
        );
    }
    let engine = engine(&server.mountpoint);
    run(&engine, &subject, &Goal::Detach { selection: None });
    assert_eq!(subject.mountinfo().unwrap(), bare);
}

#[test]
fn dead_mounts_that_scripts_stacked_are_adopted_as_one() {
    let dir = host();
    let mut server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    // What `nsenter -m mount -B` does after each restart, without unmounting first.
    let from = server.mountpoint.join("proc/meminfo");
    let mut late = Subject::start(&SUBJECT, &[]).unwrap();
    for _ in 0..3 {
        let bind = format!("bind {} /proc/meminfo", from.display());
        assert_eq!(late.ask(&bind).unwrap(), "ok");
    }
    let stacked = late.mountinfo().unwrap().lines().count();
    server.kill().unwrap();
    drop(server);
    let server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "two").unwrap();
    let report = run(&engine(&server.mountpoint), &late, &Goal::Heal);
    assert!(matches!(
        outcome(&report, "/proc/meminfo"),
        Outcome::Replaced { .. }
    ));
    assert_eq!(
        late.ask("read /proc/meminfo").unwrap(),
        "ok two /proc/meminfo"
    );
    assert_eq!(late.mountinfo().unwrap().lines().count(), stacked - 2);
}

#[test]
fn the_containers_own_mounts_are_kept() {
    let dir = host();
    let server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    let mut subject = Subject::start(&SUBJECT, &[]).unwrap();
    assert_eq!(subject.ask("tmpfs /mnt").unwrap(), "ok");
    assert_eq!(subject.ask("file /mnt/mine").unwrap(), "ok");
    assert_eq!(subject.ask("bind /mnt/mine /proc/stat").unwrap(), "ok");
    let report = run(
        &engine(&server.mountpoint),
        &subject,
        &attach("stat,meminfo"),
    );
    assert!(
        matches!(
            outcome(&report, "/proc/stat"),
            Outcome::Skipped(Skip::UserMount { .. })
        ),
        "{report:?}"
    );
    assert_eq!(subject.ask("read /proc/stat").unwrap(), "ok untouched");
    assert_eq!(*outcome(&report, "/proc/meminfo"), Outcome::Attached);
}

#[test]
fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let dir = host();
    let server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    let subject = Subject::start(&SUBJECT, &[]).unwrap();
    let before = subject.mountinfo().unwrap();
    let options = EngineOptions {
        dry_run: true,
        ..EngineOptions::default()
    };
    let engine = Arc::new(Engine::open(&server.mountpoint, options).unwrap());
    let report = run(&engine, &subject, &attach("meminfo"));
    assert_eq!(
        *outcome(&report, "/proc/meminfo"),
        Outcome::Planned { action: "attach" }
    );
    assert_eq!(subject.mountinfo().unwrap(), before);
}

#[test]
fn a_dead_or_missing_mount_is_no_source_and_the_error_says_why() {
    let dir = host();
    let open = |path: &Path| Engine::open(path, EngineOptions::default());
    let text = open(dir.path()).err().unwrap().to_string();
    assert!(
        text.contains("nothing is mounted there") && text.contains("--mount"),
        "{text}"
    );
    let text = open(Path::new("/proc")).err().unwrap().to_string();
    assert!(text.contains("(proc)"), "{text}");
    let mut server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    server.kill().unwrap();
    let text = open(&server.mountpoint).err().unwrap().to_string();
    assert!(text.contains("dead mount"), "{text}");
}

#[test]
fn with_the_daemon_gone_dead_mounts_can_still_be_removed() {
    let dir = host();
    let mut server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    let mut subject = Subject::start(&SUBJECT, &[]).unwrap();
    let before = subject.mountinfo().unwrap();
    run(&engine(&server.mountpoint), &subject, &attach("default"));
    server.kill().unwrap();
    let engine = Arc::new(Engine::without_source(EngineOptions::default()).unwrap());
    let report = run(&engine, &subject, &Goal::Detach { selection: None });
    assert_eq!(
        *outcome(&report, "/proc/meminfo"),
        Outcome::Detached,
        "{report:?}"
    );
    assert!(
        subject
            .ask("read /proc/meminfo")
            .unwrap()
            .starts_with("ok MemTotal")
    );
    assert_eq!(subject.mountinfo().unwrap(), before);
}

#[test]
fn a_hundred_containers_with_ten_files_each_are_healed() {
    const FILES: &str = "cpuinfo,meminfo,stat,uptime,diskstats,swaps,loadavg,slabinfo,vmstat,cpu";
    let dir = host();
    let mut subjects: Vec<Subject> = (0..100)
        .map(|_| Subject::start(&SUBJECT, &[]).unwrap())
        .collect();
    let mut server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "one").unwrap();
    let targets: Vec<Target> = subjects.iter().map(|s| Target::process(s.pid)).collect();
    let attached = engine(&server.mountpoint).run(targets, &attach(FILES));
    assert_eq!(attached.totals().attached, 1000, "{:?}", attached.totals());
    server.kill().unwrap();
    drop(server);
    let server = MarkerFs::start(&SERVER, &dir.path().join("fs"), "two").unwrap();

    let engine = engine(&server.mountpoint);
    let began = std::time::Instant::now();
    let ours: std::collections::BTreeSet<u32> = subjects.iter().map(|s| s.pid).collect();
    let found: Vec<Target> = Scan::default()
        .containers()
        .unwrap()
        .into_iter()
        .filter(|found| found.has_ours && ours.contains(&found.pid))
        .map(Target::from)
        .collect();
    let scanned = began.elapsed();
    assert_eq!(found.len(), 100);
    let report: Report = engine.run(found, &Goal::Heal);
    assert_eq!(report.totals().healed, 1000, "{:?}", report.totals());
    println!(
        "healed 100 containers x 10 files: scan {} us, heal {} us",
        scanned.as_micros(),
        report.elapsed_usec
    );
    for subject in &mut subjects {
        assert_eq!(
            subject.ask("read /proc/uptime").unwrap(),
            "ok two /proc/uptime"
        );
    }
}
