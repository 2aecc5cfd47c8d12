//! Publishing, presence, history and the commands without a handler, over one connection.

use serde_json::{Value, json};
use tests::gateway::Gateway;

#[tokio::test]
async fn a_publication_has_its_publisher_and_offset_and_the_reply_a_result() {
    let gateway = Gateway::start();
    let mut client = gateway.open().await;
    let token = tests::tokens::connection(json!({ "sub": "ann", "info": { "nick": "Mo" } }));
    let id = client.connect_with(&token).await["client"].clone();
    client.subscribe("chat:a").await;
    let reply = client.call(json!({ "publish": { "channel": "chat:a", "data": { "text": "hi" } } })).await;
    assert_eq!(reply["publish"], json!({}), "{reply}");
    let publication = client.publication("chat:a").await;
    let info = json!({ "user": "ann", "client": id, "conn_info": { "nick": "Mo" } });
    assert_eq!(publication, json!({ "data": { "text": "hi" }, "info": info, "offset": 1 }));
    // The server's publications have no publisher, and a channel without history has no offset.
    gateway.api().ok("publish", json!({ "channel": "chat:a", "data": [1, null], "tags": { "kind": "system" } })).await;
    let expected = json!({ "data": [1, null], "offset": 2, "tags": { "kind": "system" } });
    assert_eq!(client.publication("chat:a").await, expected);
    client.subscribe("bare:a").await;
    let result = gateway.api().publish("bare:a", json!("text")).await;
    assert_eq!(result, json!({}), "no position without history");
    assert_eq!(client.publication("bare:a").await, json!({ "data": "text" }));
}

#[tokio::test]
async fn refusals_of_operations() {
    let gateway = Gateway::start();
    let mut client = gateway.connect("ann").await;
    client.subscribe("bare:a").await;
    let refusals = [
        ("publish, not subscribed", json!({ "publish": { "channel": "chat:a", "data": 1 } }), 103, "permission denied"),
        ("publish, unknown", json!({ "publish": { "channel": "nosuch:a", "data": 1 } }), 102, "unknown channel"),
        ("publish, no payload", json!({ "publish": { "channel": "bare:a" } }), 107, "bad request"),
        ("presence, off", json!({ "presence": { "channel": "bare:a" } }), 108, "not available"),
        ("presence, not subscribed", json!({ "presence": { "channel": "chat:a" } }), 103, "permission denied"),
        ("stats, off", json!({ "presence_stats": { "channel": "bare:a" } }), 108, "not available"),
        ("history, off", json!({ "history": { "channel": "bare:a" } }), 108, "not available"),
        ("history, not subscribed", json!({ "history": { "channel": "chat:a" } }), 103, "permission denied"),
        ("rpc", json!({ "rpc": { "method": "any", "data": {} } }), 108, "not available"),
    ];
    for (what, command, code, message) in refusals {
        let reply = client.call(command).await;
        assert_eq!(reply["error"], json!({ "code": code, "message": message }), "{what}");
    }
}

#[tokio::test]
async fn operations_without_a_channel_or_handler_close() {
    let gateway = Gateway::start();
    for (command, code, reason) in [
        (json!({ "publish": { "data": 1 }, "id": 2 }), 3501, "bad request"),
        (json!({ "unsubscribe": {}, "id": 2 }), 3501, "bad request"),
        (json!({ "presence": {}, "id": 2 }), 3501, "bad request"),
        (json!({ "presence_stats": {}, "id": 2 }), 3501, "bad request"),
        (json!({ "history": {}, "id": 2 }), 3501, "bad request"),
        (json!({ "sub_refresh": { "token": "abc" }, "id": 2 }), 3501, "bad request"),
        (json!({ "send": { "data": {} } }), 3508, "not available"),
        (json!({ "id": 2 }), 3501, "bad request"),
        (json!({ "ping": {}, "id": 2 }), 3501, "bad request"),
        (json!({ "fly": {}, "id": 2 }), 3501, "bad request"),
    ] {
        let mut client = gateway.connect("ann").await;
        client.send_json(command.clone()).await;
        let closed = client.closed_next().await;
        assert_eq!((closed.code, closed.reason.as_str()), (Some(code), reason), "{command}");
    }
}

#[tokio::test]
async fn presence_has_every_member_with_user_and_client() {
    let gateway = Gateway::start();
    let mut ann = gateway.connect("ann").await;
    let mut twin = gateway.connect("ann").await;
    ann.subscribe("chat:a").await;
    twin.subscribe("chat:a").await;
    let reply = ann.call(json!({ "presence": { "channel": "chat:a" } })).await;
    let members = reply["presence"]["presence"].as_object().expect("a map");
    assert_eq!(members.len(), 2);
    for (client, info) in members {
        assert_eq!(info, &json!({ "user": "ann", "client": client }));
    }
    let reply = ann.call(json!({ "presence_stats": { "channel": "chat:a" } })).await;
    assert_eq!(reply["presence_stats"], json!({ "num_clients": 2, "num_users": 1 }));
    // Listed fields are there even when they are zero.
    let stats = gateway.api().ok("presence_stats", json!({ "channel": "chat:empty" })).await;
    assert_eq!(stats, json!({ "num_clients": 0, "num_users": 0 }));
    let presence = gateway.api().ok("presence", json!({ "channel": "chat:empty" })).await;
    assert_eq!(presence, json!({ "presence": {} }));
}

#[tokio::test]
async fn history_pages_in_both_directions() {
    let gateway = Gateway::start();
    let mut client = gateway.connect("ann").await;
    client.subscribe("chat:a").await;
    let reply = client.call(json!({ "history": { "channel": "chat:a" } })).await;
    let epoch = reply["history"]["epoch"].clone();
    assert_eq!(reply["history"], json!({ "publications": [], "epoch": epoch, "offset": 0 }), "always all three");
    for n in 1..=5 {
        gateway.api().publish("chat:a", json!(n)).await;
    }
    let offsets = |reply: &Value| -> Vec<u64> {
        let publications = reply["history"]["publications"].as_array().expect("a list");
        publications.iter().map(|one| one["offset"].as_u64().expect("an offset")).collect()
    };
    let since = |offset: u64| json!({ "offset": offset, "epoch": epoch });
    for (what, request, expected) in [
        ("a position only", json!({}), vec![]),
        ("everything", json!({ "limit": -1 }), vec![1, 2, 3, 4, 5]),
        ("the oldest", json!({ "limit": 2 }), vec![1, 2]),
        ("the newest", json!({ "limit": 2, "reverse": true }), vec![5, 4]),
        ("after", json!({ "limit": 2, "since": since(2) }), vec![3, 4]),
        ("before", json!({ "limit": 2, "since": since(3), "reverse": true }), vec![2, 1]),
        ("after the last", json!({ "limit": 2, "since": since(5) }), vec![]),
    ] {
        let mut request = request;
        request["channel"] = json!("chat:a");
        let reply = client.call(json!({ "history": request })).await;
        assert_eq!(offsets(&reply), expected, "{what}");
        assert_eq!((&reply["history"]["offset"], &reply["history"]["epoch"]), (&json!(5), &epoch), "{what}");
    }
    for (what, request, code) in [
        ("another epoch", json!({ "limit": 1, "since": { "offset": 1, "epoch": "other" } }), 112),
        ("backwards from zero", json!({ "limit": 1, "since": since(0), "reverse": true }), 107),
    ] {
        let mut request = request;
        request["channel"] = json!("chat:a");
        assert_eq!(client.error_code(json!({ "history": request })).await, code, "{what}");
    }
}

#[tokio::test]
async fn a_payload_that_is_not_json_cannot_reach_a_json_connection() {
    let gateway = Gateway::start();
    let mut client = gateway.connect("ann").await;
    let mut other = gateway.connect("bob").await;
    client.subscribe("binary:a").await;
    other.subscribe("bare:b").await;
    gateway.api().ok("publish", json!({ "channel": "binary:a", "b64data": "AAEC" })).await;
    client.expect_close(3506, "inappropriate protocol").await;
    gateway.api().publish("bare:b", json!(1)).await;
    other.publication("bare:b").await;
}

#[tokio::test]
async fn payload_formats_are_checked() {
    let gateway = Gateway::start();
    let api = gateway.api();
    // `b64data` wins over `data`; these are `nope`, `[1]` and `{}`.
    for (channel, b64data, code) in [
        ("json:a", "bm9wZQ==", Some(107)),
        ("json:a", "WzFd", None),
        ("object:a", "WzFd", Some(107)),
        ("object:a", "e30=", None),
        ("bare:a", "WzFd", None),
        ("binary:a", "", None),
        ("bare:a", "", Some(107)),
    ] {
        let body = json!({ "channel": channel, "b64data": b64data });
        match code {
            Some(code) => assert_eq!(api.error("publish", body).await, code, "{channel} {b64data}"),
            None => assert_eq!(api.ok("publish", body).await, json!({}), "{channel} {b64data}"),
        }
    }
}

#[tokio::test]
async fn newlines_in_a_payload_do_not_break_the_framing() {
    let gateway = Gateway::start();
    let mut client = gateway.connect("ann").await;
    client.subscribe("chat:a").await;
    let body = "{\"channel\": \"chat:a\",\n \"data\": {\n  \"text\":\r\n  \"a\\nb\"\n}\n}";
    let answer = tests::api::send(gateway.api().post("publish").body(body)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(client.publication("chat:a").await["data"], json!({ "text": "a\nb" }));
    client.send_text("{\"publish\":{\"channel\":\"chat:a\",\"data\":{ \"n\" :\t1 }},\"id\":50}\n").await;
    // The order of the reply and the push is open.
    assert_eq!(client.reply(50).await["publish"], json!({}));
    assert_eq!(client.publication("chat:a").await["data"], json!({ "n": 1 }));
    let history = gateway.api().ok("history", json!({ "channel": "chat:a", "limit": 10 })).await;
    assert_eq!(history["publications"].as_array().map(Vec::len), Some(2), "{history}");
}
