//! `lxcfs`: the container's own /proc and /sys values over FUSE.

// A worker's request buffers lie in memory that outlives it; see `fuse`.
lxcfs_user::install_slot_allocator!();

fn main() -> std::process::ExitCode {
    // The holder shares nothing with the rest: it must not even parse a command line.
    if let Some(code) = lxcfs_holder::entry() {
        return code;
    }
    lxcfs_user::cli::main(std::env::args_os().collect())
}
