//! Clients that come back on another node are given what they missed, and nothing twice: the real SDKs, moved by a load
//! balancer and by the death of their node.

use serde_json::json;
use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::front::Front;
use tests::store::Kind;
use tests::until;

tests::on_every_store! {
    javascript_in_node
    javascript_in_chromium
    python
}

const CHANNEL: &str = "ledger:a";

async fn javascript_in_node(kind: Kind) {
    moves(kind, Agent::node().await).await;
}

async fn javascript_in_chromium(kind: Kind) {
    moves(kind, Agent::chromium().await).await;
}

async fn python(kind: Kind) {
    moves(kind, Agent::python().await).await;
}

/// From node 0 to node 1, and to node 2 when node 1 dies.
async fn moves(kind: Kind, mut agent: Agent) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 3).await;
    let front = Front::to(&fleet[0]).await;
    agent.connect("ann", front.url()).await;
    agent.subscribe("ann", CHANNEL).await;
    let mut n = 0;
    let mut publish = async |node: usize| {
        n += 1;
        fleet[node].api().publish(CHANNEL, json!({ "n": n })).await;
        n
    };
    let seen = publish(0).await;
    agent.take_number("ann", CHANNEL, seen).await;

    front.cut();
    agent.take_that("ann", "", "connecting", |context| context["code"] != json!(0)).await;
    for node in [0, 1, 2, 0] {
        publish(node).await;
    }
    front.lead_to(&fleet[1]);
    let again = agent.take_from("ann", CHANNEL, "subscribed").await;
    assert_eq!((&again["wasRecovering"], &again["recovered"]), (&json!(true), &json!(true)), "{again}");
    until("it to be on the second node", async || connections(&fleet).await == [0, 1, 0]).await;
    // Publishing goes on where it is not.
    let seen = publish(2).await;
    agent.take_number("ann", CHANNEL, seen).await;

    fleet[1].kill().await;
    agent.take_that("ann", "", "connecting", |context| context["code"] != json!(0)).await;
    for node in [0, 2, 2] {
        publish(node).await;
    }
    front.lead_to(&fleet[2]);
    let again = agent.take_from("ann", CHANNEL, "subscribed").await;
    assert_eq!((&again["wasRecovering"], &again["recovered"]), (&json!(true), &json!(true)), "{again}");
    // It publishes from where it is now.
    agent.ok(json!({ "op": "publish", "client": "ann", "channel": CHANNEL, "data": { "n": n + 1 } })).await;
    agent.take_number("ann", CHANNEL, n + 1).await;
    assert!(agent.numbers("ann", CHANNEL).into_iter().eq(1..=n + 1), "{:?}", agent.numbers("ann", CHANNEL));
}

/// Connections of each node.
async fn connections(fleet: &Fleet) -> Vec<u64> {
    let mut counts = Vec::new();
    for node in fleet.nodes() {
        counts.push(node.metric("gateway_connections ").await.unwrap_or(-1.0) as u64);
    }
    counts
}
