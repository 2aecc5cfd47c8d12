//! Upkeep of presence: a node's own lease, and what dead nodes have left.

use std::sync::Weak;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use super::entry::Entry;
use super::lease;
use super::presence::{AT_ONCE, Presence};
use super::table::Answer;
use crate::BackplaneError;
use crate::standstill::Pulse;

/// Entries of a dead lease that are taken at a time.
const REAPED_PER_STEP: usize = 256;

/// Leases of others that a node sees alive before it stops to look for dead ones.
const LIVING_SEEN: usize = 3;

impl Presence {
    /// Removes what dead nodes have left, and announces it. Each node looks at the leases that follow its own in the order
    /// of their ids, until it has seen some that live: so a dead one has a few reapers however many nodes there are. Leases
    /// that nobody has ended yet are ended only if they `may_end`.
    async fn reap(&self, may_end: bool) -> Answer<()> {
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
            let is_over = known.is_ended() || may_end && !known.is_alive(now);
            if is_over && !self.may_reap() {
                // Everything stood still since this began.
                return Ok(());
            }
            if is_over && self.call(lease::end(&self.table, &ready, known)).await? {
                self.reap_lease(known.id).await?;
            } else {
                living += 1;
            }
        }
        Ok(())
    }

    /// Has all entries of a lease leave but those that linger; the lease is forgotten when there is none any more.
    async fn reap_lease(&self, id: Uuid) -> Answer<()> {
        let filter = self.entry("*", &id.simple().to_string(), "*")?;
        let (mut from, mut left, mut removed) = (1, 0, 0);
        loop {
            if self.local.lock().wanted.is_some() {
                return Err(BackplaneError::Unavailable("this node's own lease is in question".to_owned()));
            }
            let ready = self.table.ready().await?;
            let rows = self.call(self.table.some(&ready, &filter, from, REAPED_PER_STEP)).await?;
            let Some(last) = rows.last() else { break };
            from = last.number + 1;
            let entries = rows.into_iter().map(Entry::parse).collect::<Answer<Vec<_>>>()?;
            let (count, now) = (entries.len(), self.table.base.now());
            let due = entries.into_iter().filter(|entry| !entry.has_time(now));
            let departed = due.map(|entry| self.call(self.depart(&ready, entry)));
            let departed: Vec<bool> = stream::iter(departed).buffer_unordered(AT_ONCE).try_collect().await?;
            let gone = departed.into_iter().filter(|is_gone| *is_gone).count();
            removed += gone;
            left += count - gone;
        }
        if removed > 0 {
            tracing::debug!(lease = %id, removed, left, "presence of a dead node removed");
        }
        // What was under way when the node died may come after the first look.
        if removed + left == 0 {
            let ready = self.table.ready().await?;
            self.call(lease::forget(&self.table, &ready, id)).await?;
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
}

/// Does what has to be done all the time, until the node's presence is dropped.
pub(super) async fn look_after(presence: Weak<Presence>, interval: Duration) {
    tokio::join!(maintain(Weak::clone(&presence), interval), reap_lingering(presence, interval / 2));
}

/// Has those leave who did not come back, soon after their time is over.
async fn reap_lingering(presence: Weak<Presence>, interval: Duration) {
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
            && let Err(error) = presence.reap_lingering().await
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
        let renewed = presence.call(presence.renew()).await;
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
            let may_end = began.elapsed() >= presence.ttl;
            work.spawn(async move {
                let done = async {
                    // One interval ago, or longer.
                    let was_registered = presence.local.lock().wanted.is_none();
                    presence.register_entries().await?;
                    presence.clear_up().await?;
                    if was_registered {
                        presence.remove_retired().await?;
                    }
                    if presence.may_reap() { presence.reap(may_end).await } else { Ok(()) }
                };
                if let Err(error) = done.await {
                    tracing::debug!(%error, "presence is not in order yet");
                }
            });
        }
    }
}
