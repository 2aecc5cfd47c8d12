//! The fleet for people and autoscalers: `GET /v1/cluster`.
//!
//! The totals are those of the digest, which all nodes act on, and the same whichever node is asked. The list of nodes is
//! the table of reports, read at most once a second. The schema is stable: fields are only added.

use std::sync::Arc;
use std::time::{Duration, Instant};

use placement::shed::explain;
use placement::{Digest, Heard, Pause, Peer, Report};
use serde::Serialize;
use tokio::sync::Mutex;

use super::roster::{DIGEST_STALE, Roster};
use crate::node::Node;

/// The version of the schema.
const VERSION: u32 = 1;

/// How long the table of reports is not read again: it changes once a second.
const TABLE_AGE: Duration = Duration::from_secs(1);

/// The fleet.
#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct Cluster {
    version: u32,
    /// Connections of all nodes.
    connections: u64,
    /// The most that one node has.
    connections_max: u64,
    ready: u64,
    draining: u64,
    starting: u64,
    /// The load (connections per weight) of every node once all is level.
    mean: f64,
    /// The highest load.
    max: f64,
    /// The highest load in comparison with the mean.
    imbalance: f64,
    /// The water level: nodes at or below it are the ones for new connections.
    level: f64,
    /// Connections accepted per second.
    arrivals: f64,
    /// How many more could be.
    spare_accepts: Option<f64>,
    /// Connections that all nodes together may move per second.
    budget: f64,
    revision: String,
    /// Why nothing may be moved.
    pauses: Vec<Pause>,
    /// Why the fleet is out of level, and what is done about it.
    explanation: Option<String>,
    open_set: bool,
    placement_age_ms: Option<u64>,
    term: u64,
    sequence: u64,
    /// Age of the digest, by the clock of the node that was asked.
    age_ms: u64,
    /// The node that was asked.
    #[serde(rename = "self")]
    own: String,
    /// Every node by name; nothing when the table cannot be read.
    nodes: Option<Vec<NodeView>>,
}

/// One node.
#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct NodeView {
    id: String,
    name: String,
    version: String,
    revision: String,
    state: &'static str,
    connections: u64,
    weight: f64,
    load: f64,
    accepts: f64,
    refused: f64,
    moved: f64,
    /// Moved connections per second that came back.
    returned: f64,
    spare_accepts: Option<f64>,
    room: Option<u64>,
    uptime_s: u64,
    age_ms: u64,
}

/// There is no total that anybody vouches for.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct Unknown {
    version: u32,
    error: String,
}

impl Unknown {
    /// For this reason.
    pub fn new(error: String) -> Self {
        Self { version: VERSION, error }
    }
}

/// The table of reports as it was read last.
#[derive(Default)]
pub struct Table(Mutex<Option<Read>>);

/// One look at the table.
struct Read {
    at: Instant,
    /// Nothing if it could not be read.
    peers: Option<Arc<Vec<Peer>>>,
}

impl Table {
    async fn read(&self, roster: &Roster) -> Option<Arc<Vec<Peer>>> {
        // Whoever comes while it is being read waits for that.
        let mut last = self.0.lock().await;
        if let Some(read) = &*last
            && read.at.elapsed() < TABLE_AGE
        {
            return read.peers.clone();
        }
        let peers = roster.peers().await.ok().map(Arc::new);
        *last = Some(Read { at: Instant::now(), peers: peers.clone() });
        peers
    }
}

/// The fleet as this node knows it.
///
/// # Errors
/// When no digest has come for so long that its totals are worth nothing.
pub async fn look(node: &Node, roster: &Roster) -> Result<Cluster, Unknown> {
    const FACT: &str = "the state of the fleet is unknown";
    let (digest, at) = roster.last().ok_or_else(|| Unknown::new(format!("{FACT}: no digest has come yet")))?;
    let age = at.elapsed();
    if age >= DIGEST_STALE {
        return Err(Unknown::new(format!("{FACT}: the last digest is {} s old", age.as_secs())));
    }
    let peers = node.table().read(roster).await;
    let explanation = explain(&node.runtime().rebalance.shed, Instant::now(), Some(Heard { digest: &digest, at }));
    Ok(describe(&digest, age, explanation, roster.id().to_string(), peers.as_deref().map(Vec::as_slice)))
}

fn describe(
    digest: &Digest,
    age: Duration,
    explanation: Option<String>,
    own: String,
    peers: Option<&[Peer]>,
) -> Cluster {
    let nodes = peers.map(|peers| {
        let mut nodes: Vec<_> = peers.iter().map(NodeView::of).collect();
        nodes.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        nodes
    });
    Cluster {
        version: VERSION,
        connections: digest.connections,
        connections_max: digest.connections_max,
        ready: digest.ready,
        draining: digest.draining,
        starting: digest.starting,
        mean: digest.mean,
        max: digest.max,
        imbalance: (digest.imbalance() * 1e4).round() / 1e4,
        level: digest.level,
        arrivals: digest.arrivals,
        spare_accepts: digest.spare,
        budget: digest.budget,
        revision: digest.revision.clone(),
        pauses: digest.pauses.clone(),
        explanation,
        open_set: digest.open_set,
        placement_age_ms: digest.placement_age_ms,
        term: digest.term,
        sequence: digest.sequence,
        age_ms: millis(age),
        own,
        nodes,
    }
}

impl NodeView {
    fn of(peer: &Peer) -> Self {
        let report = &peer.report;
        Self {
            id: peer.id.to_string(),
            name: report.name.clone(),
            version: report.version.clone(),
            revision: report.revision.clone(),
            state: state(report),
            connections: report.connections,
            weight: report.weight,
            load: (report.load() * 100.0).round() / 100.0,
            accepts: report.accepts,
            refused: report.refused,
            moved: report.moved,
            returned: report.returned,
            spare_accepts: report.spare_accepts,
            room: report.room,
            uptime_s: report.uptime_s,
            age_ms: millis(peer.age),
        }
    }
}

fn state(report: &Report) -> &'static str {
    match (report.draining, report.retiring, report.ready) {
        (true, _, _) => "draining",
        (false, true, _) => "retiring",
        (false, false, true) => "ready",
        (false, false, false) => "starting",
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use backplane::NodeId;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_schema_stays_as_it_is() {
        let digest = Digest {
            ready: 1,
            draining: 1,
            connections: 30,
            connections_max: 20,
            mean: 30.0,
            max: 40.0,
            pauses: vec![Pause::NotReturning],
            ..Digest::empty(3, 4)
        };
        let peer = |id: u128, name: &str, draining: bool| Peer {
            id: NodeId(Uuid::from_u128(id)),
            age: Duration::from_millis(250),
            report: Report { connections: 15, weight: 2.0, ready: !draining, draining, ..Report::new(name, "1.2.3") },
        };
        let peers = [peer(2, "b", true), peer(1, "a", false)];
        let cluster =
            describe(&digest, Duration::from_millis(70), Some("why".to_owned()), "me".to_owned(), Some(&peers));
        let node = |id: &str, name: &str, state: &str| {
            json!({
                "id": format!("00000000-0000-0000-0000-00000000000{id}"), "name": name, "version": "1.2.3",
                "revision": "", "state": state, "connections": 15, "weight": 2.0, "load": 7.5, "accepts": 0.0,
                "refused": 0.0, "moved": 0.0, "returned": 0.0, "spare_accepts": null, "room": null, "uptime_s": 0, "age_ms": 250,
            })
        };
        let expected = json!({
            "version": 1, "connections": 30, "connections_max": 20, "ready": 1, "draining": 1, "starting": 0,
            "mean": 30.0, "max": 40.0, "imbalance": 1.3333, "level": 0.0, "arrivals": 0.0, "spare_accepts": null,
            "budget": 0.0, "revision": "", "pauses": ["not_returning"], "explanation": "why", "open_set": false,
            "placement_age_ms": null, "term": 3, "sequence": 4, "age_ms": 70, "self": "me",
            "nodes": [node("1", "a", "ready"), node("2", "b", "draining")],
        });
        assert_eq!(json!(cluster), expected);
        let read =
            crate::top::cluster::Cluster::read(200, expected.to_string().as_bytes()).expect("`top` understands it");
        assert_eq!(
            (read.imbalance, read.asked.as_str(), read.pauses),
            (1.3333, "me", vec!["not_returning".to_owned()])
        );
        assert_eq!(json!(describe(&digest, Duration::ZERO, None, String::new(), None))["nodes"], json!(null));
    }
}
