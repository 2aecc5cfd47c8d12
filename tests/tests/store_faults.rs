//! Faults of the server between nodes, under load, judged by the audit: nothing may be lost, repeated or reordered in
//! silence, and no connection of a client ends.

use std::time::Duration;

use serde_json::json;
use tests::fleet::{Fleet, node};
use tests::front::Front;
use tests::store::{Kind, Store};
use tests::trial::Trial;
use tests::until;

tests::on_every_store! {
    a_crash_that_keeps_its_data_loses_nothing
    a_crash_that_forgets_everything_is_told_to_everyone_and_no_more_than_once
    a_server_that_hangs_for_ten_seconds_loses_nothing
    a_retry_after_an_unknown_outcome_is_harmless_with_its_key
    connections_that_are_cut_lose_nothing
    the_last_publication_before_silence_arrives_at_a_node_that_was_cut_off
}

/// Publishes that succeed before and after a fault.
const CALM: u64 = 100;

async fn a_crash_that_keeps_its_data_loses_nothing(kind: Kind) {
    let mut store = kind.durable();
    let fleet = Fleet::start(&store.config(""), 2).await;
    let trial = Trial::start(&fleet).await;
    for _ in 0..3 {
        trial.load.succeed(CALM).await;
        store.kill();
        trial.load.fail(10).await;
        store.start_again();
    }
    trial.load.succeed(CALM).await;
    trial.finish(&fleet[0]).await.expect_nothing_lost();
}

async fn a_crash_that_forgets_everything_is_told_to_everyone_and_no_more_than_once(kind: Kind) {
    let mut store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 2).await;
    let trial = Trial::start(&fleet).await;
    trial.load.succeed(CALM).await;
    store.kill();
    trial.load.fail(10).await;
    store.start_again();
    trial.load.succeed(CALM).await;
    let report = trial.finish(&fleet[0]).await;
    report.expect_clean();
    assert!(report.forgotten.len() as u64 >= CALM, "everything before the crash is forgotten");
    assert_eq!(report.told, report.subscriptions, "everybody, once");
}

async fn a_server_that_hangs_for_ten_seconds_loses_nothing(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 2).await;
    let trial = Trial::start(&fleet).await;
    trial.load.succeed(CALM).await;
    store.freeze();
    // Not a wait for something: this is the fault.
    tokio::time::sleep(Duration::from_secs(10)).await;
    store.resume();
    trial.load.succeed(CALM).await;
    let report = trial.finish(&fleet[0]).await;
    report.expect_nothing_lost();
    for attempt in report.failures() {
        assert_eq!(attempt.outcome, Err(100), "{attempt:?}");
        // Two seconds, and some that a machine may stand still.
        assert!(attempt.took < Duration::from_secs(8), "no publish may hang: {attempt:?}");
    }
}

async fn a_retry_after_an_unknown_outcome_is_harmless_with_its_key(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config("command_timeout = \"1s\""), 2).await;
    let mut ann = fleet[1].connect("ann").await;
    ann.subscribe("ledger:a").await;
    for n in 1..=3 {
        let body = json!({ "channel": "ledger:a", "data": n, "idempotency_key": n.to_string() });
        store.freeze();
        // It is on its way to the server, which may well carry it out when it goes on.
        assert_eq!(fleet[0].api().error("publish", body.clone()).await, 100);
        store.resume();
        let retried = async || fleet[n % 2].api().call("publish", body.clone()).await["result"].is_object();
        until("a retry to succeed", retried).await;
        assert_eq!(ann.publication("ledger:a").await["data"], json!(n), "once, in order");
    }
    let page = fleet[0].api().ok("history", json!({ "channel": "ledger:a", "limit": 10 })).await;
    assert_eq!(page["publications"].as_array().map(Vec::len), Some(3), "{page}");
}

/// A node that reaches the server directly, and one that does so through this front.
async fn beside(store: &Store, front: &Front) -> Fleet {
    let far = node(&store.config_through(front.address(), "")).start();
    Fleet::of(vec![node(&store.config("")).start(), far]).await
}

async fn connections_that_are_cut_lose_nothing(kind: Kind) {
    let store = kind.volatile();
    let front = Front::to_address(&store.address()).await;
    let fleet = beside(&store, &front).await;
    let trial = Trial::start(&fleet).await;
    trial.load.succeed(CALM).await;
    for _ in 0..20 {
        front.cut();
        trial.load.succeed(10).await;
        front.lead_to_address(&store.address());
        let is_back = async || fleet[1].metric("gateway_backplane_up").await == Some(1.0);
        until("the node to have its connections again", is_back).await;
        trial.load.succeed(10).await;
    }
    trial.load.succeed(CALM).await;
    trial.finish(&fleet[0]).await.expect_nothing_lost();
}

async fn the_last_publication_before_silence_arrives_at_a_node_that_was_cut_off(kind: Kind) {
    let store = kind.volatile();
    let front = Front::to_address(&store.address()).await;
    let fleet = beside(&store, &front).await;
    let mut ann = fleet[1].connect("ann").await;
    ann.subscribe("ledger:quiet").await;
    for n in 1..=5 {
        front.cut();
        // Nothing follows that would tell of the gap.
        fleet[0].api().publish("ledger:quiet", json!(n)).await;
        front.lead_to_address(&store.address());
        assert_eq!(ann.publication("ledger:quiet").await["data"], json!(n));
    }
}
