//! What the nodes know of each other: every node reports once a second; one of them, the coordinator, publishes a digest
//! of all reports, so that traffic grows with the number of nodes and not with its square (design section 5).

use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane::{Backplane, Lease, Members, NewPublication, NodeId, PublishOptions};
use metrics::{Gauge, gauge};
use parking_lot::Mutex;
use rand::Rng;
use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use super::digest_channel;
use super::wire::encode;
use crate::metrics::{CLUSTER_NODES, FLEET_CONNECTIONS};
use crate::node::Node;

/// How often a node reports, asks for the coordinator's lease, and publishes the digest if it has it.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// The lease of the coordinator.
const COORDINATOR: &str = "coordinator";

/// How long the coordinator's role lasts without renewal: short enough that the next one takes over before a digest is
/// stale, long enough for a pause of some seconds.
const COORDINATOR_TTL: Duration = Duration::from_secs(5);

/// The coordinator stops this long before its lease ends by its own clock, which may run slower than the backplane's.
const COORDINATOR_MARGIN: Duration = Duration::from_secs(1);

/// A digest that is older is stale: the fleet's total is then unknown, which is better than wrong.
pub const DIGEST_STALE: Duration = Duration::from_secs(15);

/// What a node says of itself. Fields are only added, each with a default, so that versions can be mixed.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Report {
    v: u32,
    /// For humans.
    pub name: String,
    /// Of the gateway.
    pub version: String,
    /// Live connections.
    pub connections: usize,
    /// Ready for new connections.
    #[serde(default)]
    pub ready: bool,
    /// On its way out.
    #[serde(default)]
    pub draining: bool,
    /// The highest term it has seen.
    #[serde(default)]
    pub term: u64,
}

/// What the coordinator makes of all reports.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Digest {
    v: u32,
    /// Higher with every coordinator.
    pub term: u64,
    /// Counts the digests of a term.
    pub sequence: u64,
    /// Nodes that are ready.
    pub ready: usize,
    /// Nodes that drain.
    pub draining: usize,
    /// Nodes that are neither.
    pub starting: usize,
    /// Connections of all nodes.
    pub connections: usize,
    /// The most that one node has.
    pub connections_max: usize,
}

/// The newest digest, and when it came.
struct Heard {
    digest: Digest,
    at: Instant,
}

/// This node's view of the fleet.
pub struct Roster {
    node: NodeId,
    backplane: Arc<dyn Backplane>,
    members: Arc<dyn Members>,
    heard: Mutex<Option<Heard>>,
    fleet_connections: Gauge,
    ready_nodes: Gauge,
    draining_nodes: Gauge,
    starting_nodes: Gauge,
}

/// The coordinator's own state.
#[derive(Default)]
struct Coordinator {
    /// When the last call was made that got the lease.
    held_at: Option<Instant>,
    term: u64,
    sequence: u64,
}

impl Roster {
    /// For this node.
    pub fn new(node: NodeId, backplane: Arc<dyn Backplane>, members: Arc<dyn Members>) -> Self {
        let nodes = |state: &'static str| gauge!(CLUSTER_NODES, "state" => state);
        Self {
            node,
            backplane,
            members,
            heard: Mutex::default(),
            fleet_connections: gauge!(FLEET_CONNECTIONS),
            ready_nodes: nodes("ready"),
            draining_nodes: nodes("draining"),
            starting_nodes: nodes("starting"),
        }
    }

    /// The newest digest, unless it is stale.
    pub fn digest(&self) -> Option<Digest> {
        let heard = self.heard.lock();
        heard.as_ref().filter(|heard| heard.at.elapsed() < DIGEST_STALE).map(|heard| heard.digest.clone())
    }

    /// A digest as it came over the backplane. One of an earlier term, or an earlier one of the same term, is ignored:
    /// a coordinator that was replaced may not know it yet.
    pub(super) fn heard(&self, bytes: &[u8]) {
        let digest: Digest = match serde_json::from_slice(bytes) {
            Ok(digest) => digest,
            Err(error) => {
                tracing::warn!(%error, "a digest of the fleet is not understood");
                return;
            }
        };
        let mut heard = self.heard.lock();
        let order = |digest: &Digest| (digest.term, digest.sequence);
        // After a stale one anything is news: the backplane may have lost the terms.
        if heard.as_ref().is_some_and(|old| old.at.elapsed() < DIGEST_STALE && order(&digest) <= order(&old.digest)) {
            return;
        }
        self.fleet_connections.set(digest.connections as f64);
        self.ready_nodes.set(digest.ready as f64);
        self.draining_nodes.set(digest.draining as f64);
        self.starting_nodes.set(digest.starting as f64);
        *heard = Some(Heard { digest, at: Instant::now() });
    }

    fn term(&self) -> u64 {
        self.heard.lock().as_ref().map_or(0, |heard| heard.digest.term)
    }

    /// Reports for ever, and coordinates when it is this node's turn.
    pub async fn run(self: Arc<Self>, node: Arc<Node>) {
        // A fleet that was started at once does not report at once.
        let offset = rand::rng().random_range(Duration::ZERO..REPORT_EVERY);
        tokio::time::sleep(offset).await;
        let mut ticks = tokio::time::interval(REPORT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut coordinator = Coordinator::default();
        loop {
            ticks.tick().await;
            self.report(&node).await;
            self.coordinate(&mut coordinator).await;
        }
    }

    /// Tells the fleet that this node is here, as it is now.
    pub async fn report(&self, node: &Node) {
        let report = Report {
            v: 1,
            name: node.name.chars().take(256).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            connections: node.connections(),
            ready: node.is_ready(),
            draining: node.is_leaving(),
            term: self.term(),
        };
        if let Err(error) = self.members.report(self.node, encode(&report)).await {
            tracing::debug!(%error, "this node's report was not written");
        }
    }

    /// Tells the fleet that this node is gone, so that nobody waits for it.
    pub async fn leave(&self) {
        let left = async {
            self.members.release_lease(COORDINATOR, self.node).await?;
            self.members.withdraw(self.node).await
        };
        if let Err(error) = left.await {
            tracing::debug!(%error, "the fleet was not told that this node leaves");
        }
    }

    async fn coordinate(&self, own: &mut Coordinator) {
        let asked = Instant::now();
        match self.members.hold_lease(COORDINATOR, self.node, COORDINATOR_TTL).await {
            Ok(Lease::Held { .. }) => {
                if own.held_at.is_none() {
                    tracing::info!("this node coordinates the fleet");
                    own.term = 0;
                }
                own.held_at = Some(asked);
            }
            Ok(Lease::HeldBy(_)) => own.held_at = None,
            // Until it may have ended, the lease is still this node's.
            Err(_) => {}
        }
        let still = |held_at: Instant| held_at.elapsed() + COORDINATOR_MARGIN < COORDINATOR_TTL;
        if !own.held_at.is_some_and(still) {
            own.held_at = None;
            return;
        }
        let reports = match self.members.members().await {
            Ok(members) => members.into_iter().filter_map(|member| read(&member.report)).collect::<Vec<_>>(),
            Err(error) => {
                tracing::debug!(%error, "the reports of the fleet cannot be read");
                return;
            }
        };
        if own.term == 0 {
            own.term = reports.iter().map(|report| report.term).max().unwrap_or(0).max(self.term()) + 1;
            own.sequence = 0;
        }
        own.sequence += 1;
        let digest = digest(own.term, own.sequence, &reports);
        // The lease may have ended while the reports were read.
        if !own.held_at.is_some_and(still) {
            return;
        }
        let publication = NewPublication { data: encode(&digest), ..NewPublication::default() };
        let published = self.backplane.publish(&digest_channel(), publication, PublishOptions::default()).await;
        if let Err(error) = published {
            tracing::debug!(%error, "the digest of the fleet was not published");
        }
    }
}

fn read(report: &[u8]) -> Option<Report> {
    serde_json::from_slice(report).inspect_err(|error| tracing::debug!(%error, "a report is not understood")).ok()
}

/// The digest of these reports.
fn digest(term: u64, sequence: u64, reports: &[Report]) -> Digest {
    let count = |state: fn(&Report) -> bool| reports.iter().filter(|report| state(report)).count();
    Digest {
        v: 1,
        term,
        sequence,
        ready: count(|report| report.ready),
        draining: count(|report| report.draining),
        starting: count(|report| !report.ready && !report.draining),
        connections: reports.iter().map(|report| report.connections).sum(),
        connections_max: reports.iter().map(|report| report.connections).max().unwrap_or(0),
    }
}
