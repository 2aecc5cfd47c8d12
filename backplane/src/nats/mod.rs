//! The backplane on NATS JetStream: many nodes share channels, history and presence.
//!
//! What is published to a channel with history goes to a stream; the server sends copies of it to all who subscribe, with
//! the number of the message and of the one before it in the channel. Works with nats-server 2.9 and newer; 2.10.25 is
//! the oldest that keeps copies in order, and 2.11 the oldest that answers a read by one request.
//!
//! # Positions stay true
//! Offsets are the numbers of messages in a stream, plus a base that changes whenever numbers may be given a second time:
//! see `fence.rs`. A stream that was lost and made again is another epoch. Each channel with history begins with a message
//! that says nothing, so that every position handed out is a message: whether everything after a position is there is
//! then a question about the data (see [`coverage`](crate::coverage)).
//!
//! Each combination of history size and position lifetime is a stream of its own. Options of a channel that are changed
//! therefore begin a new stream, and epoch, for it. While nodes of a fleet have different ones, reads look into each stream
//! there is (a new one is known to all nodes within [`NatsConfig::liveness_interval`]) and answer from the one that was
//! written last.
//!
//! # When NATS is away
//! Calls fail at once with [`BackplaneError::Unavailable`] while there is no connection, and after
//! [`NatsConfig::command_timeout`] when there is no answer. Nothing is kept to be sent later. Connections are made again
//! for ever, to one server after the other; when the deliveries are restored the sink is told
//! [`Disturbance::All`](crate::Disturbance::All). [`Backplane::status`] says that it is down while one of the connections does not
//! work; beginning and end are logged once.
//!
//! A `subscribe` whose future is dropped, or which times out, may still take effect; `unsubscribe` ends it.
//!
//! # What is delivered to a node
//! Channels are spread over [`PARTITIONS`] partitions, and a node subscribes to partitions: it receives what is published
//! to other channels of them too, and drops it ([`Status::deliveries_unwanted`]).
//!
//! # What NATS must allow
//! JetStream, and a user that may publish and subscribe to `<prefix>.>` and `_INBOX.>` and publish to `$JS.API.>`.

mod auth;
mod base;
mod calls;
mod classes;
mod clock;
mod config;
mod connection;
mod doubt;
mod entry;
mod envelope;
mod fence;
mod hold;
mod lease;
mod lingering;
mod members;
mod names;
mod order;
mod partition;
mod presence;
mod publish;
mod read;
mod reaper;
mod request;
mod sessions;
mod stream;
mod subscriber;
mod table;

use std::fmt;
use std::sync::{Arc, Weak};

use futures_util::stream::{StreamExt, TryStreamExt};
use tokio::task::JoinHandle;

use base::Base;
use classes::Classes;
pub use config::{Address, NatsAuth, NatsConfig, NatsTls, PARTITIONS, Storage};
use members::Fleet;
use presence::Presence;
use sessions::Sessions;
use stream::{Stream, StreamSettings};
use subscriber::Deliveries;

use crate::{
    Backplane, BackplaneError, BackplaneFuture, ChannelName, HistoryOptions, HistoryPage, HistoryQuery,
    IDEMPOTENCY_TTL, NewPublication, PresenceEvent, PublishOptions, Published, Sink, Status, StreamPosition,
};

/// Positions read at the same time by one call, so that it leaves room for others.
const POSITIONS_AT_ONCE: usize = 256;

/// A backplane on NATS. Lives in a tokio runtime; dropping it ends its connections and tasks, but the presence entries
/// of this node only with its lease: see [`close`](Self::close).
pub struct NatsBackplane {
    base: Arc<Base>,
    classes: Arc<Classes>,
    deliveries: Deliveries,
    /// Publications without history that must not be repeated.
    once: Arc<Stream>,
    fleet: Fleet,
    sessions: Sessions,
    presence: Arc<Presence>,
    lookout: JoinHandle<()>,
    /// Keeps the lease, and reaps those of others.
    maintenance: JoinHandle<()>,
}

impl NatsBackplane {
    /// Connects, checks that the server allows what is needed and that all nodes agree on how channels are spread.
    ///
    /// # Errors
    /// [`BackplaneError::Unavailable`] when NATS cannot be reached, [`BackplaneError::Protocol`] for settings that
    /// cannot work, wrong credentials or missing permissions.
    pub async fn connect(config: &NatsConfig) -> Result<Self, BackplaneError> {
        let base = Arc::new(Base::connect(config).await?);
        let classes = Arc::new(Classes::new(Arc::clone(&base)));
        let subjects = base.names.subject(&["o", ">"]);
        let once = base.stream(StreamSettings {
            name: base.names.stream("once"),
            copies: Some((subjects.clone(), base.names.live_all())),
            subject: subjects,
            per_subject: -1,
            max_age: Some(IDEMPOTENCY_TTL),
            ids_for: IDEMPOTENCY_TTL,
            message_ttls: false,
            is_fenced: false,
        });
        base.calls.call(once.ready()).await?;
        base.calls.call(classes.discover()).await?;
        let (fleet, sessions) = (Fleet::new(&base), Sessions::new(&base));
        base.calls.call(async { futures_util::try_join!(fleet.prepare(), sessions.prepare()) }).await?;
        let presence = Presence::register(&base, Arc::clone(&once)).await?;
        let deliveries = Deliveries::connect(&base, &classes).await?;
        let lookout = tokio::spawn(look(Arc::downgrade(&classes), Arc::clone(&base.config)));
        let maintenance = tokio::spawn(reaper::look_after(Arc::downgrade(&presence), base.config.lease_interval));
        Ok(Self { base, classes, deliveries, once, fleet, sessions, presence, lookout, maintenance })
    }

    /// Gives the presence lease up, so that nobody waits for its end, and closes the connections. Calls fail from now on.
    ///
    /// # Errors
    /// When the lease could not be given up; it ends by itself then.
    pub async fn close(&self) -> Result<(), BackplaneError> {
        self.lookout.abort();
        self.maintenance.abort();
        self.base.calls.access().health.close();
        let released = self.presence.release().await;
        self.deliveries.close();
        self.base.close();
        released
    }
}

impl Drop for NatsBackplane {
    fn drop(&mut self) {
        self.lookout.abort();
        self.maintenance.abort();
    }
}

/// Looks at the streams now and then: in a cluster they may get another leader, or be made anew, while this node's
/// connections last.
async fn look(classes: Weak<Classes>, config: Arc<NatsConfig>) {
    loop {
        tokio::time::sleep(config.liveness_interval).await;
        let Some(classes) = classes.upgrade() else { return };
        // Without a connection there is nothing to find.
        let _ = tokio::time::timeout(config.command_timeout, classes.discover()).await;
        for kept in classes.all() {
            if kept.stream.lineage().is_some_and(|lineage| lineage.is_clustered) {
                // A stream without a leader answers nothing.
                let _ = tokio::time::timeout(config.command_timeout, kept.stream.look()).await;
            }
        }
    }
}

impl fmt::Debug for NatsBackplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsBackplane").field("servers", &self.base.config.servers).finish_non_exhaustive()
    }
}

impl Backplane for NatsBackplane {
    /// # Panics
    /// When it is called a second time: the deliveries so far went elsewhere.
    fn attach(&self, sink: Arc<dyn Sink>) {
        assert!(self.base.sink.set(sink).is_ok(), "a backplane is attached to one sink only");
    }

    fn publish<'a>(
        &'a self,
        channel: &'a ChannelName,
        publication: NewPublication,
        options: PublishOptions,
    ) -> BackplaneFuture<'a, Published> {
        Box::pin(self.publish_now(channel, publication, options))
    }

    fn announce<'a>(&'a self, channel: &'a ChannelName, event: PresenceEvent) -> BackplaneFuture<'a, ()> {
        Box::pin(self.announce_now(channel, event))
    }

    fn subscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()> {
        Box::pin(self.deliveries.change(channels, true))
    }

    fn unsubscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()> {
        Box::pin(self.deliveries.change(channels, false))
    }

    fn history<'a>(
        &'a self,
        channel: &'a ChannelName,
        query: HistoryQuery,
        options: HistoryOptions,
    ) -> BackplaneFuture<'a, HistoryPage> {
        Box::pin(async move { self.read_now(channel, &query, options).await })
    }

    fn positions<'a>(
        &'a self,
        channels: &'a [(ChannelName, HistoryOptions)],
    ) -> BackplaneFuture<'a, Vec<StreamPosition>> {
        Box::pin(async move {
            let top = async |(channel, options): &(ChannelName, HistoryOptions)| {
                self.read_now(channel, &HistoryQuery::position(), *options).await.map(|page| page.top)
            };
            futures_util::stream::iter(channels.iter().map(top)).buffered(POSITIONS_AT_ONCE).try_collect().await
        })
    }

    fn remove_history<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, ()> {
        Box::pin(self.remove_now(channel))
    }

    fn status(&self) -> Status {
        self.base.calls.access().health.status()
    }
}
