//! A model of a store that can lose its newest data: offsets jump where a new lineage begins, may have holes, and each
//! publication ages by itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use backplane::coverage::{Evidence, covered};
use backplane::{
    ChannelName, Delivery, Epoch, HistoryOptions, HistoryPage, HistoryQuery, NewPublication, Offset, Previous,
    Publication, PublishOptions, PublishOutcome, Published, StoredPublication, StreamPosition,
};

use super::clock::{Millis, Random};

/// Where the offsets of a new lineage begin: above everything a lineage could reach in one run.
const LINEAGE_STEP: u64 = 1_000_000;

pub struct Lineage {
    streams: BTreeMap<ChannelName, Stream>,
    sparse: bool,
    random: Random,
    epochs: u64,
    lineages: u64,
}

struct Stream {
    epoch: Epoch,
    top: u64,
    /// The next offset is at least this one.
    floor: u64,
    entries: VecDeque<(Millis, StoredPublication)>,
    results: BTreeMap<String, Option<StreamPosition>>,
}

impl Stream {
    fn position(&self) -> StreamPosition {
        StreamPosition { epoch: self.epoch.clone(), offset: Offset(self.top) }
    }

    fn expire(&mut self, options: HistoryOptions, now: Millis) {
        let ttl = u64::try_from(options.ttl.as_millis()).expect("a short run");
        while self.entries.front().is_some_and(|(at, _)| at + ttl <= now) || self.entries.len() > options.size {
            self.entries.pop_front();
        }
    }
}

impl Lineage {
    pub fn new(sparse: bool, random: Random) -> Self {
        Self { streams: BTreeMap::new(), sparse, random, epochs: 0, lineages: 0 }
    }

    fn stream(&mut self, channel: &ChannelName) -> &mut Stream {
        let epochs = &mut self.epochs;
        self.streams.entry(channel.clone()).or_insert_with(|| {
            *epochs += 1;
            Stream {
                epoch: Epoch::from(format!("epoch{epochs}")),
                top: 0,
                floor: 1,
                entries: VecDeque::new(),
                results: BTreeMap::new(),
            }
        })
    }

    pub fn publish(
        &mut self,
        channel: &ChannelName,
        publication: NewPublication,
        options: PublishOptions,
        now: Millis,
    ) -> (Published, Option<Delivery>) {
        let NewPublication { data, info, tags } = publication;
        let step = if self.sparse { self.random.between((1, 3)) } else { 1 };
        let sparse = self.sparse;
        let stream = self.stream(channel);
        if let Some(key) = &options.idempotency_key
            && let Some(position) = stream.results.get(key)
        {
            return (Published { position: position.clone(), outcome: PublishOutcome::Repeated }, None);
        }
        let Some(history) = options.history else {
            if let Some(key) = options.idempotency_key {
                stream.results.insert(key, None);
            }
            let publication = Arc::new(Publication { offset: None, data, info, tags });
            let published = Published { position: None, outcome: PublishOutcome::Published };
            return (published, Some(Delivery::Unpositioned(publication)));
        };
        stream.expire(history, now);
        let previous = if sparse && stream.entries.is_empty() && stream.top > 0 {
            Previous::Unknown
        } else {
            Previous::Known(Offset(stream.top))
        };
        stream.top = (stream.top + step).max(stream.floor);
        let publication = Arc::new(Publication { offset: Some(Offset(stream.top)), data, info, tags });
        stream.entries.push_back((now, StoredPublication { publication: publication.clone(), previous }));
        stream.expire(history, now);
        let position = stream.position();
        if let Some(key) = options.idempotency_key {
            stream.results.insert(key, Some(position.clone()));
        }
        let delivery = Delivery::Positioned { epoch: position.epoch.clone(), previous, publication };
        (Published { position: Some(position), outcome: PublishOutcome::Published }, Some(delivery))
    }

    pub fn history(
        &mut self,
        channel: &ChannelName,
        query: &HistoryQuery,
        options: HistoryOptions,
        now: Millis,
    ) -> HistoryPage {
        let stream = self.stream(channel);
        stream.expire(options, now);
        let top = stream.position();
        let limit = query.limit.unwrap_or(usize::MAX);
        let retained = stream.entries.iter().map(|(_, entry)| entry);
        let Some(since) = &query.since else {
            let publications = if query.reverse {
                retained.rev().take(limit).cloned().collect()
            } else {
                retained.take(limit).cloned().collect()
            };
            return HistoryPage { top, publications, covered: false };
        };
        if !since.epoch.is_unknown() && since.epoch != top.epoch {
            return HistoryPage { top, publications: Vec::new(), covered: false };
        }
        let above = retained.clone().filter(|entry| entry.offset() > since.offset);
        let publications: Vec<_> = above.take(limit).cloned().collect();
        let evidence = Evidence::from_retained(since.offset, retained, publications.len());
        let covered = covered(since, &top, evidence);
        HistoryPage { top, publications, covered }
    }

    /// Loses everything. With `reuse_epochs` the streams go on under their old names: a bug.
    pub fn restart(&mut self, reuse_epochs: bool) {
        if reuse_epochs {
            for stream in self.streams.values_mut() {
                let epoch = stream.epoch.clone();
                *stream = Stream { epoch, top: 0, floor: 1, entries: VecDeque::new(), results: BTreeMap::new() };
            }
        } else {
            self.streams.clear();
        }
    }

    /// Loses the newest publications of every stream; what is published next begins a new lineage, unless
    /// `reuse_offsets`: a bug. Returns the tops that are left.
    pub fn roll_back(&mut self, random: &mut Random, reuse_offsets: bool) -> Vec<(ChannelName, u64)> {
        self.lineages += 1;
        let floor = self.lineages * LINEAGE_STEP;
        let roll_back = |(channel, stream): (&ChannelName, &mut Stream)| {
            for _ in 0..random.below(8) {
                let Some((at, lost)) = stream.entries.pop_back() else { break };
                // An unknown predecessor is unknown to us only: keep the publication.
                let Previous::Known(previous) = lost.previous else {
                    stream.entries.push_back((at, lost));
                    break;
                };
                stream.top = previous.0;
                stream.results.retain(|_, at| at.as_ref().is_none_or(|at| at.offset != lost.offset()));
            }
            if !reuse_offsets {
                stream.floor = floor;
            }
            (channel.clone(), stream.top)
        };
        self.streams.iter_mut().map(roll_back).collect()
    }
}
