//! Sessions that outlive a connection, on one node without a shared backplane.

use serde_json::{Value, json};
use tests::client::Client;
use tests::gateway::{Gateway, config_with};
use tests::http::{handshake_lines, request};

const SESSION: &str = "page-load-0001";

fn start(settings: &str) -> Gateway {
    Gateway::with(&(config_with("client", "") + settings)).start()
}

async fn connect(node: &Gateway, user: &str) -> (Client, Value) {
    let mut client = Client::open(&format!("{}?session={SESSION}", node.url())).await;
    let result = client.connect_as(user).await;
    (client, result)
}

#[tokio::test]
async fn a_client_that_comes_back_to_the_same_node_was_never_away() {
    let node = start("[session]\npresence_grace = \"6s\"");
    let mut watcher = node.connect("watcher").await;
    watcher.subscribe("lobby:a").await;
    assert!(watcher.push().await["join"].is_object());
    let (mut ann, first) = connect(&node, "ann").await;
    ann.subscribe("lobby:a").await;
    assert!(watcher.push().await["join"].is_object());
    let state = json!({ "draft": "half a sentence" });
    let stored = json!({ "user": "ann", "session": SESSION, "state": state, "revision": 0 });
    assert_eq!(node.api().ok("session_set", stored).await["stored"], json!(true));
    for is_replaced in [false, true, false, true] {
        if is_replaced {
            // The node still believes in the old connection.
            let (mut again, result) = connect(&node, "ann").await;
            assert_eq!(result["client"], first["client"]);
            again.subscribe("lobby:a").await;
            drop(std::mem::replace(&mut ann, again));
        } else {
            ann.vanish();
            let (mut again, result) = connect(&node, "ann").await;
            assert_eq!(result["client"], first["client"]);
            again.subscribe("lobby:a").await;
            ann = again;
        }
    }
    let found = node.api().ok("session_get", json!({ "user": "ann", "session": SESSION })).await;
    assert_eq!((&found["client"], &found["state"]), (&first["client"], &state));
    let (mut bob, _) = connect(&node, "bob").await;
    bob.subscribe("lobby:a").await;
    assert_eq!(watcher.push().await["join"]["info"]["user"], json!("bob"), "the very next thing");
    bob.vanish();
    // After the grace of everybody who was ever away, only he has left.
    assert_eq!(watcher.push().await["leave"]["info"]["user"], json!("bob"));
    let stats = node.api().ok("presence_stats", json!({ "channel": "lobby:a" })).await;
    assert_eq!(stats, json!({ "num_clients": 2, "num_users": 2 }));
}

#[tokio::test]
async fn odd_ids_are_refused_before_anything_else_and_never_logged() {
    let node = Gateway::start();
    for id in ["", "1234567", "with%20space", "12345678&session=12345678"] {
        let mut lines = handshake_lines(node.public_address());
        lines[0] = format!("GET /connection/websocket?session={id} HTTP/1.1");
        let response = request(node.public_address(), &lines).await;
        assert_eq!(response.status, 400, "{id}");
    }
    let (_ann, _) = connect(&node, "ann").await;
    assert!(!node.log().contains(SESSION), "{}", node.log());
}

#[tokio::test]
async fn anonymous_users_need_a_secret_and_a_switch() {
    let secret = "0123456789abcdefghijkl";
    for (settings, id, is_kept) in [
        ("", secret, false),
        ("[session]\nanonymous = true", secret, true),
        ("[session]\nanonymous = true", SESSION, false),
    ] {
        let node = Gateway::with(&(config_with("client", "allow_anonymous = true") + settings)).start();
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut client = Client::open(&format!("{}?session={id}", node.url())).await;
            let result = client.call(json!({ "connect": {} })).await;
            clients.push(result["connect"]["client"].clone());
            client.vanish();
        }
        assert_eq!(clients[0] == clients[1], is_kept, "{settings} {id}: {clients:?}");
    }
}

#[tokio::test]
async fn without_sessions_the_parameter_changes_nothing() {
    let node = start("[session]\nenabled = false");
    let (ann, first) = connect(&node, "ann").await;
    ann.vanish();
    let (_ann, second) = connect(&node, "ann").await;
    assert_ne!(first["client"], second["client"]);
    assert_eq!(node.api().error("session_get", json!({ "user": "ann", "session": SESSION })).await, 108);
}
