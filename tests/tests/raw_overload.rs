//! A reader that does not read.

use serde_json::json;
use socket2::{Domain, Socket, Type};
use tests::api::send;
use tests::bystander::Bystander;
use tests::client::Client;
use tests::gateway::{Gateway, config_with};
use tests::within;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// A connection whose kernel buffer is small, so that the gateway's own queue fills early.
async fn open_narrow(gateway: &Gateway) -> Client {
    let address: std::net::SocketAddr = gateway.public_address().parse().expect("an address");
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("the option is known");
    socket.connect(&address.into()).expect("the gateway listens");
    socket.set_nonblocking(true).expect("the option is known");
    let stream = TcpStream::from_std(socket.into()).expect("the runtime runs");
    Client::open_on(stream, gateway.url().into_client_request().expect("a valid URL")).await.0
}

#[tokio::test]
async fn a_slow_consumer_is_closed_with_3008_and_nobody_else_notices() {
    let gateway = Gateway::with(&config_with("client", "queue_bytes = 131072")).start();
    let mut bystander = Bystander::join(&gateway).await;
    let mut slow = open_narrow(&gateway).await;
    slow.connect_as("slow").await;
    slow.subscribe("open:flood").await;
    let mut quick = gateway.connect("quick").await;
    quick.subscribe("open:flood").await;
    let api = gateway.api();
    let text = "x".repeat(60_000);
    let mut published = 0;
    // Presence tells when the gateway has given up; the kernel's send buffer takes a few megabytes before.
    while api.ok("presence_stats", json!({ "channel": "open:flood" })).await["num_clients"] == json!(2) {
        published += 1;
        assert!(published < 2_000, "{published} messages of 60 kB are waiting for a reader that does not read");
        api.publish("open:flood", json!({ "n": published, "text": text })).await;
        assert_eq!(quick.publication("open:flood").await["data"]["n"], json!(published));
    }
    bystander.noticed_nothing(&gateway).await;
    let closed = slow.closed().await;
    assert_eq!((closed.code, closed.reason.as_str()), (Some(3008), "slow"));
    let metrics = send(api.get(&format!("{}/metrics", gateway.internal_http()))).await.text;
    assert!(metrics.lines().any(|line| line == "gateway_disconnects_total{code=\"3008\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_client_that_never_reads_is_forgotten() {
    let gateway = Gateway::with(&config_with("client", "queue_bytes = 131072")).start();
    let api = gateway.api();
    let mut slow = open_narrow(&gateway).await;
    slow.connect_as("slow").await;
    slow.subscribe("open:flood").await;
    let text = "x".repeat(60_000);
    let flood = async {
        while api.ok("presence_stats", json!({ "channel": "open:flood" })).await["num_clients"] == json!(1) {
            api.publish("open:flood", json!(text)).await;
        }
    };
    within("the close of a client that never reads", flood).await;
    let metrics = || async { send(api.get(&format!("{}/metrics", gateway.internal_http()))).await.text };
    let gone = async { while !metrics().await.lines().any(|line| line == "gateway_connections 0") {} };
    within("the end of its socket", gone).await;
    drop(slow);
}

#[tokio::test]
async fn a_flood_of_commands_is_answered_or_refused_and_nobody_else_notices() {
    let gateway = Gateway::start();
    let mut bystander = Bystander::join(&gateway).await;
    let mut client = gateway.connect("mallory").await;
    for frame in 0..20_u32 {
        let commands: Vec<_> = (0..500).map(|n| json!({ "id": 2 + frame * 500 + n, "rpc": {} })).collect();
        client.send_all(&commands).await;
    }
    bystander.noticed_nothing(&gateway).await;
    for id in 2..10_002 {
        assert_eq!(client.message().await, json!({ "id": id, "error": { "code": 108, "message": "not available" } }));
    }
}
