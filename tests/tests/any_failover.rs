//! Readers never notice that workers or the holder die. `native_failover.rs`
//! has what depends on speed or on the defaults of the holder's bounds.
// vm: all/v2 timeout=1200
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lxcfs_holder::control::Request;
use lxcfs_tests::chaos::{self, Plan};
use lxcfs_tests::fixture::{
    CONSTANT_BYTES, FIRST_BUILD, GENERATION_LINES, OTHER_BUILD, POISON, check_generation,
    constant_text,
};
use lxcfs_tests::serve::{Readers, Served, eventually, fixture_binary};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const KILLS: u32 = 200;

/// Without the bounds that an emulated machine under load could exceed for no fault of ours.
fn patient() -> Served {
    Served::with(&["orphan-ms=60000", "probe-ms=0"])
}

/// Readers of every kind (see `reader::KINDS`: open, read and close; pread on a kept file; 512
/// bytes at a time; poll) in several containers, some sent signals, some killed themselves.
/// `native_failover.rs` does the same with more kills.
#[test]
fn killed_workers_are_not_noticed() {
    let served = patient();
    let plan = Plan {
        kills: KILLS,
        pause: Duration::from_millis(30),
        processes: 4,
        threads: 16,
        hurt_readers: true,
    };
    let outcome = chaos::run(&served, plan);
    println!("{}", outcome.summary());
    served.assert_unharmed(&outcome.seen);
    assert!(outcome.replayed > 0, "no request was in flight at any kill");
    let status = served.status();
    // A slow machine may replace a late worker, too.
    assert!(status.number("worker_deaths") >= u64::from(KILLS));
    // By the threads' futex words, which is sooner than by closed descriptors.
    assert!(status.number("deaths_told_by_standby") > u64::from(KILLS) / 10);
}

struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// All at once: kills, upgrades between two builds, new holders, and a request that crashes every
/// worker, again and again.
#[test]
fn kills_amid_upgrades_new_holders_and_poison_are_not_noticed() {
    let mut served = patient();
    let builds = [
        (served.another_build(), OTHER_BUILD),
        (fixture_binary(), FIRST_BUILD),
    ];
    let readers = [(); 2].map(|()| Readers::start(&served.mount(), 16));
    let stop = AtomicBool::new(false);
    let poisoned = served.file("proc/vmstat");
    std::thread::scope(|scope| {
        let poison = scope.spawn(|| {
            let mut refused = 0;
            while !stop.load(Ordering::Relaxed) {
                match fs::read(&poisoned) {
                    Ok(text) => assert_eq!(text, constant_text(CONSTANT_BYTES)),
                    Err(error) => {
                        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
                        refused += 1;
                    }
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            refused
        });
        // Also when an assertion fails below: the scope waits for the thread.
        let done = Raise(&stop);
        for round in 0..12 {
            served.tell(POISON);
            for _ in 0..3 {
                served.kill_worker();
            }
            if round % 3 == 2 {
                // What crashes every worker, while no holder starts others, is the loss of all.
                served.untell(POISON);
                assert_eq!(
                    fs::read(served.file("proc/vmstat")).unwrap(),
                    constant_text(CONSTANT_BYTES)
                );
                served.signal_holder(Signal::SIGKILL);
                served.wait_holder();
                served.start_holder();
                continue;
            }
            let (build, name) = &builds[round % 2];
            // An upgrade whose first worker is given the poison is refused, and tried again.
            eventually("the upgrade", || {
                let asked = Request::Upgrade(build.clone());
                served.ask(&asked).is_ok_and(|answer| answer.is_ok())
            });
            eventually("the other build answers", || {
                let asked = Request::Command("who".to_owned());
                let told = served.ask(&asked).ok().and_then(Result::ok);
                told.is_some_and(|told| told.ends_with(name))
            });
        }
        drop(done);
        let refused = poison.join().unwrap();
        println!("{refused} poison requests refused");
        assert!(refused > 0);
    });
    for readers in readers {
        served.assert_unharmed(&readers.finish());
    }
}

#[test]
fn a_request_that_crashes_every_worker_gets_eio_and_the_others_are_served() {
    let served = patient();
    let readers = Readers::start(&served.mount(), 8);
    served.tell(POISON);
    for round in 1..=5 {
        let error = fs::read(served.file("proc/vmstat")).expect_err("vmstat crashes workers");
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
        eventually("the poison is counted", || {
            served.status().number("poisoned_requests") == round
        });
        assert_eq!(
            fs::read(served.file("proc/meminfo")).unwrap(),
            constant_text(CONSTANT_BYTES)
        );
    }
    served.untell(POISON);
    assert_eq!(
        fs::read(served.file("proc/vmstat")).unwrap(),
        constant_text(CONSTANT_BYTES)
    );
    served.assert_unharmed(&readers.finish());
}

#[test]
fn an_open_file_continues_its_text_in_the_next_worker() {
    let served = patient();
    let mut file = File::open(served.file("proc/stat")).unwrap();
    let mut text = vec![0; 700];
    file.read_exact(&mut text).unwrap();
    served.kill_worker();
    file.read_to_end(&mut text).unwrap();
    check_generation(&text).unwrap();
    // Everything was read; the end must be the end for the next worker too.
    served.kill_worker();
    assert_eq!(file.read(&mut [0; 100]).unwrap(), 0);
    let again = &mut [0; 100];
    file.read_exact_at(again, 0).unwrap();
    assert!(again.starts_with(b"generation "));
    assert!(!text.starts_with(again), "offset 0 must start a new text");
    assert!(text.ends_with(format!("line {}\n", GENERATION_LINES - 1).as_bytes()));
}

#[test]
fn a_stopped_daemon_makes_readers_wait_and_nothing_else() {
    let served = patient();
    eventually("a standby", || served.status().number("standby_ready") == 1);
    let readers = Readers::start(&served.mount(), 8);
    let status = served.status();
    let processes = ["holder", "worker", "standby"].map(|key| status.number(key) as i32);
    for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
        for pid in processes {
            kill(Pid::from_raw(pid), signal).unwrap();
        }
        std::thread::sleep(Duration::from_secs(2));
    }
    let seen = readers.finish();
    served.assert_unharmed(&seen);
    assert!(seen.worst >= Duration::from_secs(1), "{seen:?}");
    assert_eq!(served.status().number("worker_deaths"), 0);
}

#[test]
fn a_successor_takes_over_from_the_workers_of_a_killed_holder() {
    let mut served = patient();
    let readers = Readers::start(&served.mount(), 16);
    let kept = File::open(served.file("proc/meminfo")).unwrap();
    for _ in 0..5 {
        served.signal_holder(Signal::SIGKILL);
        served.wait_holder();
        // Without a holder the worker serves on.
        assert_eq!(
            fs::read(served.file("proc/meminfo")).unwrap(),
            constant_text(CONSTANT_BYTES)
        );
        served.start_holder();
        assert!(
            served.log().contains("taking connection"),
            "{}",
            served.log()
        );
        served.kill_worker();
    }
    let mut text = vec![0; CONSTANT_BYTES];
    kept.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(text, constant_text(CONSTANT_BYTES));
    served.assert_unharmed(&readers.finish());
    let workers = served.workers();
    assert!(workers.len() <= 2, "{workers:?} are left");
}

#[test]
fn a_standby_goes_on_without_holder_and_worker_whichever_dies_first() {
    let mut served = patient();
    let readers = Readers::start(&served.mount(), 16);
    for round in 0..12 {
        served.wait_for_both();
        let before = served.status();
        let pid = |key| Pid::from_raw(before.number(key) as i32);
        match round % 3 {
            0 => {
                kill(pid("worker"), Signal::SIGKILL).unwrap();
                served.signal_holder(Signal::SIGKILL);
            }
            1 => {
                served.signal_holder(Signal::SIGKILL);
                kill(pid("worker"), Signal::SIGKILL).unwrap();
            }
            // The standby knows about the holder, and waits for the worker's end.
            _ => {
                served.signal_holder(Signal::SIGKILL);
                served.wait_holder();
                std::thread::sleep(Duration::from_millis(300));
                kill(pid("worker"), Signal::SIGKILL).unwrap();
            }
        }
        if round % 3 != 2 {
            served.wait_holder();
        }
        assert_eq!(
            fs::read(served.file("proc/meminfo")).unwrap(),
            constant_text(CONSTANT_BYTES)
        );
        served.start_holder();
    }
    served.assert_unharmed(&readers.finish());
    let workers = served.workers();
    assert!(workers.len() <= 2, "{workers:?} are left");
}

#[test]
fn workers_without_a_holder_end_with_the_mount() {
    let mut served = patient();
    served.wait_for_both();
    assert_eq!(served.workers().len(), 2);
    served.signal_holder(Signal::SIGKILL);
    served.wait_holder();
    assert_eq!(
        served.workers().len(),
        2,
        "nobody may end while it is mounted"
    );
    nix::mount::umount(&served.mount()).unwrap();
    eventually("the workers end", || served.workers().is_empty());
}

#[test]
fn a_dead_mount_of_ours_is_replaced() {
    let mut served = patient();
    served.kill_everybody();
    served.wait_holder();
    eventually("the connection is lost", || {
        let gone = fs::read(served.file("proc/meminfo")).map_err(|e| e.raw_os_error());
        gone == Err(Some(libc::ENOTCONN))
    });
    served.start_holder();
    assert!(
        served.log().contains("replacing the dead mount"),
        "{}",
        served.log()
    );
    assert_eq!(
        fs::read(served.file("proc/meminfo")).unwrap(),
        constant_text(CONSTANT_BYTES)
    );
}
