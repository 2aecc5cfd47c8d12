//! Which sessions a revocation concerns, and for how long.

use super::bench::{Bench, ensure, healthy};
use super::sessions::{Desk, LONG};
use super::{CaseResult, Factory, Violation};
use crate::{SessionStore, SessionWrite};

async fn revoke<S: SessionStore>(desk: &Desk<'_, S>) -> Result<(), Violation> {
    healthy("revoke", desk.store.revoke(&desk.user, LONG).await)
}

/// Whether a session that must be there is revoked.
async fn is_revoked<S: SessionStore>(desk: &Desk<'_, S>, session: &str) -> Result<bool, Violation> {
    let record = desk.load(session).await?;
    record.map(|record| record.is_revoked).ok_or_else(|| Violation::new(format!("session {session} is gone")))
}

/// A revocation concerns the sessions there are, until each is authorised again; later ones and other users' are free.
pub async fn revoked_sessions_need_authorisation<F: Factory<Backplane: SessionStore>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let beside = factory.create_beside(&bench.backplane).await;
    let (desk, neighbour) = (Desk::new(&*bench.backplane), Desk::new(&*bench.backplane));
    let elsewhere = Desk { store: &*beside, user: desk.user.clone() };
    let mut one = desk.store("one", None, "1", LONG).await?;
    desk.store("two", None, "2", LONG).await?;
    neighbour.store("one", None, "1", LONG).await?;
    for round in 0..3 {
        revoke(&elsewhere).await?;
        ensure!(is_revoked(&desk, "one").await?, "a revoked session is not, in round {round}");
        ensure!(is_revoked(&desk, "two").await?, "another revoked session is not, in round {round}");
        ensure!(!is_revoked(&neighbour, "one").await?, "another user's session is revoked");
        ensure!(desk.touch("one", LONG).await?, "a revoked session is gone");
        ensure!(is_revoked(&desk, "one").await?, "a touch ends a revocation");
        let SessionWrite::Stored(revision) = desk.write("one", Some(one), "1 again", false, LONG).await? else {
            return Err(Violation::new("a revoked session cannot be written".to_owned()));
        };
        ensure!(is_revoked(&desk, "one").await?, "a write without authorisation ends a revocation");
        let SessionWrite::Conflict(Some(current)) = desk.write("one", Some(one), "stale", true, LONG).await? else {
            return Err(Violation::new("a stale write is accepted".to_owned()));
        };
        ensure!(current.is_revoked, "a conflict does not say that the record is revoked");
        one = desk.store("one", Some(revision), "1 once more", LONG).await?;
        ensure!(!is_revoked(&desk, "one").await?, "a session is revoked after it was authorised");
        ensure!(is_revoked(&desk, "two").await?, "the authorisation of one session is that of another");
        let SessionWrite::Stored(revision) = desk.write("one", Some(one), "1 at last", false, LONG).await? else {
            return Err(Violation::new("a session cannot be written".to_owned()));
        };
        ensure!(!is_revoked(&desk, "one").await?, "a write without authorisation revokes");
        one = revision;
    }
    Ok(())
}

/// A first write is authorised, whatever it says and whatever was revoked before.
pub async fn new_sessions_are_authorised<F: Factory<Backplane: SessionStore>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let desk = Desk::new(&*bench.backplane);
    revoke(&desk).await?;
    for (session, is_authorised) in [("one", true), ("two", false)] {
        let written = desk.write(session, None, session, is_authorised, LONG).await?;
        ensure!(matches!(written, SessionWrite::Stored(_)), "a first write is {written:?}");
        ensure!(!is_revoked(&desk, session).await?, "a session that was written after a revocation is revoked");
    }
    revoke(&desk).await?;
    ensure!(is_revoked(&desk, "two").await?, "a second revocation does not reach a session");
    desk.delete("two").await?;
    desk.write("two", None, "two", false, LONG).await?;
    ensure!(!is_revoked(&desk, "two").await?, "a deleted session leaves its revocation behind");
    Ok(())
}

/// A session that is kept alive beyond the time of a revocation stays revoked.
pub async fn touched_sessions_stay_revoked<F: Factory<Backplane: SessionStore>>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let desk = Desk::new(&*bench.backplane);
    let ttl = factory.short_ttl();
    desk.store("touched", None, "touched", 2 * ttl).await?;
    let written = desk.store("written", None, "written", 2 * ttl).await?;
    // Longer than the records live, as it must be.
    healthy("revoke", desk.store.revoke(&desk.user, 2 * ttl + ttl / 2).await)?;
    factory.wait(ttl).await;
    let is_touched = desk.touch("touched", LONG).await?;
    let rewritten = desk.write("written", Some(written), "again", false, LONG).await?;
    factory.wait(2 * ttl + factory.expiry_slack()).await;
    // A slow machine may have let them end in earnest.
    if is_touched {
        ensure!(is_revoked(&desk, "touched").await?, "a touched session outlives its revocation");
    }
    if rewritten != SessionWrite::Conflict(None) {
        ensure!(is_revoked(&desk, "written").await?, "a session written without authorisation outlives its revocation");
    }
    Ok(())
}
