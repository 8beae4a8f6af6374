//! An engine whose texts can be checked by whoever reads them, for tests of serving and
//! failover that need no container.
//!
//! Each file tests one property; see [`Fixture::render`]. Files in the control directory
//! (environment variable [`CONTROL_DIR`]) change behaviour while it runs.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lxcfs_common::catalogue::{FileId, Kind, Node};
use lxcfs_user::cpuset::CpuSet;
use lxcfs_user::engine::{AnswerError, Caller, Engine};

/// Environment variable with the directory of the control files.
pub const CONTROL_DIR: &str = "LXCFS_FIXTURE_DIR";
/// Control file: rendering `/proc/vmstat` aborts the process.
pub const POISON: &str = "poison";
/// Control file: rendering `/proc/swaps` takes a minute.
pub const HANG: &str = "hang";
/// Control file: the engine cannot be made, so a worker ends at start.
pub const BROKEN: &str = "broken";

/// What [`build_name`] finds in a program that nobody changed.
pub const FIRST_BUILD: &str = "fixture build: first";
/// The same length; a test writes it over the first in a copy of the program.
pub const OTHER_BUILD: &str = "fixture build: other";

/// Which build this program is.
pub fn build_name() -> &'static str {
    static NAME: [u8; FIRST_BUILD.len()] = *b"fixture build: first";
    // Opaque to the compiler: the bytes in the file count.
    std::str::from_utf8(std::hint::black_box(&NAME)).unwrap_or("no text")
}

/// Length of [`constant_text`]: about that of a real meminfo.
pub const CONSTANT_BYTES: usize = 1503;
/// Length of `/proc/cpuinfo` here: several reads for most readers.
pub const LONG_BYTES: usize = 100_000;
/// Lines of a generation text.
pub const GENERATION_LINES: usize = 100;

/// The text of `/proc/meminfo` and, longer, of `/proc/cpuinfo`: the same for ever.
pub fn constant_text(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| {
            if at % 64 == 63 {
                b'\n'
            } else {
                b'a' + (at / 64 + at) as u8 % 26
            }
        })
        .collect()
}

/// A text that is different each time: [`GENERATION_LINES`] lines with one number. A reader
/// that sees two numbers got parts of two texts.
pub fn generation_text(generation: u64) -> Vec<u8> {
    let line = |index| format!("generation {generation} line {index}\n");
    (0..GENERATION_LINES)
        .map(line)
        .collect::<String>()
        .into_bytes()
}

/// Checks one complete [`generation_text`].
///
/// # Errors
/// What is wrong with it.
pub fn check_generation(text: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
    let number = text.split(' ').nth(1).unwrap_or("none").parse::<u64>();
    let number = number.map_err(|e| format!("{e} in {:?}", text.get(..40)))?;
    if text.as_bytes() == generation_text(number) {
        Ok(())
    } else {
        Err(format!("parts of several texts: {text:?}"))
    }
}

/// The engine.
pub struct Fixture {
    control: PathBuf,
    constant: Vec<u8>,
    long: Vec<u8>,
    generation: AtomicU64,
}

impl Fixture {
    /// An engine controlled by the files in `control`.
    pub fn new(control: PathBuf) -> Self {
        // Different processes must not repeat each other's numbers.
        let base = u64::from(std::process::id()) << 32;
        Self {
            control,
            constant: constant_text(CONSTANT_BYTES),
            long: constant_text(LONG_BYTES),
            generation: AtomicU64::new(base),
        }
    }

    /// An engine controlled by the directory in [`CONTROL_DIR`].
    ///
    /// # Errors
    /// When the control file [`BROKEN`] says so.
    pub fn from_env() -> Result<Self, String> {
        let fixture = Self::new(std::env::var_os(CONTROL_DIR).unwrap_or_default().into());
        if fixture.told(BROKEN) {
            Err("told to be broken".to_owned())
        } else {
            Ok(fixture)
        }
    }

    fn told(&self, name: &str) -> bool {
        !self.control.as_os_str().is_empty() && self.control.join(name).exists()
    }
}

impl Engine for Fixture {
    fn render(&self, caller: Caller, node: Node, out: &mut Vec<u8>) -> Result<(), AnswerError> {
        let Node::Fixed(entry) = node else {
            out.extend_from_slice(b"0\n");
            return Ok(());
        };
        let Kind::File(id) = entry.kind else {
            return Err(AnswerError::Absent("a directory"));
        };
        match id {
            FileId::Cpuinfo => out.extend_from_slice(&self.long),
            FileId::Stat | FileId::CpuOnline => {
                let generation = self.generation.fetch_add(1, Ordering::Relaxed);
                out.extend_from_slice(&generation_text(generation));
            }
            FileId::Uptime => out.extend_from_slice(format!("{}\n", caller.tid).as_bytes()),
            FileId::Loadavg => {
                return Err(AnswerError::Caller {
                    tid: caller.tid,
                    reason: "by definition",
                });
            }
            FileId::Diskstats => {
                std::thread::sleep(Duration::from_micros(1500));
                out.extend_from_slice(&self.constant);
            }
            FileId::Vmstat if self.told(POISON) => std::process::abort(),
            FileId::Swaps if self.told(HANG) => std::thread::sleep(Duration::from_secs(60)),
            FileId::Slabinfo => {}
            _ => out.extend_from_slice(&self.constant),
        }
        Ok(())
    }

    fn visible_cpus(&self, _caller: Caller) -> Result<CpuSet, AnswerError> {
        Ok(CpuSet::first(2))
    }

    fn visible_nodes(&self, _caller: Caller) -> Result<CpuSet, AnswerError> {
        Ok(CpuSet::first(1))
    }

    fn possible_cpus(&self) -> CpuSet {
        CpuSet::first(4)
    }

    fn possible_nodes(&self) -> CpuSet {
        CpuSet::first(1)
    }

    fn exists(&self, node: Node) -> bool {
        !matches!(node, Node::Fixed(entry) if entry.kind == Kind::File(FileId::PressureIrq))
    }

    fn is_offered(&self, _node: Node) -> bool {
        true
    }

    fn open_pressure(&self, _caller: Caller, id: FileId) -> Result<OwnedFd, AnswerError> {
        let path = match id {
            FileId::PressureCpu => "/proc/pressure/cpu",
            FileId::PressureIo => "/proc/pressure/io",
            _ => "/proc/pressure/memory",
        };
        File::options()
            .read(true)
            .write(true)
            .open(path)
            .map(OwnedFd::from)
            .map_err(|source| AnswerError::Io {
                path: path.to_owned(),
                source,
            })
    }
}
