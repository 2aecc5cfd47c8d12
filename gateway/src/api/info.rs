//! `info`: what the nodes are doing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::node::{Node, NodeSurvey};

use super::error::ApiError;
use super::outcome::Outcome;
use super::request::InfoRequest;

/// Clock ticks in a second as `/proc` counts them: 100 in the interface of Linux to programs, whatever the kernel uses.
const TICKS_PER_SECOND: f64 = 100.0;

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
    // Reading these is a copy from the kernel's memory and does not wait for a disk.
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (stat, status) = (read("/proc/self/stat"), read("/proc/self/status"));
    let uptime = node.uptime();
    let cpu_seconds = cpu_seconds(&stat).unwrap_or_default();
    let threads = number(&status, "Threads:").unwrap_or_default();
    let cpu = if uptime.is_zero() { 0.0 } else { 100.0 * cpu_seconds / uptime.as_secs_f64() };
    let rss = number(&status, "VmRSS:").unwrap_or_default() * 1024;
    let items = [("process_cpu_seconds", cpu_seconds), ("process_threads", threads as f64)];
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
        process: Process { cpu, rss },
    }
}

/// User and system time in `/proc/self/stat`: the 14th and 15th field. The second is the program's name in brackets,
/// which may hold anything, so fields are counted from its end.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

/// The number after a name in `/proc/self/status`; sizes are in kilobytes there.
fn number(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 99 0 0 0 250 150 8 9 20 0 1 0 100 1 2";
        assert_eq!(cpu_seconds(stat), Some(4.0));
        let status = "Name:\tgateway\nVmRSS:\t    1234 kB\nThreads:\t5\n";
        assert_eq!((number(status, "VmRSS:"), number(status, "Threads:")), (Some(1234), Some(5)));
        for text in ["", "7 (a", "7 (a) S 1", "VmRSS:", "VmRSS: x kB"] {
            assert_eq!((cpu_seconds(text), number(text, "VmRSS:")), (None, None), "{text}");
        }
    }
}
