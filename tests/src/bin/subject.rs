//! `subject [--userns] [--root DIR] [--keep-propagation]`: a container for tests. It has its
//! own PID and mount namespaces and a fresh procfs, prints the host's number of its init,
//! and then obeys one-line commands on standard input:
//!
//! * `read PATH`: answers `ok` and the content, newlines as `|`, or `err` and the errno.
//! * `watch PATH`: starts a thread that reads PATH over and over.
//! * `watched`: stops it and answers the distinct contents' first words with counts.
//! * `bind FROM TO`, `tmpfs DIR`, `umount PATH`, `symlink TO AT`, `file PATH`, `dir PATH`:
//!   what a hostile container does.
//! * `flood N DIR`: N tmpfs mounts below DIR.
//! * `flip DIR`: a thread that mounts and removes a tmpfs with symlinks over DIR for ever.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::ForkResult;

const NONE: Option<&str> = None;

fn main() -> anyhow::Result<()> {
    let (mut userns, mut root, mut keep) = (false, None, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--userns" => userns = true,
            "--root" => root = args.next(),
            "--keep-propagation" => keep = true,
            other => bail!("unknown option {other}"),
        }
    }
    if userns {
        unshare(CloneFlags::CLONE_NEWUSER).context("unshare(CLONE_NEWUSER)")?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", "0 0 1")?;
        std::fs::write("/proc/self/gid_map", "0 0 1")?;
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID).context("unshare")?;
    if !keep {
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("private")?;
    }
    let (told, tell) = nix::unistd::pipe()?;
    // SAFETY: this program has one thread so far, so the child may run any code.
    match unsafe { nix::unistd::fork() }.context("fork")? {
        ForkResult::Parent { child } => {
            println!("{child}");
            drop(tell);
            nix::sys::wait::waitpid(child, None)?;
            Ok(())
        }
        ForkResult::Child => {
            // The parent's line comes first: wait until it has closed its end.
            drop(tell);
            nix::unistd::read(&told, &mut [0])?;
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            init(root.as_deref(), keep)
        }
    }
}

fn init(root: Option<&str>, keep: bool) -> anyhow::Result<()> {
    if let Some(root) = root {
        nix::unistd::chroot(root)?;
        nix::unistd::chdir("/")?;
    }
    if !keep {
        std::fs::create_dir_all("/proc")?;
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), NONE).context("procfs")?;
    }
    println!("ready");
    let mut watch: Option<Watch> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = command(&line, &mut watch).unwrap_or_else(|err| format!("err {err:#}"));
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<BTreeMap<String, u64>>,
}

fn read(path: &str) -> String {
    match std::fs::read(path) {
        Ok(text) => format!(
            "ok {}",
            String::from_utf8_lossy(&text).trim_end().replace('\n', "|")
        ),
        Err(err) => format!("err {}", err.raw_os_error().unwrap_or(0)),
    }
}

fn command(line: &str, watch: &mut Option<Watch>) -> anyhow::Result<String> {
    let words: Vec<&str> = line.split(' ').collect();
    let done = || Ok("ok".to_owned());
    match words.as_slice() {
        ["read", path] => Ok(read(path)),
        ["watch", path] => {
            let (stop, path) = (Arc::new(AtomicBool::new(false)), (*path).to_owned());
            let stopped = Arc::clone(&stop);
            let thread = std::thread::spawn(move || {
                let mut seen = BTreeMap::new();
                while !stopped.load(Ordering::Relaxed) {
                    let words: Vec<String> =
                        read(&path).split(' ').take(2).map(str::to_owned).collect();
                    *seen.entry(words.join(" ")).or_insert(0u64) += 1;
                }
                seen
            });
            *watch = Some(Watch { stop, thread });
            done()
        }
        ["watched"] => {
            let running = watch.take().context("nothing is watched")?;
            running.stop.store(true, Ordering::Relaxed);
            let seen = running.thread.join().ok().context("watcher panicked")?;
            Ok(seen
                .into_iter()
                .map(|(what, count)| format!("{what}={count}"))
                .collect::<Vec<_>>()
                .join(";"))
        }
        ["bind", from, to] => {
            mount(Some(*from), *to, NONE, MsFlags::MS_BIND, NONE)?;
            done()
        }
        ["tmpfs", dir] => {
            mount(Some("tmpfs"), *dir, Some("tmpfs"), MsFlags::empty(), NONE)?;
            done()
        }
        ["umount", path] => {
            umount2(*path, MntFlags::MNT_DETACH)?;
            done()
        }
        ["symlink", to, at] => {
            std::os::unix::fs::symlink(to, at)?;
            done()
        }
        ["file", path] => {
            std::fs::write(path, "untouched\n")?;
            done()
        }
        ["dir", path] => {
            std::fs::create_dir_all(path)?;
            done()
        }
        ["flood", count, dir] => {
            for at in 0..count.parse::<u32>()? {
                let dir = Path::new(dir).join(at.to_string());
                std::fs::create_dir_all(&dir)?;
                mount(
                    Some("tmpfs"),
                    dir.as_os_str().as_bytes(),
                    Some("tmpfs"),
                    MsFlags::empty(),
                    NONE,
                )?;
            }
            done()
        }
        ["flip", dir] => {
            let dir = (*dir).to_owned();
            std::thread::spawn(move || flip(&dir));
            done()
        }
        _ => bail!("unknown command"),
    }
}

/// Races whoever walks a path below `dir`.
fn flip(dir: &str) {
    loop {
        let mounted = mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), NONE);
        if mounted.is_err() {
            continue;
        }
        for name in ["meminfo", "stat", "uptime"] {
            // The target is a file that must never be covered.
            let _ = std::os::unix::fs::symlink("/tmp/victim", format!("{dir}/{name}"));
        }
        let _ = umount2(dir, MntFlags::MNT_DETACH);
    }
}
