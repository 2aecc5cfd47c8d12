//! The operators' endpoints, on the internal listener: health, metrics, facts about this node.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::node::Node;

/// The content type of the Prometheus text format.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone)]
struct Ops {
    node: Arc<Node>,
    prometheus: PrometheusHandle,
}

/// `/health/live`, `/health/ready` (alias `/health`), `/metrics`, `/v1/node`.
pub fn router(node: Arc<Node>, prometheus: PrometheusHandle) -> Router {
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/health", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/node", get(facts))
        .with_state(Ops { node, prometheus })
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
    let reason = if ops.node.is_leaving() { "draining" } else { "starting" };
    json(StatusCode::SERVICE_UNAVAILABLE, format!("{{\"reason\":\"{reason}\"}}"))
}

async fn metrics(State(ops): State<Ops>) -> Response {
    ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], ops.prometheus.render()).into_response()
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
    });
    json(StatusCode::OK, facts.to_string())
}

fn json(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
