//! Join and leave events as subscribers see them.
//!
//! They are delivered at most once and not recovered (protocol section 4.7), so what one subscriber saw is judged only
//! within one connection of it: a second leave of somebody who did not come back in between is one too many.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Most pairs of a subscription and a client remembered. Each takes some 50 bytes; beyond it, events are only counted.
const PAIRS_MAX: usize = 4 << 20;

/// Short identity of a client id. Two of a run's clients share one with a chance of far below one in a million.
pub fn identity(client: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    client.hash(&mut hasher);
    hasher.finish()
}

/// What happened to a client in a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It joined.
    Join,
    /// It left.
    Leave,
}

struct Pair {
    /// Which of its connections the subscriber had when it saw the last event.
    life: u32,
    last: Change,
    leaves: u32,
}

/// The events of one worker's subscriptions.
#[derive(Default)]
pub struct Events {
    pairs: HashMap<(u32, u64), Pair>,
    /// Join and leave pushes per channel.
    counts: HashMap<u32, (u64, u64)>,
    repeated: u64,
}

/// What all workers saw together.
#[derive(Default)]
pub struct Seen {
    /// Join and leave pushes per channel index.
    pub counts: HashMap<u32, (u64, u64)>,
    /// Pushes that said the same of a client as the one before.
    pub repeated: u64,
    /// Most leaves of a client in a channel that any one subscriber saw.
    leaves: HashMap<(u32, u64), u32>,
}

impl Events {
    /// A subscriber, in one of its connections, was told of a change.
    pub fn observe(&mut self, subscription: usize, life: u32, channel: u32, client: u64, change: Change) {
        let (joins, leaves) = self.counts.entry(channel).or_default();
        match change {
            Change::Join => *joins += 1,
            Change::Leave => *leaves += 1,
        }
        let key = (subscription as u32, client);
        let left = u32::from(change == Change::Leave);
        if let Some(pair) = self.pairs.get_mut(&key) {
            self.repeated += u64::from(pair.life == life && pair.last == change);
            *pair = Pair { life, last: change, leaves: pair.leaves + left };
        } else if self.pairs.len() < PAIRS_MAX {
            self.pairs.insert(key, Pair { life, last: change, leaves: left });
        }
    }
}

impl Seen {
    /// Adds a worker's events; `channel_of` tells the channel of one of its subscriptions.
    pub fn add(&mut self, events: Events, channel_of: impl Fn(usize) -> u32) {
        for (channel, (joins, leaves)) in events.counts {
            let sum = self.counts.entry(channel).or_default();
            *sum = (sum.0 + joins, sum.1 + leaves);
        }
        self.repeated += events.repeated;
        for ((subscription, client), pair) in events.pairs {
            let most = self.leaves.entry((channel_of(subscription as usize), client)).or_default();
            *most = (*most).max(pair.leaves);
        }
    }

    /// How often a client left a channel, as far as anybody was told.
    pub fn leaves_of(&self, channel: u32, client: u64) -> u32 {
        self.leaves.get(&(channel, client)).copied().unwrap_or(0)
    }

    /// Joins and leaves over all channels.
    pub fn totals(&self) -> (u64, u64) {
        self.counts.values().fold((0, 0), |sum, (joins, leaves)| (sum.0 + joins, sum.1 + leaves))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_leave_within_a_connection_is_one_too_many() {
        let (mut events, who) = (Events::default(), identity("c1"));
        events.observe(0, 0, 5, who, Change::Join);
        events.observe(0, 0, 5, who, Change::Leave);
        events.observe(1, 0, 5, who, Change::Leave);
        assert_eq!(events.repeated, 0);
        events.observe(0, 0, 5, who, Change::Leave);
        assert_eq!(events.repeated, 1);
        // What the subscriber missed while it was away is unknown.
        events.observe(1, 1, 5, who, Change::Leave);
        let mut seen = Seen::default();
        seen.add(events, |_| 5);
        assert_eq!((seen.repeated, seen.totals(), seen.leaves_of(5, who)), (1, (1, 4), 2));
        assert_eq!(seen.leaves_of(5, identity("c2")), 0);
    }
}
