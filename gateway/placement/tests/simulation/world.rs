//! A fleet in memory, second by second. Connections are numbers, not objects: their lifetimes are exponential, so those of
//! one node and proxy are all alike, but for the ones younger than a minute, which are counted by the second.
//!
//! What decides is the crate itself: a coordinator with reports that are some seconds old, a writer of the open set whose
//! writes reach the proxies a second or two later, and on each node a shedder with a digest that is up to a second old.

mod control;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use backplane::NodeId;
use placement::shed::Own;
use placement::{Coordinator, Digest, Drain, Heard, OpenSet, Pause, Peer, Report, Shed, Shedder};
use uuid::Uuid;

use crate::random::Chance;
use crate::route::{PROXIES, Policy, Proxies};
use crate::scenario::{Fault, Outcome, Scenario};

/// A client whose connection was closed is back within these seconds, at any time with equal probability.
const RETURN_S: usize = 5;
/// After this many seconds a node knows whether a client that it told to go is back.
const SETTLED_S: usize = 10;
/// A new node is ready after this many seconds.
const START_S: u64 = 10;
/// What a node could accept per second.
const ACCEPTS: f64 = 2000.0;
const YOUNG_S: usize = 60;
/// Before the fleet is enlarged: everybody has reported and has heard of everybody.
const WARM_UP_S: u64 = 20;

struct Node {
    /// New for each process; also the key in the open set.
    generation: u64,
    is_alive: bool,
    is_new_revision: bool,
    ready_at: u64,
    drain: Option<Drain>,
    shedder: Shedder,
    /// Accepted in each of the last seconds.
    young: VecDeque<u64>,
    accepted: u64,
    moved: u64,
    /// Connections moved in each of the last seconds, and those of them that are back here.
    fates: VecDeque<(u64, u64)>,
    /// What it reported in the last seconds, the newest last.
    reports: VecDeque<Reported>,
    lag: u64,
}

#[derive(Clone, Copy)]
struct Reported {
    connections: u64,
    accepts: u64,
    moved: u64,
    fates: (u64, u64),
    ready: bool,
    draining: bool,
}

/// A client that was told to go, in order to move it.
#[derive(Clone, Copy)]
struct Moved {
    slot: usize,
    generation: u64,
    at: u64,
}

struct Written {
    due: u64,
    proxy: usize,
    nodes: Vec<(usize, u64)>,
}

pub struct World<'a> {
    scenario: &'a Scenario,
    chance: Chance,
    start: Instant,
    second: u64,
    nodes: Vec<Node>,
    /// What does not change about the report of each node.
    peers: Vec<Peer>,
    /// The table of reports as it is now, and of which node each row is.
    table: Vec<Peer>,
    rows: Vec<(usize, u64)>,
    proxies: Proxies,
    returning: VecDeque<u64>,
    /// Those among them that were moved, by the second in which they come.
    moved: VecDeque<Vec<Moved>>,
    coordinators: [Coordinator; 2],
    writers: [OpenSet<(usize, u64)>; 2],
    in_flight: Vec<Written>,
    generations: u64,
    /// What either half of the nodes has heard last, and before that.
    heard: [VecDeque<(Digest, Instant)>; 2],
    outcome: Outcome,
    open_sum: f64,
    /// Nodes that move connections now.
    moving: usize,
    /// Moves, budget and nodes that move, in each of the last ten seconds.
    budget_window: VecDeque<(u64, f64, usize)>,
}

pub fn simulate(scenario: &Scenario) -> Outcome {
    let mut world = World::new(scenario);
    for _ in 0..WARM_UP_S + scenario.duration {
        world.step();
    }
    world.finish()
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let slots = if scenario.rollout_at.is_some() { scenario.after * 5 / 4 } else { scenario.after };
        let coordinator = |term| Coordinator::new(scenario.settings.clone(), term);
        let writer = || OpenSet::new(scenario.settings.open_set.clone());
        let mut world = Self {
            scenario,
            chance: Chance::new(scenario.seed),
            start: Instant::now(),
            second: 0,
            nodes: Vec::new(),
            peers: Vec::new(),
            table: Vec::new(),
            rows: Vec::new(),
            proxies: Proxies::new(scenario.policy, slots),
            returning: VecDeque::from([0; RETURN_S + 1]),
            moved: VecDeque::from(vec![Vec::new(); RETURN_S + 1]),
            coordinators: [coordinator(1), coordinator(2)],
            writers: [writer(), writer()],
            in_flight: Vec::new(),
            generations: 0,
            heard: [VecDeque::new(), VecDeque::new()],
            outcome: Outcome { smallest_set: usize::MAX, ..Outcome::default() },
            open_sum: 0.0,
            moving: 0,
            budget_window: VecDeque::new(),
        };
        for slot in 0..slots {
            let node = world.new_node(false, 0);
            world.nodes.push(node);
            let report = Report { open_set: scenario.policy == Policy::OpenSet, ..Report::new("node", "1") };
            world.peers.push(Peer { id: NodeId(Uuid::nil()), age: Duration::ZERO, report });
            world.rename(slot);
            world.nodes[slot].is_alive = slot < scenario.after;
            world.nodes[slot].ready_at = if slot < scenario.before { 0 } else { WARM_UP_S };
            world.proxies.set_alive(slot, slot < scenario.before, &mut world.chance);
        }
        world.fill();
        world
    }

    fn new_node(&mut self, is_new_revision: bool, ready_at: u64) -> Node {
        self.generations += 1;
        Node {
            generation: self.generations,
            is_alive: true,
            is_new_revision,
            ready_at,
            drain: None,
            shedder: Shedder::new(self.scenario.settings.shed.clone(), self.chance.unit()),
            young: VecDeque::from([0; YOUNG_S]),
            accepted: 0,
            moved: 0,
            fates: VecDeque::from([(0, 0); SETTLED_S + 1]),
            reports: VecDeque::new(),
            lag: 1 + self.chance.below(self.scenario.lag as usize) as u64,
        }
    }

    fn rename(&mut self, slot: usize) {
        self.peers[slot].id = NodeId(Uuid::from_u128(self.chance.id()));
        let revision = if self.nodes[slot].is_new_revision { "new" } else { "old" };
        self.peers[slot].report.revision = revision.to_owned();
    }

    /// All connections on the first nodes, and all proxies with all nodes to choose from.
    fn fill(&mut self) {
        let Scenario { before, connections, .. } = *self.scenario;
        for connection in 0..connections as usize {
            let slot = connection % before;
            self.proxies.add(slot, connection / before % PROXIES, &mut self.chance);
        }
        let mean = connections / self.scenario.after as u64;
        let above = |slot| self.proxies.connections(slot).saturating_sub(mean);
        self.outcome.had_to_move = (0..before).map(above).sum();
        for proxy in 0..PROXIES {
            self.proxies.set_choice(proxy, (0..before).collect());
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_secs(self.second)
    }

    fn has_fault(&self, is_it: fn(&Fault) -> bool) -> bool {
        self.scenario.faults.iter().any(|fault| is_it(fault) && fault.is_on(self.second.saturating_sub(WARM_UP_S)))
    }

    fn is_ready(&self, slot: usize) -> bool {
        let node = &self.nodes[slot];
        node.is_alive && node.ready_at <= self.second && node.drain.is_none()
    }

    fn step(&mut self) {
        self.replace();
        self.roll_out();
        self.settle_writes();
        self.end_connections();
        self.connect();
        self.report();
        self.read_table(0);
        let table = std::mem::take(&mut self.table);
        self.coordinate(&table);
        self.write_open_set(&table);
        self.table = table;
        self.close_connections();
        self.measure();
        self.second += 1;
    }

    /// One node dies, and comes back as another.
    fn replace(&mut self) {
        let every = self.scenario.replace_every;
        if every == 0 || self.second <= WARM_UP_S || !self.second.is_multiple_of(every) {
            return;
        }
        let slot = self.chance.below(self.nodes.len());
        if self.is_ready(slot) {
            self.close(slot, self.proxies.connections(slot));
            self.restart(slot, false);
        }
    }

    fn restart(&mut self, slot: usize, is_new_revision: bool) {
        self.nodes[slot] = self.new_node(is_new_revision, self.second + START_S);
        self.rename(slot);
        self.proxies.set_alive(slot, false, &mut self.chance);
    }

    /// What a Deployment does with a surge of 25 % and none unavailable.
    fn roll_out(&mut self) {
        if self.scenario.rollout_at.is_none_or(|at| self.second < WARM_UP_S + at) {
            return;
        }
        let wanted = self.scenario.after;
        let new = self.nodes.iter().filter(|node| node.is_alive && node.is_new_revision).count();
        let empty: Vec<_> = (0..self.nodes.len()).filter(|slot| !self.nodes[*slot].is_alive).collect();
        for slot in empty.into_iter().take(wanted - new) {
            self.restart(slot, true);
        }
        let ready: Vec<_> = (0..self.nodes.len()).filter(|slot| self.is_ready(*slot)).collect();
        let is_old = |slot: &&usize| !self.nodes[**slot].is_new_revision;
        let too_many = ready.len().saturating_sub(wanted);
        let leave: Vec<_> = ready.iter().filter(is_old).take(too_many).copied().collect();
        let (now, settings) = (self.now(), &self.scenario.drain);
        for slot in leave {
            let deadline = now + Duration::from_secs(330);
            self.nodes[slot].drain = Some(Drain::new(settings.clone(), now, Some(deadline), self.chance.unit()));
            self.proxies.set_alive(slot, false, &mut self.chance);
        }
    }

    /// Writes that have reached a proxy; and without an open set, readiness does.
    fn settle_writes(&mut self) {
        let second = self.second;
        let (due, later) = std::mem::take(&mut self.in_flight).into_iter().partition(|write| write.due <= second);
        self.in_flight = later;
        let due: Vec<Written> = due;
        for write in due {
            self.proxies.set_choice(write.proxy, write.nodes.iter().map(|(slot, _)| *slot).collect());
        }
        for slot in 0..self.nodes.len() {
            if self.nodes[slot].is_alive && self.nodes[slot].ready_at == second && second > 0 {
                self.proxies.set_alive(slot, true, &mut self.chance);
            }
        }
        if self.scenario.policy != Policy::OpenSet {
            let ready: Vec<_> = (0..self.nodes.len()).filter(|slot| self.is_ready(*slot)).collect();
            for proxy in 0..PROXIES {
                self.proxies.set_choice(proxy, ready.clone());
            }
        }
    }

    /// Connections that end by themselves: each with the same probability, found by their distance from each other.
    fn end_connections(&mut self) {
        let p = 1.0 - (-1.0 / self.scenario.lifetime).exp();
        let mut gap = self.chance.gap(p);
        for slot in 0..self.nodes.len() {
            for proxy in 0..PROXIES {
                let mut left = u64::from(self.proxies.counts[slot][proxy]);
                while gap < left {
                    left -= gap + 1;
                    self.proxies.remove(slot, proxy, &mut self.chance);
                    gap = self.chance.gap(p);
                }
                gap -= left;
            }
        }
    }

    /// New clients and those that come back.
    fn connect(&mut self) {
        for node in &mut self.nodes {
            node.accepted = 0;
        }
        let fresh = self.chance.poisson(self.scenario.connections as f64 / self.scenario.lifetime);
        let back = self.returning.pop_front().unwrap_or(0);
        self.returning.push_back(0);
        for _ in 0..fresh + back {
            if self.arrive(None).is_none() {
                self.come_back(1);
            }
        }
        let moved = self.moved.pop_front().unwrap_or_default();
        self.moved.push_back(Vec::new());
        for client in moved {
            match self.arrive(Some(client)) {
                Some(slot) => self.settle(client, slot),
                None => self.come_back_moved(client),
            }
        }
        for node in &mut self.nodes {
            node.young.pop_front();
            node.young.push_back(node.accepted);
            self.outcome.peak_accepts = self.outcome.peak_accepts.max(node.accepted);
        }
    }

    /// A client connects; the node that it gets.
    fn arrive(&mut self, moved: Option<Moved>) -> Option<usize> {
        let proxy = self.chance.below(PROXIES);
        let bound = moved.filter(|client| self.is_bound(client)).map(|client| client.slot);
        let chosen = bound.or_else(|| self.proxies.choose(proxy, &mut self.chance));
        let Some(slot) = chosen.filter(|slot| self.accepts(*slot)) else {
            self.outcome.failed += 1;
            return None;
        };
        self.proxies.add(slot, proxy, &mut self.chance);
        self.nodes[slot].accepted += 1;
        Some(slot)
    }

    /// Whether something in front brings the client back to the node that it left.
    fn is_bound(&mut self, client: &Moved) -> bool {
        let Scenario { bound, bound_until, .. } = *self.scenario;
        bound > 0.0
            && self.second < bound_until.saturating_add(WARM_UP_S)
            && self.nodes[client.slot].generation == client.generation
            && self.is_ready(client.slot)
            && self.chance.unit() < bound
    }

    /// Notes that a moved client is on this node now.
    fn settle(&mut self, client: Moved, slot: usize) {
        let node = &mut self.nodes[slot];
        if slot != client.slot || node.generation != client.generation {
            return;
        }
        // Of this second nothing was moved yet.
        let age = (self.second - client.at) as usize;
        if let Some(index) = node.fates.len().checked_sub(age) {
            node.fates[index].1 += 1;
        }
    }

    /// A node that drains still accepts what is sent to it by mistake in the first seconds; these are late.
    fn accepts(&self, slot: usize) -> bool {
        let node = &self.nodes[slot];
        node.is_alive && node.ready_at <= self.second
    }

    fn come_back(&mut self, connections: u64) {
        for _ in 0..connections {
            let delay = self.chance.below(RETURN_S);
            self.returning[delay] += 1;
        }
    }

    fn come_back_moved(&mut self, client: Moved) {
        let delay = self.chance.below(RETURN_S);
        self.moved[delay].push(client);
    }

    /// Closes connections in order to move them.
    fn shed(&mut self, slot: usize, connections: u64) {
        for _ in 0..connections {
            self.proxies.remove_any(slot, &mut self.chance);
        }
        let node = &mut self.nodes[slot];
        let client = Moved { slot, generation: node.generation, at: self.second };
        node.fates.pop_front();
        node.fates.push_back((connections, 0));
        for _ in 0..connections {
            self.come_back_moved(client);
        }
    }

    fn close(&mut self, slot: usize, connections: u64) {
        for _ in 0..connections {
            self.proxies.remove_any(slot, &mut self.chance);
        }
        self.come_back(connections);
    }

    fn close_connections(&mut self) {
        let now = self.now();
        let mut total = 0;
        self.moving = 0;
        let mut holds = std::collections::BTreeMap::<String, usize>::new();
        let is_last = self.second + 1 == WARM_UP_S + self.scenario.duration;
        for slot in 0..self.nodes.len() {
            if !self.nodes[slot].is_alive {
                continue;
            }
            // Half of the nodes hear of a digest at once, the others a second later.
            let heard = self.heard[slot % 2].iter().nth_back(slot / 2 % 2).or(self.heard[slot % 2].back()).cloned();
            let heard = heard.as_ref().map(|(digest, at)| Heard { digest, at: *at });
            let connections = self.proxies.connections(slot);
            let stays = self.is_ready(slot);
            let node = &mut self.nodes[slot];
            if let Some(drain) = &mut node.drain {
                let close = drain.tick(now, connections, heard, 0.5).close;
                self.outcome.drained += close;
                self.close(slot, close);
                self.nodes[slot].is_alive = self.proxies.connections(slot) > 0;
                continue;
            }
            let movable = connections.saturating_sub(node.young.iter().sum());
            let shed = node.shedder.tick(now, Own { connections, movable, weight: 1.0, stays }, heard);
            node.moved = shed.close();
            total += shed.close();
            self.moving += usize::from(matches!(shed, Shed::Moving { .. }));
            if is_last
                && let Shed::Held(hold) = shed
                && hold.is_against_need()
            {
                *holds.entry(hold.to_string()).or_default() += 1;
            }
            self.shed(slot, shed.close());
        }
        self.outcome.moves.push(total);
        self.outcome.holds = holds.into_iter().collect();
    }

    fn measure(&mut self) {
        if self.second < WARM_UP_S {
            self.outcome.moves.clear();
            return;
        }
        let ready: Vec<_> = (0..self.nodes.len()).filter(|slot| self.is_ready(*slot)).collect();
        let all: u64 = (0..self.nodes.len()).map(|slot| self.proxies.connections(slot)).sum();
        let max = ready.iter().map(|slot| self.proxies.connections(*slot)).max().unwrap_or(0);
        self.outcome.curve.push(max as f64 * ready.len() as f64 / all.max(1) as f64);
        self.open_sum += self.writers[0].written().len() as f64;
        let budget =
            self.heard.iter().filter_map(|heard| heard.back()).map(|(digest, _)| digest.budget).fold(0.0, f64::max);
        self.budget_window.push_back((*self.outcome.moves.last().unwrap_or(&0), budget, self.moving));
        if self.budget_window.len() > 10 {
            self.budget_window.pop_front();
            let window = self.budget_window.iter();
            let moved: u64 = window.clone().map(|(moved, ..)| moved).sum();
            // Each node closes whole connections.
            let whole = window.clone().map(|(.., moving)| *moving).max().unwrap_or(0) as f64;
            let allowed = 10.0 * window.map(|(_, budget, _)| *budget).fold(0.0, f64::max) + whole;
            self.outcome.budget_used = self.outcome.budget_used.max(moved as f64 / allowed.max(1.0));
        }
        let is_returning = |heard: &VecDeque<(Digest, Instant)>| {
            heard.back().is_some_and(|(digest, _)| digest.pauses.contains(&Pause::Returning))
        };
        self.outcome.held_returning += u64::from(self.heard.iter().any(is_returning));
        let returning: u64 = self.returning.iter().sum();
        let moved: usize = self.moved.iter().map(Vec::len).sum();
        self.outcome.population = all + returning + moved as u64;
    }

    fn finish(mut self) -> Outcome {
        self.outcome.open = self.open_sum / self.scenario.duration as f64;
        self.outcome
    }
}
