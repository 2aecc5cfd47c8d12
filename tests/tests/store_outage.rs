//! While the server between nodes is away: clients stay, what needs it fails fast, and afterwards everything works as before.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::fleet::{Fleet, node};
use tests::gateway::Gateway;
use tests::http;
use tests::store::Kind;
use tests::until;

tests::on_every_store! {
    clients_stay_and_publishes_fail_fast_until_it_is_back
    a_node_that_starts_before_the_server_is_ready_when_the_server_is
}

/// The time limit of a call of the server is one second here; the rest is what a machine adds that stands still for a while.
const FAST: Duration = Duration::from_secs(8);

async fn backplane_is(fleet: &Fleet, up: bool) {
    let expected = if up { 1.0 } else { 0.0 };
    for node in fleet.nodes() {
        let told = async || node.metric("gateway_backplane_up").await == Some(expected);
        until(&format!("gateway_backplane_up to be {expected}"), told).await;
    }
}

/// A publish fails in time, over the API and of a client, which is told that it may try again.
async fn publishing_fails_fast(fleet: &Fleet, client: &mut tests::client::Client) {
    for node in fleet.nodes() {
        let began = Instant::now();
        assert_eq!(node.api().error("publish", json!({ "channel": "ledger:a", "data": 0 })).await, 100);
        assert!(began.elapsed() < FAST, "the API took {:?}", began.elapsed());
    }
    for command in [
        json!({ "publish": { "channel": "ledger:a", "data": 0 } }),
        json!({ "subscribe": { "channel": "ledger:other" } }),
    ] {
        let began = Instant::now();
        let reply = client.call(command).await;
        assert_eq!((&reply["error"]["code"], &reply["error"]["temporary"]), (&json!(100), &json!(true)), "{reply}");
        assert!(began.elapsed() < FAST, "the client's took {:?}", began.elapsed());
    }
}

/// The number of the next publication that is no leftover of an attempt that failed.
async fn next_number(client: &mut tests::client::Client) -> Value {
    loop {
        let data = client.publication("ledger:a").await["data"].clone();
        if data != json!(0) {
            return data;
        }
    }
}

async fn clients_stay_and_publishes_fail_fast_until_it_is_back(kind: Kind) {
    let mut store = kind.durable();
    let fleet = Fleet::start(&store.config("command_timeout = \"1s\""), 2).await;
    let mut ann = fleet[0].connect("ann").await;
    let mut bob = fleet[1].connect("bob").await;
    for client in [&mut ann, &mut bob] {
        client.subscribe("ledger:a").await;
    }
    backplane_is(&fleet, true).await;
    let mut expected = 0;
    for how in ["killed", "frozen"] {
        if how == "killed" {
            store.kill()
        } else {
            store.freeze()
        };
        publishing_fails_fast(&fleet, &mut ann).await;
        backplane_is(&fleet, false).await;
        // Now that it is known there is no reason to wait for an answer.
        let began = Instant::now();
        publishing_fails_fast(&fleet, &mut bob).await;
        println!("{how}: six failures took {:?}", began.elapsed());
        for node in fleet.nodes() {
            assert_eq!(node.internal_status("/health/ready").await, 200, "{how}: an outage changes no readiness");
            assert_eq!(node.internal_status("/health/live").await, 200, "{how}");
        }
        if how == "killed" {
            store.start_again()
        } else {
            store.resume()
        };
        backplane_is(&fleet, true).await;
        for node in fleet.nodes() {
            expected += 1;
            node.api().publish("ledger:a", json!(expected)).await;
            for client in [&mut ann, &mut bob] {
                assert_eq!(next_number(client).await, json!(expected), "{how}: on the same connection");
            }
        }
        ann.subscribe(&format!("ledger:after-being-{how}")).await;
    }
}

async fn a_node_that_starts_before_the_server_is_ready_when_the_server_is(kind: Kind) {
    let mut store = kind.later();
    let gateway: Gateway = node(&store.config("")).start();
    assert_eq!(gateway.internal_status("/health/live").await, 200);
    assert_eq!(gateway.internal_status("/health/ready").await, 503);
    assert_eq!(gateway.metric("gateway_backplane_up").await, Some(0.0));
    // Clients are sent away at once, and told when to come back.
    let host = gateway.public_address();
    let refused = http::request(host, &http::handshake_lines(host)).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    store.start_again();
    until("readiness", async || gateway.internal_status("/health/ready").await == 200).await;
    let mut ann = gateway.connect("ann").await;
    ann.subscribe("ledger:a").await;
    gateway.api().publish("ledger:a", json!(1)).await;
    assert_eq!(ann.publication("ledger:a").await["data"], json!(1));
    // From now on it stays ready.
    store.kill();
    until("the loss to be noticed", async || gateway.metric("gateway_backplane_up").await == Some(0.0)).await;
    assert_eq!(gateway.internal_status("/health/ready").await, 200);
}
