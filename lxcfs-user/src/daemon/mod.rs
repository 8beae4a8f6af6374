//! Wiring: what `lxcfs MOUNTPOINT` and its worker are made of, and nothing else.

pub mod pidfile;
