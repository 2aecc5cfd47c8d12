//! What a backplane on a server says of itself: whether the server can be used, and what was done so far.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::Status;

/// What all connections of a backplane have done, and which of them work.
pub(crate) struct Health {
    /// What the log calls the system behind the connections.
    system: &'static str,
    calls_begun: AtomicU64,
    calls_ended: AtomicU64,
    calls_failed: AtomicU64,
    calls_timed_out: AtomicU64,
    deliveries: AtomicU64,
    deliveries_lost: AtomicU64,
    deliveries_unwanted: AtomicU64,
    restorations: AtomicU64,
    channels: AtomicU64,
    outage: Mutex<Outage>,
}

#[derive(Default)]
struct Outage {
    /// Connections that do not work.
    links_down: usize,
    since: Option<Instant>,
    /// The backplane was closed on purpose: nothing is reported any more.
    is_closed: bool,
}

impl Health {
    /// Of a backplane without connections, on a system of that name.
    pub(crate) fn new(system: &'static str) -> Self {
        Self {
            system,
            calls_begun: AtomicU64::new(0),
            calls_ended: AtomicU64::new(0),
            calls_failed: AtomicU64::new(0),
            calls_timed_out: AtomicU64::new(0),
            deliveries: AtomicU64::new(0),
            deliveries_lost: AtomicU64::new(0),
            deliveries_unwanted: AtomicU64::new(0),
            restorations: AtomicU64::new(0),
            channels: AtomicU64::new(0),
            outage: Mutex::default(),
        }
    }

    pub(crate) fn status(&self) -> Status {
        // In this order, so that calls that end in between make it too large rather than negative.
        let calls = self.calls_ended.load(Relaxed);
        let calls_in_flight = self.calls_begun.load(Relaxed).saturating_sub(calls);
        let is_up = {
            let outage = self.outage.lock();
            outage.links_down == 0 && !outage.is_closed
        };
        Status {
            is_up,
            calls_in_flight,
            calls,
            calls_failed: self.calls_failed.load(Relaxed),
            calls_timed_out: self.calls_timed_out.load(Relaxed),
            deliveries: self.deliveries.load(Relaxed),
            deliveries_lost: self.deliveries_lost.load(Relaxed),
            deliveries_unwanted: self.deliveries_unwanted.load(Relaxed),
            restorations: self.restorations.load(Relaxed),
            channels: self.channels.load(Relaxed),
        }
    }

    /// Counts a call from now until the guard is dropped, with its future if need be.
    pub(crate) fn begin(&self) -> Call<'_> {
        self.calls_begun.fetch_add(1, Relaxed);
        Call(self)
    }

    pub(crate) fn delivered(&self) {
        self.deliveries.fetch_add(1, Relaxed);
    }

    /// A delivery came that no channel of this node wants.
    #[cfg(feature = "nats")]
    pub(crate) fn unwanted(&self) {
        self.deliveries_unwanted.fetch_add(1, Relaxed);
    }

    pub(crate) fn lost(&self, deliveries: u64) {
        self.deliveries_lost.fetch_add(deliveries, Relaxed);
    }

    pub(crate) fn restored(&self) {
        self.restorations.fetch_add(1, Relaxed);
    }

    /// The number of channels of one connection has changed.
    pub(crate) fn channels_changed(&self, before: usize, after: usize) {
        // Wraps, and so does the sum.
        self.channels.fetch_add((after as u64).wrapping_sub(before as u64), Relaxed);
    }

    /// Down for good, without a word in the log.
    pub(crate) fn close(&self) {
        self.outage.lock().is_closed = true;
    }
}

/// A call under way.
pub(crate) struct Call<'a>(&'a Health);

impl Call<'_> {
    /// `timed_out`: for lack of an answer.
    pub(crate) fn failed(&self, timed_out: bool) {
        self.0.calls_failed.fetch_add(1, Relaxed);
        if timed_out {
            self.0.calls_timed_out.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.calls_ended.fetch_add(1, Relaxed);
    }
}

/// Whether one connection works.
pub(crate) struct Link {
    health: Arc<Health>,
    purpose: &'static str,
    /// Written under the lock of the outage.
    is_up: AtomicBool,
    /// A call was answered since somebody looked.
    answered: AtomicBool,
}

impl Link {
    /// Of a connection that has just been made.
    pub(crate) fn new(health: Arc<Health>, purpose: &'static str) -> Self {
        Self { health, purpose, is_up: AtomicBool::new(true), answered: AtomicBool::new(false) }
    }

    /// Whether it works, as far as is known.
    pub(crate) fn is_up(&self) -> bool {
        self.is_up.load(Relaxed)
    }

    /// Whether a call was answered since this was last asked.
    pub(crate) fn take_answered(&self) -> bool {
        self.answered.swap(false, Relaxed)
    }

    pub(crate) fn answered(&self) {
        // A cache line that every call writes would be shared by all threads for nothing.
        if !self.answered.load(Relaxed) {
            self.answered.store(true, Relaxed);
        }
    }

    pub(crate) fn up(&self) {
        if self.is_up.load(Relaxed) {
            return;
        }
        let mut outage = self.health.outage.lock();
        if self.is_up.swap(true, Relaxed) {
            return;
        }
        outage.links_down -= 1;
        if outage.links_down > 0 {
            return;
        }
        let lasted = outage.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        if !outage.is_closed {
            let system = self.health.system;
            tracing::info!(outage_ms = lasted.as_millis(), "{system} is back: calls and deliveries work");
        }
    }

    /// True if it was up until now.
    pub(crate) fn down(&self, why: &dyn fmt::Display) -> bool {
        if !self.is_up.load(Relaxed) {
            return false;
        }
        let mut outage = self.health.outage.lock();
        if !self.is_up.swap(false, Relaxed) {
            return false;
        }
        outage.links_down += 1;
        if outage.links_down == 1 {
            outage.since = Some(Instant::now());
            if !outage.is_closed {
                let system = self.health.system;
                tracing::warn!(connection = self.purpose, %why, "{system} is away: calls fail and deliveries may be missing");
            }
        }
        true
    }
}

impl Drop for Link {
    /// A connection that is not wanted any more does not count as one that does not work.
    fn drop(&mut self) {
        self.up();
    }
}
