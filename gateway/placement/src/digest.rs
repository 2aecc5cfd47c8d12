//! What the coordinator makes of all reports, once a second: the only thing nodes act on, and small whatever the size of
//! the fleet, so that traffic grows with the number of nodes and not with its square.

use std::fmt;
use std::time::{Duration, Instant};

use backplane::NodeId;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::report::{VERSION, WireError};

/// The largest digest. Every node receives one a second, so 1,000 nodes receive 1 MB/s at most.
pub const DIGEST_BYTES: usize = 1024;

/// The most nodes that can be under orders at a time: they fill what the rest of a digest leaves of its size. More are
/// ordered once these are done.
pub const ORDERS_MAX: usize = 24;

/// The short name of a node in a digest: the first two groups of its id, 48 random bits.
///
/// Two of 1,000 nodes share one with a probability of 2e-9. A node that does is never given an order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeKey(u64);

impl NodeKey {
    /// Of this node.
    pub fn of(id: NodeId) -> Self {
        Self((id.0.as_u128() >> 80) as u64)
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:04x}", self.0 >> 16, self.0 & 0xffff)
    }
}

impl Serialize for NodeKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let digits = |part: &str, length: usize| {
            let is_plain = part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            if is_plain { u64::from_str_radix(part, 16).ok() } else { None }
        };
        text.split_once('-')
            .and_then(|(high, low)| Some(Self(digits(high, 8)? << 16 | digits(low, 4)?)))
            .ok_or_else(|| serde::de::Error::custom("no short name of a node"))
    }
}

/// Why the whole fleet moves nothing.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Pause {
    /// Nodes are being replaced: what is moved now would be moved again.
    Rollout,
    /// No node may hold, or can accept, more connections.
    NoRoom,
    /// Too many connections are refused or fail.
    Refusals,
    /// Clients connect faster than usual, or nodes have no accept capacity left.
    Busy,
    /// Connections that were moved did not come back.
    NotReturning,
    /// Connections that were moved came back to the node that they had left.
    Returning,
    /// A reason that this version does not know.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
impl Pause {
    /// Every reason that this version knows.
    pub(crate) const KNOWN: [Self; 6] =
        [Self::Rollout, Self::NoRoom, Self::Refusals, Self::Busy, Self::NotReturning, Self::Returning];
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rollout => "a rollout is under way",
            Self::NoRoom => "no other node has room",
            Self::Refusals => "too many connections are refused or fail",
            Self::Busy => "clients are connecting at a high rate",
            Self::NotReturning => "connections that were moved did not come back",
            Self::Returning => {
                "moved connections came back to the node that they had left, as if something in front bound clients to nodes"
            }
            Self::Unknown => "a newer node has a reason that this version does not know",
        })
    }
}

/// The state of the fleet.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Digest {
    /// The version of the format; [`VERSION`].
    pub v: u32,
    /// Higher with every coordinator.
    pub term: u64,
    /// Counts the digests of a term.
    pub sequence: u64,
    /// Nodes that are ready; those that retire are.
    pub ready: u64,
    /// Nodes that drain.
    pub draining: u64,
    /// Nodes that are neither.
    pub starting: u64,
    /// Nodes that drain and still have connections to close; nothing if the coordinator does not say, as an older one.
    #[serde(default)]
    pub emptying: Option<u64>,
    /// Connections of all nodes.
    pub connections: u64,
    /// The most that one node has.
    pub connections_max: u64,
    /// The load of every node once all is level: all connections per weight of the nodes that stay.
    #[serde(default)]
    pub mean: f64,
    /// The highest load of a node that stays.
    #[serde(default)]
    pub max: f64,
    /// The water level: nodes at or below it are the ones for new connections.
    #[serde(default)]
    pub level: f64,
    /// Connections accepted per second, smoothed.
    #[serde(default)]
    pub arrivals: f64,
    /// How many more connections the nodes that stay could accept per second; nothing if no node says.
    #[serde(default)]
    pub spare: Option<f64>,
    /// Connections that all nodes together may move per second.
    #[serde(default)]
    pub budget: f64,
    /// The connections that nodes above the stop threshold have too many: the sum by which the budget is shared out.
    #[serde(default)]
    pub excess: f64,
    /// The newest revision; empty is unknown.
    #[serde(default)]
    pub revision: String,
    /// Why nothing may be moved.
    #[serde(default)]
    pub pauses: Vec<Pause>,
    /// Whether an open set is in use.
    #[serde(default)]
    pub open_set: bool,
    /// Milliseconds since the open set was last known to be written; nothing if that is unknown.
    #[serde(default)]
    pub placement_age_ms: Option<u64>,
    /// Who may ask for the roles of the fleet.
    #[serde(default)]
    pub candidates: Vec<NodeKey>,
    /// Nodes that are to empty themselves; at most [`ORDERS_MAX`].
    #[serde(default)]
    pub retire: Vec<NodeKey>,
}

impl Digest {
    /// Of a fleet without nodes.
    pub fn empty(term: u64, sequence: u64) -> Self {
        Self {
            v: VERSION,
            term,
            sequence,
            ready: 0,
            draining: 0,
            starting: 0,
            emptying: None,
            connections: 0,
            connections_max: 0,
            mean: 0.0,
            max: 0.0,
            level: 0.0,
            arrivals: 0.0,
            spare: None,
            budget: 0.0,
            excess: 0.0,
            revision: String::new(),
            pauses: Vec::new(),
            open_set: false,
            placement_age_ms: None,
            candidates: Vec::new(),
            retire: Vec::new(),
        }
    }

    /// As it is published: at most [`DIGEST_BYTES`] as the coordinator makes it.
    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(self).expect("a digest has text for keys").into()
    }

    /// As it was received.
    ///
    /// # Errors
    /// When it is no digest, or one of a version that must not be read.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let digest: Self = serde_json::from_slice(bytes)?;
        if digest.v == VERSION { Ok(digest) } else { Err(WireError::Version(digest.v)) }
    }

    /// Whether this one was made after `other`: by a later coordinator, or later by the same one.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        (self.term, self.sequence) > (other.term, other.sequence)
    }

    /// The fullest node in comparison with the mean; 1 is level, and so is an empty fleet.
    pub fn imbalance(&self) -> f64 {
        if self.mean > 0.0 { self.max / self.mean } else { 1.0 }
    }
}

/// A digest and when it came, by the clock of the node that received it.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// What was heard.
    pub digest: &'a Digest,
    /// When.
    pub at: Instant,
}

impl Heard<'_> {
    /// Time since it came.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const LARGEST: f64 = 1_234_567_890.12;

    /// Every number as long as it can get in a fleet of 1,000 nodes with 1,000,000 connections each, for ten years.
    fn largest() -> Digest {
        let key = NodeKey::of(NodeId(Uuid::max()));
        Digest {
            term: 99_999_999,
            sequence: 999_999_999,
            ready: 1000,
            draining: 1000,
            starting: 1000,
            emptying: Some(1000),
            connections: 1_000_000_000,
            connections_max: 1_000_000,
            mean: LARGEST,
            max: LARGEST,
            level: LARGEST,
            arrivals: LARGEST,
            spare: Some(LARGEST),
            budget: LARGEST,
            excess: LARGEST,
            revision: "r".repeat(crate::report::REVISION_BYTES),
            pauses: Pause::KNOWN.to_vec(),
            open_set: true,
            placement_age_ms: Some(999_999_999),
            candidates: vec![key; crate::candidates::CANDIDATES],
            retire: vec![key; ORDERS_MAX],
            ..Digest::empty(0, 0)
        }
    }

    #[test]
    fn the_largest_digest_is_within_its_size_and_arrives_as_it_was_sent() {
        let bytes = largest().encode();
        assert!(bytes.len() <= DIGEST_BYTES, "{} bytes", bytes.len());
        assert_eq!(Digest::decode(&bytes).expect("what was encoded"), largest());
    }

    #[test]
    fn digests_of_older_and_newer_versions_are_read() {
        let old =
            br#"{"v":1,"term":2,"sequence":3,"ready":4,"draining":0,"starting":0,"connections":9,"connections_max":5}"#;
        let digest = Digest::decode(old).expect("the first format");
        assert_eq!((digest.connections, digest.imbalance(), digest.emptying), (9, 1.0, None));
        let newer = String::from_utf8(Digest::empty(1, 1).encode().to_vec()).expect("JSON is text");
        let newer = newer.replace(r#""pauses":[]"#, r#""pauses":["eclipse"],"later":1"#);
        assert_eq!(Digest::decode(newer.as_bytes()).expect("readable").pauses, [Pause::Unknown]);
        assert!(matches!(Digest::decode(newer.replace("\"v\":1", "\"v\":2").as_bytes()), Err(WireError::Version(2))));
    }

    #[test]
    fn a_short_name_is_the_beginning_of_the_id() {
        let id = NodeId(Uuid::from_u128(0x0189_abcd_1234_4567_89ab_cdef_0123_4567));
        let key = NodeKey::of(id);
        assert_eq!(key.to_string(), "0189abcd-1234");
        assert!(id.to_string().starts_with(&key.to_string()));
        assert_eq!(serde_json::from_str::<NodeKey>("\"0189abcd-1234\"").expect("a name"), key);
        for wrong in ["\"\"", "\"0189abcd1234\"", "\"+189abcd-1234\"", "\"0189abcd-12345\"", "7"] {
            assert!(serde_json::from_str::<NodeKey>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn later_terms_and_sequences_are_newer() {
        let digest = Digest::empty;
        assert!(digest(2, 1).is_newer_than(&digest(1, 9)));
        assert!(digest(2, 2).is_newer_than(&digest(2, 1)));
        assert!(!digest(2, 1).is_newer_than(&digest(2, 1)));
    }
}
