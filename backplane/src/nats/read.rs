//! Reading what was published, and saying whether it is everything.

use std::sync::Arc;
use std::time::Duration;

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
        let kept = self.classes.of(&options)?;
        self.base
            .calls
            .call(async {
                for _ in 0..ATTEMPTS {
                    let ready = self.ready(&kept).await?;
                    match self.try_read(&ready, &kept, channel, query, &options).await {
                        Ok(Some(page)) => return Ok(page),
                        // The stream is not what it was when this began.
                        Ok(None) => kept.stream.doubt(),
                        Err(CallError::NoStream) => {
                            kept.stream.doubt();
                            tokio::time::sleep(PAUSE).await;
                        }
                        Err(error) => {
                            kept.stream.failed(&error);
                            return Err(error.into());
                        }
                    }
                }
                Err(BackplaneError::Unavailable("the nats stream changes all the time".to_owned()))
            })
            .await
    }

    /// `None` if more must be known of the stream first.
    async fn try_read(
        &self,
        ready: &Ready,
        kept: &Arc<Kept>,
        channel: &ChannelName,
        query: &HistoryQuery,
        options: &HistoryOptions,
    ) -> Result<Option<HistoryPage>, CallError> {
        let subject = self.base.names.stored(kept.class, channel);
        let lineage = &ready.lineage;
        if query.limit == Some(0) {
            let last = self.last_or_seed(ready, kept, &subject).await?;
            if !knows(lineage, &last) {
                return Ok(None);
            }
            let top = self.position(lineage, last.number)?;
            let evidence = Evidence { entry_retained: false, oldest_previous: None, reached_top: false };
            let covered = !query.reverse && query.since.as_ref().is_some_and(|since| covered(since, &top, evidence));
            return Ok(Some(HistoryPage { top, publications: Vec::new(), covered }));
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
        let found = self.find(ready, kept, &subject, from.unwrap_or(1), count).await?;
        if found.messages.iter().any(|message| !knows(lineage, message)) {
            return Ok(None);
        }
        let top = match found.messages.last() {
            Some(last) if found.is_whole => last.number,
            _ => self.last_or_seed(ready, kept, &subject).await?.number,
        };
        let top = self.position(lineage, top)?;
        page(lineage, &found, top, query, options, self.base.now()).map(Some)
    }

    fn position(&self, lineage: &Lineage, number: u64) -> Result<StreamPosition, CallError> {
        let offset = lineage.offset(number);
        let offset = offset.ok_or_else(|| CallError::Unexpected(format!("a last message with the number {number}")))?;
        Ok(StreamPosition { epoch: lineage.epoch().clone(), offset })
    }

    /// Reads a channel's messages from a number on. If there are none, from the beginning; and if there are none at all,
    /// it writes one, so that the channel has a position.
    async fn find(
        &self,
        ready: &Ready,
        kept: &Kept,
        subject: &str,
        from: u64,
        count: usize,
    ) -> Result<Found, CallError> {
        let connection = &ready.connection;
        let stream = kept.stream.name();
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
            at_least = Some(self.seed(ready, kept, subject).await?);
        }
        Err(CallError::Unavailable("the servers of nats that answer reads are behind".to_owned()))
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
    async fn last_or_seed(&self, ready: &Ready, kept: &Kept, subject: &str) -> Result<Stored, CallError> {
        let stream = kept.stream.name();
        for _ in 0..ATTEMPTS {
            let last = if ready.lineage.is_replicated {
                ready.connection.last(stream, subject).await?
            } else {
                ready.connection.read_last(stream, subject).await?
            };
            match last {
                Some(last) => return Ok(last),
                None => drop(self.seed(ready, kept, subject).await?),
            }
        }
        Err(CallError::Conflict)
    }

    /// Writes a message that says nothing, unless there is another one. Returns the number of the last one.
    async fn seed(&self, ready: &Ready, kept: &Kept, subject: &str) -> Result<u64, CallError> {
        let random = rand::random();
        let payload = Envelope { knowledge: ready.lineage.knowledge(), id: random, content: Content::Seed }.encode();
        let write = Write { expected: Some(0), ..Write::new(subject.to_owned(), payload) };
        match ready.connection.write(write).await {
            Ok(written) => {
                kept.stream.wrote(&ready.lineage, written.number, random);
                Ok(written.number)
            }
            Err(CallError::Conflict) => Ok(0),
            Err(error) => Err(error),
        }
    }
}

/// Whether a message was written by somebody who knew no more of the stream than we do.
fn knows(lineage: &Lineage, message: &Stored) -> bool {
    // One that cannot be read is found out later.
    decode(&message.payload).map_or(true, |envelope| !lineage.knowledge().is_behind(envelope.knowledge))
}

/// What a channel shows of the messages that were found.
fn page(
    lineage: &Lineage,
    found: &Found,
    top: StreamPosition,
    query: &HistoryQuery,
    options: &HistoryOptions,
    now: u64,
) -> Result<HistoryPage, CallError> {
    let ttl = super::publish::ttl_nanoseconds(options);
    let entries = entries(lineage, &found.messages, now.saturating_sub(ttl))?;
    let shown = {
        let publications = entries.iter().filter(|entry| entry.publication.is_some()).count();
        // Of those that are kept, one more than are shown.
        let mut surplus = publications.saturating_sub(options.size.max(1));
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
    let stored = |entry: &&Entry| entry.publication.clone();
    if query.reverse {
        let before = |entry: &&&Entry| query.since.as_ref().is_none_or(|since| entry.offset < since.offset);
        let publications = shown.iter().rev().filter(before).filter_map(|entry| stored(entry)).take(limit).collect();
        return Ok(HistoryPage { top, publications, covered: false });
    }
    let after = |entry: &&&Entry| query.since.as_ref().is_none_or(|since| entry.offset > since.offset);
    let above: Vec<StoredPublication> = shown.iter().filter(after).filter_map(|entry| stored(entry)).collect();
    let total = above.len();
    let publications: Vec<StoredPublication> = above.into_iter().take(limit).collect();
    let covered = query.since.as_ref().is_some_and(|since| {
        let evidence = evidence(&entries, &shown, since.offset, found.is_whole && publications.len() == total);
        covered(since, &top, evidence)
    });
    Ok(HistoryPage { top, publications, covered })
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
