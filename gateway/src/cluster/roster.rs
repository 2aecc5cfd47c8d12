//! What the nodes know of each other: every node reports once a second; one of them, the coordinator, publishes a digest
//! of all reports, so that traffic grows with the number of nodes and not with its square (design section 5). What the
//! digest says is decided in the crate `placement`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane::{Backplane, BackplaneError, Lease, Members, NewPublication, NodeId, PublishOptions};
use metrics::{Gauge, gauge};
use parking_lot::Mutex;
use placement::candidates::ask_again_at;
use placement::shed::explain;
use placement::{Coordinator, CoordinatorSettings, Digest, Heard, NodeKey, Peer, Report};
use rand::Rng;
use tokio::time::MissedTickBehavior;

use super::digest_channel;
use crate::metrics::{CLUSTER_NODES, FLEET_CONNECTIONS, IMBALANCE};
use crate::node::Node;
use crate::placing::Rates;

/// How often a node reports, and the coordinator publishes the digest.
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

/// How often the coordinator's log repeats why the fleet is out of level.
const EXPLAIN_EVERY: Duration = Duration::from_secs(60);

/// This node's view of the fleet.
pub struct Roster {
    node: NodeId,
    backplane: Arc<dyn Backplane>,
    members: Arc<dyn Members>,
    settings: CoordinatorSettings,
    /// The newest digest, and when it came.
    heard: Mutex<Option<(Arc<Digest>, Instant)>>,
    rates: Mutex<Rates>,
    fleet_connections: Gauge,
    imbalance: Gauge,
    ready_nodes: Gauge,
    draining_nodes: Gauge,
    starting_nodes: Gauge,
}

/// A node's part in coordinating.
#[derive(Default)]
struct Role {
    /// When to ask for the lease next, while another node has it.
    ask_at: Option<Instant>,
    /// When the last call was made that got the lease.
    held_at: Option<Instant>,
    coordinator: Option<Coordinator>,
    explained_at: Option<Instant>,
}

impl Role {
    /// Whether the node may act as the coordinator for a while yet.
    fn is_held(&self) -> bool {
        self.held_at.is_some_and(|at| now().saturating_duration_since(at) + COORDINATOR_MARGIN < COORDINATOR_TTL)
    }

    fn give_up(&mut self) {
        self.held_at = None;
        self.coordinator = None;
    }
}

/// By the clock of the runtime, which tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Roster {
    /// For this node.
    pub fn new(
        node: NodeId,
        backplane: Arc<dyn Backplane>,
        members: Arc<dyn Members>,
        settings: CoordinatorSettings,
    ) -> Self {
        let nodes = |state: &'static str| gauge!(CLUSTER_NODES, "state" => state);
        Self {
            node,
            backplane,
            members,
            settings,
            heard: Mutex::default(),
            rates: Mutex::default(),
            fleet_connections: gauge!(FLEET_CONNECTIONS),
            imbalance: gauge!(IMBALANCE),
            ready_nodes: nodes("ready"),
            draining_nodes: nodes("draining"),
            starting_nodes: nodes("starting"),
        }
    }

    /// Which process this is.
    pub fn id(&self) -> NodeId {
        self.node
    }

    /// The newest digest, unless it is stale.
    pub fn digest(&self) -> Option<Arc<Digest>> {
        self.last().filter(|(_, at)| now().saturating_duration_since(*at) < DIGEST_STALE).map(|(digest, _)| digest)
    }

    /// The newest digest, however old, and when it came.
    pub fn last(&self) -> Option<(Arc<Digest>, Instant)> {
        self.heard.lock().clone()
    }

    /// The table of reports.
    ///
    /// # Errors
    /// When the backplane cannot be read.
    pub async fn peers(&self) -> Result<Vec<Peer>, BackplaneError> {
        let members = self.members.members().await?;
        let peer = |member: backplane::Member| match Report::decode(&member.report) {
            Ok(report) => Some(Peer { id: member.node, age: member.age, report }),
            Err(error) => {
                tracing::debug!(node = %member.node, %error, "a report is not understood");
                None
            }
        };
        Ok(members.into_iter().filter_map(peer).collect())
    }

    /// A digest as it came over the backplane. One of an earlier term, or an earlier one of the same term, is ignored:
    /// a coordinator that was replaced may not know it yet.
    pub(super) fn heard(&self, bytes: &[u8]) {
        let digest = match Digest::decode(bytes) {
            Ok(digest) => digest,
            Err(error) => {
                tracing::warn!(%error, "a digest of the fleet is not understood");
                return;
            }
        };
        let now = now();
        let mut heard = self.heard.lock();
        let is_fresh = |at: Instant| now.saturating_duration_since(at) < DIGEST_STALE;
        // After a stale one anything is news: the backplane may have lost the terms.
        if heard.as_ref().is_some_and(|(old, at)| is_fresh(*at) && !digest.is_newer_than(old)) {
            return;
        }
        self.fleet_connections.set(digest.connections as f64);
        self.imbalance.set(digest.imbalance());
        self.ready_nodes.set(digest.ready as f64);
        self.draining_nodes.set(digest.draining as f64);
        self.starting_nodes.set(digest.starting as f64);
        *heard = Some((Arc::new(digest), now));
    }

    fn term(&self) -> u64 {
        self.heard.lock().as_ref().map_or(0, |(digest, _)| digest.term)
    }

    /// Reports for ever, and coordinates when it is this node's turn.
    pub async fn run(self: Arc<Self>, node: Arc<Node>) {
        // A fleet that was started at once does not report at once.
        let offset = rand::rng().random_range(Duration::ZERO..REPORT_EVERY);
        tokio::time::sleep(offset).await;
        let mut ticks = tokio::time::interval(REPORT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut role = Role::default();
        loop {
            ticks.tick().await;
            self.report(&node).await;
            self.coordinate(&mut role, &node).await;
        }
    }

    /// Tells the fleet that this node is here, as it is now.
    pub async fn report(&self, node: &Node) {
        let report = self.describe(node);
        if let Err(error) = self.members.report(self.node, report.encode()).await {
            tracing::debug!(%error, "this node's report was not written");
        }
    }

    fn describe(&self, node: &Node) -> Report {
        let now = now();
        let rates = self.rates.lock().since_last(now, node.placing.totals(node.uptime()));
        let open_set = node.placing.open_set();
        let age_ms = |at: Instant| u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX);
        let placement = node.placement();
        Report {
            connections: node.staying_connections(),
            ready: node.is_ready(),
            draining: node.is_leaving(),
            retiring: node.placing.is_retiring(),
            term: self.term(),
            revision: placement.revision.clone(),
            uptime_s: node.uptime().as_secs(),
            weight: placement.weight,
            accepts: rates.accepted,
            refused: rates.refused,
            moved: rates.moved,
            settled: rates.settled,
            returned: rates.returned,
            spare_accepts: node.accepts_per_second().map(|most| (most - rates.accepted).max(0.0)),
            room: Some(node.room() as u64),
            open_set: open_set.is_used,
            placement_age_ms: open_set.placed_at.map(age_ms),
            newest_revision: open_set.newest_revision,
            ..Report::new(&node.name, env!("CARGO_PKG_VERSION"))
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

    async fn coordinate(&self, role: &mut Role, node: &Node) {
        self.ask_for_role(role).await;
        if !role.is_held() {
            role.give_up();
            return;
        }
        let peers = match self.peers().await {
            Ok(peers) => peers,
            Err(error) => {
                tracing::debug!(%error, "the reports of the fleet cannot be read");
                return;
            }
        };
        let shed = node.runtime().rebalance.shed.clone();
        let coordinator = role.coordinator.get_or_insert_with(|| {
            let term = Coordinator::next_term(Some(self.term()), &peers);
            tracing::info!(term, nodes = peers.len(), "this node coordinates the fleet");
            Coordinator::new(self.settings.clone(), term)
        });
        coordinator.reload(shed.clone());
        let digest = coordinator.tick(now(), &peers);
        // The lease may have ended while the reports were read.
        if !role.is_held() {
            return;
        }
        self.explain(role, &digest, &shed);
        let publication = NewPublication { data: digest.encode(), ..NewPublication::default() };
        let published = self.backplane.publish(&digest_channel(), publication, PublishOptions::default()).await;
        if let Err(error) = published {
            tracing::debug!(%error, "the digest of the fleet was not published");
        }
    }

    /// Renews the lease, or asks for it when it is time to.
    async fn ask_for_role(&self, role: &mut Role) {
        let asked = now();
        let is_time = role.ask_at.is_none_or(|at| asked >= at);
        if role.held_at.is_none() && !is_time {
            return;
        }
        match self.members.hold_lease(COORDINATOR, self.node, COORDINATOR_TTL).await {
            Ok(Lease::Held { .. }) => role.held_at = Some(asked),
            Ok(Lease::HeldBy(_)) => role.give_up(),
            // Until it may have ended, the lease is still this node's.
            Err(_) => {}
        }
        let last = self.last();
        let heard = last.as_ref().map(|(digest, at)| Heard { digest, at: *at });
        let random = rand::rng().random_range(0.0..1.0);
        role.ask_at = Some(ask_again_at(asked, now(), NodeKey::of(self.node), heard, REPORT_EVERY, random));
    }

    /// Says why the fleet is out of level, now and then.
    fn explain(&self, role: &mut Role, digest: &Digest, shed: &placement::ShedSettings) {
        let now = now();
        let Some(text) = explain(shed, now, Some(Heard { digest, at: now })) else {
            role.explained_at = None;
            return;
        };
        if role.explained_at.is_none_or(|at| now.saturating_duration_since(at) >= EXPLAIN_EVERY) {
            role.explained_at = Some(now);
            tracing::info!(ready = digest.ready, connections = digest.connections, "out of level: {text}");
        }
    }
}
