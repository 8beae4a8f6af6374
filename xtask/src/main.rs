//! Project automation: run, test, bench, vm, build-ebpf.

fn main() {}
