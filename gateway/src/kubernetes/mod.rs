//! The open set in Kubernetes: new connections go to the pods with the fewest, because the EndpointSlices of a Service
//! list just those.
//!
//! Which pods these are is decided in the crate `placement`, and slices are written by the crate `kubernetes`; here the two
//! meet. Reading order: this page (what is configured, and the loop), [`candidates`] (pods and reports to candidates),
//! [`writing`] (what the writer of the slices decides, second by second). Both are pure.
//!
//! Nothing here is needed to serve clients, and readiness does not depend on it.

pub mod candidates;
pub mod writing;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kubernetes::{Access, Agent, Mode, Outlook, Role, Settings, SliceVersion, State};
use placement::{Digest, NodeKey, OpenSetSettings};
use tokio::time::MissedTickBehavior;

use crate::cluster::roster::{DIGEST_STALE, Roster};
use crate::node::Node;
use crate::placing::OpenSetState;
use candidates::Table;
use writing::Writing;

/// How often is decided; a decision is written every 5 s at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a cluster gives to each of its pods, unless it is told not to.
const TOKEN_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// The open set, as configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KubernetesSettings {
    /// Whether this node takes part in writing it.
    pub mode: Mode,
    /// The Service without selector that clients connect to.
    pub service: String,
    /// The Service beside it that selects all pods.
    pub all_service: String,
    /// The Lease of the writer.
    pub lease: String,
    /// Where all of them are; `None`: where this pod is.
    pub namespace: Option<String>,
    /// The name of this pod; `None`: its host name.
    pub pod_name: Option<String>,
    /// The version of the API that slices are written in.
    pub slice_version: SliceVersion,
    /// Whether pods that go first when the fleet shrinks are marked.
    pub deletion_costs: bool,
    /// The way to the API server from outside of the cluster; `None`: what the cluster gives to its pods.
    pub kubeconfig: Option<PathBuf>,
}

impl Default for KubernetesSettings {
    fn default() -> Self {
        let of_crate = Settings::new("");
        Self {
            mode: of_crate.mode,
            service: of_crate.service,
            all_service: of_crate.service_all,
            lease: of_crate.lease,
            namespace: None,
            pod_name: None,
            slice_version: of_crate.slice_version,
            deletion_costs: true,
            kubeconfig: None,
        }
    }
}

impl KubernetesSettings {
    /// How to reach the API server; `None` where there is nothing to do: it is switched off, or nobody asked for it and this
    /// is no pod of a cluster.
    fn access(&self) -> Option<Access> {
        match (&self.kubeconfig, self.mode) {
            (_, Mode::Off) => None,
            (Some(path), _) => Some(Access::Kubeconfig(path.clone())),
            (None, Mode::Auto) if !Path::new(TOKEN_FILE).exists() => None,
            (None, _) => Some(Access::InCluster),
        }
    }

    fn of_agent(&self, identity: &str) -> Settings {
        Settings {
            mode: self.mode,
            namespace: self.namespace.clone(),
            service: self.service.clone(),
            service_all: self.all_service.clone(),
            lease: self.lease.clone(),
            slice_version: self.slice_version,
            stale_after: DIGEST_STALE,
            ..Settings::new(identity)
        }
    }
}

/// This node's part in the open set.
pub struct OpenSetWriter {
    settings: KubernetesSettings,
    node: Arc<Node>,
    roster: Arc<Roster>,
    agent: Agent,
}

impl OpenSetWriter {
    /// Starts the agent; `None` where there is nothing to do. No call is made before this node is a candidate.
    pub fn start(settings: KubernetesSettings, node: Arc<Node>, roster: Arc<Roster>) -> Option<Self> {
        let access = settings.access()?;
        let agent = Agent::start(settings.of_agent(&node.name), access);
        Some(Self { settings, node, roster, agent })
    }

    /// Decides for ever, while it is this node's turn.
    pub async fn run(self: Arc<Self>) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut writing = Writing::new(OpenSetSettings::default());
        let mut table = Table::default();
        loop {
            looks.tick().await;
            self.look(&mut writing, &mut table).await;
        }
    }

    /// Releases the lease if it is held, so that nobody has to wait for it to run out.
    pub async fn shutdown(self) {
        self.agent.shutdown().await;
    }

    async fn look(&self, writing: &mut Writing, table: &mut Table) {
        let digest = self.roster.digest();
        let outlook = self.agent.outlook().borrow().clone();
        let key = NodeKey::of(self.roster.id());
        self.agent.set_role(role(self.node.is_leaving(), outlook.is_writer(), key, digest.as_deref()));
        if let Some(digest) = digest.as_deref().filter(|_| outlook.is_writer()) {
            self.write(writing, table, &outlook, digest).await;
        }
        self.tell(table, &outlook, digest.as_deref());
    }

    async fn write(&self, writing: &mut Writing, table: &mut Table, outlook: &Outlook, digest: &Digest) {
        match self.roster.peers().await {
            Ok(peers) => table.read(Instant::now(), peers),
            Err(error) => tracing::debug!(%error, "the reports of the fleet cannot be read"),
        }
        let now = Instant::now();
        if let Some(open) = writing.decide(now, outlook, table, digest) {
            self.agent.decide(open);
        }
        // Without a table nobody knows who is under orders, and marks stay as they are.
        let is_known = table.age(now).is_some_and(|age| age < DIGEST_STALE);
        if let Some(pods) = outlook.pods.as_deref().filter(|_| is_known && self.settings.deletion_costs) {
            self.agent.mark(table.retiring(pods, digest));
        }
    }

    /// Tells the fleet, and the metrics.
    fn tell(&self, table: &Table, outlook: &Outlook, digest: Option<&Digest>) {
        let status = self.agent.status();
        let was_used = self.node.placing.open_set().is_used || digest.is_some_and(|digest| digest.open_set);
        let is_used = is_used(self.settings.mode, &outlook.state, status.is_up, was_used);
        let placed_at = outlook.last_write;
        let newest_revision = outlook.pods.as_deref().and_then(|pods| table.newest_revision(pods));
        self.node.placing.set_open_set(OpenSetState { is_used, placed_at, newest_revision });
        crate::metrics::open_set(&status, digest.and_then(|digest| digest.placement_age_ms));
    }
}

/// Whether this node may ask for the lease. At most five do at a time; the one that writes goes on, until it leaves.
/// Without news of the fleet nothing changes for the writer, who then publishes every ready pod.
fn role(is_leaving: bool, is_writer: bool, key: NodeKey, digest: Option<&Digest>) -> Role {
    let is_candidate = digest.is_some_and(|digest| digest.candidates.contains(&key));
    if !is_leaving && (is_writer || is_candidate) { Role::Candidate } else { Role::Bystander }
}

/// Whether pods are chosen for new connections, as far as this node can tell. While the API server is away that is what it
/// was before: the slices stay, and nothing may be moved on the strength of them.
fn is_used(mode: Mode, state: &State, is_up: bool, was_used: bool) -> bool {
    match state {
        State::Writer { .. } => true,
        State::Standby => is_up || was_used || mode == Mode::On,
        State::Off(_) => mode == Mode::On,
        State::Bystander => false,
    }
}

#[cfg(test)]
mod tests {
    use backplane::NodeId;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn candidates_of_the_digest_ask_for_the_lease_and_the_writer_keeps_it_until_it_leaves() {
        let key = |number: u128| NodeKey::of(NodeId(Uuid::from_u128(number << 80)));
        let digest = Digest { candidates: vec![key(1), key(2)], ..Digest::empty(1, 1) };
        assert_eq!(role(false, false, key(1), Some(&digest)), Role::Candidate);
        assert_eq!(role(false, false, key(3), Some(&digest)), Role::Bystander);
        assert_eq!(role(false, true, key(3), Some(&digest)), Role::Candidate, "it writes");
        assert_eq!(role(false, true, key(3), None), Role::Candidate);
        assert_eq!(role(false, false, key(1), None), Role::Bystander);
        assert_eq!(role(true, true, key(1), Some(&digest)), Role::Bystander, "it leaves");
    }

    #[test]
    fn the_open_set_stays_in_use_while_the_api_server_is_away() {
        let standby = |is_up, was_used| is_used(Mode::Auto, &State::Standby, is_up, was_used);
        assert!(standby(true, false), "another node writes");
        assert!(standby(false, true));
        assert!(!standby(false, false), "nobody has ever written");
        assert!(is_used(Mode::On, &State::Standby, false, false));
        let off = State::Off("no permission".to_owned());
        assert!(!is_used(Mode::Auto, &off, true, true));
        assert!(is_used(Mode::On, &off, true, false), "the operator says that proxies follow it");
        assert!(!is_used(Mode::Auto, &State::Bystander, true, true), "others know better");
    }

    #[test]
    fn nothing_is_done_where_nobody_asked_for_it() {
        let outside = KubernetesSettings::default();
        assert_eq!(outside.access(), None, "tests are no pods");
        assert_eq!(KubernetesSettings { mode: Mode::On, ..outside.clone() }.access(), Some(Access::InCluster));
        let path = PathBuf::from("kubeconfig");
        let reachable = KubernetesSettings { kubeconfig: Some(path.clone()), ..outside };
        assert_eq!(reachable.access(), Some(Access::Kubeconfig(path)));
        assert_eq!(KubernetesSettings { mode: Mode::Off, ..reachable }.access(), None);
    }
}
