//! Parameters of the open set, and how many nodes they open.

use std::time::Duration;

use crate::level::{Vessel, water_level};

/// Parameters of the open set.
#[derive(Clone, PartialEq, Debug)]
pub struct OpenSetSettings {
    /// The least part of the nodes that is open: it bounds how many connects fail when an open node dies, and how fast
    /// one node is filled when counts are wrong.
    pub floor: f64,
    /// The least number of open nodes, so that one that dies does not take all new connections with it.
    pub floor_nodes: usize,
    /// With so many open nodes the floor is reached whatever part of the fleet they are: 2 % of the connects fail when
    /// one dies. A quarter of 1,000 nodes would be mostly nodes that are as full as the others, and the empty ones among
    /// them would fill slowly.
    pub floor_enough: usize,
    /// The most connections per second that one open node is meant to get; more nodes are opened otherwise. A node
    /// accepts some 2,000 per second and core; 50 leave it its work.
    pub rate_per_node: f64,
    /// The same as a part of the mean per second, if that is more: a node that is meant for 100,000 connections takes
    /// 500 per second.
    pub rate_part: f64,
    /// With this many ready nodes or fewer all are open: there is little to choose from.
    pub few_nodes: usize,
    /// A node that is open stays so until its load is this much above the level, so that it does not flap,
    pub hysteresis: f64,
    /// and as long as no more than this part of the open nodes are open for that reason: in a fleet that is nearly
    /// level all would be.
    pub hysteresis_part: f64,
    /// So many nodes are opened that what arrives until the next write lifts none of them further above the mean than
    /// this, if that is possible.
    pub overshoot: f64,
    /// How old reports are on average.
    pub report_age: Duration,
    /// All are open while no node is further from the mean than this.
    pub balanced: f64,
    /// The time between two writes. Balance is the same from 1 s to 10 s; at 5 s kube-proxy with 1,000 endpoints takes
    /// 5 % of a core of each machine, at 1 s 15 %.
    pub write_every: Duration,
    /// The same in a large fleet, since every write goes to every machine: 1,000 machines get 22 MB/s every 5 s.
    pub write_every_large: Duration,
    /// From this many ready nodes on a fleet is large.
    pub large: usize,
    /// The time between two writes when an open node has gone: each second it stays open some connects fail.
    pub write_urgent: Duration,
    /// A write that changes nothing is repeated this often, which proves that the set could be changed. Well below the
    /// 30 s after which nothing is moved any more.
    pub confirm_every: Duration,
    /// From a write to the last proxy that follows it.
    pub propagation: Duration,
    /// With an older table of reports all nodes are open: the level would be a guess.
    pub table_stale: Duration,
    /// In a rollout a node of the newest revision is preferred until its load is this many times the mean; then old
    /// nodes get connections too.
    pub rollout_fill: f64,
}

impl Default for OpenSetSettings {
    fn default() -> Self {
        Self {
            floor: 0.25,
            floor_nodes: 2,
            floor_enough: 50,
            rate_per_node: 50.0,
            rate_part: 0.005,
            few_nodes: 3,
            hysteresis: 0.03,
            hysteresis_part: 0.25,
            overshoot: 0.03,
            report_age: Duration::from_secs(3),
            balanced: 0.05,
            write_every: Duration::from_secs(5),
            write_every_large: Duration::from_secs(10),
            large: 300,
            write_urgent: Duration::from_secs(1),
            confirm_every: Duration::from_secs(10),
            propagation: Duration::from_secs(1),
            table_stale: Duration::from_secs(15),
            rollout_fill: 1.25,
        }
    }
}

impl OpenSetSettings {
    /// The time between two writes with this many ready nodes.
    pub(super) fn write_every(&self, ready: usize) -> Duration {
        if ready >= self.large { self.write_every_large } else { self.write_every }
    }

    /// How long what is decided now stays in force: until the next write has reached the proxies.
    pub fn horizon(&self, ready: usize) -> Duration {
        self.write_every(ready) + self.propagation
    }

    /// The least number of open nodes out of `nodes` when `arrivals` connections come per second.
    fn floor(&self, nodes: usize, arrivals: f64, mean: f64) -> usize {
        let part = ((self.floor * nodes as f64).ceil() as usize).min(self.floor_enough);
        part.max(self.floor_for_arrivals(arrivals, mean)).min(nodes)
    }

    pub(super) fn floor_for_arrivals(&self, arrivals: f64, mean: f64) -> usize {
        let rate = self.rate_per_node.max(self.rate_part * mean);
        ((arrivals / rate).ceil() as usize).max(self.floor_nodes)
    }

    /// How many of these nodes, in ascending order of load, are to be open, and up to which load that is.
    ///
    /// As many as the water reaches and the floor demands. They share what arrives evenly, whatever their load; so while
    /// the fullest of them would be lifted over the mean by more than the overshoot, more are opened, though none that is
    /// over it already.
    pub fn depth(&self, sorted: &[Vessel], arrivals: f64, mean: f64) -> (usize, f64) {
        let nodes = sorted.len();
        let horizon = self.horizon(nodes).as_secs_f64();
        let Some(water) = water_level(sorted, arrivals * horizon) else { return (0, 0.0) };
        let up_to = |load: f64| sorted.partition_point(|vessel| vessel.load <= load);
        let least = up_to(water).max(self.floor(nodes, arrivals, mean)).max(1);
        let most = up_to((1.0 + self.overshoot) * mean).max(least);
        let coming = arrivals * (horizon + self.report_age.as_secs_f64());
        let is_enough = |count: &usize| {
            let fullest = sorted[count - 1];
            let lift = coming / (*count as f64 * fullest.weight);
            lift <= self.overshoot * mean + (mean - fullest.load).max(0.0)
        };
        let depth = (least..=most).find(is_enough).unwrap_or(most);
        (depth, sorted[depth - 1].load.max(water))
    }
}
