//! Positions and recovery (protocol sections 4.3 to 4.5): the fields of the reply, and the order of what follows it.

use serde_json::{Value, json};
use tests::gateway::Gateway;

/// The subscribe result for this request.
async fn subscribe(gateway: &Gateway, request: Value) -> Value {
    gateway.connect("ann").await.subscribe_with(request).await
}

async fn publish(gateway: &Gateway, channel: &str, count: u64) -> Value {
    let mut result = json!({});
    for _ in 0..count {
        result = gateway.api().publish(channel, json!({})).await;
    }
    result["epoch"].clone()
}

fn offsets(result: &Value) -> Vec<u64> {
    let publications = result["publications"].as_array().map(Vec::as_slice).unwrap_or_default();
    publications.iter().map(|one| one["offset"].as_u64().expect("an offset")).collect()
}

#[tokio::test]
async fn the_reply_has_the_right_offset_whether_recovered_or_not() {
    let gateway = Gateway::start();
    let epoch = publish(&gateway, "chat:a", 15).await;
    let recover =
        |offset: u64, epoch: &Value| json!({ "channel": "chat:a", "recover": true, "offset": offset, "epoch": epoch });

    let fresh = subscribe(&gateway, json!({ "channel": "chat:a" })).await;
    assert_eq!(fresh, json!({ "recoverable": true, "positioned": true, "epoch": epoch, "offset": 15 }));

    // Recovered: the client's own offset is echoed.
    let result = subscribe(&gateway, recover(12, &epoch)).await;
    assert_eq!(offsets(&result), [13, 14, 15]);
    assert_eq!(
        (&result["recovered"], &result["was_recovering"], &result["offset"]),
        (&json!(true), &json!(true), &json!(12))
    );
    assert_eq!(result["epoch"], epoch);
    let oldest = subscribe(&gateway, recover(5, &epoch)).await;
    assert_eq!(offsets(&oldest), (6..=15).collect::<Vec<u64>>());
    let nothing_missed = subscribe(&gateway, recover(15, &epoch)).await;
    assert_eq!((&nothing_missed["recovered"], offsets(&nothing_missed).len()), (&json!(true), 0));
    // An unknown epoch compares offsets only.
    let unknown = subscribe(&gateway, json!({ "channel": "chat:a", "recover": true, "offset": 14 })).await;
    assert_eq!((&unknown["recovered"], offsets(&unknown)), (&json!(true), vec![15]));

    // Not recovered: the top, and no publications.
    for (what, request) in [
        ("one is gone", recover(4, &epoch)),
        ("all are new", recover(0, &epoch)),
        ("from the future", recover(16, &epoch)),
        ("another epoch", recover(14, &json!("other"))),
        ("another epoch at the top", recover(15, &json!("other"))),
    ] {
        let result = subscribe(&gateway, request).await;
        let expected =
            json!({ "recoverable": true, "positioned": true, "was_recovering": true, "epoch": epoch, "offset": 15 });
        assert_eq!(result, expected, "{what}");
    }
    // Strict recovery asks for an error instead.
    let mut strict = recover(4, &epoch);
    strict["flag"] = json!(3);
    let mut client = gateway.connect("ann").await;
    let reply = client.call(json!({ "subscribe": strict })).await;
    assert_eq!(reply["error"], json!({ "code": 112, "message": "unrecoverable position" }));
    client.subscribe("chat:a").await;
}

#[tokio::test]
async fn recovery_is_for_those_who_may() {
    let gateway = Gateway::start();
    let epoch = publish(&gateway, "ask:a", 3).await;
    let plain = subscribe(&gateway, json!({ "channel": "ask:a" })).await;
    assert_eq!(plain, json!({}));
    let recoverable = subscribe(&gateway, json!({ "channel": "ask:a", "recoverable": true })).await;
    assert_eq!(recoverable, json!({ "recoverable": true, "positioned": true, "epoch": epoch, "offset": 3 }));
    let positioned = subscribe(&gateway, json!({ "channel": "ask:a", "positioned": true })).await;
    assert_eq!(positioned, json!({ "positioned": true, "epoch": epoch, "offset": 3 }));
    // Where it is not allowed it is silently not enabled, and asking to recover is echoed only.
    let request = json!({ "channel": "bare:a", "recoverable": true, "positioned": true, "recover": true, "offset": 3 });
    assert_eq!(subscribe(&gateway, request).await, json!({ "was_recovering": true }));
}

#[tokio::test]
async fn cache_mode_delivers_the_latest_only() {
    let gateway = Gateway::start();
    let recover = |more: Value| {
        let mut request = more;
        request["channel"] = json!("latest:a");
        request["recover"] = json!(true);
        request
    };
    let empty = subscribe(&gateway, recover(json!({}))).await;
    assert!(empty.get("recovered").is_none() && empty["was_recovering"] == json!(true), "{empty}");
    let epoch = publish(&gateway, "latest:a", 3).await;
    let latest = subscribe(&gateway, recover(json!({}))).await;
    assert_eq!((&latest["recovered"], offsets(&latest)), (&json!(true), vec![3]));
    let behind = subscribe(&gateway, recover(json!({ "offset": 1, "epoch": epoch }))).await;
    assert_eq!((&behind["recovered"], offsets(&behind)), (&json!(true), vec![3]));
    let same = subscribe(&gateway, recover(json!({ "offset": 3, "epoch": epoch }))).await;
    assert_eq!((&same["recovered"], offsets(&same)), (&json!(true), vec![]));
    let without = subscribe(&gateway, json!({ "channel": "latest:a" })).await;
    assert!(offsets(&without).is_empty() && without.get("recovered").is_none(), "{without}");
}

#[tokio::test]
async fn a_removed_history_keeps_epoch_and_top() {
    let gateway = Gateway::start();
    let epoch = publish(&gateway, "chat:a", 3).await;
    gateway.api().ok("history_remove", json!({ "channel": "chat:a" })).await;
    let request = |offset: u64| json!({ "channel": "chat:a", "recover": true, "offset": offset, "epoch": epoch });
    let lost = subscribe(&gateway, request(2)).await;
    assert!(lost.get("recovered").is_none() && lost["offset"] == json!(3) && lost["epoch"] == epoch, "{lost}");
    let at_top = subscribe(&gateway, request(3)).await;
    assert_eq!(at_top["recovered"], json!(true), "{at_top}");
}

#[tokio::test]
async fn the_reply_precedes_every_push_and_nothing_is_lost_or_repeated() {
    let gateway = Gateway::start();
    let api = gateway.api();
    let epoch = publish(&gateway, "log:race", 1).await;
    let total = 600_u64;
    let publisher = async {
        for _ in 1..total {
            api.publish("log:race", json!({})).await;
        }
    };
    let subscribers = async {
        let mut seen_from = 1;
        for _ in 0..40 {
            let mut client = gateway.connect("ann").await;
            let request = json!({ "channel": "log:race", "recover": true, "offset": seen_from, "epoch": epoch });
            client.send_json(json!({ "subscribe": request, "id": 2 })).await;
            // In order, whatever comes: the very first message must be the reply.
            let first = client.message().await;
            assert_eq!(first["id"], json!(2), "a push came before the subscribe reply: {first}");
            let result = &first["subscribe"];
            assert_eq!(result["recovered"], json!(true), "{result}");
            let mut last = seen_from;
            for offset in offsets(result) {
                assert_eq!(offset, last + 1, "in the reply");
                last = offset;
            }
            for _ in 0..5 {
                if last == total {
                    break;
                }
                let offset = client.publication("log:race").await["offset"].as_u64().expect("an offset");
                assert_eq!(offset, last + 1, "after the reply");
                last = offset;
            }
            // The next one recovers less than the limit of 300.
            seen_from = last.saturating_sub(50).max(1);
        }
    };
    tokio::join!(publisher, subscribers);
}

#[tokio::test]
async fn recovery_stops_at_its_limit() {
    let gateway = Gateway::start();
    let epoch = publish(&gateway, "log:long", 400).await;
    let recover = |offset: u64| json!({ "channel": "log:long", "recover": true, "offset": offset, "epoch": epoch });
    let within = subscribe(&gateway, recover(100)).await;
    assert_eq!((&within["recovered"], offsets(&within).len()), (&json!(true), 300));
    let beyond = subscribe(&gateway, recover(99)).await;
    assert!(beyond.get("recovered").is_none() && beyond["offset"] == json!(400), "{beyond}");
}
