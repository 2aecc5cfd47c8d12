//! The ping and pong of the protocol (section 3).

use serde_json::json;
use tests::gateway::{Gateway, config_with};
use tests::wire;

fn every_second() -> String {
    config_with("client", "ping_interval = \"1s\"\npong_timeout = \"500ms\"")
}

#[tokio::test]
async fn pings_come_on_schedule_also_under_traffic() {
    let gateway = Gateway::with(&every_second()).start();
    let mut client = gateway.open().await;
    assert_eq!(client.connect_as("ann").await["ping"], json!(1));
    client.subscribe("bare:busy").await;
    let api = gateway.api();
    // Only a pong satisfies the check, so a gateway that counts traffic as a sign of life sends no ping here.
    let mut published = 0;
    while client.pings() < 3 {
        published += 1;
        api.publish("bare:busy", json!(published)).await;
        assert_eq!(client.publication("bare:busy").await["data"], json!(published));
        assert!(published < 100_000, "no ping under traffic");
    }
}

#[tokio::test]
async fn a_pong_that_was_not_asked_for_closes() {
    let gateway = Gateway::start();
    let mut client = gateway.connect("ann").await;
    client.send_text("{}").await;
    client.expect_close(3501, "bad request").await;

    let gateway = Gateway::with(&every_second()).start();
    let mut client = gateway.connect("ann").await;
    client.ping().await;
    client.send_text("{}").await;
    client.expect_close(3501, "bad request").await;
}

#[tokio::test]
async fn a_missing_pong_closes() {
    let gateway = Gateway::with(&every_second()).start();
    let mut client = gateway.connect("ann").await;
    client.ignore_pings();
    client.expect_close(3012, "no pong").await;
    assert_eq!(client.pings(), 1);
}

#[tokio::test]
async fn a_protobuf_ping_is_one_zero_byte() {
    let gateway = Gateway::with(&every_second()).start();
    let mut client = tests::client::Client::open_protobuf(gateway.url()).await;
    let token = tests::tokens::connection(json!({ "sub": "ann" }));
    let connect = wire::Message::new().bytes(1, token.as_bytes());
    client.send_binary(&wire::Message::new().number(1, 1).message(4, &connect).framed()).await;
    let reply = client.binary().await;
    assert_eq!(wire::number_of(&wire::split(&reply)[0], 1), 1);
    for _ in 0..2 {
        assert_eq!(client.binary().await, [0]);
        client.send_binary(&[0]).await;
    }
}

#[tokio::test]
async fn without_pings_none_are_announced_or_sent() {
    let gateway = Gateway::with(&config_with("client", "ping_interval = \"0s\"\npong_timeout = \"0s\"")).start();
    let mut client = gateway.open().await;
    let result = client.connect_as("ann").await;
    assert!(result.get("ping").is_none() && result.get("pong").is_none(), "{result}");
    client.send_text("{}").await;
    client.expect_close(3501, "bad request").await;
    assert_eq!(client.pings(), 0);
}
