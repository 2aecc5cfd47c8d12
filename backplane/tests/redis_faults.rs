//! What goes wrong with a Redis server, done to a real one: no publication is lost, repeated or reordered without the
//! node being told, and presence ends exactly once.

mod redis_server;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane::redis::{RedisBackplane, RedisConfig};
use backplane::{
    Backplane, BackplaneError, ChannelName, Delivery, Disturbance, HistoryQuery, PresenceEvent, PresenceStore,
    Previous, Sink, StreamPosition,
};
use nix::sys::signal::Signal;
use redis_server::node::{DEADLINE, Event, Events, JUMPED, KEEP, Node, again, channel, client, texts};
use redis_server::{APPEND_ONLY, Server, VOLATILE, run};
use tokio::sync::mpsc;

/// The subscriber connection is killed again and again while numbered messages are published. A reader that follows the
/// chain of offsets and repairs from history after a break or a disturbance sees each message once, in order.
#[test]
fn killed_subscriber_connections_lose_nothing_unnoticed() {
    const ROUNDS: usize = 50;
    const EACH: usize = 20;
    let server = Server::start(VOLATILE);
    run(async {
        let mut node = Node::connect(&server.config()).await;
        let names = channel("killed");
        node.backplane.subscribe(&names).await.expect("subscribe");
        let query = HistoryQuery::position();
        let mut position = node.backplane.history(&names[0], query, KEEP).await.expect("history").top;
        let mut seen = Vec::new();
        let mut repairs = 0;
        for round in 0..ROUNDS {
            for n in 0..EACH {
                if n == EACH / 2 {
                    // It may hit nobody, when the connection of the round before is not subscribed again yet.
                    assert!(server.admin("CLIENT KILL TYPE pubsub").starts_with(':'), "the kill is accepted");
                }
                node.publish(&names[0], &format!("{}", round * EACH + n)).await;
            }
            while seen.len() < (round + 1) * EACH {
                let is_next = match node.next().await {
                    Event::Delivered(_, Delivery::Positioned { previous, publication, epoch }) => {
                        let offset = publication.offset.expect("a positioned delivery");
                        if offset <= position.offset {
                            continue;
                        }
                        let is_next = previous == Previous::Known(position.offset);
                        if is_next {
                            position = StreamPosition { epoch, offset };
                            seen.push(String::from_utf8_lossy(&publication.data).into_owned());
                        }
                        is_next
                    }
                    Event::Delivered(..) => continue,
                    Event::Disturbed(_) => false,
                };
                if !is_next {
                    let page = node.after(&names[0], &position).await;
                    assert!(page.covered, "nothing was trimmed, so every position is covered");
                    seen.extend(texts(&page));
                    position = page.top;
                    repairs += 1;
                }
            }
        }
        let expected: Vec<_> = (0..ROUNDS * EACH).map(|n| n.to_string()).collect();
        assert_eq!(seen, expected, "what the reader saw");
        assert!(repairs > 0, "no kill was noticed");
    });
}

/// Everything is gone after a restart without persistence: readers are told, deliveries return, scripts are loaded anew.
#[test]
fn a_restart_without_persistence_is_a_new_epoch() {
    let mut server = Server::start(VOLATILE);
    run(async {
        let mut node = Node::connect(&server.config()).await;
        let names = channel("volatile");
        node.backplane.subscribe(&names).await.expect("subscribe");
        let old = node.publish(&names[0], "before").await;
        assert_eq!(node.publication().await, "before");
        server.restart();
        node.disturbance().await;
        let page = node.after(&names[0], &old).await;
        assert!(!page.covered, "a lost stream is called covered");
        let new = node.publish(&names[0], "after").await;
        assert_ne!(new.epoch, old.epoch, "epoch after the loss");
        assert_eq!(node.publication().await, "after");
    });
}

/// A restart that kept everything: the same epoch, every client recovers, and the offset jumps since it cannot be known
/// that nothing was lost.
#[test]
fn a_restart_with_persistence_keeps_positions() {
    let mut server = Server::start(APPEND_ONLY);
    run(async {
        let mut node = Node::connect(&server.config()).await;
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
            assert!(page.covered, "{position:?} is not covered");
            assert_eq!(texts(&page), missed, "after {position:?}");
        }
    });
}

/// The server goes back to an older state: readers of the lost publications are told so, the others recover, and no
/// position is given twice.
#[test]
fn a_rollback_is_told_to_those_who_saw_the_lost() {
    let mut server = Server::start(VOLATILE);
    run(async {
        let mut node = Node::connect(&server.config()).await;
        let names = channel("rollback");
        node.backplane.subscribe(&names).await.expect("subscribe");
        let mut positions = Vec::new();
        for n in 1..=8 {
            if n == 6 {
                assert_eq!(server.admin("SAVE"), "+OK");
            }
            positions.push(node.publish(&names[0], &n.to_string()).await);
        }
        server.restart();
        node.disturbance().await;
        // Enough of them to reach the lost offsets, were they only counted on.
        for n in 11..=15 {
            let position = node.publish(&names[0], &n.to_string()).await;
            assert!(!positions.contains(&position), "{position:?} was given twice");
            assert_eq!(position.epoch, positions[0].epoch, "epoch after the rollback");
        }
        for lost in &positions[5..] {
            assert!(!node.after(&names[0], lost).await.covered, "a reader of a lost publication is not told: {lost:?}");
        }
        for (index, kept) in positions[..5].iter().enumerate() {
            let page = node.after(&names[0], kept).await;
            let missed: Vec<_> = (index + 2..=5).chain(11..=15).map(|n| n.to_string()).collect();
            assert!(page.covered, "{kept:?} is not covered");
            assert_eq!(texts(&page), missed, "after {kept:?}");
        }
    });
}

/// A subscription counts when Redis has it, not when it was sent: promise 4.
#[test]
fn subscribe_waits_for_redis() {
    const ROUNDS: usize = 300;
    let server = Server::start(VOLATILE);
    run(async {
        // No test of the connection is under way, for which a subscribe would wait as well.
        let config = RedisConfig { liveness_interval: Duration::from_secs(60), ..server.config() };
        let (mut node, other) = (Node::connect(&config).await, Node::connect(&config).await);
        node.backplane.subscribe(&channel("first")).await.expect("subscribe");
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
            assert_eq!(node.publication().await, round.to_string(), "the first publication after the subscribe");
        }
    });
}

/// A server that is silent but not gone: calls fail within their time, an idle subscriber connection notices it, and all
/// returns with it.
#[test]
fn a_silent_server_fails_calls_in_time_and_is_noticed() {
    let server = Server::start(VOLATILE);
    run(async {
        let command_timeout = Duration::from_millis(500);
        let config = RedisConfig { command_timeout, connect_timeout: command_timeout, ..server.config() };
        let mut node = Node::connect(&config).await;
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
        let failed = node.backplane.subscribe(&channel("another")).await;
        assert!(matches!(failed, Err(BackplaneError::Unavailable(_))), "{failed:?}");
        // The connection test fails.
        while !matches!(node.next().await, Event::Disturbed(Disturbance::All)) {}
        server.signal(Signal::SIGCONT);
        let deadline = Instant::now() + DEADLINE;
        while !node.backplane.status().is_up {
            assert!(Instant::now() < deadline, "the return is not noticed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        node.publish(&names[0], "during").await;
        let page = node.after(&names[0], &before).await;
        assert!(page.covered, "nothing was lost");
        assert_eq!(texts(&page), ["during"], "stored once, however often it was tried");
        node.publish(&names[0], "after").await;
        while node.publication().await != "after" {}
    });
}

/// Scripts are loaded again in the middle of publishing.
#[test]
fn flushed_scripts_are_loaded_again() {
    let server = Server::start(VOLATILE);
    run(async {
        let node = Node::connect(&server.config()).await;
        let names = channel("flushed");
        let start = node.publish(&names[0], "0").await;
        for n in 1..=20 {
            assert_eq!(server.admin("SCRIPT FLUSH"), "+OK");
            node.try_publish(&names[0], &n.to_string()).await.expect("publish after a flush");
        }
        let page = node.after(&names[0], &start).await;
        assert_eq!(texts(&page), (1..=20).map(|n| n.to_string()).collect::<Vec<_>>());
    });
}

/// Redis drops a subscriber whose messages pile up; the reader is told and finds what it missed in history.
#[test]
fn an_overflowed_output_buffer_is_repaired() {
    let server = Server::start(VOLATILE);
    run(async {
        let mut node = Node::connect(&server.config()).await;
        let names = channel("large");
        node.backplane.subscribe(&names).await.expect("subscribe");
        let start = node.publish(&names[0], "small").await;
        assert_eq!(node.publication().await, "small");
        assert_eq!(server.admin("CONFIG SET client-output-buffer-limit \"pubsub 100kb 0 0\""), "+OK");
        let large = "x".repeat(300_000);
        node.publish(&names[0], &large).await;
        node.disturbance().await;
        assert_eq!(texts(&node.after(&names[0], &start).await), [large]);
        node.publish(&names[0], "small again").await;
        assert_eq!(node.publication().await, "small again");
    });
}

/// A node that takes deliveries too slowly loses some, is told so, and goes on.
#[test]
fn lag_is_told() {
    const MESSAGES: usize = 3_000;

    /// Stands still at the first delivery until it is let go.
    struct Slow {
        go_on: std::sync::Mutex<Option<std::sync::mpsc::Receiver<()>>>,
        events: Events,
    }

    impl Sink for Slow {
        fn deliver(&self, channel: &ChannelName, delivery: Delivery) {
            if let Some(go_on) = self.go_on.lock().expect("no holder panics").take() {
                // Told to the runtime: otherwise the thread may take the polling of sockets and timers down with it.
                tokio::task::block_in_place(|| go_on.recv()).expect("the test lets it go");
            }
            self.events.deliver(channel, delivery);
        }

        fn disturbed(&self, disturbance: Disturbance) {
            self.events.disturbed(disturbance);
        }
    }

    let server = Server::start(VOLATILE);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let config = RedisConfig { deliveries_waiting_max: 1024, ..server.config() };
        let backplane = RedisBackplane::connect(&config).await.expect("the server is there");
        let (sender, events) = mpsc::unbounded_channel();
        let (let_go, go_on) = std::sync::mpsc::channel();
        let go_on = std::sync::Mutex::new(Some(go_on));
        backplane.attach(Arc::new(Slow { go_on, events: Events(sender) }));
        let mut node = Node { backplane, events };
        let names = channel("lag");
        node.backplane.subscribe(&names).await.expect("subscribe");
        let start = node.publish(&names[0], "first").await;
        for n in 0..MESSAGES {
            node.publish(&names[0], &n.to_string()).await;
        }
        // A later answer on the subscriber connection: all messages have been read from it.
        node.backplane.subscribe(&channel("another")).await.expect("subscribe");
        let_go.send(()).expect("the sink waits");
        node.disturbance().await;
        let page = node.after(&names[0], &start).await;
        assert!(page.covered && page.publications.len() == MESSAGES, "history repairs the loss");
        node.publish(&names[0], "last").await;
        while node.publication().await != "last" {}
    });
}

#[test]
fn a_dropped_backplane_leaves_no_connection() {
    let server = Server::start(VOLATILE);
    run(async {
        let node = Node::connect(&server.config()).await;
        let busy = || server.admin(&format!("EVAL {COUNT_CLIENTS:?} 0"));
        const COUNT_CLIENTS: &str =
            "return tonumber(string.match(redis.call('INFO','clients'),'connected_clients:(%d+)'))";
        // Two for commands, one for deliveries, and the one that asks.
        assert_eq!(busy(), ":4");
        drop(node);
        let deadline = Instant::now() + DEADLINE;
        while busy() != ":1" {
            assert!(Instant::now() < deadline, "connections are left: {}", busy());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn missing_permissions_are_named_with_their_remedy() {
    for missing in ["-info", "-publish", "-evalsha -eval", "resetchannels"] {
        let server = Server::with_permissions(VOLATILE, missing);
        let refused = run(RedisBackplane::connect(&server.config())).expect_err("not everything is allowed");
        let BackplaneError::Protocol(why) = &refused else { panic!("{missing}: {refused}") };
        assert!(why.contains("ACL SETUSER evenkeel"), "{missing}: {why}");
    }
}

#[test]
fn wrong_settings_and_absent_servers_are_told_apart() {
    let server = Server::start(VOLATILE);
    let wrong = RedisConfig { password: Some("wrong".to_owned()), ..server.config() };
    let refused = run(RedisBackplane::connect(&wrong)).expect_err("the password is wrong");
    assert!(matches!(refused, BackplaneError::Protocol(_)), "{refused:?}");
    let bad_prefix = RedisConfig { prefix: "a{b".to_owned(), ..server.config() };
    let refused = run(RedisBackplane::connect(&bad_prefix)).expect_err("the prefix is illegal");
    assert!(matches!(refused, BackplaneError::Protocol(_)), "{refused:?}");
    let config = server.config();
    drop(server);
    let refused = run(RedisBackplane::connect(&config)).expect_err("nobody listens");
    assert!(matches!(refused, BackplaneError::Unavailable(_)), "{refused:?}");
}

/// A lease that is soon over, and outlives a machine that stands still for a moment.
fn short_lease(config: RedisConfig) -> RedisConfig {
    let (lease_ttl, lease_interval) = (Duration::from_secs(4), Duration::from_millis(300));
    RedisConfig { lease_ttl, lease_interval, ..config }
}

/// A node that dies leaves its members behind: two survivors announce each leave once, and the entries are gone.
#[test]
fn members_of_a_dead_node_leave_once() {
    const CHANNELS: usize = 20;
    let server = Server::start(VOLATILE);
    run(async {
        let config = short_lease(server.config());
        let dying = Node::connect(&config).await;
        let mut survivors = [Node::connect(&config).await, Node::connect(&config).await];
        let names: Vec<_> = (0..CHANNELS).map(|n| ChannelName::from(format!("room {n}"))).collect();
        let mut expected = HashMap::new();
        for survivor in &survivors {
            survivor.backplane.subscribe(&names).await.expect("subscribe");
        }
        let stays = client("stays");
        for name in &names {
            let leaves = client("leaves");
            dying.backplane.add_presence(name, Arc::clone(&leaves)).await.expect("add_presence");
            survivors[0].backplane.add_presence(name, Arc::clone(&stays)).await.expect("add_presence");
            expected.insert(leaves.client, leaves);
        }
        drop(dying);
        for survivor in &mut survivors {
            let mut missing = expected.clone();
            while !missing.is_empty() {
                if let Event::Delivered(_, Delivery::Presence(event)) = survivor.next().await {
                    let PresenceEvent::Leave(info) = event else { panic!("nobody joins: {event:?}") };
                    assert_eq!(missing.remove(&info.client), Some(info), "left twice or never was there");
                }
            }
        }
        for name in &names {
            let members = survivors[1].backplane.presence(name).await.expect("presence");
            assert_eq!(members, [Arc::clone(&stays)], "members of {name}");
        }
        // A second announcement would come before this.
        survivors[0].publish(&names[0], "last").await;
        for survivor in &mut survivors {
            loop {
                match survivor.next().await {
                    Event::Delivered(_, Delivery::Positioned { .. }) => break,
                    Event::Delivered(_, Delivery::Presence(event)) => panic!("announced again: {event:?}"),
                    Event::Delivered(..) | Event::Disturbed(_) => {}
                }
            }
        }
    });
}

/// A living node whose lease is lost, or whose entries are, writes them anew, and nobody is announced to leave.
#[test]
fn a_lost_lease_is_taken_anew() {
    let mut server = Server::start(VOLATILE);
    run(async {
        let config = short_lease(server.config());
        let (node, mut other) = (Node::connect(&config).await, Node::connect(&config).await);
        let names = channel("room");
        other.backplane.subscribe(&names).await.expect("subscribe");
        let member = client("ann");
        node.backplane.add_presence(&names[0], Arc::clone(&member)).await.expect("add_presence");
        for fault in ["FLUSHALL", "restart", "FLUSHALL"] {
            if fault == "restart" {
                server.restart();
            } else {
                assert_eq!(server.admin(fault), "+OK");
            }
            let deadline = Instant::now() + DEADLINE;
            while again(|| other.backplane.presence(&names[0])).await != [Arc::clone(&member)] {
                assert!(Instant::now() < deadline, "the member is not back after {fault}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        again(|| other.backplane.subscribe(&names)).await;
        other.publish(&names[0], "last").await;
        loop {
            match other.next().await {
                Event::Delivered(_, Delivery::Positioned { .. }) => break,
                Event::Delivered(_, Delivery::Presence(event)) => {
                    panic!("the member is here, but {event:?} was announced")
                }
                Event::Delivered(..) | Event::Disturbed(_) => {}
            }
        }
    });
}

/// A node that is closed in good order is not waited for.
#[test]
fn a_closed_node_has_no_members() {
    let server = Server::start(VOLATILE);
    run(async {
        let (node, other) = (Node::connect(&server.config()).await, Node::connect(&server.config()).await);
        let names = channel("room");
        node.backplane.add_presence(&names[0], client("ann")).await.expect("add_presence");
        assert_eq!(other.backplane.presence_stats(&names[0]).await.expect("presence_stats").num_clients, 1);
        node.backplane.close().await.expect("close");
        assert_eq!(other.backplane.presence_stats(&names[0]).await.expect("presence_stats").num_clients, 0);
    });
}
