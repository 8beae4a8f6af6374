//! One QEMU process: its command line, the ports it talks through, its end.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::cache::{Cache, remove};
use super::{CommandText, Layout, Machine};

/// Lines of the console shown when a machine ends without a status.
const CONSOLE_LINES: usize = 60;

/// Where the command's output goes.
pub(crate) struct Sinks {
    /// Standard output of the command.
    pub(crate) stdout: Box<dyn Write + Send>,
    /// Standard error of the command.
    pub(crate) stderr: Box<dyn Write + Send>,
}

impl Sinks {
    /// To our own stdout and stderr.
    pub(crate) fn inherit() -> Self {
        Self {
            stdout: Box::new(std::io::stdout()),
            stderr: Box::new(std::io::stderr()),
        }
    }
}

/// Files the machine's drives are made of.
pub(crate) struct Drives {
    pub(crate) root: PathBuf,
    pub(crate) modules: PathBuf,
    pub(crate) payload: PathBuf,
    pub(crate) boot: PathBuf,
}

/// Files of one run; removed at its end, or by the next run when this process was killed.
pub(crate) struct RunDirectory(PathBuf);

impl RunDirectory {
    pub(crate) fn create(cache: &Cache) -> Result<Self> {
        let runs = cache.path("runs");
        fs::create_dir_all(&runs)?;
        for entry in fs::read_dir(&runs)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let pid = name.split('-').next().unwrap_or_default();
            if !Path::new("/proc").join(pid).exists() {
                remove(&path)?;
            }
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let run = Self(runs.join(format!("{}-{number}", std::process::id())));
        remove(&run.0)?;
        fs::create_dir(&run.0).with_context(|| format!("cannot create {}", run.0.display()))?;
        Ok(run)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next run.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Kills QEMU when we leave early.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots and waits for the command's status.
pub(crate) fn run(
    machine: &Machine,
    vmlinuz: &Path,
    initramfs: &Path,
    drives: &Drives,
    run: &RunDirectory,
    command: &CommandText,
    sinks: Sinks,
) -> Result<u8> {
    let console = run.path().join("console");
    let mut qemu = Command::new("qemu-system-x86_64");
    // Emulated cmpxchg16b of QEMU 7.2 corrupts flags, which panics newer kernels: -cx16.
    qemu.args([
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max,-cx16",
        "-M",
        "q35",
    ]);
    qemu.args(["-no-user-config", "-nodefaults", "-display", "none"]);
    if !machine.reboots {
        qemu.arg("-no-reboot");
    }
    qemu.arg("-smp")
        .arg(machine.smp.to_string())
        .arg("-m")
        .arg(format!("{}M", machine.mem));
    qemu.arg("-kernel")
        .arg(vmlinuz)
        .arg("-initrd")
        .arg(initramfs);
    qemu.arg("-append").arg(kernel_arguments(machine));
    drive(&mut qemu, "root", &drives.root, "snapshot=on");
    drive(&mut qemu, "modules", &drives.modules, "readonly=on");
    drive(&mut qemu, "payload", &drives.payload, "readonly=on");
    drive(&mut qemu, "boot", &drives.boot, "readonly=on");
    if machine.swap > 0 {
        let swap = run.path().join("swap");
        File::create(&swap)?.set_len(u64::from(machine.swap) << 20)?;
        drive(&mut qemu, "swap", &swap, "cache=unsafe");
    }
    qemu.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
    let mut ports = Ports::default();
    let stdout = ports.add(&mut qemu, "stdout")?;
    let stderr = ports.add(&mut qemu, "stderr")?;
    let status = ports.add(&mut qemu, "status")?;
    if command.is_interactive() {
        qemu.args(["-serial", "mon:stdio"]);
    } else {
        qemu.arg("-serial")
            .arg(format!("file:{}", console.display()))
            .stdin(Stdio::null());
    }
    qemu.env("TMPDIR", run.path());
    ports.inherit(&mut qemu);
    let child = qemu.spawn().context("cannot start qemu-system-x86_64")?;
    drop(ports);
    let mut running = Running(child);
    let copies = [copy(stdout, sinks.stdout), copy(stderr, sinks.stderr)];
    let outcome = wait_for_status(status, machine.timeout());
    if outcome.is_ok() {
        // The machine powers itself off; one that does not has delivered its status all the same.
        let end = Instant::now() + Duration::from_secs(20);
        while running.0.try_wait()?.is_none() && Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
        }
    }
    drop(running);
    for copy in copies {
        copy.join()
            .ok()
            .context("the thread that copies output panicked")??;
    }
    outcome.map_err(|error| anyhow!("{error}\n{}", last_words(&console)))
}

fn drive(qemu: &mut Command, serial: &str, file: &Path, options: &str) {
    // A comma in a file name is written twice in QEMU's option syntax.
    let file = file.display().to_string().replace(',', ",,");
    qemu.arg("-drive").arg(format!(
        "id={serial},if=none,format=raw,file={file},{options}"
    ));
    qemu.arg("-device")
        .arg(format!("virtio-blk-pci,drive={serial},serial={serial}"));
}

fn kernel_arguments(machine: &Machine) -> String {
    let mut arguments =
        "console=ttyS0 quiet panic=-1 oops=panic softlockup_panic=1 no_timer_check reboot=t"
            .to_owned();
    if machine.systemd {
        arguments += " lxcfs.init=systemd systemd.show_status=0";
        arguments += match machine.layout {
            Layout::V2 => "",
            Layout::V1 => {
                " systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1 \
                 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"
            }
            Layout::Hybrid => {
                " systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=0 \
                 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"
            }
        };
    }
    if !machine.append.is_empty() {
        arguments.push(' ');
        arguments += &machine.append;
    }
    arguments
}

/// QEMU's ends of the virtio ports.
#[derive(Default)]
struct Ports(Vec<UnixStream>);

impl Ports {
    /// Adds a port that the guest knows as `lxcfs.NAME`; returns our end.
    fn add(&mut self, qemu: &mut Command, name: &str) -> Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
        qemu.arg("-chardev")
            .arg(format!("socket,id={name},fd={}", theirs.as_raw_fd()));
        qemu.arg("-device")
            .arg(format!("virtserialport,chardev={name},name=lxcfs.{name}"));
        self.0.push(theirs);
        Ok(ours)
    }

    /// Lets QEMU inherit its ends, and makes it die with us.
    fn inherit(&self, qemu: &mut Command) {
        let fds: Vec<RawFd> = self.0.iter().map(AsRawFd::as_raw_fd).collect();
        let keep = move || {
            for fd in &fds {
                // SAFETY: fcntl and prctl on plain integers are async-signal-safe and touch no memory
                // of ours; the descriptors are open until after the spawn.
                if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            // SAFETY: as above.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            Ok(())
        };
        // SAFETY: the closure only makes async-signal-safe calls and does not allocate.
        unsafe { qemu.pre_exec(keep) };
    }
}

fn copy(mut from: UnixStream, mut to: Box<dyn Write + Send>) -> JoinHandle<std::io::Result<()>> {
    thread::spawn(move || {
        let mut buffer = [0; 64 << 10];
        loop {
            match from.read(&mut buffer)? {
                0 => return to.flush(),
                length => to.write_all(&buffer[..length])?,
            }
            to.flush()?;
        }
    })
}

/// Waits for the line `exit N` on the status port.
fn wait_for_status(status: UnixStream, timeout: Duration) -> Result<u8> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut last = None;
        for line in BufReader::new(status).lines().map_while(Result::ok) {
            last = parse_status(&line);
            if last.is_some() {
                break;
            }
        }
        let _ = sender.send(last);
    });
    match receiver.recv_timeout(timeout) {
        Ok(Some(code)) => Ok(code),
        Ok(None) | Err(RecvTimeoutError::Disconnected) => {
            bail!("the virtual machine ended without a status: a kernel panic, or QEMU failed")
        }
        Err(RecvTimeoutError::Timeout) => {
            bail!(
                "no status after {} s (--timeout): the machine was ended",
                timeout.as_secs()
            )
        }
    }
}

fn parse_status(line: &str) -> Option<u8> {
    line.strip_prefix("exit ")?.trim().parse().ok()
}

fn last_words(console: &Path) -> String {
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    format!("The console's last lines:\n{}", tail.join("\n"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::{parse_status, wait_for_status};

    #[test]
    fn status_lines_are_exact() {
        assert_eq!(parse_status("exit 0"), Some(0));
        assert_eq!(parse_status("exit 255"), Some(255));
        for line in ["started", "exit", "exit 256", "exit x", "no exit 0"] {
            assert_eq!(parse_status(line), None, "{line}");
        }
    }

    #[test]
    fn a_machine_that_dies_is_not_a_success() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"started\n").unwrap();
        drop(theirs);
        let error = wait_for_status(ours, Duration::from_secs(60))
            .unwrap_err()
            .to_string();
        assert!(error.contains("without a status"), "{error}");
    }

    #[test]
    fn the_status_is_the_commands() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"started\nexit 7\n").unwrap();
        assert_eq!(wait_for_status(ours, Duration::from_secs(60)).unwrap(), 7);
    }
}
