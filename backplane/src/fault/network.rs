//! Several nodes over one in-memory backplane.

use std::collections::HashMap;
use std::fmt;
use std::future::ready;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;

use crate::memory::MemoryBackplane;
use crate::{
    Backplane, BackplaneError, BackplaneFuture, ChannelName, ClientId, ClientInfo, Delivery, Disturbance,
    HistoryOptions, HistoryPage, HistoryQuery, Lease, Member, Members, NewPublication, NodeId, PresenceEvent,
    PresenceStats, PresenceStore, PublishOptions, Published, Sink, Status, StreamPosition,
};

/// One in-memory backplane that several nodes of one process share, as they would share a server. For simulations of a
/// cluster: give each node a [`NodeLink`], in a [`super::FaultyBackplane`] of its own to fault it alone.
#[derive(Debug)]
pub struct Network {
    backplane: Arc<MemoryBackplane>,
    router: Arc<Router>,
}

/// Hands every delivery to the nodes that subscribe its channel, in the order in which they were linked.
#[derive(Debug, Default)]
struct Router {
    /// Held while a node's subscriptions and the backplane's are changed together. Taken before `table` and before any
    /// lock of the backplane, never while delivering.
    changes: Mutex<()>,
    table: Mutex<Table>,
}

/// The number of a link, by which a list of them is sorted, and the sink of its node.
type Subscriber = (usize, Arc<dyn Sink>);

#[derive(Default)]
struct Table {
    subscribers: HashMap<ChannelName, Vec<Subscriber>>,
    links: usize,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("links", &self.links).field("channels", &self.subscribers.len()).finish()
    }
}

impl Network {
    /// Shares a backplane that has no sink yet.
    pub fn new(backplane: MemoryBackplane) -> Self {
        let router = Arc::new(Router::default());
        backplane.attach(Arc::clone(&router) as Arc<dyn Sink>);
        Self { backplane: Arc::new(backplane), router }
    }

    /// The shared backplane: to sweep it, or to make it forget.
    pub fn backplane(&self) -> &MemoryBackplane {
        &self.backplane
    }

    /// A link for one more node. Dropping it ends its subscriptions, as the death of a node does; the presence entries
    /// of the node stay.
    pub fn link(&self) -> NodeLink {
        let mut table = self.router.table.lock();
        table.links += 1;
        NodeLink {
            id: table.links,
            backplane: Arc::clone(&self.backplane),
            router: Arc::clone(&self.router),
            sink: OnceLock::new(),
        }
    }
}

impl Sink for Router {
    fn deliver(&self, channel: &ChannelName, delivery: Delivery) {
        if let Some(subscribers) = self.table.lock().subscribers.get(channel) {
            for (_, sink) in subscribers {
                sink.deliver(channel, delivery.clone());
            }
        }
    }

    /// Does not happen: the in-memory backplane is never disturbed. Faults are injected at the nodes.
    fn disturbed(&self, _disturbance: Disturbance) {}
}

/// One node's end of a [`Network`].
pub struct NodeLink {
    id: usize,
    backplane: Arc<MemoryBackplane>,
    router: Arc<Router>,
    sink: OnceLock<Arc<dyn Sink>>,
}

impl Table {
    /// Adds a node to a channel; says whether it was not there before.
    fn join(&mut self, channel: &ChannelName, id: usize, sink: &Arc<dyn Sink>) -> bool {
        let subscribers = self.subscribers.entry(channel.clone()).or_default();
        let place = subscribers.binary_search_by_key(&id, |(id, _)| *id);
        if let Err(place) = place {
            subscribers.insert(place, (id, Arc::clone(sink)));
        }
        place.is_err()
    }

    /// Takes a node out of channels; returns those of them that nobody subscribes any more.
    fn leave(&mut self, channels: &[ChannelName], id: usize) -> Vec<ChannelName> {
        let mut abandoned = Vec::new();
        for channel in channels {
            let Some(subscribers) = self.subscribers.get_mut(channel) else { continue };
            subscribers.retain(|(of, _)| *of != id);
            if subscribers.is_empty() {
                self.subscribers.remove(channel);
                abandoned.push(channel.clone());
            }
        }
        abandoned
    }
}

impl NodeLink {
    fn subscribe_now(&self, channels: &[ChannelName]) -> Result<(), BackplaneError> {
        let _changes = self.router.changes.lock();
        let Some(sink) = self.sink.get() else { return Ok(()) };
        // First the table, then the backplane: from its acknowledgement on nothing may be missed.
        let added: Vec<_> = {
            let mut table = self.router.table.lock();
            channels.iter().filter(|channel| table.join(channel, self.id, sink)).cloned().collect()
        };
        let outcome = at_once(self.backplane.subscribe(channels));
        if outcome.is_err() {
            self.router.table.lock().leave(&added, self.id);
        }
        outcome
    }

    fn unsubscribe_now(&self, channels: &[ChannelName]) -> Result<(), BackplaneError> {
        let _changes = self.router.changes.lock();
        let abandoned = self.router.table.lock().leave(channels, self.id);
        at_once(self.backplane.unsubscribe(&abandoned))
    }
}

fn at_once(call: BackplaneFuture<'_, ()>) -> Result<(), BackplaneError> {
    call.now_or_never().expect("futures of the in-memory backplane are ready at once")
}

impl Drop for NodeLink {
    fn drop(&mut self) {
        let channels: Vec<_> = self.router.table.lock().subscribers.keys().cloned().collect();
        // It cannot fail: giving up subscriptions needs no room.
        let _ = self.unsubscribe_now(&channels);
    }
}

impl Backplane for NodeLink {
    fn attach(&self, sink: Arc<dyn Sink>) {
        assert!(self.sink.set(sink).is_ok(), "a backplane is attached to one sink only");
    }

    fn publish<'a>(
        &'a self,
        channel: &'a ChannelName,
        publication: NewPublication,
        options: PublishOptions,
    ) -> BackplaneFuture<'a, Published> {
        self.backplane.publish(channel, publication, options)
    }

    fn announce<'a>(&'a self, channel: &'a ChannelName, event: PresenceEvent) -> BackplaneFuture<'a, ()> {
        self.backplane.announce(channel, event)
    }

    fn subscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()> {
        Box::pin(ready(self.subscribe_now(channels)))
    }

    fn unsubscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()> {
        Box::pin(ready(self.unsubscribe_now(channels)))
    }

    fn history<'a>(
        &'a self,
        channel: &'a ChannelName,
        query: HistoryQuery,
        options: HistoryOptions,
    ) -> BackplaneFuture<'a, HistoryPage> {
        self.backplane.history(channel, query, options)
    }

    fn positions<'a>(
        &'a self,
        channels: &'a [(ChannelName, HistoryOptions)],
    ) -> BackplaneFuture<'a, Vec<StreamPosition>> {
        self.backplane.positions(channels)
    }

    fn remove_history<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, ()> {
        self.backplane.remove_history(channel)
    }

    fn status(&self) -> Status {
        self.backplane.status()
    }
}

impl PresenceStore for NodeLink {
    fn add_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, ()> {
        self.backplane.add_presence(channel, info)
    }

    fn adopt_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, bool> {
        self.backplane.adopt_presence(channel, info)
    }

    fn linger_presence<'a>(
        &'a self,
        channel: &'a ChannelName,
        client: ClientId,
        grace: Duration,
    ) -> BackplaneFuture<'a, ()> {
        self.backplane.linger_presence(channel, client, grace)
    }

    fn remove_presence<'a>(&'a self, channel: &'a ChannelName, client: ClientId) -> BackplaneFuture<'a, ()> {
        self.backplane.remove_presence(channel, client)
    }

    fn presence<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, Vec<Arc<ClientInfo>>> {
        self.backplane.presence(channel)
    }

    fn presence_stats<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, PresenceStats> {
        self.backplane.presence_stats(channel)
    }
}

impl fmt::Debug for NodeLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeLink").field("id", &self.id).finish_non_exhaustive()
    }
}

/// All nodes of a network are one fleet; an injected fault does not touch what they know of each other.
impl Members for NodeLink {
    fn report<'a>(&'a self, node: NodeId, report: Bytes) -> BackplaneFuture<'a, ()> {
        self.backplane.report(node, report)
    }

    fn withdraw<'a>(&'a self, node: NodeId) -> BackplaneFuture<'a, ()> {
        self.backplane.withdraw(node)
    }

    fn members<'a>(&'a self) -> BackplaneFuture<'a, Vec<Member>> {
        self.backplane.members()
    }

    fn member_ages<'a>(&'a self) -> BackplaneFuture<'a, Vec<(NodeId, Duration)>> {
        self.backplane.member_ages()
    }

    fn hold_lease<'a>(&'a self, name: &'a str, holder: NodeId, ttl: Duration) -> BackplaneFuture<'a, Lease> {
        self.backplane.hold_lease(name, holder, ttl)
    }

    fn release_lease<'a>(&'a self, name: &'a str, holder: NodeId) -> BackplaneFuture<'a, ()> {
        self.backplane.release_lease(name, holder)
    }
}
