//! CPU time by state, and its exact division.

/// Time in the states a container's line has, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// User mode, not niced.
    pub user: u64,
    /// User mode, niced.
    pub nice: u64,
    /// Kernel mode.
    pub system: u64,
    /// None of these.
    pub idle: u64,
}

impl Times {
    /// All four together: the time that passed.
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.used().saturating_add(self.idle)
    }

    pub(super) const fn used(&self) -> u64 {
        self.user
            .saturating_add(self.nice)
            .saturating_add(self.system)
    }

    pub(super) fn add(&mut self, other: Self) {
        self.user = self.user.saturating_add(other.user);
        self.nice = self.nice.saturating_add(other.nice);
        self.system = self.system.saturating_add(other.system);
        self.idle = self.idle.saturating_add(other.idle);
    }

    pub(super) fn subtract(&mut self, other: Self) {
        self.user = self.user.saturating_sub(other.user);
        self.nice = self.nice.saturating_sub(other.nice);
        self.system = self.system.saturating_sub(other.system);
    }

    /// The part of `amount` nanoseconds (at most all used time), of each kind in
    /// proportion.
    pub(super) fn part(&self, amount: u64) -> Self {
        let used = self.used();
        let amount = amount.min(used);
        let mut user = scaled(self.user, amount, used);
        let mut nice = scaled(self.nice, amount, used);
        let system = self
            .system
            .min(amount.saturating_sub(user).saturating_sub(nice));
        // Rounding down left at most two nanoseconds; the kinds that have them give.
        let mut left = amount
            .saturating_sub(user)
            .saturating_sub(nice)
            .saturating_sub(system);
        let more = left.min(self.user.saturating_sub(user));
        user = user.saturating_add(more);
        left = left.saturating_sub(more);
        nice = nice.saturating_add(left.min(self.nice.saturating_sub(nice)));
        Self {
            user,
            nice,
            system,
            idle: 0,
        }
    }

    /// Each kind times `numerator / denominator`.
    pub(super) fn part_scaled(&self, numerator: u64, denominator: u64) -> Self {
        Self {
            user: scaled(self.user, numerator, denominator),
            nice: scaled(self.nice, numerator, denominator),
            system: scaled(self.system, numerator, denominator),
            idle: 0,
        }
    }
}

/// `value * numerator / denominator`, widened; zero for a zero denominator.
pub(super) fn scaled(value: u64, numerator: u64, denominator: u64) -> u64 {
    let product = u128::from(value) * u128::from(numerator);
    product
        .checked_div(u128::from(denominator))
        .map_or(0, |quotient| u64::try_from(quotient).unwrap_or(u64::MAX))
}
