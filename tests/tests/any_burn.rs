//! Clients in a container with a quota of one and a half CPUs show what it burns: no more than
//! its own, and all of it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
// vm: all/v2

use std::time::Instant;

use lxcfs_tests::container::Shape;
use lxcfs_tests::scratch::wait_until;
use lxcfs_tests::{Burner, Container, Lxcfs, TestCgroup};

/// In CPUs. A client that showed the machine, or only one of the CPUs, would be off by more.
const TOLERANCE: f64 = 0.2;
/// What the quota allows, in CPUs.
const QUOTA: f64 = 1.5;
/// Seconds every client looks at.
const LOOK: f64 = 4.0;

struct Burning {
    container: Container,
    cgroup: TestCgroup,
    _burners: [Burner; 2],
    _lxcfs: Lxcfs,
}

fn burning(name: &str) -> Burning {
    let lxcfs = Lxcfs::start::<&str>(&[]);
    let cgroup = TestCgroup::new(name);
    cgroup.limit_memory(256 << 20);
    cgroup.limit_cpu(150_000, 100_000);
    let container = Container::start(&cgroup, &lxcfs.mountpoint(), &Shape::default());
    let burners = [(); 2].map(|()| Burner::start(&cgroup, None));
    let at = Burning {
        container,
        cgroup,
        _burners: burners,
        _lxcfs: lxcfs,
    };
    let start = at.usage();
    wait_until("the burners burn", || at.usage() > start + 300_000.0);
    at
}

/// CPU time that was used while a client ran, and how long it ran, in seconds.
#[derive(Clone, Copy)]
struct Meanwhile {
    used: f64,
    elapsed: f64,
}

impl Burning {
    /// CPU time used, in microseconds.
    fn usage(&self) -> f64 {
        if self.cgroup.is_v1("cpuacct") {
            let text = self.cgroup.read("cpuacct.usage");
            return text.trim().parse::<f64>().unwrap() / 1e3;
        }
        let text = self.cgroup.read("cpu.stat");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        line.unwrap().parse().unwrap()
    }

    /// Runs a client inside. Its output, and what was used meanwhile.
    fn run(&self, arguments: &[&str]) -> (String, Meanwhile) {
        let (start, before) = (Instant::now(), self.usage());
        let text = self.container.stdout(arguments);
        let used = (self.usage() - before) / 1e6;
        let elapsed = start.elapsed().as_secs_f64();
        (text, Meanwhile { used, elapsed })
    }
}

/// The words of a line as numbers, from the end backwards.
fn last_number(line: &str) -> f64 {
    let word = line.split_whitespace().last().unwrap();
    word.parse()
        .unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// The client looked at a part of the time it ran: it cannot have seen more than was used in
/// all of it, nor less than that without what the quota allows in the rest.
fn assert_shown(client: &str, idle: &[f64], meanwhile: Meanwhile, text: &str) {
    let Meanwhile { used, elapsed } = meanwhile;
    assert_eq!(idle.len(), 2, "{client} shows two CPUs:\n{text}");
    let busy: f64 = idle.iter().map(|idle| 1.0 - idle / 100.0).sum();
    let most = (used / LOOK).min(QUOTA) + TOLERANCE;
    let rest = (elapsed - LOOK).max(0.0) * QUOTA;
    let least = (used - rest) / LOOK - TOLERANCE;
    println!("{client}: {busy:.2} CPUs shown; {used:.2} s used in {elapsed:.2} s");
    assert!(
        least <= busy && busy <= most,
        "{client} shows {busy} CPUs and not {least} to {most}:\n{text}"
    );
}

#[test]
fn mpstat_shows_what_the_container_burns() {
    let at = burning("mpstat");
    let (text, meanwhile) = at.run(&["mpstat", "-P", "ALL", "4", "1"]);
    let rows: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("Average:") && !line.contains("%idle"))
        .collect();
    let all = rows.first().map(|line| last_number(line)).unwrap();
    let idle: Vec<f64> = rows.iter().skip(1).map(|line| last_number(line)).collect();
    assert_shown("mpstat", &idle, meanwhile, &text);
    assert!(
        (all - idle.iter().sum::<f64>() / 2.0).abs() < 1.0,
        "the line of all is the mean:\n{text}"
    );
}

#[test]
fn top_shows_what_the_container_burns() {
    let at = burning("top");
    let arguments = ["top", "-b", "-n", "2", "-d", "4", "-1", "-w", "200"];
    let (text, meanwhile) = at.run(&arguments);
    // Wide screens show two CPUs in a line; the first screen counts from the start.
    let cpu_lines = text.lines().filter(|line| line.starts_with("%Cpu"));
    let cpus_shown = cpu_lines.flat_map(|line| line.split("%Cpu").skip(1));
    let idle: Vec<f64> = cpus_shown
        .skip(2)
        .map(|figures| {
            let (before, _) = figures.split_once(" id").unwrap();
            last_number(&before.replace(',', " "))
        })
        .collect();
    assert_shown("top", &idle, meanwhile, &text);
}

#[test]
fn psutil_shows_what_the_container_burns() {
    let at = burning("psutil");
    let script = "import psutil\nprint(*psutil.cpu_percent(interval=4, percpu=True))";
    let (text, meanwhile) = at.run(&["/usr/bin/python3", "-c", script]);
    let idle: Vec<f64> = text
        .split_whitespace()
        .map(|word| 100.0 - word.parse::<f64>().unwrap())
        .collect();
    assert_shown("psutil", &idle, meanwhile, &text);
}

/// A screen of 120 columns inside a container, of which tmux is the terminal.
struct Screen<'a> {
    container: &'a Container,
    socket: String,
}

impl<'a> Screen<'a> {
    fn of(container: &'a Container, program: &str) -> Self {
        let socket = format!("lxcfs-burn-{}", std::process::id());
        let screen = Self { container, socket };
        screen.tmux(&["new-session", "-d", "-x", "120", "-y", "40", program]);
        screen
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let mut all = vec!["env", "TERM=xterm", "tmux", "-L", &self.socket];
        all.extend(arguments);
        self.container.stdout(&all)
    }

    /// The text after this one in which the uptime has moved on: htop's next look.
    fn after(&self, before: &str) -> String {
        let mut text = String::new();
        wait_until("htop draws", || {
            text = self.tmux(&["capture-pane", "-p"]);
            let uptime = uptime(&text);
            uptime.is_some() && uptime != self::uptime(before)
        });
        text
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        let kill = ["tmux", "-L", &self.socket, "kill-server"];
        let _gone = self.container.run(&kill);
    }
}

fn uptime(text: &str) -> Option<&str> {
    let (_, after) = text.split_once("Uptime: ")?;
    after.lines().next()
}

/// The percentages of the meters `0[|||  75.0%]`.
fn meters(text: &str) -> Vec<f64> {
    let parts: Vec<&str> = text.split('[').collect();
    let meters = parts.windows(2).filter_map(|pair| {
        let label = pair[0].split_whitespace().last()?;
        let _cpu: u32 = label.parse().ok()?;
        let (shown, _) = pair[1].split_once("%]")?;
        shown.rsplit(['|', ' ']).next()?.parse().ok()
    });
    meters.collect()
}

#[test]
fn htop_shows_what_the_container_burns() {
    let at = burning("htop");
    let (start, before) = (Instant::now(), at.usage());
    // Four seconds between looks; the first, right at the start, is too short to say much.
    let screen = Screen::of(&at.container, "env HTOPRC=/dev/null htop -d 40");
    let first = screen.after("");
    let text = screen.after(&first);
    let meanwhile = Meanwhile {
        used: (at.usage() - before) / 1e6,
        elapsed: start.elapsed().as_secs_f64(),
    };
    let idle: Vec<f64> = meters(&text).iter().map(|busy| 100.0 - busy).collect();
    assert_shown("htop", &idle, meanwhile, &text);
}
