//! Disk requests per cgroup: how many were done, how long they took, how many were merged.
//!
//! The kernel keeps bytes and operations per cgroup (`io.stat`) but no times and no merges;
//! a request takes tens of microseconds at the least, the count some ten nanoseconds.
//!
//! Also, how many requests are under way and how long there was one: from giving a request to
//! the driver until it is done or put back. As in the kernel's own `io_ticks`, two CPUs that
//! end requests in the same instant may both count the moment before it.

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, HashMap},
};
use lxcfs_common::bpf::{BLOCK_QUEUE, BlockCounters, BlockKey, BlockQueue, LossCounter};

use crate::kernel::{Address, Direct, Memory, Probe, cgroup_id, known, layout, lose};

/// Counters per cgroup, device and operation.
#[map]
static BLOCK: HashMap<BlockKey, BlockCounters> =
    HashMap::with_max_entries(32_768, BPF_F_NO_PREALLOC);

/// When all programs were attached, set by userspace; 0 before. A request made earlier may
/// have been given to the driver unseen, so it does not count as under way at either end.
#[map]
static BLOCK_SINCE: Array<u64> = Array::with_max_entries(1, 0);

/// The value new entries start from; a constant, so that no `memset` is called for it.
// A mangled name would hold a hash of the checkout's path: the object must not.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
static NOTHING: BlockCounters = BlockCounters { requests: 0, merges: 0, nsec: 0, bytes: 0 };

const REQ_OP_MASK: u32 = 0xff;
const REQ_OP_DISCARD: u32 = 3;
const REQ_OP_SECURE_ERASE: u32 = 5;

/// Arguments of `block_rq_complete`.
#[repr(C)]
struct CompletionArguments {
    request: Address,
    error: u64,
    bytes: u64,
}

/// Arguments of `block_bio_backmerge` and `block_bio_frontmerge` since 5.11.
#[repr(C)]
struct MergeArguments {
    bio: Address,
}

/// The same before 5.11. A program of its own: with one program and a choice, LLVM moves the
/// context pointer before loading, which the verifier refuses.
#[repr(C)]
struct OldMergeArguments {
    queue: Address,
    request: Address,
    bio: Address,
}

/// Arguments of `block_rq_issue` and `block_rq_requeue` since 5.11.
#[repr(C)]
struct RequestArguments {
    request: Address,
}

/// The same before 5.11.
#[repr(C)]
struct OldRequestArguments {
    queue: Address,
    request: Address,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/block_issue")]
extern "C" fn block_issue(context: *const RequestArguments) -> i32 {
    // SAFETY: the kernel calls the program with the tracepoint's arguments.
    unsafe { moved::<Direct>((*context).request, Move::Started) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/block_issue_pr")]
extern "C" fn block_issue_pr(context: *const RequestArguments) -> i32 {
    // SAFETY: as above.
    unsafe { moved::<Probe>((*context).request, Move::Started) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/block_issue_old")]
extern "C" fn block_issue_old(context: *const OldRequestArguments) -> i32 {
    // SAFETY: as above.
    unsafe { moved::<Probe>((*context).request, Move::Started) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/block_requeue")]
extern "C" fn block_requeue(context: *const RequestArguments) -> i32 {
    // SAFETY: as above.
    unsafe { moved::<Direct>((*context).request, Move::Finished) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/block_requeue_pr")]
extern "C" fn block_requeue_pr(context: *const RequestArguments) -> i32 {
    // SAFETY: as above.
    unsafe { moved::<Probe>((*context).request, Move::Finished) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/block_requeue_old")]
extern "C" fn block_requeue_old(context: *const OldRequestArguments) -> i32 {
    // SAFETY: as above.
    unsafe { moved::<Probe>((*context).request, Move::Finished) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/block_done")]
extern "C" fn block_done(context: *const CompletionArguments) -> i32 {
    // SAFETY: the kernel calls the program with the tracepoint's arguments.
    unsafe { completed::<Direct>((*context).request, (*context).bytes as u32) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/block_done_pr")]
extern "C" fn block_done_pr(context: *const CompletionArguments) -> i32 {
    // SAFETY: as above.
    unsafe { completed::<Probe>((*context).request, (*context).bytes as u32) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/block_backmerge")]
extern "C" fn block_backmerge(context: *const MergeArguments) -> i32 {
    // SAFETY: as above.
    unsafe { merged::<Direct>((*context).bio) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/block_backmerge_pr")]
extern "C" fn block_backmerge_pr(context: *const MergeArguments) -> i32 {
    // SAFETY: as above.
    unsafe { merged::<Probe>((*context).bio) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/block_frontmerge")]
extern "C" fn block_frontmerge(context: *const MergeArguments) -> i32 {
    // SAFETY: as above.
    unsafe { merged::<Direct>((*context).bio) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/block_frontmerge_pr")]
extern "C" fn block_frontmerge_pr(context: *const MergeArguments) -> i32 {
    // SAFETY: as above.
    unsafe { merged::<Probe>((*context).bio) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/block_backmerge_old")]
extern "C" fn block_backmerge_old(context: *const OldMergeArguments) -> i32 {
    // SAFETY: as above.
    unsafe { merged::<Probe>((*context).bio) }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/block_frontmerge_old")]
extern "C" fn block_frontmerge_old(context: *const OldMergeArguments) -> i32 {
    // SAFETY: as above.
    unsafe { merged::<Probe>((*context).bio) }
}

/// `BPF_XADD`: requests finish on all CPUs at once. `core` offers no atomic addition for
/// this target, because the first BPF instruction set had none that returns a value.
#[inline(always)]
unsafe fn atomic_add(counter: *mut u64, delta: u64) {
    // SAFETY: the caller gives a pointer into a map value.
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {delta}",
            counter = in(reg) counter, delta = in(reg) delta, options(nostack));
    }
}

/// Column group of diskstats for an operation.
#[inline(always)]
fn column(op: u32) -> u32 {
    let op = op & REQ_OP_MASK;
    if op == REQ_OP_DISCARD || op == REQ_OP_SECURE_ERASE { 2 } else { op & 1 }
}

/// Id of the cgroup a bio is charged to, 0 when it is charged to none.
#[inline(always)]
unsafe fn charged_to<M: Memory>(bio: Address) -> u64 {
    // SAFETY: the caller checked `bio`; the others are null-checked here.
    unsafe {
        let blkg = M::pointer_at(bio, layout!(bio_blkg));
        if blkg.is_null() {
            return 0;
        }
        let blkcg = M::pointer_at(blkg, layout!(blkg_blkcg));
        if blkcg.is_null() {
            return 0;
        }
        let cgroup = M::pointer_at(blkcg, layout!(blkcg_css) + layout!(css_cgroup));
        if cgroup.is_null() { 0 } else { cgroup_id::<M>(cgroup) }
    }
}

/// Whose row it is, but for the operation.
#[inline(always)]
unsafe fn key_of<M: Memory>(bio: Address, disk: Address) -> BlockKey {
    // SAFETY: the caller checked both pointers.
    unsafe {
        BlockKey {
            cgroup: charged_to::<M>(bio),
            major: M::u32_at(disk, layout!(disk_major)),
            minor: M::u32_at(disk, layout!(disk_first_minor)),
            op: 0,
            pad: 0,
        }
    }
}

/// The row, which is made when there is none.
#[inline(always)]
fn row(key: BlockKey) -> Option<*mut BlockCounters> {
    let mut entry = BLOCK.get_ptr_mut(key);
    if entry.is_none() {
        // Another CPU may have been faster; then the insert fails and the entry is there.
        let _ = BLOCK.insert(key, &NOTHING, u64::from(BPF_NOEXIST));
        entry = BLOCK.get_ptr_mut(key);
    }
    if entry.is_none() {
        lose(LossCounter::Block);
    }
    entry
}

/// Which way a request goes.
#[derive(Clone, Copy, PartialEq)]
enum Move {
    /// To the driver.
    Started,
    /// Back from it.
    Finished,
}

/// Counts a request as under way, or no more so.
#[inline(always)]
unsafe fn moved<M: Memory>(request: Address, direction: Move) -> i32 {
    // SAFETY: each pointer is null-checked before it is followed.
    unsafe {
        if request.is_null() {
            return 0;
        }
        let bio = M::pointer_at(request, layout!(request_bio));
        let disk = disk_of::<M>(request);
        if !bio.is_null() && !disk.is_null() {
            let made = M::u64_at(request, layout!(request_start_time));
            queue(key_of::<M>(bio, disk), made, direction, bpf_ktime_get_ns());
        }
    }
    0
}

/// Notes in a device's queue that a request, made at `made`, moves at `now`.
#[inline(always)]
unsafe fn queue(key: BlockKey, made: u64, direction: Move, now: u64) {
    let Some(since) = BLOCK_SINCE.get(0) else { return };
    if *since == 0 || made < *since {
        return;
    }
    let Some(entry) = row(BlockKey { op: BLOCK_QUEUE, ..key }) else { return };
    let queue = entry.cast::<BlockQueue>();
    // SAFETY: the pointer is into a map value; what other CPUs add to is added to atomically.
    unsafe {
        let started = (&raw const (*queue).started).read_volatile();
        let finished = (&raw const (*queue).finished).read_volatile();
        let changed = (&raw const (*queue).changed).read_volatile();
        if started > finished && changed < now {
            atomic_add(&raw mut (*queue).busy_nsec, now - changed);
        }
        (&raw mut (*queue).changed).write_volatile(now);
        if direction == Move::Started {
            atomic_add(&raw mut (*queue).started, 1);
        } else {
            atomic_add(&raw mut (*queue).finished, 1);
        }
    }
}

/// The disk a request goes to, null when it is not known.
#[inline(always)]
unsafe fn disk_of<M: Memory>(request: Address) -> Address {
    // SAFETY: the caller checked `request`; the queue is null-checked here.
    unsafe {
        if known!(queue_disk) {
            let queue = M::pointer_at(request, layout!(request_queue));
            if queue.is_null() { queue } else { M::pointer_at(queue, layout!(queue_disk)) }
        } else if known!(request_disk) {
            M::pointer_at(request, layout!(request_disk))
        } else {
            core::ptr::null()
        }
    }
}

/// Adds to the counters of one cgroup, device and operation.
#[inline(always)]
unsafe fn add(key: BlockKey, delta: BlockCounters) {
    // SAFETY: the pointer is into a map value; the counters are updated atomically.
    unsafe {
        let Some(counters) = row(key) else { return };
        atomic_add(&raw mut (*counters).requests, delta.requests);
        atomic_add(&raw mut (*counters).merges, delta.merges);
        atomic_add(&raw mut (*counters).nsec, delta.nsec);
        atomic_add(&raw mut (*counters).bytes, delta.bytes);
    }
}

#[inline(always)]
unsafe fn completed<M: Memory>(request: Address, bytes: u32) -> i32 {
    // SAFETY: each pointer is null-checked before it is followed.
    unsafe {
        // A request done in parts is counted with its last part.
        if request.is_null() {
            return 0;
        }
        let done = bytes >= M::u32_at(request, layout!(request_data_len));
        let now = bpf_ktime_get_ns();
        let mut nsec = 0;
        let start = M::u64_at(request, layout!(request_start_time));
        if done && start != 0 {
            nsec = now.saturating_sub(start);
        }
        let bio = M::pointer_at(request, layout!(request_bio));
        let disk = disk_of::<M>(request);
        if bio.is_null() || disk.is_null() {
            return 0;
        }
        let key = key_of::<M>(bio, disk);
        if done {
            queue(key, start, Move::Finished, now);
        }
        add(
            BlockKey { op: column(M::u32_at(request, layout!(request_cmd_flags))), ..key },
            BlockCounters { requests: done as u64, merges: 0, nsec, bytes: u64::from(bytes) },
        );
    }
    0
}

#[inline(always)]
unsafe fn merged<M: Memory>(bio: Address) -> i32 {
    // SAFETY: each pointer is null-checked before it is followed.
    unsafe {
        if bio.is_null() {
            return 0;
        }
        let mut disk = core::ptr::null();
        if known!(bio_bdev, bdev_disk) {
            let device = M::pointer_at(bio, layout!(bio_bdev));
            if !device.is_null() {
                disk = M::pointer_at(device, layout!(bdev_disk));
            }
        } else if known!(bio_disk) {
            disk = M::pointer_at(bio, layout!(bio_disk));
        }
        if disk.is_null() {
            return 0;
        }
        add(
            BlockKey {
                op: column(M::u32_at(bio, layout!(bio_opf))),
                ..key_of::<M>(bio, disk)
            },
            BlockCounters { requests: 0, merges: 1, nsec: 0, bytes: 0 },
        );
    }
    0
}
