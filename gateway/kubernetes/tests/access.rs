//! Where something is missing, the open set is off, and says so.

mod cluster;

use apiserver::Options;
use cluster::{Cluster, DEADLINE, HERE, names, sees};
use kubernetes::{Access, Agent, Mode, Role, Settings, State};
use serde_json::json;

/// What the agent says is missing.
async fn missing(agent: &Agent) -> String {
    let seen = sees(agent, "that it is off", |seen| matches!(seen.state, State::Off(_))).await;
    match seen.state {
        State::Off(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn outside_a_cluster_it_is_off_without_a_call() {
    let agent = Agent::start(Settings::new("a"), Access::InCluster);
    agent.set_role(Role::Candidate);
    let why = missing(&agent).await;
    assert!(why.contains("not a pod of a cluster"), "{why}");
    agent.shutdown().await;
}

#[tokio::test]
async fn what_is_switched_off_is_off() {
    let cluster = Cluster::start().await;
    let agent = cluster.agent("a", |settings| settings.mode = Mode::Off);
    agent.set_role(Role::Candidate);
    assert!(missing(&agent).await.contains("switched off"));
    assert_eq!(cluster.server.calls().len(), 0);
}

#[tokio::test]
async fn every_missing_permission_is_named() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..2);
    cluster.server.refuse("patch", "endpointslices");
    cluster.server.refuse("*", "leases");
    let agent = cluster.candidate("a");
    let why = missing(&agent).await;
    for part in [
        "permission to patch endpointslices.discovery.k8s.io in the namespace here",
        "permission to update leases.coordination.k8s.io ws-placement in the namespace here",
        "permission to create leases.coordination.k8s.io in the namespace here",
    ] {
        assert!(why.contains(part), "{why}");
    }
    assert!(cluster.slices().is_empty());
    assert!(agent.status().is_up, "a server that refuses is there");
}

#[tokio::test]
async fn a_permission_that_is_taken_away_later_shows_in_the_refusal_itself() {
    let cluster = Cluster::start().await;
    cluster.add_pods(0..2);
    let agent = cluster.candidate("a");
    cluster.until_published(&names(0..2)).await;
    cluster.server.refuse("list", "endpointslices");
    let why = missing(&agent).await;
    assert!(why.contains("forbidden"), "{why}");
    assert_eq!(cluster.published(), names(0..2), "the slices stay");
    cluster.server.until("the lease is released", DEADLINE, |_| cluster.holder().is_none()).await;
}

#[tokio::test]
async fn an_api_or_a_service_that_is_missing_is_named() {
    let options = Options { slice_versions: vec!["v1beta1"], ..Options::default() };
    let agent_of_old = Cluster::with(options).await;
    let why = missing(&agent_of_old.candidate("a")).await;
    assert!(why.contains("the API discovery.k8s.io in the version that is configured does not exist"), "{why}");
    let cluster = Cluster::start().await;
    cluster.server.remove("services", HERE, "ws-all");
    let why = missing(&cluster.candidate("a")).await;
    assert!(why.contains("the Service ws-all does not exist"), "{why}");
    let cluster = Cluster::start().await;
    cluster.server.change("services", HERE, "ws", |service| service["spec"]["ports"][0]["targetPort"] = json!("http"));
    let why = missing(&cluster.candidate("a")).await;
    assert!(why.contains("give its number"), "{why}");
}
