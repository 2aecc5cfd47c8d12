//! Publishes that are acknowledged only when a replica has them, on real primaries with replicas.

mod redis_server;

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use backplane::redis::{Address, Durability, RedisConfig, Topology};
use backplane::{Backplane, BackplaneError, PublishOptions};
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use redis_server::node::{DEADLINE, KEEP, Node, again, channel, texts};
use redis_server::{Server, VOLATILE, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

const TIMEOUT: Duration = Duration::from_millis(400);

/// Where no time limit is to be met.
const LONG: Duration = Duration::from_secs(9);

fn replicated(config: RedisConfig) -> RedisConfig {
    RedisConfig { durability: Durability::Replicated { replicas: 1, timeout: TIMEOUT }, ..config }
}

/// A number from a section of INFO.
fn info(server: &Server, section: &str, pattern: &str) -> u64 {
    let script = format!("return tonumber(string.match(redis.call('INFO','{section}'),'{pattern}') or 0)");
    let answer = server.admin(&format!("EVAL \"{script}\" 0"));
    answer.strip_prefix(':').and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
}

/// A primary and a replica that has caught up.
fn pair() -> (Server, Server) {
    let (primary, replica) = (Server::start(VOLATILE), Server::start(VOLATILE));
    assert_eq!(primary.admin("CONFIG SET repl-diskless-sync-delay 0"), "+OK");
    assert_eq!(replica.admin(&format!("REPLICAOF 127.0.0.1 {}", primary.port)), "+OK");
    assert_eq!(primary.admin(&format!("WAIT 1 {}", DEADLINE.as_millis())), ":1", "the replica catches up");
    (primary, replica)
}

fn unavailable<T: std::fmt::Debug>(result: Result<T, BackplaneError>) -> String {
    match result {
        Err(BackplaneError::Unavailable(why)) => why,
        other => panic!("acknowledged or refused: {other:?}"),
    }
}

/// The primary crashes under load, and its replica is promoted: it has everything that was acknowledged.
#[test]
fn what_was_acknowledged_survives_a_promotion() {
    const PUBLISHERS: usize = 64;
    const ACKNOWLEDGED: usize = 2_000;
    let (mut primary, replica) = pair();
    run(async {
        let node = Node::connect(&replicated(primary.config())).await;
        let names = channel("survives");
        let start = node.publish(&names[0], "start").await;
        let acknowledged = std::sync::Mutex::new(HashSet::new());
        let is_over = AtomicBool::new(false);
        let publishers = (0..PUBLISHERS).map(async |publisher| {
            for n in 0.. {
                let text = format!("{publisher}-{n}");
                let is_late = is_over.load(Ordering::Relaxed);
                match node.try_publish(&names[0], &text).await {
                    Ok(_) => assert!(acknowledged.lock().expect("no holder panics").insert(text)),
                    Err(BackplaneError::Unavailable(_)) if is_late => return,
                    Err(BackplaneError::Unavailable(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let crash = async {
            let deadline = Instant::now() + DEADLINE;
            while acknowledged.lock().expect("no holder panics").len() < ACKNOWLEDGED {
                assert!(Instant::now() < deadline, "too few acknowledgements");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            primary.end();
            is_over.store(true, Ordering::Relaxed);
        };
        tokio::join!(join_all(publishers), crash);
        assert_eq!(replica.admin("REPLICAOF NO ONE"), "+OK");
        let survivor = Node::connect(&replica.config()).await;
        let page = survivor.after(&names[0], &start).await;
        assert!(page.covered, "the start was acknowledged too");
        let kept: HashSet<_> = texts(&page).into_iter().collect();
        let lost: Vec<_> = acknowledged.lock().expect("no holder panics").difference(&kept).cloned().collect();
        assert!(lost.is_empty(), "acknowledged but lost: {lost:?}");
    });
}

/// Without a replica that answers nothing is acknowledged, in time; a repeat is not either, until the replica has it.
/// Publishes that ask for less go on.
#[test]
fn a_silent_replica_holds_acknowledgements_back() {
    let (primary, replica) = pair();
    run(async {
        let strict = Node::connect(&replicated(primary.config())).await;
        let lax = Node::connect(&primary.config()).await;
        let names = channel("silent");
        let start = strict.publish(&names[0], "start").await;
        replica.stop();
        for n in 0..3 {
            // The same one, of which the second and third are repeats; others at the same time share its fate.
            let asked = Instant::now();
            let others: Vec<_> = (0..20).map(|m| format!("other {n} {m}")).collect();
            let others = others.iter().map(|text| strict.try_publish(&names[0], text));
            let (failed, others) = tokio::join!(strict.try_publish(&names[0], "held back"), join_all(others));
            let why = unavailable(failed);
            assert!(why.contains("unknown") && why.contains("stored") && why.contains("delivered"), "{why}");
            others.into_iter().for_each(|failed| drop(unavailable(failed)));
            let took = asked.elapsed();
            // One after the other they would take twice as long.
            assert!(took >= TIMEOUT / 2 && took < 10 * TIMEOUT, "it took {took:?}");
            lax.try_publish(&names[0], &format!("lax {n}")).await.expect("the primary is there");
        }
        // Nothing to lose in what is not stored.
        let fan_out = strict.backplane.publish(&names[0], Default::default(), PublishOptions::default()).await;
        fan_out.expect("fanned out");
        assert!(strict.backplane.status().is_up, "a replica is not Redis");
        replica.signal(Signal::SIGCONT);
        let first = again(|| strict.try_publish(&names[0], "held back")).await.position.expect("a position");
        assert_eq!(first.offset.0, start.offset.0 + 1, "stored once, at the first try");
        strict.publish(&names[0], "after").await;
    });
}

/// More replicas asked for than there are. Redis is made to give up early, so that its count decides, not the time.
#[test]
fn one_replica_is_not_two() {
    let (primary, _replica) = pair();
    run(async {
        let durability = Durability::Replicated { replicas: 2, timeout: LONG };
        let node = Node::connect(&RedisConfig { durability, ..primary.config() }).await;
        let names = channel("two");
        let give_up = async {
            let deadline = Instant::now() + DEADLINE;
            loop {
                let clients = primary.admin_text("CLIENT LIST");
                if let Some(waiting) = clients.lines().find(|client| client.contains("cmd=wait")) {
                    let id = waiting.split_whitespace().find_map(|field| field.strip_prefix("id=")).expect("an id");
                    if primary.admin(&format!("CLIENT UNBLOCK {id}")) == ":1" {
                        return;
                    }
                }
                assert!(Instant::now() < deadline, "nobody waits: {clients}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let asked = Instant::now();
        let (failed, ()) = tokio::join!(node.try_publish(&names[0], "1"), give_up);
        let why = unavailable(failed);
        assert!(why.contains("fewer than 2"), "{why}");
        assert!(asked.elapsed() < LONG, "time decided");
    });
}

#[test]
fn publishes_share_a_wait() {
    const PUBLISHES: usize = 3_000;
    let (primary, _replica) = pair();
    run(async {
        let durability = Durability::Replicated { replicas: 1, timeout: LONG };
        let node = Node::connect(&RedisConfig { durability, ..primary.config() }).await;
        let names: Vec<_> = (0..100).flat_map(|n| channel(&format!("shared {n}"))).collect();
        let waits = || info(&primary, "commandstats", "cmdstat_wait:calls=(%d+)");
        node.publish(&names[0], "first").await;
        let before = waits();
        let texts: Vec<_> = (0..PUBLISHES).map(|n| n.to_string()).collect();
        let publishes = texts.iter().enumerate().map(|(n, text)| node.try_publish(&names[n % names.len()], text));
        for published in join_all(publishes).await {
            published.expect("publish");
        }
        let waits = waits() - before;
        assert!(waits > 0, "acknowledged without a wait");
        assert!(waits < PUBLISHES as u64 / 10, "{waits} waits for {PUBLISHES} publishes");
    });
}

/// In front of two servers. A connection that has sent WAIT can be sent to the other one.
struct Crossing {
    port: u16,
    /// Where such connections go.
    waits_to: Arc<AtomicU16>,
    redirected: Arc<Notify>,
}

impl Crossing {
    async fn start(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        let (waits_to, redirected) = (Arc::new(AtomicU16::new(server)), Arc::new(Notify::new()));
        let crossing = Self { port, waits_to: Arc::clone(&waits_to), redirected: Arc::clone(&redirected) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // New connections are those of waits: all others stay.
                let to = waits_to.load(Ordering::Relaxed);
                tokio::spawn(Self::carry(client, to, Arc::clone(&redirected)));
            }
        });
        crossing
    }

    async fn carry(client: TcpStream, to: u16, redirected: Arc<Notify>) {
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await.expect("the server is running");
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
            (client.into_split(), server.into_split());
        let answers = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        let mut waits = false;
        let mut bytes = vec![0; 65_536];
        loop {
            tokio::select! {
                read = from_client.read(&mut bytes) => {
                    let Ok(read @ 1..) = read else { break };
                    // Small commands come in one piece.
                    waits |= bytes[..read].windows(4).any(|word| word == b"WAIT");
                    if to_server.write_all(&bytes[..read]).await.is_err() {
                        break;
                    }
                }
                () = redirected.notified(), if waits => break,
            }
        }
        answers.abort();
    }

    fn redirect_waits(&self, server: u16) {
        self.waits_to.store(server, Ordering::Relaxed);
        self.redirected.notify_waiters();
    }
}

/// Between a publish and its wait the connection may come to another primary, whose replicas have all that *it* wrote.
/// That says nothing of the publish.
#[test]
fn another_primary_does_not_vouch_for_a_publish() {
    let (one, _its_replica) = pair();
    let (other, _others_replica) = pair();
    run(async {
        let crossing = Crossing::start(one.port).await;
        let topology = Topology::Standalone(Address::new("127.0.0.1", crossing.port));
        let node = Node::connect(&replicated(RedisConfig { topology, ..one.config() })).await;
        let names = channel("crossed");
        // Not at the first try, maybe: a replica takes some time after it has come.
        node.publish(&names[0], "straight").await;
        let waits = || info(&other, "commandstats", "cmdstat_wait:calls=(%d+)");
        let before = waits();
        crossing.redirect_waits(other.port);
        let deadline = Instant::now() + DEADLINE;
        // Until the connection is made again publishes fail for lack of it.
        for n in 0.. {
            let why = unavailable(node.try_publish(&names[0], &format!("crossed {n}")).await);
            if why.contains("failed over") {
                break;
            }
            assert!(Instant::now() < deadline, "{why}");
        }
        assert!(waits() > before, "the other primary was asked");
        let stored = node.backplane.history(
            &names[0],
            backplane::HistoryQuery { since: None, limit: None, reverse: false },
            KEEP,
        );
        assert!(stored.await.expect("history").publications.len() > 1, "stored on the first primary");
        crossing.redirect_waits(one.port);
        node.publish(&names[0], "straight again").await;
    });
}
