//! Processes that burn CPU time, so that counters have something to count.

use std::process::{Child, Command, Stdio};

use crate::TestCgroup;

/// A process that keeps one CPU busy in a cgroup until it is dropped.
#[derive(Debug)]
pub struct Burner(Child);

impl Burner {
    /// Starts one in `cgroup`, pinned to `cpu` when one is given.
    ///
    /// # Panics
    /// When it cannot start.
    pub fn start(cgroup: &TestCgroup, cpu: Option<u32>) -> Self {
        // The shell enters the cgroup before it burns, so no time is charged elsewhere.
        let pin = cpu.map_or_else(String::new, |cpu| format!("taskset -c {cpu} "));
        let script = format!("{}exec {pin}sh -c 'while :; do :; done'", enter(cgroup));
        let child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start sh: {error}"));
        Self(child)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Shell text that moves the shell into `cgroup`, in every hierarchy.
pub(crate) fn enter(cgroup: &TestCgroup) -> String {
    let line = |directory: std::path::PathBuf| {
        format!(
            "echo $$ >'{}/cgroup.procs' || exit 97; ",
            directory.display()
        )
    };
    cgroup.dirs().into_iter().map(line).collect()
}
