//! The operators' endpoints, on the internal listener: health, metrics, facts about this node.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use placement::Digest;
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
    match unknown(ops.node.digest().as_deref()) {
        [] => exposition(text),
        names => exposition(without(names, &text)),
    }
}

/// The metrics that nobody vouches for now. The recorder cannot take a gauge back, and a total of some time ago must not
/// steer an autoscaler, nor an age that does not grow keep an alert silent.
fn unknown(digest: Option<&Digest>) -> &'static [&'static str] {
    match digest {
        None => &[FLEET_CONNECTIONS, CLUSTER_NODES, IMBALANCE, OPENSET_AGE],
        Some(digest) if digest.placement_age_ms.is_none() => &[OPENSET_AGE],
        Some(_) => &[],
    }
}

/// An exposition without these metrics.
fn without(names: &[&str], text: &str) -> String {
    let name = |line: &str| {
        line.split(['#', ' ', '{']).find(|word| !matches!(*word, "" | "HELP" | "TYPE" | "UNIT")).map(str::to_owned)
    };
    let is_known = |line: &&str| !name(line).is_some_and(|name| names.contains(&name.as_str()));
    let known: Vec<&str> = text.lines().filter(is_known).collect();
    known.join("\n") + "\n"
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_vouches_for_is_not_exported() {
        let written = Digest { placement_age_ms: Some(1), ..Digest::empty(1, 1) };
        assert!(unknown(Some(&written)).is_empty());
        assert_eq!(unknown(Some(&Digest::empty(1, 1))), [OPENSET_AGE]);
        assert!(unknown(None).contains(&FLEET_CONNECTIONS) && unknown(None).contains(&OPENSET_AGE));
    }

    #[test]
    fn a_metric_goes_with_all_its_lines() {
        let text = "# HELP a_b Of.\n# TYPE a_b gauge\na_b{c=\"a\"} 1\na_b 2\n\n# TYPE a_b_c gauge\na_b_c 3\n";
        assert_eq!(without(&["a_b"], text), "\n# TYPE a_b_c gauge\na_b_c 3\n");
    }
}
