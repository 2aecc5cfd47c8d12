//! What the backplane says of itself: whether Redis can be used, and what was done so far.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::EventInterface;
use fred::types::Value;
use fred::types::config::Server;
use parking_lot::Mutex;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

use super::connection::{FailFast, fail_fast, send, text, unavailable_or_refused};
use crate::{BackplaneError, Status};

/// Pause between looks at a connection that does not work. While it is not even made, a look is answered at once.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// What all connections of a backplane have done, and which of them work.
#[derive(Default)]
pub(super) struct Health {
    calls_begun: AtomicU64,
    calls_ended: AtomicU64,
    calls_failed: AtomicU64,
    calls_timed_out: AtomicU64,
    deliveries: AtomicU64,
    deliveries_lost: AtomicU64,
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
    pub(super) fn status(&self) -> Status {
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
            restorations: self.restorations.load(Relaxed),
            channels: self.channels.load(Relaxed),
        }
    }

    /// Counts a call from now until the guard is dropped, with its future if need be.
    pub(super) fn begin(&self) -> Call<'_> {
        self.calls_begun.fetch_add(1, Relaxed);
        Call(self)
    }

    pub(super) fn delivered(&self) {
        self.deliveries.fetch_add(1, Relaxed);
    }

    pub(super) fn lost(&self, deliveries: u64) {
        self.deliveries_lost.fetch_add(deliveries, Relaxed);
    }

    pub(super) fn restored(&self) {
        self.restorations.fetch_add(1, Relaxed);
    }

    /// The number of channels of one connection has changed.
    pub(super) fn channels_changed(&self, before: usize, after: usize) {
        // Wraps, and so does the sum.
        self.channels.fetch_add((after as u64).wrapping_sub(before as u64), Relaxed);
    }

    /// Down for good, without a word in the log.
    pub(super) fn close(&self) {
        self.outage.lock().is_closed = true;
    }
}

/// A call under way.
pub(super) struct Call<'a>(&'a Health);

impl Call<'_> {
    /// `timed_out`: for lack of an answer.
    pub(super) fn failed(&self, timed_out: bool) {
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
pub(super) struct Link {
    health: Arc<Health>,
    purpose: &'static str,
    /// Written under the lock of the outage.
    is_up: AtomicBool,
    /// A call was answered since somebody looked.
    answered: AtomicBool,
}

impl Link {
    /// Of a connection that has just been made.
    pub(super) fn new(health: Arc<Health>, purpose: &'static str) -> Self {
        Self { health, purpose, is_up: AtomicBool::new(true), answered: AtomicBool::new(false) }
    }

    pub(super) fn answered(&self) {
        // A cache line that every call writes would be shared by all threads for nothing.
        if !self.answered.load(Relaxed) {
            self.answered.store(true, Relaxed);
        }
    }

    pub(super) fn up(&self) {
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
            tracing::info!(outage_ms = lasted.as_millis(), "redis is back: calls and deliveries work");
        }
    }

    /// True if it was up until now.
    pub(super) fn down(&self, why: &dyn fmt::Display) -> bool {
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
                tracing::warn!(connection = self.purpose, %why, "redis is away: calls fail and deliveries may be missing");
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

/// A task that ends with this.
pub(super) struct Watch(JoinHandle<()>);

impl Watch {
    /// Watches a connection for commands, so that its link says at any time whether it works.
    pub(super) fn start(client: &Client, link: &Arc<Link>, interval: Duration) -> Self {
        Self(tokio::spawn(watch(client.clone(), Arc::clone(link), client.error_rx(), interval)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An outage that the operating system tells of shows at once; a silent one within `interval` and the time limit of a
/// call.
async fn watch(client: Client, link: Arc<Link>, mut errors: Receiver<(Error, Option<Server>)>, interval: Duration) {
    let commands = fail_fast(&client);
    loop {
        let is_up = link.is_up.load(Relaxed);
        // Half of it, because an answer just after a look hides a loss until the second look after it.
        let pause = if is_up { interval / 2 } else { RETRY_INTERVAL.min(interval / 2) };
        tokio::select! {
            biased;
            error = errors.recv() => match error {
                Ok((error, _)) => drop(link.down(&error)),
                Err(lagged @ RecvError::Lagged(_)) => drop(link.down(&lagged)),
                Err(RecvError::Closed) => return,
            },
            () = tokio::time::sleep(pause) => {
                if link.answered.swap(false, Relaxed) && is_up {
                    continue;
                }
                match probe(&commands).await {
                    Ok(()) => link.up(),
                    Err(why) => drop(link.down(&why)),
                }
            }
        }
    }
}

/// Whether the server can be used.
async fn probe(commands: &FailFast) -> Result<(), BackplaneError> {
    let info = send(commands, "INFO", vec![Value::from("replication")]).await;
    match info.map_err(unavailable_or_refused).and_then(text) {
        // It answers, but takes no writes; the connection is made anew when one is tried.
        Ok(info) if info.lines().any(|line| line == "role:slave") => {
            Err(BackplaneError::Unavailable("the server is a replica".to_owned()))
        }
        Ok(_) | Err(BackplaneError::Protocol(_)) => Ok(()),
        Err(error) => Err(error),
    }
}
