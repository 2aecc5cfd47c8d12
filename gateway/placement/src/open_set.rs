//! Which nodes get new connections: the ones under a water level that rises with the arrival rate, and when that set is
//! to be written.
//!
//! The set is acted on some seconds after the counts it was made of were taken. A set of "the emptiest few" therefore
//! oscillates: they are flooded, others are chosen, those are flooded. The level is as high as the connections that
//! arrive until the next write fill it, and a floor keeps the set wide.

mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub use settings::OpenSetSettings;

use crate::level::Vessel;

/// A node that is ready for new connections, as the writer of the set knows it: a pod, say.
#[derive(Clone, PartialEq, Debug)]
pub struct Candidate<K> {
    /// What it is called where the set is written.
    pub key: K,
    /// Its connections; nothing if it has not reported within the last 3 s. It is then taken as average.
    pub connections: Option<u64>,
    /// Its capacity in comparison with the others.
    pub weight: f64,
    /// Whether it may hold more connections.
    pub has_room: bool,
    /// Whether it is of the newest revision, and another revision is around.
    pub is_newest: bool,
    /// Whether it is to be emptied.
    pub is_retiring: bool,
    /// The machine it runs on, if known.
    pub host: Option<String>,
}

impl<K> Candidate<K> {
    /// A node with so many connections, like any other.
    pub fn new(key: K, connections: u64) -> Self {
        Self {
            key,
            connections: Some(connections),
            weight: 1.0,
            has_room: true,
            is_newest: false,
            is_retiring: false,
            host: None,
        }
    }
}

/// What the set is made of.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a, K> {
    /// All nodes that are ready, and only those.
    pub candidates: &'a [Candidate<K>],
    /// Connections of all nodes, also of those that are not ready; they will have to go somewhere.
    pub connections: u64,
    /// Connections that arrive per second, reconnects included, smoothed.
    pub arrivals: f64,
    /// How old the table is that the counts come from.
    pub table_age: Duration,
}

/// Why the set is as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// The nodes under the water level.
    Level,
    /// All: there are few.
    Few,
    /// All: they are level.
    Balanced,
    /// All: the counts are too old, or most are unknown.
    Blind,
    /// All that are left to choose from: every node is full or to be emptied.
    Exhausted,
}

/// Why a set is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// Nothing was written yet.
    First,
    /// A node of the written set is not ready any more.
    Gone,
    /// Another set is better.
    Changed,
    /// Nothing changed; to show that it could.
    Confirm,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision<K> {
    /// Nothing.
    Keep,
    /// Nothing, because no node is ready: an empty set would refuse every client, and the nodes that are in the old one
    /// may be the first to come back.
    KeepForWantOfNodes,
    /// Write this set, which is not empty.
    Write {
        /// The open nodes.
        members: BTreeSet<K>,
        /// Why now.
        cause: Cause,
        /// Why these.
        shape: Shape,
    },
}

/// The open set of one writer. A writer that has just taken over starts with [`OpenSet::adopt`].
#[derive(Clone, Debug)]
pub struct OpenSet<K> {
    settings: OpenSetSettings,
    written: BTreeSet<K>,
    written_at: Option<Instant>,
    tried_at: Option<Instant>,
}

impl<K: Ord + Clone> OpenSet<K> {
    /// Nothing is written yet.
    pub fn new(settings: OpenSetSettings) -> Self {
        Self { settings, written: BTreeSet::new(), written_at: None, tried_at: None }
    }

    /// Goes on from the set that another writer left.
    pub fn adopt(&mut self, written: BTreeSet<K>) {
        self.written = written;
    }

    /// The set that is in force, as far as is known.
    pub fn written(&self) -> &BTreeSet<K> {
        &self.written
    }

    /// When it was last written, or found to be as it should.
    pub fn written_at(&self) -> Option<Instant> {
        self.written_at
    }

    /// The set was written, or was found to be written already.
    pub fn confirmed(&mut self, now: Instant, members: BTreeSet<K>) {
        self.written = members;
        self.written_at = Some(now);
    }

    /// What is to be done now; to be called once a second. After [`Decision::Write`] call [`OpenSet::confirmed`] if it
    /// succeeded; if it did not, it is tried again at the same pace.
    pub fn decide(&mut self, now: Instant, input: &Input<'_, K>) -> Decision<K> {
        if input.candidates.is_empty() {
            return Decision::KeepForWantOfNodes;
        }
        let (members, shape) = select(&self.settings, input, &self.written);
        let Some(cause) = self.cause(&members, input) else { return Decision::Keep };
        if self.tried_at.is_some_and(|at| now.saturating_duration_since(at) < self.pause_before(cause, input)) {
            return Decision::Keep;
        }
        self.tried_at = Some(now);
        Decision::Write { members, cause, shape }
    }

    fn cause(&self, members: &BTreeSet<K>, input: &Input<'_, K>) -> Option<Cause> {
        if self.written.is_empty() {
            return Some(Cause::First);
        }
        let ready: BTreeSet<&K> = input.candidates.iter().map(|candidate| &candidate.key).collect();
        if self.written.iter().any(|member| !ready.contains(member)) {
            return Some(Cause::Gone);
        }
        Some(if *members != self.written { Cause::Changed } else { Cause::Confirm })
    }

    fn pause_before(&self, cause: Cause, input: &Input<'_, K>) -> Duration {
        match cause {
            Cause::First | Cause::Gone => self.settings.write_urgent,
            Cause::Changed => self.settings.write_every(input.candidates.len()),
            Cause::Confirm => self.settings.confirm_every,
        }
    }
}

/// A candidate with its load.
struct Loaded<'a, K> {
    candidate: &'a Candidate<K>,
    load: f64,
}

/// The nodes to open, of at least one candidate; never empty. `members` are the ones that are open now.
pub fn select<K: Ord + Clone>(
    settings: &OpenSetSettings,
    input: &Input<'_, K>,
    members: &BTreeSet<K>,
) -> (BTreeSet<K>, Shape) {
    let all = input.candidates;
    let stays = |candidate: &&Candidate<K>| !candidate.is_retiring;
    let usable: Vec<_> = all.iter().filter(stays).filter(|candidate| candidate.has_room).collect();
    if usable.is_empty() {
        let staying: Vec<_> = all.iter().filter(stays).collect();
        let rest = if staying.is_empty() { all.iter().collect() } else { staying };
        return (keys(rest), Shape::Exhausted);
    }
    let known = usable.iter().filter(|candidate| candidate.connections.is_some()).count();
    if input.table_age > settings.table_stale || known * 2 < usable.len() {
        return (keys(usable), Shape::Blind);
    }
    if all.len() <= settings.few_nodes {
        return (keys(usable), Shape::Few);
    }
    let mean = mean(all, input.connections);
    let mut loaded: Vec<_> =
        usable.into_iter().map(|candidate| Loaded { candidate, load: load(candidate, mean) }).collect();
    loaded.sort_by(|a, b| a.load.total_cmp(&b.load).then_with(|| a.candidate.key.cmp(&b.candidate.key)));
    let pool = prefer_newest(settings, loaded, mean, input.arrivals);
    let is_near = |node: &Loaded<'_, K>| (node.load - mean).abs() <= settings.balanced * mean;
    if pool.iter().all(is_near) {
        return (keys(pool.iter().map(|node| node.candidate)), Shape::Balanced);
    }
    let mut open = under_level(settings, &pool, input.arrivals, mean, members);
    spread(&pool, &mut open);
    (open.into_iter().cloned().collect(), Shape::Level)
}

fn keys<'a, K: Ord + Clone + 'a>(candidates: impl IntoIterator<Item = &'a Candidate<K>>) -> BTreeSet<K> {
    candidates.into_iter().map(|candidate| candidate.key.clone()).collect()
}

/// The load that every node that stays would have.
fn mean<K>(candidates: &[Candidate<K>], connections: u64) -> f64 {
    let weight: f64 =
        candidates.iter().filter(|candidate| !candidate.is_retiring).map(|candidate| candidate.weight).sum();
    if weight > 0.0 { connections as f64 / weight } else { 0.0 }
}

fn load<K>(candidate: &Candidate<K>, mean: f64) -> f64 {
    candidate.connections.map_or(mean, |connections| connections as f64 / candidate.weight)
}

/// During a rollout the nodes of the newest revision that are not full yet, and as many others as the arrivals need;
/// otherwise all. So a connection that an old node gives up is not given up again by another old one.
fn prefer_newest<'a, K>(
    settings: &OpenSetSettings,
    sorted: Vec<Loaded<'a, K>>,
    mean: f64,
    arrivals: f64,
) -> Vec<Loaded<'a, K>> {
    let is_preferred = |node: &Loaded<'_, K>| node.candidate.is_newest && node.load <= settings.rollout_fill * mean;
    let preferred = sorted.iter().filter(|node| is_preferred(node)).count();
    if preferred == 0 {
        return sorted;
    }
    let mut others = settings.floor_for_arrivals(arrivals, mean).saturating_sub(preferred);
    let mut keep = |node: &Loaded<'_, K>| {
        let keeps = is_preferred(node) || others > 0;
        others -= usize::from(keeps && !is_preferred(node));
        keeps
    };
    sorted.into_iter().filter(|node| keep(node)).collect()
}

/// The nodes at or below the level; open ones may be a little above it.
fn under_level<'a, K: Ord>(
    settings: &OpenSetSettings,
    sorted: &[Loaded<'a, K>],
    arrivals: f64,
    mean: f64,
    members: &BTreeSet<K>,
) -> BTreeSet<&'a K> {
    let vessels: Vec<_> = sorted.iter().map(|node| Vessel { load: node.load, weight: node.candidate.weight }).collect();
    let (depth, level) = settings.depth(&vessels, arrivals, mean);
    let more = (settings.hysteresis_part * depth as f64).ceil() as usize;
    let is_kept = |node: &&Loaded<'a, K>| {
        node.load <= level * (1.0 + settings.hysteresis) && members.contains(&node.candidate.key)
    };
    let (open, rest) = sorted.split_at(depth);
    open.iter().chain(rest.iter().filter(is_kept).take(more)).map(|node| &node.candidate.key).collect()
}

/// Opens one more node when all open ones are on one machine and there is another.
fn spread<'a, K: Ord>(sorted: &[Loaded<'a, K>], open: &mut BTreeSet<&'a K>) {
    let mut hosts =
        sorted.iter().filter(|node| open.contains(&node.candidate.key)).map(|node| node.candidate.host.as_deref());
    let Some(Some(only)) = hosts.next() else { return };
    if hosts.any(|host| host != Some(only)) {
        return;
    }
    let elsewhere = sorted.iter().find(|node| node.candidate.host.as_deref().is_some_and(|host| host != only));
    open.extend(elsewhere.map(|node| &node.candidate.key));
}
