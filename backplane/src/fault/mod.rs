//! Faults injected around any backplane, for tests and simulations.
//!
//! A [`FaultyBackplane`] stands between a node and its backplane. Every fault is ordered by a method, or by chance from a
//! seed ([`FaultPolicy`]); there is no clock and no runtime in it, so it works on virtual time. A paused call is a future
//! that is woken when the pause ends. For several nodes over one in-memory backplane see [`Network`].

mod calls;
mod network;
mod outlet;
mod policy;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use network::{Network, NodeLink};
pub use policy::FaultPolicy;

use self::calls::Calls;
use self::outlet::{Fault, Outlet};
use crate::memory::MemoryBackplane;
use crate::{
    Backplane, BackplaneFuture, ChannelName, ClientId, ClientInfo, Disturbance, HistoryOptions, HistoryPage,
    HistoryQuery, NewPublication, PresenceEvent, PresenceStats, PresenceStore, PublishOptions, Published, Sink, Status,
    StreamPosition,
};

/// What calls do while the backplane is paused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pause {
    /// They wait until the pause ends and are carried out then: a server that stalls.
    Hang,
    /// They fail at once and have no effect: a server that cannot be reached.
    Refuse,
}

/// How a call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The request was lost: nothing happened.
    BeforeEffect,
    /// The answer was lost: it happened, and the caller cannot know.
    AfterEffect,
}

/// In which order held deliveries are handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Release {
    /// As they came.
    InOrder,
    /// The last one first.
    Reversed,
}

/// How many faults have happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultCounts {
    /// Calls that were answered with an injected error.
    pub failed: u64,
    /// Deliveries that were lost, in a cut too.
    pub dropped: u64,
    /// Deliveries that were made twice.
    pub duplicated: u64,
    /// Deliveries that were held back.
    pub held: u64,
    /// Held deliveries that were handed over later.
    pub released: u64,
}

/// A backplane with faults on demand. Without orders it behaves like the one inside.
pub struct FaultyBackplane<B> {
    inner: B,
    calls: Calls,
    outlet: Arc<Outlet>,
}

impl<B: Backplane> FaultyBackplane<B> {
    /// Wraps a backplane that has no sink yet.
    pub fn new(inner: B) -> Self {
        Self { inner, calls: Calls::default(), outlet: Arc::default() }
    }

    /// The backplane inside, to be used past all faults.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    /// From now on calls hang or fail, until [`Self::resume`]. Calls that hang already fail if this says so.
    /// Deliveries go on; see [`Self::cut`].
    pub fn pause(&self, pause: Pause) {
        self.calls.pause(pause);
    }

    /// Ends a pause; hanging calls are woken in the order in which they came.
    pub fn resume(&self) {
        self.calls.resume();
    }

    /// Calls that hang in a pause now.
    pub fn hanging(&self) -> usize {
        self.calls.hanging()
    }

    /// Lets the next calls fail, after those ordered before. Calls that a pause refuses do not count.
    pub fn fail_next(&self, calls: usize, failure: Failure) {
        self.calls.fail_next(calls, failure);
    }

    /// Loses the next deliveries of a channel. Orders for one channel are carried out one after another.
    pub fn drop_next(&self, channel: &ChannelName, deliveries: usize) {
        self.outlet.order(channel, Fault::Drop, deliveries);
    }

    /// Makes the next deliveries of a channel twice.
    pub fn duplicate_next(&self, channel: &ChannelName, deliveries: usize) {
        self.outlet.order(channel, Fault::Duplicate, deliveries);
    }

    /// Holds the next deliveries of a channel back until a release; later ones overtake them.
    pub fn hold_next(&self, channel: &ChannelName, deliveries: usize) {
        self.outlet.order(channel, Fault::Hold, deliveries);
    }

    /// Hands over what is held of a channel and returns how many deliveries that were.
    pub fn release(&self, channel: &ChannelName, release: Release) -> usize {
        self.outlet.release(Some(channel), release)
    }

    /// Hands over what is held of every channel, in the order of their names, and returns how many deliveries that
    /// were.
    pub fn release_all(&self, release: Release) -> usize {
        self.outlet.release(None, release)
    }

    /// Loses all deliveries from now on, silently, until [`Self::heal`].
    pub fn cut(&self) {
        self.outlet.set_cut(true);
    }

    /// Ends a cut and tells the node, as a backplane does that has noticed and connected again.
    pub fn heal(&self) {
        self.outlet.set_cut(false);
        self.disturb(Disturbance::All);
    }

    /// Tells the node that deliveries may be missing.
    pub fn disturb(&self, disturbance: Disturbance) {
        self.outlet.disturbed(disturbance);
    }

    /// Lets faults happen by chance from now on, where none is ordered; `None` ends that. What is held then stays held
    /// until a release.
    pub fn set_policy(&self, policy: Option<FaultPolicy>) {
        self.calls.set_policy(policy);
        self.outlet.set_policy(policy);
    }

    /// How many faults have happened so far.
    pub fn counts(&self) -> FaultCounts {
        FaultCounts { failed: self.calls.failed(), ..self.outlet.counts() }
    }
}

impl FaultyBackplane<MemoryBackplane> {
    /// Restarts the backplane without persistence: all streams are gone, their epochs too, and the node is told.
    pub fn restart(&self) {
        self.inner.forget();
        self.disturb(Disturbance::All);
    }
}

impl<B: Backplane> Backplane for FaultyBackplane<B> {
    fn attach(&self, sink: Arc<dyn Sink>) {
        self.outlet.attach(sink);
        self.inner.attach(Arc::clone(&self.outlet) as Arc<dyn Sink>);
    }

    fn publish<'a>(
        &'a self,
        channel: &'a ChannelName,
        publication: NewPublication,
        options: PublishOptions,
    ) -> BackplaneFuture<'a, Published> {
        Box::pin(async move {
            let fate = self.calls.enter().await?;
            fate.apply(self.inner.publish(channel, publication, options).await)
        })
    }

    fn announce<'a>(&'a self, channel: &'a ChannelName, event: PresenceEvent) -> BackplaneFuture<'a, ()> {
        Box::pin(async move {
            let fate = self.calls.enter().await?;
            fate.apply(self.inner.announce(channel, event).await)
        })
    }

    fn subscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()> {
        Box::pin(async move {
            let fate = self.calls.enter().await?;
            fate.apply(self.inner.subscribe(channels).await)
        })
    }

    fn unsubscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()> {
        Box::pin(async move {
            let fate = self.calls.enter().await?;
            fate.apply(self.inner.unsubscribe(channels).await)
        })
    }

    fn history<'a>(
        &'a self,
        channel: &'a ChannelName,
        query: HistoryQuery,
        options: HistoryOptions,
    ) -> BackplaneFuture<'a, HistoryPage> {
        Box::pin(async move {
            let fate = self.calls.enter().await?;
            fate.apply(self.inner.history(channel, query, options).await)
        })
    }

    fn positions<'a>(
        &'a self,
        channels: &'a [(ChannelName, HistoryOptions)],
    ) -> BackplaneFuture<'a, Vec<StreamPosition>> {
        Box::pin(async move {
            let fate = self.calls.enter().await?;
            fate.apply(self.inner.positions(channels).await)
        })
    }

    fn remove_history<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, ()> {
        Box::pin(async move {
            let fate = self.calls.enter().await?;
            fate.apply(self.inner.remove_history(channel).await)
        })
    }

    fn status(&self) -> Status {
        self.inner.status()
    }
}

impl<B: Backplane> PresenceStore for FaultyBackplane<B> {
    fn add_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, ()> {
        Box::pin(async move {
            let fate = self.calls.enter().await?;
            fate.apply(self.inner.add_presence(channel, info).await)
        })
    }

    fn adopt_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, bool> {
        Box::pin(async move {
            let fate = self.calls.enter().await?;
            fate.apply(self.inner.adopt_presence(channel, info).await)
        })
    }

    fn linger_presence<'a>(
        &'a self,
        channel: &'a ChannelName,
        client: ClientId,
        grace: Duration,
    ) -> BackplaneFuture<'a, ()> {
        Box::pin(async move {
            let fate = self.calls.enter().await?;
            fate.apply(self.inner.linger_presence(channel, client, grace).await)
        })
    }

    fn remove_presence<'a>(&'a self, channel: &'a ChannelName, client: ClientId) -> BackplaneFuture<'a, ()> {
        Box::pin(async move {
            let fate = self.calls.enter().await?;
            fate.apply(self.inner.remove_presence(channel, client).await)
        })
    }

    fn presence<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, Vec<Arc<ClientInfo>>> {
        Box::pin(async move {
            let fate = self.calls.enter().await?;
            fate.apply(self.inner.presence(channel).await)
        })
    }

    fn presence_stats<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, PresenceStats> {
        Box::pin(async move {
            let fate = self.calls.enter().await?;
            fate.apply(self.inner.presence_stats(channel).await)
        })
    }
}

impl<B: fmt::Debug> fmt::Debug for FaultyBackplane<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyBackplane").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
