//! Which connections may be moved.

use std::time::Duration;

use backplane::ClientId;
use placement::max_age::age_limit;

/// Which connections may be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MoveRule {
    /// None that is younger.
    pub min_age: Duration,
    /// Only those whose subscriptions can all recover.
    pub recoverable_only: bool,
    /// Only those that have reached their own limit between `min_age` and this.
    pub max_age: Option<Duration>,
}

/// A connection, as far as the rule looks at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Its client.
    pub client: ClientId,
    /// Time since it was accepted.
    pub age: Duration,
    /// All its subscriptions can recover.
    pub recoverable: bool,
}

impl MoveRule {
    /// Whether a connection may be moved.
    pub fn allows(&self, facts: &Facts) -> bool {
        let limit = match self.max_age {
            None => self.min_age,
            Some(max_age) => age_limit(max_age, self.min_age, part_of(facts.client)),
        };
        facts.age >= limit && (facts.recoverable || !self.recoverable_only)
    }
}

/// A number in 0..1 that belongs to a client and is as random as its id.
fn part_of(client: ClientId) -> f64 {
    // The upper half of an id has fixed bits in it; of the lower one only the first two are.
    let low = client.0.as_u128() as u64 & (u64::MAX >> 2);
    low as f64 / (u64::MAX >> 2) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn facts(age: Duration) -> Facts {
        Facts { client: ClientId::random(), age, recoverable: true }
    }

    #[test]
    fn young_connections_and_those_that_would_lose_something_stay() {
        let rule = MoveRule { min_age: MINUTE, recoverable_only: true, max_age: None };
        assert!(rule.allows(&facts(MINUTE)));
        assert!(!rule.allows(&facts(MINUTE - Duration::from_secs(1))));
        let loses = Facts { recoverable: false, ..facts(2 * MINUTE) };
        assert!(!rule.allows(&loses));
        assert!(MoveRule { recoverable_only: false, ..rule }.allows(&loses));
    }

    #[test]
    fn ages_end_evenly_between_the_bounds() {
        let rule = MoveRule { min_age: MINUTE, recoverable_only: false, max_age: Some(11 * MINUTE) };
        let clients: Vec<_> = (0..2_000).map(|_| facts(Duration::ZERO)).collect();
        let over = |age: Duration| clients.iter().filter(|client| rule.allows(&Facts { age, ..**client })).count();
        assert_eq!((over(MINUTE - Duration::from_secs(1)), over(11 * MINUTE)), (0, 2_000));
        let half = over(6 * MINUTE);
        assert!((800..1_200).contains(&half), "{half} of 2,000 after half of the time");
    }
}
