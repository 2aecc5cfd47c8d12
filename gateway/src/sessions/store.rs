//! Reading and writing session records: every change is a read and a compare-and-set, tried again when somebody else was
//! faster, so that nodes and the application can change their own parts of a record.

use std::sync::Arc;
use std::time::Duration;

use backplane::{BackplaneError, ClientId, NodeId, SESSION_BYTES, SessionRecord, SessionStore, SessionWrite, UserId};
use bytes::Bytes;

use super::record::{Claim, Proof, Record, RecordError, STATE_BYTES, Sub, claim};
use super::verdict::Verdicts;

/// Attempts to write before somebody else is faster once more. Writers of one record are its node, a node that takes it
/// over and the application: more than a few at once are an attack.
const ATTEMPTS: usize = 5;

/// Why a record was not changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached.
    #[error(transparent)]
    Backplane(#[from] BackplaneError),
    /// What is there is not understood.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Others were faster every time.
    #[error("a session changes too fast")]
    Busy,
}

/// Which session, and for how long it is written to live.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    /// Whose.
    pub user: &'a UserId,
    /// The id that the client has chosen.
    pub id: &'a str,
    /// Time to live from now on.
    pub ttl: Duration,
}

/// What an application is told of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// The id of its client.
    pub client: ClientId,
    /// There is a connection, as far as is known.
    pub is_connected: bool,
    /// Two living clients use the id, so that nobody gets it until it expires.
    pub is_forked: bool,
    /// It is not resumed, unless its connection is authorised anew.
    pub is_revoked: bool,
    /// The application's state: JSON text.
    pub state: Option<String>,
    /// One more for every change of the state; 0 before the first.
    pub revision: u64,
}

/// What became of a wish to set the application's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateWrite {
    /// It is stored under this revision.
    Stored(u64),
    /// It has this revision, not the expected one.
    Conflict(u64),
    /// There is no such session.
    NoSession,
    /// The record would be too large.
    TooLarge,
}

/// What a node knows of a change it wants to make to the record of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It was made, or there was nothing to change.
    Made,
    /// The session is another connection's by now, or gone.
    Lost,
}

/// What a connection has, or had at its end.
#[derive(Clone, Debug)]
pub struct Held {
    /// The subscriptions that a return depends on.
    pub subs: Vec<Sub>,
    /// What the application has said.
    pub verdicts: Option<Verdicts>,
    /// It goes on.
    pub is_connected: bool,
    /// All of it was granted anew since the last revocation.
    pub is_authorised: bool,
}

/// The records of all users.
#[derive(Clone)]
pub struct Sessions {
    pub(super) store: Arc<dyn SessionStore>,
    node: NodeId,
}

impl Sessions {
    /// As this node sees them.
    pub fn new(store: Arc<dyn SessionStore>, node: NodeId) -> Self {
        Self { store, node }
    }

    /// Makes a session that of a new connection, whose user is known by `proof`.
    ///
    /// # Errors
    /// When the record cannot be written; the connection then has no session.
    pub async fn claim(&self, key: Key<'_>, client: ClientId, info: Bytes, proof: Proof) -> Result<Claim, StoreError> {
        let mut found = self.store.load(key.user, key.id).await?;
        for _ in 0..ATTEMPTS {
            let expected = found.as_ref().map(|stored| stored.revision);
            let former = found.map(|stored| Record::decode(&stored.data).map(|record| (record, stored.is_revoked)));
            let claimed = claim(former.transpose()?, client, self.node, info.clone(), proof.clone());
            let Claim::Granted { record, is_reminded, .. } = &claimed else { return Ok(claimed) };
            match self.write(key, expected, record, !is_reminded).await? {
                SessionWrite::Stored(_) => return Ok(claimed),
                SessionWrite::Conflict(current) => found = current,
            }
        }
        Err(StoreError::Busy)
    }

    /// Writes what the connection of a generation has, or had at its end.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub async fn update(&self, key: Key<'_>, generation: u64, held: Held) -> Result<Change, StoreError> {
        let Held { subs, verdicts, is_connected, is_authorised } = held;
        let node = is_connected.then_some(self.node.0);
        self.change(key, is_authorised, |record| {
            let (subs, verdicts) = (subs.clone(), verdicts.clone());
            (record.generation == generation).then(|| Record { subs, verdicts, node, ..record })
        })
        .await
    }

    /// Marks a session that two living clients use.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub async fn fork(&self, key: Key<'_>) -> Result<Change, StoreError> {
        self.change(key, false, |record| Some(Record { forked: true, ..record })).await
    }

    /// Forgets a session if it is still the one of this generation.
    ///
    /// # Errors
    /// When the backplane cannot be reached.
    pub async fn delete(&self, key: Key<'_>, generation: u64) -> Result<(), StoreError> {
        let Some(stored) = self.store.load(key.user, key.id).await? else { return Ok(()) };
        if Record::decode(&stored.data)?.generation == generation {
            self.store.delete(key.user, key.id).await?;
        }
        Ok(())
    }

    /// Keeps a session alive; false if there is none any more.
    ///
    /// # Errors
    /// When the backplane cannot be reached.
    pub async fn touch(&self, key: Key<'_>) -> Result<bool, StoreError> {
        Ok(self.store.touch(key.user, key.id, key.ttl).await?)
    }

    /// From now on no record of the user is resumed that was written before.
    ///
    /// # Errors
    /// When the backplane cannot be reached.
    pub async fn revoke(&self, user: &UserId, ttl: Duration) -> Result<(), BackplaneError> {
        // Longer than any record is written to live.
        self.store.revoke(user, 2 * ttl).await
    }

    /// What the application may know of a session.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub async fn view(&self, user: &UserId, id: &str) -> Result<Option<View>, StoreError> {
        let Some(stored) = self.store.load(user, id).await? else { return Ok(None) };
        let Record { client, node, forked, state, state_revision, .. } = Record::decode(&stored.data)?;
        Ok(Some(View {
            client: ClientId(client),
            is_connected: node.is_some(),
            is_forked: forked,
            is_revoked: stored.is_revoked,
            state,
            revision: state_revision,
        }))
    }

    /// Sets the application's state, at most [`STATE_BYTES`] of JSON text; `None` removes it. With an `expected` revision
    /// only if the state still has that.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub async fn set_state(
        &self,
        key: Key<'_>,
        state: Option<String>,
        expected: Option<u64>,
    ) -> Result<StateWrite, StoreError> {
        debug_assert!(state.as_ref().is_none_or(|state| state.len() <= STATE_BYTES), "the caller has checked it");
        let mut found = self.store.load(key.user, key.id).await?;
        for _ in 0..ATTEMPTS {
            let Some(stored) = found else { return Ok(StateWrite::NoSession) };
            let record = Record::decode(&stored.data)?;
            if expected.is_some_and(|expected| expected != record.state_revision) {
                return Ok(StateWrite::Conflict(record.state_revision));
            }
            let state_revision = record.state_revision + 1;
            let record = Record { state: state.clone(), state_revision, ..record };
            if record.encode().len() > SESSION_BYTES {
                return Ok(StateWrite::TooLarge);
            }
            match self.write(key, Some(stored.revision), &record, false).await? {
                SessionWrite::Stored(_) => return Ok(StateWrite::Stored(state_revision)),
                SessionWrite::Conflict(current) => found = current,
            }
        }
        Err(StoreError::Busy)
    }

    async fn change(
        &self,
        key: Key<'_>,
        is_authorised: bool,
        change: impl Fn(Record) -> Option<Record>,
    ) -> Result<Change, StoreError> {
        let mut found = self.store.load(key.user, key.id).await?;
        for _ in 0..ATTEMPTS {
            let Some(SessionRecord { revision, data, .. }) = found else { return Ok(Change::Lost) };
            let former = Record::decode(&data)?;
            let Some(record) = change(former.clone()) else { return Ok(Change::Lost) };
            if record == former && !is_authorised {
                return Ok(Change::Made);
            }
            match self.write(key, Some(revision), &record, is_authorised).await? {
                SessionWrite::Stored(_) => return Ok(Change::Made),
                SessionWrite::Conflict(current) => found = current,
            }
        }
        Err(StoreError::Busy)
    }

    async fn write(
        &self,
        key: Key<'_>,
        expected: Option<u64>,
        record: &Record,
        is_authorised: bool,
    ) -> Result<SessionWrite, BackplaneError> {
        self.store.compare_and_set(key.user, key.id, expected, record.encode(), is_authorised, key.ttl).await
    }
}

#[cfg(test)]
mod tests {
    use backplane::memory::{ManualClock, MemoryBackplane, MemoryLimits};
    use uuid::Uuid;

    use super::*;

    const TTL: Duration = Duration::from_secs(120);

    fn held(is_connected: bool, is_authorised: bool) -> Held {
        Held { subs: Vec::new(), verdicts: None, is_connected, is_authorised }
    }

    struct Fixture {
        clock: Arc<ManualClock>,
        store: Arc<MemoryBackplane>,
        user: UserId,
    }

    impl Fixture {
        fn new() -> Self {
            let clock = Arc::new(ManualClock::new());
            let store = Arc::new(MemoryBackplane::with_clock(MemoryLimits::default(), clock.clone()));
            Self { clock, store, user: UserId::from("u") }
        }

        fn node(&self, number: u128) -> Sessions {
            Sessions::new(self.store.clone(), NodeId(Uuid::from_u128(number)))
        }

        fn key(&self) -> Key<'_> {
            Key { user: &self.user, id: "session1", ttl: TTL }
        }

        async fn claim(&self, node: u128) -> (ClientId, Record, bool) {
            let client = ClientId::random();
            match self.node(node).claim(self.key(), client, Bytes::new(), Proof::Own).await.expect("memory is there") {
                Claim::Granted { record, is_back, .. } => (client, record, is_back),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_session_moves_between_nodes_and_only_its_last_connection_changes_it() {
        let fixture = Fixture::new();
        let (first, record, is_back) = fixture.claim(1).await;
        assert_eq!((record.client, record.generation, is_back), (first.0, 1, false));
        let (_, record, is_back) = fixture.claim(2).await;
        assert_eq!((record.client, record.generation, is_back), (first.0, 2, true));
        let late = fixture.node(1).update(fixture.key(), 1, held(false, false)).await;
        assert_eq!(late.expect("memory is there"), Change::Lost);
        fixture.node(1).delete(fixture.key(), 1).await.expect("memory is there");
        let view = fixture.node(1).view(&fixture.user, "session1").await.expect("readable").expect("still there");
        assert!(view.is_connected);
        let ended = fixture.node(2).update(fixture.key(), 2, held(false, false)).await;
        assert_eq!(ended.expect("memory is there"), Change::Made);
        let view = fixture.node(1).view(&fixture.user, "session1").await.expect("readable").expect("still there");
        assert_eq!((view.client, view.is_connected), (first, false));
        fixture.clock.advance(TTL);
        let (last, record, is_back) = fixture.claim(1).await;
        assert_eq!((record.client, is_back), (last.0, false));
    }

    #[tokio::test]
    async fn another_users_session_is_not_found() {
        let fixture = Fixture::new();
        fixture.claim(1).await;
        let other = UserId::from("v");
        let key = Key { user: &other, ..fixture.key() };
        let claimed =
            fixture.node(1).claim(key, ClientId::random(), Bytes::new(), Proof::Own).await.expect("memory is there");
        assert!(matches!(claimed, Claim::Granted { is_back: false, .. }), "{claimed:?}");
        assert_eq!(fixture.node(1).view(&UserId::from("w"), "session1").await.expect("readable"), None);
    }

    #[tokio::test]
    async fn a_revoked_session_is_not_resumed_unless_it_was_authorised_since() {
        let fixture = Fixture::new();
        let (first, ..) = fixture.claim(1).await;
        fixture.node(2).revoke(&fixture.user, TTL).await.expect("memory is there");
        let unsaid = fixture.node(1).update(fixture.key(), 1, held(true, false)).await;
        assert_eq!(unsaid.expect("memory is there"), Change::Made);
        let (second, record, is_back) = fixture.claim(1).await;
        assert_eq!((record.client, is_back), (second.0, false));
        assert_ne!(first, second);
        fixture.node(2).revoke(&fixture.user, TTL).await.expect("memory is there");
        let anew = fixture.node(1).update(fixture.key(), 2, held(true, true)).await;
        assert_eq!(anew.expect("memory is there"), Change::Made);
        let (_, record, is_back) = fixture.claim(1).await;
        assert_eq!((record.client, is_back), (second.0, true));
    }

    #[tokio::test]
    async fn a_forked_session_is_refused_until_it_expires() {
        let fixture = Fixture::new();
        fixture.claim(1).await;
        fixture.node(2).fork(fixture.key()).await.expect("memory is there");
        let claimed = fixture.node(1).claim(fixture.key(), ClientId::random(), Bytes::new(), Proof::Own).await;
        assert_eq!(claimed.expect("memory is there"), Claim::Forked);
        fixture.clock.advance(TTL);
        fixture.claim(1).await;
    }

    #[tokio::test]
    async fn the_state_survives_connections_and_is_compared_by_its_own_revision() {
        let fixture = Fixture::new();
        let node = fixture.node(1);
        let set = |state: &str, expected| {
            let (node, key, state) = (node.clone(), fixture.key(), Some(state.to_owned()));
            async move { node.set_state(key, state, expected).await.expect("memory is there") }
        };
        assert_eq!(set("1", None).await, StateWrite::NoSession);
        fixture.claim(1).await;
        assert_eq!(set("1", Some(1)).await, StateWrite::Conflict(0));
        assert_eq!(set("1", Some(0)).await, StateWrite::Stored(1));
        fixture.claim(2).await;
        assert_eq!(set("[2]", Some(1)).await, StateWrite::Stored(2));
        let view = node.view(&fixture.user, "session1").await.expect("readable").expect("there");
        assert_eq!((view.state.as_deref(), view.revision), (Some("[2]"), 2));
        let removed = node.set_state(fixture.key(), None, None).await.expect("memory is there");
        assert_eq!(removed, StateWrite::Stored(3));
        let view = node.view(&fixture.user, "session1").await.expect("readable").expect("there");
        assert_eq!((view.state, view.revision), (None, 3));
    }
}
