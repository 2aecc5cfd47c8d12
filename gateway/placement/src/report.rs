//! What a node says of itself, once a second.
//!
//! JSON, like everything that nodes say to each other: it is little, and fields can be added. Each field that was added
//! has a default that means "not said", so that versions can be mixed in one fleet.

use std::time::Duration;

use backplane::NodeId;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Changes only when an older node must not read what a newer one says.
pub const VERSION: u32 = 1;

/// The longest name of a revision. Kubernetes' template hashes have 10 characters; a git hash has 40.
pub const REVISION_BYTES: usize = 40;

/// The longest name of a node: the longest host name is 253.
pub const NAME_BYTES: usize = 256;

/// Capacity weights outside of this are a mistake, and are taken as the nearer end: a weight of nothing would divide by
/// zero, and a giant one would send all connections to one node.
pub const WEIGHT_RANGE: std::ops::RangeInclusive<f64> = 0.01..=100.0;

/// What a node says of itself.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Report {
    /// The version of the format; [`VERSION`].
    pub v: u32,
    /// For humans; in Kubernetes the name of the pod.
    pub name: String,
    /// Of the gateway.
    pub version: String,
    /// Live connections, without those that have been told to go.
    pub connections: u64,
    /// Ready for new connections.
    #[serde(default)]
    pub ready: bool,
    /// On its way out.
    #[serde(default)]
    pub draining: bool,
    /// It follows an order to empty itself, because it goes first when the fleet shrinks.
    #[serde(default)]
    pub retiring: bool,
    /// The highest term of a digest it has seen.
    #[serde(default)]
    pub term: u64,
    /// What it was started from, for example the pod template's hash; empty is unknown.
    #[serde(default)]
    pub revision: String,
    /// Seconds since it started.
    #[serde(default)]
    pub uptime_s: u64,
    /// Its capacity in comparison with the other nodes.
    #[serde(default = "one")]
    pub weight: f64,
    /// Connections accepted per second since its last report.
    #[serde(default)]
    pub accepts: f64,
    /// Connections refused or failed per second since its last report: 503 answers, handshakes and connect commands that
    /// ended with an error of ours.
    #[serde(default)]
    pub refused: f64,
    /// Connections closed per second since its last report in order to move them.
    #[serde(default)]
    pub moved: f64,
    /// Moved connections per second of which it became known since its last report whether they came back to this node. Not
    /// all that are moved: some cannot be told from others.
    #[serde(default)]
    pub settled: f64,
    /// Those of them that did.
    #[serde(default)]
    pub returned: f64,
    /// How many more connections it could accept per second than it does.
    #[serde(default)]
    pub spare_accepts: Option<f64>,
    /// How many more connections it may hold.
    #[serde(default)]
    pub room: Option<u64>,
    /// Whether somebody chooses the nodes for new connections by an open set, as far as it knows.
    #[serde(default)]
    pub open_set: bool,
    /// Milliseconds since this node, as the writer of the open set, last knew it to be written; nothing if it is not
    /// the writer.
    #[serde(default)]
    pub placement_age_ms: Option<u64>,
    /// Which revision is the newest, if it knows better than by the ages of the nodes: after an aborted rollout the
    /// revision that comes back is the older one.
    #[serde(default)]
    pub newest_revision: Option<String>,
}

fn one() -> f64 {
    1.0
}

/// Why a report or digest is not understood.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// It is no JSON, or not of this kind.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A newer version that this one must not read.
    #[error("version {0}, this node reads version {VERSION}")]
    Version(u32),
}

impl Report {
    /// A node that has just started: not ready, empty, of weight 1.
    pub fn new(name: &str, version: &str) -> Self {
        Self {
            v: VERSION,
            name: name.chars().take(NAME_BYTES).collect(),
            version: version.to_owned(),
            connections: 0,
            ready: false,
            draining: false,
            retiring: false,
            term: 0,
            revision: String::new(),
            uptime_s: 0,
            weight: 1.0,
            accepts: 0.0,
            refused: 0.0,
            moved: 0.0,
            settled: 0.0,
            returned: 0.0,
            spare_accepts: None,
            room: None,
            open_set: false,
            placement_age_ms: None,
            newest_revision: None,
        }
    }

    /// As it is sent.
    pub fn encode(&self) -> Bytes {
        let mut tidy = self.clone();
        tidy.tidy();
        serde_json::to_vec(&tidy).expect("a report has text for keys and finite numbers").into()
    }

    /// As it was received; numbers and names out of bounds are brought into them.
    ///
    /// # Errors
    /// When it is no report, or one of a version that must not be read.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut report: Self = serde_json::from_slice(bytes)?;
        if report.v != VERSION {
            return Err(WireError::Version(report.v));
        }
        report.tidy();
        Ok(report)
    }

    fn tidy(&mut self) {
        self.weight = if self.weight.is_nan() { 1.0 } else { self.weight };
        self.weight = self.weight.clamp(*WEIGHT_RANGE.start(), *WEIGHT_RANGE.end());
        let rates = [&mut self.accepts, &mut self.refused, &mut self.moved, &mut self.settled, &mut self.returned];
        for rate in rates {
            *rate = tidy_rate(*rate);
        }
        self.spare_accepts = self.spare_accepts.map(tidy_rate);
        self.revision = tidy_revision(&self.revision);
        self.newest_revision = self.newest_revision.take().map(|revision| tidy_revision(&revision));
    }

    /// Its share of the fleet's connections is measured by this: connections per unit of weight.
    pub fn load(&self) -> f64 {
        self.connections as f64 / self.weight
    }

    /// Whether it stays, and takes new connections.
    pub fn stays(&self) -> bool {
        self.ready && !self.draining && !self.retiring
    }
}

/// No machine does more per second.
const RATE_MAX: f64 = 1e9;

/// Rates have two digits after the point: enough for one connection a minute, and short.
pub(crate) fn tidy_rate(rate: f64) -> f64 {
    if rate.is_nan() { 0.0 } else { (rate.clamp(0.0, RATE_MAX) * 100.0).round() / 100.0 }
}

/// Only characters that need no escaping, so that the digest has a known size.
fn tidy_revision(revision: &str) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '+');
    revision.chars().filter(is_plain).take(REVISION_BYTES).collect()
}

/// One row of the table of reports.
#[derive(Clone, PartialEq, Debug)]
pub struct Peer {
    /// Which process.
    pub id: NodeId,
    /// How old its report is.
    pub age: Duration,
    /// What it said.
    pub report: Report,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_arrives_as_it_was_sent() {
        let report = Report {
            connections: 1 << 40,
            ready: true,
            retiring: true,
            revision: "7d9f8b6c5".to_owned(),
            weight: 2.5,
            accepts: 3.25,
            settled: 2.5,
            returned: 1.25,
            spare_accepts: Some(1990.5),
            room: Some(7),
            open_set: true,
            placement_age_ms: Some(1234),
            newest_revision: Some("b".to_owned()),
            ..Report::new("pod-0", "1.2.3")
        };
        assert_eq!(Report::decode(&report.encode()).expect("what was encoded"), report);
    }

    #[test]
    fn reports_of_older_and_newer_versions_are_read() {
        let old = br#"{"v":1,"name":"a","version":"0.1.0","connections":5,"ready":true,"draining":false,"term":3}"#;
        let report = Report::decode(old).expect("the first format");
        assert_eq!((report.connections, report.weight, report.spare_accepts), (5, 1.0, None));
        let newer = br#"{"v":1,"name":"a","version":"9","connections":5,"later":{"a":[1]}}"#;
        assert!(Report::decode(newer).is_ok());
        let other = br#"{"v":2,"name":"a","version":"9","connections":5}"#;
        assert!(matches!(Report::decode(other), Err(WireError::Version(2))));
    }

    #[test]
    fn nonsense_is_brought_into_bounds() {
        let report = Report {
            weight: f64::NAN,
            accepts: f64::INFINITY,
            refused: f64::NAN,
            moved: -4.0,
            spare_accepts: Some(f64::NEG_INFINITY),
            revision: "\"\\\u{1F600}a".repeat(100),
            ..Report::new("a", "1")
        };
        let back = Report::decode(&report.encode()).expect("finite numbers");
        assert_eq!((back.weight, back.accepts, back.refused, back.moved), (1.0, RATE_MAX, 0.0, 0.0));
        assert_eq!((back.spare_accepts, back.revision.as_str()), (Some(0.0), "a".repeat(40).as_str()));
        let zero = br#"{"v":1,"name":"a","version":"0","connections":5,"weight":0}"#;
        assert_eq!(Report::decode(zero).expect("a report").weight, 0.01);
    }
}
