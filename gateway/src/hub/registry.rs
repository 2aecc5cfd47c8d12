//! Node-wide interest: for each channel, which shards want it and whether the backplane delivers it.
//!
//! ```text
//!            first shard interested                 acknowledged
//!   (absent) ----------------------> Subscribing ----------------> Active
//!      ^                                  | failed                   | last shard released
//!      |                                  v                          v
//!      +----------------------------- (absent) <--------------- Unsubscribing --> Subscribing, if wanted again
//! ```
//! One stripe's lock is the critical section that hands a delivery to every interested shard, so the order a
//! channel has in the backplane is the order each shard sees. No lock is held while the backplane is called.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use backplane::{ChannelName, Delivery, Disturbance, Offset, Sink, StreamPosition};
use parking_lot::Mutex;

use super::Outgoing;
use crate::shard::inbox::{Inbox, Item};

/// Enough stripes that two cores rarely meet, few enough that a scan over all of them is cheap.
const STRIPES: usize = 64;

/// The set of shards is one machine word.
pub const SHARDS_MAX: usize = 64;

/// Which shards want which channel.
pub struct Registry {
    stripes: Box<[Mutex<HashMap<ChannelName, Entry>>]>,
    hasher: RandomState,
    inboxes: Vec<Arc<Inbox>>,
}

#[derive(Debug)]
struct Entry {
    state: State,
    /// Bit n: shard n wants the channel. Never 0 while `Subscribing` or `Active`.
    shards: u64,
    /// The highest position that was handed out or read while active.
    top: Option<StreamPosition>,
    /// Whether a shard may start from `top`: a read has confirmed it. A delivery alone does not, as it may be repeated.
    confirmed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Subscribing,
    Active,
    Unsubscribing,
}

/// What a shard has to do after it declared interest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Interest {
    /// Deliveries flow from now on; the position before the first of them, if known.
    Active(Option<StreamPosition>),
    /// This shard is the first: call the backplane's `subscribe`, then [`Registry::subscribed`].
    Subscribe,
    /// Another call is under way: [`Item::Acknowledged`] will come.
    Wait,
}

impl Registry {
    /// A registry for these shards, at most [`SHARDS_MAX`].
    pub fn new(inboxes: Vec<Arc<Inbox>>) -> Self {
        assert!(inboxes.len() <= SHARDS_MAX, "at most {SHARDS_MAX} shards");
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        Self { stripes, hasher: RandomState::new(), inboxes }
    }

    /// A shard wants a channel. Every delivery after this call reaches its inbox.
    pub fn interest(&self, channel: &ChannelName, shard: usize) -> Interest {
        let mut stripe = self.stripe(channel).lock();
        let Some(entry) = stripe.get_mut(channel) else {
            stripe.insert(channel.clone(), Entry::new(shard));
            return Interest::Subscribe;
        };
        entry.shards |= 1 << shard;
        match entry.state {
            State::Active => Interest::Active(entry.top.clone().filter(|_| entry.confirmed)),
            State::Subscribing | State::Unsubscribing => Interest::Wait,
        }
    }

    /// The backplane acknowledged a subscribe, or refused it. Every other shard that waits is told through its inbox;
    /// true if the caller's own shard waits too.
    #[must_use]
    pub fn subscribed(&self, channel: &ChannelName, acknowledged: &Result<(), String>, own_shard: usize) -> bool {
        let mut stripe = self.stripe(channel).lock();
        let Some(entry) = stripe.get_mut(channel) else { return false };
        let shards = entry.shards;
        match acknowledged {
            Ok(()) => entry.state = State::Active,
            Err(_) => {
                stripe.remove(channel);
            }
        }
        for inbox in self.interested(shards & !(1 << own_shard)) {
            inbox.push_control(Item::Acknowledged(channel.clone(), acknowledged.clone()));
        }
        shards & (1 << own_shard) != 0
    }

    /// A shard no longer wants a channel. True if it was the last one: call the backplane's `unsubscribe`, then
    /// [`Registry::unsubscribed`].
    #[must_use]
    pub fn release(&self, channel: &ChannelName, shard: usize) -> bool {
        let mut stripe = self.stripe(channel).lock();
        let Some(entry) = stripe.get_mut(channel) else { return false };
        entry.shards &= !(1 << shard);
        if entry.shards != 0 || entry.state != State::Active {
            // While `Subscribing`, the subscribing shard is still interested, or releases after its acknowledgement.
            return false;
        }
        entry.state = State::Unsubscribing;
        true
    }

    /// The backplane answered an unsubscribe. True if the channel is wanted again: call `subscribe` anew.
    #[must_use]
    pub fn unsubscribed(&self, channel: &ChannelName) -> bool {
        let mut stripe = self.stripe(channel).lock();
        let Some(entry) = stripe.get_mut(channel) else { return false };
        if entry.shards == 0 {
            stripe.remove(channel);
            if stripe.capacity() > 1024 && stripe.len() < stripe.capacity() / 4 {
                let keep = stripe.len() * 2;
                stripe.shrink_to(keep);
            }
            return false;
        }
        entry.state = State::Subscribing;
        entry.top = None;
        entry.confirmed = false;
        true
    }

    /// A shard read this top from the backplane: other shards may start from it without a read of their own, as long as
    /// nothing else was handed out. A top below what was: either the read took its time or the stream has gone back. An
    /// epoch other than what was: either may be the old one. Whoever starts then reads for himself.
    pub fn observed(&self, channel: &ChannelName, position: &StreamPosition) {
        let mut stripe = self.stripe(channel).lock();
        let Some(entry) = stripe.get_mut(channel).filter(|entry| entry.state == State::Active) else { return };
        match &mut entry.top {
            Some(top) if top.epoch == position.epoch => {
                entry.confirmed = position.offset >= top.offset;
                top.offset = top.offset.max(position.offset);
            }
            Some(top) => {
                entry.confirmed = false;
                *top = position.clone();
            }
            None => {
                entry.confirmed = true;
                entry.top = Some(position.clone());
            }
        }
    }

    /// Channels with at least one interested shard.
    pub fn channels(&self) -> usize {
        self.stripes.iter().map(|stripe| stripe.lock().len()).sum()
    }

    fn stripe(&self, channel: &ChannelName) -> &Mutex<HashMap<ChannelName, Entry>> {
        &self.stripes[self.hasher.hash_one(channel.as_str()) as usize % STRIPES]
    }

    fn interested(&self, shards: u64) -> impl Iterator<Item = &Arc<Inbox>> {
        self.inboxes.iter().enumerate().filter(move |(index, _)| shards & (1 << index) != 0).map(|(_, inbox)| inbox)
    }
}

impl Entry {
    fn new(shard: usize) -> Self {
        Self { state: State::Subscribing, shards: 1 << shard, top: None, confirmed: false }
    }

    /// Only while the channel is active: a straggler of an interest that has ended says nothing about what was missed
    /// since.
    fn advance(&mut self, delivery: &Delivery) {
        if self.state != State::Active {
            return;
        }
        let Delivery::Positioned { epoch, publication, .. } = delivery else { return };
        let offset = publication.offset.unwrap_or(Offset(0));
        match &mut self.top {
            Some(top) if top.epoch == *epoch => top.offset = top.offset.max(offset),
            top => {
                *top = Some(StreamPosition { epoch: epoch.clone(), offset });
                self.confirmed = false;
            }
        }
    }
}

impl Sink for Registry {
    fn deliver(&self, channel: &ChannelName, delivery: Delivery) {
        let mut stripe = self.stripe(channel).lock();
        let Some(entry) = stripe.get_mut(channel) else { return };
        entry.advance(&delivery);
        let shards = entry.shards;
        let outgoing = Arc::new(Outgoing::new(channel.clone(), delivery, Instant::now()));
        for inbox in self.interested(shards) {
            inbox.push_delivery(outgoing.clone());
        }
    }

    fn disturbed(&self, disturbance: Disturbance) {
        // A top that was observed before may be stale: no shard starts from it any more.
        let shards = match &disturbance {
            Disturbance::Channel(channel) => match self.stripe(channel).lock().get_mut(channel) {
                Some(entry) => {
                    entry.confirmed = false;
                    entry.shards
                }
                None => 0,
            },
            Disturbance::All => {
                for stripe in &self.stripes {
                    stripe.lock().values_mut().for_each(|entry| entry.confirmed = false);
                }
                u64::MAX
            }
        };
        for inbox in self.interested(shards) {
            inbox.push_control(Item::Disturbed(disturbance.clone()));
        }
    }
}
