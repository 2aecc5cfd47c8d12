//! The messages of the protocol (protocol section 2).
//!
//! A value equal to the default of its type (zero, empty, false, `None`) means "absent" in both encodings. Application
//! payloads are [`bytes::Bytes`]: a JSON value's text on a JSON connection, any bytes on a Protobuf one, empty for none.

mod channel;
mod envelope;
mod maps;
mod requests;
mod results;

pub use channel::{
    ClientInfo, Connect, Disconnect, Join, Leave, Message, Publication, Refresh, StreamPosition, Subscribe, Unsubscribe,
};
pub use envelope::{Command, Error, Push, PushBody, Reply, ReplyBody, Request};
pub use requests::{
    ConnectRequest, HistoryRequest, PingRequest, PresenceRequest, PresenceStatsRequest, PublishRequest, RefreshRequest,
    RpcRequest, SendRequest, SubRefreshRequest, SubscribeRequest, UnsubscribeRequest,
};
pub use results::{
    ConnectResult, HistoryResult, PingResult, PresenceResult, PresenceStatsResult, PublishResult, RefreshResult,
    RpcResult, SubRefreshResult, SubscribeResult, UnsubscribeResult,
};
