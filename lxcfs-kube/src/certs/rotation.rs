//! When to renew what. Pure: facts and a clock in, one step out.
//!
//! The order makes a rotation invisible: a new authority is published next to the old one
//! first, signs only after everybody had time to trust it, and the old one stays trusted
//! until it ends. A serving certificate is renewed when two thirds of its life are over.

use std::time::Duration;

use time::OffsetDateTime;

/// Validity of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub from: OffsetDateTime,
    /// Last moment.
    pub until: OffsetDateTime,
}

impl Validity {
    fn left(self, now: OffsetDateTime) -> time::Duration {
        self.until - now
    }
}

/// How long things live.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Of a serving certificate.
    pub serving: Duration,
    /// Of an authority.
    pub authority: Duration,
    /// How long a new authority is only trusted, before it signs.
    pub overlap: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self {
            serving: 30 * DAY,
            authority: 365 * DAY,
            overlap: Duration::from_secs(600),
        }
    }
}

/// What is in the Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The authority that signs.
    pub authority: Validity,
    /// The authority that will sign.
    pub next: Option<Validity>,
    /// An authority that signed before.
    pub previous: Option<Validity>,
    /// The serving certificate.
    pub serving: Validity,
    /// Whether it names the service and was signed by the authority.
    pub serving_fits: bool,
}

/// One step; after it the facts are looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing usable is there: make an authority and a serving certificate.
    Create,
    /// Add the authority that will sign.
    Introduce,
    /// Let it sign: the old one becomes the previous one, serving is renewed.
    Promote,
    /// Forget the previous authority.
    Forget,
    /// A new serving certificate.
    Renew,
    /// Nothing.
    Keep,
}

/// Decides; `None` means that nothing readable is stored.
pub fn next_step(facts: Option<Facts>, now: OffsetDateTime, lifetimes: &Lifetimes) -> Step {
    let Some(facts) = facts else {
        return Step::Create;
    };
    if facts.authority.left(now).is_negative() {
        return Step::Create;
    }
    if let Some(next) = facts.next {
        // `from` is a little in the past against clock differences; see authority.
        if now - next.from >= lifetimes.overlap + super::authority::BACKDATED {
            return Step::Promote;
        }
    } else if facts.authority.left(now) < lifetimes.serving * 2 {
        return Step::Introduce;
    }
    if !facts.serving_fits || facts.serving.left(now) < lifetimes.serving / 3 {
        return Step::Renew;
    }
    if facts
        .previous
        .is_some_and(|old| old.left(now).is_negative())
    {
        return Step::Forget;
    }
    Step::Keep
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const START: OffsetDateTime = datetime!(2026-01-01 0:00 UTC);
    const DAY: time::Duration = time::Duration::DAY;

    fn life(from: OffsetDateTime, days: i64) -> Validity {
        Validity {
            from,
            until: from + DAY * i32::try_from(days).unwrap(),
        }
    }

    fn fresh() -> Facts {
        Facts {
            authority: life(START, 365),
            next: None,
            previous: None,
            serving: life(START, 30),
            serving_fits: true,
        }
    }

    fn step(facts: Facts, day: i32) -> Step {
        next_step(Some(facts), START + DAY * day, &Lifetimes::default())
    }

    #[test]
    fn nothing_stored_or_an_ended_authority_starts_over() {
        assert_eq!(next_step(None, START, &Lifetimes::default()), Step::Create);
        assert_eq!(step(fresh(), 366), Step::Create);
    }

    #[test]
    fn a_serving_certificate_is_renewed_with_a_third_of_its_life_left() {
        assert_eq!(step(fresh(), 19), Step::Keep);
        assert_eq!(step(fresh(), 21), Step::Renew);
        assert_eq!(
            step(
                Facts {
                    serving_fits: false,
                    ..fresh()
                },
                1
            ),
            Step::Renew
        );
    }

    #[test]
    fn a_new_authority_is_trusted_before_it_signs() {
        let old = Facts {
            serving: life(START + DAY * 300, 30),
            ..fresh()
        };
        assert_eq!(step(old, 304), Step::Keep);
        assert_eq!(step(old, 306), Step::Introduce);
        let introduced = Facts {
            next: Some(life(START + DAY * 306, 365)),
            ..old
        };
        assert_eq!(step(introduced, 306), Step::Keep);
        assert_eq!(step(introduced, 307), Step::Promote);
    }

    #[test]
    fn an_authority_that_signed_before_is_trusted_until_it_ends() {
        let promoted = Facts {
            previous: Some(life(START - DAY * 300, 365)),
            ..fresh()
        };
        assert_eq!(step(promoted, 10), Step::Keep);
        let renewed = Facts {
            serving: life(START + DAY * 60, 30),
            ..promoted
        };
        assert_eq!(step(renewed, 66), Step::Forget);
    }
}
