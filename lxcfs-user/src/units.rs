//! Quantities with their unit in the type, so that a kB never meets a byte.
//!
//! All arithmetic saturates: kernel counters are read one after the other, so any
//! difference of two of them may come out "negative" for a moment, and a container can
//! provoke it. A wrapped 1.8e19 kB is the bug this module exists to make unwritable.

use std::fmt;

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// Nothing.
            pub const ZERO: Self = Self(0);

            /// `self - other`, or zero where that would be negative.
            #[must_use]
            pub const fn less(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }

            /// `self + other`, or the maximum where that would overflow.
            #[must_use]
            pub const fn plus(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl std::iter::Sum for $name {
            fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
                iter.fold(Self::ZERO, Self::plus)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

quantity!(
    /// Bytes, the unit of cgroup memory files.
    Bytes
);
quantity!(
    /// 1024 bytes, what `/proc/meminfo` prints as "kB".
    Kib
);
quantity!(
    /// Nanoseconds, the unit of `cpuacct.usage` and of eBPF times.
    Nsec
);
quantity!(
    /// Microseconds, the unit of `cpu.stat` and `cpu.max`.
    Usec
);
quantity!(
    /// Clock ticks of `USER_HZ`, the unit of `/proc/stat`.
    Ticks
);

impl Bytes {
    /// Whole KiB, rounded down as the kernel's page counts are.
    #[must_use]
    pub const fn to_kib(self) -> Kib {
        Kib(self.0 / 1024)
    }
}

impl Kib {
    /// The same amount in bytes.
    #[must_use]
    pub const fn to_bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(1024))
    }
}

impl Usec {
    /// The same time in nanoseconds.
    #[must_use]
    pub const fn to_nsec(self) -> Nsec {
        Nsec(self.0.saturating_mul(1000))
    }
}

impl Nsec {
    /// Whole clock ticks at `user_hz` ticks per second.
    #[must_use]
    pub const fn to_ticks(self, user_hz: u64) -> Ticks {
        // Widened: nanoseconds of a year times 100 leave 64 bits.
        Ticks((self.0 as u128 * user_hz as u128 / 1_000_000_000) as u64)
    }
}

/// A limit as the kernel knows it: absent (`max`) or a number. Zero is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit<T> {
    /// No limit: v2 `max`, v1's page-rounded `LONG_MAX`, a quota of -1.
    Max,
    /// This much.
    Value(T),
}

impl<T: Copy + Ord> Limit<T> {
    /// The value, if there is a limit.
    #[must_use]
    pub const fn value(self) -> Option<T> {
        match self {
            Self::Max => None,
            Self::Value(value) => Some(value),
        }
    }

    /// The tighter of the limit and what the machine has.
    #[must_use]
    pub fn cap(self, machine: T) -> T {
        self.value().map_or(machine, |value| value.min(machine))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_saturate_instead_of_wrapping() {
        assert_eq!(Bytes(1).less(Bytes(2)), Bytes::ZERO);
        assert_eq!(Kib(u64::MAX).plus(Kib(1)), Kib(u64::MAX));
    }

    #[test]
    fn ticks_of_a_century_do_not_overflow() {
        let century = Nsec(100 * 365 * 86_400 * 1_000_000_000);
        assert_eq!(century.to_ticks(100), Ticks(100 * 365 * 86_400 * 100));
    }

    #[test]
    fn a_limit_of_zero_is_a_limit() {
        assert_eq!(Limit::Value(Bytes(0)).cap(Bytes(5)), Bytes(0));
        assert_eq!(Limit::Max.cap(Bytes(5)), Bytes(5));
    }
}
