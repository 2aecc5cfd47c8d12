//! Client-side subscriptions: permissions and error codes, tokens, unsubscribing, join and leave.

use serde_json::{Value, json};
use tests::gateway::{Gateway, config_with};
use tests::tokens::{self, now};

#[tokio::test]
async fn every_refusal_has_its_code_and_message() {
    let gateway = Gateway::start();
    let mut client = gateway.connect("ann").await;
    client.subscribe("bare:taken").await;
    let long = format!("bare:{}", "x".repeat(251));
    let token = |user: &str, channel: &str, more: Value| tokens::subscription(user, channel, more);
    let refusals = [
        ("an unknown namespace", json!({ "channel": "nosuch:a" }), 102, "unknown channel"),
        ("no permission", json!({ "channel": "vault:a" }), 103, "permission denied"),
        ("a private channel without a token", json!({ "channel": "$bare:a" }), 103, "permission denied"),
        ("not listed", json!({ "channel": "dialog:a#bob,eve" }), 103, "permission denied"),
        ("an empty list", json!({ "channel": "dialog:a#" }), 103, "permission denied"),
        ("an invalid token", json!({ "channel": "vault:a", "token": "abc" }), 103, "permission denied"),
        (
            "a token that does not help where none is needed",
            json!({ "channel": "bare:a", "token": "abc" }),
            103,
            "permission denied",
        ),
        (
            "an expired token",
            json!({ "channel": "vault:a", "token": token("ann", "vault:a", json!({ "exp": now() - 1 })) }),
            109,
            "token expired",
        ),
        ("twice", json!({ "channel": "bare:taken" }), 105, "already subscribed"),
        ("a name over the limit", json!({ "channel": long }), 107, "bad request"),
        ("a name that is not ASCII", json!({ "channel": "bare:ä" }), 107, "bad request"),
        ("a name against the namespace's rule", json!({ "channel": "letters:A1" }), 107, "bad request"),
        ("a map subscription", json!({ "channel": "bare:m", "type": 1 }), 108, "not available"),
    ];
    for (what, request, code, message) in refusals {
        let reply = client.call(json!({ "subscribe": request })).await;
        assert_eq!(reply["error"], json!({ "code": code, "message": message }), "{what}");
    }
    // A refusal releases the channel, and 255 bytes are within the limit.
    client.subscribe(&format!("bare:{}", "x".repeat(250))).await;
    client.subscribe("letters:abc").await;
    client.subscribe("dialog:a#bob,ann").await;
    client.subscribe_with(json!({ "channel": "vault:a", "token": token("ann", "vault:a", json!({})) })).await;
    client.subscribe_with(json!({ "channel": "$bare:a", "token": token("ann", "$bare:a", json!({})) })).await;
}

#[tokio::test]
async fn what_closes_instead_of_an_error() {
    let gateway = Gateway::start();
    let token = |user: &str, channel: &str| tokens::subscription(user, channel, json!({}));
    for (what, request, code, reason) in [
        ("no channel", json!({}), 3501, "bad request"),
        ("an unknown delta", json!({ "channel": "bare:a", "delta": "xyz" }), 3501, "bad request"),
        ("another channel", json!({ "channel": "vault:a", "token": token("ann", "vault:b") }), 3500, "invalid token"),
        ("another user", json!({ "channel": "vault:a", "token": token("bob", "vault:a") }), 3500, "invalid token"),
    ] {
        let mut client = gateway.connect("ann").await;
        client.send_json(json!({ "subscribe": request, "id": 2 })).await;
        let closed = client.closed_next().await;
        assert_eq!((closed.code, closed.reason.as_str()), (Some(code), reason), "{what}");
    }
}

#[tokio::test]
async fn a_connection_has_a_limit_of_channels() {
    let gateway = Gateway::with(&config_with("client", "channels_per_connection = 3")).start();
    let mut client = gateway.connect("ann").await;
    for n in 0..3 {
        client.subscribe(&format!("bare:{n}")).await;
    }
    let reply = client.call(json!({ "subscribe": { "channel": "bare:3" } })).await;
    assert_eq!(reply["error"], json!({ "code": 106, "message": "limit exceeded" }));
    client.call(json!({ "unsubscribe": { "channel": "bare:0" } })).await;
    client.subscribe("bare:3").await;
    // Too many channels in a token close the connection.
    let mut client = gateway.open().await;
    let token = tokens::connection(json!({ "sub": "ann", "channels": ["news:1", "news:2", "news:3", "news:4"] }));
    client.send_json(json!({ "connect": { "token": token }, "id": 1 })).await;
    client.expect_close(3505, "channel limit").await;
}

#[tokio::test]
async fn a_subscription_token_carries_info_data_and_expiry() {
    let gateway = Gateway::start();
    let mut client = gateway.connect("ann").await;
    let token = tokens::subscription(
        "ann",
        "lobby:a",
        json!({ "info": { "role": "host" }, "data": { "topic": "tea" }, "exp": now() + 120 }),
    );
    let result = client.subscribe_with(json!({ "channel": "lobby:a", "token": token })).await;
    assert_eq!((&result["data"], &result["expires"]), (&json!({ "topic": "tea" }), &json!(true)));
    assert!((115..=120).contains(&result["ttl"].as_i64().expect("a ttl")), "{result}");
    let join = client.push().await;
    assert_eq!(join["join"]["info"]["chan_info"], json!({ "role": "host" }), "{join}");
    assert_eq!(join["join"]["info"]["user"], json!("ann"), "{join}");
}

#[tokio::test]
async fn a_subscription_that_expires_is_ended_with_2501() {
    let gateway = Gateway::with(&config_with("client", "expired_subscription_close_delay = \"1s\"")).start();
    let mut client = gateway.connect("ann").await;
    // The next second may begin at once, so the one after it.
    let token = tokens::subscription("ann", "vault:a", json!({ "exp": now() + 2 }));
    client.subscribe_with(json!({ "channel": "vault:a", "token": token })).await;
    let expected = json!({ "channel": "vault:a", "unsubscribe": { "code": 2501, "reason": "subscription expired" } });
    assert_eq!(client.push().await, expected);
    // The channel is free again.
    let token = tokens::subscription("ann", "vault:a", json!({}));
    client.subscribe_with(json!({ "channel": "vault:a", "token": token })).await;
}

#[tokio::test]
async fn sub_refresh_has_its_outcomes() {
    let gateway = Gateway::start();
    let mut client = gateway.connect("ann").await;
    let token = |more: Value| tokens::subscription("ann", "vault:a", more);
    let refresh = |token: String| json!({ "sub_refresh": { "channel": "vault:a", "token": token } });
    client.subscribe_with(json!({ "channel": "vault:a", "token": token(json!({})) })).await;
    let reply = client.call(refresh(token(json!({ "exp": now() + 120 })))).await;
    assert_eq!(reply["sub_refresh"]["expires"], json!(true), "{reply}");
    assert!((115..=120).contains(&reply["sub_refresh"]["ttl"].as_i64().expect("a ttl")), "{reply}");
    assert_eq!(client.error_code(refresh(String::new())).await, 107);
    let elsewhere = json!({ "sub_refresh": { "channel": "vault:b", "token": token(json!({})) } });
    assert_eq!(client.error_code(elsewhere).await, 103);
    let advanced = json!({ "sub_refresh": { "channel": "vault:a", "type": 1 } });
    assert_eq!(client.error_code(advanced).await, 108);
    // An expired token ends the subscription so that the SDK comes back with a fresh one.
    client
        .send_json(
            json!({ "sub_refresh": { "channel": "vault:a", "token": token(json!({ "exp": now() - 1 })) }, "id": 90 }),
        )
        .await;
    loop {
        let message = client.message().await;
        if message["push"]["unsubscribe"]["code"] == json!(2501) {
            break;
        }
        assert_eq!(message["id"], json!(90), "{message}");
    }
    client.subscribe_with(json!({ "channel": "vault:a", "token": token(json!({})) })).await;
    client.send_json(json!({ "sub_refresh": { "channel": "vault:a", "token": "abc" }, "id": 91 })).await;
    client.expect_close(3500, "invalid token").await;
    // What the server subscribed to is not the client's to refresh.
    let mut client = gateway.connect("ann").await;
    gateway.api().ok("subscribe", json!({ "user": "ann", "channel": "vault:a" })).await;
    assert!(client.push().await["subscribe"].is_object());
    client.send_json(json!({ "sub_refresh": { "channel": "vault:a", "token": token(json!({})) }, "id": 9 })).await;
    client.expect_close(3501, "bad request").await;
}

#[tokio::test]
async fn nothing_of_a_channel_follows_its_unsubscribe() {
    let gateway = Gateway::start();
    let mut client = gateway.connect("ann").await;
    // Not subscribed is no error: an error would make SDKs reconnect.
    let reply = client.call(json!({ "unsubscribe": { "channel": "bare:never" } })).await;
    assert_eq!(reply["unsubscribe"], json!({}));
    let api = gateway.api();
    for round in 0..50 {
        client.subscribe("bare:a").await;
        let id = 10_000 + round;
        tokio::join!(api.publish("bare:a", json!(1)), async {
            client.send_json(json!({ "unsubscribe": { "channel": "bare:a" }, "id": id })).await;
            while client.message().await["id"] != json!(id) {}
        });
        // Published after the reply, and neither this nor a late one from before may arrive.
        api.publish("bare:a", json!(2)).await;
        client.send_json(json!({ "rpc": {}, "id": 20_000 + round })).await;
        assert_eq!(client.message().await["id"], json!(20_000 + round));
    }
    // Subscribe and unsubscribe in one frame: the unsubscribe waits for the subscribe.
    client
        .send_all(&[
            json!({ "subscribe": { "channel": "chat:b" }, "id": 8001 }),
            json!({ "unsubscribe": { "channel": "chat:b" }, "id": 8002 }),
        ])
        .await;
    assert!(client.reply(8001).await["subscribe"].is_object());
    assert_eq!(client.reply(8002).await["unsubscribe"], json!({}));
    let stats = gateway.api().ok("presence_stats", json!({ "channel": "chat:b" })).await;
    assert_eq!(stats, json!({ "num_clients": 0, "num_users": 0 }));
}

#[tokio::test]
async fn an_unsubscribe_push_has_a_code_and_a_reason() {
    let gateway = Gateway::start();
    let mut client = gateway.connect("ann").await;
    client.subscribe("bare:a").await;
    gateway.api().ok("unsubscribe", json!({ "user": "ann", "channel": "bare:a" })).await;
    let expected = json!({ "channel": "bare:a", "unsubscribe": { "code": 2000, "reason": "server unsubscribe" } });
    assert_eq!(client.push().await, expected);
    client.subscribe("bare:a").await;
}

#[tokio::test]
async fn join_and_leave_reach_those_who_ask_and_may() {
    let gateway = Gateway::start();
    let mut asks = gateway.connect("ann").await;
    asks.subscribe_with(json!({ "channel": "chat:a", "join_leave": true })).await;
    assert_eq!(asks.push().await["join"]["info"]["user"], json!("ann"), "the own join, after the reply");
    let mut silent = gateway.connect("bob").await;
    silent.subscribe("chat:a").await;
    assert_eq!(asks.push().await["join"]["info"]["user"], json!("bob"));
    let third = {
        let mut third = gateway.connect("eve").await;
        third.subscribe("chat:a").await;
        assert_eq!(asks.push().await["join"]["info"]["user"], json!("eve"));
        third
    };
    third.vanish();
    let leave = asks.push().await;
    assert_eq!((&leave["channel"], &leave["leave"]["info"]["user"]), (&json!("chat:a"), &json!("eve")));
    // Bob did not ask, so the next thing that he hears is a publication.
    gateway.api().publish("chat:a", json!({})).await;
    silent.publication("chat:a").await;
    // Asking without presence permission is silently not enabled.
    let mut client = gateway.connect("ann").await;
    client.subscribe_with(json!({ "channel": "bare:a", "join_leave": true })).await;
    gateway.api().publish("bare:a", json!({})).await;
    client.publication("bare:a").await;
}
