//! Deliveries of one partition: one NATS subscription, from which messages go to the channels that are wanted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::base::Base;
use super::classes::Classes;
use super::envelope::{Content, Envelope, decode};
use super::hold::Hold;
use super::names::BARRIER;
use super::request::{header, number_header};
use super::stream::Lineage;
use crate::health::Health;
use crate::record::{Record, decode as decode_record};
use crate::{ChannelName, Delivery, Disturbance, Previous};

/// What all partitions share.
pub(super) struct Context {
    pub(super) base: Arc<Base>,
    pub(super) classes: Arc<Classes>,
    pub(super) barriers: Barriers,
}

impl Context {
    pub(super) fn health(&self) -> &Arc<Health> {
        &self.base.calls.access().health
    }

    pub(super) fn disturb(&self, disturbance: Disturbance) {
        if let Some(sink) = self.base.sink.get() {
            sink.disturbed(disturbance);
        }
    }
}

/// Barriers that are waited for.
#[derive(Default)]
pub(super) struct Barriers {
    waiting: Mutex<HashMap<u64, Arc<Notify>>>,
}

impl Barriers {
    /// Waits for a barrier with this id, which is yet to be written.
    pub(super) fn expect(&self, id: u64) -> Arc<Notify> {
        Arc::clone(self.waiting.lock().entry(id).or_default())
    }

    pub(super) fn forget(&self, id: u64) {
        self.waiting.lock().remove(&id);
    }

    fn seen(&self, id: u64) {
        if let Some(waiting) = self.waiting.lock().get(&id) {
            waiting.notify_one();
        }
    }
}

/// The channels of a partition that are wanted, by their token in subjects.
#[derive(Default)]
pub(super) struct Partition {
    channels: Mutex<HashMap<Box<str>, Wanted>>,
}

struct Wanted {
    channel: ChannelName,
    /// Only for servers that need it, and from the first message on.
    hold: Option<Box<Hold>>,
}

impl Partition {
    /// Adds a channel; false if it was there.
    pub(super) fn add(&self, channel: &ChannelName) -> bool {
        let token = super::names::token(channel).into_boxed_str();
        let wanted = Wanted { channel: channel.clone(), hold: None };
        self.channels.lock().insert(token, wanted).is_none()
    }

    /// Removes a channel; false if it was not there.
    pub(super) fn remove(&self, channel: &ChannelName) -> bool {
        self.channels.lock().remove(super::names::token(channel).as_str()).is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.channels.lock().len()
    }

    fn channel(&self, token: &str) -> Option<ChannelName> {
        self.channels.lock().get(token).map(|wanted| wanted.channel.clone())
    }
}

/// Hands deliveries on until the subscription ends.
pub(super) async fn route(
    partition: Arc<Partition>,
    mut messages: Subscriber,
    context: Arc<Context>,
    keeps_order: bool,
) {
    let mut router = Router { partition, context, keeps_order, deadline: None };
    loop {
        let message = match router.deadline {
            None => messages.next().await,
            Some(deadline) => {
                tokio::select! {
                    biased;
                    message = messages.next() => message,
                    () = tokio::time::sleep_until(deadline) => {
                        router.release();
                        continue;
                    }
                }
            }
        };
        match message {
            Some(message) => router.take(&message).await,
            None => return,
        }
    }
}

struct Router {
    partition: Arc<Partition>,
    context: Arc<Context>,
    keeps_order: bool,
    /// When some channel's messages have waited too long.
    deadline: Option<Instant>,
}

/// A message of a stream, understood.
struct Place {
    lineage: Arc<Lineage>,
    number: u64,
    previous: u64,
}

impl Router {
    async fn take(&mut self, message: &Message) {
        let Some(token) = message.subject.rsplit('.').next() else { return };
        if token == BARRIER {
            if let Ok(envelope) = decode(&message.payload) {
                self.context.barriers.seen(envelope.id);
            }
            return;
        }
        let Some(channel) = self.partition.channel(token) else {
            self.context.health().unwanted();
            return;
        };
        self.context.health().delivered();
        if self.deliver(message, token, &channel).await.is_none() {
            tracing::warn!(%channel, "a delivery that this node does not understand");
            self.context.disturb(Disturbance::Channel(channel));
        }
    }

    /// `None` if the message is not understood.
    async fn deliver(&mut self, message: &Message, token: &str, channel: &ChannelName) -> Option<()> {
        let envelope = decode(&message.payload).ok()?;
        let record = match envelope.content {
            Content::Message { record } => {
                let delivery = match decode_record(record, None).ok()? {
                    Record::Publication(publication) => Delivery::Unpositioned(Arc::new(publication)),
                    Record::Presence(event) => Delivery::Presence(event),
                };
                self.hand_on(channel, delivery);
                return Some(());
            }
            Content::Publication { record, .. } => record,
            // They say nothing to subscribers: the next publication names them as its predecessor.
            _ => return Some(()),
        };
        let place = self.place(message, &envelope).await?;
        let offset = place.lineage.offset(place.number)?;
        let Record::Publication(publication) = decode_record(record, Some(offset)).ok()? else { return None };
        let previous = match place.previous {
            // Its predecessor has expired, or it is the first of all: the server does not tell which.
            0 => Previous::Unknown,
            previous => place.lineage.offset(previous).map_or(Previous::Unknown, Previous::Known),
        };
        let epoch = place.lineage.epoch().clone();
        let delivery = Delivery::Positioned { epoch, previous, publication: Arc::new(publication) };
        if self.keeps_order {
            self.hand_on(channel, delivery);
        } else {
            self.hold(token, channel, &place, delivery);
        }
        Some(())
    }

    /// Where in which stream a message is, by what is known of the stream now. If its writer knew more, that is found out
    /// first; meanwhile the messages of this partition wait.
    async fn place(&self, message: &Message, envelope: &Envelope<'_>) -> Option<Place> {
        let number = number_header(message, "Nats-Sequence")?;
        let previous = number_header(message, "Nats-Last-Sequence")?;
        let kept = self.context.classes.named(header(message, "Nats-Stream")?)?;
        let theirs = envelope.knowledge;
        let fits = |lineage: &Arc<Lineage>| {
            let ours = lineage.knowledge();
            ours.epoch_check == theirs.epoch_check && !ours.is_behind(theirs)
        };
        if let Some(lineage) = kept.stream.lineage().filter(fits) {
            return Some(Place { lineage, number, previous });
        }
        let limit = self.context.base.config.command_timeout;
        kept.stream.doubt_unless(theirs);
        let ready = tokio::time::timeout(limit, kept.stream.ready()).await.ok()?.ok()?;
        Some(ready.lineage).filter(fits).map(|lineage| Place { lineage, number, previous })
    }

    fn hold(&mut self, token: &str, channel: &ChannelName, place: &Place, delivery: Delivery) {
        let mut channels = self.partition.channels.lock();
        let Some(wanted) = channels.get_mut(token) else { return };
        let hold = wanted.hold.get_or_insert_default();
        let mut go = Vec::new();
        let epoch = place.lineage.epoch().as_str();
        hold.push(epoch, place.number, place.previous, delivery, Instant::now(), |delivery| go.push(delivery));
        if let Some(deadline) = hold.deadline() {
            self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
        }
        drop(channels);
        for delivery in go {
            self.hand_on(channel, delivery);
        }
    }

    /// Hands on what has waited too long.
    fn release(&mut self) {
        let now = Instant::now();
        let mut go = Vec::new();
        self.deadline = None;
        for wanted in self.partition.channels.lock().values_mut() {
            let Some(hold) = &mut wanted.hold else { continue };
            match hold.deadline() {
                Some(deadline) if deadline <= now => {
                    hold.release(|delivery| go.push((wanted.channel.clone(), delivery)));
                }
                Some(deadline) => {
                    self.deadline = Some(self.deadline.map_or(deadline, |earlier: Instant| earlier.min(deadline)));
                }
                None => {}
            }
        }
        for (channel, delivery) in go {
            self.hand_on(&channel, delivery);
        }
    }

    fn hand_on(&self, channel: &ChannelName, delivery: Delivery) {
        if let Some(sink) = self.context.base.sink.get() {
            sink.deliver(channel, delivery);
        }
    }
}

/// How long a barrier is waited for before another one is written.
pub(super) const BARRIER_PATIENCE: Duration = Duration::from_millis(200);
