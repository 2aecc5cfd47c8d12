//! Failovers by real Sentinels: nodes follow, publishes resume, every channel is repaired, and what recovery says is true.

mod redis_server;

use std::time::{Duration, Instant};

use backplane::redis::{RedisBackplane, RedisConfig, Topology};
use backplane::{Backplane, BackplaneError, Disturbance};
use nix::sys::signal::Signal;
use redis_server::node::{DEADLINE, Event, JUMPED, Node, again, channel, texts};
use redis_server::sentinel::Watched;
use redis_server::{Server, VOLATILE, eventually, run};

fn short(config: RedisConfig) -> RedisConfig {
    let limit = Duration::from_millis(1000);
    RedisConfig { command_timeout: limit, connect_timeout: limit, ..config }
}

/// The primary is killed with five publications that no replica has: who saw one of them is told, who saw only surviving
/// ones recovers, and no position is given twice.
#[test]
fn recovery_is_true_after_a_lossy_failover() {
    let mut watched = Watched::start(1);
    run(async {
        let mut node = Node::connect(&short(watched.config())).await;
        let names = channel("lossy");
        node.backplane.subscribe(&names).await.expect("subscribe");
        let mut positions = Vec::new();
        for n in 1..=10 {
            positions.push(node.publish(&names[0], &n.to_string()).await);
        }
        watched.replicated();
        watched.cut(1);
        for n in 11..=15 {
            positions.push(node.publish(&names[0], &n.to_string()).await);
        }
        watched.servers[0].end();
        for n in 21..=27 {
            let position = node.publish(&names[0], &n.to_string()).await;
            assert_eq!(position.epoch, positions[0].epoch, "epoch after the failover");
            assert!(position.offset.0 > JUMPED, "offset {} after the failover", position.offset);
            assert!(!positions.contains(&position), "{position:?} was given twice");
        }
        node.disturbance().await;
        for lost in &positions[10..] {
            assert!(!node.after(&names[0], lost).await.covered, "a reader of a lost publication is not told: {lost:?}");
        }
        for (index, kept) in positions[..10].iter().enumerate() {
            let page = node.after(&names[0], kept).await;
            let missed: Vec<_> = (index + 2..=10).chain(21..=27).map(|n| n.to_string()).collect();
            assert!(page.covered, "{kept:?} is not covered");
            assert_eq!(texts(&page), missed, "after {kept:?}");
        }
        node.publish(&names[0], "last").await;
        while node.publication().await != "last" {}
    });
}

/// The primary hangs without closing its connections, and comes back as a replica.
#[test]
fn a_silent_primary_is_left() {
    let watched = Watched::start(1);
    run(async {
        let mut node = Node::connect(&short(watched.config())).await;
        let names = channel("silent");
        node.backplane.subscribe(&names).await.expect("subscribe");
        let before = node.publish(&names[0], "before").await;
        watched.replicated();
        watched.servers[0].stop();
        node.publish(&names[0], "during").await;
        node.disturbance().await;
        watched.servers[0].signal(Signal::SIGCONT);
        node.publish(&names[0], "after").await;
        while node.publication().await != "after" {}
        let page = node.after(&names[0], &before).await;
        assert!(page.covered, "nothing was lost");
        assert_eq!(texts(&page), ["during", "after"]);
    });
}

/// An ordered failover, there and back: nobody dies, connections may survive, and nothing is missed unnoticed. The order
/// waits for nobody: what the replica does not have by then is lost, and so is what the old primary still acknowledges,
/// which goes on as one for some seconds.
#[test]
fn nodes_follow_there_and_back() {
    let watched = Watched::start(1);
    run(async {
        let mut node = Node::connect(&short(watched.config())).await;
        let names = channel("there and back");
        node.backplane.subscribe(&names).await.expect("subscribe");
        let start = node.publish(&names[0], "start").await;
        while node.publication().await != "start" {}
        let (mut last, mut lost) = (start.clone(), Vec::new());
        for round in ["there", "back"] {
            watched.replicated();
            watched.fail_over();
            node.disturbance().await;
            let published = Instant::now();
            let first_there = loop {
                let position = node.publish(&names[0], round).await;
                // The offset jumps with the first publication after a promotion.
                if position.offset.0 > last.offset.0 + 1 {
                    break position;
                }
                assert!(published.elapsed() < DEADLINE, "the node stays with the old primary");
                lost.push(position);
            };
            while node.publication().await != round {}
            last = first_there;
        }
        let page = node.after(&names[0], &start).await;
        assert!(page.covered, "the first one was replicated");
        assert_eq!(texts(&page), ["there", "back"]);
        for lost in &lost {
            assert!(!node.after(&names[0], lost).await.covered, "a reader of a lost publication is not told: {lost:?}");
        }
    });
}

/// A primary that is demoted behind the back of everybody, its connections left alone: publishes to it fail, and a node
/// notices that nothing will be delivered there.
#[test]
fn a_demoted_server_is_not_taken_for_the_primary() {
    let (server, other) = (Server::start(VOLATILE), Server::start(VOLATILE));
    run(async {
        let mut node = Node::connect(&short(server.config())).await;
        let names = channel("demoted");
        node.backplane.subscribe(&names).await.expect("subscribe");
        assert_eq!(server.admin(&format!("REPLICAOF 127.0.0.1 {}", other.port)), "+OK");
        let failed = node.try_publish(&names[0], "during").await;
        assert!(matches!(failed, Err(BackplaneError::Unavailable(_))), "{failed:?}");
        eventually("it is a replica", || server.ask(&["ROLE"]).starts_with("slave"));
        while !matches!(node.next().await, Event::Disturbed(Disturbance::All)) {}
        let failed = node.backplane.subscribe(&channel("another")).await;
        assert!(matches!(failed, Err(BackplaneError::Unavailable(_))), "{failed:?}");
        assert_eq!(server.admin("REPLICAOF NO ONE"), "+OK");
        node.disturbance().await;
        node.publish(&names[0], "after").await;
        while node.publication().await != "after" {}
        again(|| node.backplane.subscribe(&names)).await;
    });
}

/// One Sentinel is dead, one hangs: the third is enough to find the primary.
#[test]
fn one_sentinel_is_enough() {
    let mut watched = Watched::start(1);
    watched.sentinels[0].end();
    watched.sentinels[1].stop();
    run(async {
        let node = Node::connect(&short(watched.config())).await;
        let position = node.publish(&channel("one")[0], "1").await;
        assert_eq!(position.offset.0, 1);
    });
    watched.sentinels[1].signal(Signal::SIGCONT);
}

#[test]
fn wrong_settings_are_named() {
    let watched = Watched::start(0);
    let with = |change: fn(&mut String, &mut Option<String>)| {
        let mut config = watched.config();
        if let Topology::Sentinel { primary, password, .. } = &mut config.topology {
            change(primary, password);
        }
        run(RedisBackplane::connect(&config)).expect_err("the settings are wrong")
    };
    let unknown = with(|primary, _| "unknown".clone_into(primary));
    assert!(matches!(&unknown, BackplaneError::Protocol(why) if why.contains("No such master")), "{unknown}");
    let refused = with(|_, password| *password = Some("wrong".to_owned()));
    assert!(matches!(&refused, BackplaneError::Protocol(why) if why.contains("WRONGPASS")), "{refused}");
}
