//! The order of what one node does in one channel: it takes effect in the order in which it was first polled.
//!
//! A stored publication goes to the stream and comes back as a copy, while what is not stored goes straight to the
//! subscribers, and steps that take several requests take their time. So those wait until all that went before is
//! answered, and hold back what comes after; stored publications alone follow one another without waiting.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::task::{Poll, Waker};

use parking_lot::Mutex;

use crate::ChannelName;

/// Locks over which channels are spread.
const STRIPES: usize = 64;

/// How a step goes among others of its channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// One request to a stream: others may follow before it is answered.
    Request,
    /// Anything else: alone in its channel from its turn until its [`Turn`] is dropped.
    Alone,
}

/// The order in all channels.
pub(super) struct Order {
    stripes: Vec<Mutex<HashMap<ChannelName, Line>>>,
    hasher: RandomState,
}

/// The steps of one channel. It exists while there are any.
#[derive(Default)]
struct Line {
    next: u64,
    /// Steps whose turn has not come, and one that is alone.
    queue: BTreeMap<u64, Waiting>,
    /// Requests that were sent and are not answered.
    under_way: usize,
}

struct Waiting {
    step: Step,
    waker: Option<Waker>,
}

impl Line {
    fn may_go(&self, number: u64) -> bool {
        let first = self.queue.first_key_value();
        first.is_some_and(|(&first, waiting)| first == number && (waiting.step == Step::Request || self.under_way == 0))
    }

    fn wake_first(&mut self) {
        if let Some((&first, _)) = self.queue.first_key_value()
            && self.may_go(first)
            && let Some(waker) = self.queue.get_mut(&first).and_then(|waiting| waiting.waker.take())
        {
            waker.wake();
        }
    }
}

/// A step's place. Dropping it ends the step.
pub(super) struct Turn<'a> {
    stripe: &'a Mutex<HashMap<ChannelName, Line>>,
    channel: ChannelName,
    number: u64,
    is_queued: bool,
}

impl Order {
    pub(super) fn new() -> Self {
        Self { stripes: (0..STRIPES).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    /// Takes the next place in a channel.
    pub(super) fn enter(&self, channel: &ChannelName, step: Step) -> Turn<'_> {
        let index = self.hasher.hash_one(channel) % STRIPES as u64;
        let stripe = &self.stripes[usize::try_from(index).unwrap_or(0)];
        let mut lines = stripe.lock();
        let line = lines.entry(channel.clone()).or_default();
        let number = line.next;
        line.next += 1;
        line.queue.insert(number, Waiting { step, waker: None });
        Turn { stripe, channel: channel.clone(), number, is_queued: true }
    }
}

impl Turn<'_> {
    /// Waits until the step may go.
    pub(super) async fn come(&self) {
        poll_fn(|context| {
            let mut lines = self.stripe.lock();
            let Some(line) = lines.get_mut(&self.channel) else { return Poll::Ready(()) };
            if line.may_go(self.number) {
                return Poll::Ready(());
            }
            if let Some(waiting) = line.queue.get_mut(&self.number) {
                waiting.waker = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// The request is on its way: the next one may follow.
    pub(super) fn sent(&mut self) {
        if let Some(line) = self.stripe.lock().get_mut(&self.channel) {
            line.queue.remove(&self.number);
            line.under_way += 1;
            self.is_queued = false;
            line.wake_first();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut lines = self.stripe.lock();
        let Some(line) = lines.get_mut(&self.channel) else { return };
        if self.is_queued {
            line.queue.remove(&self.number);
        } else {
            line.under_way -= 1;
        }
        if line.queue.is_empty() && line.under_way == 0 {
            lines.remove(&self.channel);
        } else {
            line.wake_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn may_go(turn: &Turn<'_>) -> bool {
        turn.come().now_or_never().is_some()
    }

    #[test]
    fn requests_follow_one_another() {
        let order = Order::new();
        let channel = ChannelName::from("a");
        let mut first = order.enter(&channel, Step::Request);
        let mut second = order.enter(&channel, Step::Request);
        let elsewhere = order.enter(&ChannelName::from("b"), Step::Alone);
        assert!(may_go(&first) && !may_go(&second) && may_go(&elsewhere));
        first.sent();
        assert!(may_go(&second), "it need not wait for the answer");
        second.sent();
        drop(order.enter(&channel, Step::Request));
        assert!(may_go(&order.enter(&channel, Step::Request)), "a dropped one is not waited for");
    }

    #[test]
    fn others_wait_and_hold_back() {
        let order = Order::new();
        let channel = ChannelName::from("a");
        let mut before = order.enter(&channel, Step::Request);
        let alone = order.enter(&channel, Step::Alone);
        let after = order.enter(&channel, Step::Request);
        before.sent();
        assert!(!may_go(&alone), "the request is not answered");
        drop(before);
        assert!(may_go(&alone) && !may_go(&after));
        drop(alone);
        assert!(may_go(&after));
        drop(after);
        assert!(order.stripes.iter().all(|stripe| stripe.lock().is_empty()), "nothing is left behind");
    }
}
