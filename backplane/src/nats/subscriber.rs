//! The connection for deliveries: which partitions it is subscribed to.
//!
//! A *keeper* owns the connection and the subscriptions. It makes them, each time followed by a barrier, because the client
//! library does not wait for the server; it makes all of them again on the next connection; and it tests the connection.
//! Each subscription has a task that hands on what comes ([`partition`](super::partition)).
//!
//! In a cluster the server that is asked for deliveries has to tell the others, and nobody says when it has. So there a
//! message is written to each stream, of which the copy must arrive: then the server that leads the stream knows.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::base::Base;
use super::calls::Pauses;
use super::classes::{Classes, Kept};
use super::connection::{Connection, Purpose};
use super::envelope::{Content, Envelope};
use super::partition::{BARRIER_PATIENCE, Barriers, Context, Partition, route};
use super::request::{CallError, Write};
use crate::health::Link;
use crate::{BackplaneError, ChannelName, Disturbance, Sink};

/// Requests that may wait for the keeper; more of them wait in their callers.
const REQUESTS_WAITING: usize = 1024;

/// Channels in one batch, after which its callers are answered.
const CHANNELS_PER_BATCH: usize = 10_000;

/// Barriers that are waited for at the same time.
const BARRIERS_AT_ONCE: usize = 64;

/// Where deliveries go, once it is known.
pub(super) type SinkCell = Arc<OnceLock<Arc<dyn Sink>>>;

type Done = oneshot::Sender<Result<(), BackplaneError>>;

enum Request {
    /// Deliveries of channels are wanted, or are not any more.
    Change { channels: Vec<ChannelName>, subscribe: bool, done: Done },
    /// Deliveries of a stream must arrive in all partitions that there are.
    Reach { kept: Arc<Kept>, done: Done },
}

/// Deliveries of all channels.
pub(super) struct Deliveries {
    context: Arc<Context>,
    requests: mpsc::Sender<Request>,
    keeper: JoinHandle<()>,
}

impl Deliveries {
    /// Connects, and fails when a first attempt does.
    pub(super) async fn connect(base: &Arc<Base>, classes: &Arc<Classes>) -> Result<Self, BackplaneError> {
        let access = base.calls.access();
        let connection = access.connect_any(Purpose::Deliveries).await?;
        let link = Link::new(Arc::clone(&access.health), "deliveries");
        let (base, classes) = (Arc::clone(base), Arc::clone(classes));
        let context = Arc::new(Context { base, classes, barriers: Barriers::default() });
        let (requests, queue) = mpsc::channel(REQUESTS_WAITING);
        let keeper = Keeper { context: Arc::clone(&context), link, partitions: HashMap::new() };
        let keeper = tokio::spawn(keeper.run(connection, queue));
        Ok(Self { context, requests, keeper })
    }

    /// Starts or ends deliveries of channels and waits until the server has done it.
    pub(super) async fn change(&self, channels: &[ChannelName], subscribe: bool) -> Result<(), BackplaneError> {
        let make = |done| Request::Change { channels: channels.to_vec(), subscribe, done };
        let under_way = self.context.health().begin();
        let timed = tokio::time::timeout(self.context.base.config.command_timeout, self.ask(make)).await;
        if !matches!(timed, Ok(Ok(()))) {
            under_way.failed(timed.is_err());
        }
        timed.unwrap_or_else(|_| {
            // Nobody asks again for the end of deliveries, nor for deliveries that were not acknowledged.
            let (done, _) = oneshot::channel();
            let give_up = Request::Change { channels: channels.to_vec(), subscribe: false, done };
            // A full queue means that the keeper is away for long: it asks each caller whether he still waits.
            let _ = self.requests.try_send(give_up);
            Err(BackplaneError::Unavailable("nats did not subscribe in time".to_owned()))
        })
    }

    /// Makes sure that deliveries of a stream arrive. The caller limits the time.
    pub(super) async fn reach(&self, kept: Arc<Kept>) -> Result<(), BackplaneError> {
        self.ask(|done| Request::Reach { kept, done }).await
    }

    async fn ask(&self, make: impl FnOnce(Done) -> Request) -> Result<(), BackplaneError> {
        let gone = || BackplaneError::Unavailable("the backplane was closed".to_owned());
        let (done, answer) = oneshot::channel();
        self.requests.send(make(done)).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Ends all deliveries for good.
    pub(super) fn close(&self) {
        self.keeper.abort();
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// A partition with its subscription.
struct Active {
    partition: Arc<Partition>,
    task: Option<AbortOnDrop>,
    /// Since when it has no channels.
    empty_since: Option<Instant>,
}

/// A task that ends with this.
struct AbortOnDrop(JoinHandle<()>);

impl AbortOnDrop {
    /// Ends it and waits until it has.
    async fn end(mut self) {
        self.0.abort();
        // It was aborted.
        let _ = (&mut self.0).await;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Keeper {
    context: Arc<Context>,
    /// Up while the connection lives and has all subscriptions, as far as is known.
    link: Link,
    partitions: HashMap<u16, Active>,
}

impl Keeper {
    async fn run(mut self, mut connection: Arc<Connection>, mut queue: mpsc::Receiver<Request>) {
        loop {
            let why = self.serve(&connection, &mut queue).await;
            connection.end();
            // From here on deliveries may be missing, and the node must not vouch for what it has.
            if self.link.down(&why) {
                self.context.disturb(Disturbance::All);
            }
            connection = self.restore().await;
        }
    }

    /// Does what is asked for until the connection has ended; says why.
    async fn serve(&mut self, connection: &Arc<Connection>, queue: &mut mpsc::Receiver<Request>) -> String {
        let config = Arc::clone(&self.context.base.config);
        let mut overflows = connection.overflows();
        let mut liveness = tokio::time::interval(config.liveness_interval);
        liveness.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let outcome = tokio::select! {
                biased;
                () = connection.ended() => return "the connection ended".to_owned(),
                _ = overflows.changed() => {
                    self.overflowed(&mut overflows);
                    Ok(())
                }
                request = queue.recv() => match request {
                    Some(first) => self.carry_out(connection, first, queue).await,
                    // The backplane is gone, and this task with it.
                    None => return "closed".to_owned(),
                },
                _ = liveness.tick() => {
                    self.end_lingering();
                    self.confirm(connection).await
                }
            };
            if let Err(error) = outcome {
                return error.to_string();
            }
        }
    }

    fn overflowed(&self, overflows: &mut watch::Receiver<u64>) {
        // How many were lost is not known; the library tells of some of them.
        overflows.mark_unchanged();
        self.context.health().lost(1);
        tracing::warn!("deliveries were lost because this node is too slow; channels are repaired");
        self.context.disturb(Disturbance::All);
    }

    async fn confirm(&self, connection: &Connection) -> Result<(), CallError> {
        let limit = self.context.base.config.command_timeout;
        let silent = |_| CallError::Unavailable("the server does not answer".to_owned());
        tokio::time::timeout(limit, connection.confirm()).await.map_err(silent)?
    }

    /// Carries out the requests that wait, in one batch. An error is one of the connection.
    async fn carry_out(
        &mut self,
        connection: &Arc<Connection>,
        first: Request,
        queue: &mut mpsc::Receiver<Request>,
    ) -> Result<(), CallError> {
        let mut answers = Vec::new();
        let mut new = HashSet::new();
        let mut reach = Vec::new();
        let mut count = 0;
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                // A caller that has given up does not expect deliveries. The end of deliveries it still does.
                Request::Change { subscribe: true, ref done, .. } if done.is_closed() => {}
                Request::Change { channels, subscribe, done } => {
                    count += channels.len();
                    for channel in &channels {
                        self.change(channel, subscribe, &mut new);
                    }
                    answers.push((done, if subscribe { channels } else { Vec::new() }));
                }
                Request::Reach { kept, done } => reach.push((kept, done)),
            }
            next = if count < CHANNELS_PER_BATCH { queue.try_recv().ok() } else { None };
        }
        let made = self.subscribe(connection, new).await;
        for (done, channels) in answers {
            if made.is_err() {
                for channel in &channels {
                    self.change(channel, false, &mut HashSet::new());
                }
            }
            // Whoever stopped waiting needs no answer.
            let _ = done.send(made.clone().map_err(BackplaneError::from));
        }
        for (kept, done) in reach {
            let partitions: Vec<u16> = self.partitions.keys().copied().collect();
            let reached = self.reach(&partitions, std::slice::from_ref(&kept)).await;
            if reached.is_ok() {
                kept.is_reached.store(true, Relaxed);
            }
            let _ = done.send(reached.map_err(BackplaneError::from));
        }
        made
    }

    /// Notes that a channel is wanted or not. Partitions that need a subscription are added to `new`.
    fn change(&mut self, channel: &ChannelName, subscribe: bool, new: &mut HashSet<u16>) {
        let number = self.context.base.names.partition(channel);
        let health = self.context.health();
        if subscribe {
            let active = self.partitions.entry(number).or_insert_with(|| {
                new.insert(number);
                Active { partition: Arc::default(), task: None, empty_since: None }
            });
            active.empty_since = None;
            if active.partition.add(channel) {
                health.channels_changed(0, 1);
            }
        } else if let Some(active) = self.partitions.get_mut(&number)
            && active.partition.remove(channel)
        {
            health.channels_changed(1, 0);
            if active.partition.len() == 0 {
                active.empty_since = Some(Instant::now());
            }
        }
    }

    fn end_lingering(&mut self) {
        let linger = self.context.base.config.partition_linger;
        // The end of the task ends the subscription.
        self.partitions.retain(|_, active| active.empty_since.is_none_or(|since| since.elapsed() < linger));
    }

    /// Subscribes to partitions and returns when deliveries arrive.
    async fn subscribe(&mut self, connection: &Arc<Connection>, new: HashSet<u16>) -> Result<(), CallError> {
        if new.is_empty() {
            return Ok(());
        }
        for number in &new {
            let Some(active) = self.partitions.get_mut(number) else { continue };
            let messages = connection.subscribe(self.context.base.names.live_partition(*number)).await?;
            let (partition, context) = (Arc::clone(&active.partition), Arc::clone(&self.context));
            let task = route(partition, messages, context, connection.server.keeps_order());
            active.task = Some(AbortOnDrop(tokio::spawn(task)));
        }
        self.confirm(connection).await?;
        if connection.server.is_clustered {
            let partitions: Vec<u16> = new.into_iter().collect();
            self.reach(&partitions, &self.context.classes.all()).await?;
        }
        Ok(())
    }

    /// Returns when copies of what is written to the streams arrive in the partitions.
    async fn reach(&self, partitions: &[u16], streams: &[Arc<Kept>]) -> Result<(), CallError> {
        let mut barriers = Vec::with_capacity(partitions.len() * streams.len());
        for &partition in partitions {
            for kept in streams {
                barriers.push(reach_one(Arc::clone(&self.context), partition, Arc::clone(kept)));
            }
        }
        let all = stream::iter(barriers).buffer_unordered(BARRIERS_AT_ONCE).try_collect::<Vec<()>>();
        let limit = 2 * self.context.base.config.command_timeout;
        let silent = |_| CallError::Unavailable("deliveries of the cluster do not arrive".to_owned());
        tokio::time::timeout(limit, all).await.map_err(silent)?.map(drop)
    }

    /// Makes the next connection with all subscriptions, then has every channel repaired. Tries until it succeeds.
    async fn restore(&mut self) -> Arc<Connection> {
        // Nothing of the connection before may come after what comes over the next one.
        for active in self.partitions.values_mut() {
            if let Some(task) = active.task.take() {
                task.end().await;
            }
        }
        let mut pauses = Pauses::new(self.context.base.config.reconnect_delay_max);
        loop {
            match self.try_restore().await {
                Ok(connection) => {
                    let health = self.context.health();
                    health.restored();
                    if self.partitions.values().any(|active| active.partition.len() > 0) {
                        self.context.disturb(Disturbance::All);
                    }
                    self.link.up();
                    return connection;
                }
                Err(error) => tracing::debug!(%error, "nats deliveries are not restored yet"),
            }
            pauses.pause().await;
        }
    }

    async fn try_restore(&mut self) -> Result<Arc<Connection>, BackplaneError> {
        let access = Arc::clone(self.context.base.calls.access());
        let connection = access.connect(Purpose::Deliveries).await?;
        self.partitions.retain(|_, active| active.partition.len() > 0);
        let all = self.partitions.keys().copied().collect();
        self.subscribe(&connection, all).await?;
        Ok(connection)
    }
}

/// Writes barriers to a stream until the copy of one arrives in a partition.
async fn reach_one(context: Arc<Context>, partition: u16, kept: Arc<Kept>) -> Result<(), CallError> {
    let subject = context.base.names.barrier(kept.class, partition);
    loop {
        let ready = kept.ready().await.map_err(|error| CallError::Unavailable(error.to_string()))?;
        let id = rand::random();
        let seen = context.barriers.expect(id);
        let envelope = Envelope { knowledge: ready.lineage.knowledge(), id, content: Content::Barrier };
        let write = Write { replaces_all: true, ..Write::new(subject.clone(), envelope.encode()) };
        let written = ready.connection.write(write).await;
        let arrived = match &written {
            Ok(_) => tokio::time::timeout(BARRIER_PATIENCE, seen.notified()).await.is_ok(),
            Err(_) => false,
        };
        context.barriers.forget(id);
        match written {
            Ok(written) => kept.stream.wrote(&ready.lineage, written.number, id),
            Err(error) => {
                kept.stream.failed(&error);
                tokio::time::sleep(BARRIER_PATIENCE / 4).await;
            }
        }
        if arrived {
            return Ok(());
        }
    }
}
