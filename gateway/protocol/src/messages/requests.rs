//! What a client asks for.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::StreamPosition;

/// Opens the session; the first command of every connection (protocol section 2.2).
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ConnectRequest {
    /// The connection token, a compact JWT. Empty for an anonymous connection.
    pub token: String,
    /// Application data.
    pub data: Bytes,
    /// Positions from which server-side subscriptions recover, by channel. Only `recover`, `offset`, `epoch` and
    /// `delta` of an entry mean anything.
    pub subs: BTreeMap<String, SubscribeRequest>,
    /// Name of the SDK or application, such as `js`.
    pub name: String,
    /// Version of the application.
    pub version: String,
    /// HTTP headers which the client claims to have sent. Untrusted.
    pub headers: BTreeMap<String, String>,
}

/// Subscribes the connection to a channel (protocol section 2.3).
#[derive(Clone, PartialEq, prost::Message)]
pub struct SubscribeRequest {
    /// The channel.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// The subscription token, a compact JWT. Empty when the channel needs none.
    #[prost(string, tag = "2")]
    pub token: String,
    /// The client wants the publications after (`epoch`, `offset`).
    #[prost(bool, tag = "3")]
    pub recover: bool,
    /// Last epoch the client knows; may be empty.
    #[prost(string, tag = "6")]
    pub epoch: String,
    /// Last offset the client has processed.
    #[prost(uint64, tag = "7")]
    pub offset: u64,
    /// Application data.
    #[prost(bytes = "bytes", tag = "8")]
    pub data: Bytes,
    /// The client asks for positioning.
    #[prost(bool, tag = "9")]
    pub positioned: bool,
    /// The client asks for recovery.
    #[prost(bool, tag = "10")]
    pub recoverable: bool,
    /// The client asks for join and leave pushes.
    #[prost(bool, tag = "11")]
    pub join_leave: bool,
    /// Requested delta type; `fossil` is the only one that exists.
    #[prost(string, tag = "12")]
    pub delta: String,
    /// Abilities of the client as bits: 1 for channel compaction, 2 for error 112 instead of `recovered=false`.
    #[prost(int64, tag = "14")]
    pub flag: i64,
    /// Kind of subscription; 0 is a stream, others are map subscriptions and shared poll.
    #[prost(int32, tag = "15")]
    pub r#type: i32,
}

/// Ends a subscription (protocol section 2.3).
#[derive(Clone, PartialEq, prost::Message)]
pub struct UnsubscribeRequest {
    /// The channel.
    #[prost(string, tag = "1")]
    pub channel: String,
}

/// Publishes into a channel (protocol section 2.5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct PublishRequest {
    /// The channel.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// The payload.
    #[prost(bytes = "bytes", tag = "2")]
    pub data: Bytes,
    /// 0 for a stream, 1 for a map.
    #[prost(int32, tag = "3")]
    pub r#type: i32,
}

/// Asks who is subscribed to a channel (protocol section 2.5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct PresenceRequest {
    /// The channel.
    #[prost(string, tag = "1")]
    pub channel: String,
}

/// Asks how many are subscribed to a channel (protocol section 2.5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct PresenceStatsRequest {
    /// The channel.
    #[prost(string, tag = "1")]
    pub channel: String,
}

/// Reads the history of a channel (protocol section 2.5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct HistoryRequest {
    /// The channel.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// Publications wanted; 0 asks for the stream position alone, a negative number sets no limit.
    #[prost(int32, tag = "7")]
    pub limit: i32,
    /// Where to start, itself excluded; `None` for the end of the stream that the direction starts from.
    #[prost(message, optional, tag = "8")]
    pub since: Option<StreamPosition>,
    /// Newest first.
    #[prost(bool, tag = "9")]
    pub reverse: bool,
}

/// Keeps the connection alive by hand; no SDK sends it (protocol section 2.1).
#[derive(Clone, PartialEq, prost::Message)]
pub struct PingRequest {}

/// A message to the server that expects no reply (protocol section 2.5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct SendRequest {
    /// The payload.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
}

/// Calls a method of the server (protocol section 2.5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct RpcRequest {
    /// The payload.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    /// Name of the method; may be empty.
    #[prost(string, tag = "2")]
    pub method: String,
}

/// Brings a new connection token before the old one expires (protocol section 2.5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct RefreshRequest {
    /// The connection token, a compact JWT.
    #[prost(string, tag = "1")]
    pub token: String,
}

/// Brings a new subscription token before the old one expires (protocol section 2.5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct SubRefreshRequest {
    /// The channel.
    #[prost(string, tag = "1")]
    pub channel: String,
    /// The subscription token, a compact JWT.
    #[prost(string, tag = "2")]
    pub token: String,
    /// 0 to refresh; other values belong to shared poll.
    #[prost(int32, tag = "3")]
    pub r#type: i32,
}
