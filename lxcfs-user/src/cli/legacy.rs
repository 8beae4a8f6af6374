//! What start scripts written for C lxcfs 3 to 7 say, explained. Pure.

use super::args::LegacyArgs;

/// Mount options that libfuse or mount(8) knows: harmless to give, without effect here.
const MOUNT_OPTIONS: &[&str] = &[
    "ac_attr_timeout",
    "allow_other",
    "allow_root",
    "async",
    "atime",
    "attr_timeout",
    "auto_cache",
    "auto_unmount",
    "big_writes",
    "blkdev",
    "clone_fd",
    "debug",
    "default_permissions",
    "dev",
    "direct_io",
    "entry_timeout",
    "exec",
    "fsname",
    "hard_remove",
    "idle_threads",
    "intr",
    "intr_signal",
    "kernel_cache",
    "large_read",
    "max_idle_threads",
    "max_read",
    "max_readahead",
    "max_threads",
    "max_write",
    "negative_timeout",
    "noatime",
    "nodev",
    "noexec",
    "noforget",
    "nonempty",
    "nosuid",
    "remember",
    "ro",
    "rw",
    "subtype",
    "suid",
    "sync",
    "umask",
    "use_ino",
    "readdir_ino",
    "gid",
    "uid",
];

impl LegacyArgs {
    /// One line per option that needs no doing, and whether `-o nonempty` was among them.
    pub(super) fn notes(&self) -> Result<(Vec<String>, bool), String> {
        let given = [
            (
                self.foreground,
                "-f: lxcfs always stays in the foreground; systemd or the container runs it",
            ),
            (
                self.enable_loadavg,
                "-l, --enable-loadavg: the container's load average is on by default; \
                 --no-loadavg turns it off",
            ),
            (
                self.enable_cfs,
                "--enable-cfs: the CPU quota counts by default; --no-cpu-view turns that off",
            ),
            (self.enable_pidfd, "--enable-pidfd: pidfds are always used"),
            (
                self.enable_cgroup,
                "--enable-cgroup: /cgroup is not served any more; cgroup namespaces have \
                 replaced it",
            ),
            (
                self.enable_psi_poll,
                "--enable-psi-poll: pressure triggers are on by default; --no-psi-poll turns \
                 them off",
            ),
            (
                self.single_thread,
                "-s: ignored, as by C lxcfs; --threads 1 serves with one thread",
            ),
        ];
        let mut notes: Vec<String> = given
            .iter()
            .filter(|(given, _)| *given)
            .map(|(_, note)| (*note).to_owned())
            .collect();
        let mut nonempty = false;
        let options = self
            .mount_options
            .iter()
            .flat_map(|list| list.split(','))
            .map(str::trim)
            .filter(|option| !option.is_empty());
        let mut ignored = Vec::new();
        for option in options {
            let name = option.split_once('=').map_or(option, |(name, _)| name);
            if !MOUNT_OPTIONS.contains(&name) {
                return Err(format!(
                    "-o {option}: unknown mount option; leave it out (the mount's options are \
                     fixed: allow_other, default_permissions, nosuid, nodev, noexec)"
                ));
            }
            if name == "nonempty" {
                nonempty = true;
            } else {
                ignored.push(option);
            }
        }
        if !ignored.is_empty() {
            notes.push(format!(
                "-o {}: not needed; the mount's options are fixed (allow_other, \
                 default_permissions, nosuid, nodev, noexec)",
                ignored.join(",")
            ));
        }
        Ok((notes, nonempty))
    }
}
