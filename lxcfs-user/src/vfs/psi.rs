//! PSI triggers of containers: a text written into a pressure file, then `poll` for `POLLPRI`.
//!
//! The kernel does the accounting: the text goes into the container's own cgroup file, and
//! one thread waits for all of them. A trigger lives as long as the open file that set it,
//! also across workers: it is journalled with the path of its cgroup file and set up again.
//! A plain `epoll_wait` never keeps the machine from suspending.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use lxcfs_common::catalogue::FileId;
use nix::errno::Errno as Sys;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::errno::{Errno, Refusal};
use crate::engine::{Caller, Engine};

/// Triggers at a time on the whole machine: the places in the journal.
pub const MAX_TRIGGERS: usize = 256;
/// Triggers per pressure file of a cgroup, so that one container cannot take all places.
const MAX_PER_FILE: usize = 16;
/// Longest text the kernel looks at (`psi_write` copies 32 bytes).
pub const MAX_TEXT: usize = 32;
/// Longest path that is journalled.
pub const MAX_PATH: usize = 768;

/// What a successor needs to set a trigger up again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The open file it belongs to.
    pub handle: u64,
    /// Which pressure file.
    pub file: FileId,
    /// Who set it.
    pub caller: Caller,
    /// The write request, to recognise its replay.
    pub request: u64,
    /// Where waiters in the kernel are woken; 0 if nobody waited yet.
    pub kernel_handle: u64,
    /// Device and inode of the cgroup's file.
    pub identity: (u64, u64),
    /// Path of the cgroup's file; empty if too long.
    pub path: Vec<u8>,
    /// The text as written.
    pub text: Vec<u8>,
}

/// Memory of triggers that outlives the worker.
pub trait TriggerJournal: Send + Sync {
    /// Adds or replaces the record of a handle; false when there is no room.
    fn put(&self, record: &Record) -> bool;
    /// Removes the record of a handle.
    fn remove(&self, handle: u64);
    /// Everything recorded.
    fn all(&self) -> Vec<Record>;
}

/// Wakes waiters in the kernel.
pub trait Wake: Send + Sync {
    /// Lets everybody who polls through `kernel_handle` poll again.
    fn wake(&self, kernel_handle: u64);
}

/// No journal: triggers end with the process.
pub struct NoJournal;

impl TriggerJournal for NoJournal {
    fn put(&self, _record: &Record) -> bool {
        true
    }
    fn remove(&self, _handle: u64) {}
    fn all(&self) -> Vec<Record> {
        Vec::new()
    }
}

struct Trigger {
    record: Record,
    /// `None` once the cgroup is gone.
    fd: Option<OwnedFd>,
    event: bool,
}

/// What a poll of a pressure file finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// No trigger, or its cgroup is gone: error and priority (`psi_trigger_poll`).
    Broken,
    /// The trigger fired since the last poll.
    Fired,
    /// It did not.
    Quiet,
}

/// All triggers of this worker.
pub struct Triggers {
    table: Mutex<HashMap<u64, Trigger>>,
    epoll: OnceLock<Epoll>,
    journal: Arc<dyn TriggerJournal>,
    wake: Arc<dyn Wake>,
}

impl Triggers {
    /// No triggers yet.
    pub fn new(journal: Arc<dyn TriggerJournal>, wake: Arc<dyn Wake>) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::default(),
            epoll: OnceLock::new(),
            journal,
            wake,
        })
    }

    fn table(&self) -> MutexGuard<'_, HashMap<u64, Trigger>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the trigger `text` for the open file `handle`.
    ///
    /// # Errors
    /// The kernel's own (EINVAL for a bad text), EBUSY for a second trigger on one file, ENOSPC
    /// when too many exist, and those of the engine.
    pub fn set(
        self: &Arc<Self>,
        engine: &dyn Engine,
        caller: Caller,
        file: FileId,
        handle: u64,
        request: u64,
        text: &[u8],
    ) -> Result<(), Errno> {
        {
            let table = self.table();
            if let Some(trigger) = table.get(&handle) {
                let replayed = trigger.record.request == request;
                return if replayed {
                    Ok(())
                } else {
                    Err(Refusal::Busy.into())
                };
            }
            if table.len() >= MAX_TRIGGERS {
                return Err(Refusal::TooMany.into());
            }
        }
        let text = &text[..text.len().min(MAX_TEXT)];
        let mut file_of_cgroup = File::from(engine.open_pressure(caller, file)?);
        let metadata = file_of_cgroup.metadata()?;
        let identity = (metadata.dev(), metadata.ino());
        let same = |trigger: &&Trigger| trigger.record.identity == identity;
        if self.table().values().filter(same).count() >= MAX_PER_FILE {
            return Err(Refusal::TooMany.into());
        }
        file_of_cgroup.write_all(text)?;
        let link = format!("/proc/self/fd/{}", file_of_cgroup.as_raw_fd());
        let path = std::fs::read_link(link).map(|p| p.into_os_string().into_vec());
        let record = Record {
            handle,
            file,
            caller,
            request,
            kernel_handle: 0,
            identity,
            path: path
                .ok()
                .filter(|path| path.len() <= MAX_PATH)
                .unwrap_or_default(),
            text: text.to_vec(),
        };
        if !self.journal.put(&record) {
            return Err(Refusal::TooMany.into());
        }
        self.watch(record, Some(file_of_cgroup.into()));
        Ok(())
    }

    fn watch(self: &Arc<Self>, record: Record, fd: Option<OwnedFd>) {
        let handle = record.handle;
        let epoll = self.epoll();
        let mut table = self.table();
        // The thread takes the same lock, so an event finds the entry.
        let added = match (&fd, epoll) {
            (Some(fd), Some(epoll)) => epoll
                .add(fd, EpollEvent::new(EpollFlags::EPOLLPRI, handle))
                .is_ok(),
            _ => false,
        };
        table.insert(
            handle,
            Trigger {
                record,
                fd,
                event: false,
            },
        );
        drop(table);
        if !added {
            self.broken(handle);
        }
    }

    fn epoll(self: &Arc<Self>) -> Option<&Epoll> {
        if self.epoll.get().is_none() {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).ok()?;
            if self.epoll.set(epoll).is_ok() {
                let triggers = self.clone();
                let started = std::thread::Builder::new()
                    .name("psi".to_owned())
                    .spawn(move || triggers.run());
                if let Err(error) = started {
                    tracing::error!(%error, "cannot start the thread for PSI triggers");
                }
            }
        }
        self.epoll.get()
    }

    fn run(self: Arc<Self>) {
        let Some(epoll) = self.epoll.get() else {
            return;
        };
        let mut events = [EpollEvent::empty(); 32];
        loop {
            let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Sys::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "waiting for PSI triggers");
                    return;
                }
            };
            for event in events.iter().take(count) {
                let handle = event.data();
                if event
                    .events()
                    .intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP)
                {
                    self.broken(handle);
                } else {
                    self.fired(handle);
                }
            }
        }
    }

    fn fired(&self, handle: u64) {
        let kernel_handle = self.table().get_mut(&handle).map(|trigger| {
            trigger.event = true;
            trigger.record.kernel_handle
        });
        self.wake(kernel_handle);
    }

    /// The cgroup is gone: waiters get an error, as from the kernel's own file.
    fn broken(&self, handle: u64) {
        let mut table = self.table();
        let Some(trigger) = table.get_mut(&handle) else {
            return;
        };
        if let (Some(fd), Some(epoll)) = (trigger.fd.take(), self.epoll.get()) {
            let _not_added = epoll.delete(fd.as_fd());
        }
        let kernel_handle = trigger.record.kernel_handle;
        drop(table);
        self.wake(Some(kernel_handle));
    }

    fn wake(&self, kernel_handle: Option<u64>) {
        if let Some(kernel_handle) = kernel_handle.filter(|handle| *handle != 0) {
            self.wake.wake(kernel_handle);
        }
    }

    /// Looks at the trigger of `handle`, consuming its event. `waiter` is remembered and woken
    /// at the next event.
    pub fn poll(&self, handle: u64, waiter: Option<u64>) -> Pressure {
        let mut table = self.table();
        let Some(trigger) = table.get_mut(&handle) else {
            return Pressure::Broken;
        };
        if let Some(waiter) = waiter
            && trigger.record.kernel_handle != waiter
        {
            trigger.record.kernel_handle = waiter;
            self.journal.put(&trigger.record);
        }
        if trigger.fd.is_none() {
            Pressure::Broken
        } else if std::mem::take(&mut trigger.event) {
            Pressure::Fired
        } else {
            Pressure::Quiet
        }
    }

    /// The open file is closed: its trigger ends.
    pub fn close(&self, handle: u64) {
        let removed = self.table().remove(&handle);
        if let Some(trigger) = removed {
            if let (Some(fd), Some(epoll)) = (&trigger.fd, self.epoll.get()) {
                let _already_gone = epoll.delete(fd.as_fd());
            }
            self.journal.remove(handle);
        }
    }

    /// Sets up what an earlier worker journalled, and wakes everybody who waited there.
    pub fn recover(self: &Arc<Self>, engine: &dyn Engine) {
        for record in self.journal.all() {
            let kernel_handle = record.kernel_handle;
            let fd = reopen(engine, &record);
            if let Err(error) = &fd {
                tracing::warn!(%error, "a PSI trigger could not be set up again");
            }
            self.watch(record, fd.ok());
            self.wake(Some(kernel_handle));
        }
    }
}

fn reopen(engine: &dyn Engine, record: &Record) -> io::Result<OwnedFd> {
    let path = Path::new(std::ffi::OsStr::from_bytes(&record.path));
    let same = |file: &File| {
        file.metadata()
            .is_ok_and(|now| (now.dev(), now.ino()) == record.identity)
    };
    let by_path = File::options()
        .read(true)
        .write(true)
        .open(path)
        .ok()
        .filter(same);
    let mut file = match by_path {
        Some(file) => file,
        None => {
            let opened = engine.open_pressure(record.caller, record.file);
            let file = File::from(opened.map_err(io::Error::other)?);
            if !same(&file) {
                return Err(io::Error::other("its cgroup is gone"));
            }
            file
        }
    };
    file.write_all(&record.text)?;
    Ok(file.into())
}
