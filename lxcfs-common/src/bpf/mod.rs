//! What crosses between the eBPF programs and userspace: the kernel's field offsets going
//! in, counters and records coming out.
//!
//! Every type is `repr(C)` without implicit padding, because the programs write it field by
//! field and userspace reads it as bytes; the sizes are asserted where the type is defined.

mod layout;
mod records;

pub use layout::{ABSENT, KernelLayout};
pub use records::{
    BLOCK_QUEUE, BlockCounters, BlockKey, BlockQueue, CarriedKey, CgroupNode, ContainerRecord,
    CpuTimes, Event, EventKind, KFUNC_PLACEHOLDER, LossCounter, MAX_CGROUP_DEPTH, TaskSet,
    WALK_COUNTED, WALK_FROM, WALK_INTRODUCED, WALK_LEFT, WALK_LIMIT, WALK_NEXT, WALK_NUMBER,
    WALK_WORDS, is_further_out,
};
