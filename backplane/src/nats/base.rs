//! What all parts of the backplane share: connection, names, the server's time, and what all nodes must agree on.

use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::calls::Calls;
use super::clock::Clock;
use super::config::NatsConfig;
use super::connection::Access;
use super::names::Names;
use super::order::Order;
use super::request::{CallError, Write};
use super::stream::{Stream, StreamSettings};
use super::subscriber::SinkCell;
use crate::BackplaneError;

/// How often the server is asked for its time, beside once for each connection. Clocks drift by less than a millisecond
/// in that time.
const CLOCK_INTERVAL: Duration = Duration::from_secs(10);

/// What must be the same on all nodes that share a prefix.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Agreement {
    /// How everything is stored: 1.
    version: u32,
    partitions: u16,
}

/// The shared parts.
pub(super) struct Base {
    /// The connection for everything but deliveries.
    pub(super) calls: Arc<Calls>,
    pub(super) names: Names,
    pub(super) config: Arc<NatsConfig>,
    pub(super) sink: SinkCell,
    /// In which order steps in one channel go.
    pub(super) order: Order,
    meta: Arc<Stream>,
    clock: Arc<Clock>,
    timekeeper: JoinHandle<()>,
}

impl Base {
    /// Connects and compares what all nodes must agree on.
    pub(super) async fn connect(config: &NatsConfig) -> Result<Self, BackplaneError> {
        let access = Arc::new(Access::new(config)?);
        let config = Arc::clone(&access.config);
        let calls = Calls::connect(access).await?;
        let names = Names::new(&config.prefix, config.partitions);
        let sink = SinkCell::default();
        let settings = StreamSettings::last_of_each(names.stream("meta"), names.subject(&["m", ">"]));
        let meta = Arc::new(Stream::new(Arc::clone(&calls), names.clone(), settings, None, Arc::clone(&sink)));
        calls.call(agree(&meta, &names)).await?;
        let clock = Arc::new(Clock::default());
        let subject = names.subject(&["m", "clock"]);
        calls.call(set_clock(&clock, &meta, subject.clone())).await?;
        let timekeeper =
            tokio::spawn(keep_time(Arc::downgrade(&clock), Arc::clone(&meta), Arc::downgrade(&calls), subject));
        Ok(Self { calls, names, config, sink, order: Order::new(), meta, clock, timekeeper })
    }

    /// A stream with these settings, which is made when it is first used.
    pub(super) fn stream(&self, settings: StreamSettings) -> Arc<Stream> {
        let (calls, meta, sink) = (Arc::clone(&self.calls), Arc::clone(&self.meta), Arc::clone(&self.sink));
        Arc::new(Stream::new(calls, self.names.clone(), settings, Some(meta), sink))
    }

    /// The server's time, in nanoseconds since 1970; never ahead of the truth by more than its clock drifts in 10 s.
    pub(super) fn now(&self) -> u64 {
        self.clock.now()
    }

    /// Ends the connection for good.
    pub(super) fn close(&self) {
        self.timekeeper.abort();
        self.calls.access().health.close();
        self.calls.close();
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        self.timekeeper.abort();
    }
}

/// Writes what all nodes must agree on, or compares it with what is there.
async fn agree(meta: &Stream, names: &Names) -> Result<(), BackplaneError> {
    let ready = meta.ready().await?;
    let subject = names.subject(&["m", "config"]);
    let ours = Agreement { version: 1, partitions: names.partitions() };
    let payload = serde_json::to_vec(&ours).expect("numbers can be written");
    let write = Write { expected: Some(0), ..Write::new(subject.clone(), payload) };
    match ready.connection.write(write).await {
        Ok(_) => return Ok(()),
        Err(CallError::Conflict) => {}
        Err(error) => return Err(error.into()),
    }
    let stored = ready.connection.last(meta.name(), &subject).await?;
    let stored = stored.ok_or_else(|| CallError::Unexpected("the agreement of the nodes is gone".to_owned()))?;
    let theirs: Agreement = serde_json::from_slice(&stored.payload)
        .map_err(|error| BackplaneError::Protocol(format!("what is in {subject} at nats cannot be read: {error}")))?;
    if theirs.version != ours.version {
        let (theirs, ours) = (theirs.version, ours.version);
        return Err(BackplaneError::Protocol(format!(
            "what is stored at nats under this prefix has version {theirs}, and this node knows version {ours}; use \
             another prefix"
        )));
    }
    if theirs.partitions != ours.partitions {
        let (theirs, ours) = (theirs.partitions, ours.partitions);
        return Err(BackplaneError::Protocol(format!(
            "channels at nats under this prefix are spread over {theirs} partitions, and this node is set to {ours}: set \
             it to {theirs}, or use another prefix"
        )));
    }
    Ok(())
}

async fn set_clock(clock: &Clock, meta: &Stream, subject: String) -> Result<(), BackplaneError> {
    let ready = meta.ready().await?;
    Ok(clock.set(&ready, meta.name(), subject).await?)
}

/// Asks for the time now and then, and on every new connection, which may be to another server.
async fn keep_time(clock: Weak<Clock>, meta: Arc<Stream>, calls: Weak<Calls>, subject: String) {
    let mut asked_on = None;
    let mut waited = Duration::ZERO;
    loop {
        let Some(interval) = calls.upgrade().map(|calls| calls.access().config.liveness_interval) else { return };
        tokio::time::sleep(interval).await;
        waited += interval;
        let (Some(calls), Some(clock)) = (calls.upgrade(), clock.upgrade()) else { return };
        let Ok(connection) = calls.connection() else { continue };
        let is_due = waited >= CLOCK_INTERVAL || asked_on != Some(connection.number);
        if is_due && calls.call(set_clock(&clock, &meta, subject.clone())).await.is_ok() {
            asked_on = Some(connection.number);
            waited = Duration::ZERO;
        }
    }
}
