//! What goes wrong with a NATS server, done to real ones of both versions: no publication is lost, repeated or reordered
//! without the node being told, and nothing is sent later than it was asked for.

mod nats_server;

use std::time::{Duration, Instant};

use backplane::nats::{Address, NatsBackplane, NatsConfig, Storage};
use backplane::{
    Backplane, BackplaneError, ChannelName, Delivery, HistoryQuery, NewPublication, Previous, PublishOptions,
    StreamPosition,
};
use bytes::Bytes;
use nats_server::servers::link::Link;
use nats_server::servers::node::{DEADLINE, Event, JUMPED, KEEP, Node, again, channel, texts};
use nats_server::servers::run;
use nats_server::{Server, Version};
use nix::sys::signal::Signal;

/// How long a call may take where a server that stands still for a moment is none that is silent.
const LIMIT: Duration = Duration::from_secs(10);

fn config(port: u16) -> NatsConfig {
    let servers = vec![Address::new("127.0.0.1", port)];
    NatsConfig { servers, command_timeout: LIMIT, connect_timeout: LIMIT, ..NatsConfig::default() }
}

async fn node(config: &NatsConfig) -> Node<NatsBackplane> {
    Node::on(again(|| NatsBackplane::connect(config)).await)
}

fn numbers(numbers: impl Iterator<Item = usize>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

/// Follows the chain of positions in one channel, and reads what it missed.
struct Reader {
    position: StreamPosition,
    seen: Vec<String>,
    repairs: usize,
}

impl Reader {
    async fn follow(&mut self, node: &mut Node<NatsBackplane>, channel: &ChannelName, until: usize) {
        while self.seen.len() < until {
            let is_next = match node.next().await {
                Event::Delivered(_, Delivery::Positioned { previous, publication, epoch }) => {
                    let offset = publication.offset.expect("a positioned delivery");
                    if offset <= self.position.offset {
                        continue;
                    }
                    let is_next = previous == Previous::Known(self.position.offset);
                    if is_next {
                        self.position = StreamPosition { epoch, offset };
                        self.seen.push(String::from_utf8_lossy(&publication.data).into_owned());
                    }
                    is_next
                }
                Event::Delivered(..) => continue,
                Event::Disturbed(_) => false,
            };
            if !is_next {
                let page = node.after(channel, &self.position).await;
                assert!(page.covered, "nothing was trimmed, so every position is covered");
                self.seen.extend(texts(&page));
                self.position = page.top;
                self.repairs += 1;
            }
        }
    }
}

/// All connections are cut again and again while numbered messages are published. A reader that follows the chain of
/// offsets and repairs from history after a break or a disturbance sees each message once, in order.
#[test]
fn cut_connections_lose_nothing_unnoticed() {
    const ROUNDS: usize = 12;
    const EACH: usize = 20;
    for version in Version::ALL {
        let server = Server::start(version);
        let link = Link::to(server.port);
        run(async {
            let mut cut = node(&config(link.port)).await;
            let other = node(&config(server.port)).await;
            let names = channel("cut");
            cut.backplane.subscribe(&names).await.expect("subscribe");
            let query = HistoryQuery::position();
            let position = cut.backplane.history(&names[0], query, KEEP).await.expect("history").top;
            let mut reader = Reader { position, seen: Vec::new(), repairs: 0 };
            for round in 0..ROUNDS {
                for n in 0..EACH {
                    if n == EACH / 2 {
                        link.cut_once();
                    }
                    let publisher = if n % 2 == 0 { &cut } else { &other };
                    publisher.publish(&names[0], &(round * EACH + n).to_string()).await;
                }
                reader.follow(&mut cut, &names[0], (round + 1) * EACH).await;
            }
            assert_eq!(reader.seen, numbers(0..ROUNDS * EACH), "what the reader saw, {version:?}");
            assert!(reader.repairs > 0, "no cut was noticed");
        });
    }
}

/// The client library does not come back behind our back: the server has seen as many connections that said who they are
/// as were cut, and each message is delivered once.
#[test]
fn a_connection_that_ended_does_not_return() {
    const CUTS: usize = 5;
    for version in Version::ALL {
        let server = Server::start(version);
        let link = Link::to(server.port);
        run(async {
            let mut node = node(&config(link.port)).await;
            let names = channel("once");
            node.backplane.subscribe(&names).await.expect("subscribe");
            // Those for deliveries, of which one lives at a time.
            let count = |state: &str| {
                let list = server.monitor(&format!("/connz?state={state}&limit=1024"));
                list.matches("\"node deliveries\"").count()
            };
            let deadline = Instant::now() + DEADLINE;
            for cut in 1..=CUTS {
                link.cut_once();
                while (count("closed"), count("open")) != (cut, 1) || !node.backplane.status().is_up {
                    let seen = (count("closed"), count("open"));
                    assert!(Instant::now() < deadline, "cut {cut}: {seen:?} connections ended and live, {version:?}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            node.publish(&names[0], "1").await;
            node.publish(&names[0], "2").await;
            assert_eq!((node.publication().await, node.publication().await), ("1".to_owned(), "2".to_owned()));
            assert_eq!((count("closed"), count("open")), (CUTS, 1), "connected again by the library, {version:?}");
        });
    }
}

/// Streams in memory are gone after a restart: readers are told, deliveries return, and no position means two things.
#[test]
fn a_lost_stream_is_a_new_epoch() {
    for version in Version::ALL {
        let mut server = Server::start(version);
        run(async {
            let config = NatsConfig { storage: Storage::Memory, ..config(server.port) };
            let mut node = node(&config).await;
            let names = channel("volatile");
            node.backplane.subscribe(&names).await.expect("subscribe");
            let old = node.publish(&names[0], "before").await;
            assert_eq!(node.publication().await, "before");
            server.restart();
            node.disturbance().await;
            let page = node.after(&names[0], &old).await;
            assert!(!page.covered, "a lost stream is called covered");
            let new = node.publish(&names[0], "after").await;
            assert_ne!(new.epoch, old.epoch, "epoch after the loss, {version:?}");
            assert_eq!(node.publication().await, "after");
        });
    }
}

/// The stream is removed while all connections last.
#[test]
fn a_removed_stream_is_a_new_epoch() {
    for version in Version::ALL {
        let server = Server::start(version);
        run(async {
            let mut node = node(&config(server.port)).await;
            let names = channel("removed");
            node.backplane.subscribe(&names).await.expect("subscribe");
            let old = node.publish(&names[0], "before").await;
            assert_eq!(node.publication().await, "before");
            let answer = server.ask("$JS.API.STREAM.DELETE.ek_H10000_600", "");
            assert!(answer.contains("true"), "{answer}");
            let failed = node.try_publish(&names[0], "nobody answers").await;
            assert!(matches!(failed, Err(BackplaneError::Unavailable(_))), "{version:?}: {failed:?}");
            let new = node.publish(&names[0], "after").await;
            assert_ne!(new.epoch, old.epoch, "epoch after the loss, {version:?}");
            node.disturbance().await;
            assert!(!node.after(&names[0], &old).await.covered, "a lost stream is called covered");
        });
    }
}

/// A crash and a restart that kept everything: the same epoch, every client recovers, and the offset jumps since it
/// cannot be known that nothing was lost.
#[test]
fn a_restart_keeps_positions() {
    for version in Version::ALL {
        let mut server = Server::start(version);
        run(async {
            let mut node = node(&config(server.port)).await;
            let names = channel("kept");
            node.backplane.subscribe(&names).await.expect("subscribe");
            let first = node.publish(&names[0], "1").await;
            let second = node.publish(&names[0], "2").await;
            assert!(second.offset.0 < JUMPED, "offset without a restart");
            server.restart();
            node.disturbance().await;
            let third = node.publish(&names[0], "3").await;
            assert_eq!(third.epoch, first.epoch, "epoch after the restart");
            assert!(third.offset.0 > JUMPED && third.offset.0 < 1 << 53, "offset {} after the restart", third.offset);
            let next = node.publish(&names[0], "4").await;
            assert_eq!(next.offset.0, third.offset.0 + 1, "offset in the same data set");
            for (position, missed) in [(&first, &["2", "3", "4"][..]), (&second, &["3", "4"]), (&third, &["4"])] {
                let page = node.after(&names[0], position).await;
                assert!(page.covered, "{position:?} is not covered, {version:?}");
                assert_eq!(texts(&page), missed, "after {position:?}");
            }
        });
    }
}

/// The data directory is put back to an earlier copy: readers of the lost publications are told so, the others recover,
/// and no position is given twice. Deliveries and other nodes say the same.
#[test]
fn a_rollback_is_told_to_those_who_saw_the_lost() {
    for version in Version::ALL {
        let mut server = Server::start(version);
        run(async {
            let mut node = node(&config(server.port)).await;
            let other = self::node(&config(server.port)).await;
            let names = channel("rollback");
            node.backplane.subscribe(&names).await.expect("subscribe");
            let mut positions = Vec::new();
            let mut snapshot = None;
            for n in 1..=8 {
                if n == 6 {
                    snapshot = Some(server.snapshot());
                }
                positions.push(node.publish(&names[0], &n.to_string()).await);
            }
            server.roll_back(&snapshot.expect("it was taken"));
            node.disturbance().await;
            // Enough of them to reach the lost offsets, were they only counted on.
            for n in 11..=15 {
                let publisher = if n % 2 == 0 { &node } else { &other };
                let position = publisher.publish(&names[0], &n.to_string()).await;
                assert!(!positions.contains(&position), "{position:?} was given twice, {version:?}");
                assert_eq!(position.epoch, positions[0].epoch, "epoch after the rollback");
            }
            for reader in [&node, &other] {
                for lost in &positions[5..] {
                    let page = reader.after(&names[0], lost).await;
                    assert!(!page.covered, "a reader of a lost publication is not told: {lost:?}, {version:?}");
                }
                for (index, kept) in positions[..5].iter().enumerate() {
                    let page = reader.after(&names[0], kept).await;
                    let missed = numbers((index + 2..=5).chain(11..=15));
                    assert!(page.covered, "{kept:?} is not covered, {version:?}");
                    assert_eq!(texts(&page), missed, "after {kept:?}");
                }
            }
            let mut delivered = Vec::new();
            while delivered.last().is_none_or(|(text, _)| text != "15") {
                if let Event::Delivered(_, Delivery::Positioned { publication, .. }) = node.next().await {
                    let text = String::from_utf8_lossy(&publication.data).into_owned();
                    delivered.push((text, publication.offset.expect("a positioned delivery")));
                }
            }
            assert!(delivered.windows(2).all(|pair| pair[0].1 < pair[1].1), "{version:?}: {delivered:?}");
        });
    }
}

/// A server that is silent but not gone: calls fail within their time, idle deliveries notice it, and all returns with it.
#[test]
fn a_silent_server_fails_calls_in_time_and_is_noticed() {
    for version in Version::ALL {
        let server = Server::start(version);
        run(async {
            let command_timeout = Duration::from_millis(500);
            let config = NatsConfig { command_timeout, connect_timeout: command_timeout, ..config(server.port) };
            let mut node = node(&config).await;
            let names = channel("silent");
            again(|| node.backplane.subscribe(&names)).await;
            let before = node.publish(&names[0], "before").await;
            assert_eq!(node.publication().await, "before");
            server.stop();
            for round in 0..4 {
                let asked = Instant::now();
                let failed = node.try_publish(&names[0], "during").await;
                assert!(matches!(failed, Err(BackplaneError::Unavailable(_))), "round {round}: {failed:?}");
                assert!(asked.elapsed() < 20 * command_timeout, "round {round} took {:?}", asked.elapsed());
            }
            let unstored = node.backplane.publish(&names[0], NewPublication::default(), PublishOptions::default());
            let failed = unstored.await;
            assert!(matches!(failed, Err(BackplaneError::Unavailable(_))), "{failed:?}");
            let failed = node.backplane.subscribe(&channel("another")).await;
            assert!(matches!(failed, Err(BackplaneError::Unavailable(_))), "{failed:?}");
            let stopped = Instant::now();
            while node.backplane.status().is_up {
                assert!(stopped.elapsed() < DEADLINE, "the silence is not noticed");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            server.signal(Signal::SIGCONT);
            node.disturbance().await;
            node.publish(&names[0], "during").await;
            let page = node.after(&names[0], &before).await;
            assert!(page.covered, "nothing was lost");
            assert_eq!(texts(&page), ["during"], "stored once, however often it was tried, {version:?}");
            node.publish(&names[0], "after").await;
            while node.publication().await != "after" {}
        });
    }
}

/// What is published while the server is away fails at once, and does not come later.
#[test]
fn nothing_is_kept_to_be_sent_later() {
    for version in Version::ALL {
        let mut server = Server::start(version);
        run(async {
            let mut node = node(&config(server.port)).await;
            let names = channel("away");
            node.backplane.subscribe(&names).await.expect("subscribe");
            let before = node.publish(&names[0], "before").await;
            assert_eq!(node.publication().await, "before");
            server.end();
            let deadline = Instant::now() + DEADLINE;
            while node.backplane.status().is_up {
                assert!(Instant::now() < deadline, "the end is not noticed");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            for history in [Some(KEEP), None] {
                let publication = NewPublication { data: Bytes::from_static(b"late"), ..Default::default() };
                let options = PublishOptions { history, ..PublishOptions::default() };
                let asked = Instant::now();
                let failed = node.backplane.publish(&names[0], publication, options).await;
                assert!(matches!(failed, Err(BackplaneError::Unavailable(_))), "{failed:?}");
                assert!(asked.elapsed() < LIMIT / 2, "it took {:?}", asked.elapsed());
            }
            server.start_again();
            node.disturbance().await;
            node.publish(&names[0], "after").await;
            let page = node.after(&names[0], &before).await;
            assert!(page.covered);
            assert_eq!(texts(&page), ["after"], "what was stored, {version:?}");
            loop {
                match node.next().await {
                    Event::Delivered(_, Delivery::Positioned { publication, .. }) => {
                        assert_eq!(&publication.data[..], b"after", "what was delivered, {version:?}");
                        break;
                    }
                    Event::Delivered(_, delivery) => panic!("{version:?}: {delivery:?}"),
                    Event::Disturbed(_) => {}
                }
            }
        });
    }
}

/// A subscription counts when the server has it, not when it was sent: promise 4.
#[test]
fn subscribe_waits_for_the_server() {
    const ROUNDS: usize = 200;
    for version in Version::ALL {
        let server = Server::start(version);
        run(async {
            // No test of the connection is under way, for which a subscribe would wait as well.
            let config = NatsConfig { liveness_interval: Duration::from_secs(60), ..config(server.port) };
            let (mut node, other) = (self::node(&config).await, self::node(&config).await);
            let names = channel("stopped");
            server.stop();
            let mut subscribing = node.backplane.subscribe(&names);
            let early = tokio::time::timeout(Duration::from_millis(500), &mut subscribing).await;
            server.signal(Signal::SIGCONT);
            assert!(early.is_err(), "a stopped server has not subscribed anything: {early:?}");
            subscribing.await.expect("subscribe");
            other.publish(&names[0], "live").await;
            assert_eq!(node.publication().await, "live");
            for round in 0..ROUNDS {
                let names = channel(&format!("round {round}"));
                node.backplane.subscribe(&names).await.expect("subscribe");
                other.publish(&names[0], &round.to_string()).await;
                assert_eq!(node.publication().await, round.to_string(), "the first publication, {version:?}");
            }
        });
    }
}

#[test]
fn nodes_that_do_not_agree_are_refused_in_words() {
    for version in Version::ALL {
        let server = Server::start(version);
        run(async {
            let config = config(server.port);
            let first = node(&config).await;
            first.publish(&channel("a")[0], "1").await;
            let refused = async |config: NatsConfig| match NatsBackplane::connect(&config).await {
                Err(BackplaneError::Protocol(why)) => why,
                other => panic!("{version:?}: {other:?}"),
            };
            let why = refused(NatsConfig { partitions: 512, ..config.clone() }).await;
            assert!(why.contains("1024") && why.contains("512"), "{why}");
            let why = refused(NatsConfig { storage: Storage::Memory, ..config.clone() }).await;
            assert!(why.contains("storage") && why.contains("ek_meta"), "{why}");
            node(&NatsConfig { partitions: 512, prefix: "other".to_owned(), ..config }).await;
        });
    }
}

#[test]
fn a_dropped_backplane_leaves_no_connection() {
    let server = Server::start(Version::Current);
    run(async {
        let node = node(&config(server.port)).await;
        let about = server.monitor("/connz");
        assert!(about.contains("\"num_connections\": 2"), "{about}");
        drop(node);
        let deadline = Instant::now() + DEADLINE;
        while !server.monitor("/connz").contains("\"num_connections\": 0") {
            assert!(Instant::now() < deadline, "connections are left: {}", server.monitor("/connz"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}
