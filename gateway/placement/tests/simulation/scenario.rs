//! What is simulated, and what came of it.

use placement::{CoordinatorSettings, DrainSettings};

use crate::route::Policy;

/// A lifetime in seconds within which nothing ends.
const FOR_EVER: f64 = 1e12;

/// One simulation.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub seed: u64,
    /// Nodes that have all connections at the start.
    pub before: usize,
    /// Nodes once the fleet has been enlarged, at the start.
    pub after: usize,
    pub connections: u64,
    /// Of a connection in seconds, on average; exponentially distributed.
    pub lifetime: f64,
    pub policy: Policy,
    /// In seconds.
    pub duration: u64,
    /// A node is replaced by a new one this often, in seconds; 0 never.
    pub replace_every: u64,
    pub settings: CoordinatorSettings,
    pub drain: DrainSettings,
    /// Reports take between one second and this many.
    pub lag: u64,
    pub faults: Vec<Fault>,
    /// When all nodes begin to be replaced by nodes of a new revision, a quarter of them at a time.
    pub rollout_at: Option<u64>,
    /// The part of the clients that something in front brings back to the node they were moved from.
    pub bound: f64,
    /// From this second on none are.
    pub bound_until: u64,
}

/// What goes wrong, and from which second to which.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nobody publishes a digest.
    NoCoordinator(u64, u64),
    /// The open set cannot be written.
    FrozenSet(u64, u64),
    /// Two coordinators, each heard by half of the nodes, and two writers of the open set.
    SplitBrain(u64, u64),
}

impl Fault {
    pub fn is_on(&self, second: u64) -> bool {
        let (Self::NoCoordinator(from, to) | Self::FrozenSet(from, to) | Self::SplitBrain(from, to)) = self;
        (*from..*to).contains(&second)
    }
}

impl Scenario {
    pub fn new(name: &'static str, policy: Policy, before: usize, after: usize, connections: u64) -> Self {
        Self {
            name,
            seed: 1,
            before,
            after,
            connections,
            lifetime: 3600.0,
            policy,
            duration: 3600,
            replace_every: 0,
            settings: CoordinatorSettings::default(),
            drain: DrainSettings { window: std::time::Duration::from_secs(240), ..DrainSettings::default() },
            lag: 5,
            faults: Vec::new(),
            rollout_at: None,
            bound: 0.0,
            bound_until: u64::MAX,
        }
    }

    /// The same without moving connections.
    pub fn without_shedding(mut self, name: &'static str) -> Self {
        self.settings.shed.enabled = false;
        Self { name, ..self }
    }

    /// The same with connections that last for ever, so that none comes or goes by itself.
    pub fn still(self) -> Self {
        Self { lifetime: FOR_EVER, ..self }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The most on one node in comparison with the mean, each second.
    pub curve: Vec<f64>,
    /// Connections closed to be moved, each second.
    pub moves: Vec<u64>,
    /// Connections closed by drains.
    pub drained: u64,
    /// Connections above the mean at the start: those that had to move.
    pub had_to_move: u64,
    /// The most accepts of one node within one second.
    pub peak_accepts: u64,
    /// Connects that reached a node that was not there any more, or no node at all.
    pub failed: u64,
    /// Writes of the open set that changed it.
    pub writes: u64,
    /// Nodes in the open set, on average.
    pub open: f64,
    /// The most that was moved in any ten seconds, in comparison with the budget, rounded up for each node that moves.
    pub budget_used: f64,
    /// Connections at the end, with those that are about to come back.
    pub population: u64,
    /// The emptiest the open set of a proxy ever was.
    pub smallest_set: usize,
    /// Seconds in which nothing was moved because moved connections came back to their node.
    pub held_returning: u64,
    /// What the nodes said last about why they moved nothing, with how many did.
    pub holds: Vec<(String, usize)>,
}

impl Outcome {
    /// The balance around this second: the mean of ten seconds.
    pub fn at(&self, second: usize) -> f64 {
        let end = second.min(self.curve.len());
        let part = &self.curve[end.saturating_sub(10)..end];
        part.iter().sum::<f64>() / part.len() as f64
    }

    pub fn moved(&self) -> u64 {
        self.moves.iter().sum()
    }

    /// Connections moved within these seconds.
    pub fn moved_in(&self, seconds: std::ops::Range<usize>) -> u64 {
        self.moves[seconds].iter().sum()
    }

    /// The worst balance from this second on.
    pub fn worst_after(&self, second: usize) -> f64 {
        self.curve[second..].iter().copied().fold(0.0, f64::max)
    }

    /// Moves for each connection that had to move.
    pub fn moves_per_need(&self) -> f64 {
        self.moved() as f64 / self.had_to_move.max(1) as f64
    }

    /// The first second at which the balance is this good.
    pub fn level_after(&self, ratio: f64) -> Option<usize> {
        self.curve.iter().position(|value| *value <= ratio)
    }
}
