//! The fleet of a memory backplane: the nodes of one process, of which a simulation has many.

use std::collections::HashMap;
use std::future::ready;
use std::time::Duration;

use bytes::Bytes;

use super::MemoryBackplane;
use super::clock::Moment;
use super::limits::Counters;
use super::presence::shrink;
use crate::members::{check_lease_name, check_report};
use crate::{BackplaneFuture, Lease, Member, Members, NodeId, REPORT_TTL};

/// Reports and leases. There are a few of them, so one lock is enough and every walk is short.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    reports: HashMap<NodeId, Report>,
    leases: HashMap<Box<str>, Held>,
    /// The last token given, whatever the lease: no token is given twice, also after a lease was forgotten.
    last_token: u64,
}

#[derive(Debug)]
struct Report {
    made: Moment,
    text: Bytes,
}

#[derive(Debug)]
struct Held {
    holder: NodeId,
    token: u64,
    expires: Moment,
}

impl Report {
    fn expires(&self) -> Moment {
        self.made.after(REPORT_TTL)
    }
}

impl Fleet {
    fn report(&mut self, node: NodeId, text: Bytes, now: Moment, counters: &Counters) {
        if self.reports.insert(node, Report { made: now, text }).is_none() {
            counters.reports.add(1);
        }
    }

    fn withdraw(&mut self, node: NodeId, counters: &Counters) {
        if self.reports.remove(&node).is_some() {
            counters.reports.sub(1);
            shrink(&mut self.reports);
        }
    }

    /// The nodes whose reports count, with what `pick` makes of each.
    fn list<T>(&self, now: Moment, pick: impl Fn(NodeId, Duration, &Bytes) -> T) -> Vec<T> {
        let living = self.reports.iter().filter(|(_, report)| report.expires() > now);
        living.map(|(&node, report)| pick(node, now.since(report.made), &report.text)).collect()
    }

    fn hold(&mut self, name: &str, holder: NodeId, ttl: Duration, now: Moment, counters: &Counters) -> Lease {
        let expires = now.after(ttl);
        match self.leases.get_mut(name) {
            Some(held) if held.expires > now && held.holder == holder => {
                held.expires = expires;
                Lease::Held { token: held.token }
            }
            Some(held) if held.expires > now => Lease::HeldBy(held.holder),
            _ => {
                self.last_token += 1;
                let token = self.last_token;
                if self.leases.insert(Box::from(name), Held { holder, token, expires }).is_none() {
                    counters.leases.add(1);
                }
                Lease::Held { token }
            }
        }
    }

    fn release(&mut self, name: &str, holder: NodeId, counters: &Counters) {
        if self.leases.get(name).is_some_and(|held| held.holder == holder) {
            self.leases.remove(name);
            counters.leases.sub(1);
            shrink(&mut self.leases);
        }
    }

    /// Frees what has expired, at most `budget` reports and leases; returns how many it freed.
    pub(super) fn sweep(&mut self, now: Moment, budget: usize, counters: &Counters) -> usize {
        let nodes = self.reports.iter().filter(|(_, report)| report.expires() <= now).map(|(&node, _)| node);
        let nodes: Vec<_> = nodes.take(budget).collect();
        for &node in &nodes {
            self.withdraw(node, counters);
        }
        let ended = self.leases.iter().filter(|(_, held)| held.expires <= now);
        let ended: Vec<_> = ended.map(|(name, held)| (name.clone(), held.holder)).take(budget - nodes.len()).collect();
        for (name, holder) in &ended {
            self.release(name, *holder, counters);
        }
        nodes.len() + ended.len()
    }

    /// Forgets all reports and leases. Tokens go on: the next one is larger than every one before.
    pub(super) fn forget(&mut self, counters: &Counters) {
        counters.reports.sub(self.reports.len());
        counters.leases.sub(self.leases.len());
        self.reports = HashMap::new();
        self.leases = HashMap::new();
    }
}

impl Members for MemoryBackplane {
    fn report<'a>(&'a self, node: NodeId, report: Bytes) -> BackplaneFuture<'a, ()> {
        let checked = check_report(&report);
        if checked.is_ok() {
            self.fleet.lock().report(node, report, self.now(), &self.counters);
        }
        Box::pin(ready(checked))
    }

    fn withdraw<'a>(&'a self, node: NodeId) -> BackplaneFuture<'a, ()> {
        self.fleet.lock().withdraw(node, &self.counters);
        Box::pin(ready(Ok(())))
    }

    fn members<'a>(&'a self) -> BackplaneFuture<'a, Vec<Member>> {
        let member = |node, age, report: &Bytes| Member { node, age, report: report.clone() };
        Box::pin(ready(Ok(self.fleet.lock().list(self.now(), member))))
    }

    fn member_ages<'a>(&'a self) -> BackplaneFuture<'a, Vec<(NodeId, Duration)>> {
        Box::pin(ready(Ok(self.fleet.lock().list(self.now(), |node, age, _| (node, age)))))
    }

    fn hold_lease<'a>(&'a self, name: &'a str, holder: NodeId, ttl: Duration) -> BackplaneFuture<'a, Lease> {
        let lease =
            check_lease_name(name).map(|()| self.fleet.lock().hold(name, holder, ttl, self.now(), &self.counters));
        Box::pin(ready(lease))
    }

    fn release_lease<'a>(&'a self, name: &'a str, holder: NodeId) -> BackplaneFuture<'a, ()> {
        let checked = check_lease_name(name);
        if checked.is_ok() {
            self.fleet.lock().release(name, holder, &self.counters);
        }
        Box::pin(ready(checked))
    }
}
