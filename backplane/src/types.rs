//! Plain types shared by every backplane implementation and by the gateway's session and hub.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

/// Channels whose name begins with this belong to the gateway itself: no client and no server API call can name them.
pub const INTERNAL_PREFIX: char = '\u{1}';

/// The full name of a channel, namespace and prefixes included. Cheap to clone.
///
/// Nothing is normalised: two names are the same channel only if their bytes are equal (protocol section 8.1).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Arc<str>);

impl ChannelName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for ChannelName {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ChannelName {
    fn from(name: &str) -> Self {
        Self(Arc::from(name))
    }
}

impl From<String> for ChannelName {
    fn from(name: String) -> Self {
        Self(Arc::from(name))
    }
}

impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The id of an application user, as the token's `sub` names it. Empty for an anonymous user. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<str>);

impl UserId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for the anonymous user (empty id).
    pub fn is_anonymous(&self) -> bool {
        self.0.is_empty()
    }
}

impl Borrow<str> for UserId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for UserId {
    fn from(id: &str) -> Self {
        Self(Arc::from(id))
    }
}

impl From<String> for UserId {
    fn from(id: String) -> Self {
        Self(Arc::from(id))
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The id of a client connection (UUID v4 on the wire, protocol section 2.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ClientId(pub Uuid);

impl ClientId {
    /// A fresh random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Parses the textual form; `None` if it is not a UUID.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

/// A position number inside one channel's stream. Offsets of a channel increase and need **not** be contiguous.
/// They stay below 2^53 so that JavaScript clients keep them exactly.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Offset(pub u64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of a channel's stream: offsets of different epochs cannot be compared. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(Arc<str>);

impl Epoch {
    /// The epoch as text. Empty means "unknown", which only a client may claim.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True when nothing is known about the epoch.
    pub fn is_unknown(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Epoch {
    fn from(text: &str) -> Self {
        Self(Arc::from(text))
    }
}

impl From<String> for Epoch {
    fn from(text: String) -> Self {
        Self(Arc::from(text))
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// A place in a channel's stream. Epoch and offset mean something only together.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct StreamPosition {
    /// Which stream.
    pub epoch: Epoch,
    /// The last offset seen; 0 when nothing was.
    pub offset: Offset,
}

/// Who a client is, as other clients see it in publications, presence and join/leave (protocol section 2.4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientInfo {
    /// The connection.
    pub client: ClientId,
    /// The user behind it.
    pub user: UserId,
    /// `info` of the connection token or proxy answer; empty when there is none.
    pub conn_info: Bytes,
    /// `info` of the subscription token or proxy answer; empty when there is none.
    pub chan_info: Bytes,
}

/// One message accepted into a channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publication {
    /// Position in the stream; `None` where the channel has no history or the publish skipped it.
    pub offset: Option<Offset>,
    /// The payload: JSON text or any bytes.
    pub data: Bytes,
    /// The publisher, only for publications made by a client connection.
    pub info: Option<Arc<ClientInfo>>,
    /// Free labels set by the server API.
    pub tags: BTreeMap<String, String>,
}

/// A stored publication together with the offset that was the channel's top before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredPublication {
    /// The publication; its `offset` is always `Some`.
    pub publication: Arc<Publication>,
    /// The offset before it in the same channel.
    pub previous: Previous,
}

impl StoredPublication {
    /// The offset of the publication.
    ///
    /// # Panics
    /// Never for a value built by a backplane: a stored publication always has an offset.
    pub fn offset(&self) -> Offset {
        self.publication.offset.expect("a stored publication has an offset")
    }
}

/// What a backplane knows of the publication before another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Previous {
    /// The previous offset; 0 for the first publication of an epoch.
    Known(Offset),
    /// It cannot be told (its predecessor has expired on NATS); treat as a possible gap.
    Unknown,
}

/// What is to be published.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NewPublication {
    /// The payload.
    pub data: Bytes,
    /// The publisher, if a client connection.
    pub info: Option<Arc<ClientInfo>>,
    /// Free labels.
    pub tags: BTreeMap<String, String>,
}

/// How a channel keeps its stream. A channel without these options has no history and delivers at most once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistoryOptions {
    /// How many publications are kept at most; at least 1.
    pub size: usize,
    /// A publication is readable at least this long after it was published, and at most this long after the last one.
    pub ttl: Duration,
    /// How long epoch and top offset outlive the last use; at least `ttl`.
    pub meta_ttl: Duration,
}

/// How one publish is to be carried out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PublishOptions {
    /// Store it in the channel's stream under these options; `None` fans out only, without an offset.
    pub history: Option<HistoryOptions>,
    /// A repeat with the same key within [`crate::IDEMPOTENCY_TTL`] returns the first result and publishes nothing.
    /// Scoped per channel.
    pub idempotency_key: Option<String>,
    /// With history: skip the publication when its version is not above the stored one (0: no check).
    pub version: u64,
    /// Versions are compared only when this is empty or equal to the stored one.
    pub version_epoch: String,
}

/// What became of a publish.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Published {
    /// Where it was stored; `None` without history. For a repeat the position of the first; for a skipped version
    /// the current top.
    pub position: Option<StreamPosition>,
    /// Whether this call published, or why it did not.
    pub outcome: PublishOutcome,
}

/// Whether a publish call stored and fanned out its message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PublishOutcome {
    /// It did.
    Published,
    /// The idempotency key was seen before.
    Repeated,
    /// The version was not above the stored one.
    Outdated,
}

/// Which part of a stream to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryQuery {
    /// Exclusive start; `None` reads from the oldest (forward) or newest (reverse).
    pub since: Option<StreamPosition>,
    /// At most this many publications; `Some(0)` reads only the position, `None` everything.
    pub limit: Option<usize>,
    /// Newest first.
    pub reverse: bool,
}

impl HistoryQuery {
    /// Only the top position.
    pub fn position() -> Self {
        Self { since: None, limit: Some(0), reverse: false }
    }

    /// Everything after a position, at most `limit` publications.
    pub fn since(position: StreamPosition, limit: usize) -> Self {
        Self { since: Some(position), limit: Some(limit), reverse: false }
    }
}

/// An answer to a [`HistoryQuery`], read in one atomic step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryPage {
    /// The channel's top at the time of the read. A channel that was never used gets a fresh epoch and offset 0.
    pub top: StreamPosition,
    /// The publications, in the order asked for.
    pub publications: Vec<StoredPublication>,
    /// Whether `publications` is everything after `since`, up to `top`, with nothing missing: the coverage rule
    /// ([`crate::coverage`]). `false` when `since` was `None` or the read was truncated by its limit.
    pub covered: bool,
}

/// How many subscribers a channel has (protocol section 2.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PresenceStats {
    /// Connections subscribed.
    pub num_clients: u32,
    /// Distinct users among them; the anonymous user counts as one.
    pub num_users: u32,
}

/// Somebody came or went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PresenceEvent {
    /// A client subscribed.
    Join(Arc<ClientInfo>),
    /// A client unsubscribed or disconnected.
    Leave(Arc<ClientInfo>),
}

/// What a backplane hands to the node for one channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// A publication without a position: deliver it, nothing can be checked.
    Unpositioned(Arc<Publication>),
    /// A publication of a stream: deliver it only in order.
    Positioned {
        /// The stream it belongs to.
        epoch: Epoch,
        /// The offset before it.
        previous: Previous,
        /// The publication; its `offset` is always `Some`.
        publication: Arc<Publication>,
    },
    /// Join or leave: at most once, no position.
    Presence(PresenceEvent),
}

/// Something happened after which live deliveries may be missing: positions must be compared again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Disturbance {
    /// One channel may have lost deliveries.
    Channel(ChannelName),
    /// Any channel may have: reconnect, failover, lag of the whole subscription.
    All,
}

/// Whether a backplane can be reached, and what it has done since the process started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// True while both calls and deliveries work, as far as is known: a silent loss shows within the liveness interval
    /// plus the time limit of a call.
    pub is_up: bool,
    /// Calls under way.
    pub calls_in_flight: u64,
    /// Calls that ended, failures included.
    pub calls: u64,
    /// Calls that failed, timeouts included.
    pub calls_failed: u64,
    /// Calls that were not answered in time.
    pub calls_timed_out: u64,
    /// Deliveries received for this node.
    pub deliveries: u64,
    /// Deliveries lost between the backplane's connection and the node because the node was too slow; repaired from
    /// history where there is one.
    pub deliveries_lost: u64,
    /// Deliveries received for channels that nobody here subscribes: on NATS, which delivers whole partitions.
    pub deliveries_unwanted: u64,
    /// Times that deliveries had to be restored on a new connection.
    pub restorations: u64,
    /// Channels subscribed on the backplane.
    pub channels: u64,
}

impl Status {
    /// That of a backplane which cannot be away.
    pub const ALWAYS_UP: Self = Self {
        is_up: true,
        calls_in_flight: 0,
        calls: 0,
        calls_failed: 0,
        calls_timed_out: 0,
        deliveries: 0,
        deliveries_lost: 0,
        deliveries_unwanted: 0,
        restorations: 0,
        channels: 0,
    };
}
