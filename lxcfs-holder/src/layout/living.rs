//! Which threads of the worker that serves are alive.
//!
//! Each thread that reads requests or writes to the memory signs a word of it with its thread id,
//! as a robust futex. When the thread dies, the kernel marks the word and wakes who waits for it
//! (`exit_robust_list` of `kernel/futex/core.c`), before it takes the process's memory and
//! descriptors apart. So the next worker knows a good part of a millisecond sooner that nothing
//! of the last one runs than it could by a closed descriptor or a pidfd.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{MAX_LOOPS, State};

const HEAD_BYTES: usize = size_of::<[usize; 3]>();

/// Words for threads that are no loops.
const OTHERS: usize = 8;
/// All words; those of the loops come first.
pub(super) const WORDS: usize = MAX_LOOPS + OTHERS;

/// The kernel's marks in a futex word.
const WAITED_FOR: u32 = libc::FUTEX_WAITERS;
const DEAD: u32 = libc::FUTEX_OWNER_DIED;
/// Nobody has signed.
const BLANK: u32 = 0;
/// No thread has this id: the kernel never marks the word.
const UNSEEN: u32 = libc::FUTEX_TID_MASK;

/// `struct robust_list_head`, and the one entry of the list. The thread's C library has a list of
/// its own for robust mutexes; a worker uses none, and this takes its place.
#[repr(C)]
struct RobustList {
    first: *const Entry,
    /// From an entry to its futex word, in bytes.
    offset: isize,
    pending: *const Entry,
    entry: Entry,
}

#[repr(C)]
struct Entry {
    next: *const Entry,
}

/// A signed word; blank again when the thread ends in an orderly way.
struct Signature {
    state: Arc<State>,
    index: usize,
    /// Read by the kernel until the thread is gone.
    list: NonNull<RobustList>,
}

impl Drop for Signature {
    fn drop(&mut self) {
        if let Some(word) = self.state.word(self.index) {
            let ours = |value: u32| (value & UNSEEN != UNSEEN).then_some(BLANK);
            let _left_unseen = word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, ours);
            wake(word);
        }
        let none = std::ptr::null::<RobustList>();
        // SAFETY: the kernel takes a null head for no list; after that nobody reads ours, which
        // was leaked by `sign`.
        unsafe {
            libc::syscall(libc::SYS_set_robust_list, none, HEAD_BYTES);
            drop(Box::from_raw(self.list.as_ptr()));
        }
    }
}

thread_local! {
    static SIGNATURE: RefCell<Option<Signature>> = const { RefCell::new(None) };
}

fn wake(word: &AtomicU32) {
    // SAFETY: a valid address of the shared mapping.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Waits while `word` is `value`, at most for `limit`; may return early.
fn wait(word: &AtomicU32, value: u32, limit: Option<Duration>) {
    let limit = limit.map(nix::sys::time::TimeSpec::from_duration);
    let limit = limit.as_ref().map_or(std::ptr::null(), |limit| {
        std::ptr::from_ref::<libc::timespec>(limit.as_ref())
    });
    // SAFETY: as above; the limit outlives the call.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            value,
            limit,
        )
    };
}

impl State {
    fn word(&self, index: usize) -> Option<&AtomicU32> {
        self.control().living.get(index)
    }

    /// Signs for the calling thread, which runs loop `index` of the worker that serves.
    pub fn sign_loop(self: &Arc<Self>, index: usize) {
        SIGNATURE.with_borrow_mut(|signature| {
            if signature.as_ref().is_none_or(|of| of.index != index) && index < self.loops() {
                // One word a thread: another one becomes blank first.
                *signature = None;
                *signature = self.sign(index, None);
            }
        });
    }

    /// Signs for the calling thread, which is about to write to the memory.
    pub fn sign_writer(self: &Arc<Self>) {
        SIGNATURE.with_borrow_mut(|signature| {
            if signature.is_none() {
                let others = MAX_LOOPS..WORDS;
                *signature = others
                    .clone()
                    .find_map(|index| self.sign(index, Some(BLANK)));
                if signature.is_none()
                    && let Some(last) = self.word(others.end - 1)
                {
                    // Its death would not be seen: until others serve, nobody is known to be dead.
                    last.store(UNSEEN, Ordering::Release);
                }
            }
        });
    }

    /// Signs in place of the dead worker's writers, if nobody else has done so. The caller is the
    /// one that takes over, and nobody else finds the memory deserted while it lives.
    pub fn claim(self: &Arc<Self>) -> bool {
        let Some(word) = self.word(MAX_LOOPS) else {
            return false;
        };
        let value = word.load(Ordering::Acquire);
        if value != BLANK && value & DEAD == 0 {
            return false;
        }
        SIGNATURE.with_borrow_mut(|signature| {
            *signature = None;
            *signature = self.sign(MAX_LOOPS, Some(value));
            signature.is_some()
        })
    }

    /// Signs the word, if it says `only_over`, when that is given.
    fn sign(self: &Arc<Self>, index: usize, only_over: Option<u32>) -> Option<Signature> {
        let word = self.word(index)?;
        if only_over.is_some_and(|value| word.load(Ordering::Relaxed) != value) {
            return None;
        }
        let mut list = Box::new(RobustList {
            first: std::ptr::null(),
            offset: 0,
            pending: std::ptr::null(),
            entry: Entry {
                next: std::ptr::null(),
            },
        });
        let entry = &raw const list.entry;
        list.first = entry;
        list.entry.next = (&raw const *list).cast();
        list.offset = word
            .as_ptr()
            .addr()
            .wrapping_sub(entry.addr())
            .cast_signed();
        let list = NonNull::from(Box::leak(list));
        // SAFETY: the list stays where it is until the signature is dropped; only the kernel
        // reads it, when the thread dies.
        let set = unsafe { libc::syscall(libc::SYS_set_robust_list, list.as_ptr(), HEAD_BYTES) };
        // SAFETY: no arguments.
        let tid = unsafe { libc::gettid() }.cast_unsigned();
        let signed = set == 0
            && match only_over {
                None => {
                    word.store(tid, Ordering::Release);
                    true
                }
                Some(value) => {
                    let free =
                        word.compare_exchange(value, tid, Ordering::AcqRel, Ordering::Relaxed);
                    free.is_ok()
                }
            };
        if !signed {
            // SAFETY: as in `drop`.
            unsafe {
                let none = std::ptr::null::<RobustList>();
                libc::syscall(libc::SYS_set_robust_list, none, HEAD_BYTES);
                drop(Box::from_raw(list.as_ptr()));
            }
            return None;
        }
        wake(word);
        Some(Signature {
            state: self.clone(),
            index,
            list,
        })
    }

    /// Makes all words blank: another worker will sign. Nothing of the last one may run.
    pub(crate) fn expect_signatures(&self) {
        for word in &self.control().living {
            if word.swap(BLANK, Ordering::AcqRel) & WAITED_FOR != 0 {
                wake(word);
            }
        }
    }

    /// Whether every loop has signed and every thread that has signed is dead. A thread that
    /// signs later does so before it writes; one that was killed does not.
    pub(crate) fn is_deserted(&self) -> bool {
        self.alive().is_none()
    }

    /// A word that is not known to be a dead thread's, and what it says.
    fn alive(&self) -> Option<(&AtomicU32, u32)> {
        let words = self.control().living.iter().enumerate();
        words
            .map(|(index, word)| (index, word, word.load(Ordering::Acquire)))
            .find(|(index, _, value)| {
                (*index < self.loops() || *value != BLANK) && value & DEAD == 0
            })
            .map(|(_, word, value)| (word, value))
    }

    /// Waits until every loop of the worker that serves has signed and all who have are dead, and
    /// returns true. Once `stop` is set it returns false when the next thread signs.
    pub fn wait_until_deserted(&self, stop: &AtomicBool) -> bool {
        while !stop.load(Ordering::Acquire) {
            match self.alive() {
                None => return true,
                Some((word, value)) => Self::wait_for_another(word, value, None),
            }
        }
        false
    }

    /// The same, at most for `limit`; false when it has passed.
    pub fn is_deserted_within(&self, limit: Duration) -> bool {
        let began = Instant::now();
        loop {
            let Some((word, value)) = self.alive() else {
                return true;
            };
            match limit.checked_sub(began.elapsed()) {
                None | Some(Duration::ZERO) => return false,
                left => Self::wait_for_another(word, value, left),
            }
        }
    }

    /// Waits while `word` is `value`, the sign of somebody alive.
    fn wait_for_another(word: &AtomicU32, value: u32, limit: Option<Duration>) {
        match value {
            BLANK => wait(word, BLANK, limit),
            _ => {
                let marked = value | WAITED_FOR;
                let exchanged =
                    word.compare_exchange(value, marked, Ordering::AcqRel, Ordering::Relaxed);
                if exchanged.is_ok() {
                    wait(word, marked, limit);
                    // The kernel wakes one; there may be more of us.
                    if word.load(Ordering::Acquire) & DEAD != 0 {
                        wake(word);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A process that signs as loop 0 and writer, and waits to be killed.
    fn signs_and_waits(state: &Arc<State>) -> nix::unistd::Pid {
        // SAFETY: the child allocates little and never returns.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Parent { child } => child,
            nix::unistd::ForkResult::Child => {
                state.sign_loop(0);
                let writer = state.clone();
                std::thread::spawn(move || {
                    writer.sign_writer();
                    loop {
                        nix::unistd::pause();
                    }
                });
                loop {
                    nix::unistd::pause();
                }
            }
        }
    }

    fn signed(state: &State, index: usize) -> bool {
        let value = state.word(index).unwrap().load(Ordering::Acquire);
        value & !(WAITED_FOR | DEAD) != 0
    }

    #[test]
    fn who_waits_is_told_when_the_last_thread_of_a_killed_process_is_gone() {
        let state = Arc::new(State::create(1).unwrap());
        for _ in 0..20 {
            state.expect_signatures();
            let child = signs_and_waits(&state);
            let watch = {
                let state = state.clone();
                std::thread::spawn(move || state.wait_until_deserted(&AtomicBool::new(false)))
            };
            while !signed(&state, 0) || !signed(&state, MAX_LOOPS) {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(!state.is_deserted() && !watch.is_finished());
            nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
            assert!(watch.join().unwrap());
            assert!(state.is_deserted());
            nix::sys::wait::waitpid(child, None).unwrap();
        }
    }

    #[test]
    fn only_one_of_many_claims_what_is_deserted() {
        let state = Arc::new(State::create(1).unwrap());
        assert!(!state.is_deserted_within(Duration::from_millis(1)));
        for word in [0, MAX_LOOPS].map(|index| state.word(index).unwrap()) {
            word.store(DEAD | 4711, Ordering::Release);
        }
        for _ in 0..50 {
            assert!(state.is_deserted_within(Duration::ZERO));
            let together = std::sync::Barrier::new(8);
            let claim = || {
                together.wait();
                let claimed = state.claim();
                together.wait();
                assert!(!state.is_deserted_within(Duration::from_millis(1)));
                together.wait();
                claimed
            };
            let claimed = std::thread::scope(|scope| {
                let claimants: Vec<_> = (0..8).map(|_| scope.spawn(claim)).collect();
                let each = claimants.into_iter().map(|one| one.join().unwrap());
                each.filter(|claimed| *claimed).count()
            });
            // It has left in order, so that its word is blank again.
            assert_eq!(claimed, 1);
        }
    }

    #[test]
    fn nobody_is_taken_for_dead_who_has_not_signed_or_has_left_in_order() {
        let state = Arc::new(State::create(2).unwrap());
        assert!(!state.is_deserted(), "nobody has signed");
        let other = state.clone();
        std::thread::spawn(move || {
            other.sign_writer();
            other.sign_loop(1);
            other.sign_writer();
            assert!(signed(&other, 1));
            assert!(!signed(&other, MAX_LOOPS), "one word a thread");
        })
        .join()
        .unwrap();
        assert!(!signed(&state, 1) && !state.is_deserted());
    }

    #[test]
    fn with_a_writer_too_many_nobody_is_taken_for_dead() {
        let state = Arc::new(State::create(1).unwrap());
        for index in (0..state.loops()).chain(MAX_LOOPS..WORDS) {
            state.word(index).unwrap().store(DEAD, Ordering::Release);
        }
        assert!(state.is_deserted());
        let writer = state.clone();
        std::thread::spawn(move || writer.sign_writer())
            .join()
            .unwrap();
        assert!(!state.is_deserted());
        state.expect_signatures();
        assert!(!signed(&state, WORDS - 1));
    }

    #[test]
    fn who_waits_leaves_when_it_is_told_to_stop() {
        let state = Arc::new(State::create(1).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let (watched, told) = (state.clone(), stop.clone());
        let watch = std::thread::spawn(move || watched.wait_until_deserted(&told));
        stop.store(true, Ordering::Release);
        let loops = std::thread::spawn(move || state.sign_loop(0));
        loops.join().unwrap();
        assert!(!watch.join().unwrap());
    }
}
