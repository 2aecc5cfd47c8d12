//! The optional maximum age of connections: a slow, steady move that keeps a fleet level without ever looking at it, and
//! brings old clients to new nodes.

use std::time::{Duration, Instant};

use crate::rate::Paced;

/// The age at which one connection is closed: evenly distributed between `min_age` and `max_age`, so that connections
/// that came together do not go together. `random` in 0..1 belongs to the connection and stays the same; a hash of its id
/// will do. With `max_age` below `min_age` it is `max_age`.
pub fn age_limit(max_age: Duration, min_age: Duration, random: f64) -> Duration {
    let least = min_age.min(max_age);
    least + (max_age - least).mul_f64(random.clamp(0.0, 1.0))
}

/// The most connections of one node that end by age in a second, as a multiple of the even rate. Ages are spread over
/// the whole range, so in the long run the even rate is enough; the rest is for what has piled up in a pause.
const BURST: f64 = 4.0;

/// Paces the closes of connections that are over their limit.
#[derive(Clone, Debug)]
pub struct AgePace {
    max_age: Duration,
    paced: Paced,
}

impl AgePace {
    /// `phase` in 0..1 differs for each node.
    pub fn new(max_age: Duration, phase: f64) -> Self {
        Self { max_age, paced: Paced::new(phase) }
    }

    /// How many of `over` connections that are over their limit to close now, out of `connections`. `least_rate` per
    /// second are always allowed: the rate at which a node moves connections anyway
    /// ([`rate`](crate::ShedSettings::rate)).
    pub fn tick(&mut self, now: Instant, connections: u64, over: u64, least_rate: f64) -> u64 {
        let even = connections as f64 / self.max_age.as_secs_f64().max(1.0);
        self.paced.due(now, (BURST * even).max(least_rate), over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn limits_use_the_whole_range() {
        assert_eq!(age_limit(HOUR, MINUTE, 0.0), MINUTE);
        assert_eq!(age_limit(HOUR, MINUTE, 0.5), Duration::from_secs(1830));
        assert_eq!(age_limit(HOUR, MINUTE, 1.0), HOUR);
        assert_eq!(age_limit(MINUTE, HOUR, 0.7), MINUTE);
        assert_eq!(age_limit(HOUR, MINUTE, f64::INFINITY), HOUR);
    }

    /// 7,200 connections that came in one moment: as many end in each part of the hour.
    #[test]
    fn what_came_together_does_not_go_together() {
        let limits: Vec<_> =
            (0..7200).map(|index| age_limit(HOUR, Duration::ZERO, f64::from(index) / 7200.0)).collect();
        let mut pace = AgePace::new(HOUR, 0.0);
        let start = Instant::now();
        let (mut left, mut closed, mut most) = (7200u64, 0u64, 0);
        for second in 0..=3600 {
            let age = Duration::from_secs(second);
            let over = limits.iter().filter(|limit| **limit <= age).count() as u64 - closed;
            let close = pace.tick(start + age, left, over, 5.0);
            most = most.max(close);
            closed += close;
            left -= close;
        }
        assert!(most <= 3, "{most} in one second");
        assert!(left < 10, "{left} are left after the hour");
    }

    #[test]
    fn what_piled_up_is_paced() {
        let mut pace = AgePace::new(HOUR, 0.0);
        let start = Instant::now();
        pace.tick(start, 36_000, 36_000, 5.0);
        assert_eq!(pace.tick(start + Duration::from_secs(1), 36_000, 36_000, 5.0), 40);
        assert_eq!(pace.tick(start + Duration::from_secs(2), 36_000, 3, 5.0), 3);
    }
}
