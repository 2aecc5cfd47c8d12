//! The subscriptions of one session, small because most sessions sit idle with one of them.

use std::sync::Arc;

use backplane::{ChannelName, ClientInfo};
use bytes::Bytes;

use crate::io::{Kept, Overrides};
use crate::time::Tick;

/// Properties of a subscription, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Flags(u16);

impl Flags {
    /// Made by a token or the server; a lost position closes the connection.
    pub const SERVER_SIDE: Self = Self(1);
    /// The hub keeps its position.
    pub const POSITIONED: Self = Self(1 << 1);
    /// The client may recover it.
    pub const RECOVERABLE: Self = Self(1 << 2);
    /// It has a presence entry, to be removed exactly once.
    pub const PRESENCE: Self = Self(1 << 3);
    /// It emits join and leave.
    pub const JOIN_LEAVE: Self = Self(1 << 4);
    /// Its join was announced, so its leave is due exactly once.
    pub const ANNOUNCED: Self = Self(1 << 5);
    /// It receives the join and leave of others.
    pub const PUSH_JOIN_LEAVE: Self = Self(1 << 6);
    /// It has expired, and a proxy is asked whether it may go on.
    pub const REFRESHING: Self = Self(1 << 7);
    /// Made by the server API.
    pub const DYNAMIC: Self = Self(1 << 8);

    pub fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    pub fn set(&mut self, flag: Self) {
        self.0 |= flag.0;
    }

    pub fn clear(&mut self, flag: Self) {
        self.0 &= !flag.0;
    }

    /// This set with a flag added if wanted.
    pub fn with(mut self, flag: Self, wanted: bool) -> Self {
        if wanted {
            self.set(flag);
        }
        self
    }
}

/// One subscription: 32 bytes, the name shared with the hub.
#[derive(Debug)]
pub(crate) struct Entry {
    pub channel: ChannelName,
    pub flags: Flags,
    /// What few subscriptions have.
    extra: Option<Box<Extra>>,
}

/// At least one of the two is there, else the entry has no extra.
#[derive(Debug)]
struct Extra {
    /// The connection's info plus the subscription's own `chan_info`.
    info: Option<Arc<ClientInfo>>,
    /// When it ends unless refreshed, grace included; [`Tick::NEVER`] if it does not.
    expiry: Tick,
}

impl Entry {
    pub fn new(channel: ChannelName, flags: Flags, info: Option<Arc<ClientInfo>>, expiry: Tick) -> Self {
        let mut entry = Self { channel, flags, extra: None };
        entry.set_extra(info, expiry);
        entry
    }

    pub fn set_extra(&mut self, info: Option<Arc<ClientInfo>>, expiry: Tick) {
        let needed = info.is_some() || expiry != Tick::NEVER;
        self.extra = needed.then(|| Box::new(Extra { info, expiry }));
    }

    /// The client's info in this channel, where it differs from that of the connection.
    pub fn info(&self) -> Option<&Arc<ClientInfo>> {
        self.extra.as_ref()?.info.as_ref()
    }

    pub fn expiry(&self) -> Tick {
        self.extra.as_ref().map_or(Tick::NEVER, |extra| extra.expiry)
    }

    /// What is kept of it for the client's return.
    pub fn kept(&self) -> Kept {
        let has = |flag| Some(self.flags.has(flag));
        let expiry = self.expiry();
        Kept {
            channel: self.channel.clone(),
            presence: self.flags.has(Flags::PRESENCE),
            dynamic: self.flags.has(Flags::DYNAMIC),
            info: self.info().map(|info| info.chan_info.clone()).unwrap_or_default(),
            ends: (expiry != Tick::NEVER).then_some(expiry),
            overrides: Overrides {
                presence: has(Flags::PRESENCE),
                join_leave: has(Flags::JOIN_LEAVE),
                force_recovery: has(Flags::RECOVERABLE),
                force_positioning: has(Flags::POSITIONED),
                force_push_join_leave: has(Flags::PUSH_JOIN_LEAVE),
            },
        }
    }

    /// Carries a new connection info over to the info of this subscription.
    pub fn set_conn_info(&mut self, conn_info: &Bytes) {
        if let Some(info) = self.extra.as_mut().and_then(|extra| extra.info.as_mut()) {
            *info = with_conn_info(info, conn_info);
        }
    }
}

/// The same client with another connection info.
pub(crate) fn with_conn_info(info: &ClientInfo, conn_info: &Bytes) -> Arc<ClientInfo> {
    Arc::new(ClientInfo { conn_info: conn_info.clone(), ..info.clone() })
}

/// The same client in a channel where it has an info of its own; `None` when it has not.
pub(crate) fn with_chan_info(info: &ClientInfo, chan_info: Bytes) -> Option<Arc<ClientInfo>> {
    (!chan_info.is_empty()).then(|| Arc::new(ClientInfo { chan_info, ..info.clone() }))
}

/// Subscriptions sorted by channel. At most `channels_per_connection` of them, which the callers see to.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions(Vec<Entry>);

impl Subscriptions {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn get(&self, channel: &str) -> Option<&Entry> {
        self.find(channel).ok().map(|index| &self.0[index])
    }

    pub fn get_mut(&mut self, channel: &str) -> Option<&mut Entry> {
        self.find(channel).ok().map(|index| &mut self.0[index])
    }

    /// Adds an entry; the caller has made sure that the channel has none.
    pub fn insert(&mut self, entry: Entry) {
        match self.find(&entry.channel) {
            Ok(index) => debug_assert!(false, "{} is subscribed twice", self.0[index].channel),
            Err(index) => {
                if self.0.len() == self.0.capacity() {
                    // A vector would start with room for four, three too many for the common session.
                    self.0.reserve_exact(self.0.len().max(1));
                }
                self.0.insert(index, entry);
            }
        }
    }

    pub fn remove(&mut self, channel: &str) -> Option<Entry> {
        let index = self.find(channel).ok()?;
        let entry = self.0.remove(index);
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
        Some(entry)
    }

    /// Takes everything out and frees the memory.
    pub fn take(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.0)
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Entry> {
        self.0.iter()
    }

    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, Entry> {
        self.0.iter_mut()
    }

    fn find(&self, channel: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|entry| entry.channel.as_str().cmp(channel))
    }
}

/// A look at one active subscription.
#[derive(Clone, Copy, Debug)]
pub struct Subscription<'a>(pub(crate) &'a Entry);

impl<'a> Subscription<'a> {
    /// The channel, as the hub interned it.
    pub fn channel(&self) -> &'a ChannelName {
        &self.0.channel
    }

    /// Made by a token, a connect request or the server API rather than by a subscribe command.
    pub fn is_server_side(&self) -> bool {
        self.0.flags.has(Flags::SERVER_SIDE)
    }

    /// Made by the server API.
    pub fn is_dynamic(&self) -> bool {
        self.0.flags.has(Flags::DYNAMIC)
    }

    /// The hub keeps its position and repairs or reports lost publications.
    pub fn is_positioned(&self) -> bool {
        self.0.flags.has(Flags::POSITIONED)
    }

    /// The client may recover what it missed.
    pub fn is_recoverable(&self) -> bool {
        self.0.flags.has(Flags::RECOVERABLE)
    }

    /// It has a presence entry.
    pub fn has_presence(&self) -> bool {
        self.0.flags.has(Flags::PRESENCE)
    }

    /// It emits join and leave events.
    pub fn emits_join_leave(&self) -> bool {
        self.0.flags.has(Flags::JOIN_LEAVE)
    }

    /// Join and leave events of the channel are delivered to it.
    pub fn pushes_join_leave(&self) -> bool {
        self.0.flags.has(Flags::PUSH_JOIN_LEAVE)
    }

    /// The client's info in this channel, where it has a `chan_info`.
    pub fn info(&self) -> Option<&'a Arc<ClientInfo>> {
        self.0.info()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_subscription_costs_32_bytes_beside_its_name() {
        assert_eq!(size_of::<Entry>(), 32);
        let mut table = Subscriptions::default();
        table.insert(Entry::new("a".into(), Flags::default(), None, Tick::NEVER));
        assert_eq!(table.0.capacity(), 1);
        assert!(table.get("a").is_some_and(|entry| entry.extra.is_none()));
    }

    #[test]
    fn entries_are_found_whatever_the_order_of_their_coming() {
        let mut table = Subscriptions::default();
        for name in ["m", "a", "z", "c", "b"] {
            table.insert(Entry::new(name.into(), Flags::default(), None, Tick::NEVER));
        }
        let names: Vec<&str> = table.iter().map(|entry| entry.channel.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "m", "z"]);
        assert!(table.remove("c").is_some() && table.remove("c").is_none() && table.get("c").is_none());
        assert_eq!(table.len(), 4);
    }
}
