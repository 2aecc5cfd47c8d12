//! What the server answers to a request that succeeded.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{ClientInfo, Publication};

/// The session is open (protocol section 2.2).
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ConnectResult {
    /// Unique id of this connection.
    pub client: String,
    /// Version of the server.
    pub version: String,
    /// The client has to refresh its token.
    pub expires: bool,
    /// Seconds until it should.
    pub ttl: u32,
    /// Application data.
    pub data: Bytes,
    /// Server-side subscriptions which are active now, by channel.
    pub subs: BTreeMap<String, SubscribeResult>,
    /// Seconds between pings of the server; 0 when it sends none.
    pub ping: u32,
    /// The client has to answer each ping.
    pub pong: bool,
    /// Secret id of the session; emulation transports only.
    pub session: String,
    /// Id of the node; emulation transports only.
    pub node: String,
    /// Time of the server in Unix milliseconds.
    pub time: i64,
}

/// The subscription is active (protocol section 2.3).
#[derive(Clone, PartialEq, prost::Message)]
pub struct SubscribeResult {
    /// The client has to refresh its subscription token.
    #[prost(bool, tag = "1")]
    pub expires: bool,
    /// Seconds until it should.
    #[prost(uint32, tag = "2")]
    pub ttl: u32,
    /// The client may recover from its position when it subscribes again.
    #[prost(bool, tag = "3")]
    pub recoverable: bool,
    /// Epoch of the stream.
    #[prost(string, tag = "6")]
    pub epoch: String,
    /// Recovered publications in ascending order of offset; empty unless `recovered`.
    #[prost(message, repeated, tag = "7")]
    pub publications: Vec<Publication>,
    /// Nothing was missed.
    #[prost(bool, tag = "8")]
    pub recovered: bool,
    /// Position in the stream (protocol section 4.4).
    #[prost(uint64, tag = "9")]
    pub offset: u64,
    /// The server watches the position of this subscription.
    #[prost(bool, tag = "10")]
    pub positioned: bool,
    /// Application data.
    #[prost(bytes = "bytes", tag = "11")]
    pub data: Bytes,
    /// The client had asked to recover.
    #[prost(bool, tag = "12")]
    pub was_recovering: bool,
    /// Payloads of this subscription are encoded as deltas.
    #[prost(bool, tag = "13")]
    pub delta: bool,
}

/// The subscription has ended (protocol section 2.3).
#[derive(Clone, PartialEq, prost::Message)]
pub struct UnsubscribeResult {}

/// The publication was accepted (protocol section 2.5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct PublishResult {}

/// Who is subscribed to a channel (protocol section 2.5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct PresenceResult {
    /// The subscribed connections by their id. Written to JSON even when empty.
    #[prost(btree_map = "string, message", tag = "1")]
    pub presence: BTreeMap<String, ClientInfo>,
}

/// How many are subscribed to a channel (protocol section 2.5). Both numbers are written to JSON even when zero.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PresenceStatsResult {
    /// Connections.
    #[prost(uint32, tag = "1")]
    pub num_clients: u32,
    /// Distinct user ids; the empty one counts.
    #[prost(uint32, tag = "2")]
    pub num_users: u32,
}

/// Part of the history of a channel (protocol section 2.5). All fields are written to JSON even when empty.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HistoryResult {
    /// The publications, in the direction asked for.
    #[prost(message, repeated, tag = "1")]
    pub publications: Vec<Publication>,
    /// Epoch of the stream.
    #[prost(string, tag = "2")]
    pub epoch: String,
    /// Offset of the newest publication of the stream.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
}

/// Answer to a ping command (protocol section 2.1).
#[derive(Clone, PartialEq, prost::Message)]
pub struct PingResult {}

/// What the method returned (protocol section 2.5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct RpcResult {
    /// The payload.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
}

/// The connection token was accepted (protocol section 2.5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct RefreshResult {
    /// Id of this connection.
    #[prost(string, tag = "1")]
    pub client: String,
    /// Version of the server.
    #[prost(string, tag = "2")]
    pub version: String,
    /// The client has to refresh its token again.
    #[prost(bool, tag = "3")]
    pub expires: bool,
    /// Seconds until it should.
    #[prost(uint32, tag = "4")]
    pub ttl: u32,
}

/// The subscription token was accepted (protocol section 2.5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct SubRefreshResult {
    /// The client has to refresh its token again.
    #[prost(bool, tag = "1")]
    pub expires: bool,
    /// Seconds until it should.
    #[prost(uint32, tag = "2")]
    pub ttl: u32,
}
