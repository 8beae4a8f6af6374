//! The benchmark runs themselves.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::RunArgs;
use crate::container::Cgroup;
use crate::contention;
use crate::daemons::Server;
use crate::report::{Table, median, ratio, usec};

/// The files that C lxcfs has too, without the leading slash.
const FILES: &[&str] = &[
    "proc/uptime",
    "proc/meminfo",
    "proc/stat",
    "proc/cpuinfo",
    "proc/loadavg",
    "proc/diskstats",
    "proc/swaps",
];

/// One benchmark.
type Bench = fn(&RunArgs, &Path) -> Result<()>;

/// What each is called and measures.
const ALL: &[(&str, &str, Bench)] = &[
    ("reads", "one read of each file, on one CPU", reads),
    ("throughput", "16 readers at once", throughput),
    (
        "contention",
        "a reader beside one that reads without a pause",
        contention::run,
    ),
    ("scale", "1, 100, … containers", scale),
    ("start", "start to first answer", start),
    ("syscalls", "system calls per read", syscalls),
];

/// Runs what was asked for. One that fails does not keep the others from running.
pub(crate) fn run(args: &RunArgs) -> Result<()> {
    for name in &args.names {
        if !ALL.iter().any(|(known, ..)| known == name) {
            let known: Vec<_> = ALL.iter().map(|(name, ..)| *name).collect();
            bail!(
                "no benchmark is named {name}; there are: {}",
                known.join(", ")
            );
        }
    }
    let base = std::env::temp_dir().join(format!("lxcfs-bench.{}", std::process::id()));
    fs::create_dir_all(&base)?;
    let mut failed = Vec::new();
    for (name, what, bench) in ALL {
        if !args.names.is_empty() && !args.names.iter().any(|wanted| wanted == name) {
            continue;
        }
        eprintln!("{name}: {what}");
        if let Err(error) = bench(args, &base) {
            eprintln!("{name} failed: {error:#}");
            failed.push(*name);
        }
    }
    fs::remove_dir_all(&base).with_context(|| format!("removing {}", base.display()))?;
    if !failed.is_empty() {
        bail!(
            "no figures of {}: what went wrong is told above, where each began",
            failed.join(", ")
        );
    }
    Ok(())
}

/// Medians, in the order of `paths`.
pub(crate) fn probe(
    cgroup: &Cgroup,
    mode: &str,
    rounds: u32,
    slice: Duration,
    paths: &[PathBuf],
) -> Result<Vec<u64>> {
    let mut args: Vec<String> = ["probe", "--mode", mode].map(str::to_owned).to_vec();
    args.extend(["--rounds".into(), rounds.to_string()]);
    args.extend(["--slice-ms".into(), slice.as_millis().to_string()]);
    args.extend(paths.iter().map(|path| path.display().to_string()));
    let mut rounds: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for line in cgroup.lines(&std::env::current_exe()?, &args)? {
        let (index, nsec) = line.split_once(' ').context("malformed probe line")?;
        rounds
            .entry(index.parse()?)
            .or_default()
            .push(nsec.parse()?);
    }
    if rounds.len() != paths.len() {
        bail!(
            "the probe measured {} of {} paths",
            rounds.len(),
            paths.len()
        );
    }
    Ok(rounds
        .into_values()
        .map(|mut values| median(&mut values))
        .collect())
}

/// C lxcfs, if there is one to run.
pub(crate) fn peer(args: &RunArgs, base: &Path) -> Result<Option<Server>> {
    match (&args.peer, &args.peer_lib) {
        (Some(program), Some(lib)) => Ok(Some(Server::peer(program, lib, base)?)),
        _ => Ok(None),
    }
}

/// Loops of the null server: as many as ours has.
fn loops() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4))
}

/// Keeps this process and all that it starts on one CPU until dropped. A reader wakes a
/// server on its own CPU several times faster than one on another, and the scheduler mixes
/// both; on one CPU the ratios are of the work and not of the placement.
struct OneCpu(CpuSet);

impl OneCpu {
    fn new() -> Result<Self> {
        let before = sched_getaffinity(Pid::from_raw(0))?;
        let last = (0..CpuSet::count())
            .rev()
            .find(|cpu| before.is_set(*cpu) == Ok(true))
            .context("no CPU to run on")?;
        let mut one = CpuSet::new();
        one.set(last)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        Ok(Self(before))
    }

    /// The same, with all threads of servers that run already; those stay there.
    fn with(servers: &[&Server]) -> Result<Self> {
        let this = Self::new()?;
        let one = sched_getaffinity(Pid::from_raw(0))?;
        for pid in servers.iter().flat_map(|server| server.pids()) {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let tid = task?.file_name().to_string_lossy().parse()?;
                sched_setaffinity(Pid::from_raw(tid), &one)?;
            }
        }
        Ok(this)
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        let _ = sched_setaffinity(Pid::from_raw(0), &self.0);
    }
}

/// One read of each file: the kernel's own, the null file, ours warm and cold, the peer's.
fn reads(args: &RunArgs, base: &Path) -> Result<()> {
    let _one_cpu = OneCpu::new()?;
    let null = Server::null(base, loops(), 1500)?;
    let warm = Server::ours(&args.lxcfs, base, "warm", &["--cache-ttl-ms", "1000"])?;
    let cold = Server::ours(&args.lxcfs, base, "cold", &["--cache-ttl-ms", "0"])?;
    let peer = peer(args, base)?;
    let cgroup = Cgroup::new("lxcfs-bench")?;
    cgroup.unthrottle();
    use_disk(&cgroup, base);
    for mode in ["orc", "pread"] {
        let mut table = Table::new(&[
            "file",
            "kernel",
            "null",
            "ours warm",
            "ours cold",
            "C lxcfs",
            "warm/null",
            "cold/null",
            "C/warm",
            "C/cold",
            "C/null",
            "own C/warm",
        ]);
        for file in FILES {
            let mut paths = vec![
                Path::new("/").join(file),
                null.mountpoint.join("file"),
                warm.mountpoint.join(file),
                cold.mountpoint.join(file),
            ];
            paths.extend(peer.as_ref().map(|peer| peer.mountpoint.join(file)));
            let nsec = probe(
                &cgroup,
                mode,
                args.rounds,
                Duration::from_millis(30),
                &paths,
            )?;
            let (null, warm, cold) = (nsec[1], nsec[2], nsec[3]);
            let theirs = nsec.get(4).copied();
            let shown = |value: Option<String>| value.unwrap_or_else(|| "-".into());
            table.row(vec![
                (*file).into(),
                usec(nsec[0]),
                usec(null),
                usec(warm),
                usec(cold),
                shown(theirs.map(usec)),
                ratio(warm, null),
                ratio(cold, null),
                shown(theirs.map(|theirs| ratio(theirs, warm))),
                shown(theirs.map(|theirs| ratio(theirs, cold))),
                // What no FUSE file system can exceed, and what the servers do themselves.
                shown(theirs.map(|theirs| ratio(theirs, null))),
                shown(
                    theirs.map(|theirs| {
                        ratio(theirs.saturating_sub(null), warm.saturating_sub(null))
                    }),
                ),
            ]);
        }
        let name = if mode == "orc" {
            "open + read + close"
        } else {
            "pread on a kept descriptor"
        };
        table.print(&format!(
            "{name}, medians of {} rounds, all on one CPU; \"own\": less the null file's time",
            args.rounds
        ));
    }
    Ok(())
}

/// Has a container write to the disk, so that its `diskstats` is not empty.
fn use_disk(cgroup: &Cgroup, base: &Path) {
    let file = base.join("written");
    let args: Vec<String> = [
        "if=/dev/zero".into(),
        format!("of={}", file.display()),
        "bs=64k".into(),
        "count=16".into(),
        "oflag=direct".into(),
        "conv=fsync".into(),
        "status=none".into(),
    ]
    .into();
    if let Err(error) = cgroup.lines(Path::new("dd"), &args) {
        eprintln!(
            "the container has no disk I/O, so its diskstats is empty: {error:#} (set TMPDIR to \
             a directory on a disk)"
        );
    }
}

/// Sixteen readers of `meminfo` at once.
fn throughput(args: &RunArgs, base: &Path) -> Result<()> {
    let null = Server::null(base, loops(), 1500)?;
    let ours = Server::ours(&args.lxcfs, base, "many", &[])?;
    let peer = peer(args, base)?;
    let cgroup = Cgroup::new("lxcfs-bench")?;
    cgroup.unthrottle();
    let file = "proc/meminfo";
    let mut paths = vec![
        Path::new("/").join(file),
        null.mountpoint.join("file"),
        ours.mountpoint.join(file),
    ];
    paths.extend(peer.as_ref().map(|peer| peer.mountpoint.join(file)));
    let nsec = probe(&cgroup, "threads:16", 5, Duration::from_millis(500), &paths)?;
    let mut table = Table::new(&["server", "preads/s", "of the null file's"]);
    for (name, nsec_per_read) in ["kernel", "null", "ours", "C lxcfs"].iter().zip(&nsec) {
        let rate = 1_000_000_000 / nsec_per_read.max(&1);
        table.row(vec![
            (*name).into(),
            rate.to_string(),
            ratio(nsec[1], *nsec_per_read),
        ]);
    }
    table.print("16 threads in one container, pread of meminfo");
    Ok(())
}

/// What an idle daemon does comes every 5 and every 30 s; this has each of it once or more.
const IDLE_FOR: Duration = Duration::from_secs(30);

/// Read latency and resident memory with 1, 100, … containers that have all read once.
fn scale(args: &RunArgs, base: &Path) -> Result<()> {
    let ours = Server::ours(&args.lxcfs, base, "scale", &[])?;
    let null = Server::null(base, loops(), 1500)?;
    let measured = Cgroup::new("lxcfs-bench")?;
    measured.unthrottle();
    let mut others: Vec<(Cgroup, std::process::Child)> = Vec::new();
    let mut table = Table::new(&[
        "containers",
        "null pread",
        "meminfo pread",
        "pread/null",
        "null o+r+c",
        "meminfo o+r+c",
        "o+r+c/null",
        "memory (PSS)",
        "idle CPU, 30 s",
    ]);
    let mut counts = vec![1, 100, args.containers];
    counts.dedup();
    let outcome = (|| {
        for count in counts {
            while others.len() + 1 < count as usize {
                let cgroup = Cgroup::new(&format!("lxcfs-bench-{}", others.len()))?;
                let paths = FILES.iter().map(|file| ours.mountpoint.join(file));
                let mut reader = cgroup.command(Path::new("sh"));
                // Reads every file once, then stays as the container's PID 1.
                let cats = paths
                    .map(|path| path.display().to_string())
                    .collect::<Vec<_>>();
                let script = format!("cat {} >/dev/null && exec sleep infinity", cats.join(" "));
                let child = reader.args(["-c", &script]).spawn()?;
                others.push((cgroup, child));
            }
            std::thread::sleep(Duration::from_secs(12));
            let idle = idle_cpu(&ours, IDLE_FOR)?;
            let _one_cpu = OneCpu::with(&[&ours, &null])?;
            let paths = [
                null.mountpoint.join("file"),
                ours.mountpoint.join("proc/meminfo"),
            ];
            let slice = Duration::from_millis(50);
            let pread = probe(&measured, "pread", args.rounds, slice, &paths)?;
            let orc = probe(&measured, "orc", args.rounds, slice, &paths)?;
            table.row(vec![
                count.to_string(),
                usec(pread[0]),
                usec(pread[1]),
                ratio(pread[1], pread[0]),
                usec(orc[0]),
                usec(orc[1]),
                ratio(orc[1], orc[0]),
                format!("{} KiB", resident_kib(&ours)?),
                format!("{:.3} %", idle * 100.0),
            ]);
        }
        Ok(())
    })();
    for (_, child) in &mut others {
        let _ = child.kill();
        let _ = child.wait();
    }
    table.print("One container beside others that have each read every file");
    outcome
}

/// Resident memory of all processes of a server, pages that they share counted once.
fn resident_kib(server: &Server) -> Result<u64> {
    let mut sum = 0;
    for pid in server.pids() {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = line
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .context("no Pss line")?;
        sum += kib.parse::<u64>()?;
    }
    Ok(sum)
}

/// CPU time used per second of wall time while nobody reads.
fn idle_cpu(server: &Server, wait: Duration) -> Result<f64> {
    let used = || -> Result<u64> {
        let mut sum = 0;
        for pid in server.pids() {
            // Nanoseconds on a CPU, the first field.
            let text = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
            sum += text.split(' ').next().unwrap_or("0").parse::<u64>()?;
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let task = task?.path();
                if task
                    .file_name()
                    .is_some_and(|tid| tid != pid.to_string().as_str())
                {
                    let text = fs::read_to_string(task.join("schedstat"))?;
                    sum += text.split(' ').next().unwrap_or("0").parse::<u64>()?;
                }
            }
        }
        Ok(sum)
    };
    let before = used()?;
    std::thread::sleep(wait);
    Ok((used()?.saturating_sub(before)) as f64 / wait.as_nanos() as f64)
}

/// From exec to the first answer.
fn start(args: &RunArgs, base: &Path) -> Result<()> {
    let mut table = Table::new(&["server", "median of 7 starts", "least", "most"]);
    let mut measure = |name: &str, extra: &[&str]| -> Result<()> {
        let mut nsec = Vec::new();
        for _ in 0..7 {
            let server = Server::ours(&args.lxcfs, base, "start", extra)?;
            nsec.push(server.ready_after.as_nanos() as u64);
        }
        table.row(start_row(name, nsec));
        Ok(())
    };
    measure("ours", &[])?;
    measure("ours, --no-ebpf", &["--no-ebpf"])?;
    if let (Some(program), Some(lib)) = (&args.peer, &args.peer_lib) {
        let mut nsec = Vec::new();
        for _ in 0..7 {
            nsec.push(Server::peer(program, lib, base)?.ready_after.as_nanos() as u64);
        }
        table.row(start_row("C lxcfs", nsec));
    }
    table.print("Start to first answer (meminfo)");
    Ok(())
}

fn start_row(name: &str, mut nsec: Vec<u64>) -> Vec<String> {
    let ms = |nsec: u64| format!("{:.1} ms", nsec as f64 / 1e6);
    let middle = median(&mut nsec);
    let (least, most) = (nsec.first().copied(), nsec.last().copied());
    let of = |value: Option<u64>| ms(value.unwrap_or(0));
    vec![name.into(), ms(middle), of(least), of(most)]
}

/// System calls of the server per open + read + close of each file, counted by strace.
fn syscalls(args: &RunArgs, base: &Path) -> Result<()> {
    let mut servers = Vec::new();
    for (name, ttl) in [("ours warm", "1000"), ("ours cold", "0")] {
        let extra = ["--cache-ttl-ms", ttl];
        servers.push((
            name,
            Server::ours(&args.lxcfs, base, &format!("trace{ttl}"), &extra)?,
        ));
    }
    servers.extend(peer(args, base)?.map(|peer| ("C lxcfs", peer)));
    let cgroup = Cgroup::new("lxcfs-bench")?;
    cgroup.unthrottle();
    use_disk(&cgroup, base);
    let heads: Vec<_> = ["file"]
        .into_iter()
        .chain(servers.iter().map(|(name, _)| *name))
        .collect();
    let mut table = Table::new(&heads);
    for file in FILES {
        let mut row = vec![(*file).to_owned()];
        for (_, server) in &servers {
            let each = traced(server, file, &cgroup, base)?;
            row.push(format!("{each:.1}"));
        }
        table.row(row);
    }
    table.print("System calls of the server per open + read + close, by strace -c");
    Ok(())
}

/// System calls per read of `file` from inside `cgroup`.
fn traced(server: &Server, file: &str, cgroup: &Cgroup, base: &Path) -> Result<f64> {
    let log = base.join("strace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-c", "-o"]).arg(&log);
    for pid in server.pids() {
        strace.args(["-p", &pid.to_string()]);
    }
    let mut tracer = strace
        .spawn()
        .context("strace cannot be started; apt-get install strace")?;
    std::thread::sleep(Duration::from_secs(1));
    let path = server.mountpoint.join(file);
    // One round warms, the second counts too: all of both are in strace's sum.
    let reads = 500;
    let counted = probe(
        cgroup,
        &format!("count:{reads}"),
        1,
        Duration::ZERO,
        &[path],
    );
    let tracer_pid = i32::try_from(tracer.id())?;
    // SAFETY: signalling our own unreaped child.
    unsafe { libc::kill(tracer_pid, libc::SIGINT) };
    tracer.wait()?;
    counted?;
    let text = fs::read_to_string(&log)?;
    let total = text
        .lines()
        .find(|line| line.trim_end().ends_with("total"))
        .and_then(|line| line.split_whitespace().nth(3))
        .and_then(|calls| calls.parse::<f64>().ok())
        .context("no total in strace's summary")?;
    Ok(total / f64::from(2 * reads))
}
