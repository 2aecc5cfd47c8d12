//! Presence on node leases.
//!
//! Every entry is a row of its own, named after channel, lease and client, so that whatever a node removes is its own. A
//! node renews one lease, not one row per client; readers ignore entries of dead leases; a survivor removes them and
//! announces the leaves, once (see [`reaper`](super::reaper)).
//!
//! A lease id is never used again: a node whose lease has ended takes a new one and writes its entries anew. The same is
//! done when a fence was appended to the table or it was made anew, because entries may have been lost, or old ones may
//! have come back.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::MutexGuard;
use uuid::Uuid;

use super::NatsBackplane;
use super::base::Base;
use super::lease::{self, Known, Lease};
use super::names::token;
use super::request::{Stored, Write};
use super::stream::{Ready, Stream, StreamSettings};
use super::table::{Answer, Table, millis, too_many_others, unreadable};
use crate::record::{Record, decode, encode_presence};
use crate::{
    BackplaneError, BackplaneFuture, ChannelName, ClientId, ClientInfo, PresenceEvent, PresenceStats, PresenceStore,
    UserId,
};

/// Locks that keep changes of one channel by this node in order.
const STRIPES: usize = 64;

/// Entries that are written or cleared up at the same time: enough that the way to NATS does not count, few enough that
/// clients' calls are not held up.
pub(super) const AT_ONCE: usize = 32;

/// Entries in doubt. More of them are left to the end of the lease under which they are, which is given up.
const DOUBTFUL_MAX: usize = 100_000;

/// How long leases that were read are believed, so that a busy node does not read them for every list.
const LEASES_BELIEVED: Duration = Duration::from_secs(1);

/// How often entries of a lease that this node has given up are removed: what was under way then may come later.
const REMOVED_TIMES: u8 = 2;

/// This node's entries and lease, and everybody's entries at NATS.
pub(super) struct Presence {
    pub(super) table: Table,
    /// Where leaves of others are published, each once.
    pub(super) once: Arc<Stream>,
    pub(super) ttl: Duration,
    timeout: Duration,
    name: String,
    pub(super) local: Mutex<Local>,
    leases: Mutex<Option<(Instant, Arc<Vec<Known>>)>>,
    stripes: Vec<tokio::sync::Mutex<()>>,
}

/// A lease of this node, and the number of its row.
#[derive(Clone, Copy)]
pub(super) struct Own {
    pub(super) id: Uuid,
    row: u64,
}

pub(super) struct Local {
    /// `None` before the first one.
    pub(super) lease: Option<Own>,
    /// The data set in which it was taken.
    taken_in: String,
    /// The data set in which all entries have been written under it; empty while they are being written.
    written_in: String,
    /// What the entries have to be written in, when that is not so.
    pub(super) wanted: Option<String>,
    /// The lease before it, kept alive until all entries have been written under the new one.
    pub(super) former: Option<Own>,
    /// Leases of this node whose entries have still to be removed, and how often.
    retired: Vec<(Uuid, u8)>,
    rooms: HashMap<ChannelName, Room>,
    /// Entries that must go but may still be there, after a call that failed.
    doubtful: HashSet<(ChannelName, ClientId)>,
}

#[derive(Default)]
struct Room {
    members: HashMap<ClientId, Member>,
    /// The lease under which all members were written when it was taken.
    written: Option<Uuid>,
}

impl Room {
    fn insert(&mut self, info: Arc<ClientInfo>) {
        let client = info.client;
        // An entry that is replaced takes its number with it.
        self.members.insert(client, Member { info, row: None });
    }
}

struct Member {
    info: Arc<ClientInfo>,
    /// The lease under which its entry was last written, and the number of that, which is the fastest way to remove it.
    row: Option<(Uuid, u64)>,
}

/// The identity of the data in a table: another one may lack entries, or have old ones again.
fn data_set(ready: &Ready) -> String {
    let lineage = &ready.lineage;
    let known = format!("{}/{}", lineage.epoch().as_str(), lineage.fence_count());
    // In a cluster only what this node remembers tells of a loss, and entries are not remembered.
    if lineage.is_clustered { format!("{known}/{}", ready.connection.number) } else { known }
}

impl Presence {
    /// Takes a lease.
    pub(super) async fn register(base: &Arc<Base>, once: Arc<Stream>) -> Answer<Arc<Self>> {
        let (names, config) = (&base.names, &base.config);
        let rows = StreamSettings::last_of_each(names.stream("presence"), names.subject(&["p", ">"]));
        let presence = Self {
            table: Table::new(base, StreamSettings { is_fenced: true, ..rows }),
            once,
            ttl: config.lease_ttl,
            timeout: config.command_timeout,
            name: config.node_name.clone(),
            local: Mutex::new(Local {
                lease: None,
                taken_in: String::new(),
                written_in: String::new(),
                wanted: None,
                former: None,
                retired: Vec::new(),
                rooms: HashMap::new(),
                doubtful: HashSet::new(),
            }),
            leases: Mutex::default(),
            stripes: (0..STRIPES).map(|_| tokio::sync::Mutex::default()).collect(),
        };
        let data_set = presence.call(async { presence.table.ready().await.map(|ready| data_set(&ready)) }).await?;
        presence.local.lock().wanted = Some(data_set);
        presence.register_entries().await?;
        Ok(Arc::new(presence))
    }

    /// One call of the upkeep, bounded like those of clients.
    pub(super) async fn call<T>(&self, work: impl Future<Output = Answer<T>>) -> Answer<T> {
        self.table.base.calls.call(work).await
    }

    async fn add(&self, channel: &ChannelName, info: Arc<ClientInfo>) -> Answer<()> {
        self.in_time(async {
            let _order = self.stripe(channel).await?;
            let client = info.client;
            {
                let mut local = self.local.lock();
                local.doubtful.remove(&(channel.clone(), client));
                local.rooms.entry(channel.clone()).or_default().insert(Arc::clone(&info));
            }
            let guard = Doubt { presence: self, channel, client, settled: false };
            self.write(channel, &info).await?;
            guard.settle();
            Ok(())
        })
        .await
    }

    async fn remove(&self, channel: &ChannelName, client: ClientId) -> Answer<()> {
        self.in_time(async {
            // Before anything can fail, or be dropped. A later addition waits behind this and settles it.
            let guard = Doubt { presence: self, channel, client, settled: false };
            let _order = self.stripe(channel).await?;
            self.erase(channel, client).await?;
            guard.settle();
            Ok(())
        })
        .await
    }

    /// A change waits for the change before it, and both together must end before a client gives up.
    async fn in_time(&self, change: impl Future<Output = Answer<()>>) -> Answer<()> {
        let timed = tokio::time::timeout(2 * self.timeout, change).await;
        timed.unwrap_or_else(|_| Err(BackplaneError::Unavailable("nats did not answer in time".to_owned())))
    }

    /// Waits for earlier changes of the channel by this node, but not for ever.
    async fn stripe(&self, channel: &ChannelName) -> Answer<MutexGuard<'_, ()>> {
        let mut hasher = DefaultHasher::new();
        channel.hash(&mut hasher);
        let stripe = &self.stripes[(hasher.finish() % STRIPES as u64) as usize];
        let waited = tokio::time::timeout(self.timeout, stripe.lock()).await;
        waited.map_err(|_| BackplaneError::Unavailable("earlier changes of presence are not done yet".to_owned()))
    }

    /// The subject of an entry; channel, lease and client are tokens or wildcards.
    pub(super) fn entry(&self, channel: &str, lease: &str, client: &str) -> Answer<String> {
        self.table.subject(&["p", "e", channel, lease, client])
    }

    /// Writes an entry under the present lease; the stripe is locked.
    async fn write(&self, channel: &ChannelName, info: &Arc<ClientInfo>) -> Answer<()> {
        let lease = self.local.lock().lease.map(|own| own.id).unwrap_or_default();
        let ids = (lease.simple().to_string(), info.client.0.simple().to_string());
        let subject = self.entry(&token(channel.as_str()), &ids.0, &ids.1)?;
        // As a leave, because that is what a reaper makes of it.
        let payload = encode_presence(&PresenceEvent::Leave(Arc::clone(info)));
        let written = self.call(async {
            let ready = self.table.ready().await?;
            let written = self.table.put(&ready, Write::new(subject, payload)).await?;
            Ok((data_set(&ready), written))
        });
        let (data_set, written) = written.await?;
        let mut local = self.local.lock();
        // In another set of data the number may be that of anything.
        let is_sure = data_set == local.taken_in;
        let member = local.rooms.get_mut(channel).and_then(|room| room.members.get_mut(&info.client));
        if let Some(member) = member {
            member.row = written.filter(|_| is_sure).map(|written| (lease, written.number));
        }
        Ok(())
    }

    /// Removes an entry from NATS; the stripe is locked.
    async fn erase(&self, channel: &ChannelName, client: ClientId) -> Answer<()> {
        // Only what this node has written: the client may be on another node by now, under the same id.
        let (leases, row) = {
            let local = self.local.lock();
            let retired = local.retired.iter().map(|(id, _)| *id);
            let leases: Vec<Uuid> = local.lease.iter().map(|own| own.id).chain(retired).collect();
            (leases, local.rooms.get(channel).and_then(|room| room.members.get(&client)).and_then(|member| member.row))
        };
        let (channel_token, client_token) = (token(channel.as_str()), client.0.simple().to_string());
        for lease in leases {
            let subject = self.entry(&channel_token, &lease.simple().to_string(), &client_token)?;
            self.call(async {
                let ready = self.table.ready().await?;
                let is_sure = data_set(&ready) == self.local.lock().taken_in;
                match row.filter(|(under, _)| is_sure && *under == lease) {
                    Some((_, number)) => self.table.remove_row(&ready, &subject, number).await,
                    None => self.table.remove(&ready, &subject).await,
                }
            })
            .await?;
        }
        let mut local = self.local.lock();
        if let Some(room) = local.rooms.get_mut(channel) {
            room.members.remove(&client);
            if room.members.is_empty() {
                local.rooms.remove(channel);
            }
        }
        Ok(())
    }

    /// All entries of living leases.
    async fn list(&self, channel: &ChannelName) -> Answer<Vec<Arc<ClientInfo>>> {
        let filter = self.entry(&token(channel.as_str()), "*", "*")?;
        let began = Instant::now();
        let ready = self.table.ready().await?;
        let rows = self.table.all(&ready, &filter).await?;
        let entries: Vec<(Uuid, ClientId, Stored)> = rows
            .into_iter()
            .map(|row| split(&row.subject).map(|(lease, client)| (lease, client, row)))
            .collect::<Answer<_>>()?;
        let own = self.local.lock().lease.map(|own| own.id);
        let others = entries.iter().map(|(lease, ..)| *lease).filter(|lease| Some(*lease) != own).collect();
        let living = self.living(&ready, others, began).await?;
        // A client that has moved may still be under its former lease; the entry written last counts.
        let mut present: HashMap<ClientId, Stored> = HashMap::new();
        for (lease, client, row) in entries {
            let is_latest = present.get(&client).is_none_or(|other| other.number < row.number);
            if (Some(lease) == own || living.contains(&lease)) && is_latest {
                present.insert(client, row);
            }
        }
        present.into_values().map(|row| info(&row)).collect()
    }

    async fn stats(&self, channel: &ChannelName) -> Answer<PresenceStats> {
        let members = self.list(channel).await?;
        let users: HashSet<&UserId> = members.iter().map(|info| &info.user).collect();
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        Ok(PresenceStats { num_clients: count(members.len()), num_users: count(users.len()) })
    }

    /// Which of these leases are alive.
    async fn living(&self, ready: &Ready, leases: HashSet<Uuid>, began: Instant) -> Answer<HashSet<Uuid>> {
        if leases.is_empty() {
            return Ok(leases);
        }
        // What was alive then is alive; the rest may have been renewed.
        let believed = self.leases.lock().clone().filter(|(read, known)| {
            let now = self.table.base.now();
            let lived = |lease: &Uuid| known.iter().any(|known| known.id == *lease && known.is_alive(now));
            *read >= began || read.elapsed() < LEASES_BELIEVED && leases.iter().all(lived)
        });
        let known = match believed {
            Some((_, known)) => known,
            None => {
                let read = Instant::now();
                let known = Arc::new(lease::all(&self.table, ready).await?);
                *self.leases.lock() = Some((read, Arc::clone(&known)));
                known
            }
        };
        let now = self.table.base.now();
        let alive = known.iter().filter(|known| leases.contains(&known.id) && known.is_alive(now));
        Ok(alive.map(|known| known.id).collect())
    }

    /// Writes all entries of this node in the data set that is wanted, under a lease nobody ever had unless the present one
    /// was taken there. Goes on where an attempt that failed has stopped.
    pub(super) async fn register_entries(&self) -> Answer<()> {
        let wanted = self.local.lock().wanted.clone();
        let Some(data_set) = wanted else { return Ok(()) };
        if self.local.lock().taken_in != data_set {
            self.call(self.take_new_lease(&data_set)).await?;
        }
        let (lease, channels) = {
            let local = self.local.lock();
            let lease = local.lease.map(|own| own.id);
            let left = local.rooms.iter().filter(|(_, room)| room.written != lease);
            (lease, left.map(|(channel, _)| channel.clone()).collect::<Vec<_>>())
        };
        let written = channels.into_iter().map(|channel| self.write_room(channel, lease));
        stream::iter(written).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        let mut local = self.local.lock();
        if local.wanted.as_ref() == Some(&data_set) {
            local.wanted = None;
            local.written_in = data_set;
            local.former = None;
        }
        Ok(())
    }

    async fn write_room(&self, channel: ChannelName, lease: Option<Uuid>) -> Answer<()> {
        let _order = self.stripe(&channel).await?;
        let infos: Option<Vec<_>> = self
            .local
            .lock()
            .rooms
            .get(&channel)
            .map(|room| room.members.values().map(|member| Arc::clone(&member.info)).collect());
        if let Some(infos) = infos {
            for info in &infos {
                self.write(&channel, info).await?;
            }
            if let Some(room) = self.local.lock().rooms.get_mut(&channel) {
                room.written = lease;
            }
        }
        Ok(())
    }

    fn lease(&self) -> Lease {
        Lease::new(&self.name, millis(self.ttl))
    }

    async fn take_new_lease(&self, data_set: &str) -> Answer<()> {
        let ready = self.table.ready().await?;
        let id = Uuid::new_v4();
        let row = lease::take(&self.table, &ready, id, &self.lease()).await?;
        let row = row.ok_or_else(too_many_others)?;
        let mut local = self.local.lock();
        if let Some(old) = local.lease.replace(Own { id, row }) {
            local.retired.push((old.id, REMOVED_TIMES));
            local.former.get_or_insert(old);
        }
        local.taken_in = data_set.to_owned();
        // They are under leases whose entries are removed altogether.
        local.doubtful.clear();
        Ok(())
    }

    /// Renews the lease; `true` if all entries are under it in the present data set. Quick, however many entries there are.
    pub(super) async fn renew(&self) -> Answer<bool> {
        let ready = self.table.ready().await?;
        let (own, former) = {
            let local = self.local.lock();
            (local.lease, local.former)
        };
        let extend = async |own: Option<Own>| {
            let Some(own) = own else { return Ok(None) };
            let row = lease::renew(&self.table, &ready, own.id, &self.lease(), own.row).await?;
            Ok::<_, BackplaneError>(row.map(|row| Own { row, ..own }))
        };
        let (former_renewed, renewed) = (extend(former).await?, extend(own).await?);
        let data_set = data_set(&ready);
        let mut local = self.local.lock();
        // Either may be another one by now.
        if local.former.map(|own| own.id) == former.map(|own| own.id) {
            local.former = former_renewed;
        }
        let is_same = local.lease.map(|own| own.id) == own.map(|own| own.id);
        let is_alive = renewed.is_some() || !is_same;
        if let (Some(renewed), true) = (renewed, is_same) {
            local.lease = Some(renewed);
        }
        let is_crowded = local.doubtful.len() > DOUBTFUL_MAX;
        if !is_alive || is_crowded {
            // A lease that has ended stays ended, and one with too much to clear up is given up.
            local.taken_in.clear();
        }
        let is_well = is_alive && !is_crowded && data_set == local.written_in;
        if !is_well {
            local.written_in.clear();
            local.wanted = Some(data_set);
        }
        Ok(is_well)
    }

    /// Removes what failed calls may have left.
    pub(super) async fn clear_up(&self) -> Answer<()> {
        let doubtful: Vec<_> = self.local.lock().doubtful.iter().cloned().collect();
        let erased = doubtful.into_iter().map(|(channel, client)| async move {
            let _order = self.stripe(&channel).await?;
            // It may have been added again in the meantime.
            if self.local.lock().doubtful.contains(&(channel.clone(), client)) {
                self.erase(&channel, client).await?;
                self.local.lock().doubtful.remove(&(channel, client));
            }
            Ok::<_, BackplaneError>(())
        });
        stream::iter(erased).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Removes what is under leases that this node does not use any more. To be called some time after everything was
    /// written under the present one: who reads meanwhile has seen only the entries under the former.
    pub(super) async fn remove_retired(&self) -> Answer<()> {
        let retired = {
            let local = self.local.lock();
            if local.wanted.is_some() { Vec::new() } else { local.retired.clone() }
        };
        for (lease, _) in retired {
            let filter = self.entry("*", &lease.simple().to_string(), "*")?;
            self.call(async {
                let ready = self.table.ready().await?;
                self.table.remove(&ready, &filter).await?;
                lease::forget(&self.table, &ready, lease).await
            })
            .await?;
            let mut local = self.local.lock();
            for (id, times) in &mut local.retired {
                *times -= u8::from(*id == lease);
            }
            local.retired.retain(|(_, times)| *times > 0);
        }
        Ok(())
    }

    /// Gives the lease up: readers ignore this node's entries from now on, and others remove them.
    pub(super) async fn release(&self) -> Answer<()> {
        let own = self.local.lock().lease;
        let Some(own) = own else { return Ok(()) };
        self.call(async {
            let ready = self.table.ready().await?;
            lease::give_up(&self.table, &ready, own.id, self.lease()).await
        })
        .await
    }
}

/// Lease and client of an entry's subject.
pub(super) fn split(subject: &str) -> Answer<(Uuid, ClientId)> {
    let mut tokens = subject.rsplit('.').map(Uuid::try_parse);
    match (tokens.next(), tokens.next()) {
        (Some(Ok(client)), Some(Ok(lease))) => Ok((lease, ClientId(client))),
        _ => Err(unreadable(subject, "it is not that of an entry")),
    }
}

/// What an entry says.
fn info(row: &Stored) -> Answer<Arc<ClientInfo>> {
    match decode(&row.payload, None) {
        Ok(Record::Presence(PresenceEvent::Join(info) | PresenceEvent::Leave(info))) => Ok(info),
        Ok(Record::Publication(_)) => Err(unreadable(&row.subject, "it is a publication")),
        Err(error) => Err(unreadable(&row.subject, error)),
    }
}

/// Takes an entry for gone, but perhaps still at NATS, unless the call that concerns it succeeds: it may fail or be
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

impl PresenceStore for NatsBackplane {
    fn add_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, ()> {
        Box::pin(self.presence.add(channel, info))
    }

    /// There are no entries that linger here, so the answer is always false.
    fn adopt_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, bool> {
        Box::pin(async move { self.presence.add(channel, info).await.map(|()| false) })
    }

    /// Entries do not linger here: always an error, before anything is done. The gateway
    /// keeps no sessions on this backplane.
    fn linger_presence<'a>(&'a self, _: &'a ChannelName, _: ClientId, _: Duration) -> BackplaneFuture<'a, ()> {
        let why = "entries of presence do not linger at nats".to_owned();
        Box::pin(std::future::ready(Err(BackplaneError::Protocol(why))))
    }

    fn remove_presence<'a>(&'a self, channel: &'a ChannelName, client: ClientId) -> BackplaneFuture<'a, ()> {
        Box::pin(self.presence.remove(channel, client))
    }

    fn presence<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, Vec<Arc<ClientInfo>>> {
        Box::pin(self.presence.call(self.presence.list(channel)))
    }

    fn presence_stats<'a>(&'a self, channel: &'a ChannelName) -> BackplaneFuture<'a, PresenceStats> {
        Box::pin(self.presence.call(self.presence.stats(channel)))
    }
}
