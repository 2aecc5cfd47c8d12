//! Telling subscribers that their position is lost, at a pace.
//!
//! After a failover that lost publications, crowds of subscribers are told at the same moment, and each of them
//! subscribes again at once. Telling a part of them per tick keeps the rest from a stampede. Nothing is delivered to them
//! in the meantime: the hub has let go of them already.

use std::collections::{HashSet, VecDeque};

use backplane::ChannelName;

use crate::hub::ConnKey;

/// Who is still to be told.
#[derive(Debug)]
pub(super) struct Losses {
    order: VecDeque<(ConnKey, ChannelName)>,
    /// Those of `order` that still have the subscription.
    waiting: HashSet<(ConnKey, ChannelName)>,
    per_tick: usize,
    /// How many more may be told before the next tick.
    budget: usize,
}

impl Losses {
    pub fn new(per_tick: usize) -> Self {
        Self { order: VecDeque::new(), waiting: HashSet::new(), per_tick, budget: per_tick }
    }

    /// True if this one is to be told at once; otherwise it waits for [`Losses::due`].
    pub fn admit(&mut self, conn: ConnKey, channel: &ChannelName) -> bool {
        if self.budget > 0 && self.order.is_empty() {
            self.budget -= 1;
            return true;
        }
        let entry = (conn, channel.clone());
        if self.waiting.insert(entry.clone()) {
            self.order.push_back(entry);
        }
        false
    }

    /// The subscription has ended in another way; a later one of the same name is not meant.
    pub fn ended(&mut self, conn: ConnKey, channel: &ChannelName) {
        if !self.waiting.is_empty() {
            self.waiting.remove(&(conn, channel.clone()));
        }
    }

    /// Those that are to be told in this tick.
    pub fn due(&mut self) -> Vec<(ConnKey, ChannelName)> {
        self.budget = self.per_tick;
        let mut due = Vec::new();
        while self.budget > 0 {
            let Some(entry) = self.order.pop_front() else { break };
            if self.waiting.remove(&entry) {
                self.budget -= 1;
                due.push(entry);
            }
        }
        if self.order.is_empty() && self.order.capacity() > 1024 {
            self.order.shrink_to_fit();
            self.waiting.shrink_to_fit();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> ConnKey {
        ConnKey { index, generation: 0 }
    }

    #[test]
    fn a_crowd_is_told_in_order_and_at_a_pace() {
        let channel = ChannelName::from("a");
        let mut losses = Losses::new(2);
        let at_once: Vec<bool> = (0..6).map(|index| losses.admit(key(index), &channel)).collect();
        assert_eq!(at_once, [true, true, false, false, false, false]);
        losses.ended(key(3), &channel);
        let told = |losses: &mut Losses| losses.due().into_iter().map(|(conn, _)| conn.index).collect::<Vec<_>>();
        assert_eq!(told(&mut losses), [2, 4]);
        assert!(!losses.admit(key(7), &channel), "nobody overtakes those who wait");
        assert_eq!(told(&mut losses), [5, 7]);
        assert_eq!(told(&mut losses), [0_u32; 0]);
        assert!(losses.admit(key(8), &channel));
    }

    #[test]
    fn a_subscription_made_anew_is_not_told_of_the_old_one() {
        let channel = ChannelName::from("a");
        let mut losses = Losses::new(1);
        assert!(losses.admit(key(0), &channel));
        assert!(!losses.admit(key(1), &channel));
        losses.ended(key(1), &channel);
        assert!(losses.due().is_empty());
    }
}
