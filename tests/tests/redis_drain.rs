//! A drain while Redis takes its time: what a client has sent is answered before it is sent away.

use std::time::{Duration, Instant};

use serde_json::json;
use tests::fleet::node;
use tests::gateway::{Gateway, config_with};
use tests::redis::{Server, VOLATILE};
use tests::until;

const PAUSE: Duration = Duration::from_millis(800);

#[tokio::test]
async fn an_accepted_publish_is_answered_before_the_close() {
    let redis = Server::start(VOLATILE);
    // A machine that stands still for a while is no reason not to wait for the answer.
    let patient = config_with("client", "close_patience = \"5s\"") + &redis.config("command_timeout = \"10s\"");
    let gateway = Gateway::with(&patient).start();
    until("the node to be ready", async || gateway.internal_status("/health/ready").await == 200).await;
    let mut client = gateway.connect("ann").await;
    client.subscribe("ledger:a").await;
    redis.freeze();
    client.send_json(json!({ "id": 100, "publish": { "channel": "ledger:a", "data": { "n": 1 } } })).await;
    // An answer that needs no Redis tells that the publish was read.
    client.send_json(json!({ "id": 101, "rpc": {} })).await;
    client.reply(101).await;
    let began = Instant::now();
    gateway.terminate();
    until("the drain to begin", async || gateway.metric("gateway_draining ").await == Some(1.0)).await;
    tokio::time::sleep(PAUSE.saturating_sub(began.elapsed())).await;
    redis.resume();
    assert_eq!(client.reply(100).await, json!({ "id": 100, "publish": {} }));
    client.expect_close(1001, "going away").await;
    assert_eq!(gateway.exit_code().await, 0);
}

#[tokio::test]
async fn nobody_waits_for_answers_for_long() {
    let redis = Server::start(VOLATILE);
    let gateway = node(&redis.config("command_timeout = \"20s\"")).start();
    until("the node to be ready", async || gateway.internal_status("/health/ready").await == 200).await;
    let mut client = gateway.connect("ann").await;
    redis.freeze();
    client.send_json(json!({ "id": 100, "publish": { "channel": "bare:a", "data": 1 } })).await;
    client.send_json(json!({ "id": 101, "rpc": {} })).await;
    client.reply(101).await;
    let began = Instant::now();
    gateway.terminate();
    client.expect_close(1001, "going away").await;
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(8), "{took:?}");
    redis.resume();
    assert_eq!(gateway.exit_code().await, 0);
}
