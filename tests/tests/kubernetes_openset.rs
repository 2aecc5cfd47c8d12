//! Real gateways as pods of a small API server: the slices list the ones with the fewest connections, one of them writes,
//! and nothing that clients need depends on it.

use std::net::Ipv4Addr;

use apiserver::Options;
use serde_json::{Value, json};
use tests::api::send;
use tests::client::Client;
use tests::fleet::Fleet;
use tests::gateway::Gateway;
use tests::pods::{NAMESPACE, Pods, name, rebalancing, writer};
use tests::store::{Kind, Store};
use tests::{until, until_some_time};

/// Gateways. With three or fewer pods all are open, so there is one pod more, which has no gateway: nobody knows how full
/// it is, and it counts as average.
const GATEWAYS: usize = 3;

/// Connections of the fullest gateway.
const FULL: usize = 40;

/// Nothing moves unless a scenario wants it to.
const NOTHING_MOVES: &str = "[rebalance]\nmin_age = \"1h\"\n";

/// A cluster with gateways in it.
struct Cluster {
    pods: Pods,
    fleet: Fleet,
    _store: Store,
}

impl Cluster {
    async fn start(more: &str) -> Self {
        let pods = Pods::start(Options::default()).await;
        (0..=GATEWAYS).for_each(|number| pods.add(number, Ipv4Addr::new(127, 0, 1, number as u8 + 1)));
        let store = Kind::Redis.volatile();
        let way = store.config("") + more;
        // Clients are held and not read from, so they answer no ping.
        let start = |number| pods.gateway(number, &way).env("EVENKEEL_CLIENT__PING_INTERVAL", "10m").start();
        let fleet = Fleet::of((0..GATEWAYS).map(start).collect()).await;
        Self { pods, fleet, _store: store }
    }

    /// Fills the first gateway, and waits until the slices list just the two empty ones.
    async fn fill_the_first(&self) -> Vec<Client> {
        let mut clients = Vec::new();
        for user in 0..FULL {
            let mut client = self.fleet[0].connect(&format!("user-{user}")).await;
            client.subscribe("chat:all").await;
            clients.push(client);
        }
        self.pods.until_published([1, 2]).await;
        clients
    }

    /// The gateway that writes the slices, when there is one.
    async fn writer(&self, among: impl IntoIterator<Item = usize>) -> Option<usize> {
        writer(among.into_iter().map(|number| (number, &self.fleet[number]))).await
    }

    async fn assert_all_are_ready(&self) {
        for gateway in self.fleet.nodes() {
            assert_eq!(gateway.internal_status("/health/ready").await, 200);
        }
    }
}

async fn fleet_of(node: &Gateway) -> Value {
    send(node.api().get(&format!("{}/v1/cluster", node.internal_http()))).await.json()
}

#[tokio::test]
async fn new_connections_go_to_the_emptiest_and_a_stale_write_is_made_again() {
    let cluster = Cluster::start(NOTHING_MOVES).await;
    cluster.pods.until_published(0..=GATEWAYS).await;
    let clients = cluster.fill_the_first().await;
    // What a proxy does that follows the slices: each new connection goes to one of the endpoints, in turn.
    let mut others = Vec::new();
    for user in 0..FULL / 2 {
        let open: Vec<usize> =
            (0..GATEWAYS).filter(|number| cluster.pods.published().contains(&name(*number))).collect();
        let to = open[user % open.len()];
        others.push((to, cluster.fleet[to].connect(&format!("other-{user}")).await));
    }
    assert!(others.iter().all(|(to, _)| *to != 0), "nobody went to the one that is full");
    assert!((1..GATEWAYS).all(|number| others.iter().any(|(to, _)| *to == number)));
    let writer = cluster.writer(0..GATEWAYS).await.expect("one writes");
    until("the fleet to know when the set was written", async || {
        let state = fleet_of(&cluster.fleet[0]).await;
        state["open_set"] == true && state["placement_age_ms"].as_u64().is_some_and(|age| age < 15_000)
    })
    .await;
    until("the size of the set to be exported", async || {
        cluster.fleet[writer].metric("gateway_openset_size ").await >= Some(2.0)
    })
    .await;
    // What alerts and dashboards are made of.
    until("its age to be exported by all", async || {
        let mut ages = Vec::new();
        for gateway in cluster.fleet.nodes() {
            ages.push(gateway.metric("gateway_openset_age_seconds ").await);
        }
        ages.iter().all(|age| age.is_some_and(|age| age < 15.0))
    })
    .await;
    let could_be_open = cluster.fleet[writer].metric("gateway_openset_ready_nodes ").await;
    assert!(could_be_open >= Some(GATEWAYS as f64), "{could_be_open:?}");
    let failed = cluster.fleet[writer].metric("gateway_kubernetes_call_failures_total{reason=\"error\"}").await;
    assert!(failed.is_some());

    // Somebody changes the slice between the look and the write of the writer.
    cluster.pods.server.before_next("patch", "endpointslices", |server| {
        server.change("endpointslices", NAMESPACE, "ws-open-ipv4-0", |slice| {
            slice["metadata"]["annotations"]["someone"] = json!("was here");
        });
    });
    cluster.pods.set_ready(2, false);
    cluster.pods.until_published([0, 1, GATEWAYS]).await;
    let is_refused = |call: &apiserver::Call| call.resource == "endpointslices" && call.code == 409;
    assert!(cluster.pods.server.calls().iter().any(is_refused));
    until("the conflict to be counted", async || {
        cluster.fleet[writer].metric("gateway_openset_writes_total{result=\"conflict\"}").await >= Some(1.0)
    })
    .await;
    drop((clients, others));
}

#[tokio::test]
async fn while_the_api_server_is_away_nodes_stay_ready_and_nothing_is_moved() {
    let cluster = Cluster::start("[placement]\npause_hold = \"1s\"\n[rebalance]\nmin_age = \"50s\"\n").await;
    let mut clients = cluster.fill_the_first().await;
    cluster.pods.server.kill();
    // That is from 30 s after the last write on, when the connections are still too young to be moved.
    until_some_time("the fullest node to say why it moves nobody", async || {
        rebalancing(&cluster.fleet[0]).await.starts_with("not moved: the open set was last written")
    })
    .await;
    cluster.assert_all_are_ready().await;
    let is_up = "gateway_kubernetes_up ";
    let mut says = 0;
    for gateway in cluster.fleet.nodes() {
        says += usize::from(gateway.metric(is_up).await == Some(0.0));
    }
    assert!(says > 0, "somebody has noticed");
    until("the age that alerts are made of to grow", async || {
        cluster.fleet[1].metric("gateway_openset_age_seconds ").await >= Some(30.0)
    })
    .await;
    let state = fleet_of(&cluster.fleet[1]).await;
    assert!(state["explanation"].as_str().is_some_and(|text| text.contains("open set")), "{state}");
    let moves = "gateway_moves_total{reason=\"level\"}";
    let before = cluster.fleet[0].metric(moves).await.expect("exported");
    cluster.pods.server.revive().await;
    until_some_time("connections to be moved again", async || cluster.fleet[0].metric(moves).await > Some(before))
        .await;
    cluster.assert_all_are_ready().await;
    clients.clear();
}

#[tokio::test]
async fn a_writer_that_leaves_hands_over_and_one_that_dies_is_replaced() {
    let cluster = Cluster::start(NOTHING_MOVES).await;
    let clients = cluster.fill_the_first().await;
    let first = cluster.writer(0..GATEWAYS).await.expect("one writes");
    cluster.fleet[first].terminate();
    assert_eq!(cluster.fleet[first].exit_code().await, 0);
    cluster.pods.remove(first);
    let rest: Vec<usize> = (0..GATEWAYS).filter(|number| *number != first).collect();
    until("another one to write", async || cluster.writer(rest.clone()).await.is_some()).await;
    // Three pods are left, and with so few all are open.
    cluster.pods.until_published((0..=GATEWAYS).filter(|number| *number != first)).await;
    let second = cluster.writer(rest.clone()).await.expect("one writes");
    cluster.fleet[second].kill().await;
    cluster.pods.remove(second);
    let last = rest.into_iter().find(|number| *number != second).expect("one is left");
    until_some_time("the last one to write", async || cluster.writer([last]).await.is_some()).await;
    cluster.pods.until_published([last, GATEWAYS]).await;
    drop(clients);
}
