//! Presence on node leases.
//!
//! Every entry names the lease of the node that made it. A node renews one key, not one per client; readers ignore
//! entries of dead leases; a survivor removes them and announces the leaves, once.
//!
//! A lease id is never used again: a node whose lease is gone takes a new one and writes its entries anew. So a dead
//! lease stays dead, and removing its entries by comparison cannot hit a living client. The same is done when the data
//! set was exchanged (failover, restart), because old entries may have come back with it.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::types::Value;
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::sync::MutexGuard;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use super::commands::Commands;
use super::config::RedisConfig;
use super::connection::{Script, blob, list, number, script, text};
use super::keys::Keys;
use super::lineage;
use super::record::{Record, decode, encode_presence};
use crate::{BackplaneError, ChannelName, ClientId, ClientInfo, PresenceEvent, PresenceStats, UserId};

static REAP: Script = script!("reap.lua");

/// Locks that keep changes of one channel by this node in order; more of them than commands that run at a time.
const STRIPES: usize = 64;

/// Channels of a dead lease that are taken at a time.
const REAPED_PER_STEP: i64 = 256;

/// Entries of one channel written in one command.
const ENTRIES_PER_COMMAND: usize = 500;

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
    stripes: Vec<tokio::sync::Mutex<()>>,
}

struct Local {
    lease: Uuid,
    /// The data set in which it was registered.
    lineage: String,
    rooms: HashMap<ChannelName, Room>,
    /// Entries that must go but may still be there, after a call that failed.
    doubtful: HashSet<(ChannelName, ClientId)>,
}

#[derive(Default)]
struct Room {
    members: HashMap<ClientId, Arc<ClientInfo>>,
    /// The lease in whose index this channel is.
    indexed: Option<Uuid>,
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
                lineage: String::new(),
                rooms: HashMap::new(),
                doubtful: HashSet::new(),
            }),
            stripes: (0..STRIPES).map(|_| tokio::sync::Mutex::default()).collect(),
        };
        let lineage = lineage(&presence.commands).await?;
        presence.take_new_lease(lineage).await?;
        Ok(Arc::new(presence))
    }

    pub(super) async fn add(&self, channel: &ChannelName, info: Arc<ClientInfo>) -> Answer<()> {
        let _order = self.stripe(channel).await?;
        let client = info.client;
        {
            let mut local = self.local.lock();
            local.doubtful.remove(&(channel.clone(), client));
            local.rooms.entry(channel.clone()).or_default().members.insert(client, Arc::clone(&info));
        }
        let guard = Doubt { presence: self, channel, client, settled: false };
        self.write(channel, &[info]).await?;
        guard.settle();
        Ok(())
    }

    pub(super) async fn remove(&self, channel: &ChannelName, client: ClientId) -> Answer<()> {
        let _order = self.stripe(channel).await?;
        let guard = Doubt { presence: self, channel, client, settled: false };
        self.erase(channel, client).await?;
        guard.settle();
        Ok(())
    }

    /// All entries of living leases.
    pub(super) async fn list(&self, channel: &ChannelName) -> Answer<Vec<Arc<ClientInfo>>> {
        let key = self.keys.channel(channel).presence();
        let values = list(self.commands.call(&key, "HVALS", vec![key.as_str().into()]).await?)?;
        let entries: Vec<(Uuid, Bytes)> = values.into_iter().map(|value| split(blob(value)?)).collect::<Answer<_>>()?;
        let own = self.local.lock().lease;
        let others: HashSet<Uuid> = entries.iter().map(|(lease, _)| *lease).filter(|lease| *lease != own).collect();
        let alive = others.into_iter().map(|lease| async move { Ok((lease, self.is_alive(lease).await?)) });
        let alive: HashMap<Uuid, bool> = try_join_all(alive).await?.into_iter().collect();
        let living = entries.iter().filter(|(lease, _)| *lease == own || alive.get(lease) == Some(&true));
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

    /// Writes entries under the present lease; the stripe is locked.
    async fn write(&self, channel: &ChannelName, infos: &[Arc<ClientInfo>]) -> Answer<()> {
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
        for infos in infos.chunks(ENTRIES_PER_COMMAND) {
            let mut arguments = vec![Value::from(key.as_str())];
            for info in infos {
                let mut value = lease.as_bytes().to_vec();
                // As a leave, because that is what a reaper makes of it.
                value.extend(encode_presence(&PresenceEvent::Leave(Arc::clone(info))));
                arguments.push(Bytes::copy_from_slice(info.client.0.as_bytes()).into());
                arguments.push(Bytes::from(value).into());
            }
            self.commands.call(&key, "HSET", arguments).await?;
        }
        Ok(())
    }

    /// Removes an entry from Redis, and the channel from the index when it was this node's last there; the stripe is
    /// locked.
    async fn erase(&self, channel: &ChannelName, client: ClientId) -> Answer<()> {
        let key = self.keys.channel(channel).presence();
        let field = Bytes::copy_from_slice(client.0.as_bytes());
        self.commands.call(&key, "HDEL", vec![key.as_str().into(), field.into()]).await?;
        let indexed = {
            let mut local = self.local.lock();
            let Some(room) = local.rooms.get_mut(channel) else { return Ok(()) };
            room.members.remove(&client);
            if !room.members.is_empty() {
                return Ok(());
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
        Ok(())
    }

    /// Takes a lease nobody ever had and writes all entries of this node under it.
    async fn take_new_lease(&self, lineage: String) -> Answer<()> {
        let lease = Uuid::new_v4();
        let (key, table) = (self.keys.lease(lease), self.keys.leases());
        // The key first: a lease in the table without its key is dead to a reaper. Entries only after both.
        let row = vec![table.as_str().into(), lease.simple().to_string().into(), self.name.as_str().into()];
        let ttl = i64::try_from(self.ttl.as_millis()).unwrap_or(i64::MAX);
        let set = vec![key.as_str().into(), self.name.as_str().into(), "PX".into(), ttl.into()];
        self.commands.call(&key, "SET", set).await?;
        self.commands.call(&table, "HSET", row).await?;
        let (old, channels): (Uuid, Vec<ChannelName>) = {
            let mut local = self.local.lock();
            (std::mem::replace(&mut local.lease, lease), local.rooms.keys().cloned().collect())
        };
        for channel in channels {
            let _order = self.stripe(&channel).await?;
            let infos: Option<Vec<_>> =
                self.local.lock().rooms.get(&channel).map(|room| room.members.values().cloned().collect());
            if let Some(infos) = infos {
                self.write(&channel, &infos).await?;
            }
        }
        // Only now is every entry written, so that a failure above is made good by the next tick.
        self.local.lock().lineage = lineage;
        if !old.is_nil() {
            let key = self.keys.lease(old);
            self.commands.call(&key, "DEL", vec![key.as_str().into()]).await?;
        }
        Ok(())
    }

    /// Renews the lease, or takes a new one; `true` if all was as it should be.
    async fn renew(&self) -> Answer<bool> {
        let (lease, known) = {
            let local = self.local.lock();
            (local.lease, local.lineage.clone())
        };
        let key = self.keys.lease(lease);
        let ttl = i64::try_from(self.ttl.as_millis()).unwrap_or(i64::MAX);
        let renewed = self.commands.call(&key, "PEXPIRE", vec![key.as_str().into(), ttl.into()]).await?;
        let lineage = lineage(&self.commands).await?;
        let is_well = number(&renewed)? == 1 && lineage == known;
        if !is_well {
            // Until all entries are written again, the next tick must not take it for done.
            self.local.lock().lineage.clear();
            self.take_new_lease(lineage).await?;
        }
        let doubtful: Vec<_> = self.local.lock().doubtful.iter().cloned().collect();
        for (channel, client) in doubtful {
            let _order = self.stripe(&channel).await?;
            // It may have been added again in the meantime.
            if self.local.lock().doubtful.contains(&(channel.clone(), client)) {
                self.erase(&channel, client).await?;
                self.local.lock().doubtful.remove(&(channel, client));
            }
        }
        Ok(is_well)
    }

    /// Removes what dead nodes have left, and announces it.
    async fn reap(&self) -> Answer<()> {
        let table = self.keys.leases();
        let rows = list(self.commands.call(&table, "HKEYS", vec![table.as_str().into()]).await?)?;
        let own = self.local.lock().lease;
        for row in rows {
            let row = text(row)?;
            let Ok(lease) = Uuid::try_parse(&row) else { continue };
            if lease == own || self.is_alive(lease).await? {
                continue;
            }
            let index = self.keys.lease_channels(lease);
            loop {
                let some = vec![index.as_str().into(), REAPED_PER_STEP.into()];
                let channels = list(self.commands.call(&index, "SRANDMEMBER", some).await?)?;
                if channels.is_empty() {
                    break;
                }
                for channel in channels {
                    let channel = text(channel)?;
                    let keys = self.keys.channel(&channel);
                    let arguments =
                        vec![Bytes::copy_from_slice(lease.as_bytes()).into(), self.commands.publish_command().into()];
                    let reaped = self.commands.script(&REAP, vec![keys.presence(), keys.pubsub()], arguments).await?;
                    tracing::debug!(%lease, channel, removed = number(&reaped)?, "presence of a dead node removed");
                    self.commands.call(&index, "SREM", vec![index.as_str().into(), channel.into()]).await?;
                }
            }
            self.commands.call(&table, "HDEL", vec![table.as_str().into(), row.into()]).await?;
        }
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
        local.doubtful.insert((self.channel.clone(), self.client));
    }
}

/// Keeps the lease of a node alive and looks after those of others, until the node's presence is dropped.
pub(super) async fn maintain(presence: Weak<Presence>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut well_since = Instant::now();
    loop {
        ticks.tick().await;
        let Some(presence) = presence.upgrade() else { return };
        match presence.renew().await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!("the presence lease was gone or the data set changed: presence is registered anew");
                well_since = Instant::now();
            }
            Err(error) => {
                tracing::debug!(%error, "the presence lease could not be renewed");
                well_since = Instant::now();
            }
        }
        // After an outage the leases of living nodes may have ended; each gets the time to come back.
        if well_since.elapsed() >= presence.ttl
            && let Err(error) = presence.reap().await
        {
            tracing::debug!(%error, "presence of dead nodes could not be removed");
        }
    }
}

fn split(mut value: Bytes) -> Answer<(Uuid, Bytes)> {
    if value.len() < LEASE_BYTES {
        return Err(BackplaneError::Protocol("a presence entry is too short".to_owned()));
    }
    let lease = value.split_to(LEASE_BYTES);
    let lease = Uuid::from_slice(&lease).map_err(|error| BackplaneError::Protocol(error.to_string()))?;
    Ok((lease, value))
}
