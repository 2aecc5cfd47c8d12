//! What the answers of proxies mean for the client (protocol section 9).

use std::time::Duration;

use backplane::ChannelName;
use bytes::Bytes;
use protocol::{ConnectRequest, ReplyBody, RpcRequest, RpcResult};

use crate::close::CloseCode;
use crate::deadlines::{expiry_tick, is_past};
use crate::error::{ClientError, UnsubscribeCode};
use crate::io::Output;
use crate::proxy::{
    CONNECT, ProxyAnswer, ProxyCall, ProxyEvent, ProxyName, ProxyRefusal, ProxyResult, PublishOptions, PublishVerdict,
    REFRESH, RefreshVerdict, SubRefreshVerdict,
};
use crate::session::{Phase, Refusal, Session, reply};
use crate::settings::Context;
use crate::subscriptions::{Flags, with_chan_info};
use crate::time::Now;

/// How much longer something lives when the proxy cannot say whether it may (protocol section 9.1). Also how long an
/// answer is waited for before the question is put again.
const PROLONGATION: Duration = Duration::from_secs(60);

impl Session {
    /// Asks a proxy about this client.
    pub(crate) fn ask(&self, proxy: &ProxyName, event: ProxyEvent, out: &mut Vec<Output>) {
        let meta = self.meta.as_deref().cloned().unwrap_or_default();
        let call = ProxyCall { proxy: proxy.clone(), info: self.info.clone(), meta, event };
        out.push(Output::Proxy(Box::new(call)));
    }

    /// Asks who the client of a connect command without a token is. Takes what only the proxy needs.
    pub(crate) fn ask_connect(&self, request: &mut ConnectRequest, out: &mut Vec<Output>) {
        let event = ProxyEvent::Connect {
            data: std::mem::take(&mut request.data),
            name: std::mem::take(&mut request.name),
            version: std::mem::take(&mut request.version),
            channels: request.subs.keys().cloned().collect(),
        };
        self.ask(&ProxyName::from(CONNECT), event, out);
    }

    /// Asks whether the connection, which has expired, may go on. False when nobody is to be asked.
    pub(crate) fn ask_refresh(&mut self, ctx: &Context<'_>, now: Now, out: &mut Vec<Output>) -> bool {
        if !ctx.settings.proxy.refresh || !matches!(self.phase, Phase::Joining | Phase::Open) {
            return false;
        }
        self.refreshing = true;
        self.deadlines.connection = now.tick.after(PROLONGATION);
        self.ask(&ProxyName::from(REFRESH), ProxyEvent::Refresh, out);
        true
    }

    /// Asks about every subscription that has expired, where somebody is to be asked.
    pub(crate) fn ask_sub_refresh(&mut self, ctx: &Context<'_>, now: Now, out: &mut Vec<Output>) {
        let mut asked = Vec::new();
        for entry in self.subs.iter_mut().filter(|entry| now.tick >= entry.expiry()) {
            let options = ctx.channels.resolve(&entry.channel).ok();
            if let Some(proxy) = options.and_then(|options| options.sub_refresh_proxy.as_ref()) {
                entry.flags.set(Flags::REFRESHING);
                entry.set_extra(entry.info().cloned(), now.tick.after(PROLONGATION));
                asked.push((proxy, entry.channel.clone()));
            }
        }
        for (proxy, channel) in asked {
            self.ask(proxy, ProxyEvent::SubRefresh { channel }, out);
        }
    }

    /// Asks about a publication. Until the answer is there, later commands on the channel wait.
    pub(crate) fn ask_publish(
        &mut self,
        proxy: &ProxyName,
        id: u32,
        channel: ChannelName,
        data: Bytes,
        out: &mut Vec<Output>,
    ) {
        self.pending_mut().publishing.push(channel.clone());
        self.ask(proxy, ProxyEvent::Publish { id, channel, data }, out);
    }

    /// Whether a proxy is being asked about a publication into this channel.
    pub(crate) fn is_publishing(&self, channel: &str) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.publishing.iter().any(|other| &**other == channel))
    }

    pub(crate) fn rpc(
        &mut self,
        ctx: &Context<'_>,
        id: u32,
        request: RpcRequest,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let proxy = ctx.settings.proxy.rpc.route(&request.method)?;
        self.in_flight += 1;
        self.ask(proxy, ProxyEvent::Rpc { id, method: request.method, data: request.data }, out);
        Ok(())
    }

    /// Keeps `meta` for later calls, if any proxy is told it.
    pub(crate) fn keep_meta(&mut self, ctx: &Context<'_>, meta: Bytes) {
        let wanted = ctx.settings.proxy.keeps_meta && !meta.is_empty();
        self.meta = wanted.then(|| Box::new(meta));
    }

    /// An answer of a proxy.
    pub(crate) fn proxied(&mut self, ctx: &Context<'_>, now: Now, answer: ProxyAnswer, out: &mut Vec<Output>) {
        match answer {
            ProxyAnswer::Connect(result) => self.connect_judged(ctx, now, result, out),
            ProxyAnswer::Refresh(result) => self.refresh_judged(ctx, now, result, out),
            ProxyAnswer::Subscribe { id, channel, result } => {
                self.subscription_judged(ctx, now, id, &channel, result, out);
            }
            ProxyAnswer::SubRefresh { channel, result } => self.sub_refresh_judged(now, &channel, result, out),
            ProxyAnswer::Publish { id, channel, data, result } => {
                self.publication_judged(ctx, id, channel, data, result, out);
            }
            ProxyAnswer::Rpc { id, result } => self.rpc_answered(id, result, out),
        }
    }

    /// A refusal counts as no answer here: only a result lets the connection go on.
    fn refresh_judged(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        result: ProxyResult<RefreshVerdict>,
        out: &mut Vec<Output>,
    ) {
        if !std::mem::take(&mut self.refreshing) {
            return;
        }
        match result {
            Err(ProxyRefusal::Unavailable(_)) => self.deadlines.connection = now.tick.after(PROLONGATION),
            Ok(Some(verdict)) if !verdict.expired && !is_past(now, verdict.expire_at) => {
                self.deadlines.connection = expiry_tick(now, verdict.expire_at, Duration::ZERO);
                if let Some(info) = verdict.info {
                    self.set_conn_info(info);
                }
                if let Some(meta) = verdict.meta {
                    self.keep_meta(ctx, meta);
                }
            }
            Ok(_) | Err(_) => self.close(CloseCode::ConnectionExpired, out),
        }
    }

    fn sub_refresh_judged(
        &mut self,
        now: Now,
        channel: &ChannelName,
        result: ProxyResult<SubRefreshVerdict>,
        out: &mut Vec<Output>,
    ) {
        let Some(info) = self.info.clone() else { return };
        // It may have ended in the meantime, and even come back.
        let Some(entry) = self.subs.get_mut(channel).filter(|entry| entry.flags.has(Flags::REFRESHING)) else { return };
        entry.flags.clear(Flags::REFRESHING);
        let (info, expiry) = match result {
            Err(ProxyRefusal::Unavailable(_)) => (entry.info().cloned(), now.tick.after(PROLONGATION)),
            Ok(Some(verdict)) if !verdict.expired && !is_past(now, verdict.expire_at) => {
                let info = match verdict.info {
                    Some(chan_info) => with_chan_info(&info, chan_info),
                    None => entry.info().cloned(),
                };
                (info, expiry_tick(now, verdict.expire_at, Duration::ZERO))
            }
            Ok(_) | Err(_) if entry.flags.has(Flags::SERVER_SIDE) => {
                return self.close(CloseCode::SubscriptionExpired, out);
            }
            Ok(_) | Err(_) => return self.end_subscription(channel, UnsubscribeCode::SubscriptionExpired, out),
        };
        entry.set_extra(info, expiry);
        self.deadlines.expect_subscription(expiry);
    }

    fn publication_judged(
        &mut self,
        ctx: &Context<'_>,
        id: u32,
        channel: ChannelName,
        data: Bytes,
        result: ProxyResult<PublishVerdict>,
        out: &mut Vec<Output>,
    ) {
        let Some(pending) = &mut self.pending else { return };
        let Some(index) = pending.publishing.iter().position(|other| *other == channel) else { return };
        pending.publishing.swap_remove(index);
        match judged_publication(ctx, &channel, data, result) {
            Ok((data, options)) => self.publish_now(id, channel, data, options, out),
            Err(refusal) => {
                self.answered();
                self.refuse(id, refusal, out);
            }
        }
    }

    /// A method that returns nothing returns empty data.
    fn rpc_answered(&mut self, id: u32, result: ProxyResult<Bytes>, out: &mut Vec<Output>) {
        if !self.answered() {
            return;
        }
        match result {
            Ok(data) => reply(id, ReplyBody::Rpc(RpcResult { data: data.unwrap_or_default() }), out),
            Err(refusal) => self.refuse(id, refusal.into(), out),
        }
    }
}

/// What is to be published, and how.
fn judged_publication(
    ctx: &Context<'_>,
    channel: &str,
    data: Bytes,
    result: ProxyResult<PublishVerdict>,
) -> Result<(Bytes, Option<Box<PublishOptions>>), Refusal> {
    let verdict = result?.ok_or(ClientError::PermissionDenied)?;
    // Looked up again, because a reload may have come in between.
    let options = ctx.channels.resolve(channel)?;
    let data = match verdict.data {
        // What subscribers rely on, the application has to keep as well; the client is not to blame.
        Some(data) if !options.publication_data_format.check(&data) => return Err(ClientError::Internal.into()),
        Some(data) => data,
        None => data,
    };
    let plain = verdict.options == Default::default();
    Ok((data, (!plain).then(|| Box::new(verdict.options))))
}
