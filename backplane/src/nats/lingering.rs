//! Presence of clients that may come back.
//!
//! An entry that lingers stays where it is, under the lease of the node that its client has left, and says until when it
//! waits; from then on it counts whether that lease is alive or not. When its time is over the node that wrote it has it
//! leave; when that node is gone those do that reap its lease.
//!
//! # Why a leave is announced once, or not at all
//! Each entry is decided about by what is written over it, or removes it, under the number that it was read with:
//!
//! - Whoever has it leave first writes over it that it leaves. From then on it does: everybody who finds it so announces the
//!   same leave, which the server takes once, and removes it.
//! - Whoever adopts it writes the client's new entry first and then removes the old one. If it is not there any more, or
//!   leaves, it was not adopted. The leave is then announced before the adoption returns.
//! - Whoever has it linger writes over it only what it has written itself. If it is not there, it was adopted.
//!
//! An entry under which there is a newer one of the same client is superseded and has no leave of its own. It is removed
//! only when its successor is so old that its adoption has ended, however that went.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use uuid::Uuid;

use super::doubt::{Doubt, Fate};
use super::entry::{self, Entry, State};
use super::names::{name_of, token};
use super::presence::{AT_ONCE, Presence};
use super::publish::message;
use super::request::Write;
use super::stream::Ready;
use super::table::{ATTEMPTS, Answer, too_many_others, unreadable};
use crate::{ChannelName, ClientId, ClientInfo};

/// An entry of this node that lingers.
#[derive(Clone, Debug)]
pub(super) struct Lingering {
    pub(super) lease: Uuid,
    number: u64,
    /// By the server's clock, in nanoseconds since 1970.
    until: u64,
}

impl Presence {
    /// True if the client was there, and its leave is not announced.
    pub(super) async fn adopt(&self, channel: &ChannelName, info: Arc<ClientInfo>) -> Answer<bool> {
        self.in_time(async {
            let _order = self.stripe(channel).await?;
            let guard = self.begin_entry(channel, &info, Fate::GivenBack);
            let adopted = self.take_over(channel, &info).await?;
            guard.settle();
            Ok(adopted)
        })
        .await
    }

    pub(super) async fn linger(&self, channel: &ChannelName, client: ClientId, grace: Duration) -> Answer<()> {
        self.in_time(self.end_now(channel, client, Fate::Lingers(grace))).await
    }

    /// Writes an entry in place of the one that the client has left behind; the stripe is locked.
    async fn take_over(&self, channel: &ChannelName, info: &Arc<ClientInfo>) -> Answer<bool> {
        let everywhere = self.entry(&token(channel.as_str()), "*", &info.client.0.simple().to_string())?;
        for _ in 0..ATTEMPTS {
            let ready = self.table.ready().await?;
            let Some(found) = self.call(self.read(&ready, &everywhere)).await? else {
                self.write(channel, info, None).await?;
                return Ok(false);
            };
            if found.state == State::Leaves {
                self.call(self.finish(&ready, &found)).await?;
                self.write(channel, info, None).await?;
                return Ok(false);
            }
            if Some(found.lease) != self.lease_id() {
                self.write(channel, info, None).await?;
                return self.call(self.claim(&ready, found)).await;
            }
            if self.write(channel, info, Some(found.number)).await? {
                self.local.lock().lingering.remove(&found.subject);
                return Ok(true);
            }
        }
        Err(too_many_others())
    }

    /// Removes an entry in whose place there is another one. False: it has left, or its node has removed it.
    async fn claim(&self, ready: &Ready, mut found: Entry) -> Answer<bool> {
        for _ in 0..ATTEMPTS {
            if self.table.delete(ready, found.number).await? {
                return Ok(true);
            }
            match self.read(ready, &found.subject).await? {
                None => return Ok(false),
                Some(now) if now.state == State::Leaves => return self.finish(ready, &now).await.map(|()| false),
                // Its node has had it linger, or written it anew.
                Some(now) => found = now,
            }
        }
        Err(too_many_others())
    }

    /// Has an entry of this node linger; the stripe is locked.
    pub(super) async fn hand_over(&self, channel: &ChannelName, client: ClientId, grace: Duration) -> Answer<()> {
        let grace = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        let until = self.table.base.now().saturating_add(grace);
        if let Some(known) = self.known_entry(channel, client)?
            && self.call(self.mark_as_lingering(&known, until)).await?
        {
            return Ok(());
        }
        for lease in self.own_leases() {
            let subject = self.own_entry(channel, lease, client)?;
            if self.call(self.find_and_mark(&subject, until)).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Has the entry at this subject linger; false if there is none, or if it leaves already.
    async fn find_and_mark(&self, subject: &str, until: u64) -> Answer<bool> {
        for _ in 0..ATTEMPTS {
            let ready = self.table.ready().await?;
            let Some(found) = self.read(&ready, subject).await? else { return Ok(false) };
            match found.state {
                State::Leaves => return Ok(false),
                // An earlier attempt was carried out but not answered.
                State::Lingers { until } => {
                    self.look_out_for(&found, found.number, until);
                    return Ok(true);
                }
                State::Present => {}
            }
            if self.mark_as_lingering(&found, until).await? {
                return Ok(true);
            }
        }
        Err(too_many_others())
    }

    /// False if it is not what it was any more.
    async fn mark_as_lingering(&self, entry: &Entry, until: u64) -> Answer<bool> {
        let ready = self.table.ready().await?;
        let Some(number) = self.put_over(&ready, entry, State::Lingers { until }).await? else { return Ok(false) };
        self.look_out_for(entry, number, until);
        Ok(true)
    }

    fn look_out_for(&self, entry: &Entry, number: u64, until: u64) {
        let lingering = Lingering { lease: entry.lease, number, until };
        self.local.lock().lingering.insert(entry.subject.clone(), lingering);
    }

    /// Undoes an adoption that may have gone halfway; the stripe is locked. Where the entry that was to be adopted is still
    /// there, it goes on to linger. Where it is not, nobody else will announce that the client has left.
    pub(super) async fn give_back(&self, channel: &ChannelName, client: ClientId) -> Answer<()> {
        let everywhere = self.entry(&token(channel.as_str()), "*", &client.0.simple().to_string())?;
        let own = self.own_leases();
        let others = self.call(async {
            let ready = self.table.ready().await?;
            let rows = self.table.all(&ready, &everywhere).await?;
            rows.into_iter().map(Entry::parse).collect::<Answer<Vec<_>>>()
        });
        let others = others.await?;
        let mut others = others.iter().filter(|entry| !own.contains(&entry.lease));
        if others.any(|entry| entry.state != State::Leaves) {
            self.erase(channel, client).await
        } else {
            self.hand_over(channel, client, Duration::ZERO).await
        }
    }

    /// Has those entries leave that this node has had linger and whose time is over.
    pub(super) async fn reap_lingering(&self) -> Answer<()> {
        let now = self.table.base.now();
        let due: Vec<(String, Lingering)> = {
            let local = self.local.lock();
            let due = local.lingering.iter().filter(|(_, lingering)| lingering.until <= now);
            due.map(|(subject, lingering)| (subject.clone(), lingering.clone())).collect()
        };
        let left = due.into_iter().map(|(subject, due)| async move {
            if self.call(self.end_lingering(&subject, now)).await? {
                let mut local = self.local.lock();
                if local.lingering.get(&subject).is_some_and(|lingering| lingering.number == due.number) {
                    local.lingering.remove(&subject);
                }
            }
            Ok(())
        });
        stream::iter(left).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// True: there is nothing more to be done about it.
    async fn end_lingering(&self, subject: &str, now: u64) -> Answer<bool> {
        let ready = self.table.ready().await?;
        match self.read(&ready, subject).await? {
            Some(entry) if entry.state != State::Present && !entry.has_time(now) => self.depart(&ready, entry).await,
            // It was adopted, or has left, or has come back and gone again.
            _ => Ok(true),
        }
    }

    /// Has the client of an entry leave, unless it is there by another one. True: nothing is left of the entry.
    pub(super) async fn depart(&self, ready: &Ready, entry: Entry) -> Answer<bool> {
        if entry.state == State::Leaves {
            return self.finish(ready, &entry).await.map(|()| true);
        }
        let everywhere = self.entry(entry.channel_token(), "*", &entry.client.0.simple().to_string())?;
        let latest = self.read(ready, &everywhere).await?;
        if let Some(latest) = latest.filter(|latest| latest.number > entry.number) {
            let is_settled = latest.state == State::Leaves || self.has_been_adopted(&latest);
            return Ok(is_settled && self.table.delete(ready, entry.number).await?);
        }
        let Some(number) = self.put_over(ready, &entry, State::Leaves).await? else { return Ok(false) };
        self.finish(ready, &Entry { number, state: State::Leaves, ..entry }).await.map(|()| true)
    }

    /// Whether an entry is so old that whoever wrote it has claimed the one before it, or will not do so any more.
    fn has_been_adopted(&self, latest: &Entry) -> bool {
        let patience = u64::try_from((4 * self.timeout).as_nanos()).unwrap_or(u64::MAX);
        latest.time.saturating_add(patience) <= self.table.base.now()
    }

    /// Announces the leave of an entry that leaves, and removes it.
    async fn finish(&self, ready: &Ready, entry: &Entry) -> Answer<()> {
        let token = entry.channel_token();
        let channel = name_of(token).ok_or_else(|| unreadable(&entry.subject, "it is of no channel"))?;
        let (lease, client) = (entry.lease.simple(), entry.client.0.simple());
        // Whoever else finds it says the same again, which the server recognises.
        let id = format!("leave.{lease}.{token}.{client}.{}", entry.number);
        let subject = self.table.base.names.once(&channel);
        let write = Write { id: Some(id), ..Write::new(subject, message(&entry.record)) };
        let once = self.once.ready().await?;
        once.connection.write(write).await.inspect_err(|error| self.once.failed(error))?;
        self.table.delete(ready, entry.number).await?;
        Ok(())
    }

    /// Writes an entry in another state, if it is still what was read; its new number.
    async fn put_over(&self, ready: &Ready, entry: &Entry, state: State) -> Answer<Option<u64>> {
        let payload = entry::payload(state, &entry.record);
        let write = Write { expected: Some(entry.number), ..Write::new(entry.subject.clone(), payload) };
        Ok(self.table.put(ready, write).await?.map(|written| written.number))
    }

    /// The last entry that was written at this subject, which may hold wildcards.
    async fn read(&self, ready: &Ready, subject: &str) -> Answer<Option<Entry>> {
        self.table.get(ready, subject).await?.map(Entry::parse).transpose()
    }
}

impl Presence {
    /// Notes that a client is there, before it is said at NATS. What is returned takes that back unless it is settled.
    pub(super) fn begin_entry<'a>(
        &'a self,
        channel: &'a ChannelName,
        info: &Arc<ClientInfo>,
        if_it_fails: Fate,
    ) -> Doubt<'a> {
        let mut local = self.local.lock();
        local.doubtful.remove(&(channel.clone(), info.client));
        local.show(channel, info);
        drop(local);
        Doubt::new(self, channel, info.client, if_it_fails)
    }
}
