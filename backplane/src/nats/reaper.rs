//! Upkeep of presence: a node's own lease, and what dead nodes have left.

use std::sync::Weak;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use super::lease;
use super::names::name_of;
use super::presence::{AT_ONCE, Presence, split};
use super::publish::message;
use super::request::{Stored, Write};
use super::table::{Answer, unreadable};
use crate::BackplaneError;

/// Entries of a dead lease that are taken at a time.
const REAPED_PER_STEP: usize = 256;

/// Leases of others that a node sees alive before it stops to look for dead ones.
const LIVING_SEEN: usize = 3;

impl Presence {
    /// Removes what dead nodes have left, and announces it. Each node looks at the leases that follow its own in the order
    /// of their ids, until it has seen some that live: so a dead one has a few reapers however many nodes there are.
    async fn reap(&self) -> Answer<()> {
        let ready = self.table.ready().await?;
        let mut leases = self.call(lease::all(&self.table, &ready)).await?;
        let (own, former) = {
            let local = self.local.lock();
            (local.lease.map(|own| own.id), local.former.map(|own| own.id))
        };
        // This node's own renewal is of the same clock, and was just now. Nothing is called dead by any other time.
        let Some(now) = leases.iter().find(|known| Some(known.id) == own).map(lease::Known::time) else {
            return Ok(());
        };
        leases.sort_unstable_by_key(|known| known.id);
        let behind = leases.partition_point(|known| Some(known.id) <= own);
        leases.rotate_left(behind);
        let mut living = 0;
        for known in leases.iter().filter(|known| Some(known.id) != own && Some(known.id) != former) {
            if living == LIVING_SEEN {
                return Ok(());
            }
            if !known.is_alive(now) && self.call(lease::end(&self.table, &ready, known)).await? {
                self.reap_lease(known.id).await?;
            } else {
                living += 1;
            }
        }
        Ok(())
    }

    async fn reap_lease(&self, id: Uuid) -> Answer<()> {
        let filter = self.entry("*", &id.simple().to_string(), "*")?;
        loop {
            if self.local.lock().wanted.is_some() {
                return Err(BackplaneError::Unavailable("this node's own lease is in question".to_owned()));
            }
            let ready = self.table.ready().await?;
            let entries = self.call(self.table.some(&ready, &filter, REAPED_PER_STEP)).await?;
            let Some(last) = entries.iter().map(|entry| entry.number).max() else {
                return self.call(lease::forget(&self.table, &ready, id)).await;
            };
            let count = entries.len();
            let left = entries.into_iter().map(|entry| async move { self.call(self.leave(&entry)).await });
            stream::iter(left).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
            self.call(self.table.remove_up_to(&ready, &filter, last)).await?;
            tracing::debug!(lease = %id, removed = count, "presence of a dead node removed");
        }
    }

    /// Announces that the client of an entry has left, unless it is there on another node.
    async fn leave(&self, entry: &Stored) -> Answer<()> {
        let (lease, client) = split(&entry.subject)?;
        let token = entry.subject.rsplit('.').nth(2).unwrap_or_default();
        let channel = name_of(token).ok_or_else(|| unreadable(&entry.subject, "it is of no channel"))?;
        let (lease, client) = (lease.simple().to_string(), client.0.simple().to_string());
        let ready = self.table.ready().await?;
        let latest = self.table.get(&ready, &self.entry(token, "*", &client)?).await?;
        if latest.is_some_and(|latest| latest.number > entry.number) {
            return Ok(());
        }
        // Another reaper of the same lease says the same again, which the server recognises.
        let id = format!("leave.{lease}.{token}.{client}");
        let subject = self.table.base.names.once(&channel);
        let write = Write { id: Some(id), ..Write::new(subject, message(&entry.payload)) };
        let ready = self.once.ready().await?;
        let written = ready.connection.write(write).await.inspect_err(|error| self.once.failed(error));
        written.map(|_| ()).map_err(Into::into)
    }
}

/// Keeps the lease of a node alive and looks after those of others, until the node's presence is dropped. What may take
/// long is done beside the renewals, so that it cannot cost the lease.
pub(super) async fn maintain(presence: Weak<Presence>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut well_since = Instant::now();
    let mut work = JoinSet::new();
    loop {
        ticks.tick().await;
        let Some(presence) = presence.upgrade() else { return };
        let was_well = presence.local.lock().wanted.is_none();
        match presence.call(presence.renew()).await {
            Ok(true) => {}
            Ok(false) => {
                if was_well {
                    tracing::warn!("the presence lease was gone or the data set changed: presence is registered anew");
                }
                well_since = Instant::now();
            }
            Err(error) => {
                tracing::debug!(%error, "the presence lease could not be renewed");
                well_since = Instant::now();
            }
        }
        while work.try_join_next().is_some() {}
        if work.is_empty() {
            // After an outage the leases of living nodes may have ended; each gets the time to come back.
            let may_reap = well_since.elapsed() >= presence.ttl;
            work.spawn(async move {
                let done = async {
                    // One interval ago, or longer.
                    let was_registered = presence.local.lock().wanted.is_none();
                    presence.register_entries().await?;
                    presence.clear_up().await?;
                    if was_registered {
                        presence.remove_retired().await?;
                    }
                    if may_reap { presence.reap().await } else { Ok(()) }
                };
                if let Err(error) = done.await {
                    tracing::debug!(%error, "presence is not in order yet");
                }
            });
        }
    }
}
