//! The fleet and sessions on NATS pass the conformance suite on both versions, and survive servers that lose writes.

mod nats_server;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backplane::conformance::Factory;
use backplane::nats::NatsBackplane;
use backplane::{Backplane, BackplaneError, Lease, Members, NodeId, SessionRecord, SessionStore, SessionWrite, UserId};
use bytes::Bytes;
use nats_server::node::again_within;
use nats_server::servers::run;
use nats_server::{Server, Version};
use uuid::Uuid;

struct Nats {
    server: Mutex<Server>,
}

fn nats(version: Version) -> Nats {
    Nats { server: Mutex::new(Server::start(version)) }
}

impl Factory for Nats {
    type Backplane = NatsBackplane;

    async fn create(&self) -> Arc<NatsBackplane> {
        let config = self.server.lock().expect("no test panics while it holds this").config();
        Arc::new(NatsBackplane::connect(&config).await.expect("the server is there"))
    }

    /// Nodes of their own, which meet on the server only.
    async fn create_beside(&self, _: &Arc<NatsBackplane>) -> Arc<NatsBackplane> {
        self.create().await
    }

    fn wait(&self, time: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(time)
    }

    fn patience(&self) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(Duration::from_secs(15))
    }

    fn lose_data(&self, backplane: &NatsBackplane) -> impl Future<Output = ()> + Send {
        let mut server = self.server.lock().expect("no test panics while it holds this");
        server.end_without_data();
        server.start_again();
        drop(server);
        async {
            let deadline = Instant::now() + Duration::from_secs(40);
            while let Err(error) = backplane.withdraw(NodeId(Uuid::nil())).await {
                assert!(Instant::now() < deadline, "nats is back but cannot be used: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// A node is behind the server's time by as long as the answer took by which it learnt it.
    fn expiry_slack(&self) -> Duration {
        Duration::from_secs(2)
    }
}

mod debian {
    use super::*;
    backplane::store_conformance_tests!(nats(Version::Debian), run);
}

mod current {
    use super::*;
    backplane::store_conformance_tests!(nats(Version::Current), run);
}

const DEADLINE: Duration = Duration::from_secs(60);

/// Longer than a test takes.
const LONG: Duration = Duration::from_secs(300);

fn node(number: u128) -> NodeId {
    NodeId(Uuid::from_u128(number))
}

async fn hold(backplane: &NatsBackplane, holder: NodeId) -> Lease {
    again_within(DEADLINE, || backplane.hold_lease("role", holder, LONG)).await
}

async fn token(backplane: &NatsBackplane, holder: NodeId) -> u64 {
    match hold(backplane, holder).await {
        Lease::Held { token } => token,
        Lease::HeldBy(other) => panic!("the lease is held by {other}"),
    }
}

async fn write(backplane: &NatsBackplane, session: &str, expected: Option<u64>, text: &str) -> SessionWrite {
    let (user, data) = (UserId::from("ann"), Bytes::copy_from_slice(text.as_bytes()));
    again_within(DEADLINE, || backplane.compare_and_set(&user, session, expected, data.clone(), false, LONG)).await
}

async fn stored(backplane: &NatsBackplane, session: &str, expected: Option<u64>, text: &str) -> u64 {
    match write(backplane, session, expected, text).await {
        SessionWrite::Stored(revision) => revision,
        SessionWrite::Conflict(record) => panic!("{text} over {expected:?} conflicts with {record:?}"),
    }
}

fn record(revision: u64, text: &str, is_revoked: bool) -> Option<SessionRecord> {
    Some(SessionRecord { revision, data: Bytes::copy_from_slice(text.as_bytes()), is_revoked })
}

/// The volume of the server is put back: no token and no revision comes again, and whoever was deposed is refused.
fn data_that_went_back_brings_no_token_or_revision_again(version: Version) {
    let mut server = Server::start(version);
    run(async {
        let backplane = NatsBackplane::connect(&server.config()).await.expect("the server is there");
        let first = token(&backplane, node(1)).await;
        let revision = stored(&backplane, "s", None, "before").await;
        let snapshot = server.snapshot();

        backplane.release_lease("role", node(1)).await.expect("release_lease");
        let lost_token = token(&backplane, node(2)).await;
        assert!(lost_token > first, "token {lost_token} after {first}");
        let mut lost = vec![revision];
        for n in 0..5 {
            lost.push(stored(&backplane, "s", lost.last().copied(), &format!("lost {n}")).await);
        }
        lost.remove(0);
        assert_eq!(hold(&backplane, node(2)).await, Lease::Held { token: lost_token }, "a renewal");

        server.roll_back(&snapshot);
        assert_eq!(hold(&backplane, node(2)).await, Lease::HeldBy(node(1)), "the holder that was lost renews");
        let renewed = token(&backplane, node(1)).await;
        assert!(renewed > lost_token, "token {renewed} of the holder that came back, {lost_token} was given");
        assert_eq!(token(&backplane, node(1)).await, renewed, "token of a renewal on the same data");

        let current = record(revision, "before", false);
        for &revision in &lost {
            let stale = write(&backplane, "s", Some(revision), "stale").await;
            assert_eq!(stale, SessionWrite::Conflict(current.clone()), "a write over the lost revision {revision}");
        }
        let mut last = revision;
        for n in 0..10 {
            last = stored(&backplane, "s", Some(last), &format!("after {n}")).await;
            assert!(Some(&last) > lost.last(), "revision {last} after {lost:?}");
        }
        let user = UserId::from("ann");
        again_within(DEADLINE, || backplane.revoke(&user, LONG)).await;
        assert_eq!(again_within(DEADLINE, || backplane.load(&user, "s")).await, record(last, "after 9", true));
    });
}

/// A server that was only restarted has lost nothing: what was authorised, revoked and written stays so.
fn a_restart_changes_no_record(version: Version) {
    let mut server = Server::start(version);
    run(async {
        let backplane = NatsBackplane::connect(&server.config()).await.expect("the server is there");
        let user = UserId::from("ann");
        let old = stored(&backplane, "old", None, "old").await;
        backplane.revoke(&user, LONG).await.expect("revoke");
        let new = stored(&backplane, "new", None, "new").await;
        server.restart();
        assert_eq!(again_within(DEADLINE, || backplane.load(&user, "old")).await, record(old, "old", true));
        assert_eq!(again_within(DEADLINE, || backplane.load(&user, "new")).await, record(new, "new", false));
        assert!(again_within(DEADLINE, || backplane.touch(&user, "new", LONG)).await);
        assert_eq!(again_within(DEADLINE, || backplane.load(&user, "new")).await, record(new, "new", false));
        let next = stored(&backplane, "new", Some(new), "next").await;
        assert!(next > new, "revision {next} after {new}");
    });
}

/// Names that the server could not take, and lives that are too long, are refused without harm to the connection.
#[test]
fn what_nats_cannot_take_is_refused() {
    let server = Server::start(Version::Current);
    run(async {
        let backplane = NatsBackplane::connect(&server.config()).await.expect("the server is there");
        let (user, long) = (UserId::from("ann"), UserId::from("\u{4e2d}".repeat(1000)));
        let refused = backplane.load(&long, "s").await;
        assert!(matches!(refused, Err(BackplaneError::Protocol(_))), "{refused:?}");
        let day = Duration::from_secs(24 * 3600);
        let refused = backplane.compare_and_set(&user, "s", None, Bytes::new(), true, 2 * day).await;
        assert!(matches!(refused, Err(BackplaneError::Protocol(_))), "{refused:?}");
        backplane.compare_and_set(&user, "s", None, Bytes::new(), true, day).await.expect("a day is allowed");
        assert_eq!(backplane.status().restorations, 0, "the connection is the first one");
    });
}

#[test]
fn data_that_went_back_on_debian() {
    data_that_went_back_brings_no_token_or_revision_again(Version::Debian);
    a_restart_changes_no_record(Version::Debian);
}

#[test]
fn data_that_went_back_on_the_current_version() {
    data_that_went_back_brings_no_token_or_revision_again(Version::Current);
    a_restart_changes_no_record(Version::Current);
}
