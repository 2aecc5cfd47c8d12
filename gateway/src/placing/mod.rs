//! What this node does about placement: says how full it is, moves connections off itself when it has too many, and
//! tells proxies whether it wants new ones. The decisions are in the crate `placement`; here are the effects.
//!
//! Reading order: this page, [`rule`] (which connections may be moved), [`mover`] (moving them), [`returns`] (whether they
//! come back), [`agent`] (HAProxy's agent check). Reports and digests are in [`crate::cluster`].

pub mod agent;
pub mod mover;
pub mod returns;
pub mod rule;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use placement::{CoordinatorSettings, ShedSettings};

use returns::{Returns, Settled};
pub use rule::MoveRule;

/// What is fixed while the node runs.
#[derive(Clone, PartialEq, Debug)]
pub struct PlacementSettings {
    /// Capacity in comparison with the other nodes.
    pub weight: f64,
    /// What the node was started from, such as the hash of a pod's template; empty is unknown.
    pub revision: String,
    /// Where HAProxy asks whether the node wants connections.
    pub agent_listen: Option<SocketAddr>,
    /// How this node coordinates the fleet, when it does.
    pub coordinator: CoordinatorSettings,
}

impl Default for PlacementSettings {
    fn default() -> Self {
        Self { weight: 1.0, revision: String::new(), agent_listen: None, coordinator: CoordinatorSettings::default() }
    }
}

/// How connections are moved; can change while the node runs.
#[derive(Clone, PartialEq, Debug)]
pub struct RebalanceSettings {
    /// When, and how fast.
    pub shed: ShedSettings,
    /// Only connections that lose nothing by it: all their subscriptions can recover.
    pub recoverable_only: bool,
    /// The greatest age of a connection; `None` is no bound.
    pub max_age: Option<Duration>,
}

impl Default for RebalanceSettings {
    fn default() -> Self {
        Self { shed: ShedSettings::default(), recoverable_only: true, max_age: None }
    }
}

/// What the writer of an open set says of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OpenSetState {
    /// Whether somebody chooses the nodes for new connections, as far as this node knows.
    pub is_used: bool,
    /// When this node, as the writer, last knew it to be written.
    pub placed_at: Option<Instant>,
    /// Which revision is the newest, where the writer knows better than by the ages of nodes.
    pub newest_revision: Option<String>,
}

/// What this node counts and knows about placement; shared by shards, control thread and reports.
#[derive(Debug, Default)]
pub struct Placing {
    /// Connections accepted, ever.
    accepted: AtomicU64,
    /// Connections refused for want of room, time or place, ever.
    refused: AtomicU64,
    /// Connections told to go in order to move them, ever.
    moved: AtomicU64,
    /// Whether clients that were moved come back.
    pub returns: Returns,
    /// Connections that were told to go, whatever the reason, and are still there.
    going: AtomicU64,
    /// The node follows an order to empty itself.
    retiring: AtomicBool,
    open_set: Mutex<OpenSetState>,
    /// What the node does about its connections, in words.
    state: Mutex<String>,
}

/// Numbers since the start, from which rates are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections refused for want of room, time or place.
    pub refused: u64,
    /// Connections told to go in order to move them.
    pub moved: u64,
    /// Connections told to go of which it is known whether their clients came back.
    pub settled: u64,
    /// Those whose clients did.
    pub returned: u64,
}

impl Placing {
    /// A connection was accepted.
    pub fn count_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was refused because this node has no room, no time or no place for it.
    pub fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// So many connections were told to go in order to move them.
    pub fn count_moved(&self, connections: usize) {
        self.moved.fetch_add(connections as u64, Ordering::Relaxed);
    }

    /// A connection was told to go: it does not count any more, though it is still there.
    pub fn count_going(&self) {
        self.going.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection that was told to go is gone.
    pub fn count_gone(&self) {
        self.going.fetch_sub(1, Ordering::Relaxed);
    }

    /// Connections that were told to go and are still there.
    pub fn going(&self) -> u64 {
        self.going.load(Ordering::Relaxed)
    }

    /// All that was counted, so long after the start.
    pub fn totals(&self, uptime: Duration) -> Totals {
        let Settled { settled, returned } = self.returns.settled(uptime);
        Totals {
            accepted: self.accepted.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            moved: self.moved.load(Ordering::Relaxed),
            settled,
            returned,
        }
    }

    /// Whether the node follows an order to empty itself.
    pub fn is_retiring(&self) -> bool {
        self.retiring.load(Ordering::Relaxed)
    }

    /// The order to empty itself came, or was withdrawn.
    pub fn set_retiring(&self, is_retiring: bool) {
        self.retiring.store(is_retiring, Ordering::Relaxed);
    }

    /// What is known of the open set.
    pub fn open_set(&self) -> OpenSetState {
        self.open_set.lock().clone()
    }

    /// Something about the open set is known now.
    pub fn set_open_set(&self, state: OpenSetState) {
        *self.open_set.lock() = state;
    }

    /// What the node does about its connections, and why, in words.
    pub fn state(&self) -> String {
        self.state.lock().clone()
    }

    fn set_state(&self, state: String) {
        *self.state.lock() = state;
    }
}

/// Rates are those of this time at the least: a node reports once more when it becomes ready or leaves, and a client that
/// came within the few milliseconds since the last report is no surge.
const LEAST_INTERVAL: Duration = Duration::from_millis(500);

/// Makes rates of totals that are looked at now and then.
#[derive(Debug, Default)]
pub struct Rates {
    last: Option<(Instant, Totals)>,
    rates: PerSecond,
}

/// Connections per second.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct PerSecond {
    /// Accepted.
    pub accepted: f64,
    /// Refused.
    pub refused: f64,
    /// Told to go in order to move them.
    pub moved: f64,
    /// Of which it became known whether their clients came back.
    pub settled: f64,
    /// Those whose clients did.
    pub returned: f64,
}

impl Rates {
    /// The rates since the last look, or those of that look if it was just now; nothing at the first one.
    pub fn since_last(&mut self, now: Instant, totals: Totals) -> PerSecond {
        let Some((at, before)) = self.last else {
            self.last = Some((now, totals));
            return self.rates;
        };
        let passed = now.saturating_duration_since(at);
        if passed < LEAST_INTERVAL {
            return self.rates;
        }
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / passed.as_secs_f64();
        self.last = Some((now, totals));
        self.rates = PerSecond {
            accepted: rate(totals.accepted, before.accepted),
            refused: rate(totals.refused, before.refused),
            moved: rate(totals.moved, before.moved),
            settled: rate(totals.settled, before.settled),
            returned: rate(totals.returned, before.returned),
        };
        self.rates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let placing = Placing::default();
        let totals = || placing.totals(Duration::ZERO);
        let mut rates = Rates::default();
        let start = Instant::now();
        placing.count_accepted();
        assert_eq!(rates.since_last(start, totals()), PerSecond::default());
        (0..10).for_each(|_| placing.count_accepted());
        placing.count_refused();
        placing.count_moved(3);
        let settled = Totals { settled: 4, returned: 2, ..totals() };
        let rate = rates.since_last(start + Duration::from_secs(2), settled);
        assert_eq!(rate, PerSecond { accepted: 5.0, refused: 0.5, moved: 1.5, settled: 2.0, returned: 1.0 });
        let again = rates.since_last(start + Duration::from_secs(2), settled);
        assert_eq!(again, rate, "no time has passed");
    }

    #[test]
    fn a_look_right_after_another_makes_no_surge_and_loses_nothing() {
        let accepted = |accepted| Totals { accepted, ..Totals::default() };
        let start = Instant::now();
        let mut rates = Rates::default();
        let mut look =
            |millis, count| rates.since_last(start + Duration::from_millis(millis), accepted(count)).accepted;
        assert_eq!(look(0, 0), 0.0);
        assert_eq!(look(3, 5), 0.0, "not 1,667 a second");
        assert_eq!(look(1000, 5), 5.0);
        assert_eq!(look(1499, 100), 5.0);
        assert_eq!(look(2000, 105), 100.0);
    }
}
