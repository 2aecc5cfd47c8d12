//! The clock as the session sees it: always passed in, never read.

use std::time::Duration;

/// Milliseconds on the node's monotonic clock, counted from the start of the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Tick(pub u64);

impl Tick {
    /// Beyond every deadline.
    pub(crate) const NEVER: Self = Self(u64::MAX);

    /// This tick moved into the future; saturates.
    pub fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// One reading of both clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Monotonic: for every deadline.
    pub tick: Tick,
    /// Unix time in seconds: only to compare with `exp` and `expire_at` of tokens and API calls.
    pub unix: i64,
}
