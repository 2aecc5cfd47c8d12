//! Which channels this shard wants from the backplane: what is wanted while calls are under way is gathered into the next
//! one, so that a storm of subscribes is a few large calls, and a single one is a call at once.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use backplane::{Backplane, BackplaneError, ChannelName, StreamPosition};
use futures_util::future::join_all;

use super::Shard;
use crate::hub::registry::Interest;

/// Calls of a shard under way. A few, so that one which waits for an unreachable part of the backplane does not hold up
/// the others.
const CALLS_AT_ONCE: usize = 4;

/// Channels of one call: a message of some 20 KB.
const CHANNELS_PER_CALL: usize = 512;

/// A change to make at the backplane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    Subscribe,
    Unsubscribe,
}

/// Changes that wait for a call to end; bounded by the channels of the shard, each of which has one at most.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    wanted: VecDeque<ChannelName>,
    unwanted: VecDeque<ChannelName>,
    under_way: usize,
}

impl Gathered {
    /// The next call to make, if one may be made. New channels come first: somebody waits for them.
    fn next_call(&mut self) -> Option<(Change, Vec<ChannelName>)> {
        if self.under_way >= CALLS_AT_ONCE {
            return None;
        }
        let (change, waiting) = match (self.wanted.is_empty(), self.unwanted.is_empty()) {
            (false, _) => (Change::Subscribe, &mut self.wanted),
            (true, false) => (Change::Unsubscribe, &mut self.unwanted),
            (true, true) => return None,
        };
        let call = waiting.drain(..waiting.len().min(CHANNELS_PER_CALL)).collect();
        if waiting.is_empty() {
            waiting.shrink_to(CHANNELS_PER_CALL);
        }
        self.under_way += 1;
        Some((change, call))
    }

    fn call_ended(&mut self) {
        self.under_way -= 1;
    }
}

impl Shard {
    pub(super) fn declare_interest(self: &Rc<Self>, channel: ChannelName) {
        match self.node.registry.interest(&channel, self.index) {
            Interest::Active(known) => self.acknowledged(&channel, Ok(known)),
            Interest::Subscribe => self.interest.borrow_mut().wanted.push_back(channel),
            Interest::Wait => {}
        }
    }

    pub(super) fn acknowledged(self: &Rc<Self>, channel: &str, result: Result<Option<StreamPosition>, String>) {
        let now = self.now().tick;
        self.with_hub(|hub, port| hub.acknowledged(channel, result, now, port));
    }

    pub(super) fn release_interest(self: &Rc<Self>, channel: ChannelName) {
        if self.node.registry.release(&channel, self.index) {
            self.interest.borrow_mut().unwanted.push_back(channel);
        }
    }

    /// Makes one of the calls that wait, if one may be made.
    pub(super) fn send_interest(self: &Rc<Self>) -> bool {
        let call = self.interest.borrow_mut().next_call();
        let Some((change, channels)) = call else { return false };
        let backplane = self.node.backplane.clone();
        match change {
            Change::Subscribe => self.perform(subscribe(backplane, channels), |shard, results| {
                shard.interest.borrow_mut().call_ended();
                for (channel, result) in results {
                    let result = result.map_err(|error| error.to_string());
                    if shard.node.registry.subscribed(&channel, &result, shard.index) {
                        shard.acknowledged(&channel, result.map(|()| None));
                    }
                }
            }),
            Change::Unsubscribe => self.perform(unsubscribe(backplane, channels), |shard, channels| {
                shard.interest.borrow_mut().call_ended();
                for channel in channels {
                    if shard.node.registry.unsubscribed(&channel) {
                        shard.interest.borrow_mut().wanted.push_back(channel);
                    }
                }
            }),
        }
        true
    }
}

/// Subscribes channels in one call. Where that fails on a backplane that is there, the reason may be one of them, or the
/// part of the backplane that has it: the others are not to suffer for it.
async fn subscribe(
    backplane: Arc<dyn Backplane>,
    channels: Vec<ChannelName>,
) -> Vec<(ChannelName, Result<(), BackplaneError>)> {
    let results = match backplane.subscribe(&channels).await {
        Ok(()) => vec![Ok(()); channels.len()],
        Err(error) if channels.len() == 1 || !backplane.status().is_up => vec![Err(error); channels.len()],
        Err(_) => join_all(channels.iter().map(|channel| backplane.subscribe(std::slice::from_ref(channel)))).await,
    };
    channels.into_iter().zip(results).collect()
}

async fn unsubscribe(backplane: Arc<dyn Backplane>, channels: Vec<ChannelName>) -> Vec<ChannelName> {
    if let Err(error) = backplane.unsubscribe(&channels).await {
        tracing::debug!(%error, "unsubscribe failed; deliveries without subscribers are dropped here");
    }
    channels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(range: std::ops::Range<usize>) -> impl Iterator<Item = ChannelName> {
        range.map(|n| ChannelName::from(format!("c{n}")))
    }

    #[test]
    fn what_comes_while_calls_are_under_way_goes_out_together() {
        let mut gathered = Gathered::default();
        for channel in names(0..CALLS_AT_ONCE) {
            gathered.wanted.push_back(channel.clone());
            assert_eq!(gathered.next_call(), Some((Change::Subscribe, vec![channel])), "at once");
        }
        gathered.wanted.extend(names(10..2_000));
        gathered.unwanted.extend(names(5_000..5_003));
        assert_eq!(gathered.next_call(), None, "so many may be under way");
        let mut calls = Vec::new();
        for _ in 0..5 {
            gathered.call_ended();
            let (change, call) = gathered.next_call().expect("there is more");
            calls.push((change, call.len()));
        }
        let subscribe = |count| (Change::Subscribe, count);
        assert_eq!(calls[..4], [subscribe(512), subscribe(512), subscribe(512), subscribe(454)]);
        assert_eq!(calls[4], (Change::Unsubscribe, 3));
        gathered.call_ended();
        assert_eq!(gathered.next_call(), None);
    }
}
