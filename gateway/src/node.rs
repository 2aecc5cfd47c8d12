//! The node: what its shards, the server API and the operators' endpoints share.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, Guard};
use backplane::{
    Backplane, BackplaneError, ChannelName, ClientId, HistoryOptions, HistoryPage, HistoryQuery, NewPublication,
    NodeId, PresenceEvent, PublishOptions, Published, UserId,
};
use placement::Digest;
use session::channels::Channels;
use session::time::{Now, Tick};
use session::{Context, Settings};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::admission::{AddressLimits, AdmissionSettings, UserLimits};
use crate::api::auth::ApiKeys;
use crate::api::glob::Glob;
use crate::api::info::{self, NodeInfo};
use crate::cluster::commands::{AskError, Commands};
use crate::cluster::inbox::{ClusterInbox, Switchboard};
use crate::cluster::roster::Roster;
use crate::cluster::view::Table;
use crate::config::Config;
use crate::config::origin::OriginRule;
use crate::drain::{Drain, DrainTimes};
use crate::hub::Registry;
use crate::metrics::NodeMeters;
use crate::placing::{MoveRule, PlacementSettings, Placing, RebalanceSettings};
use crate::proxy::Proxies;
use crate::sessions::SessionSettings;
use crate::sessions::store::Sessions;
use crate::shard::IoLimits;
use crate::shard::command::{Action, Applied, Command, Survey, TakenOver, Target};
use crate::shard::inbox::{Inbox, Item};

/// What can change while the node runs: replaced as a whole on reload.
pub struct Runtime {
    /// Limits and times of sessions.
    pub session: Settings,
    /// Namespaces.
    pub channels: Channels,
    /// Checks tokens.
    pub verifier: auth::Verifier,
    /// Bounds of decoding.
    pub limits: protocol::Limits,
    /// Sizes for the socket side of connections.
    pub io: IoLimits,
    /// Sessions that outlive a connection.
    pub sessions: SessionSettings,
    /// Which browser origins may connect.
    pub origins: OriginRule,
    /// Keys of the server API, hashed.
    pub api: ApiKeys,
    /// What is asked of the application.
    pub proxies: Proxies,
    /// Readiness fails while the backplane is down.
    pub backplane_required: bool,
    /// How connections are moved.
    pub rebalance: RebalanceSettings,
}

impl Runtime {
    /// Prepares a checked configuration for use. Keys fetched by a predecessor are taken over.
    ///
    /// # Errors
    /// When a token key cannot be used, or no client for a proxy can be made.
    pub fn new(config: &Config, predecessor: Option<&Self>) -> anyhow::Result<Self> {
        let tokens = &config.client.tokens;
        let verifier = match predecessor {
            Some(running) => running.verifier.succeed(tokens)?,
            None => auth::Verifier::new(tokens)?,
        };
        let keys = config.api.keys.iter().map(|key| key.expose().to_owned());
        Ok(Self {
            session: config.client.session.clone(),
            channels: config.channels.clone(),
            verifier,
            limits: config.client.frames,
            io: IoLimits { message_bytes: config.client.frames.frame_bytes, queue_bytes: config.client.queue_bytes },
            sessions: config.session.clone(),
            origins: config.client.origins.clone(),
            api: ApiKeys::new(keys, config.api.key_in_query),
            proxies: Proxies::new(&config.proxies, predecessor.map(|running| &running.proxies))?,
            backplane_required: config.backplane.required,
            rebalance: config.rebalance.clone(),
        })
    }

    /// What a session is given on every call.
    pub fn context(&self) -> Context<'_> {
        Context { settings: &self.session, channels: &self.channels }
    }
}

/// How long the server API waits for a shard to answer a command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

/// Channel names matched between two pauses for others; a match takes well under a microsecond.
const NAMES_PER_TURN: usize = 1024;

/// A command could not be carried out on every shard in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a shard did not answer within {} s", COMMAND_TIMEOUT.as_secs())]
pub struct ShardTimeout;

/// Why something asked of the whole fleet was not done, or not by all.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// This node's own shards.
    #[error(transparent)]
    Here(#[from] ShardTimeout),
    /// Other nodes, or the backplane between them.
    #[error(transparent)]
    Elsewhere(#[from] AskError),
}

/// What does not change while the node runs.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Client connections at most.
    pub connections_max: usize,
    /// Connections of one user at most; 0 is no bound.
    pub connections_per_user: usize,
    /// Who is let in.
    pub admission: AdmissionSettings,
    /// Times of a drain.
    pub drain: DrainTimes,
    /// What the fleet is told of this node.
    pub placement: PlacementSettings,
}

impl Default for NodeOptions {
    /// The defaults of the configuration.
    fn default() -> Self {
        let (grace_accept, window) = (Duration::from_secs(5), Duration::from_secs(30));
        let drain = DrainTimes { grace_accept, window, deadline: DrainTimes::deadline_of(grace_accept, window) };
        Self {
            connections_max: 100_000,
            connections_per_user: 0,
            admission: AdmissionSettings::default(),
            drain,
            placement: PlacementSettings::default(),
        }
    }
}

/// One gateway process.
pub struct Node {
    /// Random, new at every start.
    pub uid: Uuid,
    /// For humans: the configured name or the host name.
    pub name: String,
    /// What carries publications.
    pub backplane: Arc<dyn Backplane>,
    /// Which shards want which channel.
    pub registry: Arc<Registry>,
    /// Deliveries of the fleet's own channels.
    pub cluster_inbox: Arc<ClusterInbox>,
    /// How to ask the other nodes; unset on a node that has none.
    commands: OnceLock<Arc<Commands>>,
    /// What is known of the fleet, this node included.
    roster: OnceLock<Arc<Roster>>,
    table: Table,
    /// Records of sessions; unset where there is no place for them.
    sessions: OnceLock<Sessions>,
    /// Calls under way that must not be cut off by the end of the process.
    tidying: AtomicUsize,
    inboxes: Vec<Arc<Inbox>>,
    runtime: ArcSwap<Runtime>,
    started: Instant,
    connections: AtomicUsize,
    connections_max: usize,
    admission: AdmissionSettings,
    /// Connections and upgrade requests of each address.
    pub address_limits: Arc<AddressLimits>,
    /// Connections of each user.
    pub user_limits: UserLimits,
    /// Emptying this node.
    pub drain: Drain,
    placement: PlacementSettings,
    /// What this node counts and knows about placement.
    pub placing: Placing,
    ready: AtomicBool,
    backplane_up: AtomicBool,
    leaving: AtomicBool,
    draining: AtomicBool,
    meters: NodeMeters,
}

impl Node {
    /// A node over these shards' inboxes. Attaches the registry to the backplane.
    pub fn new(
        name: String,
        backplane: Arc<dyn Backplane>,
        inboxes: Vec<Arc<Inbox>>,
        runtime: Runtime,
        options: NodeOptions,
    ) -> Arc<Self> {
        let registry = Arc::new(Registry::new(inboxes.clone()));
        let cluster_inbox = Arc::new(ClusterInbox::default());
        backplane.attach(Arc::new(Switchboard::new(registry.clone(), cluster_inbox.clone())));
        Arc::new(Self {
            uid: Uuid::new_v4(),
            name,
            backplane,
            registry,
            cluster_inbox,
            commands: OnceLock::new(),
            roster: OnceLock::new(),
            table: Table::default(),
            sessions: OnceLock::new(),
            tidying: AtomicUsize::new(0),
            inboxes,
            runtime: ArcSwap::from_pointee(runtime),
            started: Instant::now(),
            connections: AtomicUsize::new(0),
            connections_max: options.connections_max,
            admission: options.admission,
            address_limits: AddressLimits::new(&options.admission),
            user_limits: UserLimits::new(options.connections_per_user),
            drain: Drain::new(options.drain),
            placement: options.placement,
            placing: Placing::default(),
            ready: AtomicBool::new(false),
            backplane_up: AtomicBool::new(true),
            leaving: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            meters: NodeMeters::new(),
        })
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        let tick = Tick(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Now { tick, unix: i64::try_from(unix).unwrap_or(i64::MAX) }
    }

    /// How long the node runs.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// What can be reloaded, as it is now.
    pub fn runtime(&self) -> Guard<Arc<Runtime>> {
        self.runtime.load()
    }

    /// Replaces what can be reloaded. Sessions see it from their next input on.
    pub fn reload(&self, runtime: Runtime) {
        self.runtime.store(Arc::new(runtime));
    }

    // --- readiness ---

    /// Ready: the backplane was reached once, and the node is not on its way out. A later outage changes it only where
    /// the operator wants that (`backplane.required`).
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && (!self.runtime().backplane_required || self.is_backplane_up())
    }

    /// Whether the backplane could be reached when it was last looked at.
    pub fn is_backplane_up(&self) -> bool {
        self.backplane_up.load(Ordering::Acquire)
    }

    /// What a look at the backplane has shown.
    pub fn set_backplane_up(&self, is_up: bool) {
        self.backplane_up.store(is_up, Ordering::Release);
    }

    /// The node is on its way out: load balancers should send nobody any more.
    pub fn set_unready(&self) {
        self.leaving.store(true, Ordering::Release);
        self.ready.store(false, Ordering::Release);
    }

    /// True from the beginning of a drain's accept grace on.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// The backplane was reached for the first time.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// No new connections are wanted.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// From here on the node is not ready and refuses upgrades.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// From here on shards close whoever still comes, at once; returns how many connections each of them has.
    ///
    /// # Errors
    /// When a shard did not answer in time; it will do so all the same.
    pub async fn stop_accepting(&self) -> Result<Vec<usize>, ShardTimeout> {
        self.ask(|done| Command::StopAccepting { done }).await
    }

    /// Has each shard close so many of the connections that it had then with 1001, in random order.
    pub fn close_some(&self, by_shard: &[usize]) {
        for (inbox, &count) in self.inboxes.iter().zip(by_shard) {
            if count > 0 {
                inbox.push_control(Item::Command(Box::new(Command::CloseSome { count })));
            }
        }
    }

    /// Shards, which is the number of threads that serve clients.
    pub fn shards(&self) -> usize {
        self.inboxes.len()
    }

    // --- connections ---

    /// Live connections of this node.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Who is let in.
    pub fn admission(&self) -> &AdmissionSettings {
        &self.admission
    }

    /// Whether one more connection may be accepted.
    pub fn has_room(&self) -> bool {
        self.connections() < self.connections_max
    }

    /// How many more connections it may hold.
    pub fn room(&self) -> usize {
        self.connections_max.saturating_sub(self.connections())
    }

    /// Live connections without those that have been told to go.
    pub fn staying_connections(&self) -> u64 {
        (self.connections() as u64).saturating_sub(self.placing.going())
    }

    /// Upgrade requests per second that it takes; nothing if there is no bound.
    pub fn accepts_per_second(&self) -> Option<f64> {
        let rate = f64::from(self.admission.rate) * self.inboxes.len() as f64;
        (rate > 0.0).then_some(rate)
    }

    /// What the fleet is told of this node.
    pub fn placement(&self) -> &PlacementSettings {
        &self.placement
    }

    pub(crate) fn connection_opened(&self) {
        self.placing.count_accepted();
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.meters.connection_opened();
    }

    pub(crate) fn connection_closed(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.meters.connection_closed();
    }

    // --- channels ---

    /// How a channel keeps history; `None` without, or in an unknown namespace.
    pub fn history_options(&self, channel: &str) -> Option<HistoryOptions> {
        self.runtime().channels.resolve(channel).ok().and_then(|options| options.history)
    }

    /// Publishes under the namespace's history options, unless `options.skip_history`. No permission is checked.
    ///
    /// # Errors
    /// When the backplane fails; whether it published is then unknown.
    pub async fn publish(
        &self,
        channel: &ChannelName,
        publication: NewPublication,
        options: Publish,
    ) -> Result<Published, BackplaneError> {
        let started = Instant::now();
        let history = if options.skip_history { None } else { self.history_options(channel) };
        let options = PublishOptions {
            history,
            idempotency_key: options.idempotency_key,
            version: options.version,
            version_epoch: options.version_epoch,
        };
        let result = self.backplane.publish(channel, publication, options).await;
        self.meters.published(started.elapsed(), result.is_ok());
        result
    }

    /// Fans out a join or leave; a failure is only counted, as events are delivered at most once.
    pub async fn announce(&self, channel: &ChannelName, event: PresenceEvent) {
        if let Err(error) = self.backplane.announce(channel, event).await {
            tracing::debug!(%error, "a join or leave event was not published");
        }
    }

    /// Reads history of a channel; of one without history, an empty page would be a lie, so that is an error.
    ///
    /// # Errors
    /// When the backplane fails, or the channel keeps no history.
    pub async fn history(&self, channel: &ChannelName, query: HistoryQuery) -> Result<HistoryPage, BackplaneError> {
        match self.history_options(channel) {
            Some(options) => self.backplane.history(channel, query, options).await,
            None => Err(BackplaneError::Protocol("the channel keeps no history".to_owned())),
        }
    }

    // --- the fleet ---

    /// From now on commands go to every node. Called once, when the node has joined the fleet.
    pub fn join_fleet(&self, commands: Arc<Commands>) {
        // A second call would mean a second identity; the first stays.
        let _ = self.commands.set(commands);
    }

    /// From now on the fleet is known. Called once.
    pub fn set_roster(&self, roster: Arc<Roster>) {
        // A second call would mean a second identity; the first stays.
        let _ = self.roster.set(roster);
    }

    /// From now on clients may have sessions. Called once, before the first connection.
    pub fn set_sessions(&self, sessions: Sessions) {
        // A second call would mean a second identity; the first stays.
        let _ = self.sessions.set(sessions);
    }

    /// The records of sessions.
    pub fn sessions(&self) -> Option<Sessions> {
        self.sessions.get().cloned()
    }

    /// Ends the connection that has had a session, on whichever node it is, and has it hand over what it had. Returns when
    /// it can do nothing any more, or when its node does not answer: then it will notice by itself.
    pub async fn take_over(&self, from: NodeId, user: &UserId, client: ClientId, generation: u64) -> Option<TakenOver> {
        if from.0 == self.uid {
            return self.take_over_here(user, client, generation).await.ok().flatten();
        }
        self.commands.get()?.take_over(from, user, client, generation).await
    }

    /// The same on this node.
    ///
    /// # Errors
    /// When a shard did not answer in time.
    pub(crate) async fn take_over_here(
        &self,
        user: &UserId,
        client: ClientId,
        generation: u64,
    ) -> Result<Option<TakenOver>, ShardTimeout> {
        let command = |done| Command::TakeOver { user: user.clone(), client, generation, done };
        let answers = self.ask(command).await?.into_iter().flatten();
        // A connection of an earlier generation may still be on another shard.
        Ok(answers.max_by_key(|taken_over| taken_over.handed_over.is_some()))
    }

    /// Counts a call that must not be cut off by the end of the process, until the answer is dropped.
    pub fn tidying(self: &Arc<Self>) -> Tidying {
        self.tidying.fetch_add(1, Ordering::AcqRel);
        Tidying(self.clone())
    }

    /// Returns when no such call is under way. The process ends soon after, so looking now and then is enough.
    pub async fn tidied(&self) {
        while self.tidying.load(Ordering::Acquire) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What is known of the fleet; `None` when that is stale.
    pub fn digest(&self) -> Option<Arc<Digest>> {
        self.roster.get().and_then(|roster| roster.digest())
    }

    /// What this node knows of the others; `None` before it has joined the fleet.
    pub fn roster(&self) -> Option<Arc<Roster>> {
        self.roster.get().cloned()
    }

    /// The table of nodes, for those who look at it.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Acts on connections, on every node.
    ///
    /// # Errors
    /// When a shard or another node did not answer in time; others may have acted.
    pub async fn apply(&self, target: Target, action: Action) -> Result<Applied, FleetError> {
        if action.revokes()
            && let Some(sessions) = self.sessions.get()
        {
            // First: a client that comes back in between is either too early for this or connected for what follows.
            sessions.revoke(&target.user, self.runtime().sessions.ttl).await.map_err(AskError::from)?;
        }
        match self.commands.get() {
            Some(commands) => Ok(commands.apply(target, &action).await?),
            None => Ok(self.apply_here(target, action).await?),
        }
    }

    /// Channels with subscribers on any node, and how many; without a pattern all of them.
    ///
    /// # Errors
    /// When a shard or another node did not answer in time.
    pub async fn channels(&self, glob: Option<&Glob>) -> Result<BTreeMap<ChannelName, usize>, FleetError> {
        match self.commands.get() {
            Some(commands) => Ok(commands.channels(glob.map_or("", Glob::pattern)).await?),
            None => Ok(self.channels_here(glob).await?),
        }
    }

    /// What every node is doing.
    ///
    /// # Errors
    /// When a shard or another node did not answer in time.
    pub async fn info(&self) -> Result<Vec<NodeInfo>, FleetError> {
        match self.commands.get() {
            Some(commands) => Ok(commands.info().await?),
            None => Ok(vec![self.info_here().await?]),
        }
    }

    // --- shards ---

    /// Acts on connections, on every shard of this node.
    ///
    /// # Errors
    /// When a shard did not answer in time; others may have acted.
    pub async fn apply_here(&self, target: Target, action: Action) -> Result<Applied, ShardTimeout> {
        let action = Arc::new(action);
        let answers = self.ask(|done| Command::Apply { target: target.clone(), action: action.clone(), done }).await?;
        Ok(answers.into_iter().fold(Applied::default(), |sum, applied| Applied {
            matched: sum.matched + applied.matched,
            already_subscribed: sum.already_subscribed + applied.already_subscribed,
        }))
    }

    /// Channels with subscribers on this node, and how many; without a pattern all of them.
    pub(crate) async fn channels_here(
        &self,
        glob: Option<&Glob>,
    ) -> Result<BTreeMap<ChannelName, usize>, ShardTimeout> {
        let channels = self.survey().await?.channels;
        let Some(glob) = glob else { return Ok(channels) };
        let mut matching = Vec::new();
        for (index, (name, subscribers)) in channels.into_iter().enumerate() {
            if index % NAMES_PER_TURN == NAMES_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
            if glob.matches(&name) {
                matching.push((name, subscribers));
            }
        }
        Ok(matching.into_iter().collect())
    }

    /// What this node is doing.
    pub(crate) async fn info_here(&self) -> Result<NodeInfo, ShardTimeout> {
        Ok(info::describe(self, &self.survey().await?))
    }

    /// How many connections of each shard may be moved.
    ///
    /// # Errors
    /// When a shard did not answer in time.
    pub async fn count_movable(&self, rule: MoveRule) -> Result<Vec<usize>, ShardTimeout> {
        self.ask(|done| Command::CountMovable { rule, done }).await
    }

    /// Has so many connections of each shard closed in order to move them, chosen at random; returns how many were.
    ///
    /// # Errors
    /// When a shard did not answer in time; others may have acted.
    pub async fn move_connections(&self, rule: MoveRule, by_shard: &[usize]) -> Result<usize, ShardTimeout> {
        let mut counts = by_shard.iter().copied();
        let command = |done| Command::Move { rule, count: counts.next().unwrap_or_default(), done };
        Ok(self.ask(command).await?.into_iter().sum())
    }

    /// What is on this node, merged over its shards.
    ///
    /// # Errors
    /// When a shard did not answer in time.
    pub async fn survey(&self) -> Result<NodeSurvey, ShardTimeout> {
        let mut merged = NodeSurvey::default();
        let mut users = HashSet::new();
        for survey in self.ask(|done| Command::Survey { done }).await? {
            let Survey { counts, users: some, channels } = survey;
            merged.connections += counts.connections;
            merged.subscriptions += counts.subscriptions;
            users.extend(some);
            for (channel, subscribers) in channels {
                *merged.channels.entry(channel).or_default() += subscribers;
            }
        }
        merged.users = users.len();
        Ok(merged)
    }

    async fn ask<T>(&self, mut command: impl FnMut(oneshot::Sender<T>) -> Command) -> Result<Vec<T>, ShardTimeout> {
        let answers: Vec<_> = self
            .inboxes
            .iter()
            .map(|inbox| {
                let (done, answer) = oneshot::channel();
                inbox.push_control(Item::Command(Box::new(command(done))));
                answer
            })
            .collect();
        let gathered = async {
            let mut gathered = Vec::with_capacity(answers.len());
            for answer in answers {
                gathered.push(answer.await.map_err(|_| ShardTimeout)?);
            }
            Ok(gathered)
        };
        tokio::time::timeout(COMMAND_TIMEOUT, gathered).await.map_err(|_| ShardTimeout)?
    }
}

/// A call that must not be cut off by the end of the process.
pub struct Tidying(Arc<Node>);

impl Drop for Tidying {
    fn drop(&mut self) {
        self.0.tidying.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Options of one publish through the node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Publish {
    /// Fan out without storing, even where the channel keeps history.
    pub skip_history: bool,
    /// See [`PublishOptions::idempotency_key`].
    pub idempotency_key: Option<String>,
    /// See [`PublishOptions::version`].
    pub version: u64,
    /// See [`PublishOptions::version_epoch`].
    pub version_epoch: String,
}

/// What is on this node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeSurvey {
    /// Live connections.
    pub connections: usize,
    /// Distinct users.
    pub users: usize,
    /// Subscriptions.
    pub subscriptions: usize,
    /// Channels with subscribers, and how many.
    pub channels: BTreeMap<ChannelName, usize>,
}
