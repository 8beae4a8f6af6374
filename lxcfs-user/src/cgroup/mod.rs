//! Cgroup files: their formats, where they are, and what they mean in the terms of
//! [`snapshot`](crate::snapshot).
//!
//! [`parse`], [`layout`], [`ancestors`] and the mapping halves of [`v1`] and [`v2`] are
//! pure; [`reader`] alone does I/O. The difference between v1 and v2 ends here.

pub mod ancestors;
pub mod layout;
pub mod parse;
pub mod reader;
pub mod source;
pub mod v1;
pub mod v2;
