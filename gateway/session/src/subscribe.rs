//! The commands `subscribe` and `unsubscribe` (protocol sections 2.3, 4.1 and 6.4).

use backplane::{ChannelName, ClientId, UserId};
use protocol::{ReplyBody, SubscribeRequest, UnsubscribeRequest, UnsubscribeResult};

use crate::close::CloseCode;
use crate::deadlines::is_past;
use crate::error::ClientError;
use crate::io::{Output, SubscriptionGrant, SubscriptionOptions, TokenError, TokenPurpose};
use crate::join::{JoinStage, Origin, PendingJoin, Permit};
use crate::permissions::{Decision, may_subscribe};
use crate::plan::Wish;
use crate::proxy::{ProxyEvent, ProxyResult, SubscribeVerdict};
use crate::session::{Hub, Refusal, Session, reply};
use crate::settings::Context;
use crate::time::Now;

/// The only delta type that exists. Asking for it is allowed and changes nothing, as no namespace has it enabled.
const DELTA_FOSSIL: &str = "fossil";

/// A delta type nobody knows is a protocol violation.
pub(crate) fn is_known_delta(delta: &str) -> bool {
    delta.is_empty() || delta == DELTA_FOSSIL
}

/// Whether a subscription token was made for this channel, user and connection.
pub(crate) fn is_meant_for(grant: &SubscriptionGrant, channel: &str, user: &UserId, client: ClientId) -> bool {
    let bound = grant.client.as_deref().filter(|bound| !bound.is_empty());
    let client_matches = bound.is_none_or(|bound| ClientId::parse(bound) == Some(client));
    grant.channel == channel && grant.user == *user && client_matches
}

impl Session {
    pub(crate) fn subscribe(
        &mut self,
        ctx: &Context<'_>,
        id: u32,
        mut request: SubscribeRequest,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let settings = ctx.settings;
        if request.channel.is_empty() || !is_known_delta(&request.delta) {
            return Err(CloseCode::BadRequest.into());
        }
        if self.is_reserved(&request.channel) {
            return Err(ClientError::AlreadySubscribed.into());
        }
        if self.channel_count() >= settings.channels_per_connection {
            return Err(ClientError::LimitExceeded.into());
        }
        let options = ctx.channels.check_name(&request.channel, settings.channel_name_bytes)?;
        if request.r#type != 0 {
            return Err(ClientError::NotAvailable.into());
        }
        let wish = Wish::of_client(&mut request);
        if request.token.is_empty() {
            let caller = self.caller(ctx, self.known_info(), &request.channel);
            let decision = may_subscribe(ctx.channels, options, &request.channel, caller)?;
            let channel = ChannelName::from(request.channel);
            match decision {
                Decision::Allowed => {
                    let granted = SubscriptionOptions::default();
                    let (origin, dynamic, expire_at) = (Origin::Command(id), false, None);
                    let permit = Permit { channel, origin, dynamic, wish, options: granted, expire_at };
                    self.join(ctx, options, permit, out);
                }
                Decision::Ask(proxy) => {
                    self.reserve(PendingJoin::verifying(channel.clone(), id, wish));
                    self.ask(proxy, ProxyEvent::Subscribe { id, channel, data: request.data }, out);
                }
            }
        } else {
            let channel = ChannelName::from(request.channel);
            self.reserve(PendingJoin::verifying(channel.clone(), id, wish));
            let purpose = TokenPurpose::Subscribe;
            out.push(Output::VerifySubscription { id, purpose, channel, token: request.token });
        }
        Ok(())
    }

    /// The answer about a subscription token, which alone decides.
    pub(crate) fn subscription_verified(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        id: u32,
        channel: &str,
        result: Result<SubscriptionGrant, TokenError>,
        out: &mut Vec<Output>,
    ) {
        let Some(join) = self.take_join(channel, JoinStage::Verifying) else { return };
        if let Err(refusal) = self.subscribe_with_token(ctx, now, id, join, result, out) {
            self.refuse(id, refusal, out);
        }
    }

    fn subscribe_with_token(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        id: u32,
        join: PendingJoin,
        result: Result<SubscriptionGrant, TokenError>,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let grant = result.map_err(|error| match error {
            TokenError::Invalid(_) => ClientError::PermissionDenied,
            TokenError::Expired => ClientError::TokenExpired,
            TokenError::Unavailable(_) => ClientError::Internal,
        })?;
        if !is_meant_for(&grant, &join.channel, &self.known_info().user, self.client) {
            return Err(CloseCode::InvalidToken.into());
        }
        if is_past(now, grant.expire_at) {
            return Err(ClientError::TokenExpired.into());
        }
        self.join_permitted(ctx, id, join, grant.options, grant.expire_at, out)
    }

    /// The verdict of the application about a subscription without a token.
    pub(crate) fn subscription_judged(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        id: u32,
        channel: &str,
        result: ProxyResult<SubscribeVerdict>,
        out: &mut Vec<Output>,
    ) {
        let Some(join) = self.take_join(channel, JoinStage::Verifying) else { return };
        if let Err(refusal) = self.subscribe_by_proxy(ctx, now, id, join, result, out) {
            self.refuse(id, refusal, out);
        }
    }

    fn subscribe_by_proxy(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        id: u32,
        join: PendingJoin,
        result: ProxyResult<SubscribeVerdict>,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let verdict = result?.ok_or(ClientError::PermissionDenied)?;
        if is_past(now, verdict.expire_at) {
            return Err(ClientError::Expired.into());
        }
        self.join_permitted(ctx, id, join, verdict.options, verdict.expire_at, out)
    }

    /// Goes on with a subscription whose permission had to be waited for.
    fn join_permitted(
        &mut self,
        ctx: &Context<'_>,
        id: u32,
        join: PendingJoin,
        granted: SubscriptionOptions,
        expire_at: Option<i64>,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        // Looked up again, because a reload may have come in between.
        let options = ctx.channels.resolve(&join.channel)?;
        let PendingJoin { channel, wish, ended, .. } = join;
        let (origin, dynamic) = (Origin::Command(id), false);
        let permit = Permit { channel, origin, dynamic, wish, options: granted, expire_at };
        self.join(ctx, options, permit, out);
        if let Some(join) = self.pending_mut().joins.last_mut() {
            join.ended = ended;
        }
        Ok(())
    }

    /// Never fails: SDKs reconnect on an error here. A subscription being made is waited for by the queue.
    pub(crate) fn unsubscribe(
        &mut self,
        id: u32,
        request: &UnsubscribeRequest,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        if request.channel.is_empty() {
            return Err(CloseCode::BadRequest.into());
        }
        if let Some(entry) = self.subs.remove(&request.channel) {
            // The hub first, so that nothing of the channel can follow the reply.
            self.leave(entry, Hub::Leave, out);
        }
        reply(id, ReplyBody::Unsubscribe(UnsubscribeResult {}), out);
        Ok(())
    }
}
