//! Readers that check every byte: the other side of [`fixture`](crate::fixture).

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};

use crate::fixture::{CONSTANT_BYTES, LONG_BYTES, check_generation, constant_text};
use crate::serve::Seen;

/// How a reader reads.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// open, read, close of a constant text.
    Reopen,
    /// pread at offset 0 of a descriptor that stays open; the text changes each time.
    Keep,
    /// Reads of 512 bytes through one text that changes each time.
    Small,
    /// poll, then a long constant text in one read after the other.
    Long,
}

/// All kinds; threads take turns.
pub const KINDS: [Kind; 4] = [Kind::Reopen, Kind::Keep, Kind::Small, Kind::Long];

/// Reads with `threads` threads, each with a pause of `rest` after a text, until `stop` is set.
pub fn run(mount: &Path, threads: usize, rest: Duration, stop: &Arc<AtomicBool>) -> Seen {
    let handles: Vec<_> = (0..threads)
        .map(|index| {
            let (mount, stop) = (mount.to_path_buf(), stop.clone());
            std::thread::spawn(move || {
                let kind = KINDS[index % KINDS.len()];
                Reader::new(mount).run(kind, rest, &stop)
            })
        })
        .collect();
    let join = |handle: std::thread::JoinHandle<Seen>| {
        handle.join().unwrap_or_else(|_| Seen {
            errors: 1,
            first: "panic".into(),
            ..Seen::default()
        })
    };
    handles
        .into_iter()
        .map(join)
        .fold(Seen::default(), Seen::plus)
}

struct Reader {
    mount: PathBuf,
    seen: Seen,
    short: Vec<u8>,
    long: Vec<u8>,
    kept: Option<File>,
}

impl Reader {
    fn new(mount: PathBuf) -> Self {
        Self {
            mount,
            seen: Seen::default(),
            short: constant_text(CONSTANT_BYTES),
            long: constant_text(LONG_BYTES),
            kept: None,
        }
    }

    fn run(mut self, kind: Kind, rest: Duration, stop: &AtomicBool) -> Seen {
        while !stop.load(Ordering::Relaxed) {
            let result = match kind {
                Kind::Reopen => self.reopen(),
                Kind::Keep => self.keep(),
                Kind::Small => self.small(),
                Kind::Long => self.long(),
            };
            match result {
                Ok(Ok(())) => {
                    self.seen.texts += 1;
                    if !rest.is_zero() {
                        std::thread::sleep(rest);
                    }
                }
                Ok(Err(wrong)) => {
                    self.seen.wrong += 1;
                    self.note(format!("{kind:?}: {wrong}"));
                }
                Err(error) => {
                    self.seen.errors += 1;
                    self.note(format!("{kind:?}: {error}"));
                    // Do not report one cause a million times.
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
        self.seen
    }

    fn note(&mut self, text: String) {
        if self.seen.first.is_empty() {
            self.seen.first = text;
        }
    }

    /// One system call, timed, repeated when a signal interrupts it (as C library readers do).
    fn timed<T>(&mut self, mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            let start = Instant::now();
            let result = call();
            self.seen.worst = self.seen.worst.max(start.elapsed());
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn open(&mut self, path: &str) -> io::Result<File> {
        let path = self.mount.join(path);
        self.timed(|| File::open(&path))
    }

    fn reopen(&mut self) -> io::Result<Result<(), String>> {
        let mut file = self.open("proc/meminfo")?;
        let mut buffer = vec![0; 8192];
        let length = self.timed(|| file.read(&mut buffer))?;
        Ok(same(&buffer[..length], &self.short))
    }

    fn keep(&mut self) -> io::Result<Result<(), String>> {
        let file = match self.kept.take() {
            Some(file) => file,
            None => self.open("proc/stat")?,
        };
        let mut buffer = vec![0; 64 * 1024];
        let length = self.timed(|| file.read_at(&mut buffer, 0))?;
        let end = self.timed(|| file.read_at(&mut [0; 16], length as u64))?;
        self.kept = Some(file);
        let after_end = if end == 0 {
            Ok(())
        } else {
            Err(format!("{end} bytes after the end"))
        };
        Ok(check_generation(&buffer[..length]).and(after_end))
    }

    fn small(&mut self) -> io::Result<Result<(), String>> {
        let mut file = self.open("proc/stat")?;
        let mut text = Vec::new();
        let mut buffer = [0; 512];
        loop {
            let length = self.timed(|| file.read(&mut buffer))?;
            if length == 0 {
                return Ok(check_generation(&text));
            }
            text.extend_from_slice(&buffer[..length]);
        }
    }

    fn long(&mut self) -> io::Result<Result<(), String>> {
        let mut file = self.open("proc/cpuinfo")?;
        self.timed(|| {
            let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, 20_000u16).map_err(io::Error::from)
        })?;
        let mut text = Vec::new();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let length = self.timed(|| file.read(&mut buffer))?;
            if length == 0 {
                return Ok(same(&text, &self.long));
            }
            text.extend_from_slice(&buffer[..length]);
        }
    }
}

fn same(found: &[u8], wanted: &[u8]) -> Result<(), String> {
    if found == wanted {
        return Ok(());
    }
    let at = found.iter().zip(wanted).position(|(a, b)| a != b);
    Err(format!(
        "{} bytes instead of {}, first difference at {at:?}",
        found.len(),
        wanted.len()
    ))
}
