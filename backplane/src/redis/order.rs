//! The order of calls: those of one channel are sent in the order in which they were first polled, also when the server
//! sends some of them back (a script to be loaded, a slot that has moved).

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use parking_lot::Mutex;

/// Queues over which slots are spread; calls of one queue wait for each other only while something is sent back.
const STRIPES: usize = 256;

/// The order of all calls of a backplane.
pub(super) struct Order {
    stripes: Vec<Mutex<Stripe>>,
}

#[derive(Default)]
struct Stripe {
    next: u64,
    /// Calls that are to be sent, the first of them next.
    queue: BTreeMap<u64, Waiting>,
    /// How many calls are sent and not answered.
    under_way: usize,
    /// The latest call that may have taken effect.
    latest: Option<u64>,
}

#[derive(Default)]
struct Waiting {
    /// It was sent before, and the server has not carried it out.
    is_sent_back: bool,
    waker: Option<Waker>,
}

impl Stripe {
    /// One that was sent back waits until all that were sent with it are answered, since these may be sent back too.
    fn may_be_sent(&self, number: u64) -> bool {
        let first = self.queue.first_key_value();
        first.is_some_and(|(&first, call)| first == number && (!call.is_sent_back || self.under_way == 0))
    }

    fn wake_first(&mut self) {
        if let Some((&first, _)) = self.queue.first_key_value()
            && self.may_be_sent(first)
            && let Some(waker) = self.queue.get_mut(&first).and_then(|call| call.waker.take())
        {
            waker.wake();
        }
    }
}

/// A call's place. Dropping it ends the call: it may have taken effect if it was sent.
pub(super) struct Turn<'a> {
    stripe: &'a Mutex<Stripe>,
    number: u64,
    is_queued: bool,
}

impl Order {
    pub(super) fn new() -> Self {
        Self { stripes: (0..STRIPES).map(|_| Mutex::default()).collect() }
    }

    /// Takes the next place among the calls of a slot.
    pub(super) fn enter(&self, slot: u16) -> Turn<'_> {
        let stripe = &self.stripes[usize::from(slot) % STRIPES];
        let mut state = stripe.lock();
        let number = state.next;
        state.next += 1;
        state.queue.insert(number, Waiting::default());
        Turn { stripe, number, is_queued: true }
    }
}

impl Turn<'_> {
    /// Waits until the call may be sent. `false` if it must not be any more, because a later one has taken effect.
    pub(super) async fn come(&self) -> bool {
        poll_fn(|context| {
            let mut state = self.stripe.lock();
            if state.may_be_sent(self.number) {
                return Poll::Ready(state.latest.is_none_or(|latest| latest < self.number));
            }
            if let Some(call) = state.queue.get_mut(&self.number) {
                call.waker = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// It is on its way: the next one may follow.
    pub(super) fn sent(&mut self) {
        let mut state = self.stripe.lock();
        state.queue.remove(&self.number);
        state.under_way += 1;
        self.is_queued = false;
        state.wake_first();
    }

    /// The server has not carried it out: it is to be sent again, before all that were not sent yet.
    pub(super) fn sent_back(&mut self) {
        let mut state = self.stripe.lock();
        state.under_way -= 1;
        state.queue.insert(self.number, Waiting { is_sent_back: true, waker: None });
        self.is_queued = true;
        state.wake_first();
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.stripe.lock();
        if self.is_queued {
            state.queue.remove(&self.number);
        } else {
            state.under_way -= 1;
            state.latest = state.latest.max(Some(self.number));
        }
        state.wake_first();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn may_go(turn: &Turn<'_>) -> Option<bool> {
        turn.come().now_or_never()
    }

    #[test]
    fn calls_are_sent_one_after_the_other() {
        let order = Order::new();
        let (mut first, mut second) = (order.enter(7), order.enter(7));
        let elsewhere = order.enter(8);
        assert_eq!((may_go(&first), may_go(&second), may_go(&elsewhere)), (Some(true), None, Some(true)));
        first.sent();
        assert_eq!(may_go(&second), Some(true), "it need not wait for the answer");
        second.sent();
        drop(order.enter(7));
        assert_eq!(may_go(&order.enter(7)), Some(true), "a dropped one is waited for");
    }

    #[test]
    fn what_was_sent_back_goes_first_and_in_order() {
        let order = Order::new();
        let mut turns: Vec<_> = (0..3).map(|_| order.enter(0)).collect();
        for turn in &mut turns {
            turn.sent();
        }
        let later = order.enter(0);
        turns[1].sent_back();
        assert_eq!((may_go(&turns[1]), may_go(&later)), (None, None), "others are under way");
        turns[0].sent_back();
        assert_eq!(may_go(&turns[0]), None, "the third is under way");
        turns[2].sent_back();
        assert_eq!((may_go(&turns[0]), may_go(&turns[1])), (Some(true), None));
        turns[0].sent();
        assert_eq!(may_go(&turns[1]), None, "one at a time");
        drop(turns.remove(0));
        assert_eq!((may_go(&turns[0]), may_go(&later)), (Some(true), None));
        turns.clear();
        assert_eq!(may_go(&later), Some(true));
    }

    #[test]
    fn what_was_overtaken_is_not_sent_again() {
        let order = Order::new();
        let (mut first, mut second) = (order.enter(0), order.enter(0));
        first.sent();
        second.sent();
        first.sent_back();
        drop(second);
        assert_eq!(may_go(&first), Some(false));
        drop(first);
        assert_eq!(may_go(&order.enter(0)), Some(true));
    }
}
