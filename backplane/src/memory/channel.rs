//! Everything about one channel.

use std::sync::Arc;

use super::clock::Moment;
use super::limits::Counters;
use super::order::Order;
use super::presence::Members;
use super::results::Results;
use super::stream::Stream;
use crate::{ChannelName, ClientInfo};

/// A field is `None` when there is nothing to hold, and a channel with nothing at all is not in the map.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) subscribed: bool,
    pub(super) stream: Option<Box<Stream>>,
    pub(super) members: Option<Box<Members>>,
    pub(super) results: Option<Box<Results>>,
    /// When this channel is filed among the timers; `NEVER` when it is not. Written only by [`Order`].
    pub(super) timer: Moment,
}

impl Channel {
    pub(super) fn new() -> Self {
        Self { subscribed: false, stream: None, members: None, results: None, timer: Moment::NEVER }
    }

    /// The stream as of now: a new one when there was none, or when its epoch had to be forgotten.
    pub(super) fn stream_at(
        &mut self,
        now: Moment,
        order: &mut Order,
        name: &ChannelName,
        counters: &Counters,
    ) -> &mut Stream {
        self.forget_expired(now, order, name, counters);
        self.stream.get_or_insert_with(|| Box::new(Stream::new(now, counters)))
    }

    /// Forgets the stream if it was not used for long enough. A subscription uses it all the time.
    pub(super) fn forget_expired(&mut self, now: Moment, order: &mut Order, name: &ChannelName, counters: &Counters) {
        if !self.subscribed && self.stream.as_ref().is_some_and(|stream| stream.is_forgotten(now)) {
            self.drop_stream(order, name, counters);
        }
    }

    /// Forgets the stream, epoch included.
    pub(super) fn drop_stream(&mut self, order: &mut Order, name: &ChannelName, counters: &Counters) {
        if let Some(mut stream) = self.stream.take() {
            order.unfile(name, &mut stream);
            stream.clear(counters);
            counters.streams.sub(1);
        }
    }

    /// Forgets all remembered results.
    pub(super) fn drop_results(&mut self, counters: &Counters) {
        if let Some(results) = self.results.take() {
            counters.idempotency_keys.sub(results.len());
        }
    }

    /// Frees what has expired, at most `budget` things; returns how many it freed.
    pub(super) fn expire(
        &mut self,
        now: Moment,
        budget: usize,
        order: &mut Order,
        name: &ChannelName,
        counters: &Counters,
    ) -> usize {
        let mut work = self.expire_results(now, budget, counters);
        if let Some(stream) = &mut self.stream {
            work += stream.expire(now, budget - work, counters);
            if stream.is_bare() && !self.subscribed && stream.is_forgotten(now) {
                self.drop_stream(order, name, counters);
            }
        }
        work
    }

    /// Frees expired results of idempotency keys, at most `budget`; returns how many it freed.
    pub(super) fn expire_results(&mut self, now: Moment, budget: usize, counters: &Counters) -> usize {
        let Some(results) = &mut self.results else { return 0 };
        let work = results.expire(now, budget, counters);
        if results.is_empty() {
            self.results = None;
        }
        work
    }

    /// Removes the members whose time to linger is over, and returns them: their leaves are due.
    pub(super) fn take_left(&mut self, now: Moment, counters: &Counters) -> Vec<Arc<ClientInfo>> {
        let Some(members) = &mut self.members else { return Vec::new() };
        let left = members.take_left(now);
        if !left.is_empty() {
            counters.presence_entries.sub(left.len());
            if members.is_empty() {
                self.members = None;
            }
        }
        left
    }

    /// When something in this channel expires next.
    pub(super) fn next_expiry(&self) -> Moment {
        let stream = self.stream.as_ref().map_or(Moment::NEVER, |stream| stream.next_expiry(self.subscribed));
        let results = self.results.as_ref().map_or(Moment::NEVER, |results| results.next_expiry());
        let members = self.members.as_ref().map_or(Moment::NEVER, |members| members.next_leave());
        stream.min(results).min(members)
    }

    pub(super) fn holds_nothing(&self) -> bool {
        self.stream.is_none() && self.holds_at_most_stream()
    }

    /// True when dropping the stream frees the whole channel: nobody would notice but a returning client.
    pub(super) fn holds_at_most_stream(&self) -> bool {
        !self.subscribed && self.members.is_none() && self.results.is_none()
    }
}
