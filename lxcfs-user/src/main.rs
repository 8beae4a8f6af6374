//! `lxcfs`: the container's own /proc and /sys values over FUSE.

fn main() {}
