//! A container that reads in a loop and writes down what went wrong, while the daemon is upgraded,
//! restarted or removed.

use std::fs;
use std::path::PathBuf;
use std::thread::{Scope, ScopedJoinHandle};

use crate::Container;
use crate::serve::eventually;

/// The loop. Ends with the guard, also when the test fails.
pub struct Steady<'scope> {
    directory: tempfile::TempDir,
    thread: Option<ScopedJoinHandle<'scope, String>>,
}

impl<'scope> Steady<'scope> {
    /// Reads `meminfo`, `stat`, `uptime` and `loadavg` in `container` until stopped. A `MemTotal`
    /// that is neither of `totals_kib` counts as an error, as a failed read does.
    ///
    /// # Panics
    /// When there is no temporary directory.
    pub fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        container: &'env Container,
        totals_kib: &[u64],
    ) -> Self {
        let directory =
            tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary directory: {error}"));
        let totals: Vec<String> = totals_kib.iter().map(u64::to_string).collect();
        let script = format!(
            "cd '{}'; n=0; \
             while [ ! -e stop ]; do \
               for f in meminfo stat uptime loadavg; do \
                 cat /proc/$f >$f 2>>errors || echo \"$f failed\" >>errors; \
               done; \
               grep -qE '^MemTotal: *({}) kB$' meminfo || cat meminfo >>errors; \
               n=$((n+1)); echo $n >progress; \
             done; cat errors",
            directory.path().display(),
            totals.join("|")
        );
        let thread = scope.spawn(move || container.stdout(&["sh", "-c", &script]));
        Self {
            directory,
            thread: Some(thread),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn rounds(&self) -> u64 {
        let text = fs::read_to_string(self.file("progress")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Waits until rounds that began after this call are done.
    ///
    /// # Panics
    /// When they are not in time, or there was an error so far.
    pub fn goes_on(&self, after: &str) {
        // The file may be caught while it is empty, which reads as 0: never as too many.
        let before = self.rounds();
        eventually(&format!("the container reads on after {after}"), || {
            self.rounds() >= before + 3
        });
        let errors = fs::read_to_string(self.file("errors")).unwrap_or_default();
        assert_eq!(errors, "", "after {after}");
        println!("{after}: {} rounds so far, no error", self.rounds());
    }

    /// Ends the loop.
    ///
    /// # Panics
    /// When there was an error.
    pub fn stop(mut self) {
        let errors = self.end().and_then(|thread| thread.join().ok());
        assert_eq!(errors.as_deref(), Some(""), "what the readers saw");
    }

    fn end(&mut self) -> Option<ScopedJoinHandle<'scope, String>> {
        let _missing = fs::write(self.file("stop"), "");
        self.thread.take()
    }
}

impl Drop for Steady<'_> {
    fn drop(&mut self) {
        // The directory must outlive the loop, which waits for a file in it.
        if let Some(thread) = self.end() {
            let _failed_already = thread.join();
        }
    }
}
