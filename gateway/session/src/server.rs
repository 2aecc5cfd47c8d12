//! What the server API does to a session (protocol section 7.2).

use backplane::ChannelName;
use bytes::Bytes;
use protocol::{PushBody, Refresh, Subscribe, SubscribeResult};

use crate::close::CloseCode;
use crate::deadlines::{expiry_tick, is_past, ttl};
use crate::error::UnsubscribeCode;
use crate::io::{Input, Output, ServerSubscribe, SubscriptionOptions};
use crate::join::{Origin, Permit};
use crate::plan::Wish;
use crate::session::{Hub, Session, push, unsubscribe_body};
use crate::settings::Context;
use crate::time::Now;

impl Session {
    /// Ignored where it cannot be done: already subscribed, too many channels, unknown namespace, expired. Whoever has to
    /// report that can ask [`Session::subscription`] and the channel table before.
    pub(crate) fn server_subscribe(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        request: Box<ServerSubscribe>,
        out: &mut Vec<Output>,
    ) {
        let Some(Input::ServerSubscribe(request)) = self.defer(Input::ServerSubscribe(request), out) else { return };
        let Ok(options) = ctx.channels.resolve(&request.channel) else { return };
        if self.is_reserved(&request.channel)
            || self.channel_count() >= ctx.settings.channels_per_connection
            || is_past(now, request.expire_at)
        {
            return;
        }
        let ServerSubscribe { channel, info, data, recover_since, expire_at, overrides } = *request;
        let wish = recover_since.map_or_else(Wish::default, |since| Wish {
            recover: true,
            epoch: since.epoch.as_str().to_owned(),
            offset: since.offset.0,
            ..Wish::default()
        });
        let granted = SubscriptionOptions { info, data, overrides };
        let (origin, dynamic) = (Origin::Server, true);
        self.join(ctx, options, Permit { channel, origin, dynamic, wish, options: granted, expire_at }, out);
    }

    /// A subscribe push cannot carry publications, so recovered ones follow it one by one.
    pub(crate) fn push_server_subscription(
        &self,
        channel: &ChannelName,
        result: SubscribeResult,
        out: &mut Vec<Output>,
    ) {
        let SubscribeResult { recoverable, epoch, offset, positioned, data, publications, .. } = result;
        push(channel, PushBody::Subscribe(Subscribe { recoverable, epoch, offset, positioned, data }), out);
        for publication in publications {
            push(channel, PushBody::Publication(publication), out);
        }
    }

    pub(crate) fn server_unsubscribe(
        &mut self,
        channel: ChannelName,
        code: u32,
        reason: &'static str,
        out: &mut Vec<Output>,
    ) {
        let input = Input::ServerUnsubscribe { channel, code, reason };
        let Some(Input::ServerUnsubscribe { channel, code, reason }) = self.defer(input, out) else { return };
        // SDKs resubscribe when the code is missing or out of range, so only a good one may go out.
        let default = UnsubscribeCode::ServerUnsubscribe;
        let code = if (2000..3000).contains(&code) { code } else { default.code() };
        let reason = if reason.is_empty() { default.reason() } else { reason };
        if let Some(entry) = self.subs.remove(&channel) {
            let channel = entry.channel.clone();
            self.leave(entry, Hub::Leave, out);
            push(&channel, unsubscribe_body(code, reason), out);
        } else if let Some(pending) = &mut self.pending
            && let Some(join) = pending.joins.iter_mut().find(|join| join.channel == channel)
        {
            join.ended = Some((code, reason));
        }
    }

    pub(crate) fn server_refresh(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        expired: bool,
        expire_at: Option<i64>,
        info: Option<Bytes>,
        out: &mut Vec<Output>,
    ) {
        let input = Input::ServerRefresh { expired, expire_at, info };
        let Some(Input::ServerRefresh { expired, expire_at, info }) = self.defer(input, out) else { return };
        let expire_at = expire_at.filter(|_| !ctx.settings.insecure);
        if expired || is_past(now, expire_at) {
            return self.close(CloseCode::ConnectionExpired, out);
        }
        if let Some(conn_info) = info {
            self.set_conn_info(conn_info);
        }
        self.deadlines.connection = expiry_tick(now, expire_at, ctx.settings.connection_grace());
        if expire_at.is_some() && !ctx.settings.proxy.refresh {
            let (expires, ttl) = ttl(now, expire_at);
            push("", PushBody::Refresh(Refresh { expires, ttl }), out);
        }
    }
}
