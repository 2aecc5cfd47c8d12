//! How long each part of a drain takes, as pure functions of the time since it began. How many are closed when is said by
//! [`placement::drain`].

use std::time::Duration;

/// What the last connection may need after its turn: 2 s for answers to the commands it has sent, 5 s to answer the close
/// frame (protocol section 5.3), and some room for a busy machine.
pub const LAST_CLOSE: Duration = Duration::from_secs(10);

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

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
