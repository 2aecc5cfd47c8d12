//! Presence on node leases.
//!
//! Every entry names the lease of the node that made it. A node renews one key, not one per client; readers ignore
//! entries of dead leases; a survivor removes them and announces the leaves, once.
//!
//! A lease id is never used again: a node whose lease is gone takes a new one and writes its entries anew. So a dead
//! lease stays dead, and removing its entries by comparison cannot hit a living client. The same is done when the data
//! set was exchanged (failover, restart), because old entries may have come back with it.
//!
//! Entries of clients that may come back are handed over to buckets, which outlive the node: see `lingering`.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::types::Value;
use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::MutexGuard;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use super::commands::Commands;
use super::config::RedisConfig;
use super::connection::{Script, blob, list, number, script, text};
use super::keys::{ChannelKeys, Keys};
use super::lingering::{self, Buckets, is_bucket, is_shown};
use super::{lineage, millis};
use crate::record::{Record, decode, encode_presence};
use crate::standstill::Pulse;
use crate::{BackplaneError, ChannelName, ClientId, ClientInfo, PresenceEvent, PresenceStats, UserId};

static REAP: Script = script!("reap.lua");
static ERASE: Script = script!("erase.lua");
static LINGER: Script = script!("linger.lua");

/// Locks that keep changes of one channel by this node in order; more of them than commands that run at a time.
const STRIPES: usize = 64;

/// Channels of a dead lease that are taken at a time.
const REAPED_PER_STEP: i64 = 256;

/// Buckets of lingering entries that are emptied in one go.
const BUCKETS_PER_TURN: usize = 64;

/// Entries of one channel written in one command.
const ENTRIES_PER_COMMAND: usize = 500;

/// Channels that are written, cleared up or reaped at the same time: enough that the way to Redis does not count, few
/// enough that clients' calls are not held up.
const AT_ONCE: usize = 32;

/// Leases of others that a node sees alive before it stops to look for dead ones.
const LIVING_SEEN: usize = 3;

/// Entries in doubt. More of them are left to other nodes, by giving the lease up under which they are.
const DOUBTFUL_MAX: usize = 100_000;

/// Leases of this node that are remembered. Each change of the data set takes one.
const LEASES_REMEMBERED: usize = 16;

/// Bytes of the lease id before the record of an entry.
const LEASE_BYTES: usize = 16;

type Answer<T> = Result<T, BackplaneError>;

/// This node's entries and lease, and everybody's entries in Redis.
pub(super) struct Presence {
    commands: Arc<Commands>,
    keys: Keys,
    ttl: Duration,
    timeout: Duration,
    name: String,
    local: Mutex<Local>,
    buckets: Buckets,
    stripes: Vec<tokio::sync::Mutex<()>>,
}

struct Local {
    lease: Uuid,
    /// The data set in which it was taken.
    taken_in: String,
    /// The data set in which all entries have been written under it; empty while they are being written.
    lineage: String,
    /// What the entries have to be written in, when that is not so.
    wanted: Option<String>,
    /// The lease before it, kept alive until all entries have been written under the new one.
    former: Option<Uuid>,
    /// Every lease this node had, the newest last: what is under one of them is this node's to remove.
    leases: Vec<Uuid>,
    rooms: HashMap<ChannelName, Room>,
    /// Entries that must go but may still be there, after a call that failed.
    doubtful: HashMap<(ChannelName, ClientId), Fate>,
    /// When the lease was last in question; `None` if it never was.
    unwell: Option<Instant>,
}

/// What has to become of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It goes at once, without a leave.
    Erased,
    /// It goes after this time, with one.
    Lingers(Duration),
}

#[derive(Default)]
struct Room {
    members: HashMap<ClientId, Arc<ClientInfo>>,
    /// The lease in whose index this channel is.
    indexed: Option<Uuid>,
    /// The lease under which all members were written when it was taken.
    written: Option<Uuid>,
}

impl Presence {
    /// Registers a lease.
    pub(super) async fn register(commands: Arc<Commands>, keys: Keys, config: &RedisConfig) -> Answer<Arc<Self>> {
        let presence = Self {
            commands,
            keys,
            ttl: config.lease_ttl,
            timeout: config.command_timeout,
            name: config.node_name.clone(),
            local: Mutex::new(Local {
                lease: Uuid::nil(),
                taken_in: String::new(),
                lineage: String::new(),
                wanted: None,
                former: None,
                leases: Vec::new(),
                rooms: HashMap::new(),
                doubtful: HashMap::new(),
                unwell: None,
            }),
            buckets: Buckets::default(),
            stripes: (0..STRIPES).map(|_| tokio::sync::Mutex::default()).collect(),
        };
        presence.local.lock().wanted = Some(lineage(&presence.commands).await?);
        presence.register_entries().await?;
        Ok(Arc::new(presence))
    }

    pub(super) async fn add(&self, channel: &ChannelName, info: Arc<ClientInfo>) -> Answer<()> {
        self.in_time(self.add_now(channel, info)).await?;
        Ok(())
    }

    /// True if an entry of the client was replaced.
    pub(super) async fn adopt(&self, channel: &ChannelName, info: Arc<ClientInfo>) -> Answer<bool> {
        self.in_time(self.add_now(channel, info)).await
    }

    pub(super) async fn remove(&self, channel: &ChannelName, client: ClientId) -> Answer<()> {
        self.in_time(self.end_now(channel, client, Fate::Erased)).await
    }

    pub(super) async fn linger(&self, channel: &ChannelName, client: ClientId, grace: Duration) -> Answer<()> {
        self.in_time(self.end_now(channel, client, Fate::Lingers(grace))).await
    }

    /// A change is several calls and a wait for the change before it, and all together must end before a client gives up.
    async fn in_time<T>(&self, change: impl Future<Output = Answer<T>>) -> Answer<T> {
        let timed = tokio::time::timeout(2 * self.timeout, change).await;
        timed.unwrap_or_else(|_| Err(BackplaneError::Unavailable("redis did not answer in time".to_owned())))
    }

    /// True if there was an entry, which is replaced. Its leave was not announced: that is done together with its removal.
    async fn add_now(&self, channel: &ChannelName, info: Arc<ClientInfo>) -> Answer<bool> {
        let _order = self.stripe(channel).await?;
        let client = info.client;
        {
            let mut local = self.local.lock();
            local.doubtful.remove(&(channel.clone(), client));
            local.rooms.entry(channel.clone()).or_default().members.insert(client, Arc::clone(&info));
        }
        let guard = Doubt { presence: self, channel, client, fate: Fate::Erased, settled: false };
        let added = self.write(channel, &[info]).await?;
        guard.settle();
        Ok(added == 0)
    }

    async fn end_now(&self, channel: &ChannelName, client: ClientId, fate: Fate) -> Answer<()> {
        // Before anything can fail, or be dropped. A later addition waits behind this and settles it.
        let guard = Doubt { presence: self, channel, client, fate, settled: false };
        let _order = self.stripe(channel).await?;
        self.end(channel, client, fate).await?;
        guard.settle();
        Ok(())
    }

    /// Has an entry of this node go, now or later; the stripe is locked.
    async fn end(&self, channel: &ChannelName, client: ClientId, fate: Fate) -> Answer<()> {
        match fate {
            Fate::Erased => self.erase(channel, client).await?,
            Fate::Lingers(grace) => self.hand_over(channel, client, grace).await?,
        }
        self.forget_member(channel, client).await;
        Ok(())
    }

    /// All entries of living leases.
    pub(super) async fn list(&self, channel: &ChannelName) -> Answer<Vec<Arc<ClientInfo>>> {
        let key = self.keys.channel(channel).presence();
        let values = list(self.commands.call(&key, "HVALS", vec![key.as_str().into()]).await?)?;
        let entries: Vec<(Uuid, Bytes)> = values.into_iter().map(|value| split(blob(value)?)).collect::<Answer<_>>()?;
        let own = self.local.lock().lease;
        let others = entries.iter().map(|(lease, _)| *lease).filter(|lease| *lease != own && !is_bucket(*lease));
        let others: HashSet<Uuid> = others.collect();
        let alive = others
            .into_iter()
            .map(|lease| async move { Ok::<_, BackplaneError>((lease, self.is_alive(lease).await?)) });
        let alive: HashMap<Uuid, bool> = try_join_all(alive).await?.into_iter().collect();
        let lives = |lease: Uuid| match alive.get(&lease) {
            Some(is_alive) => *is_alive,
            None => lease == own || is_shown(lease),
        };
        let living = entries.iter().filter(|(lease, _)| lives(*lease));
        living
            .map(|(_, record)| match decode(record, None) {
                Ok(Record::Presence(PresenceEvent::Join(info) | PresenceEvent::Leave(info))) => Ok(info),
                Ok(Record::Publication(_)) => Err(BackplaneError::Protocol("a publication among presence".to_owned())),
                Err(error) => Err(BackplaneError::Protocol(error.to_string())),
            })
            .collect()
    }

    pub(super) async fn stats(&self, channel: &ChannelName) -> Answer<PresenceStats> {
        let members = self.list(channel).await?;
        let users: HashSet<&UserId> = members.iter().map(|info| &info.user).collect();
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        Ok(PresenceStats { num_clients: count(members.len()), num_users: count(users.len()) })
    }

    /// Waits for earlier changes of the channel by this node, but not for ever.
    async fn stripe(&self, channel: &ChannelName) -> Answer<MutexGuard<'_, ()>> {
        let mut hasher = DefaultHasher::new();
        channel.hash(&mut hasher);
        let stripe = &self.stripes[(hasher.finish() % STRIPES as u64) as usize];
        let waited = tokio::time::timeout(self.timeout, stripe.lock()).await;
        waited.map_err(|_| BackplaneError::Unavailable("earlier changes of presence are not done yet".to_owned()))
    }

    async fn is_alive(&self, lease: Uuid) -> Answer<bool> {
        let key = self.keys.lease(lease);
        Ok(number(&self.commands.call(&key, "EXISTS", vec![key.as_str().into()]).await?)? == 1)
    }

    /// Writes entries under the present lease; the stripe is locked. Returns how many clients had none before.
    async fn write(&self, channel: &ChannelName, infos: &[Arc<ClientInfo>]) -> Answer<u64> {
        let (lease, is_indexed) = {
            let local = self.local.lock();
            (local.lease, local.rooms.get(channel).is_some_and(|room| room.indexed == Some(local.lease)))
        };
        if !is_indexed {
            // Before the entry, so that no entry is out of a reaper's sight.
            let index = self.keys.lease_channels(lease);
            self.commands.call(&index, "SADD", vec![index.as_str().into(), channel.as_str().into()]).await?;
            if let Some(room) = self.local.lock().rooms.get_mut(channel) {
                room.indexed = Some(lease);
            }
        }
        let key = self.keys.channel(channel).presence();
        let mut added = 0;
        for infos in infos.chunks(ENTRIES_PER_COMMAND) {
            let mut arguments = vec![Value::from(key.as_str())];
            for info in infos {
                let mut value = lease.as_bytes().to_vec();
                // As a leave, because that is what a reaper makes of it.
                value.extend(encode_presence(&PresenceEvent::Leave(Arc::clone(info))));
                arguments.push(bytes16(info.client.0));
                arguments.push(Bytes::from(value).into());
            }
            added += number(&self.commands.call(&key, "HSET", arguments).await?)?;
        }
        Ok(added)
    }

    /// Removes an entry from Redis.
    async fn erase(&self, channel: &ChannelName, client: ClientId) -> Answer<()> {
        let arguments = self.own_entry(client, Vec::new());
        self.commands.script(&ERASE, vec![self.keys.channel(channel).presence()], arguments).await?;
        Ok(())
    }

    /// Gives an entry to a bucket of those that linger.
    async fn hand_over(&self, channel: &ChannelName, client: ClientId, grace: Duration) -> Answer<()> {
        let bucket = self.buckets.open(&self.commands, &self.keys, grace).await?;
        // Before the entry, so that no entry is out of a reaper's sight.
        let index = self.keys.lease_channels(bucket);
        self.commands.call(&index, "SADD", vec![index.as_str().into(), channel.as_str().into()]).await?;
        let keys = self.keys.channel(channel);
        let end = i64::try_from(lingering::end(bucket).as_millis()).unwrap_or(i64::MAX);
        let more = vec![bytes16(bucket), end.into(), self.commands.publish_command().into()];
        self.commands.script(&LINGER, vec![keys.presence(), keys.pubsub()], self.own_entry(client, more)).await?;
        Ok(())
    }

    /// Arguments that name an entry, if this node has written it: the client may be on another node by now, under the same
    /// id.
    fn own_entry(&self, client: ClientId, more: Vec<Value>) -> Vec<Value> {
        let leases = self.local.lock().leases.clone();
        let leases = leases.into_iter().map(bytes16);
        std::iter::once(bytes16(client.0)).chain(more).chain(leases).collect()
    }

    /// The client is not this node's any more, and the channel leaves the index when it was the last one there; the stripe
    /// is locked.
    async fn forget_member(&self, channel: &ChannelName, client: ClientId) {
        let indexed = {
            let mut local = self.local.lock();
            let Some(room) = local.rooms.get_mut(channel) else { return };
            room.members.remove(&client);
            if !room.members.is_empty() {
                return;
            }
            local.rooms.remove(channel).and_then(|room| room.indexed)
        };
        if let Some(lease) = indexed {
            let index = self.keys.lease_channels(lease);
            let removed =
                self.commands.call(&index, "SREM", vec![index.as_str().into(), channel.as_str().into()]).await;
            // A name too much in the index costs a reaper one look, so it is not worth failing for.
            if let Err(error) = removed {
                tracing::debug!(%error, "a channel stays in the index of the presence lease");
            }
        }
    }

    /// Writes all entries of this node in the data set that is wanted, under a lease nobody ever had unless the present one
    /// was taken there. Goes on where an attempt that failed has stopped.
    async fn register_entries(&self) -> Answer<()> {
        let wanted = self.local.lock().wanted.clone();
        let Some(lineage) = wanted else { return Ok(()) };
        if self.local.lock().taken_in != lineage {
            self.take_new_lease(&lineage).await?;
        }
        let (lease, channels) = {
            let local = self.local.lock();
            let lease = local.lease;
            let left = local.rooms.iter().filter(|(_, room)| room.written != Some(lease));
            (lease, left.map(|(channel, _)| channel.clone()).collect::<Vec<_>>())
        };
        let written = channels.into_iter().map(|channel| self.write_room(channel, lease));
        stream::iter(written).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        let former = {
            let mut local = self.local.lock();
            if local.wanted.as_ref() == Some(&lineage) {
                local.wanted = None;
                local.lineage = lineage;
            }
            local.former.take()
        };
        if let Some(former) = former {
            let key = self.keys.lease(former);
            self.commands.call(&key, "DEL", vec![key.as_str().into()]).await?;
        }
        Ok(())
    }

    async fn write_room(&self, channel: ChannelName, lease: Uuid) -> Answer<()> {
        let _order = self.stripe(&channel).await?;
        let infos: Option<Vec<_>> =
            self.local.lock().rooms.get(&channel).map(|room| room.members.values().cloned().collect());
        if let Some(infos) = infos {
            self.write(&channel, &infos).await?;
            if let Some(room) = self.local.lock().rooms.get_mut(&channel) {
                room.written = Some(lease);
            }
        }
        Ok(())
    }

    async fn take_new_lease(&self, lineage: &str) -> Answer<()> {
        let lease = Uuid::new_v4();
        let (key, table) = (self.keys.lease(lease), self.keys.leases());
        // The key first: a lease in the table without its key is dead to a reaper. Entries only after both.
        let row = vec![table.as_str().into(), lease.simple().to_string().into(), self.name.as_str().into()];
        let set = vec![key.as_str().into(), self.name.as_str().into(), "PX".into(), millis(self.ttl)];
        self.commands.call(&key, "SET", set).await?;
        self.commands.call(&table, "HSET", row).await?;
        let mut local = self.local.lock();
        let old = std::mem::replace(&mut local.lease, lease);
        if !old.is_nil() && local.former.is_none() {
            local.former = Some(old);
        }
        local.taken_in = lineage.to_owned();
        local.leases.push(lease);
        if local.leases.len() > LEASES_REMEMBERED {
            local.leases.remove(0);
        }
        // They are under leases that end now, so that others remove them.
        local.doubtful.clear();
        Ok(())
    }

    /// Renews the lease; `true` if all entries are under it in the present data set. Quick, however many entries there are.
    async fn renew(&self) -> Answer<bool> {
        let (lease, former, known) = {
            let local = self.local.lock();
            (local.lease, local.former, local.lineage.clone())
        };
        let extend = async |lease: Uuid| {
            let key = self.keys.lease(lease);
            number(&self.commands.call(&key, "PEXPIRE", vec![key.as_str().into(), millis(self.ttl)]).await?)
        };
        if let Some(former) = former {
            extend(former).await?;
        }
        let is_alive = extend(lease).await? == 1;
        let lineage = lineage(&self.commands).await?;
        let mut local = self.local.lock();
        let is_crowded = local.doubtful.len() > DOUBTFUL_MAX;
        if !is_alive || is_crowded {
            // A lease that has ended stays ended, and one with too much to clear up is given up.
            local.taken_in.clear();
        }
        let is_well = is_alive && !is_crowded && lineage == known;
        if !is_well {
            local.lineage.clear();
            local.wanted = Some(lineage);
        }
        Ok(is_well)
    }

    /// Removes what failed calls may have left.
    async fn clear_up(&self) -> Answer<()> {
        let doubtful: Vec<_> = self.local.lock().doubtful.keys().cloned().collect();
        let ended = doubtful.into_iter().map(|(channel, client)| async move {
            let _order = self.stripe(&channel).await?;
            // It may have been added again in the meantime.
            let fate = self.local.lock().doubtful.get(&(channel.clone(), client)).copied();
            if let Some(fate) = fate {
                self.end(&channel, client, fate).await?;
                self.local.lock().doubtful.remove(&(channel, client));
            }
            Ok(())
        });
        stream::iter(ended).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Removes what dead nodes have left, and announces it. Each node looks at the leases that follow its own in the order
    /// of their ids, until it has seen some that live: so a dead one has a few reapers however many nodes there are.
    async fn reap(&self) -> Answer<()> {
        let table = self.keys.leases();
        let rows = list(self.commands.call(&table, "HKEYS", vec![table.as_str().into()]).await?)?;
        let rows = rows.into_iter().map(text).collect::<Answer<Vec<_>>>()?;
        let mut leases: Vec<Uuid> = rows.iter().filter_map(|row| Uuid::try_parse(row).ok()).collect();
        leases.sort_unstable();
        let (own, former) = {
            let local = self.local.lock();
            (local.lease, local.former)
        };
        let behind = leases.partition_point(|lease| *lease <= own);
        leases.rotate_left(behind);
        let mut living = 0;
        for lease in leases.into_iter().filter(|lease| *lease != own && Some(*lease) != former) {
            if living == LIVING_SEEN {
                return Ok(());
            }
            if self.is_alive(lease).await? {
                living += 1;
            } else if !self.may_reap() {
                // Everything stood still since this began.
                return Ok(());
            } else {
                self.reap_lease(lease).await?;
                let row = lease.simple().to_string();
                self.commands.call(&table, "HDEL", vec![table.as_str().into(), row.into()]).await?;
            }
        }
        Ok(())
    }

    /// Empties the buckets of those who lingered and did not come back.
    async fn reap_buckets(&self) -> Answer<()> {
        for _ in 0..BUCKETS_PER_TURN {
            let Some(bucket) = lingering::claim(&self.commands, &self.keys).await? else { return Ok(()) };
            self.reap_lease(bucket).await?;
            lingering::forget(&self.commands, &self.keys, bucket).await?;
        }
        Ok(())
    }

    /// What others left behind is not removed for a while, as they may have had no time to renew it.
    fn grant_time(&self) {
        self.local.lock().unwell = Some(Instant::now());
    }

    /// Whether what others left behind may be removed: after an outage everybody gets the time to come back.
    fn may_reap(&self) -> bool {
        let local = self.local.lock();
        local.wanted.is_none() && local.unwell.is_none_or(|unwell| unwell.elapsed() >= self.ttl)
    }

    async fn reap_lease(&self, lease: Uuid) -> Answer<()> {
        let index = self.keys.lease_channels(lease);
        loop {
            if self.local.lock().wanted.is_some() {
                return Err(BackplaneError::Unavailable("this node's own lease is in question".to_owned()));
            }
            let some = vec![index.as_str().into(), REAPED_PER_STEP.into()];
            let channels = list(self.commands.call(&index, "SRANDMEMBER", some).await?)?;
            if channels.is_empty() {
                return Ok(());
            }
            let reaped = channels.into_iter().map(|channel| self.reap_channel(lease, &index, channel));
            stream::iter(reaped).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        }
    }

    async fn reap_channel(&self, lease: Uuid, index: &str, channel: Value) -> Answer<()> {
        let channel = text(channel)?;
        let keys = self.keys.channel(&channel);
        let arguments = vec![bytes16(lease), self.commands.publish_command().into()];
        let reaped = self.commands.script(&REAP, vec![keys.presence(), keys.pubsub()], arguments).await?;
        tracing::debug!(%lease, channel, removed = number(&reaped)?, "presence of a dead node removed");
        self.commands.call(index, "SREM", vec![index.into(), channel.into()]).await?;
        Ok(())
    }

    /// Gives the lease up: readers ignore this node's entries from now on, and others remove them.
    pub(super) async fn release(&self) -> Answer<()> {
        let key = self.keys.lease(self.local.lock().lease);
        self.commands.call(&key, "DEL", vec![key.as_str().into()]).await?;
        Ok(())
    }
}

/// Takes an entry for gone, but perhaps still in Redis, unless the call that concerns it succeeds: it may fail or be
/// dropped at any point.
struct Doubt<'a> {
    presence: &'a Presence,
    channel: &'a ChannelName,
    client: ClientId,
    fate: Fate,
    settled: bool,
}

impl Doubt<'_> {
    fn settle(mut self) {
        self.settled = true;
        self.presence.local.lock().doubtful.remove(&(self.channel.clone(), self.client));
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut local = self.presence.local.lock();
        if let Some(room) = local.rooms.get_mut(self.channel) {
            room.members.remove(&self.client);
        }
        local.doubtful.insert((self.channel.clone(), self.client), self.fate);
    }
}

/// Runs each script once, so that it is allowed and the server knows it.
pub(super) async fn probe(commands: &Commands, keys: &ChannelKeys) -> Answer<()> {
    let nobody = || bytes16(Uuid::nil());
    commands.script(&ERASE, vec![keys.presence()], vec![nobody(), nobody()]).await?;
    let arguments = vec![nobody(), commands.publish_command().into()];
    commands.script(&REAP, vec![keys.presence(), keys.pubsub()], arguments).await?;
    let arguments = vec![nobody(), nobody(), 0.into(), commands.publish_command().into(), nobody()];
    commands.script(&LINGER, vec![keys.presence(), keys.pubsub()], arguments).await?;
    Ok(())
}

/// Does what has to be done all the time, until the node's presence is dropped.
pub(super) async fn look_after(presence: Weak<Presence>, interval: Duration) {
    tokio::join!(maintain(Weak::clone(&presence), interval), reap_buckets(presence, interval / 2));
}

/// Has those leave who did not come back, soon after their time is over.
async fn reap_buckets(presence: Weak<Presence>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pulse = None;
    loop {
        ticks.tick().await;
        let Some(presence) = presence.upgrade() else { return };
        let pulse = pulse.get_or_insert_with(|| Pulse::new(presence.ttl, interval));
        if pulse.stood_still() {
            presence.grant_time();
        }
        if presence.may_reap()
            && let Err(error) = presence.reap_buckets().await
        {
            tracing::debug!(%error, "presence of clients that did not come back is not removed yet");
        }
        pulse.beat();
    }
}

/// Keeps the lease of a node alive and looks after those of others, until the node's presence is dropped. What may take
/// long is done beside the renewals, so that it cannot cost the lease.
async fn maintain(presence: Weak<Presence>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let began = Instant::now();
    let mut pulse = None;
    let mut work = JoinSet::new();
    loop {
        ticks.tick().await;
        let Some(presence) = presence.upgrade() else { return };
        let was_well = presence.local.lock().wanted.is_none();
        let pulse = pulse.get_or_insert_with(|| Pulse::new(presence.ttl, interval));
        if pulse.stood_still() {
            tracing::warn!("presence was not looked after for long: nobody is taken for dead for a while");
            presence.grant_time();
        }
        let renewed = presence.renew().await;
        if pulse.stood_still() {
            presence.grant_time();
        }
        pulse.beat();
        match renewed {
            Ok(true) => {}
            Ok(false) => {
                if was_well {
                    tracing::warn!("the presence lease was gone or the data set changed: presence is registered anew");
                }
                presence.grant_time();
            }
            Err(error) => {
                tracing::debug!(%error, "the presence lease could not be renewed");
                presence.grant_time();
            }
        }
        while work.try_join_next().is_some() {}
        if work.is_empty() {
            // At the start, too, the leases of living nodes may have ended; each gets the time to come back.
            let is_old = began.elapsed() >= presence.ttl;
            work.spawn(async move {
                let done = async {
                    presence.register_entries().await?;
                    presence.clear_up().await?;
                    if is_old && presence.may_reap() { presence.reap().await } else { Ok(()) }
                };
                if let Err(error) = done.await {
                    tracing::debug!(%error, "presence is not in order yet");
                }
            });
        }
    }
}

fn bytes16(id: Uuid) -> Value {
    Bytes::copy_from_slice(id.as_bytes()).into()
}

fn split(mut value: Bytes) -> Answer<(Uuid, Bytes)> {
    if value.len() < LEASE_BYTES {
        return Err(BackplaneError::Protocol("a presence entry is too short".to_owned()));
    }
    let lease = value.split_to(LEASE_BYTES);
    let lease = Uuid::from_slice(&lease).map_err(|error| BackplaneError::Protocol(error.to_string()))?;
    Ok((lease, value))
}
