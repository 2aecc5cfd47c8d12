//! The fleet on NATS: a table of reports, and leases with tokens that never go back.
//!
//! Time is the server's. A lease is a row of the table of roles, which its holder rewrites; somebody else may write it
//! when it has ended. Its token is the offset of the message by which it was taken. Where a fence was appended to the
//! table, writes may have been lost, and with them that the lease went on to others: then also its holder takes it anew.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::NatsBackplane;
use super::base::Base;
use super::names::token;
use super::request::{Stored, Write};
use super::stream::{Ready, StreamSettings};
use super::table::{ATTEMPTS, Answer, Table, is_over, millis, too_many_others, unreadable};
use crate::members::{check_lease_name, check_report};
use crate::{BackplaneError, BackplaneFuture, Lease, Member, Members, NodeId, REPORT_TTL};

/// The row that is written to learn the time of the table's server: no name of a lease.
const CLOCK: &str = "%-clock";

/// Reports and roles.
pub(super) struct Fleet {
    reports: Table,
    roles: Table,
}

/// A role as it is stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Role {
    /// Version of this record: 1.
    v: u8,
    /// Random, and the second field: see [`table`](super::table).
    i: String,
    /// `None` when it was given up.
    holder: Option<Uuid>,
    /// How long it is held after this was written, in milliseconds.
    ttl_ms: u64,
    /// The token of its holder; `None` stands for the offset of this message.
    token: Option<u64>,
    /// The table when the lease was taken, and how many fences it had.
    epoch: String,
    fences: u32,
}

impl Role {
    fn parse(stored: &Stored) -> Answer<Self> {
        let role: Self = serde_json::from_slice(&stored.payload).map_err(|error| unreadable(&stored.subject, error))?;
        if role.v != 1 {
            return Err(unreadable(&stored.subject, format!("version {}, this node reads version 1", role.v)));
        }
        Ok(role)
    }

    fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text and numbers can be written")
    }
}

impl Fleet {
    pub(super) fn new(base: &Arc<Base>) -> Self {
        let (names, rows) = (&base.names, StreamSettings::last_of_each);
        let reports =
            StreamSettings { max_age: Some(REPORT_TTL), ..rows(names.stream("nodes"), names.subject(&["n", ">"])) };
        let roles = StreamSettings { is_fenced: true, ..rows(names.stream("roles"), names.subject(&["r", ">"])) };
        Self { reports: Table::new(base, reports), roles: Table::new(base, roles) }
    }

    /// Makes the tables, so that a server that does not allow it is found out at the start.
    pub(super) async fn prepare(&self) -> Answer<()> {
        self.reports.ready().await?;
        self.roles.ready().await?;
        Ok(())
    }

    async fn report(&self, node: NodeId, report: Bytes) -> Answer<()> {
        let ready = self.reports.ready().await?;
        self.reports.put(&ready, Write::new(self.report_of(node)?, report)).await?;
        Ok(())
    }

    async fn withdraw(&self, node: NodeId) -> Answer<()> {
        let ready = self.reports.ready().await?;
        self.reports.remove(&ready, &self.report_of(node)?).await
    }

    fn report_of(&self, node: NodeId) -> Answer<String> {
        self.reports.subject(&["n", &node.to_string()])
    }

    async fn members(&self) -> Answer<Vec<Member>> {
        let ready = self.reports.ready().await?;
        let rows = self.reports.all(&ready, &self.reports.subject(&["n", "*"])?).await?;
        // Whatever is known of the server's time: it is not before its latest message.
        let latest = rows.iter().map(|row| row.time).max().unwrap_or(0);
        let now = self.reports.base.now().max(latest);
        let mut members = Vec::with_capacity(rows.len());
        for row in rows {
            let age = Duration::from_nanos(now - row.time);
            if age >= REPORT_TTL {
                continue;
            }
            let id = row.subject.rsplit('.').next().and_then(|id| Uuid::try_parse(id).ok());
            let id = id.ok_or_else(|| unreadable(&row.subject, "it is not that of a node"))?;
            members.push(Member { node: NodeId(id), age, report: row.payload });
        }
        Ok(members)
    }

    async fn hold(&self, name: &str, holder: NodeId, ttl: Duration) -> Answer<Lease> {
        check_lease_name(name)?;
        let subject = self.roles.subject(&["r", &token(name)])?;
        for _ in 0..ATTEMPTS {
            let ready = self.roles.ready().await?;
            let stored = self.roles.get(&ready, &subject).await?;
            let role = match &stored {
                Some(stored) => {
                    let role = Role::parse(stored)?;
                    self.holds(&ready, stored, &role, holder).await?.then_some((stored, role))
                }
                None => None,
            };
            let token = match &role {
                Some((_, Role { holder: Some(other), .. })) if *other != holder.0 => {
                    return Ok(Lease::HeldBy(NodeId(*other)));
                }
                // Its own, and nothing can have been lost since it was taken.
                Some((stored, role)) if is_of(role, &ready) => {
                    Some(role.token.map_or_else(|| Table::offset(&ready, stored.number), Ok)?)
                }
                _ => None,
            };
            let next = Role {
                v: 1,
                i: random(),
                holder: Some(holder.0),
                ttl_ms: millis(ttl),
                token,
                epoch: ready.lineage.epoch().as_str().to_owned(),
                fences: ready.lineage.fence_count(),
            };
            let expected = Some(stored.map_or(0, |stored| stored.number));
            let write = Write { expected, ..Write::new(subject.clone(), next.to_bytes()) };
            if let Some(written) = self.roles.put(&ready, write).await? {
                let token = token.map_or_else(|| Table::offset(&ready, written.number), Ok)?;
                return Ok(Lease::Held { token });
            }
        }
        Err(too_many_others())
    }

    /// Whether a lease is held at this time. Another node's is called ended only by two times of the same stream.
    async fn holds(&self, ready: &Ready, stored: &Stored, role: &Role, asking: NodeId) -> Answer<bool> {
        let Some(held_by) = role.holder else { return Ok(false) };
        if !is_over(stored, role.ttl_ms, self.roles.base.now()) {
            return Ok(true);
        }
        if held_by == asking.0 {
            return Ok(false);
        }
        let clock = self.roles.subject(&["r", CLOCK])?;
        self.roles.put(ready, Write::new(clock.clone(), "")).await?;
        let written = self.roles.get(ready, &clock).await?;
        Ok(written.is_none_or(|written| !is_over(stored, role.ttl_ms, written.time)))
    }

    async fn release(&self, name: &str, holder: NodeId) -> Answer<()> {
        check_lease_name(name)?;
        let subject = self.roles.subject(&["r", &token(name)])?;
        for _ in 0..ATTEMPTS {
            let ready = self.roles.ready().await?;
            let Some(stored) = self.roles.get(&ready, &subject).await? else { return Ok(()) };
            let role = Role::parse(&stored)?;
            if role.holder != Some(holder.0) {
                return Ok(());
            }
            // Not removed: only a write can be made on the condition that nobody else has taken it.
            let free = Role { i: random(), holder: None, ..role };
            let write = Write { expected: Some(stored.number), ..Write::new(subject.clone(), free.to_bytes()) };
            if self.roles.put(&ready, write).await?.is_some() {
                return Ok(());
            }
        }
        Err(too_many_others())
    }
}

fn random() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// Whether nothing can have been lost since the lease was taken.
fn is_of(role: &Role, ready: &Ready) -> bool {
    role.epoch == ready.lineage.epoch().as_str() && role.fences == ready.lineage.fence_count()
}

impl Members for NatsBackplane {
    fn report<'a>(&'a self, node: NodeId, report: Bytes) -> BackplaneFuture<'a, ()> {
        Box::pin(async move {
            check_report(&report)?;
            self.base.calls.call(self.fleet.report(node, report)).await
        })
    }

    fn withdraw<'a>(&'a self, node: NodeId) -> BackplaneFuture<'a, ()> {
        Box::pin(self.base.calls.call(self.fleet.withdraw(node)))
    }

    fn members<'a>(&'a self) -> BackplaneFuture<'a, Vec<Member>> {
        Box::pin(self.base.calls.call(self.fleet.members()))
    }

    fn member_ages<'a>(&'a self) -> BackplaneFuture<'a, Vec<(NodeId, Duration)>> {
        Box::pin(async move {
            let members = self.base.calls.call(self.fleet.members()).await?;
            Ok::<_, BackplaneError>(members.into_iter().map(|member| (member.node, member.age)).collect())
        })
    }

    fn hold_lease<'a>(&'a self, name: &'a str, holder: NodeId, ttl: Duration) -> BackplaneFuture<'a, Lease> {
        Box::pin(self.base.calls.call(self.fleet.hold(name, holder, ttl)))
    }

    fn release_lease<'a>(&'a self, name: &'a str, holder: NodeId) -> BackplaneFuture<'a, ()> {
        Box::pin(self.base.calls.call(self.fleet.release(name, holder)))
    }
}
