//! The fleet: what each node reports of itself, and leases on roles that one node has at a time.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::{BackplaneError, BackplaneFuture};

/// How long a report counts without being renewed. Reports come once a second; half a minute of an outage must not make
/// the fleet forget its members, and 15 s is when a digest is stale (design section 5).
pub const REPORT_TTL: Duration = Duration::from_secs(15);

/// The largest report. A node has a few dozen numbers and names to tell; all of them together must stay readable.
pub const REPORT_BYTES: usize = 4096;

/// The longest name of a lease, of `[A-Za-z0-9_-]`. Names are constants of the program: what is remembered of each, so that
/// its tokens never go back, is not bounded otherwise.
pub const LEASE_NAME_BYTES: usize = 64;

/// The identity of one gateway process: random, new at every start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub Uuid);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

/// A node as the table of members shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Which process.
    pub node: NodeId,
    /// How old its report is by the backplane's clock; below [`REPORT_TTL`].
    pub age: Duration,
    /// What it said of itself.
    pub report: Bytes,
}

/// The answer to a request for a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lease {
    /// It is the caller's until the time to live has passed since **before** the call. The token is larger than that of
    /// every earlier holder, also after the backplane lost writes: whoever acts under the lease passes it on, and
    /// whoever is acted on ignores lower ones.
    Held {
        /// Stays the same while the same holder renews, unless the backplane may have lost writes in between: then it is
        /// a larger one too, because others may have held the lease.
        token: u64,
    },
    /// Another node has it.
    HeldBy(NodeId),
}

/// Refuses a report that is too long.
pub(crate) fn check_report(report: &[u8]) -> Result<(), BackplaneError> {
    if report.len() > REPORT_BYTES {
        let bytes = report.len();
        return Err(BackplaneError::Protocol(format!("a report of {bytes} bytes is longer than {REPORT_BYTES}")));
    }
    Ok(())
}

/// Refuses a name that a lease cannot have.
pub(crate) fn check_lease_name(name: &str) -> Result<(), BackplaneError> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if (1..=LEASE_NAME_BYTES).contains(&name.len()) && name.bytes().all(is_legal) {
        return Ok(());
    }
    Err(BackplaneError::Protocol(format!(
        "{name:?} is no name of a lease: 1 to {LEASE_NAME_BYTES} of [A-Za-z0-9_-] are"
    )))
}

/// Who is in the fleet.
pub trait Members: Send + Sync + 'static {
    /// Replaces the report of `node`, at most [`REPORT_BYTES`] long; a longer one is refused with
    /// [`BackplaneError::Protocol`]. To be called once a second.
    fn report<'a>(&'a self, node: NodeId, report: Bytes) -> BackplaneFuture<'a, ()>;

    /// Removes the report of a node that leaves; removing one that is not there succeeds. A report still under way
    /// when this is called may come after it.
    fn withdraw<'a>(&'a self, node: NodeId) -> BackplaneFuture<'a, ()>;

    /// Every node whose report is younger than [`REPORT_TTL`], in no particular order.
    fn members<'a>(&'a self) -> BackplaneFuture<'a, Vec<Member>>;

    /// The ids and ages of [`members`](Self::members) without the reports, which makes it cheap.
    fn member_ages<'a>(&'a self) -> BackplaneFuture<'a, Vec<(NodeId, Duration)>>;

    /// Takes the lease called `name` for `ttl`, or renews it if `holder` has it. To be called every third of `ttl`; act
    /// under it only until `ttl` less a margin has passed, on the caller's own clock, since the last call that was
    /// answered with [`Lease::Held`] was **made**. A name with other characters than `[A-Za-z0-9_-]`, or a longer one
    /// than [`LEASE_NAME_BYTES`], is refused with [`BackplaneError::Protocol`].
    fn hold_lease<'a>(&'a self, name: &'a str, holder: NodeId, ttl: Duration) -> BackplaneFuture<'a, Lease>;

    /// Gives a lease up, if `holder` has it; succeeds if it has not.
    fn release_lease<'a>(&'a self, name: &'a str, holder: NodeId) -> BackplaneFuture<'a, ()>;
}
