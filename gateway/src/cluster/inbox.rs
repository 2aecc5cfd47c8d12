//! Deliveries of the fleet's own channels, on their way from the backplane to the tasks of the control thread.

use std::collections::VecDeque;
use std::sync::Arc;

use backplane::{ChannelName, Delivery, Disturbance, INTERNAL_PREFIX, Sink};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::is_commands_channel;
use crate::hub::Registry;

/// Deliveries that may wait. A thousand nodes that answer one question wait here at the same time, several times over.
/// More are dropped; commands among them are read from history, answers are missed by their callers.
const WAITING_MAX: usize = 16_384;

/// What happened on the fleet's channels since the last look.
#[derive(Debug, Default)]
pub struct Taken {
    /// In order.
    pub deliveries: VecDeque<(ChannelName, Delivery)>,
    /// Some may be missing.
    pub disturbed: bool,
}

/// Commands, which are taken one after another, and everything else.
#[derive(Debug, Default)]
pub struct ClusterInbox {
    /// The channel of commands.
    pub commands: ClusterQueue,
    /// Answers and digests.
    pub others: ClusterQueue,
}

impl ClusterInbox {
    fn push(&self, channel: &ChannelName, delivery: Delivery) {
        let queue = if is_commands_channel(channel) { &self.commands } else { &self.others };
        queue.push(channel, delivery);
    }
}

/// A bounded queue.
#[derive(Debug, Default)]
pub struct ClusterQueue {
    waiting: Mutex<Taken>,
    wake: Notify,
}

impl ClusterQueue {
    fn push(&self, channel: &ChannelName, delivery: Delivery) {
        let mut waiting = self.waiting.lock();
        if waiting.deliveries.len() < WAITING_MAX {
            waiting.deliveries.push_back((channel.clone(), delivery));
        } else {
            waiting.disturbed = true;
        }
        drop(waiting);
        self.wake.notify_one();
    }

    fn disturb(&self) {
        self.waiting.lock().disturbed = true;
        self.wake.notify_one();
    }

    /// Completes when something may be waiting.
    pub async fn ready(&self) {
        self.wake.notified().await;
    }

    /// Takes everything.
    pub fn take(&self) -> Taken {
        std::mem::take(&mut *self.waiting.lock())
    }
}

/// Where the backplane delivers to: the fleet's own channels go to the control thread, all others to the shards.
pub struct Switchboard {
    registry: Arc<Registry>,
    inbox: Arc<ClusterInbox>,
}

impl Switchboard {
    /// Between these two.
    pub fn new(registry: Arc<Registry>, inbox: Arc<ClusterInbox>) -> Self {
        Self { registry, inbox }
    }
}

impl Sink for Switchboard {
    fn deliver(&self, channel: &ChannelName, delivery: Delivery) {
        if channel.starts_with(INTERNAL_PREFIX) {
            self.inbox.push(channel, delivery);
        } else {
            self.registry.deliver(channel, delivery);
        }
    }

    fn disturbed(&self, disturbance: Disturbance) {
        match &disturbance {
            Disturbance::Channel(channel) if channel.starts_with(INTERNAL_PREFIX) => {
                return self.inbox.commands.disturb();
            }
            Disturbance::Channel(_) => {}
            Disturbance::All => self.inbox.commands.disturb(),
        }
        self.registry.disturbed(disturbance);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backplane::Publication;
    use std::collections::BTreeMap;

    #[test]
    fn what_does_not_fit_counts_as_a_disturbance() {
        let inbox = ClusterQueue::default();
        let publication =
            Arc::new(Publication { offset: None, data: Default::default(), info: None, tags: BTreeMap::new() });
        for _ in 0..=WAITING_MAX {
            inbox.push(&ChannelName::from("\u{1}x"), Delivery::Unpositioned(publication.clone()));
        }
        let taken = inbox.take();
        assert_eq!((taken.deliveries.len(), taken.disturbed), (WAITING_MAX, true));
        assert!(!inbox.take().disturbed);
    }
}
