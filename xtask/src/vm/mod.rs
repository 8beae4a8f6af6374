//! `cargo xtask vm`: a command on one of Debian's kernels, in QEMU, with its exit status.
//!
//! A machine has the root image as a throw-away drive, the fresh build as a second one, and ports
//! that carry the command's output and status. `init.sh` and `guest.sh` are its inside.

mod apt;
pub(crate) mod cache;
mod image;
mod initramfs;
mod kernel;
mod mirror;
mod payload;
mod qemu;
mod root;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::setup::{self, Purpose};
pub(crate) use apt::Suite;
pub(crate) use cache::Cache;
pub(crate) use kernel::Kernel;
pub(crate) use payload::{CommandText, Payload};
use qemu::Drives;
pub(crate) use qemu::Sinks;

/// Boots a Debian kernel in QEMU and runs a command there, as root, with the fresh build.
///
/// The command's output and exit status become this command's. One word is shell text, several
/// are a program and its arguments; without any, a shell opens on the console. `lxcfs` is in the
/// PATH, test executables are in /payload/tests, C lxcfs is `lxcfs-bookworm` and `lxcfs-sid`.
/// The first run downloads a kernel and builds a root image of 1.5 GB in ~/.cache/lxcfs-vm
/// (LXCFS_CACHE overrides it).
#[derive(Parser)]
#[command(after_help = "Examples:
  cargo xtask vm --kernel 6.12 -- uname -a
  cargo xtask vm --kernel 5.10 --layout v1 -- 'cat /proc/self/cgroup; ls /sys/fs/cgroup'
  cargo xtask vm --kernel 7 --smp 4 --swap 512 -- /payload/tests/vm_example --nocapture
  cargo xtask vm --kernel 6.1 --systemd -- systemctl status
  cargo xtask vm --kernel 6.1        a shell")]
pub(crate) struct Args {
    #[command(flatten)]
    machine: Machine,
    /// Boot without building anything.
    #[arg(long)]
    bare: bool,
    /// Bring this file as /payload/NAME (repeatable).
    #[arg(long, value_name = "PATH")]
    file: Vec<PathBuf>,
    /// Look for a newer kernel of this line instead of using the one in the cache.
    #[arg(long)]
    refresh: bool,
    /// What to run.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// A virtual machine's shape.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Parser)]
pub(crate) struct Machine {
    /// The kernel line.
    #[arg(long, value_enum, default_value = "6.12")]
    pub(crate) kernel: Kernel,
    /// How cgroups are mounted.
    #[arg(long, value_enum, default_value = "v2")]
    pub(crate) layout: Layout,
    /// Number of CPUs.
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub(crate) smp: u32,
    /// Memory, in MiB.
    #[arg(long, default_value_t = 2048, value_name = "MIB")]
    pub(crate) mem: u32,
    /// Swap, in MiB; none by default.
    #[arg(long, default_value_t = 0, value_name = "MIB")]
    pub(crate) swap: u32,
    /// More kernel arguments.
    #[arg(
        long,
        default_value = "",
        value_name = "ARGS",
        allow_hyphen_values = true
    )]
    pub(crate) append: String,
    /// Boot systemd as process 1 and run the command as a unit.
    #[arg(long)]
    pub(crate) systemd: bool,
    /// Let the command reboot the machine, after it made /var/lib/lxcfs-vm.reboots: it is run again
    /// then, and the disk is as it left it.
    #[arg(long)]
    pub(crate) reboots: bool,
    /// Give up after so many seconds.
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    pub(crate) timeout: u64,
}

/// How cgroups are mounted inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Layout {
    /// cgroup v2 on /sys/fs/cgroup.
    V2,
    /// Every controller in a v1 hierarchy. Kernel 7 has no v1 memory and cpuset controllers.
    V1,
    /// v1 hierarchies, and a v2 one without their controllers on /sys/fs/cgroup/unified.
    Hybrid,
}

impl Layout {
    /// The name used on command lines and in test declarations.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V1 => "v1",
            Self::Hybrid => "hybrid",
        }
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            kernel: Kernel::V6_12,
            layout: Layout::V2,
            smp: 2,
            mem: 2048,
            swap: 0,
            append: String::new(),
            systemd: false,
            reboots: false,
            timeout: 900,
        }
    }
}

impl Machine {
    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

impl Args {
    /// Runs the command; the exit code is the command's own.
    pub(crate) fn run(self) -> Result<ExitCode> {
        if self.refresh {
            let kernel = Cache::open()?.path(&format!("kernel-{}", self.machine.kernel.name()));
            cache::remove(&kernel)?;
        }
        let mut payload = if self.bare {
            Payload::default()
        } else {
            Payload::build()?
        };
        for file in &self.file {
            payload.add(file)?;
        }
        let command = CommandText::from_words(&self.command);
        let status = boot(&self.machine, &payload, &command, Sinks::inherit())?;
        Ok(ExitCode::from(status))
    }
}

/// Boots `machine`, runs `command` in it and returns its exit status.
///
/// # Errors
/// When something cannot be downloaded or built, when the machine ends without a status (a kernel
/// panic; the console's last lines are in the message) or does not end in time.
pub(crate) fn boot(
    machine: &Machine,
    payload: &Payload,
    command: &CommandText,
    sinks: Sinks,
) -> Result<u8> {
    setup::ensure(&[Purpose::Vm])?;
    let cache = Cache::open()?;
    let unpacked = kernel::fetch(&cache, machine.kernel)?;
    let initramfs = initramfs::fetch(&cache, machine.kernel, &unpacked)?;
    let root = root::fetch(&cache)?;
    let run = qemu::RunDirectory::create(&cache)?;
    let boot = payload::write_boot(machine, command, run.path())?;
    let payload = payload.image(&cache)?;
    let drives = Drives {
        root,
        modules: unpacked.modules_image,
        payload,
        boot,
    };
    qemu::run(
        machine,
        &unpacked.vmlinuz,
        &initramfs,
        &drives,
        &run,
        command,
        sinks,
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{Args, Machine};

    #[test]
    fn command_line_defaults_are_the_default_machine() {
        assert_eq!(Args::parse_from(["vm"]).machine, Machine::default());
    }
}
