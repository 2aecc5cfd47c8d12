//! Centrifuge client protocol v2: its messages and the two encodings of them, for both sides of a connection.
//!
//! Bytes come in and messages come out, or the other way round. There is no socket, no clock and no policy here; what a
//! command is worth is decided by the session.
//!
//! A WebSocket frame carries one or more messages: JSON texts separated by a newline, or Protobuf messages each behind
//! its varint length. The gateway decodes [`Command`]s and encodes [`Reply`]s, a client does the reverse.
//!
//! ```
//! use bytes::Bytes;
//! use protocol::{Encoding, Limits, Reply, decode_commands, encode_reply, frame_payload};
//!
//! let frame = Bytes::from_static(br#"{"id":1,"connect":{"name":"js"}}"#);
//! for command in decode_commands(Encoding::Json, &frame, &Limits::default()) {
//!     assert_eq!(command?.id, 1);
//! }
//! let mut out = Vec::new();
//! encode_reply(Encoding::Json, &Reply::default(), &mut out)?;
//! assert_eq!(frame_payload(Encoding::Json, &out), b"{}"); // a ping
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! In reading order: `messages` has the types, `limits` and `error` what can go wrong, `decode` and `encode` the frames;
//! `variants` is the table of what an envelope may carry, `json` and `protobuf` are the two encodings.
//!
//! Fields which the gateway has no use for (map subscriptions, shared poll, tag filters, compression dictionaries) are
//! absent from the types: they are skipped on input, like any unknown field, and never sent.

#![forbid(unsafe_code)]

mod decode;
mod encode;
mod error;
mod json;
mod limits;
mod messages;
mod protobuf;
mod variants;

pub use decode::{Commands, Replies, decode_commands, decode_replies};
pub use encode::{encode_command, encode_publication, encode_reply, frame_payload};
pub use error::{DecodeError, EncodeError};
pub use limits::Limits;
pub use messages::{
    ClientInfo, Command, Connect, ConnectRequest, ConnectResult, Disconnect, Error, HistoryRequest, HistoryResult,
    Join, Leave, Message, PingRequest, PingResult, PresenceRequest, PresenceResult, PresenceStatsRequest,
    PresenceStatsResult, Publication, PublishRequest, PublishResult, Push, PushBody, Refresh, RefreshRequest,
    RefreshResult, Reply, ReplyBody, Request, RpcRequest, RpcResult, SendRequest, StreamPosition, SubRefreshRequest,
    SubRefreshResult, Subscribe, SubscribeRequest, SubscribeResult, Unsubscribe, UnsubscribeRequest, UnsubscribeResult,
};

/// How messages are written, fixed for the life of a connection by the WebSocket subprotocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Encoding {
    /// Text frames, messages separated by a newline. Application payloads are JSON values, embedded in place.
    #[default]
    Json,
    /// Binary frames, each message behind its length as a varint. Application payloads are any bytes.
    Protobuf,
}
