//! What goes into a session and what comes out. Both are plain data; whoever drives the session carries the outputs
//! out, in their order, and answers each request with exactly one input.

use std::collections::BTreeMap;
use std::sync::Arc;

use backplane::{
    ChannelName, ClientId, ClientInfo, Epoch, HistoryPage, HistoryQuery, Offset, PresenceStats, Publication, UserId,
};
use bytes::Bytes;
use protocol::{Command, Reply};

use crate::close::CloseCode;
use crate::proxy::{ProxyAnswer, ProxyCall, PublishOptions};
use crate::time::Tick;

/// Everything that can happen to a session.
#[derive(Debug)]
pub enum Input {
    /// One decoded command of a client frame. While [`crate::Session::wants_commands`] is false the driver should
    /// stop reading; commands of a frame already read are queued in order.
    Command(Command),
    /// The client's frame could not be decoded: closes with 3501. Commands decoded before it were given already.
    Undecodable,
    /// The instant of [`crate::Session::next_deadline`] has come. Harmless when it has not.
    Deadline,
    /// Answer to [`Output::VerifyConnection`].
    ConnectionVerified(Result<ConnectionGrant, TokenError>),
    /// Answer to [`Output::Resume`].
    Resumed(Resumption),
    /// The presence entry asked for by [`Output::Join`] took the place of one that this client had left behind and whose
    /// leave nobody has seen: no join is to be announced. Comes before the [`Input::Joined`] of the same channel.
    Adopted {
        /// The channel.
        channel: ChannelName,
    },
    /// Answer to [`Output::VerifyRefresh`].
    RefreshVerified {
        /// The id of the command.
        id: u32,
        /// What the new token grants.
        result: Result<ConnectionGrant, TokenError>,
    },
    /// Answer to [`Output::VerifySubscription`].
    SubscriptionVerified {
        /// The id of the command.
        id: u32,
        /// `Subscribe` or `SubRefresh`, as asked.
        purpose: TokenPurpose,
        /// The channel of the command.
        channel: ChannelName,
        /// What the token grants.
        result: Result<SubscriptionGrant, TokenError>,
    },
    /// Answer to [`Output::Join`]. When it is `Ok`, the driver delivers the channel's later publications to this
    /// connection, after the outputs of this very call. It is due even when the session has closed meanwhile: the
    /// session then leaves the channel again.
    Joined {
        /// The channel, as the hub interned it (the session keeps this copy).
        channel: ChannelName,
        /// The position and recovered publications.
        result: Result<Joined, OperationError>,
    },
    /// Answer to [`Output::Publish`].
    Published {
        /// The id of the command.
        id: u32,
        /// Whether it was accepted.
        result: Result<(), OperationError>,
    },
    /// Answer to [`Output::ReadPresence`].
    Presence {
        /// The id of the command.
        id: u32,
        /// The members of the channel.
        result: Result<Vec<Arc<ClientInfo>>, OperationError>,
    },
    /// Answer to [`Output::ReadPresenceStats`].
    PresenceStats {
        /// The id of the command.
        id: u32,
        /// The counts.
        result: Result<PresenceStats, OperationError>,
    },
    /// Answer to [`Output::ReadHistory`].
    History {
        /// The id of the command.
        id: u32,
        /// What was asked for, echoed.
        query: HistoryQuery,
        /// The page.
        result: Result<HistoryPage, OperationError>,
    },
    /// Answer to [`Output::Proxy`].
    Proxied(Box<ProxyAnswer>),
    /// The server API subscribes this connection to a channel. Ignored where it cannot be done: already subscribed, too
    /// many channels, unknown namespace, expired.
    ServerSubscribe(Box<ServerSubscribe>),
    /// The server API (or an operator) ends a subscription; ignored when there is none. `code` is in 2000..=2999.
    ServerUnsubscribe {
        /// The channel.
        channel: ChannelName,
        /// The unsubscribe code of protocol section 5.2.
        code: u32,
        /// Text beside the code, never empty.
        reason: &'static str,
    },
    /// The server API changes the lifetime of the connection.
    ServerRefresh {
        /// Close with 3005 now.
        expired: bool,
        /// New expiry in Unix seconds; `None` never expires. Ignored when `expired`.
        expire_at: Option<i64>,
        /// New connection info.
        info: Option<Bytes>,
    },
    /// Close this connection with a code at once: slow consumer, undeliverable payload, broken framing.
    Close(CloseCode),
    /// Close this connection with a code once every command accepted so far is answered, or after
    /// [`crate::Settings::close_patience`]: drain, API disconnect, whatever else is nobody's fault. Commands that come
    /// later are discarded. A second one changes nothing, [`Input::Close`] still closes at once.
    CloseWhenAnswered(CloseCode),
    /// The hub lost the channel's position: 2500 push for a client-side subscription, close 3010 for a server-side
    /// one. The hub has removed the subscription already: no [`Output::Leave`] with `hub: true` follows.
    PositionLost {
        /// The channel.
        channel: ChannelName,
    },
    /// The socket is gone. Outputs are only the clean-up (`Leave`, `Announce`, `Detach`, `Linger`).
    Gone,
    /// The client has closed the connection of its own accord, so that others need not wait for it. Otherwise like
    /// [`Input::Gone`].
    Left,
}

/// Everything a session can ask of its driver.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// Send one reply or push, after everything sent before.
    Send(Reply),
    /// Verify the connection token. Answer: [`Input::ConnectionVerified`].
    VerifyConnection {
        /// The compact JWT.
        token: String,
    },
    /// Look up what the client left behind, for a connection that asked for a session that outlives it. Comes once, when
    /// the user is known and before [`Output::Established`]. Answer: [`Input::Resumed`].
    Resume {
        /// Who it is. Another user's session is not to be found.
        user: UserId,
        /// Its connection info, to be kept.
        info: Bytes,
    },
    /// The connection of a session ends: this is what it had, to be kept for its return. Comes once, before the
    /// clean-up.
    Detach(Vec<Kept>),
    /// Keep the client's presence entry for the time in which it may come back. Whoever ends it announces the leave.
    Linger {
        /// The channel.
        channel: ChannelName,
    },
    /// Verify the token of a `refresh` command. Answer: [`Input::RefreshVerified`].
    VerifyRefresh {
        /// The id of the command.
        id: u32,
        /// The compact JWT.
        token: String,
    },
    /// Verify a subscription token. Answer: [`Input::SubscriptionVerified`].
    VerifySubscription {
        /// The id of the command.
        id: u32,
        /// `Subscribe` or `SubRefresh`; echoed.
        purpose: TokenPurpose,
        /// The channel of the command; echoed.
        channel: ChannelName,
        /// The compact JWT.
        token: String,
    },
    /// The connection is authenticated: index it by user, count it. Comes once, before any `Join`.
    Established {
        /// Who it is.
        info: Arc<ClientInfo>,
    },
    /// Add presence (if asked), then join the channel in the hub. Answer: [`Input::Joined`]. When it fails half-way the
    /// driver leaves the presence entry alone; the session asks for its removal by a `Leave` with `hub: false`.
    Join(Join),
    /// Leave a channel.
    Leave {
        /// The channel.
        channel: ChannelName,
        /// Remove the subscription from the hub (false when the hub did so itself).
        hub: bool,
        /// Remove the presence entry.
        presence: bool,
    },
    /// Publish a join or leave event of this client, without an answer.
    Announce {
        /// The channel.
        channel: ChannelName,
        /// Who.
        info: Arc<ClientInfo>,
        /// Join or leave.
        joined: bool,
    },
    /// Publish on behalf of the client; the channel's namespace decides about history. Answer: [`Input::Published`].
    Publish {
        /// The id of the command.
        id: u32,
        /// The channel.
        channel: ChannelName,
        /// The payload.
        data: Bytes,
        /// The publisher's info to attach.
        info: Arc<ClientInfo>,
        /// What the application added to it; `None` when it was not asked or had nothing to add.
        options: Option<Box<PublishOptions>>,
    },
    /// Read the members of a channel. Answer: [`Input::Presence`].
    ReadPresence {
        /// The id of the command.
        id: u32,
        /// The channel.
        channel: ChannelName,
    },
    /// Count the members of a channel. Answer: [`Input::PresenceStats`].
    ReadPresenceStats {
        /// The id of the command.
        id: u32,
        /// The channel.
        channel: ChannelName,
    },
    /// Read a part of the stream. Answer: [`Input::History`].
    ReadHistory {
        /// The id of the command.
        id: u32,
        /// The channel.
        channel: ChannelName,
        /// Which part.
        query: HistoryQuery,
    },
    /// Ask the application. Answer: [`Input::Proxied`], also when it cannot be asked.
    Proxy(Box<ProxyCall>),
    /// Headers that the client claims to have sent (protocol section 9.1), for the calls of proxies that come after
    /// this. Untrusted: only what is configured may be kept of them. Without an answer.
    EmulatedHeaders(BTreeMap<String, String>),
    /// Close the socket with this code after everything sent before was flushed (3008: without). Comes at most once,
    /// and nothing but clean-up follows.
    Close(CloseCode),
}

/// What became of the wish for a session that outlives its connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Resumption {
    /// There is none: when the connection ends, the client is gone.
    Without,
    /// There is one from now on.
    Fresh,
    /// The client is back.
    Back(Box<Back>),
}

/// What a client that comes back has again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Back {
    /// Its id, as before.
    pub client: ClientId,
    /// The subscriptions that the server API had given it.
    pub subscriptions: Vec<ServerSubscribe>,
}

/// One subscription as it is kept for the client's return.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// The channel.
    pub channel: ChannelName,
    /// It has a presence entry.
    pub presence: bool,
    /// Made by the server API rather than by the client or its token: nobody else would make it again.
    pub dynamic: bool,
    /// What the client is called in this channel, beside its connection info.
    pub info: Bytes,
    /// When it ends, grace included; `None` never.
    pub ends: Option<Tick>,
    /// The properties that it has, whoever decided on them.
    pub overrides: Overrides,
}

/// What a token is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenPurpose {
    /// A `subscribe` command.
    Subscribe,
    /// A `sub_refresh` command.
    SubRefresh,
}

/// A request to take part in a channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Join {
    /// The channel.
    pub channel: ChannelName,
    /// Add this presence entry before joining.
    pub presence: Option<Arc<ClientInfo>>,
    /// Deliver join and leave events to this subscription.
    pub push_join_leave: bool,
    /// Keep the position: lost deliveries are repaired or told.
    pub positioned: bool,
    /// Recover from here.
    pub recover: Option<RecoverFrom>,
    /// The namespace keeps history; the answer then carries a position.
    pub has_history: bool,
}

/// Where a client wants to continue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoverFrom {
    /// The last epoch the client knows; may be unknown (empty).
    pub epoch: Epoch,
    /// The last offset the client processed.
    pub offset: Offset,
    /// How publications are chosen.
    pub mode: RecoverMode,
}

/// How missed publications are chosen (protocol sections 4.4 and 4.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecoverMode {
    /// All of them, or none and `recovered: false`.
    Stream,
    /// Only the latest publication.
    Cache,
}

/// The hub's answer to a join.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Joined {
    /// Epoch and top offset at the moment of joining; `None` without history.
    pub position: Option<backplane::StreamPosition>,
    /// Whether everything since [`RecoverFrom`] is in `publications`. Always false without `recover`.
    pub recovered: bool,
    /// The missed publications, ascending; empty unless `recovered`.
    pub publications: Vec<Arc<Publication>>,
}

/// A subscription made by the server API (protocol section 7.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerSubscribe {
    /// The channel.
    pub channel: ChannelName,
    /// `chan_info` of the client in this channel.
    pub info: Bytes,
    /// Data for the `subscribe` push.
    pub data: Bytes,
    /// Recover missed publications since here (they are pushed after the `subscribe` push).
    pub recover_since: Option<backplane::StreamPosition>,
    /// Subscription expiry, Unix seconds.
    pub expire_at: Option<i64>,
    /// Options that differ from the namespace.
    pub overrides: Overrides,
}

/// Options of one subscription that differ from its namespace (protocol section 6.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Overrides {
    /// `presence`
    pub presence: Option<bool>,
    /// `join_leave`
    pub join_leave: Option<bool>,
    /// `force_recovery`
    pub force_recovery: Option<bool>,
    /// `force_positioning`
    pub force_positioning: Option<bool>,
    /// `force_push_join_leave`
    pub force_push_join_leave: Option<bool>,
}

/// What a valid connection token says (protocol section 6.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectionGrant {
    /// `sub`; empty for an anonymous user.
    pub user: UserId,
    /// When the connection expires, Unix seconds (`expire_at`, else `exp`); `None` never.
    pub expire_at: Option<i64>,
    /// `info` or decoded `b64info`.
    pub info: Bytes,
    /// `subs`, or `channels` with empty options.
    pub subs: BTreeMap<String, SubscriptionOptions>,
    /// `meta`
    pub meta: Bytes,
}

/// Options of a server-side subscription in a connection token.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SubscriptionOptions {
    /// `info` or decoded `b64info`.
    pub info: Bytes,
    /// `data` or decoded `b64data`.
    pub data: Bytes,
    /// `override`
    pub overrides: Overrides,
}

/// What a valid subscription token says (protocol section 6.4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubscriptionGrant {
    /// `sub`; must equal the connection's user.
    pub user: UserId,
    /// `channel`; must equal the requested one.
    pub channel: String,
    /// `client`, a legacy binding to one client id.
    pub client: Option<String>,
    /// When the subscription expires, Unix seconds; `None` never.
    pub expire_at: Option<i64>,
    /// Info, data and overrides.
    pub options: SubscriptionOptions,
}

/// Why a token was not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TokenError {
    /// Malformed, wrong signature, algorithm, audience, issuer or claim. The text is for the log, never for the client.
    #[error("invalid token: {0}")]
    Invalid(String),
    /// `exp` has passed or `nbf` has not come (no leeway).
    #[error("token expired")]
    Expired,
    /// It could not be verified now (keys could not be fetched); worth a retry.
    #[error("token cannot be verified now: {0}")]
    Unavailable(String),
}

/// Why an operation of the hub or backplane failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OperationError {
    /// The backplane failed or did not answer in time: error 100, temporary.
    #[error("{0}")]
    Unavailable(String),
    /// The payload is refused: error 107.
    #[error("bad request")]
    BadRequest,
}
