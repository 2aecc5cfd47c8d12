//! The nodes clients connect to, and the choice among them that a load balancer would make.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::target::Target;

/// WebSocket endpoints of the nodes, and which of them take new connections.
pub struct Nodes {
    targets: Vec<Target>,
    ready: Vec<AtomicBool>,
    turn: AtomicUsize,
}

impl Nodes {
    /// These nodes, all of them ready. There must be one.
    pub fn new(targets: Vec<Target>) -> Self {
        assert!(!targets.is_empty(), "checked when the run was planned");
        let ready = targets.iter().map(|_| AtomicBool::new(true)).collect();
        Self { targets, ready, turn: AtomicUsize::new(0) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.targets.len()
    }

    /// The endpoint of a node.
    pub fn target(&self, node: usize) -> &Target {
        &self.targets[node]
    }

    /// Whether a node takes new connections.
    pub fn is_ready(&self, node: usize) -> bool {
        self.ready[node].load(Ordering::Acquire)
    }

    /// Whether any node takes new connections.
    pub fn any_ready(&self) -> bool {
        (0..self.count()).any(|node| self.is_ready(node))
    }

    /// Notes what a health check found.
    pub fn set_ready(&self, node: usize, ready: bool) {
        self.ready[node].store(ready, Ordering::Release);
    }

    /// The node on which a client is connected at first: evenly over all nodes, as far as they are ready.
    pub fn first_of(&self, client: usize) -> usize {
        let ready = || (0..self.count()).filter(|node| self.is_ready(*node));
        let turn = client.checked_rem(ready().count()).unwrap_or(0);
        ready().nth(turn).unwrap_or(client % self.count())
    }

    /// The node of the next connection: the ready ones in turn, or all of them when none is.
    pub fn next(&self) -> usize {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = (0..self.count()).map(|step| (first + step) % self.count());
        in_turn.clone().find(|node| self.is_ready(*node)).unwrap_or(first % self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Nodes {
        let target = |port| Target::parse(&format!("ws://127.0.0.1:{port}/"), "ws", false).expect("valid");
        Nodes::new(vec![target(1), target(2), target(3)])
    }

    #[test]
    fn ready_nodes_are_taken_in_turn() {
        let nodes = three();
        assert_eq!([0; 6].map(|_| nodes.next()), [0, 1, 2, 0, 1, 2]);
        nodes.set_ready(1, false);
        assert!([0; 30].iter().all(|_| nodes.next() != 1));
        nodes.set_ready(1, true);
        assert!([0; 3].iter().any(|_| nodes.next() == 1));
    }

    #[test]
    fn clients_begin_spread_over_the_nodes_that_are_ready() {
        let nodes = three();
        assert_eq!([0, 1, 2, 3, 4].map(|client| nodes.first_of(client)), [0, 1, 2, 0, 1]);
        nodes.set_ready(2, false);
        assert_eq!([0, 1, 2, 3, 4].map(|client| nodes.first_of(client)), [0, 1, 0, 1, 0]);
        (0..3).for_each(|node| nodes.set_ready(node, false));
        assert_eq!(nodes.first_of(2), 2, "without a ready node all are tried");
    }

    #[test]
    fn without_a_ready_node_all_are_tried() {
        let nodes = three();
        assert!(nodes.any_ready());
        (0..3).for_each(|node| nodes.set_ready(node, false));
        assert!(!nodes.any_ready());
        let mut tried = [0; 9].map(|_| nodes.next());
        tried.sort_unstable();
        assert_eq!(tried, [0, 0, 0, 1, 1, 1, 2, 2, 2]);
    }
}
