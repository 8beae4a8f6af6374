//! Benchmarks of the eBPF collector: what a sample, a read and its mere presence cost,
//! each as a ratio to the ordinary way measured in the same run.
//!
//! Run through `cargo xtask bench --ebpf`.

mod floor;
mod peer;
mod ping_pong;

use std::fs::{self, File};
use std::hint::black_box;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use lxcfs_tests::report::Table;
use lxcfs_tests::scratch::{Cgroup, Child, Work, wait_until};
use lxcfs_user::bpf::{Collector, Options};
use peer::Peer;

/// Measures the eBPF collector. Wants root, and a machine that does little else.
#[derive(Parser)]
struct Cli {
    /// Cgroups of the task sample.
    #[arg(long, default_value_t = 100)]
    cgroups: u32,
    /// Threads in each of them.
    #[arg(long, default_value_t = 100)]
    threads: u32,
    /// Repetitions; medians are printed.
    #[arg(long, default_value_t = 9)]
    rounds: u32,
    /// Only collect, until standard input ends: what the ping-pong runs beside.
    #[arg(long, hide = true)]
    collect: bool,
    /// Round trips of one ping-pong.
    #[arg(long, default_value_t = 100_000)]
    round_trips: u32,
    /// C lxcfs's binary, to measure its load thread beside the sample.
    #[arg(long, requires = "peer_lib")]
    peer: Option<PathBuf>,
    /// Directory of C lxcfs's `liblxcfs.so`.
    #[arg(long)]
    peer_lib: Option<PathBuf>,
}

impl Cli {
    fn peer(&self) -> Option<Peer> {
        let (program, lib) = self.peer.clone().zip(self.peer_lib.clone())?;
        Some(Peer { program, lib })
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = if cli.collect {
        ping_pong::collect()
    } else {
        run(&cli)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lxcfs-bench-ebpf: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One measurement; adds its rows.
type Bench = fn(&Cli, &mut Table) -> Result<()>;

fn run(cli: &Cli) -> Result<()> {
    // The first one while this process is still small.
    let all: [(&str, Bench); 4] = [
        ("start and memory", start_and_memory),
        ("ping-pong", ping_pong::bench),
        ("per-CPU time", per_cpu_time),
        ("load sample", task_sample),
    ];
    let mut table = Table::new(&["what", "eBPF", "the ordinary way", "ratio"]);
    let mut failed = Vec::new();
    for (name, bench) in all {
        eprintln!("{name}");
        if let Err(error) = bench(cli, &mut table) {
            eprintln!("{name} failed: {error:#}");
            failed.push(name);
        }
    }
    table.print("The eBPF collector; medians, times are CPU time unless it says wall");
    ensure!(failed.is_empty(), "no figures of {}", failed.join(", "));
    Ok(())
}

fn row(table: &mut Table, cells: [String; 4]) {
    table.row(cells.into());
}

fn started() -> Result<Collector> {
    let (collector, states) = Collector::start(&Options::default());
    for state in &states {
        ensure!(state.on, "{state}");
    }
    Ok(collector)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// CPU time of this thread, in microseconds.
fn cpu_time_us() -> f64 {
    clock_us(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn clock_us(clock: libc::clockid_t) -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is valid; the clock always exists.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// Median CPU time of one call.
fn cpu_us(rounds: u32, calls: u32, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = cpu_time_us();
        for _ in 0..calls {
            work()?;
        }
        times.push((cpu_time_us() - start) / f64::from(calls));
    }
    Ok(median(times))
}

/// What one start cost.
struct Start {
    wall_ms: f64,
    cpu_ms: f64,
    resident_kib: f64,
}

fn start_and_memory(_: &Cli, table: &mut Table) -> Result<()> {
    // In forks, so that neither run sees what the other left in the heap.
    let measure = |enabled: bool| -> Result<Start> {
        let mut pipe = [0; 2];
        // SAFETY: the array has room for both descriptors; the child only measures and exits.
        unsafe {
            ensure!(libc::pipe(pipe.as_mut_ptr()) == 0, "pipe");
            let pid = libc::fork();
            ensure!(pid >= 0, "fork");
            if pid == 0 {
                let start = Instant::now();
                let options = Options {
                    enabled,
                    ..Options::default()
                };
                let (collector, _) = Collector::start(&options);
                let ready = start.elapsed().as_micros() as u64;
                let cpu = clock_us(libc::CLOCK_PROCESS_CPUTIME_ID) as u64;
                let report = [ready, resident_kib(), cpu];
                black_box(&collector);
                let bytes = report.map(u64::to_ne_bytes).concat();
                libc::write(pipe[1], bytes.as_ptr().cast(), bytes.len());
                libc::_exit(0);
            }
            let mut report = [0_u64; 3];
            let wanted = size_of_val(&report);
            let got = libc::read(pipe[0], report.as_mut_ptr().cast(), wanted);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
            libc::close(pipe[0]);
            libc::close(pipe[1]);
            ensure!(got == wanted as isize, "the measuring process died");
            Ok(Start {
                wall_ms: report[0] as f64 / 1e3,
                cpu_ms: report[2] as f64 / 1e3,
                resident_kib: report[1] as f64,
            })
        }
    };
    let with = (0..5).map(|_| measure(true)).collect::<Result<Vec<_>>>()?;
    let without = (0..5).map(|_| measure(false)).collect::<Result<Vec<_>>>()?;
    let of = |runs: &[Start], part: fn(&Start) -> f64| median(runs.iter().map(part).collect());
    let wall = |runs| of(runs, |start| start.wall_ms);
    let cpu = |runs| of(runs, |start| start.cpu_ms);
    let mib = |runs| of(runs, |start| start.resident_kib) / 1024.0;
    let beside = |value: f64, unit: &str| format!("{value:.1} {unit} with `--no-ebpf`");
    row(
        table,
        [
            "ready to collect, wall time".into(),
            format!("{:.1} ms", wall(&with)),
            beside(wall(&without), "ms"),
            String::new(),
        ],
    );
    row(
        table,
        [
            "the same, CPU time".into(),
            format!("{:.1} ms", cpu(&with)),
            beside(cpu(&without), "ms"),
            String::new(),
        ],
    );
    row(
        table,
        [
            "resident memory".into(),
            format!("{:.1} MiB", mib(&with)),
            beside(mib(&without), "MiB"),
            format!("{:+.1} MiB", mib(&with) - mib(&without)),
        ],
    );
    Ok(())
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_ascii_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

fn per_cpu_time(cli: &Cli, table: &mut Table) -> Result<()> {
    const CALLS: u32 = 2_000;
    let collector = started()?;
    let cgroup = Cgroup::new("bench");
    let child = Child::start(&cgroup, Work::Sleep);
    let directory = cgroup.open();
    let stat = File::open(cgroup.path.join("cpu.stat")).context("cpu.stat")?;
    let mut buffer = [0; 512];
    let (mut files, mut differences) = (Vec::new(), Vec::new());
    // In pairs: the machine's own drift is larger than what is measured.
    for _ in 0..cli.rounds * 3 {
        let file = cpu_us(1, CALLS, || {
            black_box(stat.read_at(&mut buffer, 0)?);
            Ok(())
        })?;
        let both = cpu_us(1, CALLS, || {
            black_box(stat.read_at(&mut buffer, 0)?);
            black_box(collector.cgroup_cpu_flushed(directory.as_fd())?);
            Ok(())
        })?;
        files.push(file);
        differences.push(both - file);
    }
    let (file, more) = (median(files), median(differences));
    let cpus = collector.cgroup_cpu(directory.as_fd())?.len();
    row(
        table,
        [
            format!("per-CPU time of one container, {cpus} CPUs"),
            format!("{more:.2} us more"),
            format!("{file:.2} us for the `cpu.stat` read before it"),
            format!("{:.2} times in all", (file + more) / file),
        ],
    );
    drop(child);
    Ok(())
}

fn task_sample(cli: &Cli, table: &mut Table) -> Result<()> {
    let collector = started()?;
    let top = Cgroup::new("bench");
    let cgroups: Vec<Cgroup> = (0..cli.cgroups)
        .map(|n| top.child(&format!("c{n}")))
        .collect();
    let children: Vec<Child> = cgroups
        .iter()
        .map(|cgroup| Child::start(cgroup, Work::Threads(cli.threads - 1)))
        .collect();
    wait_until("all threads are there", || {
        cgroups
            .iter()
            .all(|cgroup| cgroup.own_threads() == cli.threads as usize)
    });
    let tasks = cli.cgroups * cli.threads;
    ensure!(
        collector.sample_tasks()?.counts(top.id()).threads == tasks,
        "not all are counted"
    );

    // In turn: what the machine does meanwhile meets all.
    let empty = floor::EmptyWalk::new()?;
    let (mut samples, mut scans, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    let own_loop = floor::EmptyLoop::new().ok();
    let mut loops = Vec::new();
    let mut seen = 0;
    for _ in 0..cli.rounds {
        samples.push(cpu_us(1, 1, || {
            black_box(collector.sample_tasks()?);
            Ok(())
        })?);
        floors.push(cpu_us(1, 1, || empty.walk())?);
        if let Some(own_loop) = &own_loop {
            loops.push(cpu_us(1, 1, || own_loop.run())?);
        }
        scans.push(cpu_us(1, 1, || {
            seen = cgroups.iter().map(scan_one).sum::<Result<u32>>()?;
            Ok(())
        })?);
    }
    let (sample, scan, floor) = (median(samples), median(scans), median(floors));
    ensure!(seen == tasks, "the scan saw {seen} of {tasks} threads");
    let ms = |us: f64| format!("{:.2} ms", us / 1e3);
    let share = |us: f64| format!("{:.3} %", us / 5e6 * 100.0);
    let less = |us: f64| format!("{:.0} times less", us / sample);
    row(
        table,
        [
            format!("one load sample, {tasks} tasks in {} cgroups", cli.cgroups),
            ms(sample),
            format!(
                "{} by `cgroup.procs` and `/proc/PID/task/TID/status`",
                ms(scan)
            ),
            less(scan),
        ],
    );
    row(
        table,
        [
            "the kernel's own walk over them, by a program that does nothing".into(),
            ms(floor),
            String::new(),
            format!("{:.0} times less than the scan", scan / floor),
        ],
    );
    if own_loop.is_some() {
        let own_loop = median(loops);
        row(
            table,
            [
                "a loop over them within one run of a program, which does nothing".into(),
                ms(own_loop),
                String::new(),
                format!("{:.0} times less than the scan", scan / own_loop),
            ],
        );
    }
    let mut share_row = |ordinary: String, ratio: String| {
        let what = "the same as a share of one CPU, every 5 s".into();
        row(table, [what, share(sample), ordinary, ratio]);
    };
    share_row(share(scan), less(scan));
    if let Some(peer) = cli.peer() {
        let theirs = peer::load_thread_us(&peer, &cgroups, &children, Duration::from_secs(30))?;
        share_row(format!("{} by C `lxcfs -l`", share(theirs)), less(theirs));
    }
    drop(children);
    Ok(())
}

/// The scan that needs no eBPF: every thread's state out of its `status` file.
fn scan_one(cgroup: &Cgroup) -> Result<u32> {
    let mut threads = 0;
    for pid in cgroup.read("cgroup.procs").lines() {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            let state = status
                .lines()
                .find_map(|line| line.strip_prefix("State:\t"));
            threads += u32::from(black_box(state).is_some());
        }
    }
    Ok(threads)
}
