//! Every method, alone and among others.

use backplane::{ChannelName, ClientId, ClientInfo, UserId};
use bytes::Bytes;
use serde_json::json;
use session::CloseCode;
use session::io::{Overrides, ServerSubscribe};

use super::*;
use crate::shard::command::{Refresh, ShardCounts};

fn ann() -> Target {
    Target { user: UserId::from("ann"), client: None, except: Vec::new() }
}

#[tokio::test]
async fn publish_answers_with_the_position() {
    let fixture = Fixture::new();
    let first = fixture.ok("publish", r#"{"channel":"chat:a","data":{"n": 1},"tags":{"kind":"x"},"delta":true}"#).await;
    let epoch = &first["epoch"];
    assert_eq!(first, json!({ "offset": 1, "epoch": epoch }));
    let body = r#"{"channel":"chat:a","data":2,"idempotency_key":"k"}"#;
    let second = fixture.ok("publish", body).await;
    assert_eq!(second, json!({ "offset": 2, "epoch": epoch }));
    assert_eq!(fixture.ok("publish", body).await, second, "a repeat");
    let version = |version: u64, epoch: &str| {
        json!({ "channel": "chat:a", "data": version, "version": version, "version_epoch": epoch }).to_string()
    };
    assert_eq!(fixture.ok("publish", version(7, "v")).await["offset"], json!(3));
    assert_eq!(fixture.ok("publish", version(7, "v")).await["offset"], json!(3), "not above the stored version");
    assert_eq!(fixture.ok("publish", version(1, "w")).await["offset"], json!(4), "another version epoch");
    assert_eq!(fixture.ok("publish", r#"{"channel":"chat:a","data":0,"skip_history":true}"#).await, json!({}));
    assert_eq!(fixture.call("publish", r#"{"channel":"bare:a","data":0}"#).await, r#"{"result":{}}"#);
    let page = fixture.call("history", r#"{"channel":"chat:a","limit":1}"#).await;
    let expected = format!(
        r#"{{"result":{{"publications":[{{"data":{{"n": 1}},"offset":1,"tags":{{"kind":"x"}}}}],"epoch":{epoch},"offset":4}}}}"#
    );
    assert_eq!(page, expected, "the payload is as it was sent");
}

#[tokio::test]
async fn payloads_have_the_format_of_their_namespace() {
    let fixture = Fixture::new();
    // The base64 texts are `nope`, `[1]` and `{}`.
    for (channel, payload, expected) in [
        ("bare:a", r#""data":null"#, Err("bad request")),
        ("bare:a", r#""data":"""#, Ok(())),
        ("bare:a", r#""b64data":"bm9wZQ==""#, Ok(())),
        ("bare:a", r#""b64data":"***","data":1"#, Err("b64data is not base64")),
        ("json:a", r#""b64data":"bm9wZQ==","data":1"#, Err("format")),
        ("json:a", r#""b64data":"WzFd""#, Ok(())),
        ("json:a", r#""b64data":"","data":1"#, Ok(())),
        ("json:a", r#""b64data":"""#, Err("bad request")),
        ("object:a", r#""data":[1]"#, Err("format")),
        ("object:a", r#""b64data":"e30=""#, Ok(())),
        ("binary:a", r#""b64data":"""#, Ok(())),
        ("binary:a", r#""b64data":"AAEC""#, Ok(())),
    ] {
        let body = format!(r#"{{"channel":"{channel}",{payload}}}"#);
        match expected {
            Ok(()) => drop(fixture.ok("publish", body).await),
            Err(part) => {
                let (code, message) = fixture.error("publish", body.clone()).await;
                assert!(code == 107 && message.contains(part), "{body}: {code} {message}");
            }
        }
    }
    let page = fixture.ok("history", r#"{"channel":"binary:a","limit":-1}"#).await;
    let publications = json!([
        { "data": null, "b64data": "", "offset": 1 },
        { "data": null, "b64data": "AAEC", "offset": 2 },
    ]);
    assert_eq!(page["publications"], publications);
}

#[tokio::test]
async fn every_bound_of_a_publication_is_told() {
    let fixture = Fixture::new();
    let tags = |count: usize, bytes: usize| {
        let tags = (0..count).map(|n| (format!("{n:02}"), json!("x".repeat(bytes)))).collect();
        json!({ "channel": "bare:a", "data": 1, "tags": Value::Object(tags) })
    };
    let text = |field: &str, bytes: usize| json!({ "channel": "bare:a", "data": 1, field: "x".repeat(bytes) });
    let name = |bytes: usize| json!({ "channel": format!("bare:{}", "\u{e9}".repeat((bytes - 5) / 2)), "data": 1 });
    for (allowed, refused, part) in [
        (tags(64, 60), tags(65, 1), "65 tags, more than 64"),
        (tags(4, 1022), tags(4, 1023), "4100 bytes, more than 4096"),
        (text("idempotency_key", 512), text("idempotency_key", 513), "idempotency_key has 513 bytes, more than 512"),
        (text("version_epoch", 512), text("version_epoch", 513), "version_epoch has 513 bytes"),
        (name(255), name(257), "the channel name has 257 bytes, more than 255"),
    ] {
        fixture.ok("publish", allowed.to_string()).await;
        let (code, message) = fixture.error("publish", refused.to_string()).await;
        assert!(code == 107 && message.contains(part), "{code} {message}");
    }
}

#[tokio::test]
async fn broadcast_answers_for_each_channel_in_order() {
    let fixture = Fixture::with(|api| api.limits.channels_per_broadcast = 200);
    let body = r#"{"channels":["chat:a","no:b","bare:c","chat:a",""],"data":1}"#;
    let result = fixture.ok("broadcast", body).await;
    let epoch = &result["responses"][0]["result"]["epoch"];
    let responses = json!([
        { "result": { "offset": 1, "epoch": epoch } },
        { "error": { "code": 102, "message": "unknown channel" } },
        { "result": {} },
        { "result": { "offset": 2, "epoch": epoch } },
        { "error": { "code": 107, "message": "bad request" } },
    ]);
    assert_eq!(result, json!({ "responses": responses }));
    // More than are in hand at a time.
    let channels = |count: usize| json!({ "channels": vec!["chat:b"; count], "data": 1 }).to_string();
    let result = fixture.ok("broadcast", channels(200)).await;
    let offsets: Vec<_> =
        result["responses"].as_array().unwrap().iter().map(|r| r["result"]["offset"].as_u64()).collect();
    assert_eq!(offsets, (1..=200).map(Some).collect::<Vec<_>>());
    assert_eq!(fixture.error("broadcast", channels(0)).await, (107, "bad request".to_owned()));
    let expected = (107, "bad request: 201 channels, more than 200".to_owned());
    assert_eq!(fixture.error("broadcast", channels(201)).await, expected);
}

#[tokio::test]
async fn methods_about_users_reach_the_shards() {
    let fixture = Fixture::new();
    let id = ClientId::random();
    let subscription = ServerSubscribe {
        channel: ChannelName::from("chat:a"),
        info: Bytes::new(),
        data: Bytes::from_static(b"{\"why\": 1}"),
        recover_since: None,
        expire_at: None,
        overrides: Overrides { presence: Some(false), ..Overrides::default() },
    };
    let refresh = Refresh { expired: false, expire_at: Some(2_000_000_000), info: Some(Bytes::from_static(b"[1]")) };
    let never = Refresh { expired: false, expire_at: None, info: None };
    let only = |client: &str| Target { client: Some(client.to_owned()), ..ann() };
    for (method, body, target, action) in [
        (
            "subscribe",
            json!({ "user": "ann", "channel": "chat:a", "data": "x", "b64data": "eyJ3aHkiOiAxfQ==", "override": { "presence": {} } }),
            ann(),
            Action::Subscribe(subscription),
        ),
        (
            "unsubscribe",
            json!({ "user": "", "channel": "bare:a" }),
            Target { user: UserId::from(""), ..ann() },
            Action::Unsubscribe(ChannelName::from("bare:a")),
        ),
        (
            "disconnect",
            json!({ "user": "ann", "whitelist": [id.to_string(), "none"] }),
            Target { except: vec![id], ..ann() },
            Action::Disconnect(CloseCode::ForceDisconnect),
        ),
        (
            "disconnect",
            json!({ "user": "ann", "client": "c", "disconnect": { "code": 4001, "reason": "moved" } }),
            only("c"),
            Action::Disconnect(CloseCode::custom(4001, "moved").unwrap()),
        ),
        ("refresh", json!({ "user": "ann", "expire_at": 2_000_000_000, "info": [1] }), ann(), Action::Refresh(refresh)),
        ("refresh", json!({ "user": "ann", "expire_at": 0 }), ann(), Action::Refresh(never.clone())),
        (
            "refresh",
            json!({ "user": "ann", "client": "c", "expired": true }),
            only("c"),
            Action::Refresh(Refresh { expired: true, ..never }),
        ),
    ] {
        assert_eq!(fixture.ok(method, body.to_string()).await, json!({}), "{method}");
        assert_eq!(fixture.told.lock().applied.pop(), Some((target, action)), "{method} {body}");
        // No connection has a session that could be meant.
        let mut body = body;
        body["session"] = json!("s");
        assert_eq!(fixture.ok(method, body.to_string()).await, json!({}), "{method}");
        assert!(fixture.told.lock().applied.is_empty());
    }
    for (method, body, code) in [
        ("subscribe", json!({ "user": "ann" }), 107),
        ("subscribe", json!({ "user": "ann", "channel": "no:a" }), 102),
        ("unsubscribe", json!({ "user": "ann" }), 107),
        ("unsubscribe", json!({ "user": "ann", "channel": "no:a" }), 102),
        ("disconnect", json!({ "user": "ann", "disconnect": { "code": 4000 } }), 107),
        ("disconnect", json!({ "user": "ann", "disconnect": { "code": 17, "reason": "x" } }), 107),
        ("refresh", json!({ "user": "ann", "info": "x".repeat(16 * 1024) }), 107),
    ] {
        assert_eq!(fixture.error(method, body.to_string()).await.0, code, "{method} {body}");
        assert!(fixture.told.lock().applied.is_empty(), "nothing is done for {method} {body}");
    }
    fixture.told.lock().answer = Applied { matched: 2, already_subscribed: 1 };
    let (code, message) = fixture.error("subscribe", r#"{"user":"ann","channel":"chat:a"}"#).await;
    assert!(code == 100 && message.contains("already subscribed"), "{code} {message}");
}

#[tokio::test]
async fn presence_is_read_where_it_is_kept() {
    let fixture = Fixture::new();
    let channel = ChannelName::from("chat:a");
    let client = ClientId::random();
    let info = ClientInfo {
        client,
        user: UserId::from("ann"),
        conn_info: Bytes::from_static(b"{\"nick\":\"Mo\"}"),
        chan_info: Bytes::new(),
    };
    fixture.node.backplane.add_presence(&channel, Arc::new(info)).await.unwrap();
    let presence = fixture.ok("presence", r#"{"channel":"chat:a"}"#).await;
    let member = json!({ "user": "ann", "client": client.to_string(), "conn_info": { "nick": "Mo" } });
    assert_eq!(presence, json!({ "presence": { (client.to_string()): member } }));
    let stats = fixture.call("presence_stats", r#"{"channel":"chat:a"}"#).await;
    assert_eq!(stats, r#"{"result":{"num_clients":1,"num_users":1}}"#);
    let stats = fixture.call("presence_stats", r#"{"channel":"chat:none"}"#).await;
    assert_eq!(stats, r#"{"result":{"num_clients":0,"num_users":0}}"#);
    for method in ["presence", "presence_stats", "history", "history_remove"] {
        assert_eq!(
            fixture.error(method, r#"{"channel":"bare:a"}"#).await,
            (108, "not available".to_owned()),
            "{method}"
        );
        assert_eq!(fixture.error(method, r#"{"channel":"no:a"}"#).await.0, 102, "{method}");
        assert_eq!(fixture.error(method, "{}").await.0, 107, "{method}");
    }
}

#[tokio::test]
async fn history_pages_both_ways() {
    let fixture = Fixture::new();
    for n in 1..=12 {
        fixture.ok("publish", format!(r#"{{"channel":"chat:a","data":{n}}}"#)).await;
    }
    let position = fixture.ok("history", r#"{"channel":"chat:a"}"#).await;
    let epoch = &position["epoch"];
    assert_eq!(position, json!({ "publications": [], "epoch": epoch, "offset": 12 }));
    let all = (3..=12).collect::<Vec<u64>>();
    for (query, expected) in [
        (json!({ "limit": 0 }), vec![]),
        (json!({ "limit": -1 }), all.clone()),
        (json!({ "limit": 1_000_000_000_000_u64 }), all.clone()),
        (json!({ "limit": 2 }), vec![3, 4]),
        (json!({ "limit": 2, "reverse": true }), vec![12, 11]),
        (json!({ "limit": 2, "since": { "offset": 5, "epoch": epoch } }), vec![6, 7]),
        (json!({ "limit": -5, "since": { "offset": 10 } }), vec![11, 12]),
        (json!({ "limit": 9, "reverse": true, "since": { "offset": 5, "epoch": epoch } }), vec![4, 3]),
        (json!({ "limit": 9, "since": { "offset": 0, "epoch": epoch } }), all[..9].to_vec()),
    ] {
        let mut body = query.clone();
        body["channel"] = json!("chat:a");
        let page = fixture.ok("history", body.to_string()).await;
        let expected: Vec<_> = expected.into_iter().map(|n| json!({ "data": n, "offset": n })).collect();
        assert_eq!(page, json!({ "publications": expected, "epoch": epoch, "offset": 12 }), "{query}");
    }
    let start = json!({ "channel": "chat:a", "limit": 1, "reverse": true, "since": { "offset": 0, "epoch": epoch } });
    assert_eq!(fixture.error("history", start.to_string()).await.0, 107);
    let other = json!({ "channel": "chat:a", "since": { "offset": 3, "epoch": "other" } });
    assert_eq!(fixture.error("history", other.to_string()).await.0, 112);
    assert_eq!(fixture.ok("history_remove", r#"{"channel":"chat:a"}"#).await, json!({}));
    assert_eq!(fixture.ok("history", r#"{"channel":"chat:a","limit":-1}"#).await, position, "epoch and top stay");
}

#[tokio::test]
async fn channels_and_info_ask_the_shards() {
    let fixture = Fixture::new();
    let channels = [("chat:one", 2), ("chat:two", 1), ("bare:one", 1)];
    fixture.told.lock().survey = Survey {
        counts: ShardCounts { connections: 3, subscriptions: 4 },
        users: vec![UserId::from("ann"), UserId::from("")],
        channels: channels.map(|(name, subscribers)| (ChannelName::from(name), subscribers)).into(),
    };
    for (body, expected) in [
        (r#"{}"#, r#"{"bare:one":{"num_clients":1},"chat:one":{"num_clients":2},"chat:two":{"num_clients":1}}"#),
        (r#"{"pattern":"chat:*"}"#, r#"{"chat:one":{"num_clients":2},"chat:two":{"num_clients":1}}"#),
        (r#"{"pattern":"*:on?"}"#, r#"{"bare:one":{"num_clients":1},"chat:one":{"num_clients":2}}"#),
        (r#"{"pattern":"one"}"#, "{}"),
    ] {
        assert_eq!(fixture.call("channels", body).await, format!(r#"{{"result":{{"channels":{expected}}}}}"#));
    }
    let (code, message) = fixture.error("channels", r#"{"pattern":"[a"}"#).await;
    assert!(code == 107 && message.contains("a [ has no ]"), "{code} {message}");

    let info = fixture.ok("info", "{}").await;
    let nodes = info["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 1);
    let node = &nodes[0];
    let known = json!({
        "uid": fixture.node.uid.to_string(), "name": "test", "version": env!("CARGO_PKG_VERSION"),
        "num_clients": 3, "num_users": 2, "num_subs": 4, "num_channels": 3,
    });
    for (field, value) in known.as_object().unwrap() {
        assert_eq!(&node[field], value, "{field}");
    }
    assert!(node["uptime"].is_u64() && node["metrics"]["interval"].is_f64(), "{node}");
    assert!(node["process"]["rss"].as_u64().unwrap() > 0 && node["process"]["cpu"].is_f64(), "{node}");
    assert!(node["metrics"]["items"]["process_threads"].as_f64().unwrap() >= 1.0, "{node}");
}

#[tokio::test]
async fn there_are_no_extensions() {
    let fixture = Fixture::new();
    assert_eq!(fixture.error("rpc", r#"{"method":"x"}"#).await, (104, "method not found".to_owned()));
    assert_eq!(fixture.error("rpc", "{}").await.0, 107);
}

#[tokio::test]
async fn a_batch_answers_for_each_command_in_order() {
    let fixture = Fixture::new();
    for (parallel, offset) in [("false", 1), ("true", 2), ("null", 3)] {
        let commands = r#"[{"publish":{"channel":"chat:a","data":1}},{"publish":{"channel":"no:a","data":1}},
            {"presence_stats":{"channel":"chat:a"},"extra":{}},{"fly":{}},{"batch":{"commands":[]}},{},null,
            {"info":null},{"publish":[]},{"info":{},"rpc":{}},{"history_remove":{"channel":"chat:x"}}]"#;
        let text = fixture.call("batch", format!(r#"{{"commands":{commands},"parallel":{parallel}}}"#)).await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        let error = |code: u64, message: &str| json!({ "error": { "code": code, "message": message } });
        let epoch = &answer["replies"][0]["publish"]["epoch"];
        let replies = json!([
            { "publish": { "offset": offset, "epoch": epoch } },
            error(102, "unknown channel"),
            { "presence_stats": { "num_clients": 0, "num_users": 0 } },
            error(104, "method not found"),
            error(104, "method not found"),
            error(107, "bad request"),
            error(107, "bad request"),
            error(107, "bad request"),
            error(107, "bad request: a JSON object is expected"),
            error(107, "bad request: a command names more than one method"),
            { "history_remove": {} },
        ]);
        assert_eq!(answer, json!({ "replies": replies }));
    }
    assert_eq!(fixture.call("batch", "{}").await, r#"{"replies":[]}"#);
    // More than are in hand at a time.
    let many = vec![json!({ "publish": { "channel": "chat:b", "data": 1 } }); 200];
    for (parallel, first) in [(false, 1), (true, 201)] {
        let text = fixture.call("batch", json!({ "commands": many, "parallel": parallel }).to_string()).await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        let replies = answer["replies"].as_array().unwrap();
        let offsets: Vec<_> = replies.iter().map(|reply| reply["publish"]["offset"].as_u64()).collect();
        assert_eq!(offsets, (first..first + 200).map(Some).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn the_legacy_route_takes_objects_in_a_row() {
    let fixture = Fixture::with(|api| api.limits.commands_per_batch = 100);
    let publish = r#"{"method":"publish","params":{"channel":"chat:a","data":{
        "n": 1}}}"#;
    for (first, separator) in [(1, ""), (3, "\n"), (5, " \n\n ")] {
        let others =
            r#"{"method":"fly"}{"method":"info","params":[]} {"method":"history","params":{"channel":"chat:b"}}"#;
        let text = fixture.call_legacy([publish, others, publish].join(separator)).await;
        let lines: Vec<Value> = text.split('\n').map(|line| serde_json::from_str(line).unwrap()).collect();
        let error = |code: u64, message: &str| json!({ "error": { "code": code, "message": message } });
        assert_eq!(lines.len(), 5, "{text}");
        assert_eq!(lines[0]["result"]["offset"], json!(first));
        assert_eq!(lines[1], error(104, "method not found"));
        assert_eq!(lines[2], error(107, "bad request: a JSON object is expected"));
        assert_eq!(lines[3]["result"]["offset"], json!(0));
        assert_eq!(lines[4]["result"]["offset"], json!(first + 1));
    }
    // The payload has a line break, which would look like the end of the answer.
    let text = fixture.call_legacy(r#"{"method":"history","params":{"channel":"chat:a","limit":1}}"#.to_owned()).await;
    assert!(!text.contains('\n') && text.contains(r#""data":{         "n": 1}"#), "{text}");
    let text = fixture.call_legacy(r#"{"method":"info"}"#.repeat(101)).await;
    assert_eq!(text, r#"{"error":{"code":107,"message":"bad request: more than 100 commands"}}"#);
    // What is broken at the end does nothing at the beginning.
    assert_eq!(fixture.post("", format!("{publish}{{")).await.status, 400);
    assert_eq!(fixture.ok("history", r#"{"channel":"chat:a"}"#).await["offset"], json!(6));
}

impl Fixture {
    async fn call_legacy(&self, body: String) -> String {
        let answer = self.post("", body).await;
        assert_eq!((answer.status, answer.content_type.as_str()), (200, "application/json"), "{answer:?}");
        answer.text
    }
}
