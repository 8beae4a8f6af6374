//! Owns the frames that carry several connections over one NRI socket: 4 bytes connection
//! number, 4 bytes length, both big endian, then the payload. Pure over `Read` and `Write`.

use std::io::{self, Read, Write};

use super::NriError;

/// Connection on which the runtime calls the plugin.
pub const PLUGIN_CONN: u32 = 1;
/// Connection on which the plugin calls the runtime.
pub const RUNTIME_CONN: u32 = 2;

/// Largest payload that is accepted: one ttrpc message with its header.
pub const MAX_PAYLOAD: usize = super::ttrpc::HEADER + super::ttrpc::MAX_MESSAGE;

/// The peer reads each frame into a buffer of this size at times and gives up on a larger
/// one, so messages are sent in frames of at most this many bytes.
const WRITE_CHUNK: usize = 4096;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Connection number.
    pub conn: u32,
    /// Bytes of that connection.
    pub payload: Vec<u8>,
}

/// Reads one frame; `None` when the peer has closed the socket between frames.
///
/// # Errors
/// The socket fails, ends inside a frame, or announces more than [`MAX_PAYLOAD`].
pub fn read_frame(from: &mut impl Read) -> Result<Option<Frame>, NriError> {
    let mut header = [0u8; 8];
    let mut filled = 0;
    while filled < header.len() {
        match from.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(NriError::Protocol("socket closed inside a frame header")),
            Ok(count) => filled += count,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(NriError::Socket(err)),
        }
    }
    let [a, b, c, d, e, f, g, h] = header;
    let length = u32::from_be_bytes([e, f, g, h]) as usize;
    if length > MAX_PAYLOAD {
        return Err(NriError::Protocol("frame longer than any message may be"));
    }
    // Grows as bytes arrive: an announced length alone costs no memory.
    let mut payload = Vec::new();
    from.take(length as u64)
        .read_to_end(&mut payload)
        .map_err(NriError::Socket)?;
    if payload.len() < length {
        return Err(NriError::Protocol("socket closed inside a frame"));
    }
    Ok(Some(Frame {
        conn: u32::from_be_bytes([a, b, c, d]),
        payload,
    }))
}

/// Sends `message` on `conn`.
///
/// # Errors
/// The socket fails.
pub fn write_message(to: &mut impl Write, conn: u32, message: &[u8]) -> io::Result<()> {
    for chunk in message.chunks(WRITE_CHUNK) {
        let mut frame = Vec::with_capacity(8 + chunk.len());
        frame.extend_from_slice(&conn.to_be_bytes());
        frame.extend_from_slice(&(chunk.len() as u32).to_be_bytes());
        frame.extend_from_slice(chunk);
        to.write_all(&frame)?;
    }
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_message_goes_out_in_frames_the_peer_can_take() {
        let message: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        let mut wire = Vec::new();
        write_message(&mut wire, 2, &message).unwrap();
        let mut from = wire.as_slice();
        let mut joined = Vec::new();
        while let Some(frame) = read_frame(&mut from).unwrap() {
            assert_eq!(frame.conn, 2);
            assert!(frame.payload.len() <= 4096);
            joined.extend(frame.payload);
        }
        assert_eq!(joined, message);
    }

    #[test]
    fn a_frame_that_announces_gigabytes_is_refused_at_once() {
        let wire = [0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 1, 2, 3];
        assert!(matches!(
            read_frame(&mut wire.as_slice()),
            Err(NriError::Protocol(_))
        ));
    }

    #[test]
    fn a_socket_that_ends_inside_a_frame_is_an_error() {
        for cut in [&[0, 0, 0][..], &[0, 0, 0, 1, 0, 0, 0, 5, 9][..]] {
            assert!(matches!(
                read_frame(&mut { cut }),
                Err(NriError::Protocol(_))
            ));
        }
        assert!(read_frame(&mut [].as_slice()).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut from = bytes.as_slice();
            while let Ok(Some(_)) = read_frame(&mut from) {}
        }
    }
}
