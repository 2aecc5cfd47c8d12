//! The command `connect` and the server-side subscriptions that come with it (protocol sections 2.2, 4.2 and 6.2).

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use backplane::{ChannelName, ClientInfo, UserId};
use bytes::Bytes;
use protocol::{ConnectRequest, ConnectResult, ReplyBody, SubscribeRequest, SubscribeResult};

use crate::channels::{ChannelError, ChannelOptions};
use crate::close::CloseCode;
use crate::deadlines::{expiry_tick, is_past, ttl};
use crate::error::ClientError;
use crate::io::{ConnectionGrant, Input, Output, Resumption, ServerSubscribe, SubscriptionOptions, TokenError};
use crate::join::{Origin, Permit};
use crate::permissions::{Caller, Decision, may_subscribe};
use crate::plan::Wish;
use crate::proxy::{ConnectVerdict, ProxyResult};
use crate::session::{Hub, Phase, Refusal, Session, Tie, reply};
use crate::settings::Context;
use crate::subscribe::is_known_delta;
use crate::time::Now;

/// Calls of the server API that may wait for the connect reply. Joining takes milliseconds; whoever gets more calls
/// than this in that time is better served by connecting anew.
const DEFERRED_MAX: usize = 256;

/// A connect command that is not answered yet.
#[derive(Debug)]
pub(crate) struct Connecting {
    id: u32,
    /// What the token grants, while the session that the client left behind is looked up.
    grant: Option<ConnectionGrant>,
    /// `subs` of the request: what the client remembers of server-side subscriptions.
    wishes: BTreeMap<String, SubscribeRequest>,
    expire_at: Option<i64>,
    /// `data` of the result.
    data: Bytes,
    /// `subs` of the result, as far as they are there.
    results: BTreeMap<String, SubscribeResult>,
    /// Inputs of the server API, whose pushes must not precede the connect reply.
    deferred: Vec<Input>,
}

impl Session {
    pub(crate) fn connect(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        id: u32,
        mut request: ConnectRequest,
        out: &mut Vec<Output>,
    ) {
        if !request.subs.values().all(|wish| is_known_delta(&wish.delta)) {
            return self.close(CloseCode::BadRequest, out);
        }
        let anonymous = request.token.is_empty();
        let proxied = anonymous && ctx.settings.proxy.connect;
        if anonymous && !proxied && !admits_anonymous(ctx) {
            return self.close(CloseCode::BadRequest, out);
        }
        if ctx.settings.proxy.emulates_headers && !request.headers.is_empty() {
            out.push(Output::EmulatedHeaders(std::mem::take(&mut request.headers)));
        }
        if proxied {
            self.ask_connect(&mut request, out);
        }
        self.pending_mut().connect = Some(Connecting {
            id,
            grant: None,
            wishes: request.subs,
            expire_at: None,
            data: Bytes::new(),
            results: BTreeMap::new(),
            deferred: Vec::new(),
        });
        self.phase = Phase::Verifying;
        if proxied {
            // The application was asked above.
        } else if anonymous {
            self.connection_verified(ctx, now, Ok(nobody()), out);
        } else {
            out.push(Output::VerifyConnection { token: request.token });
        }
    }

    /// The answer about the connection token.
    pub(crate) fn connection_verified(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        result: Result<ConnectionGrant, TokenError>,
        out: &mut Vec<Output>,
    ) {
        if self.phase == Phase::Verifying
            && let Err(refusal) = self.authenticate(ctx, now, result, out)
        {
            self.refuse_connect(refusal, out);
        }
    }

    fn authenticate(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        result: Result<ConnectionGrant, TokenError>,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let grant = result.map_err(|error| match error {
            TokenError::Invalid(_) => Refusal::Close(CloseCode::InvalidToken),
            TokenError::Expired => ClientError::TokenExpired.into(),
            TokenError::Unavailable(_) => ClientError::Internal.into(),
        })?;
        if grant.user.is_anonymous() && !admits_anonymous(ctx) {
            return Err(CloseCode::PermissionDenied.into());
        }
        if is_past(now, grant.expire_at.filter(|_| !ctx.settings.insecure)) {
            return Err(ClientError::TokenExpired.into());
        }
        self.authenticated(ctx, now, grant, out)
    }

    /// The verdict of the application about a client without a token.
    pub(crate) fn connect_judged(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        result: ProxyResult<ConnectVerdict>,
        out: &mut Vec<Output>,
    ) {
        if self.phase == Phase::Verifying
            && let Err(refusal) = self.authenticate_by_proxy(ctx, now, result, out)
        {
            self.refuse_connect(refusal, out);
        }
    }

    fn authenticate_by_proxy(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        result: ProxyResult<ConnectVerdict>,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let verdict = match result? {
            Some(verdict) => verdict,
            None if admits_anonymous(ctx) => ConnectVerdict { grant: nobody(), data: Bytes::new() },
            None => return Err(CloseCode::BadRequest.into()),
        };
        let ConnectVerdict { grant, data } = verdict;
        if is_past(now, grant.expire_at.filter(|_| !ctx.settings.insecure)) {
            return Err(ClientError::Expired.into());
        }
        if let Some(connecting) = &mut self.pending_mut().connect {
            connecting.data = data;
            // Here the application alone says what there is to subscribe to; the client only knows positions.
            connecting.wishes.retain(|channel, _| grant.subs.contains_key(channel));
        }
        self.authenticated(ctx, now, grant, out)
    }

    /// Looks for what an authenticated client left behind, if it wants that, and lets it in.
    fn authenticated(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        grant: ConnectionGrant,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let expire_at = grant.expire_at.filter(|_| !ctx.settings.insecure);
        let is_resumable = self.tie == Tie::Wanted;
        let Some(connecting) = &mut self.pending_mut().connect else { return Ok(()) };
        connecting.expire_at = expire_at;
        if is_resumable {
            out.push(Output::Resume { user: grant.user.clone(), info: grant.info.clone() });
            connecting.grant = Some(grant);
            return Ok(());
        }
        self.admit(ctx, now, grant, Vec::new(), out)
    }

    /// The answer about what the client left behind.
    pub(crate) fn resumed(&mut self, ctx: &Context<'_>, now: Now, resumption: Resumption, out: &mut Vec<Output>) {
        let Some(grant) = self.pending.as_mut().and_then(|pending| pending.connect.as_mut()?.grant.take()) else {
            return;
        };
        let (tie, restored) = match resumption {
            Resumption::Without => (Tie::None, Vec::new()),
            Resumption::Fresh => (Tie::Held, Vec::new()),
            Resumption::Back(back) => {
                self.client = back.client;
                (Tie::Held, back.subscriptions)
            }
        };
        self.tie = tie;
        if let Err(refusal) = self.admit(ctx, now, grant, restored, out) {
            self.refuse_connect(refusal, out);
        }
    }

    /// Makes the server-side subscriptions of an authenticated client.
    fn admit(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        mut grant: ConnectionGrant,
        restored: Vec<ServerSubscribe>,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let settings = ctx.settings;
        let Some(connecting) = &mut self.pending_mut().connect else { return Ok(()) };
        let (expire_at, mut wishes) = (connecting.expire_at, std::mem::take(&mut connecting.wishes));
        let token_channels = fingerprint(&grant.subs);
        let granted = std::mem::take(&mut grant.subs);
        let restored = restored_permits(ctx, now, &granted, restored, &mut wishes);
        let mut permits = permits(ctx, &grant.user, granted, wishes)?;
        // The token's come first: what it grants must be there, what the server API once gave may find no room.
        let room = settings.channels_per_connection.saturating_sub(permits.len());
        permits.extend(restored.into_iter().take(room));
        if permits.len() > settings.channels_per_connection {
            return Err(CloseCode::ChannelLimit.into());
        }
        self.token_channels = token_channels;
        self.deadlines.connection = expiry_tick(now, expire_at, settings.connection_grace());
        self.keep_meta(ctx, grant.meta);
        let (client, chan_info) = (self.client, Bytes::new());
        let info = Arc::new(ClientInfo { client, user: grant.user, conn_info: grant.info, chan_info });
        self.info = Some(info.clone());
        self.phase = Phase::Joining;
        out.push(Output::Established { info });
        if permits.is_empty() {
            self.open(ctx, now, out);
        }
        for (options, permit) in permits {
            self.join(ctx, options, permit, out);
        }
        Ok(())
    }

    /// One server-side subscription is there; the last one opens the session.
    pub(crate) fn connect_joined(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        channel: &str,
        result: SubscribeResult,
        out: &mut Vec<Output>,
    ) {
        let Some(pending) = &mut self.pending else { return };
        if let Some(connecting) = &mut pending.connect {
            connecting.results.insert(channel.to_owned(), result);
        }
        if pending.joins.is_empty() {
            self.open(ctx, now, out);
        }
    }

    /// Answers the connect command with the full truth about server-side subscriptions.
    fn open(&mut self, ctx: &Context<'_>, now: Now, out: &mut Vec<Output>) {
        let Some(connecting) = self.pending_mut().connect.take() else { return };
        let settings = ctx.settings;
        let (expires, ttl) = ttl(now, connecting.expire_at.filter(|_| !settings.proxy.refresh));
        let result = ConnectResult {
            client: self.client.to_string(),
            version: settings.server_version.clone(),
            expires,
            ttl,
            data: connecting.data,
            subs: connecting.results,
            ping: u32::try_from(settings.ping_interval.as_secs()).unwrap_or(u32::MAX),
            pong: settings.wants_pongs(),
            ..ConnectResult::default()
        };
        reply(connecting.id, ReplyBody::Connect(result), out);
        self.phase = Phase::Open;
        self.schedule_first_ping(ctx, now);
        self.announce_joins(None, out);
        for input in connecting.deferred {
            self.handle(ctx, now, input, out);
        }
    }

    /// Fails the connect command and undoes what was joined for it.
    ///
    /// Commands that came behind it in the meantime are dropped: closing with a terminal code because of what the client
    /// sent before it could know would turn an expired token into a lost client. What comes from now on does close.
    pub(crate) fn refuse_connect(&mut self, refusal: Refusal, out: &mut Vec<Output>) {
        let error = match refusal {
            Refusal::Close(code) => return self.close(code, out),
            Refusal::Error(error) => error.into(),
            Refusal::Custom(error) => ReplyBody::Error(error),
        };
        let Some(pending) = &mut self.pending else { return };
        pending.queue.clear();
        let connecting = pending.connect.take();
        self.phase = Phase::Refused;
        self.abandon_joins();
        for entry in self.subs.take() {
            self.leave(entry, Hub::Leave, out);
        }
        if let Some(connecting) = connecting {
            reply(connecting.id, error, out);
        }
    }

    /// Keeps an input of the server API until the connect reply is out. Gives it back when it can be handled now, drops
    /// it when the session has no user yet or never will.
    pub(crate) fn defer(&mut self, input: Input, out: &mut Vec<Output>) -> Option<Input> {
        match self.phase {
            Phase::Open => return Some(input),
            // A subscription or a new lifetime would be of no use; the end of either still counts.
            Phase::Answering => {
                let ends = matches!(input, Input::ServerUnsubscribe { .. } | Input::ServerRefresh { .. });
                return ends.then_some(input);
            }
            Phase::Joining => {
                if let Some(connecting) = &mut self.pending_mut().connect {
                    if connecting.deferred.len() < DEFERRED_MAX {
                        connecting.deferred.push(input);
                    } else {
                        self.close(CloseCode::InsufficientState, out);
                    }
                }
            }
            Phase::Fresh | Phase::Verifying | Phase::Refused | Phase::Closed => {}
        }
        None
    }
}

/// What the anonymous user is granted.
fn nobody() -> ConnectionGrant {
    let user = UserId::from("");
    ConnectionGrant { user, expire_at: None, info: Bytes::new(), subs: BTreeMap::new(), meta: Bytes::new() }
}

fn admits_anonymous(ctx: &Context<'_>) -> bool {
    ctx.settings.allow_anonymous || ctx.settings.insecure
}

/// What tells one set of token channels from another. Names only: other options of a channel do not change it.
pub(crate) fn fingerprint(subs: &BTreeMap<String, SubscriptionOptions>) -> u64 {
    let mut hasher = DefaultHasher::new();
    subs.keys().for_each(|channel| channel.hash(&mut hasher));
    hasher.finish()
}

/// The subscriptions that the server API had given to a client that is back, as far as they are still possible.
fn restored_permits<'a>(
    ctx: &Context<'a>,
    now: Now,
    granted: &BTreeMap<String, SubscriptionOptions>,
    restored: Vec<ServerSubscribe>,
    wishes: &mut BTreeMap<String, SubscribeRequest>,
) -> Vec<(&'a ChannelOptions, Permit)> {
    let mut permits = Vec::with_capacity(restored.len());
    for ServerSubscribe { channel, info, data, recover_since: _, expire_at, overrides } in restored {
        let Ok(options) = ctx.channels.resolve(&channel) else { continue };
        if granted.contains_key(channel.as_str()) || is_past(now, expire_at) {
            continue;
        }
        let wish = wishes.remove(channel.as_str()).map_or_else(Wish::default, |mut wish| Wish::of_connect(&mut wish));
        let options_of_it = SubscriptionOptions { info, data, overrides };
        let (origin, dynamic) = (Origin::Connect, true);
        permits.push((options, Permit { channel, origin, dynamic, wish, options: options_of_it, expire_at }));
    }
    permits
}

/// The server-side subscriptions of a connection: those of its token, and those the client remembers and may have.
fn permits<'a>(
    ctx: &Context<'a>,
    user: &UserId,
    granted: BTreeMap<String, SubscriptionOptions>,
    mut wishes: BTreeMap<String, SubscribeRequest>,
) -> Result<Vec<(&'a ChannelOptions, Permit)>, Refusal> {
    let (origin, dynamic, expire_at) = (Origin::Connect, false, None);
    let mut permits = Vec::with_capacity(granted.len());
    for (channel, granted) in granted {
        let options = ctx.channels.resolve(&channel).map_err(|error| match error {
            ChannelError::UnknownNamespace => ClientError::UnknownChannel,
            ChannelError::Empty | ChannelError::TooLong | ChannelError::BadName => ClientError::BadRequest,
        })?;
        let wish = wishes.remove(&channel).map_or_else(Wish::default, |mut wish| Wish::of_connect(&mut wish));
        let channel = ChannelName::from(channel);
        permits.push((options, Permit { channel, origin, dynamic, wish, options: granted, expire_at }));
    }
    let caller = Caller { user, subscribed: false, insecure: ctx.settings.insecure };
    for (channel, mut wish) in wishes {
        let options = match ctx.channels.check_name(&channel, ctx.settings.channel_name_bytes) {
            Ok(options) => options,
            Err(ChannelError::Empty | ChannelError::UnknownNamespace) => return Err(CloseCode::BadRequest.into()),
            Err(ChannelError::TooLong | ChannelError::BadName) => continue,
        };
        // What a proxy decides about is not asked here: such a channel is skipped.
        if may_subscribe(ctx.channels, options, &channel, caller) == Ok(Decision::Allowed) {
            let wish = Wish::of_connect(&mut wish);
            let channel = ChannelName::from(channel);
            let granted = SubscriptionOptions::default();
            permits.push((options, Permit { channel, origin, dynamic, wish, options: granted, expire_at }));
        }
    }
    Ok(permits)
}
