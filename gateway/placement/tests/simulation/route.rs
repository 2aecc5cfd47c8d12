//! The proxies in front of the nodes: which node each new connection gets.

use crate::random::Chance;

/// How many proxies there are, each with a view of its own.
pub const PROXIES: usize = 10;

/// How proxies choose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// At random among the nodes of the open set, as kube-proxy does.
    OpenSet,
    /// At random among all.
    Random,
    /// Two at random, of which the one with fewer connections of this proxy.
    TwoChoices,
    /// The node with the fewest connections of this proxy.
    Least,
}

/// The connections of each proxy to each node, and what the proxies know.
pub struct Proxies {
    policy: Policy,
    /// By node, then by proxy.
    pub counts: Vec<[u32; PROXIES]>,
    /// What each proxy chooses from, if it does so at random.
    sets: Vec<Vec<usize>>,
    trees: Vec<Tournament>,
}

impl Proxies {
    pub fn new(policy: Policy, slots: usize) -> Self {
        let trees = if policy == Policy::Least { vec![Tournament::new(slots); PROXIES] } else { Vec::new() };
        Self { policy, counts: vec![[0; PROXIES]; slots], sets: vec![Vec::new(); PROXIES], trees }
    }

    pub fn set_choice(&mut self, proxy: usize, nodes: Vec<usize>) {
        self.sets[proxy] = nodes;
    }

    /// Only these nodes can be chosen by least connections.
    pub fn set_alive(&mut self, slot: usize, alive: bool, chance: &mut Chance) {
        for (proxy, tree) in self.trees.iter_mut().enumerate() {
            let count = if alive { f64::from(self.counts[slot][proxy]) + chance.unit() } else { f64::INFINITY };
            tree.set(slot, count);
        }
    }

    pub fn connections(&self, slot: usize) -> u64 {
        self.counts[slot].iter().map(|count| u64::from(*count)).sum()
    }

    /// The node for the next connection through this proxy.
    pub fn choose(&self, proxy: usize, chance: &mut Chance) -> Option<usize> {
        let set = &self.sets[proxy];
        match self.policy {
            Policy::Least => self.trees[proxy].least(),
            _ if set.is_empty() => None,
            Policy::OpenSet | Policy::Random => Some(set[chance.below(set.len())]),
            Policy::TwoChoices => {
                let (a, b) = (set[chance.below(set.len())], set[chance.below(set.len())]);
                Some(if self.counts[a][proxy] <= self.counts[b][proxy] { a } else { b })
            }
        }
    }

    pub fn add(&mut self, slot: usize, proxy: usize, chance: &mut Chance) {
        self.counts[slot][proxy] += 1;
        self.changed(slot, proxy, chance);
    }

    pub fn remove(&mut self, slot: usize, proxy: usize, chance: &mut Chance) {
        self.counts[slot][proxy] -= 1;
        self.changed(slot, proxy, chance);
    }

    /// Removes one connection of this node, whichever.
    pub fn remove_any(&mut self, slot: usize, chance: &mut Chance) {
        let mut left = chance.below(self.connections(slot) as usize) as u32;
        for proxy in 0..PROXIES {
            let count = self.counts[slot][proxy];
            if left < count {
                return self.remove(slot, proxy, chance);
            }
            left -= count;
        }
    }

    fn changed(&mut self, slot: usize, proxy: usize, chance: &mut Chance) {
        if let Some(tree) = self.trees.get_mut(proxy) {
            // Ties are broken by chance, or all proxies would choose the same node.
            tree.set(slot, f64::from(self.counts[slot][proxy]) + chance.unit());
        }
    }
}

/// Finds the least of many numbers that change one at a time.
#[derive(Clone)]
struct Tournament {
    leaves: usize,
    values: Vec<f64>,
}

impl Tournament {
    fn new(slots: usize) -> Self {
        let leaves = slots.next_power_of_two();
        Self { leaves, values: vec![f64::INFINITY; 2 * leaves] }
    }

    fn set(&mut self, slot: usize, value: f64) {
        let mut node = self.leaves + slot;
        self.values[node] = value;
        while node > 1 {
            node /= 2;
            self.values[node] = self.values[2 * node].min(self.values[2 * node + 1]);
        }
    }

    fn least(&self) -> Option<usize> {
        if self.values[1].is_infinite() {
            return None;
        }
        let mut node = 1;
        while node < self.leaves {
            node *= 2;
            if self.values[node] > self.values[node + 1] {
                node += 1;
            }
        }
        Some(node - self.leaves)
    }
}
