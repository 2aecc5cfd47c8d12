//! Real gateways as pods of a real API server, when `KUBECONFIG` names one: `tests/run kubernetes`. They act as a user with
//! just the permissions that they ask for, and write the slices there as they do on the small API server of the other
//! tests (`kubernetes_openset`).

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use apiserver::real::Real;
use serde_json::Value;
use tests::api::send;
use tests::fleet::{Fleet, node};
use tests::gateway::Gateway;
use tests::store::Kind;
use tests::until;

/// Gateways. With three or fewer pods all are open, so there is one pod more, which has no gateway.
const GATEWAYS: u16 = 3;

/// Connections of the fullest gateway.
const FULL: usize = 40;

/// A lease of 15 s has to run out, and reports have to settle.
const PATIENCE: Duration = Duration::from_secs(90);

fn names(numbers: impl IntoIterator<Item = u16>) -> BTreeSet<String> {
    numbers.into_iter().map(|number| format!("ws-{number}")).collect()
}

/// A gateway that is the pod of this number.
fn pod(number: u16, real: &Real, way: &str) -> Gateway {
    let kubernetes = format!(
        "[rebalance]\nmin_age = \"1h\"\n[kubernetes]\nkubeconfig = \"{{dir}}/kubeconfig\"\nnamespace = \"{}\"\nslice_version = \"{}\"\n",
        real.namespace(),
        real.slice_version()
    );
    let kubeconfig = fs::read_to_string(real.kubeconfig()).expect("a kubeconfig");
    node(&(way.to_owned() + &kubernetes))
        .file("kubeconfig", &kubeconfig)
        // Clients are held and not read from, so they answer no ping.
        .env("EVENKEEL_CLIENT__PING_INTERVAL", "10m")
        .env("EVENKEEL_KUBERNETES__POD_NAME", &format!("ws-{number}"))
        .start()
}

/// Which gateway writes the slices.
async fn writer(fleet: &Fleet) -> Option<usize> {
    for (number, gateway) in fleet.nodes().iter().enumerate() {
        if gateway.is_running() && gateway.metric("gateway_openset_writer ").await == Some(1.0) {
            return Some(number);
        }
    }
    None
}

async fn fleet_of(node: &Gateway) -> Value {
    send(node.api().get(&format!("{}/v1/cluster", node.internal_http()))).await.json()
}

#[tokio::test]
async fn gateways_write_slices_on_a_real_api_server_as_on_the_one_of_the_tests() {
    let Some(real) = Real::start().await else { return };
    real.grant().await;
    for number in 0..=GATEWAYS {
        real.add_pod(number).await;
    }
    let store = Kind::Redis.volatile();
    let way = store.config("");
    let fleet = Fleet::of((0..GATEWAYS).map(|number| pod(number, &real, &way)).collect()).await;
    real.until_published(&names(0..=GATEWAYS), PATIENCE).await;

    // New connections go to the emptiest.
    let mut clients = Vec::new();
    for user in 0..FULL {
        clients.push(fleet[0].connect(&format!("user-{user}")).await);
    }
    real.until_published(&names([1, 2]), PATIENCE).await;
    until("the fleet to know when the set was written", async || {
        let state = fleet_of(&fleet[0]).await;
        state["open_set"] == true && state["placement_age_ms"].as_u64().is_some_and(|age| age < 15_000)
    })
    .await;
    for gateway in fleet.nodes() {
        assert_eq!(gateway.internal_status("/health/ready").await, 200);
    }

    // A pod that is not ready any more leaves at once.
    real.set_ready(2, false).await;
    real.until_published(&names([0, 1, GATEWAYS]), PATIENCE).await;
    real.set_ready(2, true).await;
    real.until_published(&names([1, 2]), PATIENCE).await;

    // The writer leaves, and another one goes on.
    let first = writer(&fleet).await.expect("one writes");
    fleet[first].terminate();
    assert_eq!(fleet[first].exit_code().await, 0);
    real.remove_pod(first as u16).await;
    let left: Vec<u16> = (0..=GATEWAYS).filter(|number| usize::from(*number) != first).collect();
    real.until_published(&names(left), PATIENCE).await;
    until("another one to write", async || writer(&fleet).await.is_some()).await;
    real.end().await;
}
