//! The operators' endpoints, on the internal listener: health, metrics, facts about this node.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;

use crate::cluster::view::{self, Unknown};
use crate::metrics::{CLUSTER_NODES, FLEET_CONNECTIONS, IMBALANCE, OPENSET_AGE};
use crate::node::Node;

/// The content type of the Prometheus text format.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone)]
struct Ops {
    node: Arc<Node>,
    prometheus: PrometheusHandle,
}

/// `/health/live`, `/health/ready` (alias `/health`), `/metrics`, `/v1/node`, `/v1/cluster`.
pub fn router(node: Arc<Node>, prometheus: PrometheusHandle) -> Router {
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/health", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/node", get(facts))
        .route("/v1/cluster", get(cluster))
        .with_state(Ops { node, prometheus })
}

/// What there is before the backplane was reached: alive, not ready, and the metrics.
pub fn starting(prometheus: PrometheusHandle) -> Router {
    let not_ready = || async { json(StatusCode::SERVICE_UNAVAILABLE, "{\"reason\":\"starting\"}".to_owned()) };
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(not_ready))
        .route("/health", get(not_ready))
        .route("/metrics", get(move || async move { exposition(prometheus.render()) }))
}

/// Alive as long as it answers.
async fn live() -> Response {
    json(StatusCode::OK, "{}".to_owned())
}

/// Ready once the backplane was reached, until a drain begins.
async fn ready(State(ops): State<Ops>) -> Response {
    if ops.node.is_ready() {
        return json(StatusCode::OK, "{}".to_owned());
    }
    let reason = match (ops.node.is_leaving(), ops.node.is_backplane_up()) {
        (true, _) => "draining",
        (false, true) => "starting",
        (false, false) => "backplane",
    };
    json(StatusCode::SERVICE_UNAVAILABLE, format!("{{\"reason\":\"{reason}\"}}"))
}

async fn metrics(State(ops): State<Ops>) -> Response {
    let text = ops.prometheus.render();
    if ops.node.digest().is_some() {
        return exposition(text);
    }
    // The recorder cannot take a gauge back, and a total that nobody vouches for must not steer an autoscaler.
    let unknown = [FLEET_CONNECTIONS, CLUSTER_NODES, IMBALANCE, OPENSET_AGE];
    let name = |line: &str| {
        line.split(['#', ' ', '{']).find(|word| !matches!(*word, "" | "HELP" | "TYPE" | "UNIT")).map(str::to_owned)
    };
    let is_known = |line: &&str| !name(line).is_some_and(|name| unknown.contains(&name.as_str()));
    let known: Vec<&str> = text.lines().filter(is_known).collect();
    exposition(known.join("\n") + "\n")
}

fn exposition(text: String) -> Response {
    ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], text).into_response()
}

/// This node in a few numbers.
async fn facts(State(ops): State<Ops>) -> Response {
    let node = &ops.node;
    let facts = serde_json::json!({
        "uid": node.uid.to_string(),
        "name": node.name,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": node.uptime().as_secs(),
        "connections": node.connections(),
        "ready": node.is_ready(),
        "draining": node.is_leaving(),
        "drain": node.drain.progress(node.connections()),
        "rebalancing": node.placing.state(),
    });
    json(StatusCode::OK, facts.to_string())
}

/// The fleet, for autoscalers and people.
async fn cluster(State(ops): State<Ops>) -> Response {
    let seen = match ops.node.roster() {
        Some(roster) => view::look(&ops.node, &roster).await,
        None => Err(Unknown::new("the state of the fleet is unknown: this node has not joined it yet".to_owned())),
    };
    match seen {
        Ok(cluster) => json(StatusCode::OK, text(&cluster)),
        Err(unknown) => json(StatusCode::SERVICE_UNAVAILABLE, text(&unknown)),
    }
}

fn text(facts: &impl Serialize) -> String {
    serde_json::to_string(facts).expect("facts have text for keys")
}

fn json(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
