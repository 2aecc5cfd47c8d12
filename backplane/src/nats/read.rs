//! Reading what was published, and saying whether it is everything.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;

use super::NatsBackplane;
use super::classes::Kept;
use super::envelope::{Content, Envelope, decode};
use super::request::{CallError, PAGE_MAX, Stored, Write};
use super::stream::{Lineage, Ready};
use crate::coverage::{Evidence, covered};
use crate::record::{Record, decode as decode_record};
use crate::{
    BackplaneError, ChannelName, HistoryOptions, HistoryPage, HistoryQuery, Offset, Previous, StoredPublication,
    StreamPosition,
};

/// Attempts to read what a server does not have yet, or what changed meanwhile.
const ATTEMPTS: usize = 50;

/// Pause between them.
const PAUSE: Duration = Duration::from_millis(10);

/// What was read of a channel: its messages from some number on, oldest first.
struct Found {
    messages: Vec<Stored>,
    /// The last message is among them.
    is_whole: bool,
}

impl NatsBackplane {
    pub(super) async fn read_now(
        &self,
        channel: &ChannelName,
        query: &HistoryQuery,
        options: HistoryOptions,
    ) -> Result<HistoryPage, BackplaneError> {
        let mut kept = self.classes.of(channel, &options)?;
        let mut is_own = true;
        self.base
            .calls
            .call(async {
                for _ in 0..ATTEMPTS {
                    let ready = self.ready(&kept).await?;
                    let reading = Reading { ready: &ready, kept: &kept, channel, options: &options, is_own };
                    match self.try_read(&reading, query).await {
                        Ok(page) => return Ok(page),
                        Err(ReadError::Elsewhere(other)) => {
                            kept = other;
                            is_own = false;
                        }
                        // The stream is not what it was when this began.
                        Err(ReadError::Behind) => kept.stream.doubt(),
                        Err(ReadError::Call(CallError::NoStream)) => {
                            kept.stream.doubt();
                            tokio::time::sleep(PAUSE).await;
                        }
                        Err(ReadError::Call(error)) => {
                            kept.stream.failed(&error);
                            return Err(error.into());
                        }
                    }
                }
                Err(BackplaneError::Unavailable("the nats stream changes all the time".to_owned()))
            })
            .await
    }

    async fn try_read(&self, reading: &Reading<'_>, query: &HistoryQuery) -> Result<HistoryPage, ReadError> {
        let lineage = &reading.ready.lineage;
        let known = |message: &Stored| if knows(lineage, message) { Ok(()) } else { Err(ReadError::Behind) };
        if query.limit == Some(0) {
            let last = self.last_or_seed(reading).await?;
            known(&last)?;
            self.not_elsewhere(reading, last.time).await?;
            let top = position(lineage, last.number)?;
            let evidence = Evidence { entry_retained: false, oldest_previous: None, reached_top: false };
            let covered = !query.reverse && query.since.as_ref().is_some_and(|since| covered(since, &top, evidence));
            return Ok(HistoryPage { top, publications: Vec::new(), covered });
        }
        let since = query.since.as_ref().filter(|_| !query.reverse);
        let from = since.and_then(|since| {
            let is_same = since.epoch.is_unknown() || since.epoch == *lineage.epoch();
            lineage.number(since.offset).filter(|_| is_same)
        });
        // The position itself, and one more than asked for, which tells whether the limit cuts something off.
        let count = match (from, query.limit) {
            (Some(_), Some(limit)) => limit.saturating_add(2),
            _ => usize::MAX,
        };
        let found = self.find(reading, from.unwrap_or(1), count).await?;
        found.messages.iter().try_for_each(known)?;
        let (top, time) = match found.messages.last() {
            Some(last) if found.is_whole => (last.number, last.time),
            _ => {
                let last = self.last_or_seed(reading).await?;
                (last.number, last.time)
            }
        };
        self.not_elsewhere(reading, time).await?;
        let top = position(lineage, top)?;
        // A channel that is found elsewhere is as it was made there.
        let size = reading.options.size.clamp(1, reading.kept.class.size);
        let ttl = u64::try_from(reading.options.ttl.as_nanos()).unwrap_or(u64::MAX);
        let entries = entries(lineage, &found.messages, self.base.now().saturating_sub(ttl))?;
        Ok(page(&entries, found.is_whole, top, query, size))
    }

    /// Reads a channel's messages from a number on. If there are none, from the beginning; and if there are none at all,
    /// it writes one, so that the channel has a position.
    async fn find(&self, reading: &Reading<'_>, from: u64, count: usize) -> Result<Found, ReadError> {
        let ready = reading.ready;
        let (connection, stream) = (&ready.connection, reading.kept.stream.name());
        let subject = &self.base.names.stored(reading.kept.class, reading.channel);
        // Whoever answers reads may lag behind whoever takes writes.
        let mut at_least = if ready.lineage.is_replicated {
            connection.last(stream, subject).await?.map(|last| last.number)
        } else {
            None
        };
        let mut from = from.max(1);
        for _ in 0..ATTEMPTS {
            let found = self.pages(ready, stream, subject, from, count).await?;
            let last = found.messages.last().map(|last| last.number);
            if found.is_whole && last < at_least && at_least >= Some(from) {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            if last.is_some() {
                return Ok(found);
            }
            if from > 1 {
                from = 1;
                continue;
            }
            at_least = Some(self.seed(reading).await?);
        }
        Err(CallError::Unavailable("the servers of nats that answer reads are behind".to_owned()).into())
    }

    async fn pages(
        &self,
        ready: &Ready,
        stream: &str,
        subject: &str,
        from: u64,
        count: usize,
    ) -> Result<Found, CallError> {
        let mut messages: Vec<Stored> = Vec::new();
        let mut next = from;
        while messages.len() < count {
            let page = ready.connection.read(stream, subject, next, (count - messages.len()).min(PAGE_MAX)).await?;
            let Some(last) = page.messages.last() else { return Ok(Found { messages, is_whole: true }) };
            next = last.number + 1;
            messages.extend(page.messages);
            if !page.has_more {
                return Ok(Found { messages, is_whole: true });
            }
        }
        Ok(Found { messages, is_whole: false })
    }

    /// The last message of a channel; if there is none, it writes one.
    async fn last_or_seed(&self, reading: &Reading<'_>) -> Result<Stored, ReadError> {
        let ready = reading.ready;
        let stream = reading.kept.stream.name();
        let subject = &self.base.names.stored(reading.kept.class, reading.channel);
        for _ in 0..ATTEMPTS {
            let last = if ready.lineage.is_replicated {
                ready.connection.last(stream, subject).await?
            } else {
                ready.connection.read_last(stream, subject).await?
            };
            match last {
                Some(last) => return Ok(last),
                None => drop(self.seed(reading).await?),
            }
        }
        Err(CallError::Conflict.into())
    }

    /// Writes a message that says nothing, unless there is another one. Returns the number of the last one.
    async fn seed(&self, reading: &Reading<'_>) -> Result<u64, ReadError> {
        let Reading { ready, kept, channel, .. } = reading;
        self.not_elsewhere(reading, 0).await?;
        let subject = self.base.names.stored(kept.class, channel);
        let random = rand::random();
        let payload = Envelope { knowledge: ready.lineage.knowledge(), id: random, content: Content::Seed }.encode();
        let write = Write { expected: Some(0), ..Write::new(subject, payload) };
        match ready.connection.write(write).await {
            Ok(written) => {
                kept.stream.wrote(&ready.lineage, written.number, random);
                Ok(written.number)
            }
            Err(CallError::Conflict) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes sure that no other stream has something of the channel that was written after `time`: another node may have
    /// other options for it, while these are being changed in a fleet. Costs nothing where all channels have the same.
    async fn not_elsewhere(&self, reading: &Reading<'_>, time: u64) -> Result<(), ReadError> {
        if !reading.is_own {
            return Ok(());
        }
        let connection = &reading.ready.connection;
        let lasts = self.classes.others(reading.kept.class).into_iter().map(|other| async move {
            let subject = self.base.names.stored(other.class, reading.channel);
            match connection.last(other.stream.name(), &subject).await {
                Ok(last) => Ok(last.map(|last| (last.time, other))),
                Err(CallError::NoStream) => Ok(None),
                Err(error) => Err(error),
            }
        });
        let lasts = try_join_all(lasts).await?.into_iter().flatten();
        match lasts.filter(|(last, _)| *last > time).max_by_key(|(last, _)| *last) {
            Some((_, other)) => Err(ReadError::Elsewhere(other)),
            None => Ok(()),
        }
    }
}

/// A channel and the stream in which it is looked for.
struct Reading<'a> {
    ready: &'a Ready,
    kept: &'a Arc<Kept>,
    channel: &'a ChannelName,
    options: &'a HistoryOptions,
    /// The stream is the one for these options.
    is_own: bool,
}

/// Why a read did not succeed.
enum ReadError {
    Call(CallError),
    /// More must be known of the stream first.
    Behind,
    /// The channel is in another stream.
    Elsewhere(Arc<Kept>),
}

impl From<CallError> for ReadError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

fn position(lineage: &Lineage, number: u64) -> Result<StreamPosition, CallError> {
    let offset = lineage.offset(number);
    let offset = offset.ok_or_else(|| CallError::Unexpected(format!("a last message with the number {number}")))?;
    Ok(StreamPosition { epoch: lineage.epoch().clone(), offset })
}

/// Whether a message was written by somebody who knew no more of the stream than we do.
fn knows(lineage: &Lineage, message: &Stored) -> bool {
    // One that cannot be read is found out later.
    decode(&message.payload).map_or(true, |envelope| !lineage.knowledge().is_behind(envelope.knowledge))
}

/// What a channel of that size shows of its messages.
fn page(entries: &[Entry], is_whole: bool, top: StreamPosition, query: &HistoryQuery, size: usize) -> HistoryPage {
    let shown = {
        let publications = entries.iter().filter(|entry| entry.publication.is_some()).count();
        // Of those that are kept, one more than are shown.
        let mut surplus = publications.saturating_sub(size);
        let mut shown: Vec<&Entry> = Vec::with_capacity(publications);
        for entry in entries.iter().filter(|entry| entry.publication.is_some()) {
            if surplus > 0 {
                surplus -= 1;
            } else if !entry.is_expired {
                shown.push(entry);
            }
        }
        shown
    };
    let limit = query.limit.unwrap_or(usize::MAX);
    if query.reverse {
        let before = |entry: &&&Entry| query.since.as_ref().is_none_or(|since| entry.offset < since.offset);
        let publications =
            shown.iter().rev().filter(before).filter_map(|entry| entry.publication.clone()).take(limit).collect();
        return HistoryPage { top, publications, covered: false };
    }
    let after = |entry: &&&Entry| query.since.as_ref().is_none_or(|since| entry.offset > since.offset);
    let above: Vec<StoredPublication> =
        shown.iter().filter(after).filter_map(|entry| entry.publication.clone()).collect();
    let total = above.len();
    let publications: Vec<StoredPublication> = above.into_iter().take(limit).collect();
    let covered = query.since.as_ref().is_some_and(|since| {
        let evidence = evidence(entries, &shown, since.offset, is_whole && publications.len() == total);
        covered(since, &top, evidence)
    });
    HistoryPage { top, publications, covered }
}

fn evidence(entries: &[Entry], shown: &[&Entry], since: Offset, reached_top: bool) -> Evidence {
    let at = entries.iter().position(|entry| entry.offset == since || entry.replaces == Some(since));
    // Those that are kept and not shown are the oldest: if none of them came after the position, nothing is missing.
    let first_shown = shown.first().map(|entry| entry.offset);
    let is_complete = at.is_some_and(|at| {
        let first = entries[at + 1..].iter().find(|entry| entry.publication.is_some());
        first.is_none_or(|first| first_shown.is_some_and(|shown| shown <= first.offset))
    });
    let oldest = shown.first().and_then(|entry| entry.publication.as_ref());
    Evidence { entry_retained: is_complete, oldest_previous: oldest.map(|oldest| oldest.previous), reached_top }
}

/// A message of a channel, understood.
struct Entry {
    offset: Offset,
    /// The offset whose removal it marks.
    replaces: Option<Offset>,
    publication: Option<StoredPublication>,
    /// It is older than publications are shown.
    is_expired: bool,
}

fn entries(lineage: &Lineage, messages: &[Stored], oldest: u64) -> Result<Vec<Entry>, CallError> {
    let mut entries: Vec<Entry> = Vec::with_capacity(messages.len());
    for message in messages {
        // Older than all that is known of the stream: as if it had been trimmed.
        let Some(offset) = lineage.offset(message.number) else { continue };
        let envelope = decode(&message.payload).map_err(|error| CallError::Unexpected(error.to_string()))?;
        let (mut replaces, mut publication) = (None, None);
        match envelope.content {
            Content::Publication { record, .. } => {
                let previous = entries.last().map_or(Previous::Unknown, |entry| Previous::Known(entry.offset));
                let record = decode_record(record, Some(offset));
                match record.map_err(|error| CallError::Unexpected(error.to_string()))? {
                    Record::Publication(content) => {
                        publication = Some(StoredPublication { publication: Arc::new(content), previous });
                    }
                    Record::Presence(_) => {
                        return Err(CallError::Unexpected("a presence event among publications".to_owned()));
                    }
                }
            }
            Content::Removed { previous } => replaces = lineage.offset(previous),
            _ => {}
        }
        entries.push(Entry { offset, replaces, publication, is_expired: message.time < oldest });
    }
    Ok(entries)
}
