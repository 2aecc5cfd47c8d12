//! Session records on NATS: rows with compare-and-set, beside the revocations of their user in the same stream, so that
//! the order of both is that of their numbers.
//!
//! A revision is the offset of the message by which the record was written; a touch writes the record again, with the
//! revision that it has. A record that was revoked says so itself as soon as it is written again without authorisation,
//! so a revocation has to be remembered only for as long as the longest record lives.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::NatsBackplane;
use super::base::Base;
use super::names::token;
use super::request::{Stored, Write};
use super::stream::{Ready, StreamSettings};
use super::table::{ATTEMPTS, Answer, Table, is_over, millis, too_many_others, unreadable};
use crate::sessions::check_session;
use crate::{BackplaneError, BackplaneFuture, SESSIONS_PER_USER, SessionRecord, SessionStore, SessionWrite, UserId};

/// The longest life of a record. The server forgets everything after a time that is set for the stream, and a record must
/// not outlive the revocation of its user.
const TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long revocations and, on servers older than 2.11, records are kept.
const KEPT: Duration = Duration::from_secs(25 * 3600);

const VERSION: u8 = 1;

/// Set in a record that was revoked when it was last written.
const REVOKED: u8 = 1;

/// Bytes before the data of a record.
const HEAD: usize = 34;

/// The table of sessions.
pub(super) struct Sessions {
    table: Table,
}

/// A record as it is stored: version, flags, time to live in milliseconds, a random id, revision, authorisation, data.
/// Numbers have 64 bits, the most significant byte first.
struct Row {
    ttl_ms: u64,
    /// The offset of the message that brought the content; `None` (0) stands for this message.
    revision: Option<u64>,
    /// The same for the one that was authorised.
    authorised: Option<u64>,
    was_revoked: bool,
    data: Bytes,
}

impl Row {
    fn parse(stored: &Stored) -> Answer<Self> {
        let payload = &stored.payload;
        let short = || unreadable(&stored.subject, "it ends too early");
        let number = |at: usize| payload.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        let [version, flags, ..] = payload[..] else { return Err(short()) };
        if version != VERSION {
            return Err(unreadable(&stored.subject, format!("version {version}, this node reads version {VERSION}")));
        }
        let number = |at| number(at).ok_or_else(short);
        let given = |at| number(at).map(|number| Some(number).filter(|number| *number != 0));
        Ok(Self {
            ttl_ms: number(2)?,
            revision: given(18)?,
            authorised: given(26)?,
            was_revoked: flags & REVOKED != 0,
            data: payload.slice(HEAD..),
        })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + self.data.len());
        out.extend([VERSION, if self.was_revoked { REVOKED } else { 0 }]);
        for number in [self.ttl_ms, rand::random(), self.revision.unwrap_or(0), self.authorised.unwrap_or(0)] {
            out.extend(number.to_be_bytes());
        }
        out.extend_from_slice(&self.data);
        out
    }
}

/// A record that is there, and what is known of it.
struct Found {
    row: Row,
    number: u64,
    revision: u64,
    authorised: u64,
    is_revoked: bool,
}

impl Found {
    fn record(self) -> SessionRecord {
        SessionRecord { revision: self.revision, data: self.row.data, is_revoked: self.is_revoked }
    }
}

/// What a read has found: a record, or what a first write must expect.
enum State {
    Present(Found),
    Absent { expected: u64 },
}

impl Sessions {
    pub(super) fn new(base: &Arc<Base>) -> Self {
        let names = &base.names;
        let settings = StreamSettings {
            max_age: Some(KEPT),
            message_ttls: true,
            is_fenced: true,
            ..StreamSettings::last_of_each(names.stream("sessions"), names.subject(&["u", ">"]))
        };
        Self { table: Table::new(base, settings) }
    }

    /// Makes the table, so that a server that does not allow it is found out at the start.
    pub(super) async fn prepare(&self) -> Answer<()> {
        self.table.ready().await.map(|_| ())
    }

    fn record_of(&self, user: &UserId, session: &str) -> Answer<String> {
        self.table.subject(&["u", &token(user.as_str()), &token(session)])
    }

    fn revocation_of(&self, user: &UserId) -> Answer<String> {
        self.table.subject(&["u", &token(user.as_str())])
    }

    async fn state(&self, ready: &Ready, user: &UserId, session: &str) -> Answer<State> {
        let (subject, revocation) = (self.record_of(user, session)?, self.revocation_of(user)?);
        let reads = (self.table.get(ready, &subject), self.table.get(ready, &revocation));
        let (stored, revocation) = futures_util::future::try_join(reads.0, reads.1).await?;
        let Some(stored) = stored else { return Ok(State::Absent { expected: 0 }) };
        let absent = Ok(State::Absent { expected: stored.number });
        let row = Row::parse(&stored)?;
        // One from before all fences has no revision that could be compared.
        let Some(offset) = ready.lineage.offset(stored.number) else { return absent };
        if is_over(&stored, row.ttl_ms, self.table.base.now()) {
            return absent;
        }
        let (revision, authorised) = (row.revision.unwrap_or(offset.0), row.authorised.unwrap_or(offset.0));
        let revoked = revocation.and_then(|revocation| ready.lineage.offset(revocation.number));
        let is_revoked = row.was_revoked || revoked.is_some_and(|revoked| authorised <= revoked.0);
        Ok(State::Present(Found { row, number: stored.number, revision, authorised, is_revoked }))
    }

    async fn load(&self, user: &UserId, session: &str) -> Answer<Option<SessionRecord>> {
        let ready = self.table.ready().await?;
        match self.state(&ready, user, session).await? {
            State::Present(found) => Ok(Some(found.record())),
            State::Absent { .. } => Ok(None),
        }
    }

    /// Writes a row; its revision if nothing else was written since `expected`.
    async fn store(&self, ready: &Ready, subject: String, expected: u64, row: &Row) -> Answer<Option<u64>> {
        let seconds = row.ttl_ms.div_ceil(1000).max(1);
        let write = Write {
            expected: Some(expected),
            // What is over is over by this node's reckoning; the server only tidies up.
            ttl_seconds: Some(seconds + 1),
            ..Write::new(subject, row.to_bytes())
        };
        match self.table.put(ready, write).await? {
            Some(written) => row.revision.map_or_else(|| Table::offset(ready, written.number), Ok).map(Some),
            None => Ok(None),
        }
    }

    async fn compare_and_set(
        &self,
        user: &UserId,
        session: &str,
        expected: Option<u64>,
        data: Bytes,
        is_authorised: bool,
        ttl: Duration,
    ) -> Answer<SessionWrite> {
        check_session(session, &data)?;
        check_ttl(ttl)?;
        let subject = self.record_of(user, session)?;
        let row = |authorised, was_revoked| {
            let data = data.clone();
            Row { ttl_ms: millis(ttl), revision: None, authorised, was_revoked, data }
        };
        for attempt in 0..ATTEMPTS {
            let ready = self.table.ready().await?;
            // Most first writes are the first.
            let state = if expected.is_none() && attempt == 0 {
                State::Absent { expected: 0 }
            } else {
                self.state(&ready, user, session).await?
            };
            let stored = match state {
                State::Present(found) if expected != Some(found.revision) => {
                    return Ok(SessionWrite::Conflict(Some(found.record())));
                }
                State::Present(found) => {
                    let next = match is_authorised {
                        true => row(None, false),
                        false => row(Some(found.authorised), found.is_revoked),
                    };
                    self.store(&ready, subject.clone(), found.number, &next).await?
                }
                State::Absent { .. } if expected.is_some() => return Ok(SessionWrite::Conflict(None)),
                State::Absent { expected } => {
                    let stored = self.store(&ready, subject.clone(), expected, &row(None, false)).await?;
                    if stored.is_some() {
                        self.make_room(&ready, user, &subject).await?;
                    }
                    stored
                }
            };
            if let Some(revision) = stored {
                return Ok(SessionWrite::Stored(revision));
            }
        }
        Err(too_many_others())
    }

    /// Removes the records of a user that are one too many, the one written longest ago first, but not `newest`.
    async fn make_room(&self, ready: &Ready, user: &UserId, newest: &str) -> Answer<()> {
        let filter = self.table.subject(&["u", &token(user.as_str()), "*"])?;
        if self.table.count(ready, &filter).await? <= SESSIONS_PER_USER {
            return Ok(());
        }
        let now = self.table.base.now();
        let mut living = Vec::new();
        let mut leaving = Vec::new();
        for stored in self.table.all(ready, &filter).await? {
            let row = Row::parse(&stored)?;
            let revision = row.revision.or_else(|| ready.lineage.offset(stored.number).map(|offset| offset.0));
            match revision {
                Some(revision) if !is_over(&stored, row.ttl_ms, now) => living.push((revision, stored)),
                _ => leaving.push(stored),
            }
        }
        living.sort_unstable_by_key(|(revision, _)| *revision);
        let surplus = living.len().saturating_sub(SESSIONS_PER_USER);
        leaving.extend(living.drain(..surplus).map(|(_, stored)| stored));
        for stored in leaving.into_iter().filter(|stored| stored.subject != newest) {
            // It may have come back in the meantime.
            self.table.remove_up_to(ready, &stored.subject, stored.number).await?;
        }
        Ok(())
    }

    async fn touch(&self, user: &UserId, session: &str, ttl: Duration) -> Answer<bool> {
        check_ttl(ttl)?;
        let subject = self.record_of(user, session)?;
        for _ in 0..ATTEMPTS {
            let ready = self.table.ready().await?;
            let State::Present(found) = self.state(&ready, user, session).await? else { return Ok(false) };
            let row = Row {
                ttl_ms: millis(ttl),
                revision: Some(found.revision),
                authorised: Some(found.authorised),
                was_revoked: found.is_revoked,
                data: found.row.data,
            };
            if self.store(&ready, subject.clone(), found.number, &row).await?.is_some() {
                return Ok(true);
            }
        }
        Err(too_many_others())
    }

    async fn delete(&self, user: &UserId, session: &str) -> Answer<()> {
        let ready = self.table.ready().await?;
        self.table.remove(&ready, &self.record_of(user, session)?).await
    }

    async fn revoke(&self, user: &UserId) -> Answer<()> {
        let ready = self.table.ready().await?;
        // Random, like the ids of records.
        let payload = rand::random::<[u8; 18]>().to_vec();
        self.table.put(&ready, Write::new(self.revocation_of(user)?, payload)).await?;
        Ok(())
    }
}

fn check_ttl(ttl: Duration) -> Answer<()> {
    if ttl > TTL_MAX {
        return Err(BackplaneError::Protocol(format!("a session on nats lives {TTL_MAX:?} at most, not {ttl:?}")));
    }
    Ok(())
}

impl SessionStore for NatsBackplane {
    fn load<'a>(&'a self, user: &'a UserId, session: &'a str) -> BackplaneFuture<'a, Option<SessionRecord>> {
        Box::pin(self.base.calls.call(self.sessions.load(user, session)))
    }

    fn compare_and_set<'a>(
        &'a self,
        user: &'a UserId,
        session: &'a str,
        expected: Option<u64>,
        data: Bytes,
        is_authorised: bool,
        ttl: Duration,
    ) -> BackplaneFuture<'a, SessionWrite> {
        let write = self.sessions.compare_and_set(user, session, expected, data, is_authorised, ttl);
        Box::pin(self.base.calls.call(write))
    }

    fn touch<'a>(&'a self, user: &'a UserId, session: &'a str, ttl: Duration) -> BackplaneFuture<'a, bool> {
        Box::pin(self.base.calls.call(self.sessions.touch(user, session, ttl)))
    }

    fn delete<'a>(&'a self, user: &'a UserId, session: &'a str) -> BackplaneFuture<'a, ()> {
        Box::pin(self.base.calls.call(self.sessions.delete(user, session)))
    }

    /// Remembered for 25 hours, which is longer than any record is written to live.
    fn revoke<'a>(&'a self, user: &'a UserId, _ttl: Duration) -> BackplaneFuture<'a, ()> {
        Box::pin(self.base.calls.call(self.sessions.revoke(user)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(payload: Vec<u8>) -> Stored {
        Stored { number: 7, subject: "ek.u.ann.s".to_owned(), time: 0, payload: payload.into() }
    }

    #[test]
    fn rows_come_back_and_others_are_refused() {
        for (revision, authorised, was_revoked) in [(None, None, false), (Some(1 << 60), Some(5), true)] {
            let row = Row { ttl_ms: 30_000, revision, authorised, was_revoked, data: Bytes::from_static(b"data") };
            let bytes = row.to_bytes();
            let read = Row::parse(&stored(bytes.clone())).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((read.ttl_ms, read.revision, read.authorised), (30_000, revision, authorised));
            assert_eq!((read.was_revoked, &read.data[..]), (was_revoked, &b"data"[..]));
            for length in 0..HEAD {
                assert!(Row::parse(&stored(bytes[..length].to_vec())).is_err(), "{length} bytes");
            }
            let newer = [&[VERSION + 1], &bytes[1..]].concat();
            assert!(Row::parse(&stored(newer)).is_err());
        }
    }

    #[test]
    fn longer_lives_than_revocations_are_refused() {
        assert!(check_ttl(TTL_MAX).is_ok());
        assert!(check_ttl(TTL_MAX + Duration::from_millis(1)).is_err());
        assert!(KEPT > TTL_MAX);
    }
}
