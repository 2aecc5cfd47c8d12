//! The commands `refresh` and `sub_refresh` (protocol sections 4.6 and 6.3).

use backplane::ChannelName;
use bytes::Bytes;
use protocol::{RefreshRequest, RefreshResult, ReplyBody, SubRefreshRequest, SubRefreshResult};

use crate::close::CloseCode;
use crate::connect::fingerprint;
use crate::deadlines::{expiry_tick, is_past, ttl};
use crate::error::{ClientError, UnsubscribeCode};
use crate::io::{ConnectionGrant, Output, SubscriptionGrant, TokenError, TokenPurpose};
use crate::session::{Refusal, Session, reply};
use crate::settings::Context;
use crate::subscribe::is_meant_for;
use crate::subscriptions::{Flags, with_chan_info, with_conn_info};
use crate::time::Now;

impl Session {
    pub(crate) fn refresh(
        &mut self,
        ctx: &Context<'_>,
        id: u32,
        request: RefreshRequest,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        if request.token.is_empty() || ctx.settings.proxy.refresh {
            return Err(CloseCode::BadRequest.into());
        }
        self.in_flight += 1;
        out.push(Output::VerifyRefresh { id, token: request.token });
        Ok(())
    }

    pub(crate) fn refresh_verified(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        id: u32,
        result: Result<ConnectionGrant, TokenError>,
        out: &mut Vec<Output>,
    ) {
        if !self.answered() {
            return;
        }
        match self.refreshed(ctx, now, result) {
            Ok(result) => reply(id, ReplyBody::Refresh(result), out),
            Err(refusal) => self.refuse(id, refusal, out),
        }
    }

    fn refreshed(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        result: Result<ConnectionGrant, TokenError>,
    ) -> Result<RefreshResult, Refusal> {
        let grant = result.map_err(|error| match error {
            TokenError::Invalid(_) => Refusal::Close(CloseCode::InvalidToken),
            // Not an error reply: SDKs would disconnect for good on 109 here, but reconnect after 3005.
            TokenError::Expired => CloseCode::ConnectionExpired.into(),
            TokenError::Unavailable(_) => ClientError::Internal.into(),
        })?;
        if grant.user != self.known_info().user {
            return Err(CloseCode::InvalidToken.into());
        }
        let expire_at = grant.expire_at.filter(|_| !ctx.settings.insecure);
        if is_past(now, expire_at) {
            return Err(CloseCode::ConnectionExpired.into());
        }
        if fingerprint(&grant.subs) != self.token_channels {
            // A reconnect applies the new set.
            return Err(CloseCode::InsufficientState.into());
        }
        self.set_conn_info(grant.info);
        self.keep_meta(ctx, grant.meta);
        self.deadlines.connection = expiry_tick(now, expire_at, ctx.settings.connection_grace());
        let (expires, ttl) = ttl(now, expire_at.filter(|_| !ctx.settings.proxy.refresh));
        let version = ctx.settings.server_version.clone();
        Ok(RefreshResult { client: self.client.to_string(), version, expires, ttl })
    }

    /// From here on others see the client with this info. Entries in presence keep the one they were made with.
    pub(crate) fn set_conn_info(&mut self, conn_info: Bytes) {
        let info = self.known_info();
        if info.conn_info == conn_info {
            return;
        }
        self.info = Some(with_conn_info(info, &conn_info));
        for entry in self.subs.iter_mut() {
            entry.set_conn_info(&conn_info);
        }
        for join in self.pending.iter_mut().flat_map(|pending| &mut pending.joins) {
            join.set_conn_info(&conn_info);
        }
    }

    pub(crate) fn sub_refresh(
        &mut self,
        ctx: &Context<'_>,
        id: u32,
        request: SubRefreshRequest,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        if request.channel.is_empty() {
            return Err(CloseCode::BadRequest.into());
        }
        if request.r#type != 0 {
            return Err(ClientError::NotAvailable.into());
        }
        let Some(entry) = self.subs.get(&request.channel) else {
            return Err(ClientError::PermissionDenied.into());
        };
        let asks_proxy =
            ctx.channels.resolve(&request.channel).is_ok_and(|options| options.sub_refresh_proxy.is_some());
        if entry.flags.has(Flags::SERVER_SIDE) || asks_proxy {
            return Err(CloseCode::BadRequest.into());
        }
        if request.token.is_empty() {
            return Err(ClientError::BadRequest.into());
        }
        let channel = entry.channel.clone();
        self.in_flight += 1;
        out.push(Output::VerifySubscription { id, purpose: TokenPurpose::SubRefresh, channel, token: request.token });
        Ok(())
    }

    pub(crate) fn sub_refresh_verified(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        id: u32,
        channel: &ChannelName,
        result: Result<SubscriptionGrant, TokenError>,
        out: &mut Vec<Output>,
    ) {
        if !self.answered() {
            return;
        }
        match self.sub_refreshed(ctx, now, channel, result, out) {
            Ok(result) => reply(id, ReplyBody::SubRefresh(result), out),
            Err(refusal) => self.refuse(id, refusal, out),
        }
    }

    fn sub_refreshed(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        channel: &ChannelName,
        result: Result<SubscriptionGrant, TokenError>,
        out: &mut Vec<Output>,
    ) -> Result<SubRefreshResult, Refusal> {
        let grant = match result {
            Ok(grant) => Some(grant),
            Err(TokenError::Invalid(_)) => return Err(CloseCode::InvalidToken.into()),
            Err(TokenError::Expired) => None,
            Err(TokenError::Unavailable(_)) => return Err(ClientError::Internal.into()),
        };
        let info = self.known_info().clone();
        if grant.as_ref().is_some_and(|grant| !is_meant_for(grant, channel, &info.user, self.client)) {
            return Err(CloseCode::InvalidToken.into());
        }
        // It may have ended while the token was verified, and even come back from the server's side.
        let Some(entry) = self.subs.get_mut(channel).filter(|entry| !entry.flags.has(Flags::SERVER_SIDE)) else {
            return Err(ClientError::PermissionDenied.into());
        };
        let Some(grant) = grant.filter(|grant| !is_past(now, grant.expire_at)) else {
            // An error 109 would make SDKs give up the subscription; after this push they subscribe anew with a new
            // token. The command then still gets its reply, which has nothing to say.
            self.end_subscription(channel, UnsubscribeCode::SubscriptionExpired, out);
            return Ok(SubRefreshResult::default());
        };
        let chan_info = with_chan_info(&info, grant.options.info);
        let expiry = expiry_tick(now, grant.expire_at, ctx.settings.expired_subscription_close_delay);
        entry.set_extra(chan_info, expiry);
        self.deadlines.expect_subscription(expiry);
        let (expires, ttl) = ttl(now, grant.expire_at);
        Ok(SubRefreshResult { expires, ttl })
    }
}
