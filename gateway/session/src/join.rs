//! Subscriptions on their way into the hub, whoever asked for them, and what becomes of the hub's answer (protocol
//! sections 4.1, 4.4 and 4.5).

use std::sync::Arc;

use backplane::{ChannelName, ClientInfo};
use bytes::Bytes;
use protocol::SubscribeResult;

use crate::channels::ChannelOptions;
use crate::convert;
use crate::deadlines::{expiry_tick, ttl};
use crate::error::ClientError;
use crate::io::{Join, Joined, OperationError, Output, SubscriptionOptions};
use crate::plan::{Wish, plan};
use crate::session::{Hub, Session, Tie, push, reply, unsubscribe_body};
use crate::settings::{Context, Settings};
use crate::subscriptions::{Entry, Flags, with_chan_info, with_conn_info};
use crate::time::Now;

/// Who is told when the subscription is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// A subscribe command with this id, by a reply.
    Command(u32),
    /// The connect command, by its reply.
    Connect,
    /// The server API, by a push.
    Server,
    /// Nobody any more: it is undone as soon as it is there.
    Abandoned,
}

/// How far it has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum JoinStage {
    /// The subscription token is being verified, or a proxy asked.
    Verifying,
    /// The hub was asked.
    Joining,
}

/// A subscription being made. The channel is reserved as long as this exists.
#[derive(Debug)]
pub(crate) struct PendingJoin {
    pub channel: ChannelName,
    pub origin: Origin,
    pub stage: JoinStage,
    pub wish: Wish,
    flags: Flags,
    /// A recovery was asked of the hub.
    recovering: bool,
    info: Option<Arc<ClientInfo>>,
    data: Bytes,
    expire_at: Option<i64>,
    /// The server API has already ended it: code and reason of the push that follows.
    pub ended: Option<(u32, &'static str)>,
}

/// A subscription that is permitted.
#[derive(Debug)]
pub(crate) struct Permit {
    pub channel: ChannelName,
    pub origin: Origin,
    /// The server API wants it.
    pub dynamic: bool,
    pub wish: Wish,
    pub options: SubscriptionOptions,
    pub expire_at: Option<i64>,
}

impl PendingJoin {
    /// Reserves the channel while the token is verified or a proxy asked.
    pub fn verifying(channel: ChannelName, id: u32, wish: Wish) -> Self {
        Self {
            channel,
            origin: Origin::Command(id),
            stage: JoinStage::Verifying,
            wish,
            flags: Flags::default(),
            recovering: false,
            info: None,
            data: Bytes::new(),
            expire_at: None,
            ended: None,
        }
    }

    /// Carries a new connection info over to the info of this subscription.
    pub fn set_conn_info(&mut self, conn_info: &Bytes) {
        if let Some(info) = &mut self.info {
            *info = with_conn_info(info, conn_info);
        }
    }

    /// The result to tell the client, by the table of protocol section 4.4.
    fn result(&self, settings: &Settings, now: Now, joined: &Joined, client_refreshes: bool) -> SubscribeResult {
        // More than the limits is no recovery: the read was to stop there, and the reply has to stay bounded.
        let bytes: usize = joined.publications.iter().map(|publication| publication.data.len()).sum();
        let bounded = joined.publications.len() <= settings.recovery_limit && bytes <= settings.reply_bytes;
        let recovered = self.recovering && joined.recovered && bounded;
        let mut result = SubscribeResult {
            recoverable: self.flags.has(Flags::RECOVERABLE),
            positioned: self.flags.has(Flags::POSITIONED),
            recovered,
            was_recovering: self.recovering || self.wish.recover,
            data: self.data.clone(),
            ..SubscribeResult::default()
        };
        if !self.flags.has(Flags::SERVER_SIDE) && client_refreshes {
            (result.expires, result.ttl) = ttl(now, self.expire_at);
        }
        if let Some(position) = joined.position.as_ref().filter(|_| result.positioned) {
            result.epoch = position.epoch.as_str().to_owned();
            result.offset = position.offset.0;
        }
        if recovered {
            // The client's own offset, which the publications then move on.
            result.offset = self.wish.offset;
            result.publications =
                joined.publications.iter().map(|publication| convert::publication(publication)).collect();
        }
        result
    }
}

impl Session {
    /// Subscriptions, those being made included.
    pub(crate) fn channel_count(&self) -> usize {
        self.subs.len() + self.pending.as_ref().map_or(0, |pending| pending.joins.len())
    }

    /// Whether the connection has or is making this subscription.
    pub(crate) fn is_reserved(&self, channel: &str) -> bool {
        self.subs.get(channel).is_some() || self.pending_join(channel).is_some()
    }

    /// Asks the hub for a subscription.
    pub(crate) fn join(&mut self, ctx: &Context<'_>, options: &ChannelOptions, permit: Permit, out: &mut Vec<Output>) {
        let Permit { channel, origin, dynamic, wish, options: granted, expire_at } = permit;
        let connection_info = self.known_info().clone();
        let plan = plan(options, granted.overrides, &wish, self.caller(ctx, &connection_info, &channel));
        let flags = plan.flags.with(Flags::SERVER_SIDE, !matches!(origin, Origin::Command(_)));
        let flags = flags.with(Flags::DYNAMIC, dynamic);
        let info = with_chan_info(&connection_info, granted.info);
        let recovering = plan.recover.is_some();
        out.push(Output::Join(Join {
            channel: channel.clone(),
            presence: flags.has(Flags::PRESENCE).then(|| info.clone().unwrap_or(connection_info)),
            push_join_leave: flags.has(Flags::PUSH_JOIN_LEAVE),
            positioned: flags.has(Flags::POSITIONED),
            recover: plan.recover,
            has_history: plan.has_history,
        }));
        let join = PendingJoin { wish, flags, recovering, info, ..PendingJoin::verifying(channel, 0, Wish::default()) };
        let data = granted.data;
        let join = PendingJoin { origin, stage: JoinStage::Joining, data, expire_at, ..join };
        self.reserve(join);
    }

    /// The client was a member of a channel that it joins, as others see it: no join is due, but a leave will be.
    pub(crate) fn adopted(&mut self, channel: &str) {
        let joins = self.pending.as_mut().map(|pending| pending.joins.iter_mut());
        let mut joins = joins.into_iter().flatten().filter(|join| join.stage == JoinStage::Joining);
        if let Some(join) = joins.find(|join| &*join.channel == channel)
            && join.flags.has(Flags::JOIN_LEAVE)
        {
            join.flags.set(Flags::ANNOUNCED);
        }
    }

    /// Keeps a channel for a subscription being made.
    pub(crate) fn reserve(&mut self, join: PendingJoin) {
        if let Origin::Command(_) = join.origin {
            self.in_flight += 1;
        }
        self.pending_mut().joins.push(join);
    }

    /// The hub's answer.
    pub(crate) fn joined(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        channel: ChannelName,
        result: Result<Joined, OperationError>,
        out: &mut Vec<Output>,
    ) {
        let Some(mut join) = self.take_join(&channel, JoinStage::Joining) else { return };
        join.channel = channel;
        match result {
            Ok(joined) => self.join_succeeded(ctx, now, join, joined, out),
            Err(error) => self.join_failed(&join, ClientError::from(&error), out),
        }
        self.free_pending();
    }

    /// Takes the pending subscription of a channel, if it is in this stage.
    pub(crate) fn take_join(&mut self, channel: &str, stage: JoinStage) -> Option<PendingJoin> {
        let joins = &mut self.pending.as_mut()?.joins;
        let index = joins.iter().position(|join| join.stage == stage && &*join.channel == channel)?;
        let join = joins.swap_remove(index);
        if let Origin::Command(_) = join.origin {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
        Some(join)
    }

    fn join_failed(&mut self, join: &PendingJoin, error: ClientError, out: &mut Vec<Output>) {
        // The entry may have been added before the failure, and removing one that is not there does no harm.
        let lingers = join.flags.has(Flags::PRESENCE) && self.tie == Tie::Parted;
        if lingers {
            out.push(Output::Linger { channel: join.channel.clone() });
        } else if join.flags.has(Flags::PRESENCE) {
            out.push(Output::Leave { channel: join.channel.clone(), hub: false, presence: true });
        }
        if !lingers && join.flags.has(Flags::ANNOUNCED) {
            let info = join.info.as_ref().unwrap_or_else(|| self.known_info()).clone();
            out.push(Output::Announce { channel: join.channel.clone(), info, joined: false });
        }
        match join.origin {
            Origin::Command(id) => reply(id, error, out),
            Origin::Connect => self.refuse_connect(error.into(), out),
            Origin::Server | Origin::Abandoned => {}
        }
    }

    fn join_succeeded(
        &mut self,
        ctx: &Context<'_>,
        now: Now,
        mut join: PendingJoin,
        joined: Joined,
        out: &mut Vec<Output>,
    ) {
        if joined.position.is_none() {
            // The namespace lost its history in a reload. Promise nothing.
            join.flags.clear(Flags::POSITIONED);
            join.flags.clear(Flags::RECOVERABLE);
        }
        let options = ctx.channels.resolve(&join.channel).ok();
        let expiry = expiry_tick(now, join.expire_at, ctx.settings.subscription_grace(options));
        let entry = Entry::new(join.channel.clone(), join.flags, join.info.take(), expiry);
        if join.origin == Origin::Abandoned {
            return self.part(entry, Hub::Leave, self.tie == Tie::Parted, out);
        }
        let client_refreshes = options.is_none_or(|options| options.sub_refresh_proxy.is_none());
        let result = join.result(ctx.settings, now, &joined, client_refreshes);
        if let Origin::Command(id) = join.origin
            && join.wish.strict_recovery
            && join.wish.recover
            && join.recovering
            && !result.recovered
        {
            self.leave(entry, Hub::Leave, out);
            return reply(id, ClientError::UnrecoverablePosition, out);
        }
        self.deadlines.expect_subscription(expiry);
        self.subs.insert(entry);
        match join.origin {
            Origin::Command(id) => {
                reply(id, protocol::ReplyBody::Subscribe(result), out);
                self.announce_joins(Some(&join.channel), out);
            }
            Origin::Server => {
                self.push_server_subscription(&join.channel, result, out);
                self.announce_joins(Some(&join.channel), out);
            }
            Origin::Connect => return self.connect_joined(ctx, now, &join.channel, result, out),
            Origin::Abandoned => {}
        }
        if let Some((code, reason)) = join.ended
            && let Some(entry) = self.subs.remove(&join.channel)
        {
            self.leave(entry, Hub::Leave, out);
            push(&join.channel, unsubscribe_body(code, reason), out);
        }
    }

    /// Announces the client in one channel, or in all of them, where it emits joins and has not been announced.
    pub(crate) fn announce_joins(&mut self, channel: Option<&str>, out: &mut Vec<Output>) {
        let Some(info) = self.info.clone() else { return };
        let announce = |entry: &mut Entry| {
            if entry.flags.has(Flags::JOIN_LEAVE) && !entry.flags.has(Flags::ANNOUNCED) {
                entry.flags.set(Flags::ANNOUNCED);
                let info = entry.info().unwrap_or(&info).clone();
                out.push(Output::Announce { channel: entry.channel.clone(), info, joined: true });
            }
        };
        match channel {
            Some(channel) => self.subs.get_mut(channel).into_iter().for_each(announce),
            None => self.subs.iter_mut().for_each(announce),
        }
    }
}
