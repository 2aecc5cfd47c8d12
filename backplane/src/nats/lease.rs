//! Leases of nodes: rows that a node writes again and again, and that anybody may end when it does not.
//!
//! A lease is alive while its row is younger than its time to live, by the times of one stream. Whoever finds it older
//! ends it for good, on the condition that it was not renewed in between: so a lease never comes back while its entries
//! are being removed, and its node sees that it is gone.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::request::{Stored, Write};
use super::stream::Ready;
use super::table::{Answer, Table, is_over, unreadable};

/// A lease as it is stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Lease {
    /// Version of this record: 1.
    v: u8,
    /// Name of the node, for people who look.
    name: String,
    /// How long it is alive after this was written, in milliseconds.
    ttl_ms: u64,
    /// It has ended and will not come back.
    is_ended: bool,
}

impl Lease {
    pub(super) fn new(name: &str, ttl_ms: u64) -> Self {
        Self { v: 1, name: name.to_owned(), ttl_ms, is_ended: false }
    }

    fn ended(self) -> Self {
        Self { is_ended: true, ..self }
    }

    fn parse(stored: &Stored) -> Answer<Self> {
        let lease: Self =
            serde_json::from_slice(&stored.payload).map_err(|error| unreadable(&stored.subject, error))?;
        if lease.v != 1 {
            return Err(unreadable(&stored.subject, format!("version {}, this node reads version 1", lease.v)));
        }
        Ok(lease)
    }

    fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text and numbers can be written")
    }
}

/// Somebody's lease, as it was read.
pub(super) struct Known {
    pub(super) id: Uuid,
    lease: Lease,
    row: Stored,
}

impl Known {
    /// Whether it counts at this time of the server, in nanoseconds since 1970.
    pub(super) fn is_alive(&self, now: u64) -> bool {
        !self.lease.is_ended && !is_over(&self.row, self.lease.ttl_ms, now)
    }

    /// Whether its node has given it up, or somebody has ended it.
    pub(super) fn is_ended(&self) -> bool {
        self.lease.is_ended
    }

    /// When it was written.
    pub(super) fn time(&self) -> u64 {
        self.row.time
    }
}

fn subject(table: &Table, id: &str) -> Answer<String> {
    table.subject(&["p", "k", id])
}

/// All leases.
pub(super) async fn all(table: &Table, ready: &Ready) -> Answer<Vec<Known>> {
    let rows = table.all(ready, &subject(table, "*")?).await?;
    rows.into_iter()
        .map(|row| {
            let id = row.subject.rsplit('.').next().and_then(|id| Uuid::try_parse(id).ok());
            let id = id.ok_or_else(|| unreadable(&row.subject, "it is not that of a lease"))?;
            Ok(Known { id, lease: Lease::parse(&row)?, row })
        })
        .collect()
}

/// Takes a lease nobody ever had; the number of its row.
pub(super) async fn take(table: &Table, ready: &Ready, id: Uuid, lease: &Lease) -> Answer<Option<u64>> {
    let write = Write { expected: Some(0), ..Write::new(subject(table, &id.simple().to_string())?, lease.to_bytes()) };
    Ok(table.put(ready, write).await?.map(|written| written.number))
}

/// Renews a lease that was last written under this number; `None` if it has ended.
pub(super) async fn renew(table: &Table, ready: &Ready, id: Uuid, lease: &Lease, row: u64) -> Answer<Option<u64>> {
    let subject = subject(table, &id.simple().to_string())?;
    let write = |expected| Write { expected: Some(expected), ..Write::new(subject.clone(), lease.to_bytes()) };
    if let Some(written) = table.put(ready, write(row)).await? {
        return Ok(Some(written.number));
    }
    // Ended by somebody else; or an earlier renewal was not answered, or is lost.
    let Some(stored) = table.get(ready, &subject).await? else { return Ok(None) };
    if Lease::parse(&stored)?.is_ended {
        return Ok(None);
    }
    Ok(table.put(ready, write(stored.number)).await?.map(|written| written.number))
}

/// Ends somebody's lease unless it was renewed since it was read; whether it has ended.
pub(super) async fn end(table: &Table, ready: &Ready, known: &Known) -> Answer<bool> {
    if known.lease.is_ended {
        return Ok(true);
    }
    let ended = known.lease.clone().ended().to_bytes();
    let write = Write { expected: Some(known.row.number), ..Write::new(known.row.subject.clone(), ended) };
    Ok(table.put(ready, write).await?.is_some())
}

/// Ends a lease of this node.
pub(super) async fn give_up(table: &Table, ready: &Ready, id: Uuid, lease: Lease) -> Answer<()> {
    table.put(ready, Write::new(subject(table, &id.simple().to_string())?, lease.ended().to_bytes())).await?;
    Ok(())
}

/// Forgets a lease that has ended.
pub(super) async fn forget(table: &Table, ready: &Ready, id: Uuid) -> Answer<()> {
    table.remove(ready, &subject(table, &id.simple().to_string())?).await
}
