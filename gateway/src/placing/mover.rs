//! Moving connections: carries out what the crate `placement` decides, some connections at a time. A connection is moved
//! by closing it with 3011; its client comes back at once, and wherever new connections go.

use std::mem::discriminant;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane::NodeId;
use metrics::{Counter, Gauge, counter, gauge};
use placement::max_age::AgePace;
use placement::shed::{Hold, Own};
use placement::{Digest, Heard, NodeKey, Pause, Retirement, Shed, Shedder};
use rand::Rng;

use super::{MoveRule, RebalanceSettings};
use crate::cluster::roster::Roster;
use crate::metrics::{MOVE_RATE, MOVES, MOVES_RETURNED};
use crate::node::Node;

/// How often connections are moved: often enough that they go one by one, seldom enough to cost nothing.
const STEP: Duration = Duration::from_millis(200);

/// How often shards are asked how many of their connections may be moved, while that matters.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// How often the log repeats why nothing is moved although something should.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Moves connections of this node for ever.
pub async fn run(node: Arc<Node>, roster: Arc<Roster>) {
    let mut mover = Mover::new(node, roster);
    let mut steps = tokio::time::interval(STEP);
    steps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        steps.tick().await;
        mover.step().await;
    }
}

/// How many connections of each shard may be moved.
struct Counted {
    at: Instant,
    rule: MoveRule,
    by_shard: Vec<usize>,
}

impl Counted {
    fn sum(&self) -> u64 {
        self.by_shard.iter().sum::<usize>() as u64
    }
}

struct Mover {
    node: Arc<Node>,
    roster: Arc<Roster>,
    shedder: Shedder,
    retirement: Retirement,
    age_pace: Option<AgePace>,
    max_age: Option<Duration>,
    phase: f64,
    counted: Option<Counted>,
    aged_at: Option<Instant>,
    said: Option<(Shed, Instant)>,
    rate: Gauge,
    level_total: Counter,
    retire_total: Counter,
    age_total: Counter,
    returned_total: Counter,
}

impl Mover {
    fn new(node: Arc<Node>, roster: Arc<Roster>) -> Self {
        let phase = rand::rng().random_range(0.0..1.0);
        let settings = node.runtime().rebalance.clone();
        let moves = |reason: &'static str| counter!(MOVES, "reason" => reason);
        Self {
            shedder: Shedder::new(settings.shed, phase),
            retirement: Retirement::new(NodeKey::of(NodeId(node.uid)), phase),
            age_pace: None,
            max_age: None,
            phase,
            counted: None,
            aged_at: None,
            said: None,
            rate: gauge!(MOVE_RATE),
            level_total: moves("level"),
            retire_total: moves("retire"),
            age_total: moves("max_age"),
            returned_total: counter!(MOVES_RETURNED),
            node,
            roster,
        }
    }

    async fn step(&mut self) {
        let settings = self.node.runtime().rebalance.clone();
        self.shedder.reload(settings.shed.clone());
        self.returned_total.absolute(self.node.placing.totals(self.node.uptime()).returned);
        let now = Instant::now();
        let last = self.roster.last();
        let heard = last.as_ref().map(|(digest, at)| Heard { digest, at: *at });
        let is_retiring = !self.node.is_leaving() && self.retirement.is_ordered(heard);
        self.node.placing.set_retiring(is_retiring);
        let weight = self.node.placement().weight;
        let connections = self.node.staying_connections();
        let stays = self.node.is_ready() && !self.node.is_leaving() && !is_retiring;
        let has_excess = |digest: &Digest| settings.shed.excess(connections as f64, digest.mean * weight) > 0.0;
        let is_needed =
            is_retiring || (stays && settings.shed.enabled && last.as_ref().is_some_and(|(d, _)| has_excess(d)));
        let rule = MoveRule {
            min_age: settings.shed.min_age,
            // Who retires is deleted afterwards: better moved now than cut off then.
            recoverable_only: settings.recoverable_only && !is_retiring,
            max_age: None,
        };
        let movable = if is_needed { self.movable(now, rule).await } else { 0 };
        let shed = if is_retiring {
            self.retirement.tick(now, movable, heard, &settings.shed)
        } else {
            // Forgets the pace of an order that was withdrawn.
            self.retirement.tick(now, 0, heard, &settings.shed);
            self.shedder.tick(now, Own { connections, movable, weight, stays }, heard)
        };
        self.say(now, shed);
        if shed.close() > 0 {
            let moved = self.close(shed.close()).await;
            if is_retiring { &self.retire_total } else { &self.level_total }.increment(moved);
        }
        if stays {
            self.age(now, &settings, heard).await;
        }
    }

    /// How many connections may be moved, as counted within the last second.
    async fn movable(&mut self, now: Instant, rule: MoveRule) -> u64 {
        let is_fresh =
            |counted: &Counted| counted.rule == rule && now.saturating_duration_since(counted.at) < COUNT_EVERY;
        if !self.counted.as_ref().is_some_and(is_fresh) {
            // A shard that does not answer has other worries than its number of connections.
            let by_shard = self.node.count_movable(rule).await.unwrap_or_default();
            self.counted = Some(Counted { at: now, rule, by_shard });
        }
        self.counted.as_ref().map_or(0, Counted::sum)
    }

    /// Has so many connections closed, by the shards that have the most of them; returns how many were.
    async fn close(&mut self, count: u64) -> u64 {
        let Some(counted) = &mut self.counted else { return 0 };
        let shares = share_out(count, &mut counted.by_shard);
        let rule = counted.rule;
        let moved = self.node.move_connections(rule, &shares).await.unwrap_or_default();
        self.node.placing.count_moved(moved);
        moved as u64
    }

    /// Ends connections that have reached their age.
    async fn age(&mut self, now: Instant, settings: &RebalanceSettings, heard: Option<Heard<'_>>) {
        if self.max_age != settings.max_age {
            self.max_age = settings.max_age;
            self.age_pace = settings.max_age.map(|max_age| AgePace::new(max_age, self.phase));
        }
        let (Some(pace), Some(max_age)) = (&mut self.age_pace, settings.max_age) else { return };
        if self.aged_at.is_some_and(|at| now.saturating_duration_since(at) < COUNT_EVERY) {
            return;
        }
        self.aged_at = Some(now);
        // What keeps the fleet from levelling is a reason to keep the old connections, too; they are not urgent. But it
        // does not matter where they go.
        let is_reason = |pause: &Pause| *pause != Pause::Returning;
        let is_stale = |heard: Heard<'_>| heard.age(now) > settings.shed.digest_stale;
        if heard.is_some_and(|heard| is_stale(heard) || heard.digest.pauses.iter().any(is_reason)) {
            return;
        }
        let rule = MoveRule {
            min_age: settings.shed.min_age,
            recoverable_only: settings.recoverable_only,
            max_age: Some(max_age),
        };
        let mut by_shard = self.node.count_movable(rule).await.unwrap_or_default();
        let over = by_shard.iter().sum::<usize>() as u64;
        let connections = self.node.staying_connections();
        // Never more than its part of the cluster's budget, which is what counts when all are over their age at once.
        let least = settings.shed.rate.min(settings.shed.budget * connections as f64);
        let close = pace.tick(now, connections, over, least);
        let shares = share_out(close, &mut by_shard);
        let moved = self.node.move_connections(rule, &shares).await.unwrap_or_default();
        self.node.placing.count_moved(moved);
        self.age_total.increment(moved as u64);
    }

    /// Tells operators what is done, when that changes.
    fn say(&mut self, now: Instant, shed: Shed) {
        self.node.placing.set_state(shed.to_string());
        self.rate.set(match shed {
            Shed::Moving { rate, .. } => rate,
            Shed::Held(_) => 0.0,
        });
        let kind = |shed: &Shed| match shed {
            Shed::Moving { .. } => None,
            Shed::Held(Hold::Paused(pause)) => Some((discriminant(&Hold::Paused(*pause)), Some(*pause))),
            Shed::Held(hold) => Some((discriminant(hold), None)),
        };
        let is_same = self.said.as_ref().is_some_and(|(said, _)| kind(said) == kind(&shed));
        let is_old = self.said.as_ref().is_none_or(|(_, at)| now.saturating_duration_since(*at) >= SAY_EVERY);
        let was_moving = matches!(self.said, Some((Shed::Moving { .. }, _)));
        let is_news = match shed {
            Shed::Moving { .. } => !is_same,
            Shed::Held(hold) if hold.is_against_need() => !is_same || is_old,
            Shed::Held(_) => was_moving,
        };
        if is_news {
            tracing::info!(connections = self.node.staying_connections(), "rebalancing: {shed}");
        }
        if is_news || !is_same {
            self.said = Some((shed, now));
        }
    }
}

/// Shares `count` out, one by one to whichever has the most left; takes it off what they have.
fn share_out(count: u64, have: &mut [usize]) -> Vec<usize> {
    let mut shares = vec![0; have.len()];
    for _ in 0..count {
        let Some((index, most)) = have.iter_mut().enumerate().max_by_key(|(_, left)| **left) else { break };
        if *most == 0 {
            break;
        }
        *most -= 1;
        shares[index] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_come_from_where_there_is_most_and_never_exceed_what_there_is() {
        let mut have = [5, 1, 4];
        assert_eq!(share_out(4, &mut have), [2, 0, 2].map(|n: usize| n).to_vec());
        assert_eq!(have, [3, 1, 2]);
        assert_eq!(share_out(100, &mut have), vec![3, 1, 2]);
        assert_eq!(share_out(1, &mut []), Vec::<usize>::new());
    }
}
