//! The outermost messages: what a frame is made of (protocol section 2.1).

use super::{
    Connect, ConnectRequest, ConnectResult, Disconnect, HistoryRequest, HistoryResult, Join, Leave, Message,
    PingRequest, PingResult, PresenceRequest, PresenceResult, PresenceStatsRequest, PresenceStatsResult, Publication,
    PublishRequest, PublishResult, Refresh, RefreshRequest, RefreshResult, RpcRequest, RpcResult, SendRequest,
    SubRefreshRequest, SubRefreshResult, Subscribe, SubscribeRequest, SubscribeResult, Unsubscribe, UnsubscribeRequest,
    UnsubscribeResult,
};

/// One message of a client. The default value, entirely empty, is a pong.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Command {
    /// Chosen by the client and echoed in the reply; 0 for what expects none, `send` and pong.
    pub id: u32,
    /// What is asked for. `None` with a non-zero id is a request this protocol does not know.
    pub request: Option<Request>,
}

/// One message of the server. The default value, entirely empty, is a ping.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Reply {
    /// Id of the command answered; 0 for pushes and pings.
    pub id: u32,
    /// The answer or the push. A success always has its result, even when all of that is absent.
    pub body: Option<ReplyBody>,
}

/// Why a command failed (protocol section 5.1).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Error {
    /// Number of the error.
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// Text for people.
    #[prost(string, tag = "2")]
    pub message: String,
    /// Trying again may help.
    #[prost(bool, tag = "3")]
    pub temporary: bool,
}

/// What the server says unasked.
#[derive(Clone, PartialEq, Debug)]
pub struct Push {
    /// The channel it is about; empty when it is about the connection.
    pub channel: String,
    /// What happened.
    pub body: PushBody,
}

/// What a command asks for. The variants stand in the order in which they are honoured when a command has several,
/// which is not the order of their field numbers (protocol section 1.4).
#[derive(Clone, PartialEq, Debug)]
pub enum Request {
    /// Opens the session.
    Connect(ConnectRequest),
    /// Subscribes to a channel.
    Subscribe(SubscribeRequest),
    /// Ends a subscription.
    Unsubscribe(UnsubscribeRequest),
    /// Publishes into a channel.
    Publish(PublishRequest),
    /// Asks who is subscribed.
    Presence(PresenceRequest),
    /// Asks how many are subscribed.
    PresenceStats(PresenceStatsRequest),
    /// Reads the history of a channel.
    History(HistoryRequest),
    /// Calls a method of the server.
    Rpc(RpcRequest),
    /// A message to the server without a reply.
    Send(SendRequest),
    /// A new connection token.
    Refresh(RefreshRequest),
    /// A new subscription token.
    SubRefresh(SubRefreshRequest),
    /// A ping of the client. The reference order leaves it out, so it comes last.
    Ping(PingRequest),
}

/// What a reply carries.
#[derive(Clone, PartialEq, Debug)]
pub enum ReplyBody {
    /// The command failed.
    Error(Error),
    /// Not an answer at all.
    Push(Push),
    /// The session is open.
    Connect(ConnectResult),
    /// The subscription is active.
    Subscribe(SubscribeResult),
    /// The subscription has ended.
    Unsubscribe(UnsubscribeResult),
    /// The publication was accepted.
    Publish(PublishResult),
    /// Who is subscribed.
    Presence(PresenceResult),
    /// How many are subscribed.
    PresenceStats(PresenceStatsResult),
    /// Part of the history.
    History(HistoryResult),
    /// Answer to a ping command.
    Ping(PingResult),
    /// What the method returned.
    Rpc(RpcResult),
    /// The connection token was accepted.
    Refresh(RefreshResult),
    /// The subscription token was accepted.
    SubRefresh(SubRefreshResult),
}

/// What a push tells.
#[derive(Clone, PartialEq, Debug)]
pub enum PushBody {
    /// A publication of the channel.
    Publication(Publication),
    /// Somebody subscribed.
    Join(Join),
    /// Somebody left.
    Leave(Leave),
    /// The server ended the subscription.
    Unsubscribe(Unsubscribe),
    /// A message outside of any channel.
    Message(Message),
    /// The server subscribed this connection.
    Subscribe(Subscribe),
    /// The connect reply of unidirectional transports.
    Connect(Connect),
    /// The connection is about to close.
    Disconnect(Disconnect),
    /// The lifetime of the connection changed.
    Refresh(Refresh),
}
