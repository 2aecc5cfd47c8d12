//! Reports, coordinators and writers of the open set: what is known of the fleet, how late, and what is made of it.

use std::collections::BTreeSet;
use std::time::Duration;

use placement::open_set::{Decision, Input};
use placement::{Candidate, Digest, Peer};

use super::{ACCEPTS, Node, Reported, World, Written};
use crate::route::{PROXIES, Policy};
use crate::scenario::Fault;

impl World<'_> {
    pub(super) fn report(&mut self) {
        for slot in 0..self.nodes.len() {
            let connections = self.proxies.connections(slot);
            let is_ready = self.is_ready(slot);
            let node = &mut self.nodes[slot];
            node.reports.push_back(Reported {
                connections,
                accepts: node.accepted,
                moved: node.moved,
                fates: node.fates.front().copied().filter(|_| node.drain.is_none()).unwrap_or_default(),
                ready: is_ready,
                draining: node.drain.is_some(),
            });
            if node.reports.len() > 12 {
                node.reports.pop_front();
            }
        }
    }

    /// Brings the table of reports up to what it shows now, to a reader who is behind by `more` seconds.
    pub(super) fn read_table(&mut self, more: u64) {
        let seen = |node: &Node| node.reports.len().checked_sub((1 + node.lag + more) as usize);
        let is_there = |slot: &usize| self.nodes[*slot].is_alive && seen(&self.nodes[*slot]).is_some();
        let rows: Vec<_> =
            (0..self.nodes.len()).filter(is_there).map(|slot| (slot, self.nodes[slot].generation)).collect();
        if rows != self.rows {
            self.table = rows.iter().map(|(slot, _)| self.peers[*slot].clone()).collect();
            self.rows = rows;
        }
        for (peer, (slot, _)) in self.table.iter_mut().zip(&self.rows) {
            let node = &self.nodes[*slot];
            let Reported { connections, accepts, moved, fates, ready, draining } =
                node.reports[seen(node).unwrap_or(0)];
            peer.age = Duration::from_secs(node.lag + more);
            let report = &mut peer.report;
            (report.connections, report.ready, report.draining) = (connections, ready, draining);
            (report.accepts, report.moved) = (accepts as f64, moved as f64);
            (report.settled, report.returned) = (fates.0 as f64, fates.1 as f64);
            report.spare_accepts = Some(ACCEPTS - accepts as f64);
            report.uptime_s = self.second.saturating_sub(node.ready_at) + if node.is_new_revision { 0 } else { 10_000 };
            report.placement_age_ms = None;
        }
        // The first node that is there has the role of the writer.
        if let (Some(peer), Some(at)) = (self.table.first_mut(), self.writers[0].written_at()) {
            let age = self.start + Duration::from_secs(self.second) - at;
            peer.report.placement_age_ms = (self.scenario.policy == Policy::OpenSet).then_some(age.as_millis() as u64);
            peer.age = Duration::ZERO;
        }
    }

    /// The same for one who is late.
    fn read_late(&mut self) -> Vec<Peer> {
        let (table, rows) = (std::mem::take(&mut self.table), std::mem::take(&mut self.rows));
        self.read_table(3);
        self.rows = rows;
        std::mem::replace(&mut self.table, table)
    }

    pub(super) fn coordinate(&mut self, table: &[Peer]) {
        if self.has_fault(|fault| matches!(fault, Fault::NoCoordinator(..))) {
            return;
        }
        let now = self.now();
        let digest = self.coordinators[0].tick(now, table);
        let other = if self.has_fault(|fault| matches!(fault, Fault::SplitBrain(..))) {
            let late = self.read_late();
            self.coordinators[1].tick(now, &late)
        } else {
            digest.clone()
        };
        for (heard, digest) in self.heard.iter_mut().zip([digest, other]) {
            // What goes over the wire is what they know.
            let digest = Digest::decode(&digest.encode()).expect("what was encoded");
            heard.push_back((digest, now));
            if heard.len() > 2 {
                heard.pop_front();
            }
        }
    }

    pub(super) fn write_open_set(&mut self, table: &[Peer]) {
        if self.scenario.policy != Policy::OpenSet {
            return;
        }
        self.write_by(0, table);
        if self.has_fault(|fault| matches!(fault, Fault::SplitBrain(..))) {
            let late = self.read_late();
            self.write_by(1, &late);
        }
    }

    fn write_by(&mut self, writer: usize, table: &[Peer]) {
        let now = self.now();
        let Some((digest, _)) = self.heard[writer].back() else { return };
        let arrivals = digest.arrivals;
        let is_rollout = self.nodes.iter().any(|node| node.is_alive && node.is_new_revision)
            && self.nodes.iter().any(|node| node.is_alive && !node.is_new_revision);
        let connections = table.iter().map(|peer| peer.report.connections).sum();
        let mut reported = table.iter().peekable();
        let mut candidates = Vec::new();
        for slot in 0..self.nodes.len() {
            let id = self.peers[slot].id;
            let peer = reported.next_if(|peer| peer.id == id);
            if !self.is_ready(slot) {
                continue;
            }
            let mut candidate = Candidate::new((slot, self.nodes[slot].generation), 0);
            let is_fresh = |peer: &&Peer| peer.age <= Duration::from_secs(8);
            candidate.connections = peer.filter(is_fresh).map(|peer| peer.report.connections);
            candidate.is_newest = is_rollout && self.nodes[slot].is_new_revision;
            candidates.push(candidate);
        }
        let input = Input { candidates: &candidates, connections, arrivals, table_age: Duration::ZERO };
        let Decision::Write { members, .. } = self.writers[writer].decide(now, &input) else { return };
        if self.has_fault(|fault| matches!(fault, Fault::FrozenSet(..))) {
            return;
        }
        self.send(&members, writer);
        self.writers[writer].confirmed(now, members);
    }

    fn send(&mut self, members: &BTreeSet<(usize, u64)>, writer: usize) {
        if *members != *self.writers[writer].written() {
            self.outcome.writes += 1;
        }
        self.outcome.smallest_set = self.outcome.smallest_set.min(members.len());
        for proxy in 0..PROXIES {
            let due = self.second + 1 + proxy as u64 % 2;
            self.in_flight.push(Written { due, proxy, nodes: members.iter().copied().collect() });
        }
    }
}
