//! Connecting: the connect reply, the outcomes of tokens, the order of commands, expiry and refresh.

use serde_json::{Value, json};
use tests::gateway::{Gateway, SECRET, config_with};
use tests::tokens::{self, now};

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn the_connect_reply_has_what_sdks_need_and_no_zero_values() {
    let gateway = Gateway::start();
    let mut client = gateway.open().await;
    let result = client.connect_as("ann").await;
    assert_eq!(keys(&result), ["client", "expires", "ping", "pong", "ttl", "version"]);
    let id = result["client"].as_str().expect("a client id");
    assert_eq!((id.len(), id.as_bytes()[14], id.matches('-').count()), (36, b'4', 4), "a UUID v4: {id}");
    assert_eq!((&result["ping"], &result["pong"], &result["expires"]), (&json!(25), &json!(true), &json!(true)));
    let ttl = result["ttl"].as_i64().expect("a ttl");
    assert!((595..=600).contains(&ttl), "{ttl}");

    // A connection that never expires has neither `expires` nor `ttl`, although its token does.
    let mut client = gateway.open().await;
    let result = client.connect_with(&tokens::connection(json!({ "sub": "ann", "expire_at": 0 }))).await;
    assert_eq!(keys(&result), ["client", "ping", "pong", "version"]);
}

#[tokio::test]
async fn connect_and_subscribes_share_the_first_frame() {
    let gateway = Gateway::start();
    gateway.api().publish("chat:b", json!({ "n": 1 })).await;
    let mut client = gateway.open().await;
    client
        .send_all(&[
            json!({ "connect": { "token": tokens::connection(json!({ "sub": "ann" })), "name": "js" }, "id": 1 }),
            json!({ "subscribe": { "channel": "chat:a", "flag": 1 }, "id": 2 }),
            json!({ "subscribe": { "channel": "chat:b", "flag": 1 }, "id": 3 }),
            json!({ "subscribe": { "channel": "bare:c", "flag": 1 }, "id": 4 }),
        ])
        .await;
    assert!(client.message().await["connect"].is_object(), "the connect reply comes first");
    let a = client.reply(2).await;
    let b = client.reply(3).await;
    let c = client.reply(4).await;
    // A success has its result object even when it is empty, and an offset of zero is left out.
    assert_eq!(c, json!({ "id": 4, "subscribe": {} }));
    assert_eq!(keys(&a["subscribe"]), ["epoch", "positioned", "recoverable"]);
    assert_eq!(keys(&b["subscribe"]), ["epoch", "offset", "positioned", "recoverable"]);
    assert_eq!(b["subscribe"]["offset"], json!(1));
}

/// Sends connect with this token and returns the close code and reason, or the error code and message.
async fn outcome(gateway: &Gateway, token: &str) -> (u64, String) {
    let mut client = gateway.open().await;
    client.send_json(json!({ "connect": { "token": token }, "id": 1 })).await;
    if client.peek_message().await.is_none() {
        let closed = client.closed_next().await;
        return (closed.code.expect("a close frame").into(), closed.reason);
    }
    let reply = client.reply(1).await;
    // After a failed connect nothing more is accepted.
    client.send_json(json!({ "rpc": {}, "id": 2 })).await;
    client.expect_close(3501, "bad request").await;
    let error = &reply["error"];
    assert!(error.get("temporary").is_none(), "{reply}");
    (error["code"].as_u64().expect("a code"), error["message"].as_str().expect("a message").to_owned())
}

#[tokio::test]
async fn every_token_has_its_outcome() {
    let gateway = Gateway::start();
    let hs256 = json!({ "alg": "HS256", "typ": "JWT" });
    let later = now() + 600;
    let valid = tokens::connection(json!({ "sub": "ann" }));
    let (body, signature) = valid.rsplit_once('.').expect("three parts");
    let forged = tokens::sign(&hs256, &json!({ "sub": "ann", "exp": later }), "another secret");
    let expected = [
        ("no token", String::new(), 3501, "bad request"),
        ("not a token", "abc".to_owned(), 3500, "invalid token"),
        ("three parts of nothing", "..".to_owned(), 3500, "invalid token"),
        ("signed with another secret", forged, 3500, "invalid token"),
        ("cut short", valid[..valid.len() - 4].to_owned(), 3500, "invalid token"),
        ("without a signature", format!("{body}."), 3500, "invalid token"),
        (
            "alg none",
            tokens::sign(&json!({ "alg": "none" }), &json!({ "sub": "ann", "exp": later }), SECRET),
            3500,
            "invalid token",
        ),
        (
            "an algorithm without a key",
            tokens::sign(&json!({ "alg": "RS256" }), &json!({ "sub": "ann", "exp": later }), SECRET),
            3500,
            "invalid token",
        ),
        (
            "an unknown algorithm",
            tokens::sign(&json!({ "alg": "XY512" }), &json!({ "sub": "ann", "exp": later }), SECRET),
            3500,
            "invalid token",
        ),
        ("claims signed for others", format!("{}.{signature}", &forged_body(later)), 3500, "invalid token"),
        ("a user id that is a number", tokens::connection(json!({ "sub": 17 })), 3500, "invalid token"),
        ("a subscription token", tokens::subscription("ann", "chat:a", json!({})), 3500, "invalid token"),
        ("expired a second ago", tokens::connection(json!({ "sub": "ann", "exp": now() - 1 })), 109, "token expired"),
        ("not valid yet", tokens::connection(json!({ "sub": "ann", "nbf": now() + 60 })), 109, "token expired"),
        (
            "a channel of an unknown namespace",
            tokens::connection(json!({ "sub": "ann", "channels": ["nosuch:a"] })),
            102,
            "unknown channel",
        ),
        ("nobody", tokens::connection(json!({ "sub": "" })), 3507, "permission denied"),
        ("nobody, by omission", tokens::connection(json!({})), 3507, "permission denied"),
    ];
    for (what, token, code, text) in expected {
        assert_eq!(outcome(&gateway, &token).await, (code, text.to_owned()), "{what}");
    }
}

fn forged_body(exp: i64) -> String {
    let token = tokens::connection(json!({ "sub": "root", "exp": exp }));
    token.rsplit_once('.').expect("three parts").0.to_owned()
}

#[tokio::test]
async fn an_error_that_may_pass_is_temporary() {
    // Nobody listens on port 1, so the keys cannot be fetched: not the client's fault, and worth another try.
    let gateway = Gateway::with(&config_with("client.token", "jwks_url = \"http://127.0.0.1:1/keys\"")).start();
    let mut client = gateway.open().await;
    let header = json!({ "alg": "RS256", "kid": "key-1" });
    let token = tokens::sign(&header, &json!({ "sub": "ann", "exp": now() + 600 }), SECRET);
    let reply = client.call(json!({ "connect": { "token": token } })).await;
    assert_eq!(reply["error"], json!({ "code": 100, "message": "internal server error", "temporary": true }));
}

#[tokio::test]
async fn anonymous_clients_are_welcome_only_when_asked_for() {
    let gateway = Gateway::with(&config_with("client", "allow_anonymous = true")).start();
    let mut client = gateway.open().await;
    let reply = client.call(json!({ "connect": {} })).await;
    assert_eq!(keys(&reply["connect"]), ["client", "ping", "pong", "version"]);
    client.subscribe("open:a").await;
    let answer = gateway.api().ok("presence", json!({ "channel": "open:a" })).await;
    let member = &answer["presence"][reply["connect"]["client"].as_str().expect("an id")];
    assert_eq!(member["user"], json!(""), "always there, even when empty");
    // A channel for clients with a name stays closed.
    assert_eq!(client.error_code(json!({ "subscribe": { "channel": "bare:a" } })).await, 103);
    // A bad token is no reason to become anonymous.
    let mut client = gateway.open().await;
    client.send_json(json!({ "connect": { "token": "abc" }, "id": 1 })).await;
    client.expect_close(3500, "invalid token").await;
}

#[tokio::test]
async fn insecure_mode_lets_everyone_do_everything_only_when_asked_for() {
    let gateway = Gateway::with(&config_with("client", "insecure = true")).start();
    let mut client = gateway.open().await;
    let reply = client.call(json!({ "connect": {} })).await;
    assert!(reply["connect"].is_object(), "{reply}");
    client.subscribe("vault:a").await;
    let reply = client.call(json!({ "publish": { "channel": "vault:a", "data": 1 } })).await;
    assert_eq!(reply["publish"], json!({}));
}

#[tokio::test]
async fn commands_out_of_order_close_with_bad_request() {
    let gateway = Gateway::start();
    for first in [
        json!({}),
        json!({ "subscribe": { "channel": "bare:a" }, "id": 1 }),
        json!({ "send": { "data": {} } }),
        json!({ "connect": { "token": tokens::connection(json!({ "sub": "ann" })) } }),
    ] {
        let mut client = gateway.open().await;
        client.send_json(first).await;
        client.expect_close(3501, "bad request").await;
    }
    let mut client = gateway.connect("ann").await;
    client.send_json(json!({ "connect": { "token": tokens::connection(json!({ "sub": "ann" })) }, "id": 2 })).await;
    client.expect_close(3501, "bad request").await;
    // What follows a command that closes is not carried out.
    let mut client = gateway.connect("ann").await;
    let publish = json!({ "publish": { "channel": "bare:order", "data": 1 }, "id": 3 });
    let mut listener = gateway.connect("bob").await;
    listener.subscribe("bare:order").await;
    client.send_all(&[json!({ "refresh": {}, "id": 2 }), publish]).await;
    client.expect_close(3501, "bad request").await;
    gateway.api().publish("bare:order", json!(2)).await;
    assert_eq!(listener.publication("bare:order").await["data"], json!(2));
}

#[tokio::test]
async fn a_client_that_says_nothing_is_closed_as_stale() {
    let gateway = Gateway::with(&config_with("client", "stale_delay = \"1s\"")).start();
    let mut silent = gateway.open().await;
    let mut authenticated = gateway.connect("ann").await;
    silent.expect_close(3502, "stale").await;
    assert_eq!(authenticated.error_code(json!({ "rpc": {} })).await, 108);
}

#[tokio::test]
async fn refresh_has_its_outcomes() {
    let gateway = Gateway::start();
    let token = |claims: Value| tokens::connection(claims);
    let mut client = gateway.connect("ann").await;
    let reply =
        client.call(json!({ "refresh": { "token": token(json!({ "sub": "ann", "exp": now() + 120 })) } })).await;
    let result = &reply["refresh"];
    assert_eq!(result["expires"], json!(true), "{reply}");
    assert!((115..=120).contains(&result["ttl"].as_i64().expect("a ttl")), "{reply}");
    // The connection need not expire any more.
    let reply = client.call(json!({ "refresh": { "token": token(json!({ "sub": "ann", "expire_at": 0 })) } })).await;
    assert!(reply["refresh"].is_object() && reply["refresh"].get("expires").is_none(), "{reply}");

    for (what, token, code, reason) in [
        ("empty", String::new(), 3501, "bad request"),
        ("expired", token(json!({ "sub": "ann", "exp": now() - 1 })), 3005, "connection expired"),
        ("invalid", "abc".to_owned(), 3500, "invalid token"),
        ("of somebody else", token(json!({ "sub": "bob" })), 3500, "invalid token"),
        ("with other channels", token(json!({ "sub": "ann", "channels": ["news:a"] })), 3010, "insufficient state"),
    ] {
        let mut client = gateway.connect("ann").await;
        client.send_json(json!({ "refresh": { "token": token }, "id": 2 })).await;
        let closed = client.closed_next().await;
        assert_eq!((closed.code, closed.reason.as_str()), (Some(code), reason), "{what}");
    }
}

#[tokio::test]
async fn an_expired_connection_is_closed_after_its_grace() {
    let gateway = Gateway::with(&config_with("client", "expired_close_delay = \"1s\"")).start();
    let mut client = gateway.open().await;
    let result = client.connect_with(&tokens::connection(json!({ "sub": "ann", "exp": now() + 2 }))).await;
    assert_eq!(result["expires"], json!(true));
    client.expect_close(3005, "connection expired").await;
}

#[tokio::test]
async fn only_the_first_payload_of_a_command_counts() {
    let gateway = Gateway::start();
    let mut client = gateway.connect("ann").await;
    client
        .send_json(
            json!({ "id": 7, "rpc": {}, "subscribe": { "channel": "bare:a" }, "publish": { "channel": "bare:a" } }),
        )
        .await;
    assert_eq!(client.message().await, json!({ "id": 7, "subscribe": {} }));
    // Nothing else was answered: the next message is the reply to the next command.
    client.send_json(json!({ "id": 8, "unsubscribe": { "channel": "bare:a" } })).await;
    assert_eq!(client.message().await, json!({ "id": 8, "unsubscribe": {} }));
}
