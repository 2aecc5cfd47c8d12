//! Faults of a real Redis server under load: numbered publications, a reader that repairs as the gateway's hub does, and
//! an audit of what it saw.

mod redis_server;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use backplane::redis::RedisConfig;
use backplane::{Backplane, ChannelName, Delivery, HistoryQuery, Previous, StreamPosition};
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use redis_server::node::{DEADLINE, Event, KEEP, Node, again, channel, texts};
use redis_server::{APPEND_ONLY, Server, VOLATILE, run};

const PUBLISHERS: usize = 16;

/// Fewer than history keeps, so that a reader can always be repaired.
const ACKNOWLEDGED_MAX: usize = 9_000;

/// Connections of the reader that a test ends one after the other.
const KILLS: usize = 50;

const LAST: &str = "last";

/// Follows the chain of offsets of one channel; after a break or a disturbance it reads on from history.
struct Reader {
    node: Node,
    channel: ChannelName,
    position: StreamPosition,
    seen: Vec<String>,
    /// Where in `seen` it was told that something is missing.
    told_of_loss: Vec<usize>,
    repairs: usize,
}

impl Reader {
    async fn start(config: &RedisConfig, channel: &ChannelName) -> Self {
        let node = Node::connect(config).await;
        node.backplane.subscribe(std::slice::from_ref(channel)).await.expect("subscribe");
        let position = node.backplane.history(channel, HistoryQuery::position(), KEEP).await.expect("history").top;
        let (seen, told_of_loss) = (Vec::new(), Vec::new());
        Self { node, channel: channel.clone(), position, seen, told_of_loss, repairs: 0 }
    }

    /// Until the last publication.
    async fn read(&mut self) {
        while self.seen.last().is_none_or(|text| text != LAST) {
            let is_next = match self.node.next().await {
                Event::Delivered(_, Delivery::Positioned { previous, publication, epoch }) => {
                    let offset = publication.offset.expect("a positioned delivery");
                    if epoch == self.position.epoch && offset <= self.position.offset {
                        continue;
                    }
                    let is_next = epoch == self.position.epoch && previous == Previous::Known(self.position.offset);
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
                self.repair().await;
            }
        }
    }

    async fn repair(&mut self) {
        self.repairs += 1;
        let mut page = self.node.after(&self.channel, &self.position).await;
        if !page.covered {
            // As a client does that is told so: it begins anew with what there is.
            self.told_of_loss.push(self.seen.len());
            let query = HistoryQuery { since: None, limit: None, reverse: false };
            page = again(|| self.node.backplane.history(&self.channel, query.clone(), KEEP)).await;
        }
        self.seen.extend(texts(&page));
        self.position = page.top;
    }
}

/// Publishes from two nodes while `fault` goes on and a little longer, then audits a reader on a third one: everything
/// that was acknowledged came once, in the order of its publisher. With `loses`, what came before the reader was told of
/// a loss may be missing, and it must have been told. Returns how often
/// the reader's deliveries were restored.
fn audit(server: &mut Server, loses: bool, fault: impl AsyncFnOnce(&mut Server, &AtomicUsize)) -> u64 {
    let config = server.config();
    audit_with(&config, server, loses, fault)
}

/// The same by nodes with these settings.
fn audit_with(
    config: &RedisConfig,
    server: &mut Server,
    loses: bool,
    fault: impl AsyncFnOnce(&mut Server, &AtomicUsize),
) -> u64 {
    run(async {
        let names = channel("load");
        let mut reader = Reader::start(config, &names[0]).await;
        let writers = [Node::connect(config).await, Node::connect(config).await];
        let (is_over, acknowledged) = (AtomicBool::new(false), AtomicUsize::new(0));
        let publishers = (0..PUBLISHERS).map(async |publisher| {
            let mut n = 0;
            while !is_over.load(Relaxed) {
                writers[publisher % 2].publish(&names[0], &format!("{publisher}:{n}")).await;
                n += 1;
                // Bounds the load, whatever the time that the fault takes.
                let pause = match acknowledged.fetch_add(1, Relaxed) * 8 / ACKNOWLEDGED_MAX {
                    0..=3 => 2,
                    4..=5 => 50,
                    6 => 200,
                    _ => 1000,
                };
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            n
        });
        let load = async {
            let (published, ()) = tokio::join!(join_all(publishers), async {
                until(&acknowledged, 200).await;
                fault(server, &acknowledged).await;
                let now = acknowledged.load(Relaxed);
                until(&acknowledged, now + 200).await;
                is_over.store(true, Relaxed);
            });
            writers[0].publish(&names[0], LAST).await;
            published
        };
        let (published, ()) = tokio::join!(load, reader.read());
        assert!(acknowledged.load(Relaxed) < ACKNOWLEDGED_MAX, "more than history keeps");
        assert_eq!(!reader.told_of_loss.is_empty(), loses, "told of a loss at {:?}", reader.told_of_loss);
        // Of each publisher, the number that comes next and how many losses it was told of by the last one.
        let mut next: HashMap<usize, (usize, usize)> = HashMap::new();
        for (index, text) in reader.seen.iter().enumerate().filter(|(_, text)| *text != LAST) {
            let (publisher, n) = text.split_once(':').expect("a numbered publication");
            let (publisher, n): (usize, usize) = (publisher.parse().expect("a number"), n.parse().expect("a number"));
            let losses = reader.told_of_loss.iter().filter(|&&at| at <= index).count();
            let (next, losses_before) = next.entry(publisher).or_default();
            // Over a loss some may be missing; one whose acknowledgement was lost is published again, since its key is
            // lost too.
            let is_next = if losses > *losses_before { n + 1 >= *next } else { n == *next };
            assert!(is_next, "{publisher} comes to {n} instead of {next} at {index}");
            (*next, *losses_before) = (n + 1, losses);
        }
        for (publisher, published) in published.into_iter().enumerate() {
            let seen = next.get(&publisher).map(|(next, _)| *next);
            assert_eq!(seen, Some(published), "the end of publisher {publisher}");
        }
        assert!(reader.repairs as u64 >= reader.node.backplane.status().restorations, "not all was repaired");
        reader.node.backplane.status().restorations
    })
}

async fn until(acknowledged: &AtomicUsize, count: usize) {
    let deadline = Instant::now() + DEADLINE;
    while acknowledged.load(Relaxed) < count {
        assert!(Instant::now() < deadline, "publishing does not go on");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Between two faults some publications are acknowledged.
async fn some_more(acknowledged: &AtomicUsize) {
    let now = acknowledged.load(Relaxed);
    until(acknowledged, now + 30).await;
}

/// Does it again until it meets the reader's connection, which may not be back yet.
async fn once_subscribed(act: impl Fn() -> String) {
    let deadline = Instant::now() + DEADLINE;
    while act() != ":1" {
        assert!(Instant::now() < deadline, "the reader does not subscribe again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn crashes_with_persistence() {
    let mut server = Server::start(APPEND_ONLY);
    let restored = audit(&mut server, false, async |server, acknowledged| {
        for _ in 0..3 {
            server.restart();
            some_more(acknowledged).await;
        }
    });
    // A crash may come before the deliveries of the one before it are restored: on a slow disk all but the last do.
    assert!(restored >= 1, "never restored");
}

#[test]
fn a_crash_without_persistence() {
    let mut server = Server::start(VOLATILE);
    let restored = audit(&mut server, true, async |server, _| server.restart());
    assert!(restored >= 1, "restored only {restored} times");
}

#[test]
fn silence() {
    let mut server = Server::start(VOLATILE);
    let limit = Duration::from_millis(1500);
    let config = RedisConfig { command_timeout: limit, connect_timeout: limit, ..server.config() };
    let restored = audit_with(&config, &mut server, false, async |server, _| {
        server.stop();
        // Longer than every time limit of a call and of a connection attempt together.
        tokio::time::sleep(Duration::from_secs(4)).await;
        server.signal(Signal::SIGCONT);
    });
    assert!(restored >= 1, "restored only {restored} times");
}

#[test]
fn killed_deliveries() {
    let mut server = Server::start(VOLATILE);
    let restored = audit(&mut server, false, async |server, acknowledged| {
        for _ in 0..KILLS {
            once_subscribed(|| server.admin("CLIENT KILL TYPE pubsub")).await;
            some_more(acknowledged).await;
        }
    });
    assert!(restored >= KILLS as u64 / 2, "restored only {restored} times");
}

#[test]
fn an_output_buffer_that_is_too_small() {
    let mut server = Server::start(VOLATILE);
    let restored = audit(&mut server, false, async |server, acknowledged| {
        assert_eq!(server.admin("CONFIG SET client-output-buffer-limit \"pubsub 16kb 0 0\""), "+OK");
        let too_large = "x".repeat(40_000);
        for _ in 0..KILLS {
            once_subscribed(|| server.admin(&format!("PUBLISH test.ek:{{load}}:c {too_large}"))).await;
            some_more(acknowledged).await;
        }
    });
    assert!(restored >= KILLS as u64 / 2, "restored only {restored} times");
}

#[test]
fn flushed_scripts() {
    let mut server = Server::start(VOLATILE);
    let restored = audit(&mut server, false, async |server, acknowledged| {
        for _ in 0..50 {
            assert_eq!(server.admin("SCRIPT FLUSH"), "+OK");
            some_more(acknowledged).await;
        }
    });
    assert_eq!(restored, 0, "deliveries do not depend on scripts");
}
