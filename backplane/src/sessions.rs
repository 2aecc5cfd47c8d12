//! What outlives a connection: session records with compare-and-set, and when a user's were revoked.

use std::time::Duration;

use bytes::Bytes;

use crate::{BackplaneError, BackplaneFuture, UserId};

/// The largest record: application state of at most 16 KiB beside subscriptions with their info.
pub const SESSION_BYTES: usize = 256 * 1024;

/// The longest id of a session. Clients choose theirs from a smaller set (design section 4).
pub const SESSION_ID_BYTES: usize = 256;

/// Sessions of one user; one more removes the one that was written longest ago. 32 is more than the devices and tabs of
/// a person, and a bound on what one user can store.
pub const SESSIONS_PER_USER: usize = 32;

/// A stored session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionRecord {
    /// Larger after every write of the record; never the same for two contents, also after the record was removed or the
    /// backplane lost writes. Of no use for comparing different sessions.
    pub revision: u64,
    /// What was written.
    pub data: Bytes,
    /// Whether the user's sessions were revoked at or after the record was last written as authorised.
    pub is_revoked: bool,
}

/// The answer to a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionWrite {
    /// Stored under this revision.
    Stored(u64),
    /// The record is not what the caller expected. Here it is as it is; `None` when there is none.
    Conflict(Option<SessionRecord>),
}

/// Refuses a record that is too large, or an id that is too long.
pub(crate) fn check_session(session: &str, data: &[u8]) -> Result<(), BackplaneError> {
    if session.len() > SESSION_ID_BYTES {
        let bytes = session.len();
        return Err(BackplaneError::Protocol(format!(
            "a session id of {bytes} bytes is longer than {SESSION_ID_BYTES}"
        )));
    }
    if data.len() > SESSION_BYTES {
        let bytes = data.len();
        return Err(BackplaneError::Protocol(format!("a session of {bytes} bytes is larger than {SESSION_BYTES}")));
    }
    Ok(())
}

/// Records under user and session id. Ids are compared byte by byte; the anonymous user is a user like others.
pub trait SessionStore: Send + Sync + 'static {
    /// The record, if there is one.
    fn load<'a>(&'a self, user: &'a UserId, session: &'a str) -> BackplaneFuture<'a, Option<SessionRecord>>;

    /// Writes the record if its revision is `expected` (`None`: if there is no record), to live for `ttl`.
    /// `is_authorised` says that the user was authenticated for this write, which ends an earlier revocation's effect on
    /// the record; a first write always counts as authorised. More than [`SESSION_BYTES`], or an id longer than
    /// [`SESSION_ID_BYTES`], is refused with [`BackplaneError::Protocol`]. One record more than [`SESSIONS_PER_USER`]
    /// removes the one of the user that was written longest ago (a touch is no write).
    fn compare_and_set<'a>(
        &'a self,
        user: &'a UserId,
        session: &'a str,
        expected: Option<u64>,
        data: Bytes,
        is_authorised: bool,
        ttl: Duration,
    ) -> BackplaneFuture<'a, SessionWrite>;

    /// Gives a record another `ttl`; false if there is none.
    fn touch<'a>(&'a self, user: &'a UserId, session: &'a str, ttl: Duration) -> BackplaneFuture<'a, bool>;

    /// Removes a record; removing one that is not there succeeds.
    fn delete<'a>(&'a self, user: &'a UserId, session: &'a str) -> BackplaneFuture<'a, ()>;

    /// Revokes every record of a user that was last authorised before now, until it is authorised again. Remembered for
    /// at least `ttl`, which must be longer than any record is written to live; a later touch or write prolongs it.
    fn revoke<'a>(&'a self, user: &'a UserId, ttl: Duration) -> BackplaneFuture<'a, ()>;
}
