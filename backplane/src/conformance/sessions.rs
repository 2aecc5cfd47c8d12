//! Session records: compare-and-set, age, the cap of a user, and ids of every kind.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use uuid::Uuid;

use super::bench::{Bench, ensure, ensure_eq, healthy};
use super::{CaseResult, Factory, Violation};
use crate::{
    BackplaneError, SESSION_BYTES, SESSION_ID_BYTES, SESSIONS_PER_USER, SessionRecord, SessionStore, SessionWrite,
    UserId,
};

/// Longer than a case takes.
pub(super) const LONG: Duration = Duration::from_secs(120);

/// A user of this case alone.
pub(super) fn user() -> UserId {
    UserId::from(format!("user {}", Uuid::new_v4()))
}

/// Short ways to say what the cases do.
pub(super) struct Desk<'a, S> {
    pub(super) store: &'a S,
    pub(super) user: UserId,
}

impl<'a, S: SessionStore> Desk<'a, S> {
    pub(super) fn new(store: &'a S) -> Self {
        Self { store, user: user() }
    }

    pub(super) async fn load(&self, session: &str) -> Result<Option<SessionRecord>, Violation> {
        healthy("load", self.store.load(&self.user, session).await)
    }

    /// The text of a record, if there is one.
    pub(super) async fn text(&self, session: &str) -> Result<Option<String>, Violation> {
        Ok(self.load(session).await?.map(|record| String::from_utf8_lossy(&record.data).into_owned()))
    }

    pub(super) async fn write(
        &self,
        session: &str,
        expected: Option<u64>,
        text: &str,
        is_authorised: bool,
        ttl: Duration,
    ) -> Result<SessionWrite, Violation> {
        let data = Bytes::copy_from_slice(text.as_bytes());
        let call = self.store.compare_and_set(&self.user, session, expected, data, is_authorised, ttl);
        healthy("compare_and_set", call.await)
    }

    /// A write that must be accepted; returns the revision.
    pub(super) async fn store(
        &self,
        session: &str,
        expected: Option<u64>,
        text: &str,
        ttl: Duration,
    ) -> Result<u64, Violation> {
        match self.write(session, expected, text, true, ttl).await? {
            SessionWrite::Stored(revision) => Ok(revision),
            SessionWrite::Conflict(record) => Err(Violation::new(format!(
                "writing {text:?} over {expected:?} conflicts with {record:?}, but nothing else was written"
            ))),
        }
    }

    pub(super) async fn touch(&self, session: &str, ttl: Duration) -> Result<bool, Violation> {
        healthy("touch", self.store.touch(&self.user, session, ttl).await)
    }

    pub(super) async fn delete(&self, session: &str) -> Result<(), Violation> {
        healthy("delete", self.store.delete(&self.user, session).await)
    }
}

/// A first write makes the record that is read afterwards, byte by byte; a second first write conflicts with it.
pub async fn sessions_are_created_once<F: Factory<Backplane: SessionStore>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let desk = Desk::new(&*bench.backplane);
    ensure_eq!(desk.load("s").await?, None, "a session that was never written");
    ensure!(!desk.touch("s", LONG).await?, "a session that was never written is touched");
    let revision = desk.store("s", None, "first", LONG).await?;
    let record = SessionRecord { revision, data: Bytes::from_static(b"first"), is_revoked: false };
    ensure_eq!(desk.load("s").await?.as_ref(), Some(&record), "a session");
    let second = desk.write("s", None, "second", true, LONG).await?;
    ensure_eq!(second, SessionWrite::Conflict(Some(record.clone())), "a second first write");
    ensure_eq!(desk.load("s").await?, Some(record), "a session after a conflict");
    let every_byte: Bytes = (0..=255).collect();
    for (session, data) in [("bytes", every_byte), ("nothing", Bytes::new())] {
        let call = desk.store.compare_and_set(&desk.user, session, None, data.clone(), true, LONG);
        healthy("compare_and_set", call.await)?;
        ensure_eq!(desk.load(session).await?.map(|record| record.data), Some(data), "data of {session}");
    }
    Ok(())
}

/// A write over the revision that was read is accepted, one over an older or an invented one conflicts with the record as
/// it is, and changes nothing.
pub async fn stale_writers_are_told_the_record<F: Factory<Backplane: SessionStore>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let beside = factory.create_beside(&bench.backplane).await;
    let desk = Desk::new(&*bench.backplane);
    let other = Desk { store: &*beside, user: desk.user.clone() };
    let mut revisions = vec![desk.store("s", None, "0", LONG).await?];
    for n in 1..=20 {
        let through = if n % 2 == 0 { &desk } else { &other };
        let expected = revisions.last().copied();
        let revision = through.store("s", expected, &n.to_string(), LONG).await?;
        ensure!(Some(revision) > expected, "revision {revision} after {expected:?}");
        let text = n.to_string().into_bytes();
        let current = SessionRecord { revision, data: Bytes::from(text), is_revoked: false };
        let invented = [None, Some(0), Some(revision - 1), Some(revision + 1), Some(u64::MAX)];
        for stale in revisions.iter().copied().map(Some).chain(invented) {
            let refused = through.write("s", stale, "stale", true, LONG).await?;
            ensure_eq!(refused, SessionWrite::Conflict(Some(current.clone())), "a write over {stale:?}");
        }
        ensure_eq!(desk.load("s").await?, Some(current), "a session after conflicts");
        revisions.push(revision);
    }
    let none = desk.write("t", revisions.last().copied(), "t", true, LONG).await?;
    ensure_eq!(none, SessionWrite::Conflict(None), "a write over a revision of a session that is not there");
    ensure_eq!(desk.load("t").await?, None, "a session after a conflict");
    Ok(())
}

/// Of many that write over the same revision, or create the same session, one is accepted and the others see it.
pub async fn racing_writers_have_one_winner<F: Factory<Backplane: SessionStore>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let beside = factory.create_beside(&bench.backplane).await;
    let desk = Desk::new(&*bench.backplane);
    let other = Desk { store: &*beside, user: desk.user.clone() };
    let mut expected = None;
    for round in 0..10 {
        let texts: Vec<String> = (0..16).map(|n| format!("round {round}, writer {n}")).collect();
        let through = |index: usize| if index.is_multiple_of(2) { &desk } else { &other };
        let calls = texts.iter().enumerate().map(|(n, text)| through(n).write("s", expected, text, true, LONG));
        let answers: Vec<SessionWrite> = join_all(calls).await.into_iter().collect::<Result<_, _>>()?;
        let stored = texts.iter().zip(&answers).filter_map(|(text, answer)| match answer {
            SessionWrite::Stored(revision) => Some((text, *revision)),
            SessionWrite::Conflict(_) => None,
        });
        let [(text, revision)] = stored.collect::<Vec<_>>()[..] else {
            return Err(Violation::new(format!("not one of 16 writers is accepted: {answers:?}")));
        };
        let record = SessionRecord { revision, data: Bytes::copy_from_slice(text.as_bytes()), is_revoked: false };
        let losers = answers.iter().filter(|answer| **answer == SessionWrite::Conflict(Some(record.clone()))).count();
        ensure_eq!(losers, 15, "writers that are told the record");
        ensure_eq!(desk.load("s").await?, Some(record), "a session after a race");
        expected = Some(revision);
    }
    Ok(())
}

/// A record lives for its time after the last write or touch, and no longer; what was is then not there.
pub async fn sessions_end_unless_touched<F: Factory<Backplane: SessionStore>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let desk = Desk::new(&*bench.backplane);
    let ttl = factory.short_ttl();
    let began = Instant::now();
    let silent = desk.store("silent", None, "silent", ttl).await?;
    let touched = desk.store("touched", None, "touched", ttl).await?;
    let written = desk.store("written", None, "first", ttl).await?;
    factory.wait(ttl / 2).await;
    let renewal = Instant::now();
    let is_touched = desk.touch("touched", 2 * ttl).await?;
    let rewritten = desk.write("written", Some(written), "second", true, 2 * ttl).await?;
    // A slow machine may have let them end in earnest.
    if began.elapsed() < ttl {
        ensure!(is_touched, "a session is not there before its end");
        ensure!(matches!(rewritten, SessionWrite::Stored(_)), "before its end a session is {rewritten:?}");
    }
    factory.wait(ttl / 2 + factory.expiry_slack()).await;
    ensure_eq!(desk.text("silent").await?, None, "a session whose time is over");
    ensure!(!desk.touch("silent", ttl).await?, "a session whose time is over is touched");
    let late = desk.write("silent", Some(silent), "late", true, ttl).await?;
    ensure_eq!(late, SessionWrite::Conflict(None), "a write over a session whose time is over");
    let (still_touched, still_written) = (desk.load("touched").await?, desk.text("written").await?);
    let are_renewed = is_touched && matches!(rewritten, SessionWrite::Stored(_));
    if began.elapsed() < ttl || renewal.elapsed() < 2 * ttl && are_renewed {
        let found = still_touched.as_ref().map(|record| (record.revision, &record.data[..]));
        ensure_eq!(found, Some((touched, &b"touched"[..])), "a session that was touched");
        ensure_eq!(still_written.as_deref(), Some("second"), "a session that was written again");
    }
    let anew = desk.store("silent", None, "anew", LONG).await?;
    ensure!(anew > silent, "revision {anew} after {silent}");
    factory.wait(ttl + ttl / 2 + factory.expiry_slack()).await;
    ensure_eq!(desk.text("touched").await?, None, "a session whose time after a touch is over");
    ensure_eq!(desk.text("written").await?, None, "a session whose time after a write is over");
    ensure_eq!(desk.text("silent").await?.as_deref(), Some("anew"), "a session that came back");
    Ok(())
}

/// A deleted session is gone at once; when it comes back no earlier revision does.
pub async fn deleted_sessions_are_gone<F: Factory<Backplane: SessionStore>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let desk = Desk::new(&*bench.backplane);
    desk.store("other", None, "other", LONG).await?;
    let mut last = None;
    for round in 0..5 {
        desk.delete("s").await?;
        desk.delete("s").await?;
        ensure_eq!(desk.load("s").await?, None, "a deleted session");
        ensure!(!desk.touch("s", LONG).await?, "a deleted session is touched");
        if last.is_some() {
            let stale = desk.write("s", last, "stale", true, LONG).await?;
            ensure_eq!(stale, SessionWrite::Conflict(None), "a write over a deleted session");
        }
        let first = desk.store("s", None, &format!("first {round}"), LONG).await?;
        ensure!(Some(first) > last, "revision {first} after {last:?} of a deleted one");
        last = Some(desk.store("s", Some(first), &format!("second {round}"), LONG).await?);
    }
    ensure_eq!(desk.text("other").await?.as_deref(), Some("other"), "another session of the user");
    Ok(())
}

/// One session too many removes the one of the user that was written longest ago.
pub async fn the_oldest_of_too_many_sessions_leaves<F: Factory<Backplane: SessionStore>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let desk = Desk::new(&*bench.backplane);
    let neighbour = Desk::new(&*bench.backplane);
    neighbour.store("s0", None, "neighbour", LONG).await?;
    let mut first = None;
    for n in 0..SESSIONS_PER_USER {
        let revision = desk.store(&format!("s{n}"), None, &n.to_string(), LONG).await?;
        first = first.or(Some(revision));
    }
    // Now s1 was written longest ago; a touch, a conflict and reads are no writes.
    desk.store("s0", first, "0 again", LONG).await?;
    ensure!(desk.touch("s1", LONG).await?, "a session is missing before there are too many");
    desk.write("s1", None, "conflict", true, LONG).await?;
    ensure_eq!(desk.text("s1").await?.as_deref(), Some("1"), "a session before there are too many");
    for (added, gone) in [("new1", "s1"), ("new2", "s2"), ("new3", "s3")] {
        desk.store(added, None, added, LONG).await?;
        ensure_eq!(desk.text(gone).await?, None, "the session written longest ago");
        ensure!(!desk.touch(gone, LONG).await?, "a session that had to leave is touched");
    }
    // A place that was given up is free.
    desk.delete("s10").await?;
    desk.store("new4", None, "new4", LONG).await?;
    let left = ["s0", "s4", "s5", "s31", "new1", "new2", "new3", "new4"];
    for session in left {
        ensure!(desk.load(session).await?.is_some(), "{session} had to leave for others");
    }
    ensure_eq!(neighbour.text("s0").await?.as_deref(), Some("neighbour"), "a session of another user");
    Ok(())
}

/// Sessions whose time is over take no place.
pub async fn ended_sessions_take_no_place<F: Factory<Backplane: SessionStore>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let desk = Desk::new(&*bench.backplane);
    let ttl = factory.short_ttl();
    desk.store("oldest", None, "oldest", LONG).await?;
    for n in 1..SESSIONS_PER_USER {
        desk.store(&format!("short{n}"), None, "short", ttl).await?;
    }
    factory.wait(ttl + factory.expiry_slack()).await;
    for n in 1..SESSIONS_PER_USER {
        desk.store(&format!("long{n}"), None, "long", LONG).await?;
    }
    for n in 1..SESSIONS_PER_USER {
        ensure!(desk.load(&format!("long{n}")).await?.is_some(), "long{n} had to leave");
        ensure_eq!(desk.load(&format!("short{n}")).await?, None, "short{n}, whose time is over");
    }
    ensure_eq!(desk.text("oldest").await?.as_deref(), Some("oldest"), "the session written longest ago");
    desk.store("one more", None, "one more", LONG).await?;
    ensure_eq!(desk.text("oldest").await?, None, "the session written longest ago, with one too many");
    Ok(())
}

/// Every character in user and session ids, and ids that an encoding or a case-insensitive server might take for each
/// other.
pub async fn odd_session_ids_are_kept_apart<F: Factory<Backplane: SessionStore>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let labels = [
        "",
        "a",
        "A",
        "a ",
        " a",
        "a.b",
        "a%2Eb",
        "a%252Eb",
        "a:b",
        "a%3Ab",
        "{a}",
        "{a",
        "a}",
        "}a{",
        "%",
        "*",
        "a*",
        "a?",
        "[a]",
        "a/b",
        "a\\b",
        "a\0",
        "a\0b",
        "a\n",
        "\u{e9}",
        "e\u{301}",
        "\u{4e2d}\u{1f600}",
    ];
    let unique = Uuid::new_v4().simple().to_string();
    let mut names: Vec<String> = labels.iter().map(|&label| label.to_owned()).collect();
    names.extend((0..=127).map(|byte| char::from(byte).to_string()).filter(|name| !labels.contains(&name.as_str())));
    names.push("{".repeat(SESSION_ID_BYTES));
    // As session ids of one user there are too many, so a few at a time; as user ids all of them.
    for ids in names.chunks(SESSIONS_PER_USER) {
        let desk = Desk::new(&*bench.backplane);
        for id in ids {
            desk.store(id, None, id, LONG).await?;
        }
        for id in ids {
            ensure_eq!(desk.text(id).await?.as_ref(), Some(id), "session {id:?}");
        }
        desk.delete(&ids[0]).await?;
        for (index, id) in ids.iter().enumerate() {
            ensure_eq!(desk.load(id).await?.is_some(), index > 0, "session {id:?} after {:?} was deleted", ids[0]);
        }
    }
    let around = |name: &String| [format!("{unique}{name}"), format!("{name}{unique}")];
    let mut users: Vec<String> = names.iter().flat_map(around).collect();
    // With nothing around it the two are one.
    users.dedup();
    let desks: Vec<_> =
        users.into_iter().map(|user| Desk { store: &*bench.backplane, user: UserId::from(user) }).collect();
    for desk in &desks {
        desk.store("s", None, desk.user.as_str(), LONG).await?;
    }
    healthy("revoke", bench.backplane.revoke(&desks[5].user, LONG).await)?;
    for (index, desk) in desks.iter().enumerate() {
        let record = desk.load("s").await?;
        let found = record.as_ref().map(|record| (&record.data[..], record.is_revoked));
        ensure_eq!(found, Some((desk.user.as_str().as_bytes(), index == 5)), "the session of user {:?}", desk.user);
    }
    // The anonymous user is shared with whoever else uses the store, the session is not.
    let anonymous = Desk { store: &*bench.backplane, user: UserId::from("") };
    anonymous.store(&unique, None, "anonymous", LONG).await?;
    ensure_eq!(anonymous.text(&unique).await?.as_deref(), Some("anonymous"), "a session of the anonymous user");
    anonymous.delete(&unique).await
}

/// What is too large is refused for good, and changes nothing.
pub async fn large_sessions_are_refused<F: Factory<Backplane: SessionStore>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let desk = Desk::new(&*bench.backplane);
    let largest = "x".repeat(SESSION_BYTES);
    let revision = desk.store("s", None, &largest, LONG).await?;
    let larger = Bytes::from(vec![b'y'; SESSION_BYTES + 1]);
    let refused = bench.backplane.compare_and_set(&desk.user, "s", Some(revision), larger, true, LONG).await;
    ensure!(matches!(refused, Err(BackplaneError::Protocol(_))), "a session that is too large: {refused:?}");
    ensure!(desk.text("s").await?.as_ref() == Some(&largest), "a refused write changed the session");
    let id = "i".repeat(SESSION_ID_BYTES + 1);
    let refused = bench.backplane.compare_and_set(&desk.user, &id, None, Bytes::new(), true, LONG).await;
    ensure!(matches!(refused, Err(BackplaneError::Protocol(_))), "a session id that is too long: {refused:?}");
    Ok(())
}

/// After the backplane has lost everything, no earlier revision is given again.
pub async fn lost_sessions_reuse_no_revision<F: Factory<Backplane: SessionStore>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let desk = Desk::new(&*bench.backplane);
    let mut expected = None;
    for n in 0..5 {
        expected = Some(desk.store("s", expected, &n.to_string(), LONG).await?);
    }
    factory.lose_data(&bench.backplane).await;
    let stale = desk.write("s", expected, "stale", true, LONG).await?;
    ensure_eq!(stale, SessionWrite::Conflict(None), "a write over a session that was lost");
    for n in 0..5 {
        let previous = expected.filter(|_| n > 0);
        let revision = desk.store("s", previous, &n.to_string(), LONG).await?;
        ensure!(Some(revision) > expected, "revision {revision} after {expected:?}");
        expected = Some(revision);
    }
    Ok(())
}
