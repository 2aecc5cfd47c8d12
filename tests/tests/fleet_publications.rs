//! Publications of several nodes on one server: whichever node takes one, subscribers of all nodes are given it, once and
//! in the same order.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::client::Client;
use tests::fleet::Fleet;
use tests::store::Kind;

tests::on_every_store! {
    what_one_node_takes_reaches_the_subscribers_of_all_in_order
    publishers_on_all_nodes_at_once_are_seen_in_one_order_by_all
    a_retry_with_its_idempotency_key_is_harmless_on_any_node
    history_and_positions_are_the_same_on_every_node
}

/// A subscriber on each node.
async fn subscribers(fleet: &Fleet, channel: &str) -> Vec<Client> {
    let mut clients = Vec::new();
    for (index, node) in fleet.nodes().iter().enumerate() {
        let mut client = node.connect(&format!("user-{index}")).await;
        client.subscribe(channel).await;
        clients.push(client);
    }
    clients
}

async fn what_one_node_takes_reaches_the_subscribers_of_all_in_order(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 3).await;
    let mut clients = subscribers(&fleet, "ledger:a").await;
    let mut publisher = fleet[1].connect("publisher").await;
    publisher.subscribe("ledger:a").await;
    // Where publications of the API stand; clients are not told.
    let mut told = BTreeMap::new();
    for n in 1..=30_u64 {
        if n % 4 == 0 {
            let command = json!({ "publish": { "channel": "ledger:a", "data": { "n": n } } });
            let reply = publisher.call(command).await;
            assert_eq!(reply["publish"], json!({}), "{reply}");
        } else {
            let node = &fleet[usize::try_from(n).expect("a small number") % 3];
            told.insert(n, node.api().publish("ledger:a", json!({ "n": n })).await["offset"].clone());
        }
    }
    clients.push(publisher);
    let mut orders = Vec::new();
    for client in &mut clients {
        let mut offsets = Vec::new();
        for n in 1..=30 {
            let publication = client.publication("ledger:a").await;
            assert_eq!(publication["data"], json!({ "n": n }), "{publication}");
            assert!(told.get(&n).is_none_or(|offset| *offset == publication["offset"]), "{told:?}: {publication}");
            offsets.push(publication["offset"].as_u64().expect("an offset"));
            let of_client = publication["info"]["user"] == json!("publisher");
            assert_eq!(of_client, n % 4 == 0, "who published: {publication}");
        }
        assert!(offsets.is_sorted_by(|a, b| a < b), "{offsets:?}");
        orders.push(offsets);
    }
    assert!(orders.iter().all(|offsets| *offsets == orders[0]), "the same offsets everywhere: {orders:?}");

    // Without history, too.
    let mut clients = subscribers(&fleet, "bare:a").await;
    for (index, node) in fleet.nodes().iter().enumerate() {
        assert_eq!(node.api().publish("bare:a", json!({ "n": index })).await, json!({}));
        for client in &mut clients {
            assert_eq!(client.publication("bare:a").await, json!({ "data": { "n": index } }));
        }
    }
    let channels = json!(["bare:a", "nosuch:a", "ledger:a"]);
    let result = fleet[2].api().ok("broadcast", json!({ "channels": channels, "data": "to all" })).await;
    let offset = result["responses"][2]["result"]["offset"].as_u64();
    assert!(offset > orders[0].last().copied(), "{result}");
    for client in &mut clients {
        assert_eq!(client.publication("bare:a").await, json!({ "data": "to all" }));
    }
}

async fn publishers_on_all_nodes_at_once_are_seen_in_one_order_by_all(kind: Kind) {
    const EACH: u64 = 100;
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 3).await;
    let mut clients = subscribers(&fleet, "ledger:a").await;
    let publishers = fleet.nodes().iter().enumerate().map(|(index, node)| async move {
        let api = node.api();
        for n in 0..EACH {
            api.publish("ledger:a", json!([index, n])).await;
        }
    });
    join_all(publishers).await;
    let mut orders = Vec::new();
    for client in &mut clients {
        let (mut order, mut last) = (Vec::new(), None);
        for _ in 0..3 * EACH {
            let publication = client.publication("ledger:a").await;
            let offset = publication["offset"].as_u64();
            assert!(offset > last, "{publication} after {last:?}");
            last = offset;
            order.push(publication["data"].clone());
        }
        orders.push(order);
    }
    for order in &orders {
        assert_eq!(order, &orders[0], "the same order everywhere");
        for publisher in 0..3 {
            let numbers: Vec<&Value> =
                order.iter().filter(|data| data[0] == json!(publisher)).map(|data| &data[1]).collect();
            assert!(numbers.iter().map(|n| n.as_u64()).eq((0..EACH).map(Some)), "a publisher's own order: {numbers:?}");
        }
    }
}

async fn a_retry_with_its_idempotency_key_is_harmless_on_any_node(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 2).await;
    for channel in ["ledger:a", "bare:a"] {
        let mut clients = subscribers(&fleet, channel).await;
        let body = |n: u64, key: &str| json!({ "channel": channel, "data": n, "idempotency_key": key });
        let first = fleet[0].api().ok("publish", body(1, "a")).await;
        for node in fleet.nodes() {
            assert_eq!(node.api().ok("publish", body(2, "a")).await, first, "the result of the first");
        }
        fleet[1].api().ok("publish", body(3, "b")).await;
        for client in &mut clients {
            assert_eq!(client.publication(channel).await["data"], json!(1));
            assert_eq!(client.publication(channel).await["data"], json!(3));
        }
    }
}

async fn history_and_positions_are_the_same_on_every_node(kind: Kind) {
    let store = kind.volatile();
    let mut fleet = Fleet::start(&store.config(""), 2).await;
    for n in 1..=5 {
        fleet[n % 2].api().publish("ledger:a", json!({ "n": n })).await;
    }
    // A node that was not there knows it, too.
    fleet.grow(&store.config("")).await;
    let mut pages = Vec::new();
    for node in fleet.nodes() {
        pages.push(node.api().ok("history", json!({ "channel": "ledger:a", "limit": 10 })).await);
    }
    assert_eq!(pages[0]["publications"].as_array().map(Vec::len), Some(5), "{}", pages[0]);
    assert!(pages.iter().all(|page| page == &pages[0]), "{pages:?}");
    let (epoch, top) = (&pages[0]["epoch"], pages[0]["offset"].as_u64());
    let second = &pages[0]["publications"][1]["offset"];
    let request = json!({ "channel": "ledger:a", "recover": true, "offset": second, "epoch": epoch });
    for node in fleet.nodes() {
        let result = node.connect("ann").await.subscribe_with(request.clone()).await;
        let numbers: Vec<&Value> =
            result["publications"].as_array().expect("a list").iter().map(|one| &one["data"]["n"]).collect();
        assert_eq!((&result["recovered"], numbers), (&json!(true), vec![&json!(3), &json!(4), &json!(5)]));
    }
    fleet[2].api().ok("history_remove", json!({ "channel": "ledger:a" })).await;
    for node in fleet.nodes() {
        let page = node.api().ok("history", json!({ "channel": "ledger:a", "limit": 10 })).await;
        assert_eq!((&page["publications"], &page["epoch"]), (&json!([]), epoch), "the epoch stays");
        assert!(page["offset"].as_u64() >= top, "the top never goes back: {page}");
        // What was read for a client just before is shared for a second (hub.recovery_share).
        let refused = async || {
            let result = node.connect("ann").await.subscribe_with(request.clone()).await;
            result["was_recovering"] == json!(true) && result.get("recovered").is_none()
        };
        tests::until("nobody to recover what was removed", refused).await;
    }
}
