//! What the holder is told, and how it passes that on to itself across an `exec`.
//!
//! The holder runs as a fresh program image that shares no heap with whoever parsed the
//! command line, so its options travel as arguments. They are an interface between two
//! versions of the binary (an upgrade execs the new one with the old one's options): names
//! are only ever added, unknown ones are ignored with a warning.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

/// First argument of a process that is to become the holder.
pub const ENTRY: &str = "__hold";

/// What to mount and whom to supervise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderOptions {
    /// Where to mount; must exist.
    pub mountpoint: PathBuf,
    /// The worker's command line. The first word is the executable; if it is empty, it is the
    /// holder's own. The worker finds its descriptors at fixed numbers
    /// ([`FUSE_FD`](crate::FUSE_FD) and following).
    pub worker: Vec<OsString>,
    /// Mount over a directory that is not empty.
    pub nonempty: bool,
    /// Serving loops; 0 chooses by the number of CPUs (2 to 4).
    pub loops: u32,
    /// Socket for status, upgrade and stop; `None` for no socket.
    pub control: Option<PathBuf>,
    /// Socket that workers come to from outside; `None` to start them ourselves.
    pub outside: Option<PathBuf>,
    /// The user that workers from outside may have, besides root.
    pub outside_uid: u32,
    /// Removed when we end, not when another program of ours takes over. Its lock is ours by
    /// an open descriptor that we inherited.
    pub pidfile: Option<PathBuf>,
    /// The daemon's own directory. Workers are killed and cannot tidy up: the sockets in it are
    /// removed when we end. The directory stays, for containers may have it bound.
    pub own_dir: Option<PathBuf>,
    /// How long requests of a dead worker may wait for the next before they get EIO.
    pub orphan_bound: Duration,
    /// How often the mount is read through the kernel; zero turns the watchdog off.
    pub probe_interval: Duration,
    /// How long one such read may take before the worker counts as stuck.
    pub probe_deadline: Duration,
    /// Keep a second worker ready to take over.
    pub standby: bool,
    /// Descriptor that gets one line when the mount is served: `ok`, or the error.
    pub ready_fd: Option<RawFd>,
    /// Descriptors and processes of a running connection; set by the holder itself when it
    /// replaces its own program.
    pub adopt: Option<Adopt>,
}

/// A live connection handed from one holder program to the next within one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopt {
    /// The `/dev/fuse` descriptor.
    pub fuse: RawFd,
    /// The state memory.
    pub state: RawFd,
    /// The listening control socket.
    pub control: Option<RawFd>,
    /// Control client that waits for the outcome.
    pub client: Option<RawFd>,
    /// The program that served before the last upgrade: the fallback of a crash loop.
    pub last_good: Option<RawFd>,
    /// Workers as process id and channel, the active one first.
    pub workers: Vec<(u32, RawFd)>,
}

impl HolderOptions {
    /// Options with the default bounds.
    pub fn new(mountpoint: impl Into<PathBuf>, worker: Vec<OsString>) -> Self {
        Self {
            mountpoint: mountpoint.into(),
            worker,
            nonempty: false,
            loops: 0,
            control: None,
            outside: None,
            outside_uid: 0,
            pidfile: None,
            own_dir: None,
            orphan_bound: Duration::from_secs(3),
            probe_interval: Duration::from_secs(5),
            probe_deadline: Duration::from_secs(5),
            standby: true,
            ready_fd: None,
            adopt: None,
        }
    }

    /// The arguments after the program's name, starting with [`ENTRY`].
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec![ENTRY.into()];
        let mut put = |name: &str, value: &OsStr| {
            let mut word = OsString::from(format!("{name}="));
            word.push(value);
            args.push(word);
        };
        let millis = |duration: Duration| OsString::from(duration.as_millis().to_string());
        let number = |fd: RawFd| OsString::from(fd.to_string());
        put("mountpoint", self.mountpoint.as_os_str());
        put(
            "nonempty",
            OsStr::new(if self.nonempty { "1" } else { "0" }),
        );
        put("loops", OsStr::new(&self.loops.to_string()));
        put("orphan-ms", &millis(self.orphan_bound));
        put("probe-ms", &millis(self.probe_interval));
        put("probe-deadline-ms", &millis(self.probe_deadline));
        put("standby", OsStr::new(if self.standby { "1" } else { "0" }));
        if let Some(control) = &self.control {
            put("control", control.as_os_str());
        }
        if let Some(outside) = &self.outside {
            put("outside", outside.as_os_str());
            put("outside-uid", OsStr::new(&self.outside_uid.to_string()));
        }
        if let Some(pidfile) = &self.pidfile {
            put("pidfile", pidfile.as_os_str());
        }
        if let Some(own_dir) = &self.own_dir {
            put("own-dir", own_dir.as_os_str());
        }
        if let Some(fd) = self.ready_fd {
            put("ready-fd", &number(fd));
        }
        if let Some(adopt) = &self.adopt {
            put("adopt-fuse", &number(adopt.fuse));
            put("adopt-state", &number(adopt.state));
            if let Some(fd) = adopt.control {
                put("adopt-control", &number(fd));
            }
            if let Some(fd) = adopt.client {
                put("adopt-client", &number(fd));
            }
            if let Some(fd) = adopt.last_good {
                put("adopt-last-good", &number(fd));
            }
            for (pid, channel) in &adopt.workers {
                put("adopt-worker", OsStr::new(&format!("{pid}:{channel}")));
            }
        }
        args.push("--".into());
        args.extend(self.worker.iter().cloned());
        args
    }

    /// Reads what [`to_args`](Self::to_args) wrote; `args` starts after [`ENTRY`].
    ///
    /// # Errors
    /// A sentence that names the argument.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        use std::os::unix::ffi::OsStrExt;
        let mut options = Self::new("", Vec::new());
        let mut args = args.into_iter();
        let mut adopt = Adopt {
            fuse: -1,
            state: -1,
            ..Adopt::default()
        };
        for word in args.by_ref() {
            if word == "--" {
                break;
            }
            let bytes = word.as_bytes();
            let Some(at) = bytes.iter().position(|byte| *byte == b'=') else {
                return Err(format!("argument {word:?} of the holder has no value"));
            };
            let value = OsStr::from_bytes(&bytes[at + 1..]);
            let text = value.to_str().unwrap_or_default();
            let bad = || format!("argument {word:?} of the holder has an invalid value");
            let integer = || text.parse::<u64>().map_err(|_invalid| bad());
            let fd = || text.parse::<RawFd>().map_err(|_invalid| bad());
            match &bytes[..at] {
                b"mountpoint" => options.mountpoint = value.into(),
                b"nonempty" => options.nonempty = text == "1",
                b"loops" => options.loops = integer()?.min(u64::from(u32::MAX)) as u32,
                b"orphan-ms" => options.orphan_bound = Duration::from_millis(integer()?),
                b"probe-ms" => options.probe_interval = Duration::from_millis(integer()?),
                b"probe-deadline-ms" => options.probe_deadline = Duration::from_millis(integer()?),
                b"standby" => options.standby = text == "1",
                b"control" => options.control = Some(value.into()),
                b"outside" => options.outside = Some(value.into()),
                b"outside-uid" => {
                    options.outside_uid = text.parse().map_err(|_invalid| bad())?;
                }
                b"pidfile" => options.pidfile = Some(value.into()),
                b"own-dir" => options.own_dir = Some(value.into()),
                b"ready-fd" => options.ready_fd = Some(fd()?),
                b"adopt-fuse" => adopt.fuse = fd()?,
                b"adopt-state" => adopt.state = fd()?,
                b"adopt-control" => adopt.control = Some(fd()?),
                b"adopt-client" => adopt.client = Some(fd()?),
                b"adopt-last-good" => adopt.last_good = Some(fd()?),
                b"adopt-worker" => {
                    let (pid, channel) = text.split_once(':').ok_or_else(bad)?;
                    adopt.workers.push((
                        pid.parse().map_err(|_invalid| bad())?,
                        channel.parse().map_err(|_invalid| bad())?,
                    ));
                }
                _ => crate::log::say(&format!("ignoring unknown argument {word:?}")),
            }
        }
        options.worker = args.collect();
        if options.mountpoint.as_os_str().is_empty() {
            return Err("the holder was not told a mountpoint".to_owned());
        }
        if adopt.fuse >= 0 && adopt.state >= 0 {
            options.adopt = Some(adopt);
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_the_exec() {
        let mut options = HolderOptions::new(
            "/var/lib/lxc fs",
            vec![
                "".into(),
                "worker".into(),
                "--option=a=b".into(),
                "--".into(),
                "x".into(),
            ],
        );
        options.control = Some("/run/lxcfs/control".into());
        options.outside = Some("/run/lxcfs/workers.sock".into());
        options.outside_uid = 65534;
        options.pidfile = Some("/run/lxcfs.pid".into());
        options.own_dir = Some("/run/lxcfs".into());
        options.ready_fd = Some(7);
        options.loops = 3;
        options.adopt = Some(Adopt {
            fuse: 20,
            state: 21,
            control: Some(22),
            client: None,
            last_good: Some(25),
            workers: vec![(100, 23), (101, 24)],
        });
        let args = options.to_args();
        assert_eq!(args[0], ENTRY);
        assert_eq!(
            HolderOptions::from_args(args.into_iter().skip(1)),
            Ok(options)
        );
    }

    #[test]
    fn a_newer_argument_is_no_error_and_a_broken_one_is() {
        let from = |args: &[&str]| HolderOptions::from_args(args.iter().map(OsString::from));
        assert!(from(&["mountpoint=/m", "colour=red", "--"]).is_ok());
        assert!(
            from(&["mountpoint=/m", "loops=many"])
                .unwrap_err()
                .contains("loops")
        );
        assert!(from(&["loops=2"]).unwrap_err().contains("mountpoint"));
    }
}
