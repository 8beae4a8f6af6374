//! Readers never notice that workers die: kills, crashes, hangs, upgrades, loss of the holder.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lxcfs_holder::control::Request;
use lxcfs_tests::chaos::{self, Plan};
use lxcfs_tests::fixture::{BROKEN, CONSTANT_BYTES, FIRST_BUILD, HANG, OTHER_BUILD, constant_text};
use lxcfs_tests::serve::{Readers, Served, comm, eventually, fixture_binary};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn hundreds_of_killed_workers_are_not_noticed() {
    let served = Served::start();
    let plan = Plan {
        kills: 300,
        pause: Duration::from_millis(30),
        processes: 4,
        threads: 16,
        hurt_readers: true,
    };
    let outcome = chaos::run(&served, plan);
    served.assert_unharmed(&outcome.seen);
    assert!(outcome.replayed > 0, "no request was in flight at any kill");
    assert_eq!(served.status().number("worker_deaths"), 300);
}

#[test]
fn kills_in_quick_succession_without_a_standby_are_not_noticed() {
    let served = Served::with(&["standby=0"]);
    let plan = Plan {
        kills: 200,
        pause: Duration::from_millis(3),
        processes: 2,
        threads: 8,
        hurt_readers: false,
    };
    let outcome = chaos::run(&served, plan);
    served.assert_unharmed(&outcome.seen);
    assert!(outcome.warm.is_empty());
}

#[test]
fn reads_wait_while_no_worker_can_start_and_then_succeed() {
    let served = Served::with(&["orphan-ms=60000"]);
    eventually("a standby", || served.status().number("standby_ready") == 1);
    served.tell(BROKEN);
    // The standby was made before; it serves once more.
    served.kill_worker();
    let worker = served.worker();
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    eventually("nobody serves", || served.status().number("serving") == 0);
    let path = served.file("proc/meminfo");
    let reader = std::thread::spawn(move || (fs::read(path), Instant::now()));
    std::thread::sleep(Duration::from_secs(2));
    let repaired = Instant::now();
    assert!(!reader.is_finished(), "answered by nobody");
    served.untell(BROKEN);
    let (text, answered) = reader.join().unwrap();
    assert_eq!(text.unwrap(), constant_text(CONSTANT_BYTES));
    assert!(answered >= repaired);
}

#[test]
fn orphans_get_eio_after_the_bound_when_no_worker_comes() {
    let served = Served::with(&["orphan-ms=1000", "standby=0", "probe-ms=0"]);
    served.tell(HANG);
    let path = served.file("proc/swaps");
    let reader = std::thread::spawn(move || fs::read(path));
    eventually("the request is being handled", || {
        served.status().number("answers") > 0
    });
    std::thread::sleep(Duration::from_millis(300));
    served.tell(BROKEN);
    kill(Pid::from_raw(served.worker()), Signal::SIGKILL).unwrap();
    let error = reader.join().unwrap().expect_err("nobody can answer");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    served.untell(BROKEN);
    served.untell(HANG);
    assert_eq!(
        fs::read(served.file("proc/meminfo")).unwrap(),
        constant_text(CONSTANT_BYTES)
    );
}

#[test]
fn a_stuck_worker_is_replaced_by_the_watchdog() {
    let served = Served::with(&["probe-ms=200", "probe-deadline-ms=500"]);
    eventually("a standby", || served.status().number("standby_ready") == 1);
    let loops = served.status().number("loops");
    let stuck = served.worker();
    served.tell(HANG);
    let readers: Vec<_> = (0..loops)
        .map(|_| {
            let path = served.file("proc/swaps");
            std::thread::spawn(move || fs::read(path))
        })
        .collect();
    eventually("the stuck worker is replaced", || {
        served.status().number("stuck_workers") >= 1
    });
    served.untell(HANG);
    eventually("another serves", || {
        let status = served.status();
        status.number("serving") == 1 && status.number("worker") != stuck as u64
    });
    for reader in readers {
        // Answered by a later worker, or given up after it hung one too many.
        let result = reader.join().unwrap();
        assert!(result.is_ok() || result.unwrap_err().raw_os_error() == Some(libc::EIO));
    }
    assert_eq!(
        fs::read(served.file("proc/meminfo")).unwrap(),
        constant_text(CONSTANT_BYTES)
    );
}

#[test]
fn upgrades_between_two_builds_are_not_noticed() {
    let served = Served::start();
    let builds = [
        (served.another_build(), OTHER_BUILD),
        (fixture_binary(), FIRST_BUILD),
    ];
    let holder = served.holder();
    let readers = Readers::start(&served.mount(), 16);
    for (round, (build, name)) in builds.iter().cycle().take(10).enumerate() {
        let answer = served.ask(&Request::Upgrade(build.clone())).unwrap();
        assert!(answer.is_ok(), "{answer:?}");
        let status = served.status();
        assert_eq!(status.text("program"), build.to_string_lossy());
        assert_eq!(status.number("holder"), holder as u64, "upgraded in place");
        for pid in [holder, status.number("worker") as i32] {
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
            assert_eq!(&exe, build, "round {round}: process {pid}");
        }
        let told = served.ask(&Request::Command("who".to_owned())).unwrap();
        assert_eq!(told.as_deref(), Ok(&*format!("heard who, {name}")));
        if round % 3 == 0 {
            served.kill_worker();
        }
    }
    served.assert_unharmed(&readers.finish());
    assert_eq!(comm(holder).as_deref(), Some("lxcfs-holder"));
}

#[test]
fn sigusr1_starts_the_program_on_disk() {
    let served = Served::start();
    let before = served.worker();
    served.signal_holder(Signal::SIGUSR1);
    eventually("another worker serves", || {
        let status = served.status();
        status.number("serving") == 1 && status.number("worker") != before as u64
    });
    assert_eq!(served.status().number("upgrades"), 1);
}

#[test]
fn a_failed_upgrade_leaves_the_old_program_serving() {
    let served = Served::start();
    let readers = Readers::start(&served.mount(), 8);
    let program = served.status().text("program").to_owned();
    for (path, why) in [
        ("/bin/false", "prepared itself"),
        ("/nonexistent", "No such file"),
        ("/etc/passwd", "not an executable"),
    ] {
        let refused = served
            .ask(&Request::Upgrade(path.into()))
            .unwrap()
            .unwrap_err();
        assert!(refused.contains(why), "{refused}");
        assert!(refused.contains(path), "{refused}");
    }
    served.tell(BROKEN);
    let build = served.another_build();
    served.ask(&Request::Upgrade(build)).unwrap().unwrap_err();
    served.untell(BROKEN);
    assert_eq!(served.status().text("program"), program);
    served.assert_unharmed(&readers.finish());
}

#[test]
fn a_second_instance_is_refused_and_the_first_serves_on() {
    let served = Served::start();
    let output = served.command().stderr(Stdio::piped()).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        message.contains(&format!("holder process {}", served.holder())),
        "{message}"
    );
    assert_eq!(
        fs::read(served.file("proc/meminfo")).unwrap(),
        constant_text(CONSTANT_BYTES)
    );
    assert_eq!(served.status().number("serving"), 1);
}

#[test]
fn processes_have_the_names_people_look_for() {
    let served = Served::start();
    assert_eq!(comm(served.holder()).as_deref(), Some("lxcfs-holder"));
    assert_eq!(comm(served.worker()).as_deref(), Some("lxcfs-worker"));
    let threads = fs::read_dir(format!("/proc/{}/task", served.holder()))
        .unwrap()
        .count();
    assert_eq!(threads, 1, "the holder is single-threaded");
}

#[test]
fn commands_reach_the_daemon_and_strangers_are_told() {
    let served = Served::start();
    let answer = served
        .ask(&Request::Command("log-level debug".to_owned()))
        .unwrap();
    let heard = format!("heard log-level debug, {FIRST_BUILD}");
    assert_eq!(answer.as_deref(), Ok(&*heard));
    // The socket is root's.
    let refused = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "test",
            "-w",
        ])
        .arg(served.socket())
        .status()
        .unwrap();
    assert!(!refused.success());
}

#[test]
fn sigterm_unmounts_and_exits_0_within_a_second() {
    let mut served = Served::start();
    let pids = [served.worker(), served.status().number("standby") as i32];
    // An open file must not hold anything up.
    let _kept = File::open(served.file("proc/meminfo")).unwrap();
    let start = Instant::now();
    served.signal_holder(Signal::SIGTERM);
    let status = served.wait_holder();
    assert!(status.success(), "{status}");
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mountinfo.contains(&*served.mount().to_string_lossy()));
    assert!(!served.socket().exists());
    for pid in pids {
        assert_ne!(
            comm(pid).as_deref(),
            Some("lxcfs-worker"),
            "worker {pid} is left"
        );
    }
    assert_eq!(fs::read_dir(served.mount()).unwrap().count(), 0);
}

#[test]
fn unmounting_from_outside_ends_the_holder_regularly() {
    let mut served = Served::start();
    nix::mount::umount2(&served.mount(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    let status = served.wait_holder();
    assert!(status.success(), "{status}\n{}", served.log());
    assert!(served.log().contains("was unmounted"), "{}", served.log());
}
