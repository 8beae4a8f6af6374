//! Getting a connection: from our own earlier program, from the service manager's store, from
//! a surviving worker, or by a fresh mount.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::layout::{MAX_LOOPS, State};
use crate::log::say;
use crate::mount::{self, Found, MountError};
use crate::{HolderOptions, fd, notify, takeover};

/// A killed process is gone within this time, whatever it had open.
const DYING: Duration = Duration::from_secs(2);

/// A connection to hold.
pub(super) struct Connection {
    pub(super) fuse: OwnedFd,
    pub(super) state: State,
    /// A detached copy of the mount, kept for a successor that has to put it back.
    pub(super) tree: Option<OwnedFd>,
    /// Workers of a predecessor that still serve; to be replaced.
    pub(super) survivors: Vec<(u32, OwnedFd)>,
}

fn failed(call: &'static str) -> impl Fn(io::Error) -> MountError {
    move |source| MountError::System { call, source }
}

/// Finds or makes the connection for `point`.
pub(super) fn connect(options: &HolderOptions, point: &Path) -> Result<Connection, MountError> {
    if let Some(adopt) = &options.adopt {
        let fuse = fd::inherited(adopt.fuse).map_err(failed("adopt the device"))?;
        let state = fd::inherited(adopt.state)
            .and_then(State::open)
            .map_err(failed("adopt the state memory"))?;
        let tree = clone_tree(point);
        return Ok(Connection {
            fuse,
            state,
            tree,
            survivors: Vec::new(),
        });
    }
    if let Some(stored) = notify::stored() {
        match from_store(stored, point) {
            Ok(connection) => return Ok(connection),
            Err(error) => say(&format!("the stored connection is of no use: {error}")),
        }
    }
    let began = Instant::now();
    while let Found::Live { connection } = mount::inspect(point)? {
        // Workers that were just killed may keep the connection for a moment.
        if takeover::find(connection).is_some() || began.elapsed() > DYING {
            return from_survivors(point, connection);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    fresh(options, point)
}

fn from_store(stored: notify::Stored, point: &Path) -> Result<Connection, MountError> {
    let state = State::open(stored.state).map_err(failed("map the stored state memory"))?;
    if let Some(holder) = takeover::living_holder(&state) {
        return Err(MountError::Served {
            path: point.into(),
            holder,
        });
    }
    let number = state.header().connection.load(Ordering::Relaxed);
    if std::fs::metadata(format!("/sys/fs/fuse/connections/{number}")).is_err()
        && Path::new("/sys/fs/fuse/connections")
            .read_dir()
            .is_ok_and(|mut all| all.next().is_some())
    {
        return Err(MountError::Handshake(format!(
            "connection {number} is gone"
        )));
    }
    let mounted = mount::topmost(point).map_err(failed("read /proc/self/mountinfo"))?;
    let in_place = mounted.is_some_and(|m| m.fs_type == mount::FS_TYPE && m.minor == number);
    if let (false, Some(tree)) = (in_place, &stored.tree) {
        // A stop unmounted the host's path; the containers' binds kept the file system alive.
        mount::inspect(point)?;
        attach_tree(tree, point).map_err(failed("put the stored mount back"))?;
    } else if !in_place {
        return Err(MountError::Handshake("its mount is gone".to_owned()));
    }
    say(&format!(
        "continuing connection {number} from the service manager's store"
    ));
    let survivors = takeover::survivors(number);
    let tree = clone_tree(point);
    Ok(Connection {
        fuse: stored.fuse,
        state,
        tree,
        survivors,
    })
}

fn from_survivors(point: &Path, number: u32) -> Result<Connection, MountError> {
    let Some(found) = takeover::find(number) else {
        return Err(MountError::Mountpoint {
            path: point.into(),
            reason: format!(
                "is served by a process that is no lxcfs of this kind, or that we may not look at; \
                 stop it (C lxcfs: kill it, then umount {0}), or umount {0}",
                point.display()
            ),
        });
    };
    let state = State::open(found.state).map_err(failed("map the survivors' state memory"))?;
    if let Some(holder) = takeover::living_holder(&state) {
        return Err(MountError::Served {
            path: point.into(),
            holder,
        });
    }
    say(&format!(
        "taking connection {number} over from worker {}",
        found.pid
    ));
    let survivors = takeover::survivors(number);
    let tree = clone_tree(point);
    Ok(Connection {
        fuse: found.fuse,
        state,
        tree,
        survivors,
    })
}

fn fresh(options: &HolderOptions, point: &Path) -> Result<Connection, MountError> {
    mount::check_directory(point, options.nonempty)?;
    let loops = match options.loops {
        // Never one: a slow answer would stall every container. More than the CPUs, or more
        // than four, costs latency (cross-CPU wake-ups) and gains nothing.
        0 => std::thread::available_parallelism()
            .map_or(2, |n| n.get())
            .clamp(2, 4),
        n => (n as usize).clamp(2, MAX_LOOPS),
    };
    let state = State::create(loops).map_err(failed("make the state memory"))?;
    let connection = mount::mount(point)?;
    let header = state.header();
    header
        .kernel_minor
        .store(connection.kernel_minor, Ordering::Relaxed);
    header
        .connection
        .store(connection.number, Ordering::Relaxed);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    header.mounted_at_sec.store(now, Ordering::Relaxed);
    use std::os::unix::ffi::OsStrExt;
    state.set_mountpoint(point.as_os_str().as_bytes());
    let tree = clone_tree(point);
    Ok(Connection {
        fuse: connection.fuse,
        state,
        tree,
        survivors: Vec::new(),
    })
}

const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

/// A detached copy of the mount at `point`. Only for the service manager's store; `None` where
/// the kernel cannot (before 5.2).
fn clone_tree(point: &Path) -> Option<OwnedFd> {
    if !notify::Manager::from_env().present() {
        return None;
    }
    let path =
        std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(point.as_os_str())).ok()?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: a C string and integers; the result is checked.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if fd < 0 {
        return None;
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    fd::high(unsafe { OwnedFd::from_raw_fd(fd as i32) }).ok()
}

fn attach_tree(tree: &OwnedFd, point: &Path) -> io::Result<()> {
    let path = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(point.as_os_str()))?;
    // SAFETY: C strings and integers; the result is checked.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
