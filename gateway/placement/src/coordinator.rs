//! The coordinator: one digest out of all reports, once a second.

use std::time::{Duration, Instant};

use crate::breaker::{Breaker, BreakerSettings, Vitals};
use crate::candidates::candidates;
use crate::digest::{Digest, NodeKey, Pause};
use crate::level::Vessel;
use crate::open_set::OpenSetSettings;
use crate::rate::Smoothed;
use crate::report::{Peer, tidy_rate};
use crate::returning::{Fates, Returning, ReturningSettings};
use crate::rollout::{Rollout, newest};
use crate::scale_down::{ScaleDown, ScaleDownSettings};
use crate::shed::ShedSettings;

/// Parameters of the coordinator.
#[derive(Clone, PartialEq, Debug)]
pub struct CoordinatorSettings {
    /// The weight of the newest second in the smoothed rates: a wave shows within 5 s, and one odd second does not.
    pub smoothing: f64,
    /// A rollout that has stood still for so long keeps nobody from moving any more; a pod may take minutes to start.
    pub rollout_quiet: Duration,
    /// Fewer accepts per second than this, by all nodes together, are no capacity.
    pub spare_least: f64,
    /// From an older report nothing is taken that changes from second to second: rates, free accept capacity and room. The
    /// connections of a node that is silent count until its report is withdrawn, since it may have them still.
    pub report_current: Duration,
    /// The circuit breaker.
    pub breaker: BreakerSettings,
    /// The judgement of moves that changed nothing.
    pub returning: ReturningSettings,
    /// The choice of nodes that go first.
    pub scale_down: ScaleDownSettings,
    /// How nodes move connections; the coordinator needs it for the budget.
    pub shed: ShedSettings,
    /// How nodes are opened; the coordinator needs it for the level.
    pub open_set: OpenSetSettings,
}

impl Default for CoordinatorSettings {
    fn default() -> Self {
        Self {
            smoothing: 0.2,
            rollout_quiet: Duration::from_secs(600),
            spare_least: 1.0,
            report_current: Duration::from_secs(5),
            breaker: BreakerSettings::default(),
            returning: ReturningSettings::default(),
            scale_down: ScaleDownSettings::default(),
            shed: ShedSettings::default(),
            open_set: OpenSetSettings::default(),
        }
    }
}

/// What one coordinator remembers during its term.
#[derive(Clone, Debug)]
pub struct Coordinator {
    settings: CoordinatorSettings,
    term: u64,
    sequence: u64,
    arrivals: Smoothed,
    refused: Smoothed,
    moved: Smoothed,
    rollout: Rollout,
    breaker: Breaker,
    returning: Returning,
    scale_down: ScaleDown,
    /// When the open set was last known to be written.
    placed_at: Option<Instant>,
}

/// The sums over all reports.
#[derive(Default)]
struct Sums {
    connections: u64,
    connections_max: u64,
    ready: u64,
    draining: u64,
    starting: u64,
    emptying: u64,
    /// Of the nodes that stay.
    weight: f64,
    accepts: f64,
    refused: f64,
    moved: f64,
    fates: Fates,
    spare: Option<f64>,
}

impl Sums {
    fn of(peers: &[Peer], current: Duration) -> Self {
        let mut sums = Self::default();
        let is_ready = |peer: &&Peer| peer.report.ready && !peer.report.draining;
        let ready_weight: f64 = peers.iter().filter(is_ready).map(|peer| peer.report.weight).sum();
        for peer in peers {
            let report = &peer.report;
            let is_current = peer.age <= current;
            sums.connections += report.connections;
            sums.connections_max = sums.connections_max.max(report.connections);
            match (report.draining, report.ready) {
                (true, _) => sums.draining += 1,
                (false, true) => sums.ready += 1,
                (false, false) => sums.starting += 1,
            }
            if is_current {
                sums.emptying += u64::from(report.draining && report.connections > 0);
                sums.accepts += report.accepts;
                sums.refused += report.refused;
                sums.moved += report.moved;
                sums.fates.settled += report.settled;
                sums.fates.returned += report.returned;
                sums.fates.by_chance += report.settled * (report.weight / ready_weight.max(report.weight));
            }
            if report.stays() {
                sums.weight += report.weight;
                // A node without room for another connection has no use for its speed, and a silent one may be gone.
                let can_use = is_current && report.room != Some(0);
                let spare = report.spare_accepts.map(|spare| if can_use { spare } else { 0.0 });
                sums.spare = match (sums.spare, spare) {
                    (Some(sum), Some(spare)) => Some(sum + spare),
                    (sum, spare) => sum.or(spare),
                };
            }
        }
        sums
    }

    fn mean(&self) -> f64 {
        if self.weight > 0.0 { self.connections as f64 / self.weight } else { 0.0 }
    }
}

impl Coordinator {
    /// A coordinator of this term, which must be higher than that of every report and digest.
    pub fn new(settings: CoordinatorSettings, term: u64) -> Self {
        Self {
            term,
            sequence: 0,
            arrivals: Smoothed::default(),
            refused: Smoothed::default(),
            moved: Smoothed::default(),
            rollout: Rollout::default(),
            breaker: Breaker::new(settings.breaker.clone()),
            returning: Returning::new(settings.returning.clone()),
            scale_down: ScaleDown::new(settings.scale_down.clone()),
            placed_at: None,
            settings,
        }
    }

    /// The budget and the thresholds from now on.
    pub fn reload(&mut self, shed: ShedSettings) {
        self.settings.shed = shed;
    }

    /// Its term.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The term that follows everything that was seen: the digest this node heard last, and all reports.
    pub fn next_term(heard: Option<u64>, peers: &[Peer]) -> u64 {
        peers.iter().map(|peer| peer.report.term).chain(heard).max().unwrap_or(0).saturating_add(1)
    }

    /// The next digest. To be called once a second with the whole table of reports.
    pub fn tick(&mut self, now: Instant, peers: &[Peer]) -> Digest {
        self.sequence += 1;
        let sums = Sums::of(peers, self.settings.report_current);
        let mean = sums.mean();
        let smoothing = self.settings.smoothing;
        let arrivals = self.arrivals.sample(now, sums.accepts, smoothing);
        let is_returning = self.returning.tick(now, sums.fates);
        let budget = self.budget(&sums) * self.returning.budget();
        let vitals = Vitals {
            connections: sums.connections,
            arrivals,
            refused: self.refused.sample(now, sums.refused, smoothing),
            moved: self.moved.sample(now, sums.moved, smoothing),
            moved_now: sums.moved,
            spare: sums.spare,
        };
        let is_rollout = self.rollout.tick(now, peers, self.settings.rollout_quiet);
        let mut pauses = self.pauses(now, peers, &vitals, mean, is_rollout);
        if is_returning {
            pauses.push(Pause::Returning);
        }
        let revision = newest(peers);
        let chosen = self.scale_down.tick(now, peers, revision, is_rollout);
        Digest {
            ready: sums.ready,
            draining: sums.draining,
            starting: sums.starting,
            emptying: Some(sums.emptying),
            connections: sums.connections,
            connections_max: sums.connections_max,
            mean: tidy_rate(mean),
            max: tidy_rate(staying(peers).map(|peer| peer.report.load()).fold(0.0, f64::max)),
            level: tidy_rate(self.level(peers, arrivals, mean)),
            arrivals: tidy_rate(arrivals),
            spare: sums.spare.map(tidy_rate),
            budget: tidy_rate(budget),
            excess: tidy_rate(self.excess(peers, mean)),
            revision: revision.to_owned(),
            pauses,
            open_set: staying(peers).any(|peer| peer.report.open_set),
            placement_age_ms: self.placement_age_ms(now, peers),
            candidates: candidates(peers),
            retire: chosen.into_iter().map(NodeKey::of).collect(),
            ..Digest::empty(self.term, self.sequence)
        }
    }

    fn budget(&self, sums: &Sums) -> f64 {
        let shed = &self.settings.shed;
        let part = shed.budget * sums.connections as f64;
        sums.spare.map_or(part, |spare| part.min(shed.budget_of_spare * spare))
    }

    fn excess(&self, peers: &[Peer], mean: f64) -> f64 {
        let excess = |peer: &Peer| self.settings.shed.excess(peer.report.connections as f64, mean * peer.report.weight);
        staying(peers).map(excess).sum()
    }

    fn level(&self, peers: &[Peer], arrivals: f64, mean: f64) -> f64 {
        let mut vessels: Vec<_> =
            staying(peers).map(|peer| Vessel { load: peer.report.load(), weight: peer.report.weight }).collect();
        vessels.sort_by(|a, b| a.load.total_cmp(&b.load));
        self.settings.open_set.depth(&vessels, arrivals, mean).1
    }

    fn pauses(&mut self, now: Instant, peers: &[Peer], vitals: &Vitals, mean: f64, is_rollout: bool) -> Vec<Pause> {
        let mut pauses = Vec::new();
        if is_rollout {
            pauses.push(Pause::Rollout);
        }
        let is_slow = vitals.spare.is_some_and(|spare| spare < self.settings.spare_least);
        if is_slow || !self.has_room(peers, mean) {
            pauses.push(Pause::NoRoom);
        }
        pauses.extend(self.breaker.tick(now, vitals));
        pauses
    }

    /// Whether a node that has less than its share may hold more connections.
    fn has_room(&self, peers: &[Peer], mean: f64) -> bool {
        let may_hold_more = |peer: &Peer| {
            let is_current = peer.age <= self.settings.report_current;
            is_current && peer.report.load() < mean && peer.report.room.is_none_or(|room| room > 0)
        };
        staying(peers).any(may_hold_more) || staying(peers).all(|peer| peer.report.load() <= mean)
    }

    /// Milliseconds since the open set was written, by the word of its writer. After the writer has gone, the last
    /// word goes on ageing.
    fn placement_age_ms(&mut self, now: Instant, peers: &[Peer]) -> Option<u64> {
        let told = peers.iter().filter_map(|peer| {
            let age = peer.age.saturating_add(Duration::from_millis(peer.report.placement_age_ms?));
            now.checked_sub(age)
        });
        self.placed_at = told.chain(self.placed_at).max();
        let age = now.saturating_duration_since(self.placed_at?);
        Some(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }
}

fn staying(peers: &[Peer]) -> impl Iterator<Item = &Peer> {
    peers.iter().filter(|peer| peer.report.stays())
}

#[cfg(test)]
mod tests;
