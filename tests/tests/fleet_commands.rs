//! The server API acts on the whole fleet, whichever node is asked.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::client::Client;
use tests::fleet::{Fleet, node};
use tests::front::Front;
use tests::gateway::Gateway;
use tests::redis::{Server, VOLATILE};
use tests::store::Kind;
use tests::tokens::now;

tests::on_every_store! {
    subscribe_unsubscribe_and_refresh_reach_every_node
    disconnect_reaches_every_node_but_for_the_white_list
    channels_and_info_tell_of_all_nodes
    a_node_that_hangs_makes_commands_fail_in_time_and_only_while_it_hangs
    a_command_is_carried_out_by_a_node_that_was_cut_off_when_it_was_given
    commands_fail_fast_without_the_server_and_work_again_with_it
    a_node_that_is_gone_is_waited_for_no_longer_than_its_report_counts
}

/// How long what fails in time may take: two seconds, and some for which a machine may stand still. Less than the 15 s after
/// which a node that hangs is waited for no longer.
const IN_TIME: Duration = Duration::from_secs(10);

/// A connection of this user and its id.
async fn connect(node: &Gateway, user: &str) -> (Client, Value) {
    let mut client = node.open().await;
    let id = client.connect_as(user).await["client"].clone();
    (client, id)
}

async fn subscribe_unsubscribe_and_refresh_reach_every_node(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 2).await;
    let api = fleet[0].api();
    let (mut here, _) = connect(&fleet[0], "ann").await;
    let (mut there, there_id) = connect(&fleet[1], "ann").await;
    let (mut other, _) = connect(&fleet[1], "bob").await;

    api.ok("subscribe", json!({ "user": "ann", "channel": "news:a", "data": { "hello": 1 } })).await;
    for client in [&mut here, &mut there] {
        let push = client.push().await;
        assert_eq!(
            (&push["channel"], &push["subscribe"]["data"]),
            (&json!("news:a"), &json!({ "hello": 1 })),
            "{push}"
        );
    }
    api.publish("news:a", json!(1)).await;
    for client in [&mut here, &mut there] {
        assert_eq!(client.publication("news:a").await["data"], json!(1));
    }
    // One of them only, on the node that was not asked.
    api.ok("unsubscribe", json!({ "user": "ann", "channel": "news:a", "client": there_id })).await;
    assert_eq!(there.push().await["unsubscribe"]["code"], json!(2000));
    api.publish("news:a", json!(2)).await;
    assert_eq!(here.publication("news:a").await["data"], json!(2));
    api.ok("unsubscribe", json!({ "user": "ann", "channel": "news:a" })).await;
    assert_eq!(here.push().await["unsubscribe"]["code"], json!(2000));

    api.ok("refresh", json!({ "user": "ann", "expire_at": now() + 600 })).await;
    for client in [&mut here, &mut there] {
        let push = client.push().await;
        assert!(push["refresh"]["expires"] == json!(true), "{push}");
    }
    api.ok("refresh", json!({ "user": "ann", "expired": true })).await;
    for client in [&mut here, &mut there] {
        client.expect_close(3005, "connection expired").await;
    }
    // None of it was for another user: nothing but the reply comes.
    let reply = other.call(json!({ "rpc": { "method": "nothing" } })).await;
    assert_eq!(reply["error"]["code"], json!(108));
    api.publish("bare:b", json!(1)).await;
    other.subscribe("bare:b").await;
    fleet[0].api().publish("bare:b", json!(2)).await;
    assert_eq!(other.publication("bare:b").await["data"], json!(2));
}

async fn disconnect_reaches_every_node_but_for_the_white_list(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 3).await;
    let (mut first, _) = connect(&fleet[0], "ann").await;
    let (mut second, _) = connect(&fleet[1], "ann").await;
    let (mut kept, kept_id) = connect(&fleet[2], "ann").await;
    let (mut other, _) = connect(&fleet[2], "bob").await;
    let body = json!({ "user": "ann", "whitelist": [kept_id], "disconnect": { "code": 4501, "reason": "one only" } });
    fleet[0].api().ok("disconnect", body).await;
    for client in [&mut first, &mut second] {
        client.expect_close(4501, "one only").await;
    }
    for client in [&mut kept, &mut other] {
        client.subscribe("bare:a").await;
    }
    fleet[1].api().publish("bare:a", json!(1)).await;
    for client in [&mut kept, &mut other] {
        assert_eq!(client.publication("bare:a").await["data"], json!(1), "the very next thing");
    }
    fleet[1].api().ok("disconnect", json!({ "user": "ann" })).await;
    kept.expect_close(3503, "force disconnect").await;
    // Nobody of that name is a success, too.
    fleet[1].api().ok("disconnect", json!({ "user": "nobody" })).await;
}

async fn channels_and_info_tell_of_all_nodes(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 3).await;
    let mut clients = Vec::new();
    for (index, node) in fleet.nodes().iter().enumerate() {
        for user in ["ann", "bob"] {
            let mut client = node.connect(user).await;
            client.subscribe("chat:all").await;
            client.subscribe(&format!("chat:of-{index}")).await;
            clients.push(client);
        }
    }
    let count = |number: u64| json!({ "num_clients": number });
    let all = json!({ "chat:all": count(6), "chat:of-0": count(2), "chat:of-1": count(2), "chat:of-2": count(2) });
    for node in fleet.nodes() {
        assert_eq!(node.api().ok("channels", json!({})).await["channels"], all);
        let some = node.api().ok("channels", json!({ "pattern": "*:of-1" })).await;
        assert_eq!(some["channels"], json!({ "chat:of-1": count(2) }));

        let info = node.api().ok("info", json!({})).await;
        let nodes = info["nodes"].as_array().expect("a list");
        assert_eq!(nodes.len(), 3, "{info}");
        for one in nodes {
            for (field, expected) in [("num_clients", 2), ("num_users", 2), ("num_subs", 4), ("num_channels", 2)] {
                assert_eq!(one[field], json!(expected), "{field} of {one}");
            }
        }
        let mut ids: Vec<&str> = nodes.iter().filter_map(|one| one["uid"].as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 3, "each node once: {info}");
    }
}

async fn a_node_that_hangs_makes_commands_fail_in_time_and_only_while_it_hangs(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 2).await;
    let api = fleet[0].api();
    let (mut ann, _) = connect(&fleet[1], "ann").await;
    ann.subscribe("bare:a").await;
    // The fleet is complete: a command is answered for both nodes.
    assert_eq!(api.ok("info", json!({})).await["nodes"].as_array().map(Vec::len), Some(2));

    fleet[1].freeze();
    for (method, body) in
        [("unsubscribe", json!({ "user": "ann", "channel": "bare:a" })), ("info", json!({})), ("channels", json!({}))]
    {
        let began = Instant::now();
        assert_eq!(api.error(method, body).await, 100, "{method}");
        assert!(began.elapsed() < IN_TIME, "{method} took {:?}", began.elapsed());
    }
    // What needs no other node is not held up.
    let began = Instant::now();
    api.publish("bare:a", json!("meanwhile")).await;
    assert!(began.elapsed() < IN_TIME, "a publish took {:?}", began.elapsed());

    fleet[1].resume();
    // The command was not lost, only late. The publication may have come before it.
    let mut push = ann.push().await;
    while push["pub"].is_object() {
        push = ann.push().await;
    }
    assert_eq!(push["unsubscribe"]["code"], json!(2000), "{push}");
    let works =
        async || api.call("info", json!({})).await["result"]["nodes"].as_array().is_some_and(|all| all.len() == 2);
    tests::until("info to tell of both nodes again", works).await;
    api.ok("disconnect", json!({ "user": "ann" })).await;
    ann.expect_close(3503, "force disconnect").await;
}

async fn a_command_is_carried_out_by_a_node_that_was_cut_off_when_it_was_given(kind: Kind) {
    let store = kind.volatile();
    let front = Front::to_address(&store.address()).await;
    let near = node(&store.config("")).start();
    let far = node(&store.config_through(front.address(), "")).start();
    let fleet = Fleet::of(vec![near, far]).await;
    let api = fleet[0].api();
    for round in 0..3 {
        let user = format!("user-{round}");
        let (mut client, _) = connect(&fleet[1], &user).await;
        front.cut();
        let answer = api.call("disconnect", json!({ "user": user })).await;
        front.lead_to_address(&store.address());
        // The caller may be told that no answer came; then, too, the command is not lost.
        assert!(answer["result"].is_object() || answer["error"]["code"] == json!(100), "{answer}");
        client.expect_close(3503, "force disconnect").await;
        let works =
            async || api.call("info", json!({})).await["result"]["nodes"].as_array().is_some_and(|all| all.len() == 2);
        tests::until("info to tell of both nodes again", works).await;
    }
}

#[tokio::test]
async fn a_command_is_carried_out_though_redis_delivered_it_to_nobody() {
    let redis = Server::start(VOLATILE);
    let fleet = Fleet::start(&redis.config(""), 2).await;
    let api = fleet[0].api();
    for round in 0..5 {
        let user = format!("user-{round}");
        let (mut client, _) = connect(&fleet[1], &user).await;
        // Nobody hears what is published in this moment, neither the command nor the answers.
        redis.admin(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        let began = Instant::now();
        let answer = api.call("disconnect", json!({ "user": user })).await;
        // The caller may be told that no answer came; then, too, the command is not lost.
        assert!(answer["result"].is_object() || answer["error"]["code"] == json!(100), "{answer}");
        println!("round {round}: {answer} after {:?}", began.elapsed());
        client.expect_close(3503, "force disconnect").await;
    }
}

async fn commands_fail_fast_without_the_server_and_work_again_with_it(kind: Kind) {
    let mut store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 2).await;
    let api = fleet[0].api();
    let (mut ann, _) = connect(&fleet[1], "ann").await;
    store.kill();
    for (method, body) in [
        ("disconnect", json!({ "user": "ann" })),
        ("info", json!({})),
        ("channels", json!({})),
        ("presence", json!({ "channel": "chat:a" })),
        ("presence_stats", json!({ "channel": "chat:a" })),
        ("history", json!({ "channel": "chat:a", "limit": 1 })),
        ("history_remove", json!({ "channel": "chat:a" })),
    ] {
        let began = Instant::now();
        assert_eq!(api.error(method, body).await, 100, "{method}");
        assert!(began.elapsed() < IN_TIME, "{method} took {:?}", began.elapsed());
    }
    store.start_again();
    // Whether the one that failed takes effect later is open; that this one does is not.
    let disconnected = async || api.call("disconnect", json!({ "user": "ann" })).await["result"].is_object();
    tests::until("a disconnect to succeed", disconnected).await;
    ann.expect_close(3503, "force disconnect").await;
    let complete =
        async || api.call("info", json!({})).await["result"]["nodes"].as_array().is_some_and(|all| all.len() == 2);
    tests::until("info to tell of both nodes again", complete).await;
}

async fn a_node_that_is_gone_is_waited_for_no_longer_than_its_report_counts(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config("lease_ttl = \"3s\"\nlease_interval = \"1s\""), 3).await;
    let api = fleet[0].api();
    let nodes = async || api.call("info", json!({})).await["result"]["nodes"].as_array().map(Vec::len);
    assert_eq!(nodes().await, Some(3));
    // One that ends in good order is not missed.
    fleet[1].terminate();
    assert_eq!(fleet[1].exit_code().await, 0);
    let left = Instant::now();
    tests::until("the node that left to be forgotten", async || nodes().await == Some(2)).await;
    println!("commands work again {:?} after a node left", left.elapsed());
    assert!(left.elapsed() < IN_TIME, "took {:?}", left.elapsed());
    api.ok("disconnect", json!({ "user": "nobody" })).await;
    fleet[2].kill().await;
    let died = Instant::now();
    tests::until_some_time("the dead node to be forgotten", async || nodes().await == Some(1)).await;
    println!("commands work again {:?} after a node died", died.elapsed());
    assert!(died.elapsed() < Duration::from_secs(15) + IN_TIME, "took {:?}", died.elapsed());
    api.ok("disconnect", json!({ "user": "nobody" })).await;
}
