//! The backplane: what carries publications, history and presence between gateway nodes.
//!
//! Read in this order: [`types`] (plain data), the traits [`Backplane`], [`PresenceStore`] and [`Sink`] below, the
//! traits [`Members`] (the fleet: reports and leases) and [`SessionStore`] (what outlives a connection), [`coverage`]
//! (when an answer is complete), [`memory`] (the embedded implementation), [`conformance`] (the suite every
//! implementation passes), [`fault`] (faults injected around any implementation). With the features `redis`
//! and `nats` there are the modules of these names too: the implementations that many nodes share.
//!
//! # What a backplane promises
//! 1. A pair (epoch, offset) is never given to two different publications.
//! 2. Publishing is one atomic step: dedupe, version check, next offset, store, fan out. An acknowledged publish is
//!    stored; after an error its outcome is unknown.
//! 3. Deliveries of one channel reach the [`Sink`] in offset order, each carrying the offset before it, so that a node
//!    can tell a loss. They may be lost or repeated, never silently reordered within an epoch.
//! 4. When [`Backplane::subscribe`] returns `Ok`, every later publication of the channel is delivered.
//! 5. A read says by `covered` whether it is everything after a position. It is never wrong about that.
//! 6. Publishes, announcements and changes of presence that one node makes in one channel take effect in the order in
//!    which they were first polled.
//! 7. Every call ends within a bounded time, whatever happened to the backplane.
//! 8. After anything that may have cost deliveries the backplane subscribes again by itself and then tells the sink
//!    ([`Sink::disturbed`]); nobody has to call [`Backplane::subscribe`] a second time. It also tells the sink as soon as
//!    it knows of the loss, so that the node stops to vouch for what it has.

#![forbid(unsafe_code)]

#[cfg(any(feature = "nats", feature = "redis"))]
pub mod address;
pub mod conformance;
pub mod coverage;
#[cfg(any(feature = "nats", feature = "redis"))]
mod encoding;
pub mod fault;
#[cfg(any(feature = "nats", feature = "redis"))]
mod health;
pub mod members;
pub mod memory;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(any(feature = "nats", feature = "redis"))]
mod record;
#[cfg(feature = "redis")]
pub mod redis;
pub mod sessions;
#[cfg(any(feature = "nats", feature = "redis"))]
mod standstill;
#[cfg(any(feature = "nats", feature = "redis"))]
pub mod tls;
pub mod types;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use members::{LEASE_NAME_BYTES, Lease, Member, Members, NodeId, REPORT_BYTES, REPORT_TTL};
pub use sessions::{SESSION_BYTES, SESSION_ID_BYTES, SESSIONS_PER_USER, SessionRecord, SessionStore, SessionWrite};
pub use types::*;

/// How long the result of a publish with an idempotency key is remembered (protocol section 7.2).
pub const IDEMPOTENCY_TTL: Duration = Duration::from_secs(300);

/// The future of a backplane call. It may be dropped at any time; a publish may then have happened or not.
pub type BackplaneFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BackplaneError>> + Send + 'a>>;

/// Why a backplane call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackplaneError {
    /// The backplane cannot be reached or did not answer in time. Whether a publish happened is unknown; the caller may
    /// try again (harmlessly with an idempotency key).
    #[error("backplane unavailable: {0}")]
    Unavailable(String),
    /// The backplane answered something that this version does not understand, or refused the call for good.
    #[error("backplane error: {0}")]
    Protocol(String),
}

/// Streams and fan-out. See the crate page for the promises.
pub trait Backplane: PresenceStore + Send + Sync + 'static {
    /// Where deliveries go. Called once, before any `subscribe`.
    fn attach(&self, sink: Arc<dyn Sink>);

    /// Publishes to a channel: stores with `options.history`, otherwise fans out only.
    fn publish<'a>(
        &'a self,
        channel: &'a ChannelName,
        publication: NewPublication,
        options: PublishOptions,
    ) -> BackplaneFuture<'a, Published>;

    /// Fans out a join or leave to the nodes that subscribe the channel; at most once.
    fn announce<'a>(&'a self, channel: &'a ChannelName, event: PresenceEvent) -> BackplaneFuture<'a, ()>;

    /// Starts deliveries of these channels to the sink. `Ok` means acknowledged: see promise 4.
    fn subscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()>;

    /// Ends deliveries. A few may still come.
    fn unsubscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()>;

    /// Reads a part of a channel's stream in one atomic step. `options` is the channel's history configuration.
    fn history<'a>(
        &'a self,
        channel: &'a ChannelName,
        query: HistoryQuery,
        options: HistoryOptions,
    ) -> BackplaneFuture<'a, HistoryPage>;

    /// The tops of several channels, in the order asked for.
    fn positions<'a>(
        &'a self,
        channels: &'a [(ChannelName, HistoryOptions)],
    ) -> BackplaneFuture<'a, Vec<StreamPosition>>;

    /// Drops a channel's publications. The epoch stays and the top offset never goes back.
    fn remove_history<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, ()>;

    /// Whether it can be reached, and what it has done so far. Cheap, never waits.
    fn status(&self) -> Status;
}

/// Who is subscribed to a channel, over all nodes. An entry lives until it is removed, its time to linger is over, or its
/// node's lease ends.
pub trait PresenceStore: Send + Sync + 'static {
    /// Adds or replaces the entry of `info.client`.
    fn add_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, ()>;

    /// Adds the entry of a client that comes back under the id it had, on this node or another, in place of the one it
    /// has left behind (lingering, or that of a dead node). True: there was one, and its leave was not announced and never
    /// will be, so that no join is due either. False: there was none, or its leave was announced. One step: never both,
    /// never neither. May cost more than [`add_presence`](Self::add_presence), which is for ids that are new.
    fn adopt_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, bool>;

    /// Has this node's entry of a client linger that may come back: it stays listed for `grace`, also when this node
    /// leaves or dies meanwhile. Then it is removed and its leave announced, once, by whichever node is there, some seconds
    /// late at most; when this node has died not necessarily before its lease has ended; after an outage of the backplane
    /// later, so that clients get the time to come back. Does nothing where this node has no entry of the client. When the
    /// client is added or adopted before, on whichever node, no leave is announced. From now on the entry is nobody's:
    /// [`remove_presence`](Self::remove_presence) need not find it.
    fn linger_presence<'a>(
        &'a self,
        channel: &'a ChannelName,
        client: ClientId,
        grace: Duration,
    ) -> BackplaneFuture<'a, ()>;

    /// Removes an entry; removing one that is not there succeeds.
    fn remove_presence<'a>(&'a self, channel: &'a ChannelName, client: ClientId) -> BackplaneFuture<'a, ()>;

    /// All entries, in no particular order.
    fn presence<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, Vec<Arc<ClientInfo>>>;

    /// Counts of clients and distinct users.
    fn presence_stats<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, PresenceStats>;
}

/// The node's end of the backplane. Called from inside the backplane, possibly under a lock of the channel: an
/// implementation only queues, never blocks and never calls back into the backplane.
pub trait Sink: Send + Sync + 'static {
    /// One delivery of a subscribed channel. Deliveries of one channel are handed over one at a time, in order.
    fn deliver(&self, channel: &ChannelName, delivery: Delivery);

    /// Live deliveries may be missing from here on.
    fn disturbed(&self, disturbance: Disturbance);
}
