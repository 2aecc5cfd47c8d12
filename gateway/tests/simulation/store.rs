//! What the simulated backplane holds, and the truth about everything it ever accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backplane::memory::{MemoryBackplane, MemoryLimits};
use backplane::{
    Backplane, ChannelName, ClientId, ClientInfo, Delivery, Disturbance, Epoch, HistoryOptions, HistoryPage,
    HistoryQuery, NewPublication, PublishOptions, Published, Sink,
};
use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;

use super::clock::{Millis, Random};
use super::lineage::Lineage;
use super::scenario::{CHANNELS, Plant, Scenario, StoreKind};

/// One publication that was accepted, for ever.
#[derive(Debug)]
pub struct Accepted {
    pub channel: ChannelName,
    pub epoch: Epoch,
    pub offset: u64,
    /// The offset before it.
    pub previous_offset: u64,
    /// What was before it in its own lineage: not what came before it in time, if that was lost.
    pub previous: Option<usize>,
    pub data: Bytes,
    /// Which data set accepted it: a later one does not remember idempotency keys.
    pub data_set: u64,
    /// Lost since, with the newest data.
    pub lost: bool,
}

/// The tag that tells the audit which accepted publication a client has received.
pub const NUMBER_TAG: &str = "number";

enum Kind {
    Memory { backplane: Box<MemoryBackplane>, out: Arc<Outbox> },
    Lineage(Lineage),
}

/// Streams and presence.
pub struct Store {
    kind: Kind,
    now: Arc<AtomicU64>,
    accepted: Vec<Accepted>,
    /// What is at the top of each channel.
    tops: BTreeMap<ChannelName, usize>,
    presence: BTreeMap<ChannelName, BTreeMap<ClientId, Arc<ClientInfo>>>,
    data_set: u64,
    plant: Option<Plant>,
}

/// Catches what the real in-memory backplane delivers.
#[derive(Default)]
struct Outbox(Mutex<Vec<Delivery>>);

impl Sink for Outbox {
    fn deliver(&self, _: &ChannelName, delivery: Delivery) {
        self.0.lock().push(delivery);
    }

    fn disturbed(&self, _: Disturbance) {}
}

impl Store {
    pub fn new(scenario: &Scenario, random: Random) -> Self {
        let now = Arc::new(AtomicU64::new(0));
        let kind = match scenario.store {
            StoreKind::Memory => {
                let clock = now.clone();
                let clock = move || Duration::from_millis(clock.load(Ordering::Relaxed));
                let backplane = MemoryBackplane::with_clock(MemoryLimits::default(), Arc::new(clock));
                let out = Arc::new(Outbox::default());
                backplane.attach(out.clone());
                // Who gets what is decided outside: here everything is wanted.
                ready(backplane.subscribe(&CHANNELS.map(ChannelName::from)));
                Kind::Memory { backplane: Box::new(backplane), out }
            }
            StoreKind::Lineage { sparse } => Kind::Lineage(Lineage::new(sparse, random)),
        };
        let (accepted, tops, presence) = Default::default();
        Self { kind, now, accepted, tops, presence, data_set: 0, plant: scenario.plant }
    }

    /// Tells the time.
    pub fn set_now(&self, now: Millis) {
        self.now.store(now, Ordering::Relaxed);
    }

    fn now(&self) -> Millis {
        self.now.load(Ordering::Relaxed)
    }

    /// Publishes; what is to be fanned out comes with the result, unless nothing is.
    pub fn publish(
        &mut self,
        channel: &ChannelName,
        mut publication: NewPublication,
        options: PublishOptions,
    ) -> (Published, Option<Delivery>) {
        let number = self.accepted.len();
        publication.tags.insert(NUMBER_TAG.to_owned(), number.to_string());
        let data = publication.data.clone();
        let now = self.now();
        let (published, delivery) = match &mut self.kind {
            Kind::Memory { backplane, out } => {
                let published = ready(backplane.publish(channel, publication, options));
                (published, out.0.lock().pop())
            }
            Kind::Lineage(lineage) => lineage.publish(channel, publication, options, now),
        };
        if let Some(delivery) = &delivery {
            self.remember(channel, number, data, delivery);
        }
        (published, delivery)
    }

    fn remember(&mut self, channel: &ChannelName, number: usize, data: Bytes, delivery: &Delivery) {
        let (epoch, offset) = match delivery {
            Delivery::Positioned { epoch, publication, .. } => {
                (epoch.clone(), publication.offset.expect("positioned").0)
            }
            Delivery::Unpositioned(_) | Delivery::Presence(_) => (Epoch::from(""), 0),
        };
        let mut previous = None;
        if offset > 0 {
            previous = self.tops.insert(channel.clone(), number);
        }
        let previous = previous.filter(|previous| self.accepted[*previous].epoch == epoch);
        let previous_offset = previous.map_or(0, |previous| self.accepted[previous].offset);
        let data_set = self.data_set;
        self.accepted.push(Accepted {
            channel: channel.clone(),
            epoch,
            offset,
            previous_offset,
            previous,
            data,
            data_set,
            lost: false,
        });
    }

    pub fn history(&mut self, channel: &ChannelName, query: HistoryQuery, options: HistoryOptions) -> HistoryPage {
        let now = self.now();
        match &mut self.kind {
            Kind::Memory { backplane, .. } => ready(backplane.history(channel, query, options)),
            Kind::Lineage(lineage) => lineage.history(channel, &query, options, now),
        }
    }

    /// Loses everything but presence, as a restart without persistence does.
    pub fn restart(&mut self) {
        match &mut self.kind {
            Kind::Memory { backplane, .. } => backplane.forget(),
            Kind::Lineage(lineage) => lineage.restart(self.plant == Some(Plant::EpochReused)),
        }
        self.tops.clear();
        self.data_set += 1;
    }

    /// Loses the newest publications, as a failover to a replica that lags does. Without a lineage nothing happens.
    pub fn roll_back(&mut self, random: &mut Random) {
        let Kind::Lineage(lineage) = &mut self.kind else { return };
        self.data_set += 1;
        for (channel, top) in lineage.roll_back(random, self.plant == Some(Plant::OffsetsGivenTwice)) {
            // Down the lineage to what survived.
            let mut number = self.tops.remove(&channel);
            while let Some(at) = number.filter(|at| self.accepted[*at].offset > top) {
                self.accepted[at].lost = true;
                number = self.accepted[at].previous;
            }
            if let Some(number) = number {
                self.tops.insert(channel, number);
            }
        }
    }

    pub fn add_presence(&mut self, channel: &ChannelName, info: Arc<ClientInfo>) {
        self.presence.entry(channel.clone()).or_default().insert(info.client, info);
    }

    pub fn remove_presence(&mut self, channel: &ChannelName, client: ClientId, user: &str) {
        let Some(members) = self.presence.get_mut(channel) else { return };
        if self.plant == Some(Plant::LeaveWithoutCompare) {
            members.retain(|_, member| member.user.as_str() != user);
        } else {
            members.remove(&client);
        }
    }

    // --- for the audit ---

    pub fn present(&self, channel: &str) -> BTreeSet<ClientId> {
        self.presence.get(channel).into_iter().flat_map(|members| members.keys().copied()).collect()
    }

    pub fn accepted(&self) -> &[Accepted] {
        &self.accepted
    }

    /// The number of the newest publication of a channel.
    pub fn top(&self, channel: &str) -> Option<usize> {
        self.tops.get(channel).copied()
    }
}

/// The result of a call that is never kept waiting.
fn ready<T>(call: backplane::BackplaneFuture<'_, T>) -> T {
    call.now_or_never().expect("the in-memory backplane is always ready").expect("far from every limit")
}
