//! Acknowledging a publish only when replicas have it, many publishes at a time.
//!
//! After the publish script was answered, a *round* writes a marker and sends `WAIT` on a connection of its own (`WAIT`
//! blocks its connection). When it says that enough replicas have the marker, they have everything written before it. At
//! most one round per server is under way; the publishes answered meanwhile share the next one, so that the rate does
//! not depend on the way to the replicas.
//!
//! # Why a failover is not acknowledged wrongly
//! `WAIT` speaks of the server that it is sent to, which need not be the one that carried out the publish, or not on the
//! same data. So the publish and the marker each return the replication id of the data set they were written to, in the
//! same atomic step, and it is asked for once more after `WAIT`. It is never given twice, and a server that has it takes
//! writes only while it is the primary of that data set. Where all three are equal, one server was that primary from the
//! publish until after `WAIT`. In all other cases the outcome is unknown.
//!
//! A round belongs to a replication id, and its marker to one of the channels published to, so that a cluster needs
//! nothing else: channels of one replication id are on one primary.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use fred::interfaces::ClientLike;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::commands::Commands;
use super::config::{Address, Durability};
use super::connection::{number, send, text, unavailable_or_refused};
use super::keys::ChannelKeys;
use super::layout::{Layout, slot_of};
use super::servers::{Lane, Servers};
use super::{lineage_of, millis};
use crate::BackplaneError;
use crate::health::Health;

const MARK: &str = include_str!("mark.lua");

/// What the connections are for, in the log.
const PURPOSE: &str = "replication";

/// Nobody reads a marker.
const MARKER_TTL: Duration = Duration::from_secs(1);

type Answer<T> = Result<T, BackplaneError>;

/// Waits for replicas.
pub(super) struct Replication {
    servers: Arc<Servers>,
    /// One connection to each primary.
    lanes: Mutex<HashMap<Address, Arc<Lane>>>,
    health: Arc<Health>,
    replicas: u32,
    timeout: Duration,
    command_timeout: Duration,
    /// By replication id; there while a task works on it.
    queues: Mutex<HashMap<String, Queue>>,
    /// The last round found too few replicas.
    too_few: AtomicBool,
}

/// Publishes that wait for the next round.
#[derive(Default)]
struct Queue {
    /// Key of the marker, in the slot of one of them.
    marker: String,
    waiting: Vec<oneshot::Sender<Answer<()>>>,
}

impl Replication {
    /// `None` where the settings ask for no replicas. Fails if `WAIT` is not allowed, not for lack of replicas. `probed` are
    /// keys on every primary.
    pub(super) async fn connect(commands: &Commands, probed: &[ChannelKeys]) -> Answer<Option<Arc<Self>>> {
        let servers = Arc::clone(commands.servers());
        let config = Arc::clone(&servers.access().config);
        let Durability::Replicated { replicas, timeout } = config.durability else { return Ok(None) };
        let mut lanes = HashMap::new();
        for primary in &servers.now().layout.primaries {
            let connection = servers.access().connect(&primary.address).await?;
            lanes.insert(primary.address.clone(), Arc::new(Lane::new(connection, servers.access(), PURPOSE)));
        }
        let replication = Self {
            servers,
            lanes: Mutex::new(lanes),
            health: Arc::clone(commands.health()),
            replicas,
            timeout,
            command_timeout: config.command_timeout,
            queues: Mutex::default(),
            too_few: AtomicBool::new(false),
        };
        for keys in probed {
            replication.wait(&keys.marker(), 0).await?;
        }
        let replication = Arc::new(replication);
        tokio::spawn(forget(Arc::downgrade(&replication), replication.servers.layouts()));
        Ok(Some(replication))
    }

    /// The connection to the primary that has this slot now, made if there is none yet.
    async fn lane(&self, slot: u16) -> Answer<Arc<Lane>> {
        let serving = self.servers.now();
        let address = &serving.owner(slot)?.address;
        if let Some(lane) = self.lanes.lock().get(address) {
            return Ok(Arc::clone(lane));
        }
        let access = self.servers.access();
        let lane = Arc::new(Lane::new(access.connect_later(address), access, PURPOSE));
        self.lanes.lock().insert(address.clone(), Arc::clone(&lane));
        lane.client().wait_for_connect().await.map_err(unavailable_or_refused)?;
        Ok(lane)
    }

    /// Returns when enough replicas have what the server with this replication id has written to the channel so far.
    pub(super) async fn confirm(self: &Arc<Self>, keys: &ChannelKeys, lineage: String) -> Answer<()> {
        let under_way = self.health.begin();
        let outcome = match tokio::time::timeout(self.timeout, self.enroll(keys, lineage)).await {
            Ok(Ok(outcome)) => outcome,
            // The task is never ended before it has answered.
            Ok(Err(_)) => Err(self.unknown("the backplane is closed")),
            Err(_) => Err(self.too_few_in_time()),
        };
        if outcome.is_err() {
            under_way.failed(false);
        }
        outcome
    }

    fn enroll(self: &Arc<Self>, keys: &ChannelKeys, lineage: String) -> oneshot::Receiver<Answer<()>> {
        let (done, outcome) = oneshot::channel();
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.get_mut(&lineage) {
            if queue.waiting.is_empty() {
                queue.marker = keys.marker();
            }
            queue.waiting.push(done);
        } else {
            queues.insert(lineage.clone(), Queue { marker: keys.marker(), waiting: vec![done] });
            tokio::spawn(Arc::clone(self).rounds(lineage));
        }
        outcome
    }

    /// Does rounds for as long as somebody waits.
    async fn rounds(self: Arc<Self>, lineage: String) {
        loop {
            let Queue { marker, mut waiting } = {
                let mut queues = self.queues.lock();
                match queues.get_mut(&lineage) {
                    Some(queue) if !queue.waiting.is_empty() => std::mem::take(queue),
                    _ => {
                        queues.remove(&lineage);
                        return;
                    }
                }
            };
            // Those whose time is over.
            waiting.retain(|done| !done.is_closed());
            if waiting.is_empty() {
                continue;
            }
            let outcome = self.round(&marker, &lineage).await;
            for done in waiting {
                // Whoever stopped waiting needs no answer.
                let _ = done.send(outcome.clone());
            }
        }
    }

    async fn round(&self, marker: &str, lineage: &str) -> Answer<()> {
        let waited = tokio::time::timeout(2 * self.command_timeout, self.wait(marker, self.replicas)).await;
        let (have_it, written_to) = match waited {
            Ok(Ok(waited)) => waited,
            Ok(Err(error)) => return Err(self.unknown(&error.to_string())),
            Err(_) => return Err(self.unknown("redis did not answer in time")),
        };
        if written_to.as_deref() != Some(lineage) {
            return Err(self.unknown("redis has failed over or was restarted"));
        }
        let is_enough = have_it >= u64::from(self.replicas);
        if self.too_few.swap(!is_enough, Relaxed) == is_enough {
            if is_enough {
                tracing::info!("enough redis replicas answer in time again: publishes are acknowledged");
            } else {
                let wanted = self.replicas;
                tracing::warn!(
                    have_it,
                    wanted,
                    "too few redis replicas answer in time: publishes are not acknowledged"
                );
            }
        }
        if is_enough { Ok(()) } else { Err(self.too_few_in_time()) }
    }

    /// How many replicas have a marker that is written now, and the replication id of its data set; `None` if that has
    /// changed in between.
    async fn wait(&self, marker: &str, replicas: u32) -> Answer<(u64, Option<String>)> {
        let lane = self.lane(slot_of(marker)).await?;
        // First polled in this order, hence sent and carried out in it.
        let (written_to, have_it, info) = futures_util::join!(
            send(lane.commands(), "EVAL", vec![MARK.into(), 1.into(), marker.into(), millis(MARKER_TTL)]),
            send(lane.commands(), "WAIT", vec![i64::from(replicas).into(), millis(self.timeout)]),
            send(lane.commands(), "INFO", vec!["replication".into()]),
        );
        let written_to = text(written_to.map_err(unavailable_or_refused)?)?;
        let have_it = number(&have_it.map_err(unavailable_or_refused)?)?;
        let is_still = lineage_of(&text(info.map_err(unavailable_or_refused)?)?)? == written_to;
        lane.link.answered();
        Ok((have_it, is_still.then_some(written_to)))
    }

    fn too_few_in_time(&self) -> BackplaneError {
        self.unknown(&format!("fewer than {} replicas had it after {:?}", self.replicas, self.timeout))
    }

    fn unknown(&self, why: &str) -> BackplaneError {
        BackplaneError::Unavailable(format!(
            "the outcome of the publish is unknown: the primary has stored it, and it may have been delivered, but it may \
             be lost in a failover: {why}"
        ))
    }
}

/// Gives up connections to servers that are primaries no more.
async fn forget(replication: Weak<Replication>, mut layouts: watch::Receiver<Arc<Layout>>) {
    while layouts.changed().await.is_ok() {
        let layout = Arc::clone(&layouts.borrow_and_update());
        let Some(replication) = replication.upgrade() else { return };
        let is_primary = |address: &Address| layout.primaries.iter().any(|primary| primary.address == *address);
        replication.lanes.lock().retain(|address, _| is_primary(address));
    }
}
