//! The in-memory backplane: the default, for one node, with the same semantics as the others.
//!
//! Channels are spread over striped locks by a seeded hash of their names. A publish is one critical section of its
//! channel's stripe: idempotency lookup, version check, next offset, store, and the hand-over to the [`Sink`]. So the
//! order of offsets is the order of deliveries, and a read never sees half a publish.
//!
//! Time comes from an injected [`Clock`]. What has expired is invisible from that instant on, and freed when its channel
//! is used next or by [`MemoryBackplane::sweep`], which the node calls regularly. There is no thread and no runtime here:
//! every future is ready at once, and a call has taken effect when it returns its future.
//!
//! A stream ages as a whole: all of it is readable until `ttl` after its last publication.
//!
//! Payloads are kept as they are given. A `Bytes` that is a slice of a larger buffer keeps all of that buffer alive while
//! only the slice is counted, so what goes into history should own its bytes or share a buffer of its own size.

mod channel;
mod clock;
mod limits;
mod members;
mod order;
mod presence;
mod results;
mod sessions;
mod stream;
mod stripe;

use std::collections::hash_map::RandomState;
use std::fmt;
use std::future::ready;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

pub use clock::{Clock, ManualClock, MonotonicClock};
pub use limits::{IDEMPOTENCY_KEY_BYTES_MAX, MemoryLimits, MemoryStats};

use self::clock::Moment;
use self::limits::Counters;
use self::members::Fleet;
use self::order::Kind;
use self::sessions::Sessions;
use self::stripe::Stripe;
use crate::{
    Backplane, BackplaneError, BackplaneFuture, ChannelName, ClientId, ClientInfo, Delivery, HistoryOptions,
    HistoryPage, HistoryQuery, NewPublication, PresenceEvent, PresenceStats, PresenceStore, Publication,
    PublishOptions, PublishOutcome, Published, Sink, Status, StreamPosition,
};

/// Locks. Calls hold one for about a microsecond, so many more than cores make meeting there rare; 64 empty maps are
/// 15 KB.
const STRIPES: usize = 64;

/// Evictions tried for one publish before it is refused. One is enough unless many tiny streams give way to a large
/// publication; a refused publish has made room for its repetition.
const EVICTIONS_PER_PUBLISH: usize = 64;

/// Attempts to make room for one new channel: more than one only when another thread takes the place just freed.
const CHANNEL_ATTEMPTS: usize = 8;

/// Expired results freed by one publish to their channel: more than it adds, so that they become fewer.
const RESULTS_EXPIRED_PER_PUBLISH: usize = 4;

/// Streams, fan-out, presence, sessions and the fleet in this process's memory.
///
/// Dropping it drops everything: a new one has new epochs, so that clients of the old one are told the truth.
pub struct MemoryBackplane {
    stripes: Box<[Mutex<Stripe>]>,
    fleet: Mutex<Fleet>,
    sessions: Box<[Mutex<Sessions>]>,
    hasher: RandomState,
    limits: MemoryLimits,
    counters: Counters,
    clock: Arc<dyn Clock>,
    sink: OnceLock<Arc<dyn Sink>>,
    /// The stripe where the next sweep begins.
    sweep_next: AtomicUsize,
}

impl MemoryBackplane {
    /// An empty backplane on the machine's monotonic clock.
    pub fn new(limits: MemoryLimits) -> Self {
        Self::with_clock(limits, Arc::new(MonotonicClock::new()))
    }

    /// An empty backplane on the given clock.
    pub fn with_clock(limits: MemoryLimits, clock: Arc<dyn Clock>) -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            fleet: Mutex::default(),
            sessions: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            limits,
            counters: Counters::default(),
            clock,
            sink: OnceLock::new(),
            sweep_next: AtomicUsize::new(0),
        }
    }

    /// Frees what has expired: publications, epochs, idempotency results, members whose time to linger is over (whose
    /// leaves it announces) and the channels that thereby become empty; sessions, reports and leases.
    ///
    /// Does at most about `budget` units of work (one for each thing freed and each channel looked at) and locks one
    /// stripe at a time. Returns true when more is due: call it again soon. Once a second with a budget of 10,000 keeps
    /// up with 10,000 expiring things a second and holds no lock for more than some milliseconds.
    pub fn sweep(&self, budget: usize) -> bool {
        let mut left = budget;
        left -= self.fleet.lock().sweep(self.now(), left, &self.counters);
        for _ in 0..self.stripes.len() {
            if left == 0 {
                return true;
            }
            let index = self.sweep_next.load(Ordering::Relaxed) % self.stripes.len();
            let leave =
                |channel: &ChannelName, state: &channel::Channel, info| self.deliver_leave(channel, state, info);
            let mut work = self.stripes[index].lock().sweep(self.now(), left, &self.counters, leave);
            work += self.sessions[index].lock().sweep(self.now(), left.saturating_sub(work), &self.counters);
            if work >= left {
                return true;
            }
            left -= work;
            // Moving on only from a finished stripe: the next call goes on where this one ran out of budget.
            self.sweep_next.store(index + 1, Ordering::Relaxed);
        }
        false
    }

    /// What is held now, for metrics. Costs a few loads.
    pub fn stats(&self) -> MemoryStats {
        self.counters.snapshot()
    }

    /// The bounds this backplane was made with.
    pub fn limits(&self) -> MemoryLimits {
        self.limits
    }

    /// Forgets all streams, idempotency results, sessions, reports and leases at once, as a restart without persistence
    /// does. Subscriptions and presence stay; the sink is not told. For fault injection.
    pub fn forget(&self) {
        for sessions in &self.sessions {
            sessions.lock().forget(&self.counters);
        }
        self.fleet.lock().forget(&self.counters);
        for stripe in &self.stripes {
            stripe.lock().forget(&self.counters);
        }
    }

    fn now(&self) -> Moment {
        Moment::from(self.clock.now())
    }

    fn stripe(&self, channel: &str) -> MutexGuard<'_, Stripe> {
        self.stripes[self.stripe_of(channel)].lock()
    }

    fn stripe_of(&self, name: &str) -> usize {
        // The remainder is below the number of stripes, so the cast loses nothing that matters.
        self.hasher.hash_one(name) as usize % STRIPES
    }

    /// Locks the stripe of a channel that is in it, after making room for the channel if need be.
    fn stripe_with(&self, channel: &ChannelName) -> Result<MutexGuard<'_, Stripe>, BackplaneError> {
        for _ in 0..CHANNEL_ATTEMPTS {
            let mut stripe = self.stripe(channel);
            if stripe.ensure(channel, self.limits.channels, &self.counters) {
                return Ok(stripe);
            }
            drop(stripe);
            if !self.evict_channel() {
                break;
            }
        }
        Err(self.counters.refuse("channels", self.limits.channels))
    }

    /// Forgets the epoch that was used longest ago in a channel without subscribers, members and publications; if there
    /// is none, in one without subscribers and members.
    fn evict_channel(&self) -> bool {
        let bare = self.oldest(Kind::Bare, self.now());
        if bare.is_some_and(|channel| self.stripe(&channel).evict_stream(&channel, &self.counters)) {
            return true;
        }
        self.stripes.iter().any(|stripe| stripe.lock().evict_unpinned(&self.counters))
    }

    /// Evicts publications until `cost` more bytes fit.
    fn make_room(&self, cost: usize) -> Result<(), BackplaneError> {
        let limit = self.limits.history_bytes;
        if cost > limit {
            return Err(BackplaneError::Protocol(format!(
                "a publication of {cost} bytes does not fit memory limit history_bytes = {limit}"
            )));
        }
        for _ in 0..EVICTIONS_PER_PUBLISH {
            let wanted = self.counters.history_bytes.value() + cost;
            if wanted <= limit {
                return Ok(());
            }
            let Some(channel) = self.oldest(Kind::Stored, self.now()) else { break };
            self.stripe(&channel).evict_publications(&channel, wanted - limit, &self.counters);
        }
        if self.counters.history_bytes.value() + cost <= limit {
            return Ok(());
        }
        Err(self.counters.refuse("history_bytes", limit))
    }

    /// The channel whose stream of this kind was used longest ago. Asks one stripe after the other: 64 uncontended
    /// locks are a few microseconds, paid only at a limit.
    fn oldest(&self, kind: Kind, now: Moment) -> Option<ChannelName> {
        let oldest = self.stripes.iter().filter_map(|stripe| stripe.lock().oldest(kind, now)).min();
        oldest.map(|(_, channel)| channel)
    }

    fn deliver(&self, channel: &ChannelName, delivery: Delivery) {
        if let Some(sink) = self.sink.get() {
            sink.deliver(channel, delivery);
        }
    }

    fn publish_now(
        &self,
        channel: &ChannelName,
        publication: NewPublication,
        options: PublishOptions,
    ) -> Result<Published, BackplaneError> {
        let key = options.idempotency_key.as_deref();
        if key.is_some_and(|key| key.len() > IDEMPOTENCY_KEY_BYTES_MAX) {
            return Err(BackplaneError::Protocol(format!(
                "an idempotency key is longer than {IDEMPOTENCY_KEY_BYTES_MAX} bytes"
            )));
        }
        if options.history.is_none() && key.is_none() {
            let stripe = self.stripe(channel);
            if stripe.get(channel).is_some_and(|channel| channel.subscribed) {
                self.deliver(channel, unpositioned(publication));
            }
            return Ok(Published { position: None, outcome: PublishOutcome::Published });
        }
        if options.history.is_some() {
            self.make_room(stream::cost_bytes(&publication))?;
        }
        let mut stripe = self.stripe_with(channel)?;
        let changed = stripe.change(channel, &self.counters, |state, order| {
            let now = self.now();
            if let Some(key) = key {
                if let Some(position) = state.results.as_ref().and_then(|results| results.find(key, now)) {
                    return Ok(Published { position: position.clone(), outcome: PublishOutcome::Repeated });
                }
                state.expire_results(now, RESULTS_EXPIRED_PER_PUBLISH, &self.counters);
                if self.counters.idempotency_keys.value() >= self.limits.idempotency_keys {
                    return Err(self.counters.refuse("idempotency_keys", self.limits.idempotency_keys));
                }
            }
            let published = self.publish_in(channel, publication, &options, state, order, now);
            if let Some(key) = key {
                let results = state.results.get_or_insert_default();
                results.remember(key, published.position.clone(), now, &self.counters);
            }
            Ok(published)
        });
        changed.expect("stripe_with has added the channel")
    }

    /// The part of a publish after the idempotency lookup, inside the critical section.
    fn publish_in(
        &self,
        channel: &ChannelName,
        publication: NewPublication,
        options: &PublishOptions,
        state: &mut channel::Channel,
        order: &mut order::Order,
        now: Moment,
    ) -> Published {
        let subscribed = state.subscribed;
        let Some(history) = options.history else {
            if subscribed {
                self.deliver(channel, unpositioned(publication));
            }
            return Published { position: None, outcome: PublishOutcome::Published };
        };
        let stream = state.stream_at(now, order, channel, &self.counters);
        if stream.is_outdated(options.version, &options.version_epoch) {
            stream.touch(now, history);
            return Published { position: Some(stream.position()), outcome: PublishOutcome::Outdated };
        }
        stream.set_version(options.version, &options.version_epoch);
        let stored = stream.append(publication, history, now, &self.counters);
        let position = stream.position();
        if subscribed {
            let epoch = position.epoch.clone();
            let publication = stored.publication;
            self.deliver(channel, Delivery::Positioned { epoch, previous: stored.previous, publication });
        }
        Published { position: Some(position), outcome: PublishOutcome::Published }
    }

    fn read_now(
        &self,
        channel: &ChannelName,
        query: &HistoryQuery,
        options: HistoryOptions,
    ) -> Result<HistoryPage, BackplaneError> {
        let mut stripe = self.stripe_with(channel)?;
        let page = stripe.change(channel, &self.counters, |state, order| {
            let now = self.now();
            let stream = state.stream_at(now, order, channel, &self.counters);
            stream.touch(now, options);
            stream.read(query, now)
        });
        Ok(page.expect("stripe_with has added the channel"))
    }

    fn subscribe_now(&self, channels: &[ChannelName]) -> Result<(), BackplaneError> {
        let mut added = Vec::new();
        for channel in channels {
            let mut stripe = match self.stripe_with(channel) {
                Ok(stripe) => stripe,
                Err(error) => {
                    // All or nothing: the caller knows no half.
                    self.unsubscribe_now(&added);
                    return Err(error);
                }
            };
            let now = self.now();
            let before = stripe.change(channel, &self.counters, |state, order| {
                state.forget_expired(now, order, channel, &self.counters);
                std::mem::replace(&mut state.subscribed, true)
            });
            if before == Some(false) {
                self.counters.subscriptions.add(1);
                added.push(channel.clone());
            }
        }
        Ok(())
    }

    fn unsubscribe_now(&self, channels: &[ChannelName]) {
        for channel in channels {
            let mut stripe = self.stripe(channel);
            let now = self.now();
            let before = stripe.change(channel, &self.counters, |state, _| {
                let was_subscribed = std::mem::replace(&mut state.subscribed, false);
                if let Some(stream) = state.stream.as_mut().filter(|_| was_subscribed) {
                    stream.prolong(now);
                }
                was_subscribed
            });
            if before == Some(true) {
                self.counters.subscriptions.sub(1);
            }
        }
    }

    fn deliver_leave(&self, channel: &ChannelName, state: &channel::Channel, info: Arc<ClientInfo>) {
        if state.subscribed {
            self.deliver(channel, Delivery::Presence(PresenceEvent::Leave(info)));
        }
    }

    /// Changes a channel, if it is there, after those have left whose time to linger is over.
    fn change_members<R>(&self, channel: &ChannelName, change: impl FnOnce(&mut channel::Channel) -> R) -> Option<R> {
        self.change_members_in(&mut self.stripe(channel), channel, change)
    }

    fn change_members_in<R>(
        &self,
        stripe: &mut Stripe,
        channel: &ChannelName,
        change: impl FnOnce(&mut channel::Channel) -> R,
    ) -> Option<R> {
        stripe.change(channel, &self.counters, |state, _| {
            let left = state.take_left(self.now(), &self.counters);
            left.into_iter().for_each(|info| self.deliver_leave(channel, state, info));
            change(state)
        })
    }

    /// Says whether there was an entry.
    fn add_presence_now(&self, channel: &ChannelName, info: Arc<ClientInfo>) -> Result<bool, BackplaneError> {
        let mut stripe = self.stripe_with(channel)?;
        let limit = self.limits.presence_entries;
        let added = self.change_members_in(&mut stripe, channel, |state| {
            let present = state.members.as_ref().is_some_and(|members| members.contains(info.client));
            let allowed = present || self.counters.presence_entries.try_add_one(limit);
            allowed.then(|| state.members.get_or_insert_default().insert(info))
        });
        let added = added.expect("stripe_with has added the channel");
        added.ok_or_else(|| self.counters.refuse("presence_entries", limit))
    }

    fn linger_presence_now(&self, channel: &ChannelName, client: ClientId, grace: Duration) {
        let leaves = self.now().after(grace);
        self.change_members(channel, |state| {
            if let Some(members) = &mut state.members {
                members.linger(client, leaves);
            }
        });
    }

    fn remove_presence_now(&self, channel: &ChannelName, client: ClientId) {
        self.change_members(channel, |state| {
            let Some(members) = &mut state.members else { return };
            if members.remove(client) {
                self.counters.presence_entries.sub(1);
            }
            if members.is_empty() {
                state.members = None;
            }
        });
    }
}

fn unpositioned(publication: NewPublication) -> Delivery {
    let NewPublication { data, info, tags } = publication;
    Delivery::Unpositioned(Arc::new(Publication { offset: None, data, info, tags }))
}

impl Backplane for MemoryBackplane {
    /// # Panics
    /// When it is called a second time: the deliveries so far went elsewhere.
    fn attach(&self, sink: Arc<dyn Sink>) {
        assert!(self.sink.set(sink).is_ok(), "a backplane is attached to one sink only");
    }

    fn publish<'a>(
        &'a self,
        channel: &'a ChannelName,
        publication: NewPublication,
        options: PublishOptions,
    ) -> BackplaneFuture<'a, Published> {
        Box::pin(ready(self.publish_now(channel, publication, options)))
    }

    fn announce<'a>(&'a self, channel: &'a ChannelName, event: PresenceEvent) -> BackplaneFuture<'a, ()> {
        let stripe = self.stripe(channel);
        if stripe.get(channel).is_some_and(|channel| channel.subscribed) {
            self.deliver(channel, Delivery::Presence(event));
        }
        Box::pin(ready(Ok(())))
    }

    fn subscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()> {
        Box::pin(ready(self.subscribe_now(channels)))
    }

    fn unsubscribe<'a>(&'a self, channels: &'a [ChannelName]) -> BackplaneFuture<'a, ()> {
        self.unsubscribe_now(channels);
        Box::pin(ready(Ok(())))
    }

    fn history<'a>(
        &'a self,
        channel: &'a ChannelName,
        query: HistoryQuery,
        options: HistoryOptions,
    ) -> BackplaneFuture<'a, HistoryPage> {
        Box::pin(ready(self.read_now(channel, &query, options)))
    }

    fn positions<'a>(
        &'a self,
        channels: &'a [(ChannelName, HistoryOptions)],
    ) -> BackplaneFuture<'a, Vec<StreamPosition>> {
        let top = |(channel, options): &(ChannelName, HistoryOptions)| {
            self.read_now(channel, &HistoryQuery::position(), *options).map(|page| page.top)
        };
        Box::pin(ready(channels.iter().map(top).collect()))
    }

    fn remove_history<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, ()> {
        self.stripe(channel).change(channel, &self.counters, |state, _| {
            if let Some(stream) = &mut state.stream {
                stream.clear(&self.counters);
            }
        });
        Box::pin(ready(Ok(())))
    }

    fn status(&self) -> Status {
        Status { channels: self.stats().subscriptions as u64, ..Status::ALWAYS_UP }
    }
}

impl PresenceStore for MemoryBackplane {
    fn add_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, ()> {
        Box::pin(ready(self.add_presence_now(channel, info).map(|_| ())))
    }

    fn adopt_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, bool> {
        Box::pin(ready(self.add_presence_now(channel, info)))
    }

    fn linger_presence<'a>(
        &'a self,
        channel: &'a ChannelName,
        client: ClientId,
        grace: Duration,
    ) -> BackplaneFuture<'a, ()> {
        self.linger_presence_now(channel, client, grace);
        Box::pin(ready(Ok(())))
    }

    fn remove_presence<'a>(&'a self, channel: &'a ChannelName, client: ClientId) -> BackplaneFuture<'a, ()> {
        self.remove_presence_now(channel, client);
        Box::pin(ready(Ok(())))
    }

    fn presence<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, Vec<Arc<ClientInfo>>> {
        let list = |state: &mut channel::Channel| state.members.as_ref().map(|members| members.list());
        Box::pin(ready(Ok(self.change_members(channel, list).flatten().unwrap_or_default())))
    }

    fn presence_stats<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, PresenceStats> {
        let stats = |state: &mut channel::Channel| state.members.as_ref().map(|members| members.stats());
        Box::pin(ready(Ok(self.change_members(channel, stats).flatten().unwrap_or_default())))
    }
}

impl fmt::Debug for MemoryBackplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBackplane").field("limits", &self.limits).field("stats", &self.stats()).finish()
    }
}

#[cfg(test)]
mod tests;
