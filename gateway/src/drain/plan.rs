//! Who is closed when, as pure functions of the time since the drain began.

use std::ops::Range;
use std::time::Duration;

use rand::Rng;

/// What the last connection may need after its turn: 2 s for answers to the commands it has sent, 5 s to answer the close
/// frame (protocol section 5.3), and some room for a busy machine.
pub const LAST_CLOSE: Duration = Duration::from_secs(10);

/// How far a close may be from its place in the even spread, in parts of the gap between two: nodes and shards that
/// drain together then do not close in step.
const JITTER: f64 = 0.2;

/// Times of a drain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DrainTimes {
    /// How long new connections are still accepted: load balancers need this time to see that the node is not ready.
    pub grace_accept: Duration,
    /// Over how long the closes are spread, so that clients do not come back all at once.
    pub window: Duration,
    /// When the drain is over at the latest, counted from its beginning.
    pub deadline: Duration,
}

/// How far a drain has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DrainPhase {
    /// Not ready any more, but whoever still comes is let in.
    Accepting,
    /// Connections are being closed, and nobody is let in.
    Closing,
    /// No connection is left.
    Drained,
    /// Some are, and the time is up.
    Overdue,
}

impl DrainPhase {
    /// One word for operators.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepting => "accepting",
            Self::Closing => "closing",
            Self::Drained => "drained",
            Self::Overdue => "overdue",
        }
    }
}

impl DrainTimes {
    /// The shortest deadline that leaves the whole window.
    pub fn deadline_of(grace_accept: Duration, window: Duration) -> Duration {
        grace_accept + window + LAST_CLOSE
    }

    /// The time over which connections are closed: the window, or what the deadline leaves of it.
    pub fn closes_over(&self) -> Duration {
        let room = self.deadline.saturating_sub(self.accepts_for() + LAST_CLOSE);
        self.window.min(room)
    }

    /// The time for which new connections are still accepted: the grace, or what the deadline leaves of it.
    pub fn accepts_for(&self) -> Duration {
        self.grace_accept.min(self.deadline)
    }

    /// Where a drain stands that began so long ago, with so many connections left.
    pub fn phase(&self, elapsed: Duration, remaining: usize) -> DrainPhase {
        if elapsed < self.accepts_for() {
            DrainPhase::Accepting
        } else if remaining == 0 {
            DrainPhase::Drained
        } else if elapsed >= self.deadline {
            DrainPhase::Overdue
        } else {
            DrainPhase::Closing
        }
    }
}

/// An even spread of closes over a window, each moved a little at random. The order of the connections is the caller's.
#[derive(Debug)]
pub struct Spread {
    total: usize,
    window: Duration,
    closed: usize,
    /// When the next one is due.
    next: Duration,
}

impl Spread {
    /// So many closes over this time; without any time all are due at once.
    pub fn new(total: usize, window: Duration, random: &mut impl Rng) -> Self {
        let mut spread = Self { total, window, closed: 0, next: Duration::ZERO };
        spread.next = spread.time_of(0, random);
        spread
    }

    /// The closes that are due and were not returned before. Whoever asks late gets all that were missed.
    pub fn due(&mut self, elapsed: Duration, random: &mut impl Rng) -> Range<usize> {
        let from = self.closed;
        if elapsed >= self.window {
            self.closed = self.total;
        }
        while self.closed < self.total && self.next <= elapsed {
            self.closed += 1;
            self.next = self.time_of(self.closed, random);
        }
        from..self.closed
    }

    /// When to ask again; `None` when everything was due.
    pub fn next_at(&self) -> Option<Duration> {
        (self.closed < self.total).then_some(self.next)
    }

    /// The middle of the slot of one close, moved by the jitter, so that the order never changes.
    fn time_of(&self, index: usize, random: &mut impl Rng) -> Duration {
        if self.total == 0 {
            return self.window;
        }
        let place = index as f64 + 0.5 + random.random_range(-JITTER..=JITTER);
        self.window.mul_f64(place / self.total as f64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_drain_accepts_then_closes_then_ends() {
        let times = DrainTimes { grace_accept: millis(5_000), window: millis(30_000), deadline: millis(45_000) };
        for (elapsed, remaining, expected) in [
            (0, 3, DrainPhase::Accepting),
            (4_999, 0, DrainPhase::Accepting),
            (5_000, 0, DrainPhase::Drained),
            (5_000, 3, DrainPhase::Closing),
            (44_999, 1, DrainPhase::Closing),
            (45_000, 1, DrainPhase::Overdue),
            (45_000, 0, DrainPhase::Drained),
        ] {
            assert_eq!(times.phase(millis(elapsed), remaining), expected, "{elapsed} {remaining}");
        }
        assert_eq!(times.closes_over(), millis(30_000));
    }

    #[test]
    fn a_deadline_that_leaves_no_time_shortens_the_window_first() {
        let times = DrainTimes { grace_accept: millis(5_000), window: millis(30_000), deadline: millis(20_000) };
        assert_eq!((times.accepts_for(), times.closes_over()), (millis(5_000), millis(5_000)));
        let hasty = DrainTimes { deadline: millis(3_000), ..times };
        assert_eq!((hasty.accepts_for(), hasty.closes_over()), (millis(3_000), Duration::ZERO));
    }

    /// When each close came, for somebody who asks at these times.
    fn closes(total: usize, window: Duration, seed: u64, steps: &[u64]) -> Vec<Duration> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut spread = Spread::new(total, window, &mut random);
        let mut times = Vec::new();
        let mut elapsed = Duration::ZERO;
        for step in steps.iter().cycle() {
            times.extend(spread.due(elapsed, &mut random).map(|_| elapsed));
            match spread.next_at() {
                None => break,
                Some(next) => elapsed = next.max(elapsed) + millis(*step),
            }
        }
        times
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whoever asks when told to sees any part of the window get its share of the closes, to one close.
        #[test]
        fn closes_are_even(total in 1..500_usize, window in 1..400_000_u64, seed: u64, part in 0.0..1.0_f64) {
            let times = closes(total, millis(window), seed, &[0]);
            prop_assert_eq!(times.len(), total);
            let until = millis(window).mul_f64(part);
            let closed = times.iter().filter(|at| **at < until).count() as f64;
            prop_assert!((closed - part * total as f64).abs() <= 1.0, "{} of {} closed at {}", closed, total, part);
            let gap = window as f64 / 1e3 / total as f64;
            for pair in times.windows(2) {
                let between = (pair[1] - pair[0]).as_secs_f64();
                prop_assert!((between - gap).abs() <= 2.0 * JITTER * gap + 1e-6, "{} after {}", between, gap);
            }
        }

        /// However late somebody asks, each is closed once, in order, never before its time, and by the end of the window.
        #[test]
        fn every_close_comes_once_and_in_time(
            total in 0..300_usize,
            window in 0..60_000_u64,
            seed: u64,
            steps in prop::collection::vec(0..5_000_u64, 1..20),
        ) {
            let times = closes(total, millis(window), seed, &steps);
            prop_assert_eq!(times.len(), total);
            prop_assert!(times.is_sorted());
            let latest = steps.iter().max().copied().unwrap_or_default();
            prop_assert!(times.iter().all(|at| *at <= millis(window + latest)));
        }

        /// With any times, the last close and its answers fit between the grace and the deadline, if anything does.
        #[test]
        fn the_deadline_holds(grace in 0..100_000_u64, window in 0..400_000_u64, deadline in 0..600_000_u64) {
            let times =
                DrainTimes { grace_accept: millis(grace), window: millis(window), deadline: millis(deadline) };
            prop_assert!(times.accepts_for() <= times.deadline && times.closes_over() <= times.window);
            if !times.closes_over().is_zero() {
                prop_assert!(times.accepts_for() + times.closes_over() + LAST_CLOSE <= times.deadline);
            }
            if times.deadline >= DrainTimes::deadline_of(times.grace_accept, times.window) {
                prop_assert_eq!((times.accepts_for(), times.closes_over()), (times.grace_accept, times.window));
            }
            prop_assert!(matches!(times.phase(times.deadline, 1), DrainPhase::Overdue));
        }
    }
}
