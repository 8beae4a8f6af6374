//! What the load thread of C lxcfs (`lxcfs -l`) costs for the same tasks in the same number
//! of containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lxcfs_tests::scratch::{Cgroup, Child};

/// C lxcfs, and where its library is.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) program: PathBuf,
    pub(crate) lib: PathBuf,
}

/// Directories that are removed, and processes that are killed, at the end.
#[derive(Default)]
struct Running {
    processes: Vec<Process>,
    cgroups: Vec<PathBuf>,
    /// Tasks that are somebody else's to end, and where they go back to.
    guests: Vec<libc::pid_t>,
    v1_root: Option<PathBuf>,
    mountpoint: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = nix::mount::umount2(&self.mountpoint, nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.mountpoint);
        if let Some(root) = &self.v1_root {
            for pid in &self.guests {
                let _ = fs::write(root.join("cgroup.procs"), pid.to_string());
            }
        }
        for cgroup in self.cgroups.iter().rev() {
            // The last task may still be on its way out.
            for _ in 0..200 {
                match fs::remove_dir(cgroup) {
                    Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    _ => break,
                }
            }
        }
    }
}

/// CPU time of C lxcfs in 5 s, in microseconds, while it follows the load of `cgroups`,
/// whose tasks are those of `children`.
pub(crate) fn load_thread_us(
    peer: &Peer,
    cgroups: &[Cgroup],
    children: &[Child],
    period: Duration,
) -> Result<f64> {
    let base = std::env::temp_dir().join(format!("lxcfs-bench-peer.{}", std::process::id()));
    fs::create_dir_all(&base)?;
    let mut running = Running::default();
    running.mountpoint.clone_from(&base);
    // C lxcfs looks where the cpu controller is: in v1's hierarchy if there is one.
    let homes = match v1_cpu_root()? {
        None => cgroups.iter().map(|cgroup| cgroup.path.clone()).collect(),
        Some(root) => {
            let top = root.join(format!("lxcfs-bench-peer.{}", std::process::id()));
            fs::create_dir(&top)?;
            running.cgroups.push(top.clone());
            running.v1_root = Some(root);
            let mut homes = Vec::new();
            for (n, child) in children.iter().enumerate() {
                let home = top.join(format!("c{n}"));
                fs::create_dir(&home)?;
                running.cgroups.push(home.clone());
                fs::write(home.join("cgroup.procs"), child.pid.to_string())?;
                running.guests.push(child.pid);
                homes.push(home);
            }
            homes
        }
    };
    let pidfile = base.with_extension("pid");
    let server = Command::new(&peer.program)
        .args(["-f", "-l"])
        .arg(&base)
        .arg("-p")
        .arg(&pidfile)
        .env("LD_LIBRARY_PATH", &peer.lib)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {}", peer.program.display()))?;
    let pid = server.id();
    running.processes.push(server);
    let file = base.join("proc/loadavg");
    let began = Instant::now();
    while fs::read(&file).is_err() {
        if began.elapsed() > Duration::from_secs(20) {
            bail!("C lxcfs did not serve {} within 20 s", file.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for home in &homes {
        running.processes.push(ask_from(home, &file)?);
    }
    // The first scan of all of them is over.
    std::thread::sleep(Duration::from_secs(7));
    let (before, began) = (cpu_time(pid)?, Instant::now());
    std::thread::sleep(period);
    let used = cpu_time(pid)?.saturating_sub(before);
    let share = used as f64 / began.elapsed().as_nanos() as f64;
    ensure!(
        used > 0,
        "C lxcfs did nothing: its load thread does not run"
    );
    let _ = fs::remove_file(pidfile);
    Ok(share * 5e6)
}

/// Where the v1 `cpu` controller is mounted.
fn v1_cpu_root() -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().find_map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        let [_, path, "cgroup", options, ..] = fields[..] else {
            return None;
        };
        let has_cpu = options.split(',').any(|option| option == "cpu");
        has_cpu.then(|| PathBuf::from(path))
    }))
}

/// A container's first process in `cgroup` that reads `file` once and stays: from then on
/// C lxcfs follows that cgroup.
fn ask_from(cgroup: &Path, file: &Path) -> Result<Process> {
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec unshare --pid --mount --fork --kill-child --mount-proc \
         sh -c 'cat {} >/dev/null && exec sleep infinity'",
        cgroup.display(),
        file.display()
    );
    Ok(Command::new("sh").args(["-c", &script]).spawn()?)
}

/// Nanoseconds on a CPU of all threads of a process.
fn cpu_time(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        sum += text.split(' ').next().unwrap_or("0").parse::<u64>()?;
    }
    Ok(sum)
}
