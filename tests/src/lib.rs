//! Guards and helpers shared by the tests on the real kernel.

pub mod subject;
