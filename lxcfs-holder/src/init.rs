//! The one INIT of a connection. What is agreed here binds every later version of the program
//! for as long as the connection lives.

use std::os::fd::AsFd;

use crate::layout::{REQUEST_HEADER_BYTES, RequestHeader};
use crate::mount::{MountError, system};

const INIT: u32 = 26;
/// The protocol the workers' FUSE library speaks.
const PROTOCOL: (u32, u32) = (7, 40);
/// Largest write; keeps requests inside a slot. Fixed for the life of a connection.
const MAX_WRITE: u32 = 4096;
/// Largest read in pages (1 MiB): `/proc/cpuinfo` of a big machine in one request.
const MAX_PAGES: u16 = 256;
/// Bounds RELEASE and readahead only; reads do not count.
const MAX_BACKGROUND: u16 = 64;

const ASYNC_READ: u64 = 1 << 0;
const ATOMIC_O_TRUNC: u64 = 1 << 3;
const BIG_WRITES: u64 = 1 << 5;
const PARALLEL_DIROPS: u64 = 1 << 18;
const MAX_PAGES_FLAG: u64 = 1 << 22;
const INIT_EXT: u64 = 1 << 30;
const ALLOW_IDMAP: u64 = 1 << 40;
/// What this file system wants. Every successor must live with it, so it never changes for a
/// live connection.
const WANTED: u64 = ASYNC_READ
    | ATOMIC_O_TRUNC
    | BIG_WRITES
    | PARALLEL_DIROPS
    | MAX_PAGES_FLAG
    | INIT_EXT
    | ALLOW_IDMAP;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct InitOut {
    len: u32,
    error: i32,
    unique: u64,
    major: u32,
    minor: u32,
    max_readahead: u32,
    flags: u32,
    max_background: u16,
    congestion_threshold: u16,
    max_write: u32,
    time_gran: u32,
    max_pages: u16,
    map_alignment: u16,
    flags2: u32,
    max_stack_depth: u32,
    reserved: [u32; 6],
}

const _: () = assert!(size_of::<InitOut>() == 16 + 64);

/// Builds the answer to INIT and returns it with the kernel's minor version.
fn init_reply(request: &[u8]) -> Result<(InitOut, u32), MountError> {
    let short = || MountError::Handshake("the first request is too short".to_owned());
    let header: RequestHeader =
        bytemuck::pod_read_unaligned(request.get(..REQUEST_HEADER_BYTES).ok_or_else(short)?);
    if header.opcode != INIT {
        return Err(MountError::Handshake(format!(
            "the first request is operation {}, not INIT",
            header.opcode
        )));
    }
    let word = |index: usize| {
        let at = REQUEST_HEADER_BYTES + 4 * index;
        request
            .get(at..at + 4)
            .map(bytemuck::pod_read_unaligned::<u32>)
    };
    let major = word(0).ok_or_else(short)?;
    let minor = word(1).ok_or_else(short)?;
    // 7.28 (Linux 4.20) brought MAX_PAGES, the newest thing that is not optional here.
    if major != PROTOCOL.0 || minor < 28 {
        return Err(MountError::Handshake(format!(
            "the kernel speaks FUSE {major}.{minor}; 7.28 or later is needed (Linux 4.20)"
        )));
    }
    let low = u64::from(word(3).ok_or_else(short)?);
    let high = if low & INIT_EXT != 0 {
        u64::from(word(4).unwrap_or(0))
    } else {
        0
    };
    let flags = WANTED & (low | high << 32);
    let reply = InitOut {
        len: size_of::<InitOut>() as u32,
        error: 0,
        unique: header.unique,
        major: PROTOCOL.0,
        minor: PROTOCOL.1,
        max_readahead: word(2).unwrap_or(0),
        flags: flags as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND * 3 / 4,
        max_write: MAX_WRITE,
        time_gran: 1,
        max_pages: MAX_PAGES,
        map_alignment: 0,
        flags2: (flags >> 32) as u32,
        max_stack_depth: 0,
        reserved: [0; 6],
    };
    Ok((reply, minor))
}

/// Reads INIT from a freshly mounted device and answers it; returns the kernel's minor version.
pub(crate) fn answer_init(fuse: &impl AsFd) -> Result<u32, MountError> {
    let mut buffer = vec![0; 16 * 1024];
    let length = loop {
        match nix::unistd::read(fuse, &mut buffer) {
            Ok(length) => break length,
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => {}
            Err(error) => return Err(system("read INIT")(error.into())),
        }
    };
    let (reply, minor) = init_reply(&buffer[..length])?;
    nix::unistd::write(fuse, bytemuck::bytes_of(&reply))
        .map_err(|e| system("answer INIT")(e.into()))?;
    Ok(minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init_request(minor: u32, flags: u32, flags2: u32) -> Vec<u8> {
        let header = RequestHeader {
            len: 104,
            opcode: INIT,
            unique: 2,
            nodeid: 0,
            uid: 0,
            gid: 0,
            pid: 0,
            padding: 0,
        };
        let mut bytes = bytemuck::bytes_of(&header).to_vec();
        for word in [7, minor, 131_072, flags, flags2] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.resize(104, 0);
        bytes
    }

    #[test]
    fn init_asks_only_for_what_the_kernel_offers() {
        let (reply, minor) = init_reply(&init_request(32, ASYNC_READ as u32, u32::MAX)).unwrap();
        assert_eq!(
            (reply.flags, reply.flags2, minor),
            (ASYNC_READ as u32, 0, 32)
        );
        assert_eq!(reply.max_write, MAX_WRITE);
        let (reply, _) = init_reply(&init_request(41, u32::MAX, u32::MAX)).unwrap();
        assert_eq!(u64::from(reply.flags2) << 32, ALLOW_IDMAP);
        assert!(init_reply(&init_request(27, 0, 0)).is_err());
        assert!(init_reply(&[0; 16]).is_err());
    }
}
