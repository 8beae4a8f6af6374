//! What a view must remember between reads: pure state machines, time passed in.
//!
//! All have a versioned byte form, because they are kept in a memfd that outlives the
//! process. Bytes that are not exactly what `to_bytes` wrote give a fresh state: a crashed
//! writer must cost some history, never a panic or a counter that jumps.

pub mod cpu;
pub mod forks;
pub mod loadavg;
pub mod loads;

/// Sums bytes so that a torn write is noticed: FNV-1a over words of eight bytes, because
/// the state of a thousand containers is summed every few seconds.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x0100_0000_01b3);
    let (words, rest) = bytes.as_chunks::<8>();
    let sum = words.iter().fold(BASIS, |sum, word| {
        mix(sum, u64::from_le_bytes(*word)).rotate_left(23)
    });
    let sum = rest
        .iter()
        .fold(sum, |sum, byte| mix(sum, u64::from(*byte)));
    mix(sum, bytes.len() as u64)
}

/// Takes little-endian fields off the front of a slice; `None` at its end.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*field))
    }

    fn u64(&mut self) -> Option<u64> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*field))
    }
}

/// Checks and removes the checksum at the end.
fn sealed(bytes: &[u8]) -> Option<Fields<'_>> {
    let (content, sum) = bytes.split_last_chunk()?;
    (u64::from_le_bytes(*sum) == checksum(content)).then_some(Fields(content))
}

/// Adds the checksum at the end.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = checksum(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}
