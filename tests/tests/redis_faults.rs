//! Faults of Redis under load, judged by the audit: nothing may be lost, repeated or reordered in silence, and no
//! connection of a client ends.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use tests::audit::Message;
use tests::fleet::Fleet;
use tests::redis::{APPEND_ONLY, Server, VOLATILE};
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
async fn a_crash_of_redis_that_keeps_its_data_loses_nothing() {
    let mut redis = Server::start(APPEND_ONLY);
    let fleet = Fleet::start(&redis.config(""), 2).await;
    let trial = Trial::start(&fleet).await;
    for _ in 0..3 {
        trial.load.succeed(CALM).await;
        redis.kill();
        trial.load.fail(10).await;
        redis.start_again();
    }
    trial.load.succeed(CALM).await;
    trial.finish(&fleet[0]).await.expect_nothing_lost();
}

#[tokio::test]
async fn a_crash_of_redis_that_forgets_everything_is_told_to_everyone_and_no_more_than_once() {
    let mut redis = Server::start(VOLATILE);
    let fleet = Fleet::start(&redis.config(""), 2).await;
    let trial = Trial::start(&fleet).await;
    trial.load.succeed(CALM).await;
    redis.kill();
    trial.load.fail(10).await;
    redis.start_again();
    trial.load.succeed(CALM).await;
    let report = trial.finish(&fleet[0]).await;
    report.expect_clean();
    assert!(report.forgotten.len() as u64 >= CALM, "everything before the crash is forgotten");
    assert_eq!(report.told, report.subscriptions, "everybody, once");
}

#[tokio::test]
async fn a_redis_that_hangs_for_ten_seconds_loses_nothing() {
    let redis = Server::start(VOLATILE);
    let fleet = Fleet::start(&redis.config(""), 2).await;
    let trial = Trial::start(&fleet).await;
    trial.load.succeed(CALM).await;
    redis.freeze();
    // Not a wait for something: this is the fault.
    tokio::time::sleep(Duration::from_secs(10)).await;
    redis.resume();
    trial.load.succeed(CALM).await;
    let report = trial.finish(&fleet[0]).await;
    report.expect_nothing_lost();
    for attempt in report.failures() {
        assert_eq!(attempt.outcome, Err(100), "{attempt:?}");
        assert!(attempt.took < Duration::from_secs(4), "no publish may hang: {attempt:?}");
    }
}

#[tokio::test]
async fn subscriber_connections_that_are_killed_lose_nothing() {
    let redis = Server::start(VOLATILE);
    let fleet = Fleet::start(&redis.config(""), 2).await;
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

#[tokio::test]
async fn scripts_that_are_flushed_fail_no_publish() {
    let redis = Server::start(VOLATILE);
    let fleet = Fleet::start(&redis.config(""), 2).await;
    let trial = Trial::start(&fleet).await;
    for _ in 0..20 {
        redis.admin(&["SCRIPT", "FLUSH"]);
        trial.load.succeed(10).await;
    }
    let report = trial.finish(&fleet[0]).await;
    report.expect_nothing_lost();
    assert_eq!(report.failures().count(), 0);
}

#[tokio::test]
async fn a_retry_after_an_unknown_outcome_is_harmless_with_its_key() {
    let redis = Server::start(VOLATILE);
    let fleet = Fleet::start(&redis.config("command_timeout = \"500ms\""), 2).await;
    let mut ann = fleet[1].connect("ann").await;
    ann.subscribe("ledger:a").await;
    for n in 1..=3 {
        let body = json!({ "channel": "ledger:a", "data": n, "idempotency_key": n.to_string() });
        redis.freeze();
        // It is on its way to Redis, which may well carry it out when it goes on.
        assert_eq!(fleet[0].api().error("publish", body.clone()).await, 100);
        redis.resume();
        let retried = async || fleet[n % 2].api().call("publish", body.clone()).await["result"].is_object();
        until("a retry to succeed", retried).await;
        assert_eq!(ann.publication("ledger:a").await["data"], json!(n), "once, in order");
    }
    let page = fleet[0].api().ok("history", json!({ "channel": "ledger:a", "limit": 10 })).await;
    assert_eq!(page["publications"].as_array().map(Vec::len), Some(3), "{page}");
}
