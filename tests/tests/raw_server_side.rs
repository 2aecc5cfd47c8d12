//! Server-side subscriptions: from the token, by the server API, recovered at connect.

use serde_json::{Value, json};
use tests::client::Client;
use tests::gateway::{Gateway, config_with};
use tests::tokens::{self, now};

async fn connect(gateway: &Gateway, claims: Value, request: Value) -> (Client, Value) {
    let mut client = gateway.open().await;
    let mut request = request;
    let mut claims = claims;
    claims["sub"] = json!("ann");
    request["token"] = json!(tokens::connection(claims));
    let reply = client.call(json!({ "connect": request })).await;
    assert!(reply["connect"].is_object(), "{reply}");
    (client, reply["connect"].clone())
}

#[tokio::test]
async fn the_connect_reply_lists_every_server_side_subscription() {
    let gateway = Gateway::start();
    gateway.api().publish("news:b", json!(1)).await;
    let (mut client, result) =
        connect(&gateway, json!({ "channels": ["bare:a", "news:b", "news:c"] }), json!({})).await;
    let subs = result["subs"].as_object().expect("a map");
    assert_eq!(subs.len(), 3);
    assert_eq!(subs["bare:a"], json!({}), "an object even when it is empty");
    let with_offset = json!({ "recoverable": true, "positioned": true, "epoch": subs["news:b"]["epoch"], "offset": 1 });
    assert_eq!(subs["news:b"], with_offset);
    let without = json!({ "recoverable": true, "positioned": true, "epoch": subs["news:c"]["epoch"] });
    assert_eq!(subs["news:c"], without, "an offset of zero is left out");
    gateway.api().publish("bare:a", json!(1)).await;
    client.publication("bare:a").await;
    // A client cannot subscribe to it again, but it may leave.
    assert_eq!(client.error_code(json!({ "subscribe": { "channel": "bare:a" } })).await, 105);
}

#[tokio::test]
async fn options_of_the_subs_claim_are_applied() {
    let gateway = Gateway::start();
    let options = json!({
        "data": { "hello": 1 },
        "info": { "seat": 4 },
        "override": { "presence": { "value": true }, "force_positioning": { "value": true } },
    });
    let claims = json!({ "subs": { "vault:a": options, "news:b": {} }, "channels": ["bare:ignored"] });
    let (client, result) = connect(&gateway, claims, json!({})).await;
    let subs = result["subs"].as_object().expect("a map");
    assert_eq!(subs.keys().collect::<Vec<_>>(), ["news:b", "vault:a"], "`channels` is ignored beside `subs`");
    assert_eq!(subs["vault:a"]["data"], json!({ "hello": 1 }));
    let _open = client;
}

#[tokio::test]
async fn positions_of_the_request_are_recovered_in_the_connect_reply() {
    let gateway = Gateway::start();
    let api = gateway.api();
    let mut epoch = json!(null);
    for n in 1..=15 {
        epoch = api.publish("news:a", json!(n)).await["epoch"].clone();
    }
    let request = |offset: u64| json!({ "subs": { "news:a": { "recover": true, "offset": offset, "epoch": epoch } } });
    let claims = json!({ "channels": ["news:a"] });
    let (mut client, result) = connect(&gateway, claims.clone(), request(13)).await;
    let sub = &result["subs"]["news:a"];
    let data: Vec<&Value> = sub["publications"].as_array().expect("a list").iter().map(|one| &one["data"]).collect();
    assert_eq!(data, [&json!(14), &json!(15)]);
    assert_eq!((&sub["recovered"], &sub["was_recovering"], &sub["offset"]), (&json!(true), &json!(true), &json!(13)));
    api.publish("news:a", json!(16)).await;
    assert_eq!(client.publication("news:a").await["offset"], json!(16));

    let (_client, result) = connect(&gateway, claims, request(2)).await;
    let sub = &result["subs"]["news:a"];
    let lost = json!({ "recoverable": true, "positioned": true, "was_recovering": true, "epoch": epoch, "offset": 16 });
    assert_eq!(sub, &lost);
}

#[tokio::test]
async fn channels_that_the_client_lists_are_taken_when_permitted() {
    let gateway = Gateway::start();
    let subs = json!({ "subs": { "chat:a": { "recover": true }, "vault:b": { "recover": true } } });
    let (_client, result) = connect(&gateway, json!({}), subs).await;
    let subs = result["subs"].as_object().expect("a map");
    assert_eq!(subs.keys().collect::<Vec<_>>(), ["chat:a"], "not permitted: silently skipped");
    let mut client = gateway.open().await;
    let token = tokens::connection(json!({ "sub": "ann" }));
    let request = json!({ "token": token, "subs": { "nosuch:a": { "recover": true } } });
    client.send_json(json!({ "connect": request, "id": 1 })).await;
    client.expect_close(3501, "bad request").await;
}

#[tokio::test]
async fn the_api_subscribes_and_unsubscribes_every_connection_of_a_user() {
    let gateway = Gateway::start();
    let api = gateway.api();
    let mut first = gateway.connect("ann").await;
    let mut second = gateway.connect("ann").await;
    let mut other = gateway.connect("bob").await;
    api.publish("news:a", json!(0)).await;
    let body = json!({ "user": "ann", "channel": "news:a", "data": { "why": "vip" } });
    assert_eq!(api.ok("subscribe", body).await, json!({}));
    for client in [&mut first, &mut second] {
        let push = client.push().await;
        let epoch = &push["subscribe"]["epoch"];
        let expected =
            json!({ "recoverable": true, "positioned": true, "epoch": epoch, "offset": 1, "data": { "why": "vip" } });
        assert_eq!(push, json!({ "channel": "news:a", "subscribe": expected }));
    }
    api.publish("news:a", json!(1)).await;
    first.publication("news:a").await;
    second.publication("news:a").await;
    // A second subscribe is an error on the node that handles it.
    assert_eq!(api.error("subscribe", json!({ "user": "ann", "channel": "news:a" })).await, 100);
    assert_eq!(api.ok("unsubscribe", json!({ "user": "ann", "channel": "news:a" })).await, json!({}));
    let expected = json!({ "channel": "news:a", "unsubscribe": { "code": 2000, "reason": "server unsubscribe" } });
    for client in [&mut first, &mut second] {
        assert_eq!(client.push().await, expected);
    }
    // A plain channel's push has its payload object, too.
    api.ok("subscribe", json!({ "user": "bob", "channel": "bare:x" })).await;
    assert_eq!(other.push().await, json!({ "channel": "bare:x", "subscribe": {} }));
    // No connection of the user: success all the same.
    for method in ["subscribe", "unsubscribe"] {
        assert_eq!(api.ok(method, json!({ "user": "nobody", "channel": "news:a" })).await, json!({}));
    }
}

#[tokio::test]
async fn the_api_narrows_to_one_client_and_recovers_for_it() {
    let gateway = Gateway::start();
    let api = gateway.api();
    let mut first = gateway.open().await;
    let id = first.connect_as("ann").await["client"].clone();
    let mut second = gateway.connect("ann").await;
    let mut epoch = json!(null);
    for n in 1..=3 {
        epoch = api.publish("news:a", json!(n)).await["epoch"].clone();
    }
    let body =
        json!({ "user": "ann", "client": id, "channel": "news:a", "recover_since": { "offset": 1, "epoch": epoch } });
    api.ok("subscribe", body).await;
    assert!(first.push().await["subscribe"].is_object());
    // The push carries no publications; they follow it.
    assert_eq!(first.publication("news:a").await["offset"], json!(2));
    assert_eq!(first.publication("news:a").await["offset"], json!(3));
    api.publish("news:a", json!(4)).await;
    assert_eq!(first.publication("news:a").await["offset"], json!(4));
    assert_eq!(second.error_code(json!({ "rpc": {} })).await, 108, "the other connection heard nothing");
}

#[tokio::test]
async fn disconnect_has_codes_a_white_list_and_one_client() {
    let gateway = Gateway::start();
    let api = gateway.api();
    let mut client = gateway.connect("ann").await;
    assert_eq!(api.ok("disconnect", json!({ "user": "ann" })).await, json!({}));
    client.expect_close(3503, "force disconnect").await;

    let mut kept = gateway.open().await;
    let kept_id = kept.connect_as("ann").await["client"].clone();
    let mut gone = gateway.connect("ann").await;
    let custom = json!({ "user": "ann", "whitelist": [kept_id], "disconnect": { "code": 4123, "reason": "moved" } });
    api.ok("disconnect", custom).await;
    gone.expect_close(4123, "moved").await;
    let mut third = gateway.connect("ann").await;
    api.ok("disconnect", json!({ "user": "ann", "client": kept_id })).await;
    kept.expect_close(3503, "force disconnect").await;
    assert_eq!(third.error_code(json!({ "rpc": {} })).await, 108);
    // The reason must never be empty or JSON: SDKs would misread it.
    for disconnect in [
        json!({ "code": 4000, "reason": "17" }),
        json!({ "code": 4000, "reason": "x".repeat(124) }),
        json!({ "code": 70000, "reason": "too large" }),
        json!({ "code": 1006, "reason": "reserved" }),
    ] {
        assert_eq!(
            api.error("disconnect", json!({ "user": "ann", "disconnect": disconnect })).await,
            107,
            "{disconnect}"
        );
    }
    assert_eq!(third.error_code(json!({ "rpc": {} })).await, 108);
}

#[tokio::test]
async fn refresh_by_api_moves_the_expiry() {
    let gateway = Gateway::with(&config_with("client", "expired_close_delay = \"1s\"")).start();
    let api = gateway.api();
    let mut client = gateway.connect("ann").await;
    api.ok("refresh", json!({ "user": "ann", "expire_at": now() + 120 })).await;
    let push = client.push().await;
    assert!(push.get("channel").is_none(), "{push}");
    assert_eq!(push["refresh"]["expires"], json!(true));
    assert!((115..=120).contains(&push["refresh"]["ttl"].as_i64().expect("a ttl")), "{push}");
    // Never: a connection that would expire in a moment lives on.
    let mut mortal = gateway.open().await;
    mortal.connect_with(&tokens::connection(json!({ "sub": "bob", "exp": now() + 2 }))).await;
    let mut witness = gateway.open().await;
    witness.connect_with(&tokens::connection(json!({ "sub": "eve", "exp": now() + 2 }))).await;
    api.ok("refresh", json!({ "user": "bob", "expire_at": 0 })).await;
    witness.expect_close(3005, "connection expired").await;
    let reply = mortal.call(json!({ "rpc": {} })).await;
    assert_eq!(reply["error"]["code"], json!(108));
    api.ok("refresh", json!({ "user": "ann", "expired": true })).await;
    client.expect_close(3005, "connection expired").await;
}
