//! Finding what the application had said about a client that has not said yet who it is.
//!
//! Records are found by their user, but a client without a token has none until the application was asked. So beside the
//! record stands a pointer, under the id of the session alone, to the user whose session it was last. It proves nothing:
//! what counts is the record there, and that the question is the one that it has the answer to.

use std::time::Duration;

use backplane::{INTERNAL_PREFIX, SessionWrite, UserId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use session::proxy::ConnectVerdict;

use super::is_secret;
use super::record::{Record, RecordError};
use super::store::{Key, Sessions, StoreError};
use super::verdict::{Horizon, Likeness};

/// The session id of pointers: shorter than any that a client can choose, so that no user can have it.
const POINTER_ID: &str = "verdict";

/// Changes only when an older node must not read what a newer one writes.
const VERSION: u32 = 1;

/// Attempts to write; another connection with the same id has pointed elsewhere meanwhile. The last one wins.
const ATTEMPTS: usize = 3;

/// Whose session it was last.
#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Pointer {
    v: u32,
    user: String,
}

/// The user under which the pointer of a session is kept.
fn pointer_user(id: &str) -> UserId {
    UserId::from(format!("{INTERNAL_PREFIX}verdict:{id}").as_str())
}

impl Sessions {
    /// What the application had said about this very connect. `None` when it has to be asked.
    ///
    /// # Errors
    /// When that cannot be found out; it has to be asked.
    pub async fn recall(
        &self,
        id: &str,
        likeness: Likeness,
        horizon: Horizon,
        are_anonymous_allowed: bool,
    ) -> Result<Option<ConnectVerdict>, StoreError> {
        let Some(stored) = self.store.load(&pointer_user(id), POINTER_ID).await? else { return Ok(None) };
        let pointer: Pointer = serde_json::from_slice(&stored.data).map_err(RecordError::from)?;
        if pointer.v != VERSION {
            return Err(RecordError::Version(pointer.v).into());
        }
        let user = UserId::from(pointer.user.as_str());
        if user.is_anonymous() && !(are_anonymous_allowed && is_secret(id)) {
            return Ok(None);
        }
        let Some(stored) = self.store.load(&user, id).await?.filter(|stored| !stored.is_revoked) else {
            return Ok(None);
        };
        let record = Record::decode(&stored.data)?;
        let verdicts = record.verdicts.filter(|_| !record.forked);
        Ok(verdicts.and_then(|verdicts| verdicts.connect(&user, likeness, horizon)))
    }

    /// From now on [`recall`](Self::recall) finds this session, for `ttl`.
    ///
    /// # Errors
    /// When the pointer cannot be written; the application is asked then.
    pub async fn point_to(&self, key: Key<'_>, ttl: Duration) -> Result<(), StoreError> {
        let pointer = Pointer { v: VERSION, user: key.user.as_str().to_owned() };
        let data = Bytes::from(serde_json::to_vec(&pointer).map_err(RecordError::from)?);
        let user = pointer_user(key.id);
        let mut found = self.store.load(&user, POINTER_ID).await?;
        for _ in 0..ATTEMPTS {
            let expected = found.map(|stored| stored.revision);
            match self.store.compare_and_set(&user, POINTER_ID, expected, data.clone(), true, ttl).await? {
                SessionWrite::Stored(_) => return Ok(()),
                SessionWrite::Conflict(current) => found = current,
            }
        }
        Err(StoreError::Busy)
    }

    /// Whether a session is there and nothing of it was revoked.
    ///
    /// # Errors
    /// When the backplane cannot be reached.
    pub async fn stands(&self, key: Key<'_>) -> Result<bool, StoreError> {
        Ok(self.store.load(key.user, key.id).await?.is_some_and(|stored| !stored.is_revoked))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use backplane::memory::{ManualClock, MemoryBackplane, MemoryLimits};
    use backplane::{ClientId, NodeId};
    use session::io::ConnectionGrant;
    use uuid::Uuid;

    use super::*;
    use crate::sessions::record::{Claim, Proof};
    use crate::sessions::store::Held;
    use crate::sessions::verdict::Verdicts;

    const ID: &str = "0123456789012345678901";
    const TTL: Duration = Duration::from_secs(60);
    const SESSION_TTL: Duration = Duration::from_secs(120);
    const NOW: Horizon = Horizon { now: 1_000, ttl: TTL };

    fn question(cookie: &str) -> Likeness {
        Likeness::of([cookie.as_bytes()])
    }

    fn welcome(user: &str) -> ConnectVerdict {
        let (user, info) = (UserId::from(user), Bytes::from_static(b"[1]"));
        let grant = ConnectionGrant { user, expire_at: None, info, subs: BTreeMap::new(), meta: Bytes::new() };
        ConnectVerdict { grant, data: Bytes::new() }
    }

    struct Fixture {
        clock: Arc<ManualClock>,
        sessions: Sessions,
    }

    impl Fixture {
        fn new() -> Self {
            let clock = Arc::new(ManualClock::new());
            let store = Arc::new(MemoryBackplane::with_clock(MemoryLimits::default(), clock.clone()));
            Self { clock, sessions: Sessions::new(store, NodeId(Uuid::from_u128(1))) }
        }

        async fn claim(&self, user: &str, proof: Proof) -> Claim {
            let user = UserId::from(user);
            let key = Key { user: &user, id: ID, ttl: SESSION_TTL };
            self.sessions.claim(key, ClientId::random(), Bytes::new(), proof).await.expect("memory is there")
        }

        /// The application lets this user in who shows this cookie.
        async fn judge(&self, user: &str, cookie: &str) {
            let verdicts = Verdicts::of_connect(question(cookie), NOW.now, &welcome(user));
            assert!(matches!(self.claim(user, Proof::Asked(verdicts)).await, Claim::Granted { .. }));
            let user = UserId::from(user);
            let key = Key { user: &user, id: ID, ttl: SESSION_TTL };
            self.sessions.point_to(key, TTL).await.expect("memory is there");
        }

        async fn recall(&self, cookie: &str) -> Option<ConnectVerdict> {
            self.sessions.recall(ID, question(cookie), NOW, false).await.expect("memory is there")
        }

        async fn revoke(&self, user: &str) {
            self.sessions.revoke(&UserId::from(user), SESSION_TTL).await.expect("memory is there");
        }
    }

    #[tokio::test]
    async fn what_was_said_is_found_by_the_id_and_the_same_question() {
        let fixture = Fixture::new();
        assert_eq!(fixture.recall("a").await, None);
        fixture.judge("ann", "a").await;
        assert_eq!(fixture.recall("a").await, Some(welcome("ann")));
        assert_eq!(fixture.recall("b").await, None);
        assert!(matches!(fixture.claim("ann", Proof::Recalled).await, Claim::Granted { is_back: true, .. }));
        fixture.clock.advance(TTL);
        assert_eq!(fixture.recall("a").await, None, "the pointer is gone with its time");
    }

    #[tokio::test]
    async fn another_user_with_the_same_id_is_never_let_in_as_the_first() {
        let fixture = Fixture::new();
        fixture.judge("ann", "a").await;
        fixture.judge("bob", "b").await;
        assert_eq!(fixture.recall("b").await, Some(welcome("bob")));
        assert_eq!(fixture.recall("a").await, None, "the last one counts; she is asked about again");
    }

    #[tokio::test]
    async fn a_revocation_counts_between_any_two_steps() {
        let fixture = Fixture::new();
        fixture.judge("ann", "a").await;
        let user = UserId::from("ann");
        let key = Key { user: &user, id: ID, ttl: SESSION_TTL };
        assert!(fixture.sessions.stands(key).await.expect("memory is there"));
        assert!(fixture.recall("a").await.is_some());
        fixture.revoke("ann").await;
        assert_eq!(fixture.claim("ann", Proof::Recalled).await, Claim::Unproven, "between recalling and claiming");
        assert_eq!(fixture.recall("a").await, None);

        // Whoever the application lets in after it is asked about once more.
        fixture.judge("ann", "a").await;
        assert_eq!(fixture.recall("a").await, None);
        fixture.judge("ann", "a").await;
        assert!(fixture.recall("a").await.is_some());
        let claimed = fixture.claim("ann", Proof::Recalled).await;
        assert!(matches!(claimed, Claim::Granted { is_reminded: true, .. }), "{claimed:?}");
        fixture.revoke("ann").await;
        assert!(!fixture.sessions.stands(key).await.expect("memory is there"), "after claiming");
    }

    #[tokio::test]
    async fn being_reminded_does_not_end_a_revocation() {
        let fixture = Fixture::new();
        fixture.judge("ann", "a").await;
        let Claim::Granted { record, .. } = fixture.claim("ann", Proof::Recalled).await else { panic!("it is there") };
        fixture.revoke("ann").await;
        let user = UserId::from("ann");
        let key = Key { user: &user, id: ID, ttl: SESSION_TTL };
        let held = Held { subs: Vec::new(), verdicts: record.verdicts, is_connected: true, is_authorised: false };
        fixture.sessions.update(key, record.generation, held).await.expect("memory is there");
        assert_eq!(fixture.recall("a").await, None);
        // Authorised anew it has no verdicts any more.
        let held = Held { subs: Vec::new(), verdicts: None, is_connected: true, is_authorised: true };
        fixture.sessions.update(key, record.generation, held).await.expect("memory is there");
        assert_eq!(fixture.recall("a").await, None);
    }

    #[tokio::test]
    async fn nothing_is_recalled_of_forked_deleted_or_anonymous_sessions() {
        let fixture = Fixture::new();
        fixture.judge("ann", "a").await;
        let ann = UserId::from("ann");
        let key = Key { user: &ann, id: ID, ttl: SESSION_TTL };
        fixture.sessions.fork(key).await.expect("memory is there");
        assert_eq!(fixture.recall("a").await, None);
        assert_eq!(fixture.claim("ann", Proof::Recalled).await, Claim::Unproven);
        fixture.judge("bob", "a").await;
        assert_eq!(fixture.recall("a").await, Some(welcome("bob")));
        let bob = UserId::from("bob");
        fixture.sessions.delete(Key { user: &bob, ..key }, 1).await.expect("memory is there");
        assert_eq!(fixture.recall("a").await, None);
        assert_eq!(fixture.claim("bob", Proof::Recalled).await, Claim::Unproven);
        fixture.judge("", "a").await;
        assert_eq!(fixture.recall("a").await, None);
        let allowed = fixture.sessions.recall(ID, question("a"), NOW, true).await.expect("memory is there");
        assert_eq!(allowed, Some(welcome("")));
    }
}
