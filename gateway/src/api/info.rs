//! `info`: what the nodes are doing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::node::{Node, NodeSurvey};
use crate::process::Usage;

use super::error::ApiError;
use super::outcome::Outcome;
use super::request::InfoRequest;

/// One node in the answer (protocol section 7.2).
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct NodeInfo {
    /// Random, new at every start.
    pub uid: String,
    /// For humans.
    pub name: String,
    /// Of the gateway.
    pub version: String,
    /// Connections.
    pub num_clients: usize,
    /// Distinct users among them; the anonymous one counts as one.
    pub num_users: usize,
    /// Subscriptions.
    pub num_subs: usize,
    /// Channels with subscribers.
    pub num_channels: usize,
    /// Seconds since the start.
    pub uptime: u64,
    /// A few counters of the process.
    pub metrics: Metrics,
    /// What the process uses.
    pub process: Process,
}

/// Counters over an interval.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Metrics {
    /// Seconds over which `items` were counted: since the start.
    pub interval: f64,
    /// Counters by name.
    pub items: BTreeMap<String, f64>,
}

/// What the process uses; zeros where `/proc` cannot be read.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Debug, Default)]
pub struct Process {
    /// Percent of one core, on average since the start.
    pub cpu: f64,
    /// Resident bytes.
    pub rss: u64,
}

pub(super) async fn info(node: &Node, _request: InfoRequest) -> Result<Outcome, ApiError> {
    node.info().await.map(Outcome::Info).map_err(ApiError::internal)
}

/// What this process is doing, given what is on it.
pub(crate) fn describe(node: &Node, survey: &NodeSurvey) -> NodeInfo {
    let (usage, uptime) = (Usage::now(), node.uptime());
    let cpu = if uptime.is_zero() { 0.0 } else { 100.0 * usage.cpu_seconds / uptime.as_secs_f64() };
    let items = [("process_cpu_seconds", usage.cpu_seconds), ("process_threads", usage.threads as f64)];
    NodeInfo {
        uid: node.uid.to_string(),
        name: node.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        num_clients: survey.connections,
        num_users: survey.users,
        num_subs: survey.subscriptions,
        num_channels: survey.channels.len(),
        uptime: uptime.as_secs(),
        metrics: Metrics {
            interval: uptime.as_secs_f64(),
            items: items.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        },
        process: Process { cpu, rss: usage.resident_bytes },
    }
}
