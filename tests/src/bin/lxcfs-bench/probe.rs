//! The measuring process: it runs as PID 1 of a container and times reads of the paths it
//! was given, the paths of one round in turn so that a drift of the machine hits all alike.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What to time.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ProbeArgs {
    /// `orc` (open+read+close), `pread` (kept fd), `paced` (one pread after a pause),
    /// `threads:N` (N preading threads) or `count:N` (exactly N times open+read+close, once
    /// warmed, for counting).
    #[arg(long)]
    mode: String,
    /// Rounds.
    #[arg(long)]
    rounds: u32,
    /// Time per path and round, or the pause, in milliseconds.
    #[arg(long, default_value_t = 30)]
    slice_ms: u64,
    /// The files.
    paths: Vec<PathBuf>,
}

/// Prints per round and path one line: `INDEX NANOSECONDS_PER_READ`.
pub(crate) fn run(args: &ProbeArgs) -> Result<()> {
    let slice = Duration::from_millis(args.slice_ms);
    for round in 0..=args.rounds {
        for (index, path) in args.paths.iter().enumerate() {
            let nsec = match args.mode.split_once(':') {
                None if args.mode == "orc" => open_read_close(path, slice)?,
                None if args.mode == "pread" => kept_pread(path, slice)?,
                None if args.mode == "paced" => paced(path, slice)?,
                Some(("threads", count)) => threads(path, count.parse()?, slice)?,
                Some(("count", count)) => counted(path, count.parse()?)?,
                _ => bail!("unknown mode {}", args.mode),
            };
            // The first round warms caches and is not counted.
            if round > 0 {
                println!("{index} {nsec}");
            }
        }
    }
    Ok(())
}

fn open_read_close(path: &Path, slice: Duration) -> Result<u64> {
    let mut buffer = vec![0; 128 << 10];
    per_read(slice, || {
        let mut file = File::open(path).with_context(|| path.display().to_string())?;
        // One read, as a client with a large enough buffer does. The diskstats of a container
        // without I/O are empty, and cost what the looking costs.
        file.read(&mut buffer)
            .with_context(|| path.display().to_string())?;
        Ok(())
    })
}

/// Nanoseconds per read of exactly `count` reads.
fn counted(path: &Path, count: u64) -> Result<u64> {
    let mut buffer = vec![0; 128 << 10];
    let start = Instant::now();
    for _ in 0..count {
        let mut file = File::open(path).with_context(|| path.display().to_string())?;
        // A diskstats may be empty.
        file.read(&mut buffer)
            .with_context(|| path.display().to_string())?;
    }
    Ok(start.elapsed().as_nanos() as u64 / count.max(1))
}

fn kept_pread(path: &Path, slice: Duration) -> Result<u64> {
    let mut buffer = vec![0; 128 << 10];
    let file = File::open(path).with_context(|| path.display().to_string())?;
    per_read(slice, || {
        file.read_at(&mut buffer, 0)
            .with_context(|| path.display().to_string())?;
        Ok(())
    })
}

/// Nanoseconds of one pread of a file that was opened before a pause.
fn paced(path: &Path, pause: Duration) -> Result<u64> {
    let mut buffer = vec![0; 16 << 10];
    let file = File::open(path).with_context(|| path.display().to_string())?;
    std::thread::sleep(pause);
    let start = Instant::now();
    let got = file.read_at(&mut buffer, 0);
    let nsec = start.elapsed().as_nanos() as u64;
    anyhow::ensure!(got? > 0, "{} is empty", path.display());
    Ok(nsec)
}

fn per_read(slice: Duration, mut read: impl FnMut() -> Result<()>) -> Result<u64> {
    let start = Instant::now();
    let mut reads = 0_u64;
    while start.elapsed() < slice {
        for _ in 0..8 {
            read()?;
        }
        reads += 8;
    }
    Ok(start.elapsed().as_nanos() as u64 / reads)
}

/// Nanoseconds of wall time per read over all threads together.
fn threads(path: &Path, count: usize, slice: Duration) -> Result<u64> {
    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..count)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    let file = File::open(path)?;
                    let mut buffer = vec![0; 16 << 10];
                    while !stop.load(Ordering::Relaxed) {
                        anyhow::ensure!(file.read_at(&mut buffer, 0)? > 0, "empty read");
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        std::thread::sleep(slice);
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader
                .join()
                .map_err(|_panic| anyhow::anyhow!("a reader panicked"))??;
        }
        anyhow::Ok(())
    })?;
    Ok(start.elapsed().as_nanos() as u64 / reads.load(Ordering::Relaxed).max(1))
}
