//! A sink that remembers what it was given, and lets a case wait for it.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, Waker};

use parking_lot::Mutex;

use crate::{ChannelName, Delivery, Disturbance, Sink};

/// Records every delivery by channel, and every disturbance.
#[derive(Debug, Default)]
pub struct Recorder {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    deliveries: HashMap<ChannelName, Vec<Delivery>>,
    disturbances: Vec<Disturbance>,
    waiting: Vec<Waker>,
}

impl Recorder {
    /// What a channel was delivered so far, in order.
    pub fn deliveries(&self, channel: &ChannelName) -> Vec<Delivery> {
        self.seen.lock().deliveries.get(channel).cloned().unwrap_or_default()
    }

    /// What disturbed the backplane so far, in order.
    pub fn disturbances(&self) -> Vec<Disturbance> {
        self.seen.lock().disturbances.clone()
    }

    /// Waits until `channel` has at least `count` deliveries or `patience` ends, and returns what is there then.
    pub async fn wait(&self, channel: &ChannelName, count: usize, patience: impl Future<Output = ()>) -> Vec<Delivery> {
        let mut patience = pin!(patience);
        poll_fn(|context| {
            // The deadline is asked first, so that a delivery which raced with it still counts.
            let over = patience.as_mut().poll(context).is_ready();
            let mut seen = self.seen.lock();
            let enough = seen.deliveries.get(channel).map_or(0, Vec::len) >= count;
            if enough || over {
                return Poll::Ready(());
            }
            seen.waiting.push(context.waker().clone());
            Poll::Pending
        })
        .await;
        self.deliveries(channel)
    }
}

impl Sink for Recorder {
    fn deliver(&self, channel: &ChannelName, delivery: Delivery) {
        let waiting = {
            let mut seen = self.seen.lock();
            seen.deliveries.entry(channel.clone()).or_default().push(delivery);
            std::mem::take(&mut seen.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    fn disturbed(&self, disturbance: Disturbance) {
        self.seen.lock().disturbances.push(disturbance);
    }
}
