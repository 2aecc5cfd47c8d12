//! Presence, joins and leaves across nodes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::fleet::{Fleet, node};
use tests::store::Kind;

tests::on_every_store! {
    every_node_shows_the_members_on_all_nodes
    joins_and_leaves_are_heard_on_all_nodes_once
    members_are_back_when_the_server_has_forgotten_them
    nobody_leaves_because_everything_stood_still
}

async fn every_node_shows_the_members_on_all_nodes(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 2).await;
    let token = tests::tokens::connection(json!({ "sub": "ann", "info": { "nick": "Mo" } }));
    let mut ann = fleet[0].open().await;
    let ann_id = ann.connect_with(&token).await["client"].clone();
    ann.subscribe("chat:a").await;
    // One user with a connection on each node, and another.
    let mut ann_again = fleet[1].open().await;
    let again_id = ann_again.connect_with(&token).await["client"].clone();
    let mut bob = fleet[1].open().await;
    let bob_id = bob.connect_as("bob").await["client"].clone();
    for client in [&mut ann_again, &mut bob] {
        client.subscribe("chat:a").await;
    }
    let text = |id: &Value| id.as_str().expect("an id").to_owned();
    let mut expected = json!({});
    for id in [&ann_id, &again_id] {
        expected[text(id)] = json!({ "client": id, "user": "ann", "conn_info": { "nick": "Mo" } });
    }
    expected[text(&bob_id)] = json!({ "client": bob_id, "user": "bob" });
    let body = json!({ "channel": "chat:a" });
    for node in fleet.nodes() {
        assert_eq!(node.api().ok("presence", body.clone()).await["presence"], expected);
        let stats = node.api().ok("presence_stats", body.clone()).await;
        assert_eq!(stats, json!({ "num_clients": 3, "num_users": 2 }));
    }
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.call(json!({ "presence": body })).await["presence"]["presence"], expected);
        let stats = client.call(json!({ "presence_stats": body })).await;
        assert_eq!(stats["presence_stats"], json!({ "num_clients": 3, "num_users": 2 }));
    }

    // Each way of going is seen on the other node, soon after the client was told.
    let reply = bob.call(json!({ "unsubscribe": { "channel": "chat:a" } })).await;
    assert_eq!(reply["unsubscribe"], json!({}), "{reply}");
    let left = async || {
        let stats = ann.call(json!({ "presence_stats": body })).await;
        stats["presence_stats"] == json!({ "num_clients": 2, "num_users": 1 })
    };
    tests::until("the presence entry of a client that unsubscribed to go", left).await;
    ann_again.vanish();
    let gone =
        async || fleet[0].api().ok("presence_stats", body.clone()).await == json!({ "num_clients": 1, "num_users": 1 });
    tests::until("the presence entry of a connection that is gone to go", gone).await;
}

async fn joins_and_leaves_are_heard_on_all_nodes_once(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 2).await;
    let mut ann = fleet[0].connect("ann").await;
    ann.subscribe("lobby:a").await;
    // Her own.
    assert_eq!(ann.push().await["join"]["info"]["user"], json!("ann"));
    for round in 0..3 {
        let mut bob = fleet[1].open().await;
        let id = bob.connect_as("bob").await["client"].clone();
        bob.subscribe("lobby:a").await;
        let join = ann.push().await;
        assert_eq!(join, json!({ "channel": "lobby:a", "join": { "info": { "user": "bob", "client": id } } }));
        match round {
            0 => drop(bob.call(json!({ "unsubscribe": { "channel": "lobby:a" } })).await),
            1 => drop(fleet[0].api().ok("disconnect", json!({ "user": "bob" })).await),
            _ => bob.vanish(),
        }
        let leave = ann.push().await;
        assert_eq!(leave, json!({ "channel": "lobby:a", "leave": { "info": { "user": "bob", "client": id } } }));
    }
    // Nothing came twice: the next thing is this.
    fleet[1].api().publish("lobby:a", json!("the end")).await;
    assert_eq!(ann.publication("lobby:a").await["data"], json!("the end"));
}

/// As on a host that is paused: afterwards every lease is older than it may be, and one node is the first to look.
async fn nobody_leaves_because_everything_stood_still(kind: Kind) {
    const LEASE: Duration = Duration::from_secs(4);
    let store = kind.volatile();
    let way = store.config("lease_ttl = \"4s\"\nlease_interval = \"500ms\"");
    // The watchers are not read from for long, and so answer no ping.
    let start = || node(&way).env("EVENKEEL_CLIENT__PING_INTERVAL", "10m").start();
    let fleet = Fleet::of(vec![start(), start()]).await;
    let mut watchers = Vec::new();
    for (node, user) in fleet.nodes().iter().zip(["ann", "bob"]) {
        let mut watcher = node.connect(user).await;
        watcher.subscribe("lobby:a").await;
        watchers.push(watcher);
    }
    let all_there = async || {
        let mut seen = Vec::new();
        for node in fleet.nodes() {
            seen.push(node.api().call("presence_stats", json!({ "channel": "lobby:a" })).await);
        }
        seen.iter().all(|stats| stats["result"]["num_clients"] == json!(2))
    };
    tests::until("both to be there", all_there).await;
    for node in fleet.nodes() {
        node.freeze();
    }
    store.freeze();
    // Time has to pass.
    tokio::time::sleep(LEASE + LEASE / 4).await;
    store.resume();
    fleet[0].resume();
    // The other one comes later, but in time for a lease that began now.
    tokio::time::sleep(LEASE / 4).await;
    fleet[1].resume();
    // Whoever is taken for dead is so within a lease and what it takes to look.
    let resumed = Instant::now();
    while resumed.elapsed() < LEASE + LEASE / 2 {
        tests::until("both to be there again", all_there).await;
        tokio::time::sleep(LEASE / 10).await;
    }
    fleet[0].api().publish("lobby:a", json!("all there")).await;
    for watcher in &mut watchers {
        loop {
            let push = watcher.push().await;
            assert!(push["leave"].is_null(), "{push}");
            if push["pub"]["data"] == json!("all there") {
                break;
            }
        }
    }
}

async fn members_are_back_when_the_server_has_forgotten_them(kind: Kind) {
    let mut store = kind.volatile();
    // No lease ends while the machine stands still for some seconds.
    let fleet = Fleet::start(&store.config("lease_ttl = \"15s\"\nlease_interval = \"1s\""), 2).await;
    let mut ann = fleet[0].connect("ann").await;
    ann.subscribe("lobby:a").await;
    assert_eq!(ann.push().await["join"]["info"]["user"], json!("ann"));
    let mut bob = fleet[1].connect("bob").await;
    bob.subscribe("lobby:a").await;
    assert_eq!(ann.push().await["join"]["info"]["user"], json!("bob"));
    let restorations = async || fleet[0].metric("gateway_backplane_restorations_total ").await;
    for round in 1..=2 {
        let before = restorations().await;
        store.kill();
        store.start_again();
        // Before that nothing reaches her, and this channel keeps no history.
        tests::until("deliveries to her node to be back", async || restorations().await > before).await;
        for node in fleet.nodes() {
            let there = async || {
                let stats = node.api().call("presence_stats", json!({ "channel": "lobby:a" })).await;
                stats["result"] == json!({ "num_clients": 2, "num_users": 2 })
            };
            tests::until("both to be present again", there).await;
        }
        // They have never been away: nobody is told anything.
        let published = async || {
            fleet[1].api().call("publish", json!({ "channel": "lobby:a", "data": round })).await["result"].is_object()
        };
        tests::until("a publish to succeed", published).await;
        assert_eq!(ann.publication("lobby:a").await["data"], json!(round), "the very next thing");
    }
}
