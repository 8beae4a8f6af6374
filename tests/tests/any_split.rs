//! The holder in one place, a server in another: as user `nobody` with four capabilities, killed,
//! replaced and left alone, under readers that check every byte.
// vm: 6.12/v2 timeout=900
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use lxcfs_holder::control::Request;
use lxcfs_tests::chaos::{self, Plan};
use lxcfs_tests::fixture::{
    CONSTANT_BYTES, CONTROL_DIR, FIRST_BUILD, HANG, OTHER_BUILD, POISON, constant_text,
};
use lxcfs_tests::serve::{Readers, Served, eventually, fixture_binary};
use lxcfs_tests::split::{SERVER_UID, Server, confined};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A place for the socket, and servers of the fixture that come to it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::TempDir::with_prefix("lxcfs-split").unwrap();
        // The server is somebody else.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("workers.sock")
    }

    fn server_of(&self, program: &std::path::Path, name: &str) -> Server {
        let mut command = confined(&[], SERVER_UID, program);
        command.env(CONTROL_DIR, self.dir.path());
        let socket = self.socket().display().to_string();
        Server::start(command, &["serve", &socket], &self.dir.path().join(name))
    }

    fn server(&self, name: &str) -> Server {
        self.server_of(&fixture_binary(), name)
    }

    /// A holder that only holds; there must be a server already.
    fn served(&self, options: &[&str]) -> Served {
        let outside = format!("outside={}", self.socket().display());
        let uid = format!("outside-uid={SERVER_UID}");
        let mut all = vec![outside.as_str(), &uid, "probe-ms=0"];
        all.extend(options);
        Served::with(&all)
    }

    fn tell(&self, name: &str) {
        fs::write(self.dir.path().join(name), "").unwrap();
    }

    fn untell(&self, name: &str) {
        fs::remove_file(self.dir.path().join(name)).unwrap();
    }
}

const PATIENT: &str = "orphan-ms=60000";

fn meminfo(served: &Served) -> std::io::Result<Vec<u8>> {
    fs::read(served.file("proc/meminfo"))
}

fn served_by(served: &Served, server: &Server) {
    eventually("the server serves and has a standby", || {
        let status = served.status();
        let ready = status.number("serving") == 1 && status.number("standby_ready") == 1;
        ready && status.number("server") == u64::from(server.pid())
    });
}

#[test]
fn killed_workers_of_a_server_are_not_noticed() {
    let place = Place::new();
    let server = place.server("log");
    let served = place.served(&[PATIENT]);
    served_by(&served, &server);
    let plan = Plan {
        kills: 60,
        pause: Duration::from_millis(30),
        processes: 4,
        threads: 16,
        hurt_readers: true,
    };
    let outcome = chaos::run(&served, plan);
    println!("{}", outcome.summary());
    served.assert_unharmed(&outcome.seen);
    assert!(outcome.replayed > 0, "no request was in flight at any kill");
    assert!(served.status().number("worker_deaths") >= 60);
    served_by(&served, &server);
    server.stop();
}

#[test]
fn readers_wait_for_the_next_server_and_an_orphaned_worker_serves_on() {
    let place = Place::new();
    let mut server = place.server("log-0");
    let served = place.served(&[PATIENT]);
    served_by(&served, &server);
    let readers = Readers::start(&served.mount(), 16);
    for round in 1..=4 {
        let name = format!("log-{round}");
        if round % 2 == 0 {
            server.stop();
            eventually("nobody serves", || served.status().number("serving") == 0);
            server = place.server(&name);
        } else {
            // Its workers answer until those of the next are ready.
            server.kill();
            assert_eq!(meminfo(&served).unwrap(), constant_text(CONSTANT_BYTES));
            let next = place.server(&name);
            served_by(&served, &next);
            eventually("the first one's workers are gone", || {
                server.workers().is_empty()
            });
            server = next;
        }
        served_by(&served, &server);
    }
    served.assert_unharmed(&readers.finish());
}

#[test]
fn without_a_server_what_was_being_answered_fails_after_the_bound_and_the_rest_waits() {
    let place = Place::new();
    let server = place.server("log-1");
    let served = place.served(&["orphan-ms=1000"]);
    served_by(&served, &server);
    place.tell(HANG);
    let path = served.file("proc/swaps");
    let stuck = std::thread::spawn(move || fs::read(path));
    eventually("the request is being handled", || {
        served.status().number("answers") > 0
    });
    std::thread::sleep(Duration::from_millis(300));
    server.stop();
    let error = stuck.join().unwrap().expect_err("nobody can answer");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let path = served.file("proc/meminfo");
    let waiting = std::thread::spawn(move || fs::read(path));
    std::thread::sleep(Duration::from_secs(2));
    assert!(!waiting.is_finished(), "answered by nobody");
    place.untell(HANG);
    let server = place.server("log-2");
    let text = waiting.join().unwrap();
    assert_eq!(text.unwrap(), constant_text(CONSTANT_BYTES));
    served_by(&served, &server);
}

#[test]
fn a_newer_server_replaces_an_older_one_which_returns_only_when_it_is_needed() {
    let place = Place::new();
    let other = place.dir.path().join("other-build");
    let mut bytes = fs::read(fixture_binary()).unwrap();
    let name = FIRST_BUILD.as_bytes();
    let found: Vec<usize> = (0..bytes.len() - name.len())
        .filter(|at| bytes[*at..].starts_with(name))
        .collect();
    assert!(!found.is_empty(), "{FIRST_BUILD} is not in the program");
    for at in found {
        bytes[at..at + name.len()].copy_from_slice(OTHER_BUILD.as_bytes());
    }
    fs::write(&other, bytes).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
    let who = |served: &Served| served.ask(&Request::Command("who".to_owned())).unwrap();

    let older = place.server("log-older");
    let served = place.served(&[PATIENT]);
    served_by(&served, &older);
    assert_eq!(who(&served), Ok(format!("heard who, {FIRST_BUILD}")));
    let readers = Readers::start(&served.mount(), 16);
    let newer = place.server_of(&other, "log-newer");
    served_by(&served, &newer);
    assert_eq!(who(&served), Ok(format!("heard who, {OTHER_BUILD}")));
    assert_eq!(served.status().number("upgrades"), 1);
    // The older one offers itself and is told to wait, however often.
    for _ in 0..5 {
        served.kill_worker();
        served_by(&served, &newer);
    }
    assert_eq!(served.status().number("upgrades"), 1);
    newer.stop();
    served_by(&served, &older);
    let refused = served.ask(&Request::Upgrade(other)).unwrap().unwrap_err();
    assert!(refused.contains("server"), "{refused}");
    served.assert_unharmed(&readers.finish());
}

#[test]
fn a_request_that_crashes_every_worker_gets_eio_soon() {
    let place = Place::new();
    let server = place.server("log");
    let served = place.served(&[PATIENT]);
    served_by(&served, &server);
    let readers = Readers::start(&served.mount(), 8);
    place.tell(POISON);
    let error = fs::read(served.file("proc/vmstat")).expect_err("vmstat crashes workers");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    place.untell(POISON);
    eventually("the poison is counted", || {
        served.status().number("poisoned_requests") == 1
    });
    let deaths = served.status().number("worker_deaths");
    println!("{deaths} workers died of it");
    assert!(deaths < 10, "{deaths} workers crashed\n{}", server.log());
    assert_eq!(meminfo(&served).unwrap(), constant_text(CONSTANT_BYTES));
    served.assert_unharmed(&readers.finish());
}

#[test]
fn another_holder_takes_the_connection_over_from_a_servers_workers() {
    let place = Place::new();
    let server = place.server("log");
    let mut served = place.served(&[PATIENT]);
    served_by(&served, &server);
    let readers = Readers::start(&served.mount(), 16);
    for round in 0..6 {
        let worker = served.status().number("worker") as i32;
        served.signal_holder(Signal::SIGKILL);
        if round % 2 == 1 {
            // The one that stands by serves.
            kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        }
        served.wait_holder();
        assert_eq!(meminfo(&served).unwrap(), constant_text(CONSTANT_BYTES));
        served.start_holder();
        assert!(served.log().contains("taking connection"));
        served_by(&served, &server);
    }
    served.assert_unharmed(&readers.finish());
    eventually("two workers are left", || server.workers().len() == 2);
}

#[test]
fn a_stranger_gets_nothing() {
    let place = Place::new();
    let server = place.server("log");
    let served = place.served(&[PATIENT]);
    served_by(&served, &server);
    let socket = place.socket();
    let offer = || {
        let output = Command::new("setpriv")
            .args(["--reuid=1234", "--regid=1234", "--clear-groups"])
            .arg(fixture_binary())
            .args(["worker", "--server=99999999999999999:1", "--join"])
            .arg(&socket)
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let kept_out = offer();
    assert!(kept_out.contains("Permission denied"), "{kept_out}");
    // Whatever the file's mode becomes.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let refused = offer();
    assert!(refused.contains("another user"), "{refused}");
    served_by(&served, &server);
    assert_eq!(served.status().number("worker_deaths"), 0);
}
