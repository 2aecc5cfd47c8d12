//! The server API over HTTP: keys, statuses, error shapes, and every method.

use serde_json::{Value, json};
use tests::api::{Answer, send};
use tests::gateway::{API_KEY, CONFIG, Gateway, config_with};

#[tokio::test]
async fn the_key_comes_in_two_ways_and_a_third_in_dev_mode() {
    let gateway = Gateway::start();
    let api = gateway.api();
    let url = api.url("info");
    let plain = || api.post_without_key(&url).body("{}");
    for (what, request, status) in [
        ("X-API-Key", plain().header("X-API-Key", API_KEY), 200),
        ("Authorization", plain().header("Authorization", format!("apikey {API_KEY}")), 200),
        ("the scheme in another case", plain().header("Authorization", format!("ApiKey {API_KEY}")), 200),
        ("none", plain(), 401),
        ("a wrong one", plain().header("X-API-Key", "wrong"), 401),
        ("half of it", plain().header("X-API-Key", &API_KEY[..8]), 401),
        ("another scheme", plain().header("Authorization", format!("Bearer {API_KEY}")), 401),
        (
            "a wrong header beside a good one",
            plain().header("X-API-Key", "wrong").header("Authorization", format!("apikey {API_KEY}")),
            401,
        ),
        ("in the URL", api.post_without_key(&format!("{url}?api_key={API_KEY}")).body("{}"), 401),
    ] {
        let answer = send(request).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        if status == 401 {
            assert_eq!(answer.text, "", "{what}");
        }
    }
    let gateway = Gateway::without_config().arg("--dev").env("EVENKEEL_API_KEY", API_KEY).start();
    let api = gateway.api();
    let url = api.url("info");
    for (query, status) in
        [(format!("?api_key={API_KEY}"), 200), ("?api_key=wrong".to_owned(), 401), (String::new(), 401)]
    {
        let answer = send(api.post_without_key(&format!("{url}{query}")).body("{}")).await;
        assert_eq!(answer.status, status, "{query}: {answer:?}");
    }
}

#[tokio::test]
async fn without_a_configured_key_nobody_gets_in() {
    let config = CONFIG.replace("keys = [\"test-api-key-0123456789\"]", "keys = []");
    let gateway = Gateway::with(&config).start();
    for key in ["", API_KEY] {
        let answer = send(gateway.api().with_key(key).post("info").body("{}")).await;
        assert_eq!(answer.status, 401, "{answer:?}");
    }
    let gateway = Gateway::with(&config).env("EVENKEEL_API_KEY", API_KEY).start();
    assert_eq!(send(gateway.api().post("info").body("{}")).await.status, 200);
}

#[tokio::test]
async fn http_statuses() {
    let gateway = Gateway::start();
    let api = gateway.api();
    // The method is checked before the key.
    assert_eq!(send(api.get(&api.url("publish"))).await.status, 405);
    assert_eq!(send(api.post("nosuch").body("{}")).await.status, 404);
    assert_eq!(send(api.post("connections").body("{}")).await.status, 404, "a method of the commercial edition");
    for (what, body) in [
        ("nothing", ""),
        ("no JSON", "hello"),
        ("half a JSON", "{\"channel\":"),
        ("an array", "[]"),
        ("a field of the wrong type", "{\"channel\":17}"),
    ] {
        let answer = send(api.post("publish").body(body)).await;
        assert_eq!(answer.status, 400, "{what}: {answer:?}");
        assert!(!answer.text.is_empty(), "{what}: the text says why");
    }
    let answer = send(api.post("publish").body(b"{\"channel\":\"\xff\"}".to_vec())).await;
    assert_eq!(answer.status, 400, "invalid UTF-8: {answer:?}");
    let deep = format!("{{\"channel\":\"bare:a\",\"data\":{}1{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let answer = send(api.post("publish").body(deep)).await;
    assert_eq!(answer.status, 400, "deeply nested: {answer:?}");
    let answer = send(api.post("publish").body(vec![b' '; (1 << 20) + 1])).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    // Unknown fields are ignored and the content type is not looked at.
    let body = json!({ "channel": "bare:a", "data": 1, "surprise": {} }).to_string();
    let answer = send(api.post("publish").header("Content-Type", "text/plain").body(body)).await;
    assert_eq!((answer.status, answer.content_type.as_str()), (200, "application/json"), "{answer:?}");
}

#[tokio::test]
async fn errors_come_as_200_or_as_statuses_when_asked_for() {
    let gateway = Gateway::start();
    let api = gateway.api();
    let stale = json!({ "channel": "chat:a", "limit": 1, "since": { "offset": 1, "epoch": "other" } });
    api.publish("chat:a", json!(1)).await;
    for (method, body, code, message, status) in [
        ("publish", json!({ "channel": "nosuch:a", "data": 1 }), 102, "unknown channel", 404),
        ("publish", json!({ "channel": "bare:a" }), 107, "bad request", 400),
        ("publish", json!({ "data": 1 }), 107, "bad request", 400),
        ("presence", json!({ "channel": "bare:a" }), 108, "not available", 400),
        ("presence_stats", json!({ "channel": "bare:a" }), 108, "not available", 400),
        ("history", json!({ "channel": "bare:a" }), 108, "not available", 400),
        ("history_remove", json!({ "channel": "bare:a" }), 108, "not available", 400),
        ("history", stale, 112, "unrecoverable position", 416),
        ("history", json!({ "channel": "nosuch:a" }), 102, "unknown channel", 404),
        ("broadcast", json!({ "channels": [], "data": 1 }), 107, "bad request", 400),
        ("subscribe", json!({ "user": "ann" }), 107, "bad request", 400),
        ("subscribe", json!({ "user": "ann", "channel": "nosuch:a" }), 102, "unknown channel", 404),
        ("publish", json!({ "channel": "bare:a", "b64data": "***" }), 107, "bad request", 400),
        ("rpc", json!({ "method": "nosuch" }), 104, "method not found", 404),
    ] {
        let answer = api.call(method, body.clone()).await;
        let error = &answer["error"];
        assert_eq!(
            (answer.as_object().map(serde_json::Map::len), &error["code"]),
            (Some(1), &json!(code)),
            "{method} {body}"
        );
        // A detail may follow the text of the protocol.
        assert!(error["message"].as_str().is_some_and(|text| text.starts_with(message)), "{method} {body}: {answer}");
        let request = api.post(method).header("X-Centrifugo-Error-Mode", "transport").body(body.to_string());
        let bare = send(request).await;
        assert_eq!((bare.status, &bare.json()), (status, error), "{method} {body}");
    }
}

#[tokio::test]
async fn publish_once_per_idempotency_key_and_version() {
    let gateway = Gateway::start();
    let api = gateway.api();
    let mut client = gateway.connect("ann").await;
    client.subscribe("chat:a").await;
    let with_key = |channel: &str, key: &str| json!({ "channel": channel, "data": key, "idempotency_key": key });
    let first = api.ok("publish", with_key("chat:a", "k1")).await;
    assert_eq!(first["offset"], json!(1));
    assert_eq!(api.ok("publish", with_key("chat:a", "k1")).await, first);
    assert_eq!(api.ok("publish", with_key("chat:b", "k1")).await["offset"], json!(1), "scoped per channel");
    assert_eq!(api.ok("publish", with_key("chat:a", "k2")).await["offset"], json!(2));
    assert_eq!(client.publication("chat:a").await["data"], json!("k1"));
    assert_eq!(client.publication("chat:a").await["data"], json!("k2"));

    let version = |version: u64, epoch: &str| json!({ "channel": "chat:a", "data": version, "version": version, "version_epoch": epoch });
    assert_eq!(api.ok("publish", version(7, "e")).await["offset"], json!(3));
    assert_eq!(api.ok("publish", version(7, "e")).await["offset"], json!(3), "skipped: the top");
    assert_eq!(api.ok("publish", version(6, "")).await["offset"], json!(3));
    assert_eq!(api.ok("publish", version(8, "e")).await["offset"], json!(4));
    assert_eq!(api.ok("publish", version(1, "f")).await["offset"], json!(5), "a new version epoch");
    for expected in [7, 8, 1] {
        assert_eq!(client.publication("chat:a").await["data"], json!(expected));
    }
    // Without history: no position, and no offset for subscribers.
    let body = json!({ "channel": "chat:a", "data": "skip", "skip_history": true });
    assert_eq!(api.ok("publish", body).await, json!({}));
    assert_eq!(client.publication("chat:a").await, json!({ "data": "skip" }));
    assert_eq!(api.publish("chat:a", json!("kept")).await["offset"], json!(6));
    assert_eq!(client.publication("chat:a").await["offset"], json!(6));
}

#[tokio::test]
async fn broadcast_answers_for_each_channel() {
    let gateway = Gateway::start();
    let channels = json!(["chat:a", "nosuch:b", "bare:c", "chat:a"]);
    let result = gateway.api().ok("broadcast", json!({ "channels": channels, "data": 1 })).await;
    let responses = result["responses"].as_array().expect("a list");
    assert_eq!(responses.len(), 4);
    assert_eq!(responses[0]["result"]["offset"], json!(1));
    assert_eq!(responses[1], json!({ "error": { "code": 102, "message": "unknown channel" } }));
    assert_eq!(responses[2], json!({ "result": {} }));
    assert_eq!(responses[3]["result"]["offset"], json!(2));
}

#[tokio::test]
async fn batch_runs_in_order_and_answers_per_command() {
    let gateway = Gateway::start();
    let api = gateway.api();
    for parallel in [false, true] {
        let commands = json!([
            { "publish": { "channel": "chat:a", "data": 1 } },
            { "publish": { "channel": "nosuch:a", "data": 1 } },
            { "presence_stats": { "channel": "chat:a" } },
            { "fly": {} },
            {},
            { "history": { "channel": "chat:a" } },
        ]);
        let answer = api.call("batch", json!({ "commands": commands, "parallel": parallel })).await;
        let replies = answer["replies"].as_array().unwrap_or_else(|| panic!("not wrapped in `result`: {answer}"));
        assert_eq!(replies.len(), 6);
        assert!(replies[0]["publish"]["offset"].is_u64(), "{answer}");
        assert_eq!(replies[1], json!({ "error": { "code": 102, "message": "unknown channel" } }));
        assert_eq!(replies[2]["presence_stats"], json!({ "num_clients": 0, "num_users": 0 }));
        assert_eq!(replies[3]["error"]["code"], json!(104));
        assert_eq!(replies[4]["error"]["code"], json!(107));
        assert!(replies[5]["history"]["epoch"].is_string(), "{answer}");
    }
}

#[tokio::test]
async fn the_legacy_route_takes_several_objects() {
    let gateway = Gateway::start();
    let api = gateway.api();
    let url = api.url("");
    let url = url.trim_end_matches('/');
    let post = |body: &str| api.post_without_key(url).header("X-API-Key", API_KEY).body(body.to_owned());
    let objects = |answer: &Answer| -> Vec<Value> {
        let lines = answer.text.trim_end().split('\n');
        lines.map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {answer:?}"))).collect()
    };
    let publish = r#"{"method":"publish","params":{"channel":"chat:a","data":{}}}"#;
    let unknown = r#"{"method":"publish","params":{"channel":"nosuch:a","data":{}}}"#;
    for separator in ["\n", "", " \n\n"] {
        let answer = send(post(&[publish, unknown, publish].join(separator))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let objects = objects(&answer);
        assert_eq!(objects.len(), 3, "{answer:?}");
        assert!(objects[0]["result"]["offset"].is_u64(), "{answer:?}");
        assert_eq!(objects[1]["error"]["code"], json!(102));
        assert!(objects[2]["result"]["offset"].is_u64(), "{answer:?}");
    }
    let answer = send(post(r#"{"method":"presence_stats","params":{"channel":"chat:a"}}"#)).await;
    assert_eq!(objects(&answer), [json!({ "result": { "num_clients": 0, "num_users": 0 } })]);
    let answer = send(post(r#"{"method":"fly","params":{}}"#)).await;
    assert_eq!(objects(&answer)[0]["error"]["code"], json!(104));
    assert_eq!(send(post("hello")).await.status, 400);
    assert_eq!(send(post("")).await.status, 400);
    assert_eq!(send(api.post_without_key(url).body(publish)).await.status, 401);
}

#[tokio::test]
async fn presence_history_channels_and_info_see_the_node() {
    let gateway = Gateway::start();
    let api = gateway.api();
    let mut ann = gateway.open().await;
    let token = tests::tokens::connection(json!({ "sub": "ann", "info": { "nick": "Mo" } }));
    let id = ann.connect_with(&token).await["client"].clone();
    let id = id.as_str().expect("an id");
    let mut bob = gateway.connect("bob").await;
    for channel in ["chat:one", "chat:two", "bare:one"] {
        ann.subscribe(channel).await;
    }
    bob.subscribe("chat:one").await;
    let presence = api.ok("presence", json!({ "channel": "chat:one" })).await;
    assert_eq!(presence["presence"][id], json!({ "client": id, "user": "ann", "conn_info": { "nick": "Mo" } }));
    let stats = api.ok("presence_stats", json!({ "channel": "chat:one" })).await;
    assert_eq!(stats, json!({ "num_clients": 2, "num_users": 2 }));

    let all = api.ok("channels", json!({})).await;
    let two = json!({ "num_clients": 2 });
    let one = json!({ "num_clients": 1 });
    assert_eq!(all["channels"], json!({ "chat:one": two, "chat:two": one, "bare:one": one }));
    for (pattern, expected) in [
        ("chat:*", json!({ "chat:one": two, "chat:two": one })),
        ("*:one", json!({ "chat:one": two, "bare:one": one })),
        ("chat:t?o", json!({ "chat:two": one })),
        ("nothing", json!({})),
    ] {
        assert_eq!(api.ok("channels", json!({ "pattern": pattern })).await["channels"], expected, "{pattern}");
    }
    let info = api.ok("info", json!({})).await;
    let nodes = info["nodes"].as_array().expect("a list");
    assert_eq!(nodes.len(), 1);
    let node = &nodes[0];
    for (field, expected) in [("num_clients", 2), ("num_users", 2), ("num_subs", 4), ("num_channels", 3)] {
        assert_eq!(node[field], json!(expected), "{field} of {node}");
    }
    for field in ["uid", "name", "version"] {
        assert!(node[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {node}");
    }

    for n in 1..=3 {
        api.publish("chat:one", json!(n)).await;
    }
    let page = api.ok("history", json!({ "channel": "chat:one", "limit": 2, "reverse": true })).await;
    let publications = json!([{ "data": 3, "offset": 3 }, { "data": 2, "offset": 2 }]);
    assert_eq!(page, json!({ "publications": publications, "epoch": page["epoch"], "offset": 3 }));
    let position = api.ok("history", json!({ "channel": "chat:one" })).await;
    assert_eq!(position, json!({ "publications": [], "epoch": page["epoch"], "offset": 3 }));
    assert_eq!(api.ok("history_remove", json!({ "channel": "chat:one" })).await, json!({}));
    let empty = api.ok("history", json!({ "channel": "chat:one", "limit": 10 })).await;
    assert_eq!(empty, position, "epoch and top stay");
    // The client's limit of 300 does not bind the server API.
    for _ in 0..350 {
        api.publish("log:long", json!(0)).await;
    }
    let page = api.ok("history", json!({ "channel": "log:long", "limit": -1 })).await;
    assert_eq!(page["publications"].as_array().map(Vec::len), Some(350));
}

#[tokio::test]
async fn the_api_can_be_internal_only() {
    let gateway = Gateway::with(&config_with("api", "listen = \"internal\"")).start();
    let answer = send(gateway.api().post("info").body("{}")).await;
    assert_eq!(answer.status, 404, "{answer:?}");
    let internal = tests::api::Api::new(format!("{}/api", gateway.internal_http()), API_KEY);
    internal.ok("info", json!({})).await;
}
