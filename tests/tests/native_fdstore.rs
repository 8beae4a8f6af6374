//! The service manager's descriptor store: the connection outlives all our processes. This test
//! plays the manager, as systemd does with `FileDescriptorStoreMax=`.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use lxcfs_tests::fixture::{CONSTANT_BYTES, check_generation, constant_text};
use lxcfs_tests::serve::{Readers, Served, eventually};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// The manager's end: what was stored by name, and whether the service said that it is ready.
struct Manager {
    socket: UnixDatagram,
    stored: Vec<(String, OwnedFd)>,
    ready: bool,
}

impl Manager {
    fn new(served: &Served) -> Self {
        let socket = UnixDatagram::bind(served.dir().join("notify")).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        Self {
            socket,
            stored: Vec::new(),
            ready: false,
        }
    }

    /// Receives everything that was sent so far.
    fn listen(&mut self) {
        let mut bytes = [0; 4096];
        loop {
            let mut space = nix::cmsg_space!([RawFd; 4]);
            let (length, fds) = {
                let mut parts = [IoSliceMut::new(&mut bytes)];
                let raw = self.socket.as_raw_fd();
                let flags = MsgFlags::MSG_CMSG_CLOEXEC;
                let Ok(message) = recvmsg::<()>(raw, &mut parts, Some(&mut space), flags) else {
                    return;
                };
                let fds: Vec<RawFd> = message
                    .cmsgs()
                    .expect("whole control messages")
                    .filter_map(|one| match one {
                        ControlMessageOwned::ScmRights(fds) => Some(fds),
                        _ => None,
                    })
                    .flatten()
                    .collect();
                (message.bytes, fds)
            };
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            let value = |key: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(key))
                    .map(str::to_owned)
            };
            self.ready |= value("READY=").as_deref() == Some("1");
            let Some(name) = value("FDNAME=") else {
                continue;
            };
            if value("FDSTOREREMOVE=").is_some() {
                self.stored.retain(|(known, _)| *known != name);
            }
            for fd in fds {
                // SAFETY: just received; nobody else owns it.
                self.stored
                    .push((name.clone(), unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
    }

    fn names(&self) -> Vec<&str> {
        self.stored.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Turns a command for a holder into one that gets the store as systemd passes it.
    fn start(&self, served: &Served) -> Command {
        let plain = served.command();
        let mut command = Command::new("sh");
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"])
            .arg(plain.get_program());
        command.args(plain.get_args());
        for (key, value) in plain.get_envs() {
            if let Some(value) = value {
                command.env(key, value);
            }
        }
        command.env("NOTIFY_SOCKET", served.dir().join("notify"));
        command.env("LISTEN_FDS", self.stored.len().to_string());
        command.env("LISTEN_FDNAMES", self.names().join(":"));
        let fds: Vec<RawFd> = self.stored.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        // SAFETY: only system calls between fork and exec. First all go up, so that none is
        // overwritten on its way down.
        unsafe {
            command.pre_exec(move || {
                let high: Vec<RawFd> = fds
                    .iter()
                    .map(|fd| libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, 100))
                    .collect();
                for (target, fd) in (3..).zip(high) {
                    if libc::dup2(fd, target) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        command
    }
}

#[test]
fn the_store_carries_readers_over_the_loss_of_all_processes_and_over_a_restart() {
    let mut served = Served::start();
    // Start again under a manager.
    served.signal_holder(Signal::SIGTERM);
    assert!(served.wait_holder().success());
    let mut manager = Manager::new(&served);
    served.start_with(manager.start(&served));
    eventually("ready and stored", || {
        manager.listen();
        manager.ready && manager.names() == ["lxcfs-fuse", "lxcfs-state", "lxcfs-mount"]
    });

    let readers = Readers::start(&served.mount(), 16);
    let kept = File::open(served.file("proc/meminfo")).expect("meminfo");
    let mut half_read = File::open(served.file("proc/stat")).expect("stat");
    let mut text = vec![0; 700];
    half_read.read_exact(&mut text).expect("a part");
    for _ in 0..3 {
        served.kill_everybody();
        served.wait_holder();
        std::thread::sleep(Duration::from_millis(200));
        served.start_with(manager.start(&served));
        manager.listen();
        assert_eq!(manager.stored.len(), 3, "{:?}", manager.names());
    }
    half_read.read_to_end(&mut text).expect("the rest");
    check_generation(&text).expect("one text, before and after");
    served.assert_unharmed(&readers.finish());

    // `systemctl restart` stops regularly, which unmounts; the store still keeps the connection.
    served.signal_holder(Signal::SIGTERM);
    assert!(served.wait_holder().success());
    assert_eq!(
        fs::read_dir(served.mount()).expect("the directory").count(),
        0
    );
    served.start_with(manager.start(&served));
    assert!(
        served.log().contains("continuing connection"),
        "{}",
        served.log()
    );
    assert_eq!(
        fs::read(served.file("proc/meminfo")).expect("meminfo"),
        constant_text(CONSTANT_BYTES)
    );
    let mut text = vec![0; CONSTANT_BYTES];
    kept.read_exact_at(&mut text, 0)
        .expect("the file that stayed open");
    assert_eq!(text, constant_text(CONSTANT_BYTES));
}
