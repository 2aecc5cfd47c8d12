//! What other threads hand to a shard: deliveries in order, acknowledgements and commands.
//!
//! The queue is bounded in deliveries and bytes. When it is full a delivery is dropped and its channel noted as
//! lagged: the shard repairs it from history. Control items are few (bounded by channels, shards and API calls in
//! flight) and never dropped.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use backplane::{ChannelName, Disturbance};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::command::Command;
use crate::hub::Outgoing;

/// One thing for a shard to do.
#[derive(Debug)]
pub enum Item {
    /// A delivery of a channel the shard is interested in.
    Delivery(Arc<Outgoing>),
    /// The backplane acknowledged (or refused) this node's subscribe to a channel.
    Acknowledged(ChannelName, Result<(), String>),
    /// Deliveries may have been lost.
    Disturbed(Disturbance),
    /// The server API or an operator wants something of this shard's connections.
    Command(Box<Command>),
}

/// Bounds of an [`Inbox`].
#[derive(Clone, Copy, Debug)]
pub struct InboxLimits {
    /// Deliveries waiting. 65,536 is more than a second of the highest rate one core fans out.
    pub deliveries: usize,
    /// Bytes of the deliveries waiting. 64 MiB lets 1,000 messages of 64 KiB wait.
    pub bytes: usize,
}

impl Default for InboxLimits {
    fn default() -> Self {
        Self { deliveries: 65_536, bytes: 64 << 20 }
    }
}

/// A shard's bounded queue.
#[derive(Debug)]
pub struct Inbox {
    queue: Mutex<Queue>,
    wake: Notify,
    limits: InboxLimits,
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    deliveries: usize,
    bytes: usize,
    lagged: HashSet<ChannelName>,
    dropped: u64,
}

/// What was taken from an inbox in one go.
#[derive(Debug, Default)]
pub struct Taken {
    /// In order.
    pub items: VecDeque<Item>,
    /// Channels of which a delivery was dropped; check them after `items`.
    pub lagged: HashSet<ChannelName>,
    /// How many deliveries were dropped since the last take.
    pub dropped: u64,
}

impl Inbox {
    /// An empty inbox.
    pub fn new(limits: InboxLimits) -> Self {
        Self { queue: Mutex::default(), wake: Notify::new(), limits }
    }

    /// Queues a delivery, or drops it and marks its channel lagged when the inbox is full.
    pub fn push_delivery(&self, outgoing: Arc<Outgoing>) {
        let weight = outgoing.weight();
        let mut queue = self.queue.lock();
        if queue.deliveries >= self.limits.deliveries || queue.bytes + weight > self.limits.bytes {
            queue.dropped += 1;
            if !queue.lagged.contains(&outgoing.channel) {
                queue.lagged.insert(outgoing.channel.clone());
            }
        } else {
            queue.deliveries += 1;
            queue.bytes += weight;
            queue.items.push_back(Item::Delivery(outgoing));
        }
        drop(queue);
        self.wake.notify_one();
    }

    /// Queues a control item.
    pub fn push_control(&self, item: Item) {
        self.queue.lock().items.push_back(item);
        self.wake.notify_one();
    }

    /// Takes what waits, up to about so many deliveries and bytes of them; always at least one delivery.
    pub fn take(&self, deliveries_max: usize, bytes_max: usize) -> Taken {
        let mut queue = self.queue.lock();
        let mut taken = Taken { dropped: std::mem::take(&mut queue.dropped), ..Taken::default() };
        if queue.deliveries <= deliveries_max && queue.bytes <= bytes_max {
            taken.items = std::mem::take(&mut queue.items);
            taken.lagged = std::mem::take(&mut queue.lagged);
            queue.deliveries = 0;
            queue.bytes = 0;
            return taken;
        }
        let (mut deliveries, mut bytes) = (0, 0);
        while deliveries < deliveries_max && bytes < bytes_max {
            let Some(item) = queue.items.pop_front() else { break };
            if let Item::Delivery(outgoing) = &item {
                let weight = outgoing.weight();
                deliveries += 1;
                bytes += weight;
                queue.deliveries -= 1;
                queue.bytes -= weight;
            }
            taken.items.push_back(item);
        }
        drop(queue);
        self.wake.notify_one();
        taken
    }

    /// Has the shard make a pass although nothing new is here.
    pub fn nudge(&self) {
        self.wake.notify_one();
    }

    /// Completes when something may be waiting.
    pub async fn ready(&self) {
        self.wake.notified().await;
    }

    /// Deliveries waiting now.
    pub fn len(&self) -> usize {
        self.queue.lock().deliveries
    }

    /// True when no delivery waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
