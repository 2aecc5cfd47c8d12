//! Moving connections off a node that has too many: how many to close now, and if none, why.
//!
//! Placement alone does not level a fleet that was enlarged: with lifetimes of hours the old nodes keep what they have.
//! So a node that is far above the mean closes some of its connections, and the clients come back elsewhere. Every node
//! decides for itself, from the digest and its own count.

mod reason;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use reason::{Hold, Shed};

use crate::digest::{Digest, Heard};
use crate::rate::Paced;

/// Parameters of moving connections.
#[derive(Clone, PartialEq, Debug)]
pub struct ShedSettings {
    /// Whether connections are moved at all.
    pub enabled: bool,
    /// It starts when a node is this much above its share. Below, every connection moved costs more than it gains.
    pub start: f64,
    /// And when it is this many standard deviations of chance above it: placement at random fills one of 1,000 nodes
    /// with 500 connections each to 1.14 times the mean, and would do so again.
    pub start_deviations: f64,
    /// It stops when the node is only this much above its share; well below `start`, so that it does not flap.
    pub stop: f64,
    /// The pace slows down towards this much above the share, so that lag does not make the node undershoot.
    pub aim: f64,
    /// The most connections per second that a node closes: a user's devices do not all go at once, and other nodes see
    /// what they get.
    pub rate: f64,
    /// The same as a part of the node's connections per second, if that is more: otherwise a node with 100,000
    /// connections would need hours.
    pub rate_part: f64,
    /// What a node has too many is closed over this time, at the least.
    pub spread: Duration,
    /// All nodes together close at most this part of all connections per second. 0.4 % levels a doubled fleet in some
    /// four minutes; less takes longer, more makes a wave of reconnects.
    pub budget: f64,
    /// And at most this part of the accept capacity that is free.
    pub budget_of_spare: f64,
    /// A younger connection is left alone: its client has just come.
    pub min_age: Duration,
    /// Nothing is moved on an older digest: the others may have changed.
    pub digest_stale: Duration,
    /// Nothing is moved when the open set is used but was not written for so long: what is moved would land anywhere.
    pub placement_stale: Duration,
}

impl Default for ShedSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            start: 0.10,
            start_deviations: 3.0,
            stop: 0.05,
            aim: 0.02,
            rate: 5.0,
            rate_part: 0.001,
            spread: Duration::from_secs(60),
            budget: 0.004,
            budget_of_spare: 0.25,
            min_age: Duration::from_secs(60),
            digest_stale: Duration::from_secs(5),
            placement_stale: Duration::from_secs(30),
        }
    }
}

impl ShedSettings {
    /// What a node with these connections adds to [`Digest::excess`]: its claim on the budget.
    pub fn excess(&self, connections: f64, share: f64) -> f64 {
        if connections > (1.0 + self.stop) * share { connections - (1.0 + self.aim) * share } else { 0.0 }
    }

    /// Connections above which a node whose share this is begins to close some.
    pub fn start_above(&self, share: f64) -> f64 {
        ((1.0 + self.start) * share).max(share + self.start_deviations * share.sqrt())
    }
}

/// The node that decides.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Own {
    /// Its connections, without those that have been told to go.
    pub connections: u64,
    /// Those that may be moved: older than `min_age`, and able to recover what they miss.
    pub movable: u64,
    /// Its capacity weight, as it reports it.
    pub weight: f64,
    /// Whether it takes part: it is ready, and neither drains nor retires.
    pub stays: bool,
}

/// How long a node's own report may be under way until it comes back as a part of the digest it acts on: 3 s to be read,
/// 5 s until the digest is stale, and some.
const CLAIM_WINDOW: Duration = Duration::from_secs(10);

/// Decides for one node.
#[derive(Clone, Debug)]
pub struct Shedder {
    settings: ShedSettings,
    is_moving: bool,
    paced: Paced,
    recent: VecDeque<(Instant, u64)>,
}

impl Shedder {
    /// `phase` in 0..1, different for each node, keeps the nodes from closing in the same moment.
    pub fn new(settings: ShedSettings, phase: f64) -> Self {
        Self { settings, is_moving: false, paced: Paced::new(phase), recent: VecDeque::new() }
    }

    /// The settings from now on.
    pub fn reload(&mut self, settings: ShedSettings) {
        self.settings = settings;
    }

    /// What to close now; to be called about once a second, and more often for a smoother pace.
    pub fn tick(&mut self, now: Instant, own: Own, heard: Option<Heard<'_>>) -> Shed {
        self.remember(now, own.connections);
        match self.rate(now, own, heard) {
            Ok(rate) => {
                self.is_moving = true;
                let close = self.paced.due(now, rate, own.movable);
                Shed::Moving { close, rate }
            }
            Err(hold) => {
                self.is_moving &= hold.is_pause();
                self.paced.idle(now);
                Shed::Held(hold)
            }
        }
    }

    /// Connections per second to close.
    fn rate(&self, now: Instant, own: Own, heard: Option<Heard<'_>>) -> Result<f64, Hold> {
        let settings = &self.settings;
        if !settings.enabled {
            return Err(Hold::Off);
        }
        if !own.stays {
            return Err(Hold::NotStaying);
        }
        let digest = usable(settings, now, heard)?;
        let share = digest.mean * own.weight;
        let connections = own.connections as f64;
        self.check_level(connections, share)?;
        may_move(settings, now, heard)?;
        if own.movable == 0 {
            return Err(Hold::TooYoung);
        }
        let over = connections - (1.0 + settings.aim) * share;
        let most = settings.rate.max(settings.rate_part * connections);
        let budgeted = self.share_of_budget(digest, share)?;
        Ok(most.min(over / settings.spread.as_secs_f64()).min(budgeted))
    }

    fn check_level(&self, connections: f64, share: f64) -> Result<(), Hold> {
        let settings = &self.settings;
        let times = if share > 0.0 { connections / share } else { 1.0 };
        if connections <= (1.0 + settings.stop) * share || share <= 0.0 {
            return Err(Hold::Level { times });
        }
        if !self.is_moving && connections <= settings.start_above(share) {
            let is_chance = connections > (1.0 + settings.start) * share;
            return Err(if is_chance { Hold::Chance { times } } else { Hold::Level { times } });
        }
        Ok(())
    }

    /// The part of the cluster's budget that is this node's. The claim is the smallest that it can have had in any
    /// report that the digest may have been made of, so that all claims together are never more than the digest's sum.
    fn share_of_budget(&self, digest: &Digest, share: f64) -> Result<f64, Hold> {
        let least = self.recent.iter().map(|(_, connections)| *connections).min().unwrap_or(0);
        let claim = self.settings.excess(least as f64, share);
        let budget = digest.budget.min(self.settings.budget * digest.connections as f64);
        // Half of it is for the nodes that retire, if some do.
        let budget = if digest.retire.is_empty() { budget } else { 0.5 * budget };
        if claim <= 0.0 || digest.excess <= 0.0 || budget <= 0.0 {
            return Err(Hold::NoBudget);
        }
        Ok(budget * (claim / digest.excess).min(1.0))
    }

    fn remember(&mut self, now: Instant, connections: u64) {
        while self.recent.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > CLAIM_WINDOW) {
            self.recent.pop_front();
        }
        // Called often, only the smallest of each second counts.
        match self.recent.back_mut() {
            Some((at, least)) if now.saturating_duration_since(*at) < Duration::from_secs(1) => {
                *least = connections.min(*least);
            }
            _ => self.recent.push_back((now, connections)),
        }
    }
}

/// The digest, if it is young enough to move connections by.
pub(crate) fn usable<'a>(settings: &ShedSettings, now: Instant, heard: Option<Heard<'a>>) -> Result<&'a Digest, Hold> {
    let heard = heard.ok_or(Hold::NoDigest)?;
    let age = heard.age(now);
    if age > settings.digest_stale { Err(Hold::DigestStale { age }) } else { Ok(heard.digest) }
}

/// Whether the fleet is in a state in which connections may be moved.
pub(crate) fn may_move(settings: &ShedSettings, now: Instant, heard: Option<Heard<'_>>) -> Result<(), Hold> {
    let digest = usable(settings, now, heard)?;
    if let Some(&pause) = digest.pauses.first() {
        return Err(Hold::Paused(pause));
    }
    if digest.open_set {
        let since_heard = heard.map_or(Duration::ZERO, |heard| heard.age(now));
        let age = digest.placement_age_ms.map(|age| Duration::from_millis(age).saturating_add(since_heard));
        if age.is_none_or(|age| age > settings.placement_stale) {
            return Err(Hold::PlacementStale { age });
        }
    }
    Ok(())
}

/// What is to be said when the fleet is out of level: by how much, and what is done about it or why nothing is. Nothing
/// when it is level, or when no digest has come.
pub fn explain(settings: &ShedSettings, now: Instant, heard: Option<Heard<'_>>) -> Option<String> {
    let digest = heard?.digest;
    if digest.max <= settings.start_above(digest.mean) {
        return None;
    }
    let state = match may_move(settings, now, heard) {
        _ if !settings.enabled => Hold::Off.to_string(),
        Err(hold) => hold.to_string(),
        Ok(()) => format!("up to {:.0} connections a second are moved", digest.budget),
    };
    Some(format!("the fullest node has {:.2} times its share; {state}", digest.imbalance()))
}
