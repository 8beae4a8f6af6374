//! The machine: its `/proc` and `/sys` as the daemon reads them, its unchanging facts, and
//! what one task's files say.
//!
//! [`task`] is pure; [`reader`] and [`position`] do I/O; [`memory`] is about our own heap.

pub mod memory;
pub mod position;
pub mod reader;
pub mod task;
