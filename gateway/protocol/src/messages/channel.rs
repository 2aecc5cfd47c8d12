//! Publications, and what else the server tells a client unasked (protocol section 2.4).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::SubscribeResult;

/// One message of a channel.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Publication {
    /// The payload.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
    /// Who published it, when a client connection did.
    #[prost(message, optional, tag = "5")]
    pub info: Option<ClientInfo>,
    /// Its offset in the stream of the channel; 0 in a channel without history.
    #[prost(uint64, tag = "6")]
    pub offset: u64,
    /// Labels given by the publisher.
    #[prost(btree_map = "string, string", tag = "7")]
    pub tags: BTreeMap<String, String>,
    /// `data` is a delta against the payload before.
    #[prost(bool, tag = "8")]
    pub delta: bool,
}

/// One connection, as other clients see it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClientInfo {
    /// Id of the user, empty for an anonymous one. Written to JSON even when empty.
    #[prost(string, tag = "1")]
    pub user: String,
    /// Id of the connection. Written to JSON even when empty.
    #[prost(string, tag = "2")]
    pub client: String,
    /// Information from the connection token.
    #[prost(bytes = "bytes", tag = "3")]
    pub conn_info: Bytes,
    /// Information from the subscription token.
    #[prost(bytes = "bytes", tag = "4")]
    pub chan_info: Bytes,
}

/// Identity of a stream and a place in it; the two are only ever compared together.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamPosition {
    /// Offset in the stream.
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    /// Identity of the stream.
    #[prost(string, tag = "2")]
    pub epoch: String,
}

/// Somebody subscribed to the channel.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Join {
    /// Who.
    #[prost(message, optional, tag = "1")]
    pub info: Option<ClientInfo>,
}

/// Somebody left the channel.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Leave {
    /// Who.
    #[prost(message, optional, tag = "1")]
    pub info: Option<ClientInfo>,
}

/// The server ended the subscription.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Unsubscribe {
    /// 2000 to 2499 for good, 2500 to 2999 to subscribe again. Zero must not be sent.
    #[prost(uint32, tag = "2")]
    pub code: u32,
    /// Text beside the code.
    #[prost(string, tag = "3")]
    pub reason: String,
}

/// The server subscribed this connection to the channel.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Subscribe {
    /// The client may recover from its position when it connects again.
    #[prost(bool, tag = "1")]
    pub recoverable: bool,
    /// Epoch of the stream.
    #[prost(string, tag = "4")]
    pub epoch: String,
    /// Position in the stream.
    #[prost(uint64, tag = "5")]
    pub offset: u64,
    /// The server watches the position of this subscription.
    #[prost(bool, tag = "6")]
    pub positioned: bool,
    /// Application data.
    #[prost(bytes = "bytes", tag = "7")]
    pub data: Bytes,
}

/// A message from the server outside of any channel.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Message {
    /// The payload.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
}

/// What a connect reply says, as a push; unidirectional transports only. The field numbers differ from
/// [`ConnectResult`](super::ConnectResult), the meanings do not (protocol section 2.2).
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Connect {
    /// Unique id of this connection.
    pub client: String,
    /// Version of the server.
    pub version: String,
    /// Application data.
    pub data: Bytes,
    /// Server-side subscriptions which are active now, by channel.
    pub subs: BTreeMap<String, SubscribeResult>,
    /// The client has to refresh its token.
    pub expires: bool,
    /// Seconds until it should.
    pub ttl: u32,
    /// Seconds between pings of the server; 0 when it sends none.
    pub ping: u32,
    /// The client has to answer each ping.
    pub pong: bool,
    /// Secret id of the session.
    pub session: String,
    /// Id of the node.
    pub node: String,
    /// Time of the server in Unix milliseconds.
    pub time: i64,
}

/// The server is about to close the connection; a WebSocket connection learns it from the close frame instead.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Disconnect {
    /// Close code (protocol section 5.3).
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// Text beside the code.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// The server changed the lifetime of the connection.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Refresh {
    /// The client has to refresh its token.
    #[prost(bool, tag = "1")]
    pub expires: bool,
    /// Seconds until it should.
    #[prost(uint32, tag = "2")]
    pub ttl: u32,
}
