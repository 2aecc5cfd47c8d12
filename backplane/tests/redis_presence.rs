//! Presence on Redis, where much of it, or a silent server, must not cost a node what it knows.

mod redis_server;

use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane::redis::RedisConfig;
use backplane::{ChannelName, PresenceStore};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use nix::sys::signal::Signal;
use redis_server::node::{DEADLINE, Node, again, channel, client};
use redis_server::{Server, VOLATILE, run};

fn short_lease(config: RedisConfig) -> RedisConfig {
    let (lease_ttl, lease_interval) = (Duration::from_millis(1500), Duration::from_millis(300));
    RedisConfig { lease_ttl, lease_interval, ..config }
}

async fn members(node: &Node, channel: &ChannelName) -> usize {
    again(|| node.backplane.presence(channel)).await.len()
}

/// Waits until `count` members are seen.
async fn until_members(node: &Node, channel: &ChannelName, count: usize) {
    let seen = async {
        while members(node, channel).await != count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, seen).await.expect("the members are as they should be in time");
}

/// Sees one member in each room for so long. A node may only miss its lease while everything stands still.
async fn watch(node: &Node, rooms: &[&ChannelName], time: Duration, config: &RedisConfig) {
    let (began, mut looked) = (Instant::now(), Instant::now());
    while began.elapsed() < time {
        for room in rooms {
            if members(node, room).await != 1 {
                let stood_still = looked.elapsed() >= config.lease_ttl - 2 * config.lease_interval;
                assert!(stood_still, "the member of {room} is gone");
                until_members(node, room, 1).await;
            }
            looked = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Removals that wait for others while the server is silent all fail, and are made good afterwards.
#[test]
fn removals_during_an_outage_leave_no_ghosts() {
    run(async {
        let server = Server::start(VOLATILE);
        let timeout = Duration::from_millis(300);
        let config = RedisConfig { command_timeout: timeout, connect_timeout: timeout, ..short_lease(server.config()) };
        let (node, other) = (Node::connect(&config).await, Node::connect(&server.config()).await);
        let [room] = channel("room");
        let clients: Vec<_> = (0..300).map(|n| client(&n.to_string())).collect();
        for client in &clients {
            again(|| node.backplane.add_presence(&room, Arc::clone(client))).await;
        }
        server.stop();
        let removals = clients[1..].iter().map(|client| node.backplane.remove_presence(&room, client.client));
        let failed = join_all(removals).await.into_iter().filter(Result::is_err).count();
        server.signal(Signal::SIGCONT);
        assert!(failed > 0, "the server was silent");
        until_members(&other, &room, 1).await;
    });
}

/// A client that has moved keeps its id: what its former node removes late is not its entry on the new one.
#[test]
fn a_late_removal_spares_the_client_on_another_node() {
    run(async {
        let server = Server::start(VOLATILE);
        let (former, present) = (Node::connect(&server.config()).await, Node::connect(&server.config()).await);
        let ([room], moved) = (channel("room"), client("moved"));
        former.backplane.add_presence(&room, Arc::clone(&moved)).await.expect("the server is there");
        present.backplane.add_presence(&room, Arc::clone(&moved)).await.expect("the server is there");
        former.backplane.remove_presence(&room, moved.client).await.expect("the server is there");
        assert_eq!(members(&present, &room).await, 1);
        present.backplane.remove_presence(&room, moved.client).await.expect("the server is there");
        assert_eq!(members(&present, &room).await, 0);
    });
}

/// Writing everything anew takes longer than a lease lives, which must not end for that.
#[test]
fn a_lease_outlives_the_registration_of_many_channels() {
    run(async {
        let mut server = Server::start(VOLATILE);
        let config = short_lease(server.config());
        let (node, other) = (Node::connect(&config).await, Node::connect(&config).await);
        let rooms: Vec<ChannelName> = (0..20_000).map(|n| ChannelName::from(format!("room-{n}"))).collect();
        let added = rooms.iter().map(|room| again(|| node.backplane.add_presence(room, client("u"))));
        stream::iter(added).buffer_unordered(256).collect::<Vec<()>>().await;
        server.restart();
        let (first, last) = (&rooms[0], &rooms[rooms.len() - 1]);
        until_members(&other, first, 1).await;
        until_members(&other, last, 1).await;
        // Longer than the lease lives: it is renewed, whatever else there is to do.
        watch(&other, &[first, last], 3 * config.lease_ttl, &config).await;
        let present = rooms.iter().map(|room| until_members(&other, room, 1));
        stream::iter(present).buffer_unordered(256).collect::<Vec<()>>().await;
    });
}
