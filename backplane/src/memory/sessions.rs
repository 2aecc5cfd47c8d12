//! Session records in memory, striped by user like the channels by name.

use std::collections::{BTreeSet, HashMap};
use std::future::ready;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::MutexGuard;

use super::MemoryBackplane;
use super::clock::Moment;
use super::limits::{Counters, MemoryLimits};
use super::presence::shrink;
use crate::sessions::check_session;
use crate::{BackplaneError, BackplaneFuture, SESSIONS_PER_USER, SessionRecord, SessionStore, SessionWrite, UserId};

/// Bookkeeping of one session in bytes: its record, its user's place in the map and among the timers, and allocator
/// rounding. The first session of a user costs this much, further ones less.
const SESSION_OVERHEAD_BYTES: usize = 320;

/// The users of one stripe, with the order in which their records expire.
///
/// Every user in the map has a record, and is filed once under a time that is not after its next expiry: what only moves
/// times into the future leaves the file alone, and a sweep corrects it.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    users: HashMap<UserId, User>,
    timers: BTreeSet<(Moment, UserId)>,
    /// The last revision given to any record of the stripe, so that none is given twice, also after a record is gone.
    last_revision: u64,
}

#[derive(Debug)]
struct User {
    /// The one written longest ago first; at most [`SESSIONS_PER_USER`], so that looking through them is quick.
    records: Vec<Record>,
    /// Under what it is filed among the timers.
    timer: Moment,
}

#[derive(Debug)]
struct Record {
    id: Box<str>,
    revision: u64,
    data: Bytes,
    is_revoked: bool,
    expires: Moment,
}

/// What a call wants to write.
struct Write<'a> {
    session: &'a str,
    expected: Option<u64>,
    data: Bytes,
    is_authorised: bool,
    ttl: Duration,
}

impl Record {
    fn shown(&self) -> SessionRecord {
        SessionRecord { revision: self.revision, data: self.data.clone(), is_revoked: self.is_revoked }
    }

    fn cost_bytes(&self, user: &UserId) -> usize {
        cost_bytes(user, &self.id, &self.data)
    }
}

fn cost_bytes(user: &UserId, session: &str, data: &Bytes) -> usize {
    user.as_str().len() + session.len() + data.len() + SESSION_OVERHEAD_BYTES
}

impl User {
    /// Where the record is, if it has not expired.
    fn place(&self, session: &str, now: Moment) -> Option<usize> {
        self.records.iter().position(|record| *record.id == *session && record.expires > now)
    }

    fn next_expiry(&self) -> Moment {
        self.records.iter().map(|record| record.expires).min().unwrap_or(Moment::NEVER)
    }
}

impl Sessions {
    fn load(&self, user: &UserId, session: &str, now: Moment) -> Option<SessionRecord> {
        let user = self.users.get(user)?;
        user.place(session, now).map(|place| user.records[place].shown())
    }

    fn write(
        &mut self,
        user: &UserId,
        write: Write<'_>,
        now: Moment,
        limits: &MemoryLimits,
        counters: &Counters,
    ) -> Result<SessionWrite, BackplaneError> {
        self.expire(user, now, counters);
        let current = self.load(user, write.session, now);
        if current.as_ref().map(|record| record.revision) != write.expected {
            return Ok(SessionWrite::Conflict(current));
        }
        let replaced = current.as_ref().map_or(0, |record| cost_bytes(user, write.session, &record.data));
        let cost = cost_bytes(user, write.session, &write.data);
        if counters.session_bytes.value() + cost > limits.session_bytes + replaced {
            return Err(counters.refuse("session_bytes", limits.session_bytes));
        }
        self.last_revision += 1;
        let record = Record {
            id: Box::from(write.session),
            revision: self.last_revision,
            data: write.data,
            is_revoked: !write.is_authorised && current.is_some_and(|record| record.is_revoked),
            expires: now.after(write.ttl),
        };
        // Most users have one session.
        let empty = || User { records: Vec::with_capacity(1), timer: Moment::NEVER };
        self.users.entry(user.clone()).or_insert_with(empty);
        self.change(user, |state| {
            let place = state.place(&record.id, now);
            let is_full = place.is_none() && state.records.len() >= SESSIONS_PER_USER;
            if is_full {
                counters.sessions_evicted.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(gone) = place.or(is_full.then_some(0)).map(|place| state.records.remove(place)) {
                counters.sessions.sub(1);
                counters.session_bytes.sub(gone.cost_bytes(user));
            }
            state.records.push(record);
            counters.sessions.add(1);
            counters.session_bytes.add(cost);
        });
        Ok(SessionWrite::Stored(self.last_revision))
    }

    fn touch(&mut self, user: &UserId, session: &str, ttl: Duration, now: Moment) -> bool {
        let touched = self.change(user, |state| {
            let record = state.place(session, now).map(|place| &mut state.records[place]);
            record.map(|record| record.expires = now.after(ttl)).is_some()
        });
        touched.unwrap_or(false)
    }

    fn delete(&mut self, user: &UserId, session: &str, counters: &Counters) {
        self.change(user, |state| remove(user, state, counters, |record| *record.id == *session));
    }

    /// A record that is written later was authorised later, so that nothing has to be remembered beside the records.
    fn revoke(&mut self, user: &UserId) {
        self.change(user, |state| state.records.iter_mut().for_each(|record| record.is_revoked = true));
    }

    /// Drops the expired records of a user; returns how many they were.
    fn expire(&mut self, user: &UserId, now: Moment, counters: &Counters) -> usize {
        let dropped = self.change(user, |state| remove(user, state, counters, |record| record.expires <= now));
        dropped.unwrap_or(0)
    }

    /// Changes a user, if there is one, and keeps map and timers in step.
    fn change<R>(&mut self, user: &UserId, change: impl FnOnce(&mut User) -> R) -> Option<R> {
        let state = self.users.get_mut(user)?;
        let result = change(state);
        let due = state.next_expiry();
        if due < state.timer || due == Moment::NEVER {
            self.timers.remove(&(state.timer, user.clone()));
            state.timer = due;
            self.timers.insert((due, user.clone()));
        }
        if state.records.is_empty() {
            self.timers.remove(&(due, user.clone()));
            self.users.remove(user);
            shrink(&mut self.users);
        }
        Some(result)
    }

    /// Frees expired records, at most about `budget`; returns the work done.
    pub(super) fn sweep(&mut self, now: Moment, budget: usize, counters: &Counters) -> usize {
        let mut work = 0;
        while work < budget {
            let Some((due, user)) = self.timers.first().filter(|(due, _)| *due <= now).cloned() else { break };
            work += 1 + self.expire(&user, now, counters);
            // Filed too early because of a touch or a write: under its true time from now on.
            if let Some(state) = self.users.get_mut(&user)
                && state.timer == due
            {
                self.timers.remove(&(due, user.clone()));
                state.timer = state.next_expiry();
                self.timers.insert((state.timer, user));
            }
        }
        work
    }

    /// Forgets all records. Revisions go on, so that none is given twice.
    pub(super) fn forget(&mut self, counters: &Counters) {
        for (user, state) in std::mem::take(&mut self.users) {
            counters.sessions.sub(state.records.len());
            counters.session_bytes.sub(state.records.iter().map(|record| record.cost_bytes(&user)).sum());
        }
        self.timers = BTreeSet::new();
    }

    /// Checks what must hold between calls. For tests.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert_eq!(self.timers.len(), self.users.len(), "every user is filed once");
        for (user, state) in &self.users {
            assert!(!state.records.is_empty(), "a user without records leaves the map");
            assert!(state.timer <= state.next_expiry(), "a timer is never late");
            assert!(self.timers.contains(&(state.timer, user.clone())), "a user is filed where it says");
            assert!(state.records.len() <= SESSIONS_PER_USER);
            assert!(state.records.is_sorted_by_key(|record| record.revision), "the one written longest ago first");
        }
    }
}

/// Drops the records that `which` names; returns how many they were.
fn remove(user: &UserId, state: &mut User, counters: &Counters, which: impl Fn(&Record) -> bool) -> usize {
    let before = state.records.len();
    state.records.retain(|record| {
        let is_dropped = which(record);
        if is_dropped {
            counters.sessions.sub(1);
            counters.session_bytes.sub(record.cost_bytes(user));
        }
        !is_dropped
    });
    before - state.records.len()
}

impl MemoryBackplane {
    fn sessions_of(&self, user: &UserId) -> MutexGuard<'_, Sessions> {
        self.sessions[self.stripe_of(user.as_str())].lock()
    }
}

impl SessionStore for MemoryBackplane {
    fn load<'a>(&'a self, user: &'a UserId, session: &'a str) -> BackplaneFuture<'a, Option<SessionRecord>> {
        Box::pin(ready(Ok(self.sessions_of(user).load(user, session, self.now()))))
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
        let written = check_session(session, &data).and_then(|()| {
            let write = Write { session, expected, data, is_authorised, ttl };
            self.sessions_of(user).write(user, write, self.now(), &self.limits, &self.counters)
        });
        Box::pin(ready(written))
    }

    fn touch<'a>(&'a self, user: &'a UserId, session: &'a str, ttl: Duration) -> BackplaneFuture<'a, bool> {
        Box::pin(ready(Ok(self.sessions_of(user).touch(user, session, ttl, self.now()))))
    }

    fn delete<'a>(&'a self, user: &'a UserId, session: &'a str) -> BackplaneFuture<'a, ()> {
        self.sessions_of(user).delete(user, session, &self.counters);
        Box::pin(ready(Ok(())))
    }

    fn revoke<'a>(&'a self, user: &'a UserId, _ttl: Duration) -> BackplaneFuture<'a, ()> {
        self.sessions_of(user).revoke(user);
        Box::pin(ready(Ok(())))
    }
}
