//! What a daemon says of the state its eBPF side is in, in all places where it says it.

use std::process::Command;

use crate::container::Shape;
use crate::{Container, Lxcfs, TestCgroup, lxcfs_binary};

fn said_by(arguments: &[&str], lxcfs: &Lxcfs) -> String {
    let output = Command::new(lxcfs_binary())
        .args(arguments)
        .arg(format!("--runtime-dir={}", lxcfs.runtime_dir().display()))
        .output()
        .unwrap_or_else(|error| panic!("cannot start lxcfs: {error}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asserts that a feature is off, and that the log's line at the start, the metric and
/// `lxcfs doctor` all say so, with `reason` and `remedy`.
///
/// # Panics
/// When one of them does not.
pub fn assert_off(lxcfs: &Lxcfs, feature: &str, reason: &str, remedy: &str) {
    let line = line_with(lxcfs, &format!("{feature}: off, "));
    assert!(line.contains(reason), "{reason:?} in {line}");
    assert!(line.contains(remedy), "{remedy:?} in {line}");

    let metric = format!("lxcfs_feature{{feature=\"{feature}\",state=\"off\"}} 1");
    let metrics = metrics(lxcfs);
    assert!(metrics.contains(&metric), "{metric} in\n{metrics}");

    let mount = format!("--mount={}", lxcfs.mountpoint().display());
    let doctor = said_by(&["doctor", &mount], lxcfs);
    // The row, which starts with a mark, and the line below it with the remedy.
    let is_row = |line: &&str| line.split_whitespace().nth(1) == Some(feature);
    let rows = doctor.lines().skip_while(|line| !is_row(line));
    let row: Vec<&str> = rows.take(2).collect();
    assert!(!row.is_empty(), "no row {feature} in\n{doctor}");
    let row = row.join(" ");
    assert!(
        row.contains("off: ") && row.contains(reason) && row.contains(remedy),
        "{row} of\n{doctor}"
    );
}

/// The line of the log with these words. Files can be read a moment before it is written.
fn line_with(lxcfs: &Lxcfs, words: &str) -> String {
    let mut found = None;
    crate::serve::eventually(words, || {
        let log = lxcfs.log();
        found = log
            .lines()
            .find(|line| line.contains(words))
            .map(str::to_owned);
        found.is_some()
    });
    found.unwrap_or_default()
}

/// Asserts that a feature works, in the log and the metric.
///
/// # Panics
/// When it does not.
pub fn assert_on(lxcfs: &Lxcfs, feature: &str) {
    line_with(lxcfs, &format!("{feature}: on, "));
    let metric = format!("lxcfs_feature{{feature=\"{feature}\",state=\"on\"}} 1");
    assert!(metrics(lxcfs).contains(&metric), "{metric}");
}

/// The daemon's metrics.
///
/// # Panics
/// When it does not tell them.
pub fn metrics(lxcfs: &Lxcfs) -> String {
    use std::io::{Read as _, Write as _};
    let path = lxcfs.runtime_dir().join("lxcfs/control.sock");
    let mut text = String::new();
    crate::serve::eventually("the control socket answers", || {
        let Ok(mut socket) = std::os::unix::net::UnixStream::connect(&path) else {
            return false;
        };
        text.clear();
        let request = b"GET /metrics HTTP/1.1\r\nHost: lxcfs\r\nConnection: close\r\n\r\n";
        socket.write_all(request).is_ok() && socket.read_to_string(&mut text).is_ok()
    });
    text
}

/// Asserts that a container is served its own values in this state.
///
/// # Panics
/// When it sees others'.
pub fn assert_served(lxcfs: &Lxcfs) {
    let cgroup = TestCgroup::new("state");
    cgroup.limit_memory(64 << 20);
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
    let meminfo = container.read("/proc/meminfo");
    assert!(
        meminfo.starts_with("MemTotal:          65536 kB"),
        "{meminfo}"
    );
    let stat = container.read("/proc/stat");
    assert!(stat.starts_with("cpu  "), "{stat}");
    let load = container.read("/proc/loadavg");
    assert_eq!(load.split_whitespace().count(), 5, "{load}");
}
