//! Leases and sessions on a Redis server that loses writes, and what they leave behind on it.

mod redis_server;

use std::time::{Duration, Instant};

use backplane::redis::RedisBackplane;
use backplane::{
    Lease, Members, NodeId, REPORT_TTL, SESSIONS_PER_USER, SessionRecord, SessionStore, SessionWrite, UserId,
};
use bytes::Bytes;
use redis_server::node::again_within;
use redis_server::{Server, VOLATILE, run};
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(60);

/// Longer than a test takes.
const LONG: Duration = Duration::from_secs(300);

fn node(number: u128) -> NodeId {
    NodeId(Uuid::from_u128(number))
}

async fn connect(server: &Server) -> RedisBackplane {
    let config = server.config();
    again_within(DEADLINE, || RedisBackplane::connect(&config)).await
}

/// Asks the server until it answers as expected.
async fn until(server: &Server, command: &str, expected: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let answer = server.admin(command);
        if expected(&answer) {
            return;
        }
        assert!(Instant::now() < deadline, "{command} answers {answer}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn hold(backplane: &RedisBackplane, holder: NodeId) -> Lease {
    again_within(DEADLINE, || backplane.hold_lease("role", holder, LONG)).await
}

async fn token(backplane: &RedisBackplane, holder: NodeId) -> u64 {
    match hold(backplane, holder).await {
        Lease::Held { token } => token,
        Lease::HeldBy(other) => panic!("the lease is held by {other}"),
    }
}

async fn release(backplane: &RedisBackplane, holder: NodeId) {
    again_within(DEADLINE, || backplane.release_lease("role", holder)).await;
}

async fn write(backplane: &RedisBackplane, session: &str, expected: Option<u64>, text: &str) -> SessionWrite {
    let (user, data) = (UserId::from("ann"), Bytes::copy_from_slice(text.as_bytes()));
    again_within(DEADLINE, || backplane.compare_and_set(&user, session, expected, data.clone(), false, LONG)).await
}

async fn stored(backplane: &RedisBackplane, session: &str, expected: Option<u64>, text: &str) -> u64 {
    match write(backplane, session, expected, text).await {
        SessionWrite::Stored(revision) => revision,
        SessionWrite::Conflict(record) => panic!("{text} over {expected:?} conflicts with {record:?}"),
    }
}

fn record(revision: u64, text: &str, is_revoked: bool) -> Option<SessionRecord> {
    Some(SessionRecord { revision, data: Bytes::copy_from_slice(text.as_bytes()), is_revoked })
}

/// The first node holds the lease, and a session is written.
struct Before {
    token: u64,
    revision: u64,
}

/// What only the server that is lost knows of: the lease went on to the second node, and the session was written again.
struct Lost {
    token: u64,
    revisions: Vec<u64>,
}

async fn before(backplane: &RedisBackplane) -> Before {
    Before { token: token(backplane, node(1)).await, revision: stored(backplane, "s", None, "before").await }
}

async fn lost(backplane: &RedisBackplane, before: &Before) -> Lost {
    release(backplane, node(1)).await;
    let token = token(backplane, node(2)).await;
    assert!(token > before.token, "token {token} after {}", before.token);
    let mut revisions = vec![before.revision];
    for n in 0..5 {
        revisions.push(stored(backplane, "s", revisions.last().copied(), &format!("lost {n}")).await);
    }
    revisions.remove(0);
    assert_eq!(hold(backplane, node(2)).await, Lease::Held { token }, "a renewal");
    Lost { token, revisions }
}

/// On data that lacks what was lost: no token and no revision comes again, and whoever was deposed is refused.
async fn check_after(backplane: &RedisBackplane, before: Before, lost: Lost) {
    assert_eq!(hold(backplane, node(2)).await, Lease::HeldBy(node(1)), "the holder that was lost renews");
    let renewed = token(backplane, node(1)).await;
    assert!(renewed > lost.token, "token {renewed} of the holder that came back, {} was given", lost.token);
    assert_eq!(token(backplane, node(1)).await, renewed, "token of a renewal on the same data");
    release(backplane, node(1)).await;
    let next = token(backplane, node(2)).await;
    assert!(next > renewed, "token {next} after {renewed}");
    assert_eq!(hold(backplane, node(1)).await, Lease::HeldBy(node(2)), "the holder of before renews");

    let current = record(before.revision, "before", false);
    for &revision in &lost.revisions {
        let stale = write(backplane, "s", Some(revision), "stale").await;
        assert_eq!(stale, SessionWrite::Conflict(current.clone()), "a write over the lost revision {revision}");
    }
    let mut revision = before.revision;
    for n in 0..10 {
        revision = stored(backplane, "s", Some(revision), &format!("after {n}")).await;
        assert!(Some(&revision) > lost.revisions.last(), "revision {revision} after {:?}", lost.revisions);
    }
    let user = UserId::from("ann");
    assert_eq!(again_within(DEADLINE, || backplane.load(&user, "s")).await, record(revision, "after 9", false));
    again_within(DEADLINE, || backplane.revoke(&user, LONG)).await;
    assert_eq!(again_within(DEADLINE, || backplane.load(&user, "s")).await, record(revision, "after 9", true));
}

/// The server crashes and comes back with an older snapshot.
#[test]
fn an_older_snapshot_brings_no_token_or_revision_again() {
    let mut server = Server::start(VOLATILE);
    run(async {
        let backplane = connect(&server).await;
        let before = before(&backplane).await;
        assert_eq!(server.admin("SAVE"), "+OK");
        let lost = lost(&backplane, &before).await;
        server.restart();
        check_after(&backplane, before, lost).await;
    });
}

/// A replica that has missed the last writes takes over.
#[test]
fn a_promoted_replica_brings_no_token_or_revision_again() {
    let (primary, replica) = (Server::start(VOLATILE), Server::start(VOLATILE));
    run(async {
        let backplane = connect(&primary).await;
        // It would wait for more replicas.
        assert_eq!(primary.admin("CONFIG SET repl-diskless-sync-delay 0"), "+OK");
        assert_eq!(replica.admin(&format!("REPLICAOF 127.0.0.1 {}", primary.port)), "+OK");
        until(&replica, "HGET test.ek:r:{role}:h h", |answer| answer == "$-1").await;
        let before = before(&backplane).await;
        until(&replica, "EXISTS test.ek:r:{role}:h test.ek:u:{ann}:s:s", |answer| answer == ":2").await;
        // From here on it gets nothing any more, which is what a broken link does.
        assert_eq!(replica.admin("REPLICAOF NO ONE"), "+OK");
        let lost = lost(&backplane, &before).await;
        drop((backplane, primary));
        check_after(&connect(&replica).await, before, lost).await;
    });
}

/// Records and their index end by themselves, and an index never names more than there may be.
#[test]
fn sessions_leave_nothing_behind() {
    const KEYS: &str = "EVAL \"return #redis.call('KEYS','test.ek:u:*')\" 0";
    let server = Server::start(VOLATILE);
    run(async {
        let backplane = connect(&server).await;
        // What the connection tried out.
        until(&server, KEYS, |answer| answer == ":0").await;
        // Longer than a machine stands still while they are counted.
        let ttl = Duration::from_secs(5);
        let user = UserId::from("bob");
        let write = async |session: String, ttl| {
            let written = backplane.compare_and_set(&user, &session, None, Bytes::new(), true, ttl).await;
            assert!(matches!(written, Ok(SessionWrite::Stored(_))), "{session}: {written:?}");
        };
        for n in 0..100 {
            write(n.to_string(), ttl).await;
        }
        let most = format!(":{SESSIONS_PER_USER}");
        assert_eq!(server.admin("ZCARD test.ek:u:{bob}:w"), most);
        assert_eq!(server.admin(KEYS), format!(":{}", SESSIONS_PER_USER + 1), "records and index");
        backplane.revoke(&user, Duration::from_millis(1)).await.expect("revoke");
        assert_eq!(server.admin(KEYS), format!(":{}", SESSIONS_PER_USER + 2), "a revocation outlives the records");
        until(&server, KEYS, |answer| answer == ":0").await;

        // The index lives as long as its longest record, not as the last one written.
        write("long".to_owned(), 2 * ttl).await;
        write("short".to_owned(), Duration::from_millis(1)).await;
        until(&server, "EXISTS test.ek:u:{bob}:s:short", |answer| answer == ":0").await;
        assert_eq!(server.admin("EXISTS test.ek:u:{bob}:s:long test.ek:u:{bob}:w"), ":2");
        backplane.delete(&user, "short").await.expect("delete");
        backplane.delete(&user, "long").await.expect("delete");
        assert_eq!(server.admin(KEYS), ":0");

        // Records that went without their names, as an eviction does it, take no place.
        for n in 0..SESSIONS_PER_USER {
            write(n.to_string(), LONG).await;
        }
        for n in 1..SESSIONS_PER_USER {
            assert_eq!(server.admin(&format!("DEL test.ek:u:{{bob}}:s:{n}")), ":1");
        }
        write("new".to_owned(), LONG).await;
        assert!(backplane.load(&user, "0").await.expect("load").is_some(), "the oldest did not have to leave");
        assert_eq!(server.admin("ZCARD test.ek:u:{bob}:w"), ":2");
    });
}

/// Reports of nodes that died are dropped by the reports of those that live, some at a time; times from a clock that was
/// ahead do not keep a dead node.
#[test]
fn the_living_drop_the_reports_of_the_dead() {
    const TIMES: &str = "test.ek:n:{nodes}:t";
    let server = Server::start(VOLATILE);
    run(async {
        let backplane = connect(&server).await;
        for dead in 0..30 {
            // Sixteen letters are an id as well.
            let id = format!("dead node {dead:06}");
            assert_eq!(server.admin(&format!("ZADD {TIMES} {} \"{id}\"", 1_000 + dead)), ":1");
            assert_eq!(server.admin(&format!("HSET test.ek:n:{{nodes}}:r \"{id}\" report")), ":1");
        }
        let mut left = 30;
        while left > 0 {
            backplane.report(node(1), Bytes::from_static(b"alive")).await.expect("report");
            let dropped: usize = left.min(8);
            left -= dropped;
            assert_eq!(server.admin(&format!("ZCARD {TIMES}")), format!(":{}", left + 1));
            assert_eq!(server.admin("HLEN test.ek:n:{nodes}:r"), format!(":{}", left + 1));
        }
        let members = backplane.members().await.expect("members");
        assert_eq!(members.iter().map(|member| member.node).collect::<Vec<_>>(), [node(1)]);

        let far = "9000000000000000";
        assert_eq!(server.admin(&format!("ZADD {TIMES} {far} \"a future node 01\"")), ":1");
        assert_eq!(server.admin("HSET test.ek:n:{nodes}:r \"a future node 01\" report"), ":1");
        let ages = backplane.member_ages().await.expect("member_ages");
        assert_eq!(ages.len(), 2);
        assert!(ages.iter().all(|(_, age)| *age < REPORT_TTL), "{ages:?}");
        backplane.report(node(1), Bytes::from_static(b"alive")).await.expect("report");
        assert_eq!(server.admin(&format!("ZCOUNT {TIMES} {far} +inf")), ":0", "it ages from now on");
        assert_eq!(server.admin(&format!("ZCARD {TIMES}")), ":2");
    });
}
