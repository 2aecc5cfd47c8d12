//! A stream as a table: each subject is a row, of which the last message is the content.
//!
//! A row is read at the server that takes writes, and written on the condition that it is still what was read. What
//! calls of one kind need from one another is in one [`Ready`]: when the connection or what numbers mean changes in
//! between, the call fails.
//!
//! Rows of fenced tables have something random where messages have their id (see [`envelope`](super::envelope)), by which
//! a cluster that has lost a row is found out.

use std::sync::Arc;

use super::base::Base;
use super::envelope::id_of;
use super::request::{CallError, Stored, Write, Written};
use super::stream::{Ready, Stream, StreamSettings};
use crate::BackplaneError;

/// The longest subject. The server closes a connection on which a line of more than 4,096 bytes comes; a line has the
/// subject, where to answer, and lengths.
const SUBJECT_MAX: usize = 3_500;

pub(super) type Answer<T> = Result<T, BackplaneError>;

/// A table of this backplane.
pub(super) struct Table {
    pub(super) base: Arc<Base>,
    stream: Arc<Stream>,
}

impl Table {
    /// A table that is made when it is first used.
    pub(super) fn new(base: &Arc<Base>, settings: StreamSettings) -> Self {
        Self { stream: base.stream(settings), base: Arc::clone(base) }
    }

    /// The subject of these tokens below the prefix; an error when it would be too long for the server.
    pub(super) fn subject(&self, tokens: &[&str]) -> Answer<String> {
        let subject = self.base.names.subject(tokens);
        if subject.len() > SUBJECT_MAX {
            return Err(BackplaneError::Protocol(format!(
                "names of {} bytes are too long for nats, which takes {SUBJECT_MAX} bytes with the encoding",
                subject.len()
            )));
        }
        Ok(subject)
    }

    /// The connection on which the table can be used, and what its numbers mean.
    pub(super) async fn ready(&self) -> Answer<Ready> {
        self.stream.ready().await
    }

    /// A row; `None` if there is none.
    pub(super) async fn get(&self, ready: &Ready, subject: &str) -> Answer<Option<Stored>> {
        self.noticed(if ready.lineage.is_replicated {
            ready.connection.last(self.stream.name(), subject).await
        } else {
            // The only server that has it, and it need not write the content out as text.
            ready.connection.read_last(self.stream.name(), subject).await
        })
    }

    /// Writes a row; `None` when it is not what was expected any more.
    pub(super) async fn put(&self, ready: &Ready, write: Write) -> Answer<Option<Written>> {
        let id = id_of(&write.payload);
        match self.noticed_call(ready.connection.write(write).await) {
            Ok(written) => {
                if let Some(id) = id {
                    self.stream.wrote(&ready.lineage, written.number, id);
                }
                Ok(Some(written))
            }
            Err(CallError::Conflict) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the row that was written under this number; whether it was there. Of several that try one is told so.
    pub(super) async fn delete(&self, ready: &Ready, number: u64) -> Answer<bool> {
        self.noticed(ready.connection.delete(self.stream.name(), number).await)
    }

    /// Removes the row that was written under this number, and must be the one with this subject.
    pub(super) async fn remove_row(&self, ready: &Ready, subject: &str, number: u64) -> Answer<()> {
        if self.delete(ready, number).await? {
            return Ok(());
        }
        // It is gone, or something else refuses.
        self.remove(ready, subject).await
    }

    /// Removes the rows that match. Takes the longer the more there is in the table.
    pub(super) async fn remove(&self, ready: &Ready, filter: &str) -> Answer<()> {
        self.noticed(ready.connection.purge(self.stream.name(), filter).await)
    }

    /// Removes the rows that match, unless they were written after this number.
    pub(super) async fn remove_up_to(&self, ready: &Ready, filter: &str, number: u64) -> Answer<()> {
        self.noticed(ready.connection.purge_up_to(self.stream.name(), filter, number).await)
    }

    /// The rows that match.
    pub(super) async fn all(&self, ready: &Ready, filter: &str) -> Answer<Vec<Stored>> {
        self.noticed(ready.connection.last_of_each(self.stream.name(), filter).await)
    }

    /// Some of the rows that match, at most `count`, those written longest ago first but not under a lower number than `from`.
    pub(super) async fn some(&self, ready: &Ready, filter: &str, from: u64, count: usize) -> Answer<Vec<Stored>> {
        let page = ready.connection.read(self.stream.name(), filter, from, count).await;
        self.noticed(page).map(|page| page.messages)
    }

    /// How many rows match.
    pub(super) async fn count(&self, ready: &Ready, filter: &str) -> Answer<usize> {
        self.noticed(ready.connection.count_subjects(self.stream.name(), filter).await)
    }

    /// The offset of a message that is in the table: see [`fence`](super::fence).
    pub(super) fn offset(ready: &Ready, number: u64) -> Answer<u64> {
        let offset = ready.lineage.offset(number).map(|offset| offset.0);
        offset.ok_or_else(|| BackplaneError::Protocol("nats has a row from before all fences".to_owned()))
    }

    fn noticed<T>(&self, answer: Result<T, CallError>) -> Answer<T> {
        self.noticed_call(answer).map_err(Into::into)
    }

    /// After some errors the stream may not be what it was.
    fn noticed_call<T>(&self, answer: Result<T, CallError>) -> Result<T, CallError> {
        answer.inspect_err(|error| self.stream.failed(error))
    }
}

/// The error for a row that this version cannot read.
pub(super) fn unreadable(subject: &str, why: impl std::fmt::Display) -> BackplaneError {
    BackplaneError::Protocol(format!("what is in {subject} at nats cannot be read: {why}"))
}

/// Whether a row that lives for `ttl` milliseconds after its last message is over. All times are the server's.
pub(super) fn is_over(stored: &Stored, ttl_ms: u64, now: u64) -> bool {
    now >= stored.time.saturating_add(ttl_ms.saturating_mul(1_000_000))
}

/// Milliseconds, rounded up.
pub(super) fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Attempts at a step that reads, decides and writes, each after somebody else wrote in between.
pub(super) const ATTEMPTS: usize = 40;

/// What to say when all of them were in vain.
pub(super) fn too_many_others() -> BackplaneError {
    CallError::Conflict.into()
}
