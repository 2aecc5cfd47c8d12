//! The server's time, as this node knows it.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use super::request::{CallError, Write};
use super::stream::Ready;

/// This machine's time, in nanoseconds since 1970.
pub(super) fn unix_nanoseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// How far the server's clock is from this machine's.
#[derive(Default)]
pub(super) struct Clock {
    /// Server minus machine, in nanoseconds.
    ahead: AtomicI64,
}

impl Clock {
    /// The server's time, in nanoseconds since 1970. Behind the truth by what an answer takes on its way, so that
    /// nothing is called expired too early.
    pub(super) fn now(&self) -> u64 {
        unix_nanoseconds().saturating_add_signed(self.ahead.load(Relaxed))
    }

    /// Asks the server for its time: by writing a message and reading it.
    pub(super) async fn set(&self, ready: &Ready, stream: &str, subject: String) -> Result<(), CallError> {
        ready.connection.write(Write::new(subject.clone(), "")).await?;
        let stored = ready.connection.last(stream, &subject).await?;
        let Some(stored) = stored else { return Err(CallError::Unexpected("no clock message".to_owned())) };
        let ahead = i128::from(stored.time) - i128::from(unix_nanoseconds());
        self.ahead.store(i64::try_from(ahead).unwrap_or(0), Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_added() {
        let clock = Clock::default();
        clock.ahead.store(-5_000_000_000, Relaxed);
        let behind = unix_nanoseconds() - clock.now();
        assert!((4_000_000_000..=5_000_000_000).contains(&behind), "{behind}");
    }
}
