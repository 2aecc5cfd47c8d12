//! Feeds a session and writes down what it asks for: replies and pushes as wire JSON, everything else in a few words.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backplane::{
    ChannelName, ClientId, Epoch, HistoryOptions, HistoryPage, HistoryQuery, Offset, Previous, Publication,
    StoredPublication, StreamPosition,
};
use bytes::Bytes;
use protocol::{Encoding, Limits, Reply, decode_commands, encode_reply};

use crate::Session;
use crate::channels::{ChannelOptions, ChannelSyntax, Channels};
use crate::io::{
    ConnectionGrant, Input, Joined, Kept, OperationError, Output, Overrides, RecoverMode, Resumption,
    SubscriptionGrant, SubscriptionOptions, TokenError, TokenPurpose,
};
use crate::proxy::{ProxyCall, ProxyEvent};
use crate::settings::{Context, Settings};
use crate::time::{Now, Tick};

pub const CLIENT: &str = "80000000-0000-4000-8000-000000000001";

/// A session in a world of its own, and its clock.
pub struct World {
    pub settings: Settings,
    pub channels: Channels,
    pub now: Now,
    pub session: Session,
}

pub fn history() -> Option<HistoryOptions> {
    let ttl = Duration::from_secs(60);
    Some(HistoryOptions { size: 10, ttl, meta_ttl: ttl })
}

/// Channels without a namespace are open to users; `log` keeps history and recovers, `room` has presence, join and
/// leave, `closed` allows nothing.
pub fn channels() -> Channels {
    let open = ChannelOptions {
        allow_subscribe_for_client: true,
        allow_subscribe_for_anonymous: true,
        ..ChannelOptions::default()
    };
    let log = ChannelOptions { history: history(), force_recovery: true, ..open.clone() };
    let room = ChannelOptions {
        presence: true,
        join_leave: true,
        force_push_join_leave: true,
        allow_user_limited_channels: true,
        ..open.clone()
    };
    channels_of([("log", log), ("room", room), ("closed", ChannelOptions::default())], Some(open))
}

pub fn channels_of<const N: usize>(
    namespaces: [(&str, ChannelOptions); N],
    without: Option<ChannelOptions>,
) -> Channels {
    let namespaces = namespaces.map(|(name, options)| (name.to_owned(), options));
    Channels::new(without, namespaces, ChannelSyntax::default()).expect("the options of the test are valid")
}

impl World {
    pub fn new() -> Self {
        Self::with(Settings::default())
    }

    pub fn with(settings: Settings) -> Self {
        let settings = Settings { server_version: "v".to_owned(), ..settings };
        let channels = channels();
        let now = Now { tick: Tick(1_000), unix: 10_000 };
        let client = ClientId::parse(CLIENT).expect("a UUID");
        let session = Session::new(&Context { settings: &settings, channels: &channels }, now, client);
        Self { settings, channels, now, session }
    }

    /// A world where `insecure` or anonymous clients are let in.
    pub fn anonymous() -> Self {
        Self::with(Settings { allow_anonymous: true, ..Settings::default() })
    }

    /// A connected user `u` with a session.
    pub fn with_session() -> Self {
        let mut world = Self::resumable();
        world.send(r#"{"id":1,"connect":{"token":"t"}}"#);
        world.give(Input::ConnectionVerified(Ok(grant("u"))));
        world.give(Input::Resumed(Resumption::Fresh));
        assert!(world.session.is_established());
        world
    }

    /// A client that asks for a session.
    pub fn resumable() -> Self {
        Self::new().resuming()
    }

    /// This world with a client that asks for a session.
    pub fn resuming(mut self) -> Self {
        let ctx = Context { settings: &self.settings, channels: &self.channels };
        self.session = Session::resumable(&ctx, self.now, self.session.client());
        self
    }

    /// A connected user `u`.
    pub fn open() -> Self {
        Self::new().connected()
    }

    /// Connects user `u`, whose token names no channels and does not expire.
    pub fn connected(mut self) -> Self {
        self.send(r#"{"id":1,"connect":{"token":"t"}}"#);
        self.give(Input::ConnectionVerified(Ok(grant("u"))));
        assert!(self.session.is_established());
        self
    }

    pub fn handle(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        let ctx = Context { settings: &self.settings, channels: &self.channels };
        self.session.handle(&ctx, self.now, input, &mut out);
        out
    }

    pub fn give(&mut self, input: Input) -> Vec<String> {
        self.handle(input).iter().map(show).collect()
    }

    /// The commands of one frame of a JSON client.
    pub fn send(&mut self, frame: &str) -> Vec<String> {
        let mut out = Vec::new();
        let bytes = Bytes::copy_from_slice(frame.as_bytes());
        for command in decode_commands(Encoding::Json, &bytes, &Limits::default()) {
            out.extend(self.handle(command.map_or(Input::Undecodable, Input::Command)));
        }
        out.iter().map(show).collect()
    }

    /// Lets time pass and visits the session at each of its deadlines.
    pub fn pass(&mut self, time: Duration) -> Vec<String> {
        let end = self.now.tick.after(time);
        let mut out = Vec::new();
        while let Some(deadline) = self.session.next_deadline().filter(|deadline| *deadline <= end) {
            self.advance_to(deadline);
            out.extend(self.give(Input::Deadline));
            let next = self.session.next_deadline();
            assert!(next.is_none_or(|next| next > self.now.tick), "a deadline that does not move");
        }
        self.advance_to(end);
        out
    }

    /// Both clocks of a test go together.
    pub fn advance_to(&mut self, tick: Tick) {
        self.now = Now { tick, unix: 9_999 + i64::try_from(tick.0 / 1_000).expect("a test in our century") };
    }

    /// Subscribes without a token and with the hub's consent.
    pub fn subscribe(&mut self, channel: &str) -> Vec<String> {
        self.send(&format!(r#"{{"id":90,"subscribe":{{"channel":"{channel}"}}}}"#));
        self.joined(channel, Joined::default())
    }

    pub fn joined(&mut self, channel: &str, joined: Joined) -> Vec<String> {
        self.give(Input::Joined { channel: channel.into(), result: Ok(joined) })
    }

    pub fn join_failed(&mut self, channel: &str) -> Vec<String> {
        self.give(Input::Joined { channel: channel.into(), result: Err(unavailable()) })
    }

    pub fn verified(&mut self, id: u32, channel: &str, result: Result<SubscriptionGrant, TokenError>) -> Vec<String> {
        let purpose = TokenPurpose::Subscribe;
        self.give(Input::SubscriptionVerified { id, purpose, channel: channel.into(), result })
    }

    pub fn sub_refreshed(
        &mut self,
        id: u32,
        channel: &str,
        result: Result<SubscriptionGrant, TokenError>,
    ) -> Vec<String> {
        let purpose = TokenPurpose::SubRefresh;
        self.give(Input::SubscriptionVerified { id, purpose, channel: channel.into(), result })
    }
}

pub fn unavailable() -> OperationError {
    OperationError::Unavailable("backplane down".to_owned())
}

pub fn key_server_down() -> TokenError {
    TokenError::Unavailable("no keys".to_owned())
}

pub fn invalid() -> TokenError {
    TokenError::Invalid("bad signature".to_owned())
}

pub fn grant(user: &str) -> ConnectionGrant {
    ConnectionGrant {
        user: user.into(),
        expire_at: None,
        info: Bytes::new(),
        subs: BTreeMap::new(),
        meta: Bytes::new(),
    }
}

pub fn grant_with_subs<const N: usize>(user: &str, channels: [&str; N]) -> ConnectionGrant {
    let subs = channels.map(|channel| (channel.to_owned(), SubscriptionOptions::default())).into();
    ConnectionGrant { subs, ..grant(user) }
}

pub fn sub_grant(user: &str, channel: &str) -> SubscriptionGrant {
    SubscriptionGrant {
        user: user.into(),
        channel: channel.to_owned(),
        client: None,
        expire_at: None,
        options: SubscriptionOptions::default(),
    }
}

pub fn with_overrides(mut grant: SubscriptionGrant, overrides: Overrides) -> SubscriptionGrant {
    grant.options.overrides = overrides;
    grant
}

pub fn position(epoch: &str, offset: u64) -> StreamPosition {
    StreamPosition { epoch: Epoch::from(epoch), offset: Offset(offset) }
}

/// A join to a stream without recovery.
pub fn at(epoch: &str, offset: u64) -> Joined {
    Joined { position: Some(position(epoch, offset)), ..Joined::default() }
}

/// A join that recovered these offsets.
pub fn recovered<const N: usize>(epoch: &str, top: u64, offsets: [u64; N]) -> Joined {
    let publications = offsets.map(|offset| Arc::new(publication(offset))).into();
    Joined { position: Some(position(epoch, top)), recovered: true, publications }
}

pub fn publication(offset: u64) -> Publication {
    Publication {
        offset: Some(Offset(offset)),
        data: Bytes::from(format!("{{\"n\":{offset}}}")),
        info: None,
        tags: BTreeMap::new(),
    }
}

pub fn page<const N: usize>(epoch: &str, top: u64, offsets: [u64; N]) -> HistoryPage {
    let stored = |offset| StoredPublication {
        publication: Arc::new(publication(offset)),
        previous: Previous::Known(Offset(offset - 1)),
    };
    HistoryPage { top: position(epoch, top), publications: offsets.map(stored).into(), covered: true }
}

/// The wire form, without the newline.
pub fn json(reply: &Reply) -> String {
    let mut bytes = Vec::new();
    encode_reply(Encoding::Json, reply, &mut bytes).expect("test payloads are JSON");
    String::from_utf8(bytes).expect("JSON is UTF-8").trim_end().to_owned()
}

/// An output in one line.
pub fn show(output: &Output) -> String {
    match output {
        Output::Send(reply) => json(reply),
        Output::VerifyConnection { token } => format!("verify connection {token}"),
        Output::Resume { user, .. } => format!("resume {user:?}"),
        Output::Detach(kept) => format!("detach {}", kept.iter().map(show_kept).collect::<Vec<_>>().join(", ")),
        Output::Linger { channel } => format!("linger {channel}"),
        Output::VerifyRefresh { id, token } => format!("verify refresh {id} {token}"),
        Output::VerifySubscription { id, purpose, channel, token } => {
            format!("verify {purpose:?} {id} {channel} {token}")
        }
        Output::Established { info } => format!("established {:?}", info.user),
        Output::Join(join) => {
            let mut text = format!("join {}", join.channel);
            if let Some(info) = &join.presence {
                text += &format!(" presence({})", utf8(&info.chan_info));
            }
            for (wanted, word) in
                [(join.push_join_leave, " push"), (join.positioned, " positioned"), (join.has_history, " history")]
            {
                text += if wanted { word } else { "" };
            }
            if let Some(from) = &join.recover {
                let mode = match from.mode {
                    RecoverMode::Stream => "stream",
                    RecoverMode::Cache => "cache",
                };
                text += &format!(" {mode} from {}@{}", from.offset, from.epoch.as_str());
            }
            text
        }
        Output::Leave { channel, hub, presence } => {
            format!("leave {channel}{}{}", if *hub { " hub" } else { "" }, if *presence { " presence" } else { "" })
        }
        Output::Announce { channel, info, joined } => {
            let event = if *joined { "join" } else { "leave" };
            format!("announce {event} {channel} {}({})", info.user, utf8(&info.chan_info))
        }
        Output::Publish { id, channel, data, info, options } => {
            let infos = (utf8(&info.conn_info), utf8(&info.chan_info));
            let options = options.as_ref().map(|options| format!(" {options:?}")).unwrap_or_default();
            format!("publish {id} {channel} {} by {}({},{}){options}", utf8(data), info.user, infos.0, infos.1)
        }
        Output::ReadPresence { id, channel } => format!("presence {id} {channel}"),
        Output::ReadPresenceStats { id, channel } => format!("presence stats {id} {channel}"),
        Output::ReadHistory { id, channel, query } => format!("history {id} {channel} {}", show_query(query)),
        Output::Proxy(call) => show_call(call),
        Output::EmulatedHeaders(headers) => format!("headers {headers:?}"),
        Output::Close(code) => format!("close {} {}", code.code(), code.reason()),
    }
}

fn show_call(call: &ProxyCall) -> String {
    let user = call.info.as_ref().map(|info| format!(" {}", info.user)).unwrap_or_default();
    let meta = if call.meta.is_empty() { String::new() } else { format!(" meta {}", utf8(&call.meta)) };
    let what = match &call.event {
        ProxyEvent::Connect { data, name, version, channels } => {
            format!("connect {} {name} {version} {channels:?}", utf8(data))
        }
        ProxyEvent::Refresh => "refresh".to_owned(),
        ProxyEvent::Subscribe { id, channel, data } => format!("subscribe {id} {channel} {}", utf8(data)),
        ProxyEvent::SubRefresh { channel } => format!("sub_refresh {channel}"),
        ProxyEvent::Publish { id, channel, data } => format!("publish {id} {channel} {}", utf8(data)),
        ProxyEvent::Rpc { id, method, data } => format!("rpc {id} {method} {}", utf8(data)),
    };
    format!("ask {}{user}{meta}: {what}", call.proxy)
}

fn show_kept(kept: &Kept) -> String {
    let presence = if kept.presence { " presence" } else { "" };
    format!("{}{presence}{}", kept.channel, if kept.dynamic { " dynamic" } else { "" })
}

fn show_query(query: &HistoryQuery) -> String {
    let since = query.since.as_ref().map(|since| format!(" since {}@{}", since.offset, since.epoch.as_str()));
    let reverse = if query.reverse { " reverse" } else { "" };
    format!("{:?}{}{reverse}", query.limit, since.unwrap_or_default())
}

fn utf8(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("test payloads are text")
}

/// The error reply of a command.
pub fn error(id: u32, code: u32) -> String {
    let error = crate::ClientError::ALL.into_iter().find(|error| error.code() == code).expect("a code of the table");
    json(&Reply { id, body: Some(error.into()) })
}

pub fn name(channel: &str) -> ChannelName {
    ChannelName::from(channel)
}

pub const CLOSE_3500: &str = "close 3500 invalid token";
pub const CLOSE_3501: &str = "close 3501 bad request";

pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
