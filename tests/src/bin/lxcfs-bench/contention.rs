//! How long one container's reads take while another reads with many threads and never pauses:
//! the kernel has one queue for all, so a reader waits for those before it and for nothing else.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::RunArgs;
use crate::container::Cgroup;
use crate::daemons::Server;
use crate::report::{Table, ratio, usec};
use crate::runs::{peer, probe};

/// Reading threads of the other container.
const ATTACKERS: [u64; 3] = [0, 16, 128];
/// Times that every server has its turn with each number of attackers.
const TURNS: u32 = 5;
/// Reads of the victim per turn.
const READS: u32 = 200;
/// Between two reads of the victim.
const PAUSE: Duration = Duration::from_millis(5);

/// Threads that read in a container of their own until dropped.
struct Attack(Option<Child>);

impl Attack {
    fn start(cgroup: &Cgroup, threads: u64, path: &Path) -> Result<Self> {
        if threads == 0 {
            return Ok(Self(None));
        }
        let mut command = cgroup.command(&std::env::current_exe()?);
        command.args(["probe", "--rounds", "1", "--slice-ms", "600000"]);
        command
            .args(["--mode", &format!("threads:{threads}")])
            .arg(path);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let attack = Self(Some(child));
        // All threads shall be in the queue.
        std::thread::sleep(Duration::from_millis(300));
        Ok(attack)
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Those inside end with it: unshare --kill-child.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let at = sorted.len() * percent / 100;
    sorted
        .get(at.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0)
}

/// Prints the victim's latency beside the same with the null file.
pub(crate) fn run(args: &RunArgs, base: &Path) -> Result<()> {
    let null = Server::null(base, 2, 1500)?;
    let ours = Server::ours(&args.lxcfs, base, "queue", &[])?;
    let peer = peer(args, base)?;
    let mut servers = vec![
        ("null, 2 loops", null.mountpoint.join("file")),
        ("ours", ours.mountpoint.join("proc/meminfo")),
    ];
    servers.extend(
        peer.iter()
            .map(|peer| ("C lxcfs", peer.mountpoint.join("proc/meminfo"))),
    );
    let victim = Cgroup::new("lxcfs-bench-victim")?;
    let other = Cgroup::new("lxcfs-bench-attacker")?;
    victim.unthrottle();
    other.unthrottle();
    let mut table = Table::new(&[
        "attacking threads",
        "server",
        "victim p50",
        "p99",
        "p50 / null's",
        "p99 / null's",
        "alone + threads x time per answer",
        "p50 / that",
    ]);
    let mut alone = vec![0; servers.len()];
    for threads in ATTACKERS {
        let mut waits: Vec<Vec<u64>> = vec![Vec::new(); servers.len()];
        let mut queues = vec![0; servers.len()];
        // In turns, so that a drift of the machine hits all alike.
        for _ in 0..TURNS {
            for (at, (_, path)) in servers.iter().enumerate() {
                let attack = Attack::start(&other, threads, path)?;
                waits[at].extend(paced(&victim, path)?);
                drop(attack);
            }
        }
        if threads > 0 {
            let mode = format!("threads:{threads}");
            let paths: Vec<PathBuf> = servers.iter().map(|(_, path)| path.clone()).collect();
            let per_answer = probe(&other, &mode, TURNS, Duration::from_millis(300), &paths)?;
            queues = per_answer.iter().map(|nsec| nsec * threads).collect();
        }
        for values in &mut waits {
            values.sort_unstable();
        }
        let at_null = [50, 99].map(|percent| percentile(&waits[0], percent));
        for (at, (name, _)) in servers.iter().enumerate() {
            let (p50, p99) = (percentile(&waits[at], 50), percentile(&waits[at], 99));
            if threads == 0 {
                alone[at] = p50;
            }
            // What the victim waits for: every thread's answer, and then its own.
            let bound = if queues[at] == 0 {
                0
            } else {
                alone[at] + queues[at]
            };
            table.row(vec![
                threads.to_string(),
                (*name).into(),
                usec(p50),
                usec(p99),
                ratio(p50, at_null[0]),
                ratio(p99, at_null[1]),
                if bound == 0 { "-".into() } else { usec(bound) },
                ratio(p50, bound),
            ]);
        }
    }
    table.print(
        "One pread of meminfo every 5 ms in one container, beside threads of another that read without a pause",
    );
    Ok(())
}

/// Nanoseconds of each of the victim's reads.
fn paced(victim: &Cgroup, path: &Path) -> Result<Vec<u64>> {
    let mut args: Vec<String> = ["probe", "--mode", "paced"].map(str::to_owned).to_vec();
    args.extend(["--rounds".into(), READS.to_string()]);
    args.extend(["--slice-ms".into(), PAUSE.as_millis().to_string()]);
    args.push(path.display().to_string());
    let lines = victim.lines(&std::env::current_exe()?, &args)?;
    let number = |line: &String| {
        let (_, nsec) = line.split_once(' ').context("malformed probe line")?;
        anyhow::Ok(nsec.parse()?)
    };
    lines.iter().map(number).collect()
}
