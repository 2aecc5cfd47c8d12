//! The stream of one channel: epoch, top offset, version and the retained publications.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use super::clock::Moment;
use super::limits::Counters;
use super::order::Place;
use crate::coverage::{Evidence, covered};
use crate::{
    ClientInfo, Epoch, HistoryOptions, HistoryPage, HistoryQuery, NewPublication, Offset, Previous, Publication,
    StoredPublication, StreamPosition,
};

/// Letters in an epoch: 52^10 is about 2^57, so that a channel which is forgotten and used again, in this process or
/// in a later one, does not meet its old epoch. Short, because every subscribe reply carries it.
const EPOCH_LETTERS: usize = 10;

/// Bookkeeping of one stored publication in bytes: its allocation, the list slot and allocator rounding.
const PUBLICATION_OVERHEAD_BYTES: usize = 160;

/// Bookkeeping of one tag: two strings and its share of a tree node.
const TAG_OVERHEAD_BYTES: usize = 96;

/// Bookkeeping of a publisher's info, which a stored publication may be the last to hold.
const INFO_OVERHEAD_BYTES: usize = 160;

/// What one publication counts against the history limit.
pub(super) fn cost_bytes(publication: &NewPublication) -> usize {
    cost(publication.data.len(), publication.info.as_deref(), &publication.tags)
}

fn cost(data: usize, info: Option<&ClientInfo>, tags: &BTreeMap<String, String>) -> usize {
    let tags: usize = tags.iter().map(|(name, value)| name.len() + value.len() + TAG_OVERHEAD_BYTES).sum();
    let info = info
        .map_or(0, |info| info.user.as_str().len() + info.conn_info.len() + info.chan_info.len() + INFO_OVERHEAD_BYTES);
    data + tags + info + PUBLICATION_OVERHEAD_BYTES
}

/// Offsets are contiguous here and start at 1, but nothing outside of this file may rely on it.
#[derive(Debug)]
pub(super) struct Stream {
    epoch: Epoch,
    top: Offset,
    version: u64,
    version_epoch: Box<str>,
    /// Oldest first. Physically present entries may have expired: see `entries_expire`.
    entries: VecDeque<StoredPublication>,
    bytes: usize,
    /// From here on no entry is readable; every publish moves it.
    entries_expire: Moment,
    /// From here on epoch and top are forgotten; every use moves it. Never before `entries_expire`.
    meta_expires: Moment,
    /// `history_meta_ttl` of the last use.
    meta_ttl: Duration,
    pub(super) last_used: Moment,
    /// Where it is filed for eviction. Written only by [`super::order::Order`].
    pub(super) place: Option<Place>,
}

impl Stream {
    pub(super) fn new(now: Moment, counters: &Counters) -> Self {
        counters.streams.add(1);
        Self {
            epoch: random_epoch(),
            top: Offset(0),
            version: 0,
            version_epoch: Box::default(),
            entries: VecDeque::new(),
            bytes: 0,
            entries_expire: now,
            meta_expires: now,
            meta_ttl: Duration::ZERO,
            last_used: now,
            place: None,
        }
    }

    pub(super) fn position(&self) -> StreamPosition {
        StreamPosition { epoch: self.epoch.clone(), offset: self.top }
    }

    /// Notes a use: epoch and top live on for `meta_ttl` from now, or longer when that was promised before.
    pub(super) fn touch(&mut self, now: Moment, options: HistoryOptions) {
        self.last_used = now;
        self.meta_ttl = options.meta_ttl;
        self.meta_expires = self.meta_expires.max(now.after(options.meta_ttl)).max(self.entries_expire);
    }

    /// True when a publish with this version must be skipped (protocol section 7.2).
    pub(super) fn is_outdated(&self, version: u64, version_epoch: &str) -> bool {
        version > 0 && version <= self.version && (version_epoch.is_empty() || *version_epoch == *self.version_epoch)
    }

    /// Remembers the version of an accepted publish; 0 means that it had none.
    pub(super) fn set_version(&mut self, version: u64, version_epoch: &str) {
        if version > 0 {
            self.version = version;
            if *version_epoch != *self.version_epoch {
                self.version_epoch = Box::from(version_epoch);
            }
        }
    }

    /// Gives the publication the next offset and stores it; constant work but for what the size trims.
    pub(super) fn append(
        &mut self,
        publication: NewPublication,
        options: HistoryOptions,
        now: Moment,
        counters: &Counters,
    ) -> StoredPublication {
        if self.entries_expire <= now {
            self.clear(counters);
        }
        while self.entries.len() >= options.size.max(1) {
            self.pop_oldest(counters);
        }
        let bytes = cost_bytes(&publication);
        let NewPublication { data, info, tags } = publication;
        let previous = Previous::Known(self.top);
        self.top = Offset(self.top.0 + 1);
        let publication = Arc::new(Publication { offset: Some(self.top), data, info, tags });
        let stored = StoredPublication { publication, previous };
        self.entries.push_back(stored.clone());
        self.bytes += bytes;
        counters.publications.add(1);
        counters.history_bytes.add(bytes);
        self.entries_expire = now.after(options.ttl);
        self.touch(now, options);
        stored
    }

    /// Drops the oldest entry and returns its size in bytes, 0 if there is none.
    pub(super) fn pop_oldest(&mut self, counters: &Counters) -> usize {
        let Some(oldest) = self.entries.pop_front() else { return 0 };
        let publication = &oldest.publication;
        let bytes = cost(publication.data.len(), publication.info.as_deref(), &publication.tags);
        self.bytes -= bytes;
        counters.publications.sub(1);
        counters.history_bytes.sub(bytes);
        if self.entries.is_empty() {
            self.entries = VecDeque::new();
        }
        bytes
    }

    /// Drops all entries; epoch, top and version stay.
    pub(super) fn clear(&mut self, counters: &Counters) {
        counters.publications.sub(self.entries.len());
        counters.history_bytes.sub(self.bytes);
        self.bytes = 0;
        self.entries = VecDeque::new();
    }

    /// Frees expired entries, at most `budget`; returns how many were freed.
    pub(super) fn expire(&mut self, now: Moment, budget: usize, counters: &Counters) -> usize {
        if self.entries_expire > now {
            return 0;
        }
        let work = self.entries.len().min(budget);
        for _ in 0..work {
            self.pop_oldest(counters);
        }
        work
    }

    /// True when nothing is stored, expired or not.
    pub(super) fn is_bare(&self) -> bool {
        self.entries.is_empty()
    }

    /// Notes the end of a subscription, which is a use that lasted until now.
    pub(super) fn prolong(&mut self, now: Moment) {
        self.meta_expires = self.meta_expires.max(now.after(self.meta_ttl));
    }

    /// True when epoch and top must be forgotten.
    pub(super) fn is_forgotten(&self, now: Moment) -> bool {
        self.meta_expires <= now
    }

    /// When something of this stream expires next. Epoch and top are not forgotten while the channel is subscribed: there
    /// are those who hold a position in it.
    pub(super) fn next_expiry(&self, subscribed: bool) -> Moment {
        match (self.entries.is_empty(), subscribed) {
            (false, _) => self.entries_expire,
            (true, false) => self.meta_expires,
            (true, true) => Moment::NEVER,
        }
    }

    /// Reads without noting a use. Finding the start is a binary search, so the work is what is returned.
    pub(super) fn read(&self, query: &HistoryQuery, now: Moment) -> HistoryPage {
        let top = self.position();
        let retained = if self.entries_expire <= now { 0 } else { self.entries.len() };
        let limit = query.limit.unwrap_or(usize::MAX);
        if query.since.as_ref().is_some_and(|since| !since.epoch.is_unknown() && since.epoch != self.epoch) {
            // Offsets of different epochs cannot be compared, so there is no "after" to return.
            return HistoryPage { top, publications: Vec::new(), covered: false };
        }
        let since = query.since.as_ref().map(|position| position.offset);
        if query.reverse {
            let end = since.map_or(retained, |offset| self.entries.partition_point(|entry| entry.offset() < offset));
            let publications = self.entries.range(..end.min(retained)).rev().take(limit).cloned().collect();
            return HistoryPage { top, publications, covered: false };
        }
        let start = since.map_or(0, |offset| self.entries.partition_point(|entry| entry.offset() <= offset));
        let start = start.min(retained);
        let publications: Vec<_> = self.entries.range(start..retained).take(limit).cloned().collect();
        let covered = query.since.as_ref().is_some_and(|since| {
            let evidence = Evidence {
                entry_retained: start > 0 && self.entries[start - 1].offset() == since.offset,
                oldest_previous: self.entries.range(..retained).next().map(|oldest| oldest.previous),
                reached_top: publications.len() == retained - start,
            };
            covered(since, &top, evidence)
        });
        HistoryPage { top, publications, covered }
    }
}

fn random_epoch() -> Epoch {
    const LETTERS: &[u8; 52] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut random = rand::rng();
    let text: String = (0..EPOCH_LETTERS).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect();
    Epoch::from(text)
}
