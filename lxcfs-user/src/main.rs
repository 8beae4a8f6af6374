//! `lxcfs`: the container's own /proc and /sys values over FUSE.

fn main() -> std::process::ExitCode {
    lxcfs_user::cli::main(std::env::args_os().collect())
}
