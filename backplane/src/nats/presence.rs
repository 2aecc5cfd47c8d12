//! Presence on node leases.
//!
//! Every entry is a row of its own, named after channel, lease and client, so that whatever a node removes is its own. A
//! node renews one lease, not one row per client; readers ignore entries of dead leases; a survivor removes them and
//! announces the leaves, once (see [`reaper`](super::reaper)). Entries of clients that may come back outlive the lease: see
//! [`lingering`](super::lingering).
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
use super::doubt::{Doubt, Fate};
use super::entry::{self, Entry, State};
use super::lease::{self, Known, Lease};
use super::lingering::Lingering;
use super::names::token;
use super::request::Write;
use super::stream::{Ready, Stream, StreamSettings};
use super::table::{Answer, Table, millis, too_many_others};
use crate::{BackplaneError, BackplaneFuture, ChannelName, ClientId, ClientInfo, PresenceStats, PresenceStore, UserId};

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
    pub(super) timeout: Duration,
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
    pub(super) doubtful: HashMap<(ChannelName, ClientId), Fate>,
    /// Entries that linger, by their subjects: as many as clients have gone within the time that they linger.
    pub(super) lingering: HashMap<String, Lingering>,
    /// When the lease was last in question; `None` if it never was.
    pub(super) unwell: Option<Instant>,
}

impl Local {
    /// A client of this node is in a channel.
    pub(super) fn show(&mut self, channel: &ChannelName, info: &Arc<ClientInfo>) {
        self.rooms.entry(channel.clone()).or_default().insert(Arc::clone(info));
    }

    /// It is not any more.
    pub(super) fn hide(&mut self, channel: &ChannelName, client: ClientId) {
        if let Some(room) = self.rooms.get_mut(channel) {
            room.members.remove(&client);
            if room.members.is_empty() {
                self.rooms.remove(channel);
            }
        }
    }
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
                doubtful: HashMap::new(),
                lingering: HashMap::new(),
                unwell: None,
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
            let guard = self.begin_entry(channel, &info, Fate::Erased);
            self.write(channel, &info, None).await?;
            guard.settle();
            Ok(())
        })
        .await
    }

    async fn remove(&self, channel: &ChannelName, client: ClientId) -> Answer<()> {
        self.in_time(self.end_now(channel, client, Fate::Erased)).await
    }

    pub(super) async fn end_now(&self, channel: &ChannelName, client: ClientId, fate: Fate) -> Answer<()> {
        // Before anything can fail, or be dropped. A later addition waits behind this and settles it.
        let guard = Doubt::new(self, channel, client, fate);
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
            Fate::GivenBack => self.give_back(channel, client).await?,
        }
        self.local.lock().hide(channel, client);
        Ok(())
    }

    /// A change waits for the change before it, and both together must end before a client gives up.
    pub(super) async fn in_time<T>(&self, change: impl Future<Output = Answer<T>>) -> Answer<T> {
        let timed = tokio::time::timeout(2 * self.timeout, change).await;
        timed.unwrap_or_else(|_| Err(BackplaneError::Unavailable("nats did not answer in time".to_owned())))
    }

    /// Waits for earlier changes of the channel by this node, but not for ever.
    pub(super) async fn stripe(&self, channel: &ChannelName) -> Answer<MutexGuard<'_, ()>> {
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

    /// The subject of an entry of this node.
    pub(super) fn own_entry(&self, channel: &ChannelName, lease: Uuid, client: ClientId) -> Answer<String> {
        self.entry(&token(channel.as_str()), &lease.simple().to_string(), &client.0.simple().to_string())
    }

    /// An entry of this node as it was last written, if that is known.
    pub(super) fn known_entry(&self, channel: &ChannelName, client: ClientId) -> Answer<Option<Entry>> {
        let (info, lease, number) = {
            let local = self.local.lock();
            let member = local.rooms.get(channel).and_then(|room| room.members.get(&client));
            let Some((member, (lease, number))) = member.and_then(|member| Some((member, member.row?))) else {
                return Ok(None);
            };
            (Arc::clone(&member.info), lease, number)
        };
        let (subject, record) = (self.own_entry(channel, lease, client)?, entry::record(&info));
        Ok(Some(Entry { subject, number, time: 0, lease, client, state: State::Present, record }))
    }

    /// The present lease.
    pub(super) fn lease_id(&self) -> Option<Uuid> {
        self.local.lock().lease.map(|own| own.id)
    }

    /// The leases under which this node may have entries, the present one first.
    pub(super) fn own_leases(&self) -> Vec<Uuid> {
        let local = self.local.lock();
        let retired = local.retired.iter().rev().map(|(id, _)| *id);
        local.lease.iter().map(|own| own.id).chain(retired).collect()
    }

    /// Writes an entry under the present lease, if its row there is the one that is expected, where one is; whether it was.
    /// The stripe is locked.
    pub(super) async fn write(
        &self,
        channel: &ChannelName,
        info: &Arc<ClientInfo>,
        expected: Option<u64>,
    ) -> Answer<bool> {
        let lease = self.lease_id().unwrap_or_default();
        let subject = self.own_entry(channel, lease, info.client)?;
        let payload = entry::payload(State::Present, &entry::record(info));
        let written = self.call(async {
            let ready = self.table.ready().await?;
            let written = self.table.put(&ready, Write { expected, ..Write::new(subject, payload) }).await?;
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
        Ok(written.is_some())
    }

    /// Removes an entry from NATS; the stripe is locked.
    pub(super) async fn erase(&self, channel: &ChannelName, client: ClientId) -> Answer<()> {
        let row = {
            let local = self.local.lock();
            local.rooms.get(channel).and_then(|room| room.members.get(&client)).and_then(|member| member.row)
        };
        // Only what this node has written: the client may be on another node by now, under the same id.
        for lease in self.own_leases() {
            let subject = self.own_entry(channel, lease, client)?;
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
        Ok(())
    }

    /// All entries of living leases, and those that linger.
    async fn list(&self, channel: &ChannelName) -> Answer<Vec<Arc<ClientInfo>>> {
        let filter = self.entry(&token(channel.as_str()), "*", "*")?;
        let began = Instant::now();
        let ready = self.table.ready().await?;
        let rows = self.table.all(&ready, &filter).await?;
        let entries = rows.into_iter().map(Entry::parse).collect::<Answer<Vec<_>>>()?;
        let own = self.lease_id();
        let others = entries.iter().filter(|entry| entry.state == State::Present && Some(entry.lease) != own);
        let living = self.living(&ready, others.map(|entry| entry.lease).collect(), began).await?;
        let now = self.table.base.now();
        // A client that has moved may still be under its former lease; the entry written last counts.
        let mut present: HashMap<ClientId, Entry> = HashMap::new();
        for entry in entries {
            let is_shown = entry.is_shown(now);
            let is_there = is_shown.unwrap_or_else(|| Some(entry.lease) == own || living.contains(&entry.lease));
            if is_there && present.get(&entry.client).is_none_or(|other| other.number < entry.number) {
                present.insert(entry.client, entry);
            }
        }
        present.into_values().map(|entry| entry.info()).collect()
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
                self.write(&channel, info, None).await?;
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
        // The others are under leases whose entries are removed altogether.
        local.doubtful.retain(|_, fate| *fate != Fate::Erased);
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
        if is_crowded {
            // Also what would have had to linger.
            local.doubtful.clear();
        }
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
        let doubtful: Vec<_> = self.local.lock().doubtful.keys().cloned().collect();
        let ended = doubtful.into_iter().map(|(channel, client)| async move {
            let _order = self.stripe(&channel).await?;
            // It may have been added again in the meantime.
            let fate = self.local.lock().doubtful.get(&(channel.clone(), client)).copied();
            if let Some(fate) = fate {
                self.end(&channel, client, fate).await?;
                self.local.lock().doubtful.remove(&(channel, client));
            }
            Ok::<_, BackplaneError>(())
        });
        stream::iter(ended).buffer_unordered(AT_ONCE).try_collect().await
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
            if self.local.lock().lingering.values().any(|lingering| lingering.lease == lease) {
                self.remove_present(&filter).await?;
                continue;
            }
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

    /// Removes those entries that neither linger nor leave.
    async fn remove_present(&self, filter: &str) -> Answer<()> {
        let ready = self.table.ready().await?;
        let rows = self.call(self.table.all(&ready, filter)).await?;
        let entries = rows.into_iter().map(Entry::parse).collect::<Answer<Vec<_>>>()?;
        let present = entries.into_iter().filter(|entry| entry.state == State::Present);
        let removed = present.map(|entry| {
            let ready = &ready;
            async move { self.call(self.table.delete(ready, entry.number)).await.map(|_| ()) }
        });
        stream::iter(removed).buffer_unordered(AT_ONCE).try_collect().await
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

impl PresenceStore for NatsBackplane {
    fn add_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, ()> {
        Box::pin(self.presence.add(channel, info))
    }

    fn adopt_presence<'a>(&'a self, channel: &'a ChannelName, info: Arc<ClientInfo>) -> BackplaneFuture<'a, bool> {
        Box::pin(self.presence.adopt(channel, info))
    }

    fn linger_presence<'a>(
        &'a self,
        channel: &'a ChannelName,
        client: ClientId,
        grace: Duration,
    ) -> BackplaneFuture<'a, ()> {
        Box::pin(self.presence.linger(channel, client, grace))
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
