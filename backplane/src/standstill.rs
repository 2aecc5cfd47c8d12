//! Whether this node stood still, alone or with all others.
//!
//! A host that is paused stops nodes and servers at once. Afterwards every lease is older than it may be, and who goes on first
//! would take all others for dead.

use std::time::{Duration, Instant, SystemTime};

/// Something that is done again and again, and when it was done last.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// By the clock that cannot be set.
    instant: Instant,
    /// By the clock that goes on while a machine sleeps.
    time: SystemTime,
    patience: Duration,
}

impl Pulse {
    /// Done now, and to be done at this interval, so that leases with this time to live do not end.
    pub(crate) fn new(ttl: Duration, interval: Duration) -> Self {
        // Less than it takes the lease of one that stood still as long to end.
        let patience = interval + ttl.saturating_sub(interval) / 2;
        Self { instant: Instant::now(), time: SystemTime::now(), patience }
    }

    /// It was not done for so long that others may have had no time for theirs.
    pub(crate) fn stood_still(&self) -> bool {
        let asleep = self.time.elapsed().unwrap_or_default();
        self.instant.elapsed().max(asleep) >= self.patience
    }

    /// It was done.
    pub(crate) fn beat(&mut self) {
        (self.instant, self.time) = (Instant::now(), SystemTime::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(30);
    const INTERVAL: Duration = Duration::from_secs(5);

    fn stood_still_after(instant: Duration, time: Duration) -> bool {
        let mut pulse = Pulse::new(TTL, INTERVAL);
        pulse.instant = pulse.instant.checked_sub(instant).expect("the machine is up for longer");
        pulse.time -= time;
        let stood_still = pulse.stood_still();
        pulse.beat();
        assert!(!pulse.stood_still(), "it was done just now");
        stood_still
    }

    #[test]
    fn either_clock_tells_before_the_lease_of_another_can_have_ended() {
        assert!(!stood_still_after(2 * INTERVAL, 2 * INTERVAL), "one renewal may fail");
        // The other one was renewed up to an interval before everything stopped.
        let least = TTL - INTERVAL;
        assert!(stood_still_after(least, Duration::ZERO), "paused");
        assert!(stood_still_after(Duration::ZERO, least), "asleep");
        let mut set_back = Pulse::new(TTL, INTERVAL);
        set_back.time += TTL;
        assert!(!set_back.stood_still(), "a clock that was set back says nothing");
    }
}
