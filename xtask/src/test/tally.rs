//! Adding up the summary lines of test harnesses while their output passes through.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Tests passed, failed and ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Reads `test result: ok. 5 passed; 0 failed; 1 ignored; …`.
    fn parse(line: &str) -> Option<Self> {
        let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut counts = Self::default();
        for part in numbers.split("; ") {
            let Some((number, what)) = part.split_once(' ') else {
                continue;
            };
            let field = match what {
                "passed" => &mut counts.passed,
                "failed" => &mut counts.failed,
                "ignored" => &mut counts.ignored,
                _ => continue,
            };
            *field = number.parse().ok()?;
        }
        Some(counts)
    }
}

/// Before the name of a failed executable, in a machine's output.
pub(crate) const FAILED: &str = "     Failed ";

/// Reads which executable failed.
fn failed_target(line: &str) -> Option<String> {
    let cargo = || {
        line.strip_prefix("error: test failed, to rerun pass `")?
            .strip_suffix('`')
    };
    let target = line.strip_prefix(FAILED).or_else(cargo)?;
    Some(target.trim().to_owned())
}

/// A writer that passes bytes on and counts what harnesses report in them.
#[derive(Clone)]
pub(crate) struct Tally(Arc<Mutex<Inner>>);

struct Inner {
    to: Box<dyn Write + Send>,
    line: Vec<u8>,
    counts: Counts,
    failed: Vec<String>,
}

impl Tally {
    /// Passes everything on to `to`.
    pub(crate) fn new(to: Box<dyn Write + Send>) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            to,
            line: Vec::new(),
            counts: Counts::default(),
            failed: Vec::new(),
        })))
    }

    /// What failed, in the words that run it again: of `cargo test`, or [`FAILED`]'s.
    pub(crate) fn failed(&self) -> Vec<String> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.failed.clone()
    }

    /// What has been reported so far.
    pub(crate) fn counts(&self) -> Counts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).counts
    }
}

impl Write for Tally {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.to.write_all(bytes)?;
        for byte in bytes {
            if *byte != b'\n' {
                inner.line.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut inner.line);
            let line = String::from_utf8_lossy(&line);
            if let Some(counts) = Counts::parse(&line) {
                inner.counts.add(counts);
            }
            inner.failed.extend(failed_target(&line));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .to
            .flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::{Counts, Tally};

    #[test]
    fn summaries_add_up_across_odd_writes() {
        let mut tally = Tally::new(Box::new(std::io::sink()));
        let output = "running 2 tests\ntest result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; \
                      3 filtered out; finished in 0.01s\nnoise\ntest result: FAILED. 1 passed; 2 \
                      failed; 0 ignored; 0 measured; 0 filtered out\n";
        for chunk in output.as_bytes().chunks(7) {
            tally.write_all(chunk).unwrap();
        }
        assert_eq!(
            tally.counts(),
            Counts {
                passed: 13,
                failed: 2,
                ignored: 1
            }
        );
    }

    #[test]
    fn what_failed_is_told_in_words_that_run_it_again() {
        let mut tally = Tally::new(Box::new(std::io::sink()));
        let output = "error: test failed, to rerun pass `-p lxcfs-tests --test any_robust`\n\
                      error: 1 target failed:\n    `-p lxcfs-tests --test any_robust`\n\
                      test a ... FAILED\n     Failed vm_layouts\n";
        tally.write_all(output.as_bytes()).unwrap();
        assert_eq!(
            tally.failed(),
            ["-p lxcfs-tests --test any_robust", "vm_layouts"]
        );
    }

    #[test]
    fn other_lines_count_nothing() {
        for line in [
            "test result: ok",
            "a test result: ok. 1 passed; 0 failed",
            "test a ... ok",
        ] {
            assert_eq!(Counts::parse(line), None, "{line}");
        }
    }
}
