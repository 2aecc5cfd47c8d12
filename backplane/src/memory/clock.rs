//! The clock of the in-memory backplane: always injected, so that expiry can be tested without waiting.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A monotonic clock: the time since some fixed start. It must never go back.
pub trait Clock: Send + Sync + 'static {
    /// Time since the start of this clock.
    fn now(&self) -> Duration;
}

/// Any closure that returns the time since a start is a clock; a simulation passes its virtual time this way.
impl<F: Fn() -> Duration + Send + Sync + 'static> Clock for F {
    fn now(&self) -> Duration {
        self()
    }
}

/// The machine's monotonic clock, counted from the creation of this value. The default.
#[derive(Debug)]
pub struct MonotonicClock {
    start: Instant,
}

impl MonotonicClock {
    /// A clock that starts now.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that stands still until it is advanced by hand: for tests and simulations.
#[derive(Debug, Default)]
pub struct ManualClock {
    nanos: AtomicU64,
}

impl ManualClock {
    /// A clock at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.nanos.fetch_add(Moment::from(by).0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::SeqCst))
    }
}

/// A point on the clock in nanoseconds. Half the size of a `Duration`, and there are several in every channel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Moment(u64);

impl Moment {
    /// Later than every moment that a clock shows (584 years).
    pub(super) const NEVER: Self = Self(u64::MAX);

    /// This moment moved into the future; saturates at `NEVER`.
    pub(super) fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(Self::from(delay).0))
    }

    /// The time since an earlier moment; zero when that is later.
    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl From<Duration> for Moment {
    fn from(since_start: Duration) -> Self {
        Self(u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX))
    }
}
