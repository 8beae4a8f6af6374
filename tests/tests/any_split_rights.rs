//! `lxcfs serve` with exactly the rights that are documented, against the daemon in one piece.
// vm: 6.12/v2
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use lxcfs_common::pod::SERVER_CAPABILITIES;
use lxcfs_tests::Lxcfs;
use lxcfs_tests::serve::eventually;
use lxcfs_tests::split::{Held, SERVER_UID, closed_container_reads, container_reads};

/// Figures from a control socket.
fn metrics(socket: &Path) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream
        .write_all(b"GET /metrics HTTP/1.0\r\nHost: lxcfs\r\n\r\n")
        .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn features(socket: &Path) -> Vec<String> {
    let mut found = Vec::new();
    eventually("the features to be told", || {
        let text = metrics(socket).unwrap_or_default();
        let lines = text
            .lines()
            .filter(|line| line.starts_with("lxcfs_feature{"));
        found = lines.map(str::to_owned).collect();
        !found.is_empty()
    });
    found
}

/// The kernel's word for a process: uids, then permitted, effective and bounding capabilities.
fn rights_of(pid: u64) -> (String, Vec<u64>) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().trim().to_owned()
    };
    let masks = ["CapPrm:", "CapEff:", "CapBnd:"].map(of);
    let masks = masks
        .iter()
        .map(|mask| u64::from_str_radix(mask, 16).unwrap());
    (of("Uid:"), masks.collect())
}

/// The bits of `capabilities(7)`.
fn mask() -> u64 {
    let bit = |name: &&str| match *name {
        "DAC_READ_SEARCH" => 2,
        "SYS_PTRACE" => 19,
        "PERFMON" => 38,
        "BPF" => 39,
        other => panic!("no number for {other}"),
    };
    SERVER_CAPABILITIES
        .iter()
        .map(|name| 1_u64 << bit(name))
        .sum()
}

#[test]
fn a_server_of_another_user_with_four_capabilities_does_all_that_the_daemon_does() {
    let whole = Lxcfs::start::<&str>(&[]);
    let expected = features(&whole.runtime_dir().join("lxcfs/control.sock"));
    whole.stop();

    let held = Held::start();
    let server = held.serve(&[]);
    eventually("it serves with a standby", || {
        let status = held.status();
        status.number("serving") == 1 && status.number("standby_ready") == 1
    });
    let status = held.status();
    for pid in [status.number("worker"), u64::from(server.pid())] {
        let (uids, masks) = rights_of(pid);
        assert_eq!(uids, [SERVER_UID.to_string().as_str(); 4].join("\t"));
        assert_eq!(masks, [mask(); 3], "permitted, effective, bounding");
    }
    let control = held.path("server/lxcfs/control.sock");
    assert_eq!(features(&control), expected);
    let figures = metrics(&control).unwrap();
    assert!(
        figures.contains("\nlxcfs_worker_deaths_total 0"),
        "{figures}"
    );
    for unexpected in [
        "no_detached_procfs",
        "cgroupns_root_unknown",
        "caller_unknown",
    ] {
        let line = figures.lines().find(|line| line.contains(unexpected));
        let count = line.and_then(|line| line.rsplit_once(' ')).map(|(_, n)| n);
        assert!(matches!(count, None | Some("0")), "{line:?}");
    }
    let (total, uptime) = container_reads(&held.path("mnt"));
    assert_eq!(total, "MemTotal:         131072 kB\n");
    assert!(uptime.trim().parse::<u64>().unwrap() < 60, "{uptime}");
    let figures = metrics(&control).unwrap();
    let unknown = figures
        .lines()
        .find(|line| line.contains("cgroupns_root_unknown") || line.contains("caller_unknown"));
    assert!(
        unknown.is_none_or(|line| line.ends_with(" 0")),
        "{unknown:?}"
    );
    server.stop();
}

/// What a server with these capabilities shows: the features that it lacks, and what a container
/// reads whose cgroup is closed to others.
fn shown_with(capabilities: &[&str]) -> (Vec<String>, Result<String, String>) {
    let held = Held::start();
    let server = held.serve_with(capabilities);
    eventually("it serves", || held.status().number("serving") == 1);

    let mut off = features(&held.path("server/lxcfs/control.sock"));
    off.retain(|line| !line.contains("state=\"on\""));
    let read = closed_container_reads(&held.path("mnt"));
    server.stop();
    (off, read)
}

#[test]
fn the_server_needs_each_of_its_capabilities() {
    let own = Ok("MemTotal:         131072 kB\n".to_owned());
    assert_eq!(shown_with(&SERVER_CAPABILITIES), (vec![], own.clone()));
    for lacking in SERVER_CAPABILITIES {
        let rest = SERVER_CAPABILITIES.into_iter();
        let rest: Vec<_> = rest.filter(|name| *name != lacking).collect();
        let (off, read) = shown_with(&rest);
        println!("without {lacking}: {read:?}, features off: {off:?}");
        match lacking {
            "BPF" | "PERFMON" => assert!(!off.is_empty() && read == own),
            // An error, never the machine's memory.
            _ => assert!(read.is_err(), "{read:?}"),
        }
    }
}

#[test]
fn the_servers_documented_capabilities_are_those_of_its_manifest() {
    let text = include_str!("../../docs/capabilities.md");
    let (_, section) = text.split_once("## The server").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| "));
    let names = rows.filter_map(|row| row.split(' ').next());
    let mut documented: Vec<_> = names.filter(|name| *name != "capability").collect();
    documented.sort_unstable();
    assert_eq!(documented, SERVER_CAPABILITIES);
}
