//! The fleet and the sessions of the in-memory backplane with one bug planted.

use std::future::ready;
use std::time::Duration;

use backplane::{
    BackplaneError, BackplaneFuture, Lease, Member, Members, NodeId, REPORT_BYTES, SESSION_BYTES, SessionRecord,
    SessionStore, SessionWrite, UserId,
};
use bytes::Bytes;

use super::broken::{Broken, Bug, done, lock};

/// What the planted bugs remember.
#[derive(Default)]
pub struct Memory {
    /// The last report of each node that ever made one.
    reports: Vec<Member>,
    /// Who took which lease, and the token at that time.
    taken: Vec<(String, NodeId, u64)>,
    /// Renewals so far.
    renewals: u64,
    last_token: u64,
    /// The last token before all data was lost.
    lost_token: u64,
    /// What is taken off the revisions of a session.
    shifts: Vec<(UserId, String, u64)>,
    /// Users that were revoked at any time.
    revoked: Vec<UserId>,
}

impl Broken {
    /// Before all data is lost.
    pub(super) fn note_loss(&self) {
        let mut memory = lock(&self.memory);
        memory.lost_token = memory.last_token;
    }

    fn list(&self) -> Result<Vec<Member>, BackplaneError> {
        let mut members = done(self.inner.members())?;
        if self.is(Bug::ReportsNeverEnd) {
            for known in &lock(&self.memory).reports {
                if !members.iter().any(|member| member.node == known.node) {
                    members.push(known.clone());
                }
            }
        }
        if self.is(Bug::AgesStandStill) {
            members.iter_mut().for_each(|member| member.age = Duration::ZERO);
        }
        Ok(members)
    }

    fn hold(&self, name: &str, holder: NodeId, mut ttl: Duration) -> Result<Lease, BackplaneError> {
        if self.is(Bug::LeasesNeverEnd) {
            ttl *= 1_000;
        }
        let name = if self.is(Bug::LeasesAreOne) { "one" } else { name };
        let mut lease = done(self.inner.hold_lease(name, holder, ttl))?;
        let mut memory = lock(&self.memory);
        if let Lease::HeldBy(_) = lease
            && self.is(Bug::LeasesGoToTwo)
        {
            memory.last_token += 1;
            lease = Lease::Held { token: memory.last_token };
        }
        let Lease::Held { token } = &mut lease else { return Ok(lease) };
        memory.last_token = memory.last_token.max(*token);
        match self.bug {
            Bug::TokensGoBack => *token = u64::MAX - *token,
            Bug::TokensChangeWithRenewals => {
                memory.renewals += 1;
                *token += memory.renewals;
            }
            Bug::TokensRestartAfterALoss => *token -= memory.lost_token,
            Bug::HoldersKeepTheirTokens => {
                let before = memory.taken.iter().find(|(of, by, _)| of == name && *by == holder);
                if let Some((_, _, first)) = before {
                    *token = *first;
                } else {
                    memory.taken.push((name.to_owned(), holder, *token));
                }
            }
            _ => {}
        }
        Ok(lease)
    }

    fn user(&self, user: &UserId, session: &str) -> UserId {
        match self.bug {
            Bug::UsersShareSessions => "everybody".into(),
            Bug::SessionCapIsIgnored => format!("{user} {session}").into(),
            Bug::UserIdsIgnoreCase => user.as_str().to_ascii_lowercase().into(),
            _ => user.clone(),
        }
    }

    fn session(&self, session: &str) -> String {
        match self.bug {
            Bug::SessionIdsIgnoreCase => session.to_ascii_lowercase(),
            Bug::NullBytesEndSessionIds => session.trim_end_matches('\0').to_owned(),
            Bug::LongSessionIdsAreCut => session.chars().take(200).collect(),
            _ => session.to_owned(),
        }
    }

    fn session_ttl(&self, ttl: Duration) -> Duration {
        match self.bug {
            Bug::SessionsDieYoung => ttl / 4,
            Bug::SessionsNeverEnd => ttl * 1_000,
            _ => ttl,
        }
    }

    /// What is taken off a revision, so that each life of a session counts from one.
    fn shift(&self, user: &UserId, session: &str) -> u64 {
        let memory = lock(&self.memory);
        let known = memory.shifts.iter().rev().find(|(of, id, _)| of == user && id == session);
        known.filter(|_| self.is(Bug::RevisionsAreReused)).map_or(0, |(_, _, shift)| *shift)
    }

    fn shown(&self, user: &UserId, session: &str, mut record: SessionRecord) -> SessionRecord {
        record.revision -= self.shift(user, session);
        record.is_revoked |= self.is(Bug::RevocationsLastForEver) && lock(&self.memory).revoked.contains(user);
        record
    }

    fn write(
        &self,
        asked: (&UserId, &str),
        expected: Option<u64>,
        mut data: Bytes,
        is_authorised: bool,
        ttl: Duration,
    ) -> Result<SessionWrite, BackplaneError> {
        let (user, session) = (self.user(asked.0, asked.1), self.session(asked.1));
        if self.is(Bug::LargeSessionsAreCut) {
            data.truncate(SESSION_BYTES);
        }
        let (is_authorised, ttl) = (is_authorised || self.is(Bug::AnyWriteAuthorises), self.session_ttl(ttl));
        let mut real = expected.map(|revision| revision.saturating_add(self.shift(asked.0, asked.1)));
        if self.is(Bug::StaleWritesAreAccepted) {
            real = done(self.inner.load(&user, &session))?.map(|record| record.revision);
        }
        let written = done(self.inner.compare_and_set(&user, &session, real, data, is_authorised, ttl))?;
        Ok(match written {
            SessionWrite::Stored(revision) => {
                if real.is_none() {
                    lock(&self.memory).shifts.push((asked.0.clone(), asked.1.to_owned(), revision - 1));
                }
                SessionWrite::Stored(revision - self.shift(asked.0, asked.1))
            }
            SessionWrite::Conflict(_) if self.is(Bug::ConflictsHideTheRecord) => SessionWrite::Conflict(None),
            SessionWrite::Conflict(record) => {
                SessionWrite::Conflict(record.map(|record| self.shown(asked.0, asked.1, record)))
            }
        })
    }

    fn touch_now(&self, user: &UserId, session: &str, ttl: Duration) -> Result<bool, BackplaneError> {
        let (user, session, ttl) = (self.user(user, session), self.session(session), self.session_ttl(ttl));
        match self.bug {
            Bug::TouchesAreIgnored => Ok(done(self.inner.load(&user, &session))?.is_some()),
            Bug::TouchesAreWrites => {
                let Some(record) = done(self.inner.load(&user, &session))? else { return Ok(false) };
                let call = self.inner.compare_and_set(&user, &session, Some(record.revision), record.data, false, ttl);
                done(call)?;
                Ok(true)
            }
            _ => done(self.inner.touch(&user, &session, ttl)),
        }
    }
}

impl Members for Broken {
    fn report<'a>(&'a self, node: NodeId, mut report: Bytes) -> BackplaneFuture<'a, ()> {
        if self.is(Bug::LongReportsAreCut) {
            report.truncate(REPORT_BYTES);
        }
        let known = &mut lock(&self.memory).reports;
        known.retain(|member| member.node != node);
        known.push(Member { node, age: Duration::ZERO, report: report.clone() });
        Box::pin(ready(done(self.inner.report(node, report))))
    }

    fn withdraw<'a>(&'a self, node: NodeId) -> BackplaneFuture<'a, ()> {
        if self.is(Bug::WithdrawalsAreIgnored) {
            return Box::pin(ready(Ok(())));
        }
        Box::pin(ready(done(self.inner.withdraw(node))))
    }

    fn members<'a>(&'a self) -> BackplaneFuture<'a, Vec<Member>> {
        Box::pin(ready(self.list()))
    }

    fn member_ages<'a>(&'a self) -> BackplaneFuture<'a, Vec<(NodeId, Duration)>> {
        let ages = self.list().map(|members| members.iter().map(|member| (member.node, member.age)).collect());
        Box::pin(ready(ages))
    }

    fn hold_lease<'a>(&'a self, name: &'a str, holder: NodeId, ttl: Duration) -> BackplaneFuture<'a, Lease> {
        Box::pin(ready(self.hold(name, holder, ttl)))
    }

    fn release_lease<'a>(&'a self, name: &'a str, holder: NodeId) -> BackplaneFuture<'a, ()> {
        if self.is(Bug::ReleasesAreIgnored) {
            return Box::pin(ready(Ok(())));
        }
        let mut by = holder;
        if self.is(Bug::AnybodyReleases)
            && let Ok(Lease::HeldBy(other)) = done(self.inner.hold_lease(name, holder, Duration::ZERO))
        {
            by = other;
        }
        Box::pin(ready(done(self.inner.release_lease(name, by))))
    }
}

impl SessionStore for Broken {
    fn load<'a>(&'a self, user: &'a UserId, session: &'a str) -> BackplaneFuture<'a, Option<SessionRecord>> {
        let record = done(self.inner.load(&self.user(user, session), &self.session(session)));
        Box::pin(ready(record.map(|record| record.map(|record| self.shown(user, session, record)))))
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
        Box::pin(ready(self.write((user, session), expected, data, is_authorised, ttl)))
    }

    fn touch<'a>(&'a self, user: &'a UserId, session: &'a str, ttl: Duration) -> BackplaneFuture<'a, bool> {
        Box::pin(ready(self.touch_now(user, session, ttl)))
    }

    fn delete<'a>(&'a self, user: &'a UserId, session: &'a str) -> BackplaneFuture<'a, ()> {
        if self.is(Bug::DeletesAreIgnored) {
            return Box::pin(ready(Ok(())));
        }
        Box::pin(ready(done(self.inner.delete(&self.user(user, session), &self.session(session)))))
    }

    fn revoke<'a>(&'a self, user: &'a UserId, ttl: Duration) -> BackplaneFuture<'a, ()> {
        lock(&self.memory).revoked.push(user.clone());
        if self.is(Bug::RevocationsAreIgnored) {
            return Box::pin(ready(Ok(())));
        }
        Box::pin(ready(done(self.inner.revoke(&self.user(user, ""), ttl))))
    }
}
