//! The state of one session, and where each input goes.

use std::collections::VecDeque;
use std::sync::Arc;

use backplane::{ChannelName, ClientId, ClientInfo};
use bytes::Bytes;
use protocol::{Command, Push, PushBody, Reply, ReplyBody, Request, Unsubscribe};

use crate::channels::ChannelError;
use crate::close::CloseCode;
use crate::connect::Connecting;
use crate::deadlines::Deadlines;
use crate::error::{ClientError, UnsubscribeCode};
use crate::io::{Input, Kept, Output, TokenPurpose};
use crate::join::{JoinStage, Origin, PendingJoin};
use crate::permissions::Caller;
use crate::quota::{Quota, Verdict};
use crate::settings::Context;
use crate::subscriptions::{Entry, Flags, Subscription, Subscriptions};
use crate::time::Now;

/// Where a session stands.
///
/// ```text
/// Fresh -> Verifying -> Joining -> Open -> Answering     Closed is reached from everywhere,
///   |          |           |                             and never left
///   |          +-----------+-> Refused
///   +------> Joining (without a token)
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// Nothing but `connect` is welcome.
    Fresh,
    /// The connection token is being verified.
    Verifying,
    /// The server-side subscriptions are being made.
    Joining,
    /// The connect reply was sent.
    Open,
    /// About to close: the commands accepted so far are answered, later ones are discarded.
    Answering,
    /// The connect reply was an error; only the client's leaving is left.
    Refused,
    /// Only answers to joins are still of interest.
    Closed,
}

/// How a connection stands to a session that outlives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tie {
    /// There is none.
    None,
    /// The client asked for one.
    Wanted,
    /// It has one.
    Held,
    /// It had one, and may come back to it.
    Parted,
}

/// The protocol state of one client, as a pure state machine: inputs and the time go in, outputs and the next deadline
/// come out. It does no IO, reads no clock and holds no lock, so every behaviour can be had in a test.
///
/// About 100 bytes, plus 32 and the shared name for each subscription; whatever waits for an answer is boxed and freed
/// when nothing does.
#[derive(Debug)]
pub struct Session {
    pub(crate) client: ClientId,
    /// Who it is; set when the client is authenticated.
    pub(crate) info: Option<Arc<ClientInfo>>,
    pub(crate) subs: Subscriptions,
    /// `None` exactly when nothing is queued, no subscription is being made, no publication is being judged and no close
    /// waits for answers.
    pub(crate) pending: Option<Box<Pending>>,
    pub(crate) deadlines: Deadlines,
    /// Fingerprint of the channels that the connection token asked for.
    pub(crate) token_channels: u64,
    /// `meta` of the connection, for proxies; nearly always absent.
    pub(crate) meta: Option<Box<Bytes>>,
    /// What was sent so far, where that is bounded.
    pub(crate) quota: Option<Box<Quota>>,
    /// Commands whose answer the driver owes us.
    pub(crate) in_flight: u32,
    pub(crate) pings_unanswered: u8,
    /// The proxy was asked whether the connection may go on.
    pub(crate) refreshing: bool,
    pub(crate) phase: Phase,
    pub(crate) tie: Tie,
}

/// What is under way. Every part is bounded: the queue by `commands_queued`, the joins by `channels_per_connection`.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Commands that may not run yet, first in first out.
    pub queue: VecDeque<Command>,
    /// Subscriptions being made; at most one of a channel.
    pub joins: Vec<PendingJoin>,
    /// Channels of publications that a proxy is asked about; at most one of a channel, so that they stay in order.
    pub publishing: Vec<ChannelName>,
    /// The connect command, until it is answered.
    pub connect: Option<Connecting>,
    /// What to close with when everything accepted is answered; present exactly in the phase `Answering`.
    pub close: Option<CloseCode>,
}

/// A command is answered with an error, or costs the connection.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Refusal {
    Error(ClientError),
    /// An error in the words of the application.
    Custom(protocol::Error),
    Close(CloseCode),
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        Self::Error(error)
    }
}

impl From<CloseCode> for Refusal {
    fn from(code: CloseCode) -> Self {
        Self::Close(code)
    }
}

impl From<ChannelError> for Refusal {
    fn from(error: ChannelError) -> Self {
        match error {
            ChannelError::Empty => Self::Close(CloseCode::BadRequest),
            ChannelError::TooLong | ChannelError::BadName => Self::Error(ClientError::BadRequest),
            ChannelError::UnknownNamespace => Self::Error(ClientError::UnknownChannel),
        }
    }
}

impl Session {
    /// The session of a connection that was just accepted. The stale delay starts now.
    pub fn new(ctx: &Context<'_>, now: Now, client: ClientId) -> Self {
        Self {
            client,
            info: None,
            subs: Subscriptions::default(),
            pending: None,
            deadlines: Deadlines::new(now, ctx.settings),
            token_channels: 0,
            meta: None,
            quota: None,
            in_flight: 0,
            pings_unanswered: 0,
            refreshing: false,
            phase: Phase::Fresh,
            tie: Tie::None,
        }
    }

    /// The same for a client that asks for a session that outlives its connections (design section 4): once its user is
    /// known, [`Output::Resume`] asks what it left behind.
    pub fn resumable(ctx: &Context<'_>, now: Now, client: ClientId) -> Self {
        Self { tie: Tie::Wanted, ..Self::new(ctx, now, client) }
    }

    /// Takes one input and appends what has to be done about it to `out`, to be carried out in that order.
    ///
    /// After [`Output::Close`] or [`Input::Gone`] every input is ignored except [`Input::Joined`], whose channel is left
    /// again; see [`Session::is_finished`]. An answer nobody asked for is ignored.
    pub fn handle(&mut self, ctx: &Context<'_>, now: Now, input: Input, out: &mut Vec<Output>) {
        if self.phase == Phase::Closed {
            if let Input::Joined { channel, result } = input {
                self.joined(ctx, now, channel, result, out);
            }
            return;
        }
        match input {
            Input::Command(command) => self.command(ctx, now, command, out),
            Input::Undecodable if self.phase == Phase::Answering => {}
            Input::Undecodable => self.close(CloseCode::BadRequest, out),
            Input::Deadline => self.deadline(ctx, now, out),
            Input::ConnectionVerified(result) => self.connection_verified(ctx, now, result, out),
            Input::Resumed(resumption) => self.resumed(ctx, now, resumption, out),
            Input::Adopted { channel } => self.adopted(&channel),
            Input::RefreshVerified { id, result } => self.refresh_verified(ctx, now, id, result, out),
            Input::SubscriptionVerified { id, purpose: TokenPurpose::Subscribe, channel, result } => {
                self.subscription_verified(ctx, now, id, &channel, result, out);
            }
            Input::SubscriptionVerified { id, purpose: TokenPurpose::SubRefresh, channel, result } => {
                self.sub_refresh_verified(ctx, now, id, &channel, result, out);
            }
            Input::Joined { channel, result } => self.joined(ctx, now, channel, result, out),
            Input::Published { id, result } => self.published(id, result, out),
            Input::Presence { id, result } => self.presence_read(id, result, out),
            Input::PresenceStats { id, result } => self.presence_stats_read(id, result, out),
            Input::History { id, query, result } => self.history_read(ctx, id, &query, result, out),
            Input::Proxied(answer) => self.proxied(ctx, now, *answer, out),
            Input::ServerSubscribe(request) => self.server_subscribe(ctx, now, request, out),
            Input::ServerUnsubscribe { channel, code, reason } => {
                self.server_unsubscribe(channel, code, reason, out);
            }
            Input::ServerRefresh { expired, expire_at, info } => {
                self.server_refresh(ctx, now, expired, expire_at, info, out);
            }
            Input::Close(code) => self.close(code, out),
            Input::CloseWhenAnswered(code) => self.close_when_answered(ctx, now, code, out),
            Input::PositionLost { channel } => self.position_lost(&channel, out),
            Input::Gone => self.clean_up(self.tie == Tie::Held, out),
            Input::Left => self.clean_up(false, out),
        }
        self.run_queue(ctx, out);
        self.close_if_answered(out);
    }

    /// Whether the driver should go on reading. False while commands wait for earlier ones, and when closed.
    pub fn wants_commands(&self) -> bool {
        self.phase != Phase::Closed && self.pending.as_ref().is_none_or(|pending| pending.queue.is_empty())
    }

    /// Whether the connect reply was sent. Until then the driver holds back the pushes of channels joined already.
    pub fn is_established(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Answering)
    }

    /// Whether the session closes as soon as the commands accepted so far are answered.
    pub fn is_answering(&self) -> bool {
        self.phase == Phase::Answering
    }

    /// Whether the session has closed the connection or was told that it is gone.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Whether the session can be dropped: it is closed and no join is left whose answer would have to be undone.
    pub fn is_finished(&self) -> bool {
        self.is_closed() && self.pending.is_none()
    }

    /// Who the client is, from the moment it is authenticated.
    pub fn info(&self) -> Option<&Arc<ClientInfo>> {
        self.info.as_ref()
    }

    /// The id of the connection.
    pub fn client(&self) -> ClientId {
        self.client
    }

    /// One active subscription; those still being made are not seen.
    pub fn subscription(&self, channel: &str) -> Option<Subscription<'_>> {
        self.subs.get(channel).map(Subscription)
    }

    /// Every active subscription, sorted by channel.
    pub fn subscriptions(&self) -> impl ExactSizeIterator<Item = Subscription<'_>> {
        self.subs.iter().map(Subscription)
    }

    fn command(&mut self, ctx: &Context<'_>, now: Now, command: Command, out: &mut Vec<Output>) {
        let is_pong = command.id == 0 && !matches!(command.request, Some(Request::Send(_)));
        if self.phase == Phase::Open
            && !is_pong
            && let Err(refusal) = self.charge(ctx, now, &command)
        {
            return self.refuse(command.id, refusal, out);
        }
        match self.phase {
            Phase::Fresh => match command.request {
                Some(Request::Connect(request)) if !is_pong => self.connect(ctx, now, command.id, request, out),
                Some(_) | None => self.close(CloseCode::BadRequest, out),
            },
            // An unasked pong if it is one, as no ping was sent.
            Phase::Verifying | Phase::Joining if is_pong => self.close(CloseCode::BadRequest, out),
            Phase::Verifying | Phase::Joining => self.enqueue(ctx, command, out),
            Phase::Open if is_pong => self.pong(out),
            Phase::Open if self.must_wait(ctx, &command) => self.enqueue(ctx, command, out),
            Phase::Open => self.run(ctx, command, out),
            Phase::Refused => self.close(CloseCode::BadRequest, out),
            Phase::Answering | Phase::Closed => {}
        }
    }

    /// Counts a command, where that is wanted.
    fn charge(&mut self, ctx: &Context<'_>, now: Now, command: &Command) -> Result<(), Refusal> {
        if !Quota::is_wanted(ctx.settings) {
            return Ok(());
        }
        match self.quota.get_or_insert_default().charge(ctx.settings, now.tick, command) {
            Verdict::Within => Ok(()),
            Verdict::Over => Err(ClientError::TooManyRequests.into()),
            Verdict::FarOver => Err(CloseCode::TooManyRequests.into()),
        }
    }

    /// Whether a command just read has to queue. Behind the queue, or behind what would block its head.
    fn must_wait(&self, ctx: &Context<'_>, command: &Command) -> bool {
        !self.wants_commands() || self.is_blocked(ctx, command)
    }

    /// A command waits while too many others are in flight, or while its channel is being subscribed or a publication
    /// into it being judged: effects are issued in the order of the commands. A second subscribe does not wait, it is an error in any case.
    fn is_blocked(&self, ctx: &Context<'_>, command: &Command) -> bool {
        if self.in_flight as usize >= ctx.settings.commands_in_flight {
            return true;
        }
        let channel = match &command.request {
            Some(Request::Unsubscribe(request)) => &request.channel,
            Some(Request::Publish(request)) => &request.channel,
            Some(Request::Presence(request)) => &request.channel,
            Some(Request::PresenceStats(request)) => &request.channel,
            Some(Request::History(request)) => &request.channel,
            Some(Request::SubRefresh(request)) => &request.channel,
            Some(
                Request::Connect(_)
                | Request::Subscribe(_)
                | Request::Rpc(_)
                | Request::Send(_)
                | Request::Refresh(_)
                | Request::Ping(_),
            )
            | None => return false,
        };
        self.pending_join(channel).is_some() || self.is_publishing(channel)
    }

    fn enqueue(&mut self, ctx: &Context<'_>, command: Command, out: &mut Vec<Output>) {
        let queue = &mut self.pending_mut().queue;
        if queue.len() >= ctx.settings.commands_queued {
            return self.close(CloseCode::TooManyRequests, out);
        }
        queue.push_back(command);
    }

    fn run_queue(&mut self, ctx: &Context<'_>, out: &mut Vec<Output>) {
        while matches!(self.phase, Phase::Open | Phase::Answering) {
            let Some(pending) = &mut self.pending else { return };
            let Some(command) = pending.queue.pop_front() else { break };
            if self.is_blocked(ctx, &command) {
                self.pending_mut().queue.push_front(command);
                return;
            }
            self.run(ctx, command, out);
        }
        self.free_pending();
    }

    fn run(&mut self, ctx: &Context<'_>, command: Command, out: &mut Vec<Output>) {
        let id = command.id;
        let done = match command.request {
            Some(Request::Subscribe(request)) => self.subscribe(ctx, id, request, out),
            Some(Request::Unsubscribe(request)) => self.unsubscribe(id, &request, out),
            Some(Request::Publish(request)) => self.publish(ctx, id, request, out),
            Some(Request::Presence(request)) => self.presence(ctx, id, &request.channel, out),
            Some(Request::PresenceStats(request)) => self.presence_stats(ctx, id, &request.channel, out),
            Some(Request::History(request)) => self.history(ctx, id, request, out),
            Some(Request::Rpc(request)) => self.rpc(ctx, id, request, out),
            // There is no handler for messages.
            Some(Request::Send(_)) => Err(CloseCode::NotAvailable.into()),
            Some(Request::Refresh(request)) => self.refresh(ctx, id, request, out),
            Some(Request::SubRefresh(request)) => self.sub_refresh(ctx, id, request, out),
            // A second connect, a ping that no SDK sends, or a request of another protocol.
            Some(Request::Connect(_) | Request::Ping(_)) | None => Err(CloseCode::BadRequest.into()),
        };
        if let Err(refusal) = done {
            self.refuse(id, refusal, out);
        }
    }

    pub(crate) fn refuse(&mut self, id: u32, refusal: Refusal, out: &mut Vec<Output>) {
        match refusal {
            Refusal::Error(error) => reply(id, error, out),
            Refusal::Custom(error) => reply(id, ReplyBody::Error(error), out),
            Refusal::Close(code) => self.close(code, out),
        }
    }

    /// Takes note of an answer to a command in flight. False for one that nobody waits for.
    pub(crate) fn answered(&mut self) -> bool {
        match self.in_flight.checked_sub(1) {
            Some(left) if matches!(self.phase, Phase::Open | Phase::Answering) => {
                self.in_flight = left;
                true
            }
            Some(_) | None => false,
        }
    }

    /// The caller of an operation on a channel, and the channel's name, shared where it is subscribed.
    pub(crate) fn caller<'a>(&'a self, ctx: &Context<'_>, info: &'a ClientInfo, channel: &str) -> Caller<'a> {
        Caller { user: &info.user, subscribed: self.subs.get(channel).is_some(), insecure: ctx.settings.insecure }
    }

    pub(crate) fn channel_name(&self, channel: String) -> ChannelName {
        self.subs.get(&channel).map_or_else(|| ChannelName::from(channel), |entry| entry.channel.clone())
    }

    /// The info of an authenticated client.
    pub(crate) fn known_info(&self) -> &Arc<ClientInfo> {
        self.info.as_ref().expect("the phases after Verifying have an info")
    }

    pub(crate) fn pending_mut(&mut self) -> &mut Pending {
        self.pending.get_or_insert_default()
    }

    pub(crate) fn pending_join(&self, channel: &str) -> Option<&PendingJoin> {
        self.pending.as_ref()?.joins.iter().find(|join| &*join.channel == channel)
    }

    /// Gives the memory back once nothing is under way.
    pub(crate) fn free_pending(&mut self) {
        let is_idle = |pending: &Pending| {
            pending.queue.is_empty()
                && pending.joins.is_empty()
                && pending.publishing.is_empty()
                && pending.connect.is_none()
                && pending.close.is_none()
        };
        if self.pending.as_deref().is_some_and(is_idle) {
            self.pending = None;
        }
    }

    /// Closes once the commands accepted so far are answered, at the latest after
    /// [`crate::settings::Settings::close_patience`]. Subscriptions live on until then. A connect command is not waited
    /// for: its answer would only tell the client of a connection that ends.
    fn close_when_answered(&mut self, ctx: &Context<'_>, now: Now, code: CloseCode, out: &mut Vec<Output>) {
        match self.phase {
            Phase::Open => {
                self.pending_mut().close = Some(code);
                self.phase = Phase::Answering;
                self.deadlines.clear();
                self.deadlines.schedule = now.tick.after(ctx.settings.close_patience);
            }
            // The first reason stands, and so does its deadline.
            Phase::Answering | Phase::Closed => {}
            Phase::Fresh | Phase::Verifying | Phase::Joining | Phase::Refused => self.close(code, out),
        }
    }

    fn close_if_answered(&mut self, out: &mut Vec<Output>) {
        if self.phase == Phase::Answering && self.in_flight == 0 && self.wants_commands() {
            self.end_answering(out);
        }
    }

    /// Closes with the code that waits.
    pub(crate) fn end_answering(&mut self, out: &mut Vec<Output>) {
        if let Some(code) = self.pending.as_mut().and_then(|pending| pending.close.take()) {
            self.close(code, out);
        }
    }

    /// Closes the connection, once, and cleans up.
    pub(crate) fn close(&mut self, code: CloseCode, out: &mut Vec<Output>) {
        if self.phase != Phase::Closed {
            let may_return = self.tie == Tie::Held && code.reconnect();
            out.push(Output::Close(code));
            self.clean_up(may_return, out);
        }
    }

    /// Leaves every channel. Joins in flight are left when their answer comes.
    fn clean_up(&mut self, may_return: bool, out: &mut Vec<Output>) {
        self.phase = Phase::Closed;
        self.detach(may_return, out);
        for entry in self.subs.take() {
            self.part(entry, Hub::Leave, may_return, out);
        }
        self.abandon_joins();
        if let Some(pending) = &mut self.pending {
            pending.queue = VecDeque::new();
            pending.publishing = Vec::new();
            pending.connect = None;
            pending.close = None;
        }
        self.free_pending();
        self.in_flight = 0;
        self.deadlines.clear();
    }

    /// Nobody is interested any more in what is being joined.
    pub(crate) fn abandon_joins(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.joins.retain_mut(|join| {
                join.origin = Origin::Abandoned;
                join.stage == JoinStage::Joining
            });
        }
    }

    /// Hands over what is kept for the client's return, once.
    fn detach(&mut self, may_return: bool, out: &mut Vec<Output>) {
        if self.tie == Tie::Held {
            out.push(Output::Detach(self.kept()));
            self.tie = if may_return { Tie::Parted } else { Tie::None };
        }
    }

    /// Every active subscription, as it is kept for the client's return.
    pub fn kept(&self) -> Vec<Kept> {
        self.subs.iter().map(Entry::kept).collect()
    }

    /// Undoes one subscription that was taken out of the table.
    pub(crate) fn leave(&self, entry: Entry, hub: Hub, out: &mut Vec<Output>) {
        self.part(entry, hub, false, out);
    }

    /// The same for a client that may come back: its presence entry, if it has one, stays for a while, and so does what
    /// others know of it.
    pub(crate) fn part(&self, entry: Entry, hub: Hub, may_return: bool, out: &mut Vec<Output>) {
        let has_presence = entry.flags.has(Flags::PRESENCE);
        let (presence, lingers) = (has_presence && !may_return, has_presence && may_return);
        if hub == Hub::Leave || presence {
            out.push(Output::Leave { channel: entry.channel.clone(), hub: hub == Hub::Leave, presence });
        }
        if lingers {
            out.push(Output::Linger { channel: entry.channel });
        } else if entry.flags.has(Flags::ANNOUNCED) {
            let info = entry.info().unwrap_or_else(|| self.known_info()).clone();
            out.push(Output::Announce { channel: entry.channel, info, joined: false });
        }
    }

    /// Ends a subscription of our own accord and tells the client. The hub comes first, so that nothing of the channel
    /// can follow the push.
    pub(crate) fn end_subscription(&mut self, channel: &str, code: UnsubscribeCode, out: &mut Vec<Output>) {
        if let Some(entry) = self.subs.remove(channel) {
            let channel = entry.channel.clone();
            self.leave(entry, Hub::Leave, out);
            push(&channel, unsubscribe_body(code.code(), code.reason()), out);
        }
    }

    fn position_lost(&mut self, channel: &str, out: &mut Vec<Output>) {
        let Some(entry) = self.subs.get(channel) else { return };
        if entry.flags.has(Flags::SERVER_SIDE) {
            let may_return = self.tie == Tie::Held;
            out.push(Output::Close(CloseCode::InsufficientState));
            self.detach(may_return, out);
            if let Some(entry) = self.subs.remove(channel) {
                self.part(entry, Hub::HasLeft, may_return, out);
            }
            self.clean_up(may_return, out);
        } else if let Some(entry) = self.subs.remove(channel) {
            let code = UnsubscribeCode::InsufficientState;
            let channel = entry.channel.clone();
            self.leave(entry, Hub::HasLeft, out);
            push(&channel, unsubscribe_body(code.code(), code.reason()), out);
        }
    }
}

/// Whether the hub still has the subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hub {
    /// It has, and must be told.
    Leave,
    /// It removed the subscription itself, or never had it.
    HasLeft,
}

pub(crate) fn reply(id: u32, body: impl Into<ReplyBody>, out: &mut Vec<Output>) {
    out.push(Output::Send(Reply { id, body: Some(body.into()) }));
}

/// Sends a push about a channel, or about the connection when `channel` is empty.
pub(crate) fn push(channel: &str, body: PushBody, out: &mut Vec<Output>) {
    let push = Push { channel: channel.to_owned(), body };
    out.push(Output::Send(Reply { id: 0, body: Some(ReplyBody::Push(push)) }));
}

pub(crate) fn unsubscribe_body(code: u32, reason: &str) -> PushBody {
    PushBody::Unsubscribe(Unsubscribe { code, reason: reason.to_owned() })
}
