//! Which nodes go first when the fleet shrinks: the emptiest ones, which are emptied before they are deleted.
//!
//! The coordinator computes the same desired number of nodes as the autoscaler. When it is below the number of nodes
//! for long enough, the nodes that are too many are chosen: they are marked so that Kubernetes deletes them first, get no
//! new connections, and empty themselves. The autoscaler waits longer still, and so deletes empty nodes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use backplane::NodeId;

use crate::digest::{NodeKey, ORDERS_MAX};
use crate::report::Peer;

/// The deletion cost of a chosen pod; others have none, which counts as 0. Kubernetes deletes the pods with the lowest
/// cost first.
pub const CHOSEN_COST: i32 = -1000;

/// Parameters of the choice. All numbers must be those of the autoscaler.
#[derive(Clone, PartialEq, Debug)]
pub struct ScaleDownSettings {
    /// The connections per node that the autoscaler aims at; nothing chooses no node, ever.
    pub target: Option<f64>,
    /// Kubernetes leaves the number of nodes alone while it is within this part of what is desired.
    pub tolerance: f64,
    /// The fewest nodes; two can still lose one, three can do so during a rollout.
    pub nodes_min: usize,
    /// How long the desired number must have been lower. Longer than a dip, and 20 minutes less than the 1,800 s after
    /// which our manifests let the autoscaler act.
    pub hold: Duration,
    /// The most nodes that are chosen at a time, as a part of all: what the autoscaler removes in one step.
    pub step: f64,
}

impl Default for ScaleDownSettings {
    fn default() -> Self {
        Self { target: None, tolerance: 0.1, nodes_min: 3, hold: Duration::from_secs(600), step: 0.05 }
    }
}

impl ScaleDownSettings {
    /// The number of nodes that the autoscaler wants for so many connections on so many nodes.
    pub fn desired(&self, connections: u64, nodes: usize) -> usize {
        let Some(target) = self.target.filter(|target| *target > 0.0) else { return nodes };
        let wanted = connections as f64 / target;
        if nodes > 0 && (wanted / nodes as f64 - 1.0).abs() <= self.tolerance {
            return nodes;
        }
        (wanted.ceil() as usize).max(self.nodes_min)
    }
}

/// Remembers the choice, so that it is not another one every second.
#[derive(Clone, Debug)]
pub struct ScaleDown {
    settings: ScaleDownSettings,
    too_many_since: Option<Instant>,
    /// Nothing before the first look, at which the choice of an earlier coordinator is taken over.
    chosen: Option<Vec<NodeId>>,
}

impl ScaleDown {
    /// Nothing is chosen.
    pub fn new(settings: ScaleDownSettings) -> Self {
        Self { settings, too_many_since: None, chosen: None }
    }

    /// The nodes that are to go first, in the order in which they were chosen. To be called once a second with the table
    /// of reports; nothing new is chosen while `is_rollout`, and `newest` is the revision whose nodes go last.
    pub fn tick(&mut self, now: Instant, peers: &[Peer], newest: &str, is_rollout: bool) -> Vec<NodeId> {
        let ready: Vec<&Peer> = peers.iter().filter(|peer| peer.report.ready && !peer.report.draining).collect();
        let mut chosen = self.chosen.take().unwrap_or_else(|| retiring(&ready));
        // A node that is gone, or leaves for good, needs no order.
        chosen.retain(|id| ready.iter().any(|peer| peer.id == *id));
        let connections = peers.iter().map(|peer| peer.report.connections).sum();
        let too_many = ready.len().saturating_sub(self.settings.desired(connections, ready.len()));
        // The last ones chosen have lost the least.
        chosen.truncate(too_many);
        let since = if too_many == 0 { None } else { Some(self.too_many_since.unwrap_or(now)) };
        self.too_many_since = since;
        let is_time = since.is_some_and(|since| now.saturating_duration_since(since) >= self.settings.hold);
        if is_time && !is_rollout && chosen.is_empty() {
            let step = ((self.settings.step * ready.len() as f64) as usize).clamp(1, ORDERS_MAX);
            chosen = emptiest(&ready, newest, too_many.min(step));
        }
        self.chosen = Some(chosen.clone());
        chosen
    }
}

fn retiring(ready: &[&Peer]) -> Vec<NodeId> {
    let mut chosen: Vec<_> = ready.iter().filter(|peer| peer.report.retiring).copied().collect();
    chosen.sort_by(|a, b| by_load(a, b));
    chosen.truncate(ORDERS_MAX);
    chosen.into_iter().map(|peer| peer.id).collect()
}

fn emptiest(ready: &[&Peer], newest: &str, count: usize) -> Vec<NodeId> {
    let mut names: BTreeMap<NodeKey, usize> = BTreeMap::new();
    for peer in ready {
        *names.entry(NodeKey::of(peer.id)).or_default() += 1;
    }
    // An order to a name that two nodes share would empty both.
    let is_unique = |peer: &&&Peer| names[&NodeKey::of(peer.id)] == 1;
    let mut by_rank: Vec<_> = ready.iter().filter(is_unique).copied().collect();
    let is_newest = |peer: &Peer| peer.report.revision == newest;
    by_rank.sort_by(|a, b| is_newest(a).cmp(&is_newest(b)).then_with(|| by_load(a, b)));
    by_rank.into_iter().take(count).map(|peer| peer.id).collect()
}

fn by_load(a: &Peer, b: &Peer) -> std::cmp::Ordering {
    a.report.load().total_cmp(&b.report.load()).then_with(|| a.id.cmp(&b.id))
}

/// The writes that make the deletion costs what they should be: a cost for the chosen pods, none for others that have
/// ours. A cost that somebody else has set is left alone. `marked` is every pod with its present cost.
pub fn deletion_costs<K: Ord + Clone>(marked: &BTreeMap<K, Option<i32>>, chosen: &[K]) -> Vec<(K, Option<i32>)> {
    let wanted = |pod: &K| if chosen.contains(pod) { Some(CHOSEN_COST) } else { None };
    marked
        .iter()
        .filter(|(pod, cost)| matches!(cost, None | Some(CHOSEN_COST)) && **cost != wanted(pod))
        .map(|(pod, _)| (pod.clone(), wanted(pod)))
        .collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::report::Report;

    const TARGET: f64 = 1000.0;

    fn id(number: u128) -> NodeId {
        NodeId(Uuid::from_u128(number << 80))
    }

    /// Nodes with the ids 0, 1, 2 ... and so many connections; the first ones of revision "old".
    fn fleet(old: usize, counts: &[u64]) -> Vec<Peer> {
        let nodes = counts.iter().enumerate();
        nodes
            .map(|(index, &connections)| {
                let revision = if index < old { "old" } else { "new" }.to_owned();
                let report = Report { ready: true, connections, revision, ..Report::new("n", "1") };
                Peer { id: id(index as u128), age: Duration::ZERO, report }
            })
            .collect()
    }

    fn choice() -> ScaleDown {
        ScaleDown::new(ScaleDownSettings { target: Some(TARGET), step: 0.5, ..ScaleDownSettings::default() })
    }

    /// Ticks for as long as it takes, then returns the choice.
    fn held(scale_down: &mut ScaleDown, start: Instant, peers: &[Peer], is_rollout: bool) -> Vec<NodeId> {
        for second in 0..600 {
            let early = scale_down.tick(start + Duration::from_secs(second), peers, "new", is_rollout);
            assert_eq!(early, [], "after {second} s");
        }
        scale_down.tick(start + Duration::from_secs(600), peers, "new", is_rollout)
    }

    #[test]
    fn the_number_of_nodes_is_the_autoscalers() {
        let settings = ScaleDownSettings { target: Some(TARGET), ..ScaleDownSettings::default() };
        for (connections, nodes, desired) in
            [(9_000, 10, 10), (8_999, 10, 9), (8_001, 10, 9), (11_001, 10, 12), (100, 10, 3), (0, 0, 3), (0, 3, 3)]
        {
            assert_eq!(settings.desired(connections, nodes), desired, "{connections} on {nodes}");
        }
        assert_eq!(ScaleDownSettings::default().desired(1, 10), 10);
    }

    #[test]
    fn the_emptiest_nodes_are_chosen_and_those_of_the_newest_revision_last() {
        let start = Instant::now();
        assert_eq!(held(&mut choice(), start, &fleet(0, &[900, 300, 700, 200, 500]), false), [id(3), id(1)]);
        assert_eq!(held(&mut choice(), start, &fleet(3, &[900, 300, 700, 200, 500]), false), [id(1), id(2)]);
        // A node of half the weight is fuller than it looks.
        let mut weighted = fleet(0, &[900, 300, 700, 200, 500]);
        weighted[3].report.weight = 0.25;
        assert_eq!(held(&mut choice(), start, &weighted, false), [id(1), id(4)]);
    }

    #[test]
    fn nodes_are_chosen_only_after_a_while_and_only_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut scale_down = choice();
        let peers = fleet(0, &[900, 300, 700, 200, 500]);
        assert_eq!(held(&mut scale_down, start, &peers, false), [id(3), id(1)]);
        // Others become emptier; the choice stays.
        let changed = fleet(0, &[100, 100, 700, 150, 500]);
        assert_eq!(scale_down.tick(at(601), &changed, "new", false), [id(3), id(1)]);
        // One is deleted: one is left to go.
        let deleted: Vec<_> = changed.into_iter().filter(|peer| peer.id != id(3)).collect();
        assert_eq!(scale_down.tick(at(602), &deleted, "new", false), [id(1)]);
        // Load comes back: the order is withdrawn, and the time begins again.
        assert_eq!(scale_down.tick(at(603), &fleet(0, &[900, 900, 900, 900, 900]), "new", false), []);
        assert_eq!(scale_down.tick(at(604), &peers, "new", false), []);
        assert_eq!(scale_down.tick(at(1203), &peers, "new", false), []);
        assert_eq!(scale_down.tick(at(1204), &peers, "new", false), [id(3), id(1)]);
    }

    #[test]
    fn nothing_is_chosen_in_a_rollout_or_without_a_target_or_below_the_least() {
        let start = Instant::now();
        let peers = fleet(2, &[900, 300, 700, 200, 500]);
        assert_eq!(held(&mut choice(), start, &peers, true), []);
        assert_eq!(held(&mut ScaleDown::new(ScaleDownSettings::default()), start, &peers, false), []);
        assert_eq!(held(&mut choice(), start, &fleet(0, &[1, 1, 1]), false), []);
        // One step is half of the nodes here.
        assert_eq!(held(&mut choice(), start, &fleet(0, &[1; 10]), false).len(), 5);
    }

    #[test]
    fn two_nodes_with_one_short_name_are_never_chosen() {
        let mut peers = fleet(0, &[900, 10, 700, 20, 500]);
        peers[3].id = NodeId(Uuid::from_u128((1 << 80) + 1));
        assert_eq!(held(&mut choice(), Instant::now(), &peers, false), [id(4), id(2)]);
    }

    #[test]
    fn a_new_coordinator_takes_the_choice_over() {
        let mut peers = fleet(0, &[900, 300, 700, 200, 500]);
        peers[2].report.retiring = true;
        assert_eq!(choice().tick(Instant::now(), &peers, "new", false), [id(2)]);
    }

    #[test]
    fn costs_are_written_only_where_they_differ_and_never_over_those_of_others() {
        let pods = [("a", None), ("b", Some(CHOSEN_COST)), ("c", Some(CHOSEN_COST)), ("d", Some(5)), ("e", None)];
        let marked = pods.into_iter().collect();
        let writes = deletion_costs(&marked, &["a", "b", "d"]);
        assert_eq!(writes, [("a", Some(CHOSEN_COST)), ("c", None)]);
    }
}
