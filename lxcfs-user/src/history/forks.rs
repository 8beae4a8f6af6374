//! How many tasks a container has forked, from the last PID its namespace gave out.
//!
//! A PID namespace hands out numbers in turn, one per fork (threads count, as they do in the
//! kernel's `total_forks`), so the cursor of its allocator counts forks by itself and nothing
//! has to be attached to fork. At `pid_max` it starts again at 300 (`RESERVED_PIDS`).

use super::{seal, sealed};

const MAGIC: u32 = u32::from_le_bytes(*b"LXfk");
const VERSION: u32 = 1;
/// Where the kernel's allocator starts again.
const RESERVED_PIDS: u32 = 300;

/// Forks of one container, never going back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forks {
    total: u64,
    last: u32,
}

impl Forks {
    /// Accounts the last PID given out. Whatever lies between the last look and a wrap is not
    /// known, and left out.
    pub fn advance(&mut self, last_pid: u32) -> u64 {
        let given_out = if last_pid >= self.last {
            last_pid - self.last
        } else {
            // The number after a wrap is 300; below it, another namespace is looked at.
            last_pid.saturating_add(1).saturating_sub(RESERVED_PIDS)
        };
        self.total = self.total.saturating_add(u64::from(given_out));
        self.last = last_pid;
        self.total
    }

    /// Forks accounted so far.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// The last PID accounted, if there was one.
    #[must_use]
    pub const fn last(&self) -> Option<u32> {
        match self.last {
            0 => None,
            last => Some(last),
        }
    }

    /// The state as bytes; see the module above.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32);
        for field in [MAGIC, VERSION, self.last, 0] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&self.total.to_le_bytes());
        seal(bytes)
    }

    /// What [`to_bytes`](Self::to_bytes) wrote; anything else gives a fresh state.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::decode(bytes).unwrap_or_default()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = sealed(bytes)?;
        if (fields.u32()?, fields.u32()?) != (MAGIC, VERSION) {
            return None;
        }
        let (last, _padding) = (fields.u32()?, fields.u32()?);
        let total = fields.u64()?;
        Some(Self { total, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_number_given_out_is_a_fork() {
        let mut forks = Forks::default();
        assert_eq!(forks.advance(1), 1);
        assert_eq!(forks.advance(1), 1);
        assert_eq!(forks.advance(32_000), 32_000);
        // 301 was given out after a wrap: 300 and 301.
        assert_eq!(forks.advance(301), 32_002);
        assert_eq!(forks.advance(302), 32_003);
    }

    proptest! {
        #[test]
        fn forks_never_go_back_and_survive_as_bytes(
            pids in prop::collection::vec(0_u32..5_000_000, 0..50),
            junk in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut forks = Forks::default();
            let mut before = 0;
            for pid in pids {
                let now = forks.advance(pid);
                prop_assert!(now >= before);
                before = now;
            }
            prop_assert_eq!(Forks::from_bytes(&forks.to_bytes()), forks);
            prop_assert_eq!(Forks::from_bytes(&junk), Forks::default());
        }

        #[test]
        fn no_input_overflows(pids in prop::collection::vec(any::<u32>(), 0..20)) {
            let mut forks = Forks::default();
            for pid in pids {
                forks.advance(pid);
            }
        }
    }
}
