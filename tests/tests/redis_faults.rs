//! Faults that only Redis has, under load, judged by the audit: nothing may be lost, repeated or reordered in silence, and no
//! connection of a client ends.

use std::collections::BTreeSet;

use serde_json::json;
use tests::audit::Message;
use tests::fleet::Fleet;
use tests::redis::{Server, VOLATILE};
use tests::trial::{CHANNELS, Trial};
use tests::until;

/// Publishes that succeed before and after a fault.
const CALM: u64 = 100;

/// Ids of the connections of gateways for deliveries.
fn subscribers(redis: &Server) -> BTreeSet<String> {
    let list = redis.admin(&["CLIENT", "LIST", "TYPE", "pubsub"]);
    let lines = list.as_str().unwrap_or_default().lines();
    lines.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}

/// Waits until all these connections are gone and there are as many others, which have begun to subscribe again.
async fn replaced(redis: &Server, old: &BTreeSet<String>) {
    let replaced = async || {
        let new = subscribers(redis);
        new.len() >= old.len() && new.is_disjoint(old)
    };
    until("new subscriber connections", replaced).await;
}

#[tokio::test]
async fn subscriber_connections_that_are_killed_lose_nothing() {
    let redis = Server::start(VOLATILE);
    // No publish is to fail, also where the machine stands still for a moment.
    let fleet = Fleet::start(&redis.config("command_timeout = \"5s\""), 2).await;
    let trial = Trial::start(&fleet).await;
    assert!(subscribers(&redis).len() >= 2, "one for each node at least");
    trial.load.succeed(CALM).await;
    for _ in 0..50 {
        let old = subscribers(&redis);
        redis.admin(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        replaced(&redis, &old).await;
    }
    trial.load.succeed(CALM).await;
    let report = trial.finish(&fleet[0]).await;
    report.expect_nothing_lost();
    assert_eq!(report.failures().count(), 0, "publishes do not need those connections");
}

#[tokio::test]
async fn the_last_publication_before_silence_arrives_though_its_delivery_was_lost() {
    let redis = Server::start(VOLATILE);
    let fleet = Fleet::start(&redis.config(""), 2).await;
    let mut clients = Vec::new();
    for node in fleet.nodes() {
        let mut client = node.connect("ann").await;
        client.subscribe("ledger:quiet").await;
        clients.push(client);
    }
    for n in 1..=10 {
        // Nobody is subscribed in this moment, and nothing follows that would tell of the gap.
        let old = subscribers(&redis);
        redis.admin(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        let result = fleet[0].api().publish("ledger:quiet", json!(n)).await;
        assert_eq!(result["offset"], json!(n));
        for client in &mut clients {
            assert_eq!(client.publication("ledger:quiet").await["data"], json!(n));
        }
        replaced(&redis, &old).await;
    }
}

#[tokio::test]
async fn an_output_buffer_that_overflows_loses_nothing() {
    let redis = Server::start(VOLATILE);
    let fleet = Fleet::start(&redis.config(""), 2).await;
    let mut trial = Trial::start(&fleet).await;
    trial.load.succeed(CALM).await;
    // Redis ends a connection whose buffer is over the limit; a publication of this size is over it by itself.
    redis.admin(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 1024 0 0"]);
    for number in 1..=10 {
        let old = subscribers(&redis);
        let padding = "x".repeat(40_000);
        let channel = CHANNELS[usize::try_from(number).expect("a small number") % CHANNELS.len()];
        trial.publish_padded(&fleet[0].api(), channel, Message { publisher: 50, number }, &padding).await;
        replaced(&redis, &old).await;
    }
    redis.admin(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 33554432 8388608 60"]);
    trial.load.succeed(CALM).await;
    trial.finish(&fleet[0]).await.expect_nothing_lost();
}

/// A call that was overtaken by a later one while its script was loaded again fails, rather than be carried out late; it
/// is told apart by parts of the channels only, so now and then one fails that need not.
#[tokio::test]
async fn scripts_that_are_flushed_lose_nothing_and_fail_hardly_anything() {
    const FLUSHES: usize = 20;
    let redis = Server::start(VOLATILE);
    let fleet = Fleet::start(&redis.config(""), 2).await;
    let trial = Trial::start(&fleet).await;
    for _ in 0..FLUSHES {
        redis.admin(&["SCRIPT", "FLUSH"]);
        trial.load.succeed(10).await;
    }
    let report = trial.finish(&fleet[0]).await;
    report.expect_nothing_lost();
    assert!(report.failures().all(|attempt| attempt.outcome == Err(100)), "temporary errors");
    assert!(report.failures().count() <= FLUSHES, "{} failed", report.failures().count());
}
