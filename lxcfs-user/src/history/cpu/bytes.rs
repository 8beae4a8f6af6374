//! The byte form of a [`CpuHistory`].

use super::{CpuHistory, Line, Times, Totals};
use crate::cpuset::CPU_LIMIT;
use crate::history::{Fields, seal, sealed};
use crate::snapshot::PerCpuTime;
use crate::units::Nsec;

pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"LXcp");
pub(super) const VERSION: u32 = 1;

impl CpuHistory {
    /// The state as bytes: a header of eight words, a record of five words per line, one
    /// of four per physical CPU, a checksum; all little-endian.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let last = self.last.unwrap_or_default();
        let size = 88 + 40 * self.lines.len() + 32 * self.raw.len();
        let mut bytes = Vec::with_capacity(size);
        let counts = [
            MAGIC,
            VERSION,
            self.lines.len() as u32,
            self.raw.len() as u32,
        ];
        for field in counts {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        let mut put = |fields: &[u64]| {
            for field in fields {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
        };
        put(&[
            u64::from(self.last.is_some()),
            last.now.0,
            last.usage.0,
            last.user.0,
            last.system.0,
            self.carry.user,
            self.carry.nice,
            self.carry.system,
        ]);
        for Line { cpu, shown, times } in &self.lines {
            let cpu = u64::from(*cpu) | u64::from(*shown) << 32;
            put(&[cpu, times.user, times.nice, times.system, times.idle]);
        }
        for raw in &self.raw {
            put(&[u64::from(raw.cpu), raw.user.0, raw.system.0, raw.nice.0]);
        }
        seal(bytes)
    }

    /// What [`to_bytes`](Self::to_bytes) wrote; anything else gives a fresh state.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        sealed(bytes).and_then(Self::decode).unwrap_or_default()
    }

    fn decode(mut fields: Fields<'_>) -> Option<Self> {
        if (fields.u32()?, fields.u32()?) != (MAGIC, VERSION) {
            return None;
        }
        let (lines, raw) = (fields.u32()?, fields.u32()?);
        if lines > CPU_LIMIT || raw > CPU_LIMIT {
            return None;
        }
        let seen = fields.u64()? == 1;
        let last = Totals {
            now: Nsec(fields.u64()?),
            usage: Nsec(fields.u64()?),
            user: Nsec(fields.u64()?),
            system: Nsec(fields.u64()?),
        };
        let carry = Times {
            user: fields.u64()?,
            nice: fields.u64()?,
            system: fields.u64()?,
            idle: 0,
        };
        let mut state = Self {
            last: seen.then_some(last),
            carry,
            ..Self::default()
        };
        for _ in 0..lines {
            let cpu = fields.u64()?;
            state.lines.push(Line {
                cpu: cpu as u32,
                shown: cpu >> 32 == 1,
                times: Times {
                    user: fields.u64()?,
                    nice: fields.u64()?,
                    system: fields.u64()?,
                    idle: fields.u64()?,
                },
            });
        }
        for _ in 0..raw {
            state.raw.push(PerCpuTime {
                cpu: u32::try_from(fields.u64()?).ok()?,
                user: Nsec(fields.u64()?),
                system: Nsec(fields.u64()?),
                nice: Nsec(fields.u64()?),
            });
        }
        let ascending = state.lines.is_sorted_by(|a, b| a.cpu < b.cpu)
            && state.raw.is_sorted_by(|a, b| a.cpu < b.cpu)
            && state.lines.last().is_none_or(|line| line.cpu < CPU_LIMIT);
        (ascending && fields.0.is_empty()).then_some(state)
    }
}
