//! `lxcfs-capture PID DIR CASE`: records the container of a process into DIR, named
//! `KERNEL-LAYOUT-CASE` by convention, for the golden tests. Runs as root on the machine to
//! be recorded, a virtual one for the kernels this one does not have.

use std::path::Path;

use anyhow::{Context, bail};
use lxcfs_user::collect::capture;
use lxcfs_user::collect::live::{LiveEngine, LiveOptions};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pid, dir, case] = arguments.as_slice() else {
        bail!("usage: lxcfs-capture PID DIR CASE");
    };
    let pid = pid.parse().with_context(|| format!("{pid} is no pid"))?;
    let engine = LiveEngine::start(&LiveOptions::default())?;
    capture::record(&engine, pid, Path::new(dir), case)?;
    let loaded = capture::Capture::load(Path::new(dir)).context("reading it back")?;
    println!("{} {} in {dir}", loaded.facts.kernel, loaded.facts.layout);
    Ok(())
}
