//! What a worker does while another one serves: it waits for the word to serve, watches over that
//! one, and reads the mount as a watchdog. And without a holder it waits for the other's end.

use std::os::fd::OwnedFd;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lxcfs_common::catalogue::{CATALOGUE, Kind, Node};
use lxcfs_holder::channel::{Order, Report, hear, say};
use lxcfs_holder::layout::{Cause, State};

use super::Worker;
use crate::fuse;

/// Between two looks at whether holder and worker are dead.
const SHORTEST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_secs(1);
/// A new holder that has not ended us for so long does not know us.
const MISSED: Duration = Duration::from_secs(600);
/// For a thread that makes two system calls.
const WATCH_STACK_BYTES: usize = 64 * 1024;

/// Tells the holder when nothing of the worker that serves runs any more: the threads of a dying
/// process are gone long before its descriptors are closed. Without it, that is when it is known.
pub(super) fn watch_over(state: &Arc<State>, channel: &Arc<OwnedFd>, activated: &Arc<AtomicBool>) {
    let (state, channel, activated) = (state.clone(), channel.clone(), activated.clone());
    let watch = move || {
        if state.wait_until_deserted(&activated) {
            let _holder_gone = say(&*channel, &Report::Deserted.to_text());
        }
    };
    let thread = std::thread::Builder::new().name("watch".to_owned());
    if let Err(error) = thread.stack_size(WATCH_STACK_BYTES).spawn(watch) {
        tracing::debug!(%error, "nobody watches over the worker that serves");
    }
}

impl Worker {
    /// Waits for the word to serve; `None` when the holder is gone.
    pub(super) fn stand_by(&self) -> Option<Cause> {
        loop {
            let text = hear(&*self.channel, true).ok()??;
            match Order::from_text(&text) {
                Some(Order::Activate(cause)) => return Some(cause),
                Some(Order::Probe(path)) => self.probe(path),
                Some(Order::Command(_)) => {
                    self.report(&Report::Answer(Err(
                        "a standby worker takes no commands".to_owned()
                    )));
                }
                None => tracing::warn!(order = text, "ignoring an order of a newer holder"),
            }
        }
    }

    /// Without a holder: whether this worker has to go on, because nobody serves any more. Waits
    /// for that as long as it takes; a new holder that has its own workers ends us.
    pub(super) fn outlives_the_others(&self, from_server: bool) -> bool {
        let orphaned = Instant::now();
        let mut unheld = orphaned;
        let mut pause = SHORTEST_LOOK;
        while unheld.elapsed() < MISSED && fuse::is_connected(&self.device) {
            let deserted = self.state.is_deserted_within(LONGEST_LOOK)
                || (!from_server && self.next_is_not_another());
            let held = !from_server && lxcfs_holder::living_holder(&self.state).is_some();
            if !held {
                unheld = Instant::now();
            }
            // Somebody may have unmounted what nobody held.
            let wanted = deserted && !held && fuse::is_connected(&self.device);
            if wanted && self.state.claim() {
                if !from_server {
                    let header = self.state.header();
                    header.worker_pid.store(process::id(), Ordering::Relaxed);
                }
                tracing::warn!("holder and worker died; the worker that stood by goes on");
                return true;
            }
            // A server's next worker waits for our place, to be there for the next holder.
            if from_server && !deserted && orphaned.elapsed() >= LONGEST_LOOK {
                return false;
            }
            if deserted {
                // The holder that died last may look alive for a moment yet.
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_LOOK);
            }
        }
        false
    }

    /// Whether the worker that the last holder chose is this one, or has ended: it may not have
    /// come to sign anything.
    fn next_is_not_another(&self) -> bool {
        let chosen = self.state.header().worker_pid.load(Ordering::Acquire);
        chosen == process::id() || lxcfs_holder::worker_has_ended(&self.state)
    }

    /// Reads a file of the mount through the kernel, on a thread of its own: it may wait for
    /// ever, or until this very worker takes over.
    fn probe(&self, mountpoint: String) {
        let channel = self.channel.clone();
        let names: Vec<&'static str> = CATALOGUE
            .iter()
            .filter(|entry| {
                let node = Node::Fixed(entry);
                matches!(entry.kind, Kind::File(_))
                    && self.engine.exists(node)
                    && self.engine.is_offered(node)
            })
            .map(|entry| entry.path)
            .take(1)
            .collect();
        let probe = move || {
            let result = names.iter().try_for_each(|name| {
                std::fs::read(format!("{mountpoint}/{name}"))
                    .map(drop)
                    .map_err(|e| e.to_string())
            });
            let _holder_gone = say(&*channel, &Report::Probed(result).to_text());
        };
        if let Err(error) = std::thread::Builder::new()
            .name("probe".to_owned())
            .spawn(probe)
        {
            self.report(&Report::Probed(Err(error.to_string())));
        }
    }
}
