//! One stripe of the channels: those whose names hash to the same lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::channel::Channel;
use super::clock::Moment;
use super::limits::Counters;
use super::order::{Kind, Order};
use super::presence::shrink;
use crate::{ChannelName, ClientInfo};

/// Corrections of filed times in one search for the stream used longest ago. Each is paid for by a use since the last
/// search, but a single search must not pay for all of them; when they run out the answer is only roughly the oldest.
const CORRECTIONS_MAX: usize = 32;

/// Publications dropped in one step of an eviction, so that the stripe's lock is not held for long.
const EVICTIONS_PER_STEP: usize = 256;

/// The map is seeded (channel names are chosen by clients). Changes go through `change`, which keeps the
/// orders and the channel count in step with the map.
#[derive(Debug, Default)]
pub(super) struct Stripe {
    channels: HashMap<ChannelName, Channel>,
    order: Order,
}

impl Stripe {
    pub(super) fn get(&self, name: &str) -> Option<&Channel> {
        self.channels.get(name)
    }

    /// Changes a channel, if it is there.
    pub(super) fn change<R>(
        &mut self,
        name: &ChannelName,
        counters: &Counters,
        change: impl FnOnce(&mut Channel, &mut Order) -> R,
    ) -> Option<R> {
        let channel = self.channels.get_mut(name)?;
        let result = change(channel, &mut self.order);
        self.order.file(name, channel);
        if channel.holds_nothing() {
            self.channels.remove(name);
            counters.channels.sub(1);
            shrink(&mut self.channels);
        }
        Some(result)
    }

    /// Adds a channel that holds nothing yet, to be changed at once. `false`: it is not there and the limit does not
    /// allow another one.
    pub(super) fn ensure(&mut self, name: &ChannelName, limit: usize, counters: &Counters) -> bool {
        if self.channels.contains_key(name) {
            return true;
        }
        let allowed = counters.channels.try_add_one(limit);
        if allowed {
            self.channels.insert(name.clone(), Channel::new());
        }
        allowed
    }

    /// Frees what has expired, at most about `budget` things; returns the work done. Less than `budget` means that
    /// nothing more is due. `left` is called for every member whose time to linger is over.
    pub(super) fn sweep(
        &mut self,
        now: Moment,
        budget: usize,
        counters: &Counters,
        left: impl Fn(&ChannelName, &Channel, Arc<ClientInfo>),
    ) -> usize {
        let mut work = 0;
        while work < budget {
            let Some(name) = self.order.due(now) else { break };
            let freed = self.change(&name, counters, |channel, order| {
                let gone = channel.take_left(now, counters);
                let freed = gone.len() + channel.expire(now, budget - work, order, &name, counters);
                gone.into_iter().for_each(|info| left(&name, channel, info));
                let next = channel.next_expiry();
                order.set_timer(&name, channel, next);
                freed
            });
            debug_assert!(freed.is_some(), "a filed channel is in the map");
            work += 1 + freed.unwrap_or(0);
        }
        work
    }

    /// The stream of this kind that was used longest ago, roughly, and when. With [`Kind::Bare`] only a channel that
    /// holds nothing else; subscribers and members are a use.
    pub(super) fn oldest(&mut self, kind: Kind, now: Moment) -> Option<(Moment, ChannelName)> {
        for _ in 0..CORRECTIONS_MAX {
            let (filed, name) = self.order.first(kind).cloned()?;
            let channel = self.channels.get_mut(&name)?;
            let pinned = kind == Kind::Bare && !channel.holds_at_most_stream();
            let stream = channel.stream.as_mut()?;
            if pinned {
                stream.last_used = now;
            } else if stream.last_used == filed {
                return Some((filed, name));
            }
            self.order.refile(&name, stream);
        }
        // Out of corrections: a stream with publications may be evicted all the same, a pinned channel may not.
        self.order.first(kind).filter(|_| kind == Kind::Stored).cloned()
    }

    /// Drops the oldest publications of a channel until `need` bytes are free; returns how many bytes that freed.
    pub(super) fn evict_publications(&mut self, name: &ChannelName, need: usize, counters: &Counters) -> usize {
        let freed = self.change(name, counters, |channel, _| {
            let Some(stream) = &mut channel.stream else { return 0 };
            let mut freed = 0;
            for _ in 0..EVICTIONS_PER_STEP {
                if freed >= need || stream.is_bare() {
                    break;
                }
                freed += stream.pop_oldest(counters);
                counters.publications_evicted.fetch_add(1, Ordering::Relaxed);
            }
            freed
        });
        freed.unwrap_or(0)
    }

    /// Forgets the stream of a channel that holds nothing else, and thereby the channel; says whether it did.
    pub(super) fn evict_stream(&mut self, name: &ChannelName, counters: &Counters) -> bool {
        let evicted = self.change(name, counters, |channel, order| {
            let evictable = channel.holds_at_most_stream();
            if evictable {
                channel.drop_stream(order, name, counters);
                counters.streams_evicted.fetch_add(1, Ordering::Relaxed);
            }
            evictable
        });
        evicted.unwrap_or(false)
    }

    /// Forgets the stream of a channel with publications and without subscribers and members, one of those used longest
    /// ago; says whether there was one. Looks past channels that are in use, all of them if need be.
    pub(super) fn evict_unpinned(&mut self, counters: &Counters) -> bool {
        let unpinned = |name: &&ChannelName| self.channels.get(*name).is_some_and(Channel::holds_at_most_stream);
        let Some(name) = self.order.stored().find(unpinned).cloned() else { return false };
        self.evict_stream(&name, counters)
    }

    /// Forgets all streams and results of idempotency keys; subscriptions and members stay.
    pub(super) fn forget(&mut self, counters: &Counters) {
        let names: Vec<_> = self.channels.keys().cloned().collect();
        for name in names {
            self.change(&name, counters, |channel, order| {
                channel.drop_stream(order, &name, counters);
                channel.drop_results(counters);
            });
        }
    }

    /// Checks what must hold between calls: orders, counts and map agree. For tests.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let timed = self.channels.values().filter(|channel| channel.next_expiry() != Moment::NEVER).count();
        let streams = self.channels.values().filter_map(|channel| channel.stream.as_ref());
        let (bare, stored): (Vec<_>, Vec<_>) = streams.partition(|stream| stream.is_bare());
        assert_eq!(self.order.lens(), (timed, stored.len(), bare.len()), "everything is filed once");
        for channel in self.channels.values() {
            assert!(!channel.holds_nothing(), "an empty channel leaves the map");
            assert!(channel.timer <= channel.next_expiry(), "a timer is never late");
        }
    }
}
