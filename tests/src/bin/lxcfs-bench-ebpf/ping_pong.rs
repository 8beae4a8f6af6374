//! Whether two processes that do nothing but wake each other notice the collector.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lxcfs_tests::report::Table;
use lxcfs_user::bpf::Sampler;

use crate::{Cli, median, row, started};

/// A process of its own that collects: threads of the measuring process would make its own
/// system calls dearer, as the kernel counts users of a shared table of descriptors.
struct Collecting(Child);

impl Collecting {
    fn start() -> Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg("--collect")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the collector")?;
        let mut ready = [0];
        let output = child.stdout.as_mut().context("standard output")?;
        let told = output.read_exact(&mut ready);
        let this = Self(child);
        told.context("the collector did not start")?;
        Ok(this)
    }
}

impl Drop for Collecting {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Collects until standard input ends.
pub(crate) fn collect() -> Result<()> {
    let _sampler = Sampler::start(Arc::new(started()?), [], Box::new(|_| ()))?;
    let mut output = std::io::stdout();
    output.write_all(b"!")?;
    output.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Three runs side by side in each round: without, with, without. Each round gives one ratio
/// of with to the mean of its neighbours, and one of the two runs without to each other, which
/// is what chance alone does. Indistinguishable is what lies within the spread of the latter.
pub(crate) fn bench(cli: &Cli, table: &mut Table) -> Result<()> {
    let settle = || std::thread::sleep(Duration::from_millis(500));
    let mut with_ratios = Vec::new();
    let mut chance = Vec::new();
    let mut without = Vec::new();
    for round in 0..cli.rounds * 3 {
        let first = round_trip_ns(cli.round_trips)?;
        let collector = Collecting::start()?;
        // Loading patches code on all CPUs for a moment; the steady state is what counts.
        settle();
        let with = round_trip_ns(cli.round_trips)?;
        drop(collector);
        settle();
        let second = round_trip_ns(cli.round_trips)?;
        with_ratios.push(with / f64::midpoint(first, second));
        // Either may be the slower one: no direction is favoured.
        chance.push(if round % 2 == 0 {
            first / second
        } else {
            second / first
        });
        without.push(first);
    }
    let quartiles = |values: &[f64]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |part: usize| {
            sorted
                .get(sorted.len() * part / 4)
                .copied()
                .unwrap_or(f64::NAN)
        };
        (at(1), at(3))
    };
    let (low, high) = quartiles(&chance);
    let (with_low, with_high) = quartiles(&with_ratios);
    let half = |low: f64, high: f64| format!("half of the rounds {low:.3} to {high:.3}");
    row(
        table,
        [
            format!("pipe ping-pong, wall time, {} rounds", with_ratios.len()),
            format!("{:.3} times", median(with_ratios.clone())),
            format!("{:.0} ns without the collector", median(without)),
            half(with_low, with_high),
        ],
    );
    row(
        table,
        [
            "the same, without against without".into(),
            String::new(),
            format!("{:.3} times", median(chance.clone())),
            half(low, high),
        ],
    );
    Ok(())
}

/// Wall time of one round trip between two processes on one CPU.
fn round_trip_ns(round_trips: u32) -> Result<f64> {
    let mut there = [0; 2];
    let mut back = [0; 2];
    // SAFETY: the arrays have room; the child only reads, writes and exits.
    unsafe {
        ensure!(
            libc::pipe(there.as_mut_ptr()) == 0 && libc::pipe(back.as_mut_ptr()) == 0,
            "pipe"
        );
        let pid = libc::fork();
        ensure!(pid >= 0, "fork");
        pin_to_first_cpu();
        let mut byte = 0_u8;
        if pid == 0 {
            libc::close(there[1]);
            while libc::read(there[0], (&raw mut byte).cast(), 1) == 1 {
                libc::write(back[1], (&raw const byte).cast(), 1);
            }
            libc::_exit(0);
        }
        let start = Instant::now();
        for _ in 0..round_trips {
            libc::write(there[1], (&raw const byte).cast(), 1);
            libc::read(back[0], (&raw mut byte).cast(), 1);
        }
        let elapsed = start.elapsed();
        for fd in there.into_iter().chain(back) {
            libc::close(fd);
        }
        libc::waitpid(pid, std::ptr::null_mut(), 0);
        Ok(elapsed.as_nanos() as f64 / f64::from(round_trips))
    }
}

fn pin_to_first_cpu() {
    // SAFETY: an all-zero set is valid, and the pointer is to a local.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}
