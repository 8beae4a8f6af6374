//! `load_tasks_loop`: the walk of `load_tasks` as a loop within one run of a program (Linux 6.7
//! and later), which costs about two thirds of what the kernel's iterator does.
//!
//! A run cannot be interrupted, so it counts a limited number of tasks and notes the next one;
//! the next run goes along the kernel's list to that one without counting.

use core::mem::{MaybeUninit, transmute};

use lxcfs_common::bpf::{
    KFUNC_PLACEHOLDER, WALK_COUNTED, WALK_FROM, WALK_LIMIT, WALK_NEXT, WALK_NUMBER,
};

use crate::{
    kernel::{Address, Direct, Memory, layout},
    tasks::{WALK, count_task},
};

/// `struct bpf_iter_task`
type TaskIterator = MaybeUninit<[u64; 3]>;

/// `BPF_TASK_ITER_ALL_THREADS`
const ALL_THREADS: u32 = 1;

// Functions of the kernel, which are called by their number in its type information. Userspace
// puts that in the place of these numbers before loading.

#[inline(always)]
unsafe fn task_new(iterator: *mut TaskIterator) {
    // SAFETY: `bpf_iter_task_new` has this signature; it begins an iteration.
    unsafe {
        let function: unsafe extern "C" fn(*mut TaskIterator, Address, u32) -> i32 =
            transmute(KFUNC_PLACEHOLDER as usize);
        let _always_0_for_these_flags = function(iterator, core::ptr::null(), ALL_THREADS);
    }
}

#[inline(always)]
unsafe fn task_next(iterator: *mut TaskIterator) -> Address {
    // SAFETY: `bpf_iter_task_next` has this signature.
    unsafe {
        let function: unsafe extern "C" fn(*mut TaskIterator) -> Address =
            transmute(KFUNC_PLACEHOLDER as usize + 1);
        function(iterator)
    }
}

#[inline(always)]
unsafe fn task_destroy(iterator: *mut TaskIterator) {
    // SAFETY: `bpf_iter_task_destroy` has this signature; it ends an iteration.
    unsafe {
        let function: unsafe extern "C" fn(*mut TaskIterator) =
            transmute(KFUNC_PLACEHOLDER as usize + 2);
        function(iterator);
    }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/load_tasks_loop")]
extern "C" fn load_tasks_loop(_context: *const u64) -> i32 {
    let (Some(number), Some(from), Some(next), Some(counted), Some(limit)) = (
        WALK.get(WALK_NUMBER),
        WALK.get_ptr_mut(WALK_FROM),
        WALK.get_ptr_mut(WALK_NEXT),
        WALK.get_ptr_mut(WALK_COUNTED),
        WALK.get_ptr_mut(WALK_LIMIT),
    ) else {
        return -1;
    };
    let mut iterator = TaskIterator::uninit();
    // SAFETY: the iterator is begun once and ended once. What changes from task to task is kept
    // in the map, volatile: values the verifier does not follow, so that it sees soon that one
    // round of the loop is like the next.
    unsafe {
        task_new(&mut iterator);
        loop {
            let task = task_next(&mut iterator);
            if task.is_null() {
                break;
            }
            let pid = u64::from(Direct::u32_at(task, layout!(task_pid)));
            // The first of the list is the idle task.
            if pid == 0 {
                continue;
            }
            let wanted = from.read_volatile();
            if wanted != 0 {
                if wanted != pid {
                    continue;
                }
                from.write_volatile(0);
            }
            if counted.read_volatile() >= limit.read_volatile() {
                next.write_volatile(pid);
                break;
            }
            counted.write_volatile(counted.read_volatile() + 1);
            count_task::<Direct, true>(task, *number);
        }
        task_destroy(&mut iterator);
    }
    0
}
