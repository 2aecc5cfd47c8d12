//! A client that behaves as the SDKs do: it connects, subscribes, remembers positions, recovers, and comes back
//! whatever happens (protocol sections 4 and 5).

use std::collections::BTreeMap;

use backplane::{ChannelName, ClientId, Delivery};
use bytes::Bytes;
use protocol::{
    Command, ConnectRequest, ConnectResult, Error, Push, PushBody, Reply, ReplyBody, Request, Subscribe,
    SubscribeRequest, SubscribeResult, UnsubscribeRequest,
};
use session::close::CloseCode;
use session::convert;

use super::audit::Audit;
use super::bus::{Bus, Downstream, Event, SocketId, Timer, Upstream};
use super::clock::Millis;
use super::scenario::CHANNELS;
use super::token;

/// What a client is waiting for.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Pending {
    Connect,
    Subscribe { channel: &'static str, asked: bool },
    Unsubscribe(&'static str),
    Publish { channel: ChannelName, data: Bytes },
}

/// What a subscription asks for beyond publications.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    Nothing,
    Position,
    Recovery,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Unsubscribed,
    /// Asked for, or to be asked for as soon as there is a connection.
    Subscribing,
    Subscribed,
}

#[derive(Debug)]
struct Subscription {
    wish: Wish,
    state: State,
    /// From a recoverable subscription: where to recover from.
    position: Option<(String, u64)>,
    /// Unsubscribe commands without a reply: until it comes, what arrives belongs to the past.
    ending: u32,
}

pub struct Client {
    pub index: usize,
    pub user: String,
    id: ClientId,
    socket: Option<SocketId>,
    connected: bool,
    /// Sends its subscribes with the connect command, without waiting for the reply.
    eager: bool,
    next_command: u32,
    pending: BTreeMap<u32, Pending>,
    subscriptions: BTreeMap<&'static str, Subscription>,
    server_side: Vec<&'static str>,
    server_positions: BTreeMap<String, Option<(String, u64)>>,
    published: u64,
}

impl Client {
    pub fn new(
        index: usize,
        user: String,
        eager: bool,
        subscriptions: &[(&'static str, Wish)],
        server_side: Vec<&'static str>,
    ) -> Self {
        let subscription = |(channel, wish): &(&'static str, Wish)| {
            let state = State::Subscribing;
            (*channel, Subscription { wish: *wish, state, position: None, ending: 0 })
        };
        Self {
            index,
            user,
            id: ClientId(uuid::Uuid::nil()),
            socket: None,
            connected: false,
            eager,
            next_command: 0,
            pending: BTreeMap::new(),
            subscriptions: subscriptions.iter().map(subscription).collect(),
            server_side,
            server_positions: BTreeMap::new(),
            published: 0,
        }
    }

    pub fn socket(&self) -> Option<SocketId> {
        self.socket
    }

    /// Channels this client may have subscribed of its own accord.
    pub fn channels(&self) -> Vec<&'static str> {
        self.subscriptions.keys().copied().collect()
    }

    /// Channels that the server may subscribe this client to without coming into its way.
    pub fn free_channels(&self) -> Vec<&'static str> {
        let taken = |channel: &&str| self.subscriptions.contains_key(channel) || self.server_side.contains(channel);
        CHANNELS.into_iter().filter(|channel| !taken(channel)).collect()
    }

    /// Channels that the server has subscribed this client to.
    pub fn server_channels(&self) -> Vec<String> {
        self.server_positions.keys().cloned().collect()
    }

    // --- connecting ---

    /// The transport is open.
    pub fn opened(&mut self, bus: &mut Bus, socket: SocketId) {
        self.socket = Some(socket);
        self.connected = false;
        self.pending.clear();
        self.next_command = 0;
        let subs = self.server_positions.iter().filter_map(|(channel, position)| {
            let (epoch, offset) = position.clone()?;
            let request = SubscribeRequest { recover: true, epoch, offset, ..SubscribeRequest::default() };
            Some((channel.clone(), request))
        });
        let token = token::issue(&self.user, &self.server_side);
        let connect = ConnectRequest { token, subs: subs.collect(), ..ConnectRequest::default() };
        let mut commands = vec![self.command(Request::Connect(connect), Pending::Connect)];
        if self.eager {
            commands.extend(self.due_subscribes());
        }
        bus.send_up(socket, Upstream::Commands(commands));
    }

    fn command(&mut self, request: Request, pending: Pending) -> Command {
        self.next_command += 1;
        self.pending.insert(self.next_command, pending);
        Command { id: self.next_command, request: Some(request) }
    }

    /// Subscribe commands for everything that is wanted and not asked for.
    fn due_subscribes(&mut self) -> Vec<Command> {
        let wanted = self.subscriptions.iter().filter(|(_, sub)| sub.state == State::Subscribing);
        let wanted: Vec<_> = wanted.map(|(channel, _)| *channel).collect();
        wanted.into_iter().filter_map(|channel| self.subscribe_command(channel)).collect()
    }

    /// A subscribe command for this channel is under way.
    fn has_asked(&self, channel: &str) -> bool {
        self.pending.values().any(|pending| matches!(pending, Pending::Subscribe { channel: of, .. } if *of == channel))
    }

    fn subscribe_command(&mut self, channel: &'static str) -> Option<Command> {
        let sub = self.subscriptions.get(channel)?;
        if sub.state != State::Subscribing || self.has_asked(channel) {
            return None;
        }
        let (epoch, offset) = sub.position.clone().unwrap_or_default();
        let asked = sub.position.is_some();
        let request = SubscribeRequest {
            channel: channel.to_owned(),
            recover: asked,
            epoch,
            offset,
            positioned: sub.wish == Wish::Position,
            recoverable: sub.wish == Wish::Recovery,
            ..SubscribeRequest::default()
        };
        Some(self.command(Request::Subscribe(request), Pending::Subscribe { channel, asked }))
    }

    fn send(&self, bus: &mut Bus, commands: Vec<Command>) {
        if let Some(socket) = self.socket.filter(|_| !commands.is_empty()) {
            bus.send_up(socket, Upstream::Commands(commands));
        }
    }

    /// The connection is over; it comes back after a while.
    fn closed(&mut self, bus: &mut Bus, audit: &mut Audit) {
        self.socket = None;
        self.connected = false;
        self.pending.clear();
        for (channel, sub) in &mut self.subscriptions {
            sub.ending = 0;
            if sub.state == State::Subscribed {
                sub.state = State::Subscribing;
                audit.ended(self.index, channel);
            }
        }
        for channel in self.server_positions.keys() {
            audit.ended(self.index, channel);
        }
        let backoff = bus.random.between((20, 800));
        bus.agenda.after(backoff, Event::Client { client: self.index, timer: Timer::Connect });
    }

    // --- what the user of the client does ---

    /// Lets go of the connection without a word; the node notices after a while.
    pub fn drop_connection(&mut self, bus: &mut Bus, audit: &mut Audit, noticed_after: Millis) {
        if let Some(socket) = self.socket {
            bus.abandon(socket, noticed_after);
            self.closed(bus, audit);
        }
    }

    pub fn unsubscribe(&mut self, bus: &mut Bus, audit: &mut Audit, channel: &'static str) {
        let asked = self.has_asked(channel);
        let Some(sub) = self.subscriptions.get_mut(channel) else { return };
        let before = std::mem::replace(&mut sub.state, State::Unsubscribed);
        if before == State::Subscribed {
            audit.ended(self.index, channel);
        }
        if before == State::Unsubscribed || (before == State::Subscribing && !asked) {
            return;
        }
        sub.ending += 1;
        let request = Request::Unsubscribe(UnsubscribeRequest { channel: channel.to_owned() });
        let command = self.command(request, Pending::Unsubscribe(channel));
        self.send(bus, vec![command]);
    }

    /// Subscribes again, or for the first time; `fresh` forgets where it stood.
    pub fn subscribe(&mut self, bus: &mut Bus, channel: &'static str, fresh: bool) {
        let Some(sub) = self.subscriptions.get_mut(channel) else { return };
        if sub.state != State::Unsubscribed {
            return;
        }
        sub.state = State::Subscribing;
        if fresh {
            sub.position = None;
        }
        self.ask(bus, channel);
    }

    /// Sends a subscribe command if one is due.
    pub fn ask(&mut self, bus: &mut Bus, channel: &'static str) {
        if self.connected {
            let command = self.subscribe_command(channel);
            self.send(bus, command.into_iter().collect());
        }
    }

    pub fn publish(&mut self, bus: &mut Bus, channel: &str) {
        if !self.connected {
            return;
        }
        self.published += 1;
        let data = Bytes::from(format!("client {} publication {}", self.index, self.published));
        let request =
            protocol::PublishRequest { channel: channel.to_owned(), data: data.clone(), ..Default::default() };
        let pending = Pending::Publish { channel: ChannelName::from(channel), data };
        let command = self.command(Request::Publish(request), pending);
        self.send(bus, vec![command]);
    }

    // --- what the server says ---

    pub fn receive(&mut self, bus: &mut Bus, audit: &mut Audit, socket: SocketId, message: Downstream) {
        if self.socket != Some(socket) {
            return;
        }
        match message {
            Downstream::Delivery(outgoing) => match &outgoing.delivery {
                Delivery::Positioned { publication, .. } | Delivery::Unpositioned(publication) => {
                    self.publication(bus, audit, &outgoing.channel, &convert::publication(publication));
                }
                Delivery::Presence(_) => self.expect_subscribed(audit, &outgoing.channel, "a join or leave"),
            },
            Downstream::Reply(reply) => self.reply(bus, audit, *reply),
            Downstream::Close(code) => self.close(bus, audit, socket, &code),
        }
    }

    fn close(&mut self, bus: &mut Bus, audit: &mut Audit, socket: SocketId, code: &CloseCode) {
        match code {
            CloseCode::Slow => audit.stats.slow += 1,
            CloseCode::InsufficientState => {
                let known = self.server_positions.keys().map(String::as_str);
                let channels: Vec<_> = known.chain(self.server_side.iter().copied()).collect();
                audit.position_lost(self.index, &channels);
            }
            code if !code.reconnect() => {
                audit.violation(format!("client {}: closed for good with {code:?}", self.index));
            }
            _ => {}
        }
        bus.abandon(socket, 0);
        self.closed(bus, audit);
    }

    fn reply(&mut self, bus: &mut Bus, audit: &mut Audit, reply: Reply) {
        if reply.id == 0 {
            if let Some(ReplyBody::Push(push)) = reply.body {
                self.push(bus, audit, push);
            }
            return;
        }
        let Some(pending) = self.pending.remove(&reply.id) else {
            audit.violation(format!("client {}: a reply that nobody waits for: {reply:?}", self.index));
            return;
        };
        match (pending, reply.body) {
            (Pending::Connect, Some(ReplyBody::Connect(result))) => self.connect_succeeded(bus, audit, result),
            (Pending::Subscribe { channel, asked }, Some(ReplyBody::Subscribe(result))) => {
                self.subscribe_succeeded(bus, audit, channel, asked, &result);
            }
            (Pending::Unsubscribe(channel), Some(ReplyBody::Unsubscribe(_))) => {
                if let Some(sub) = self.subscriptions.get_mut(channel) {
                    sub.ending -= 1;
                }
                // Wanted again while the old subscribe was still under way.
                self.ask(bus, channel);
            }
            (Pending::Publish { channel, data }, Some(ReplyBody::Publish(_))) => audit.acknowledged(&channel, data),
            (pending, Some(ReplyBody::Error(error))) => self.failed(bus, audit, pending, &error),
            (pending, body) => {
                audit.violation(format!("client {}: {pending:?} answered by {body:?}", self.index));
            }
        }
    }

    fn failed(&mut self, bus: &mut Bus, audit: &mut Audit, pending: Pending, error: &Error) {
        if !error.temporary {
            audit.violation(format!("client {}: {pending:?} failed for good: {error:?}", self.index));
        }
        match pending {
            Pending::Connect => self.drop_connection(bus, audit, 0),
            Pending::Subscribe { channel, .. } => {
                let backoff = bus.random.between((20, 500));
                let timer = Timer::Subscribe(channel);
                bus.agenda.after(backoff, Event::Client { client: self.index, timer });
            }
            Pending::Unsubscribe(_) | Pending::Publish { .. } => {}
        }
    }

    fn connect_succeeded(&mut self, bus: &mut Bus, audit: &mut Audit, result: ConnectResult) {
        let Some(socket) = self.socket else { return };
        self.connected = true;
        self.id = ClientId::parse(&result.client).expect("a client id is a UUID");
        audit.stats.connections += 1;
        let wanted = self.server_side.iter().copied();
        let missing: Vec<_> = wanted.filter(|channel| !result.subs.contains_key(*channel)).collect();
        if !missing.is_empty() {
            audit.violation(format!("client {}: connected without {missing:?}", self.index));
        }
        let known = std::mem::take(&mut self.server_positions);
        for (channel, result) in &result.subs {
            let asked = known.get(channel).is_some_and(Option::is_some);
            audit.subscribed(&bus.store, (self.index, self.id), socket, channel, asked, result);
            self.server_positions.insert(channel.clone(), position_after(result));
        }
        let commands = self.due_subscribes();
        self.send(bus, commands);
    }

    fn subscribe_succeeded(
        &mut self,
        bus: &mut Bus,
        audit: &mut Audit,
        channel: &'static str,
        asked: bool,
        result: &SubscribeResult,
    ) {
        let Some(socket) = self.socket else { return };
        let Some(sub) = self.subscriptions.get_mut(channel) else { return };
        if sub.state != State::Subscribing || sub.ending > 0 {
            // Unsubscribed in the meantime: the reply to that is still to come. It may be wanted again since.
            return;
        }
        sub.state = State::Subscribed;
        audit.subscribed(&bus.store, (self.index, self.id), socket, channel, asked, result);
        if let Some(position) = position_after(result) {
            sub.position = Some(position);
        }
    }

    fn push(&mut self, bus: &mut Bus, audit: &mut Audit, push: Push) {
        match push.body {
            PushBody::Publication(publication) => self.publication(bus, audit, &push.channel, &publication),
            PushBody::Subscribe(subscribe) => self.subscribed_by_server(bus, audit, push.channel, subscribe),
            PushBody::Unsubscribe(_) if self.server_positions.remove(&push.channel).is_some() => {
                audit.ended(self.index, &push.channel);
            }
            PushBody::Unsubscribe(unsubscribe) => {
                let Some((channel, sub)) = self.subscriptions.iter_mut().find(|(channel, _)| **channel == push.channel)
                else {
                    return audit.violation(format!("client {}: unsubscribed of {}", self.index, push.channel));
                };
                let channel = *channel;
                if sub.state != State::Subscribed {
                    return;
                }
                audit.ended(self.index, channel);
                if unsubscribe.code == 2500 {
                    audit.position_lost(self.index, &[channel]);
                }
                sub.state = if unsubscribe.code < 2500 { State::Unsubscribed } else { State::Subscribing };
                self.ask(bus, channel);
            }
            other => audit.violation(format!("client {}: an unexpected push {other:?}", self.index)),
        }
    }

    fn subscribed_by_server(&mut self, bus: &Bus, audit: &mut Audit, channel: String, push: Subscribe) {
        let Some(socket) = self.socket else { return };
        let Subscribe { recoverable, epoch, offset, positioned, .. } = push;
        let result = SubscribeResult { recoverable, epoch, offset, positioned, ..SubscribeResult::default() };
        audit.subscribed(&bus.store, (self.index, self.id), socket, &channel, false, &result);
        self.server_positions.insert(channel, position_after(&result));
    }

    fn publication(&mut self, bus: &Bus, audit: &mut Audit, channel: &str, publication: &protocol::Publication) {
        let Some(socket) = self.socket else { return };
        if let Some(position) = self.server_positions.get_mut(channel) {
            advance(position, publication.offset);
            return audit.received(&bus.store, self.index, socket, channel, publication);
        }
        match self.subscriptions.get_mut(channel) {
            Some(sub) if sub.state == State::Subscribed => {
                advance(&mut sub.position, publication.offset);
                audit.received(&bus.store, self.index, socket, channel, publication);
            }
            Some(_) | None => self.expect_subscribed(audit, channel, "a publication"),
        }
    }

    /// Something of a channel has come: only between the subscribe reply and the unsubscribe reply may it.
    fn expect_subscribed(&self, audit: &mut Audit, channel: &str, what: &str) {
        let client_side = self.subscriptions.get(channel);
        let fine = client_side.is_some_and(|sub| sub.state == State::Subscribed || sub.ending > 0)
            || (self.connected && self.server_positions.contains_key(channel));
        if !fine {
            audit.violation(format!("client {}: {what} of {channel} outside of a subscription", self.index));
        }
    }

    // --- at the end ---

    /// What is not as it should be after a long quiet time in which everything was wanted.
    pub fn unfinished(&self) -> Vec<String> {
        let mut wrong: Vec<_> =
            self.pending.values().map(|pending| format!("client {}: no answer to {pending:?}", self.index)).collect();
        if !self.connected {
            wrong.push(format!("client {}: not connected", self.index));
        }
        let unsubscribed = self.subscriptions.iter().filter(|(_, sub)| sub.state != State::Subscribed);
        wrong.extend(unsubscribed.map(|(channel, sub)| format!("client {}: {:?} to {channel}", self.index, sub.state)));
        wrong
    }
}

fn advance(position: &mut Option<(String, u64)>, offset: u64) {
    if let Some((_, at)) = position
        && offset > 0
    {
        *at = offset;
    }
}

/// Where a client stands after a subscribe result; `None` when it cannot recover from there.
fn position_after(result: &SubscribeResult) -> Option<(String, u64)> {
    let last = result.publications.last().map_or(result.offset, |publication| publication.offset);
    result.recoverable.then(|| (result.epoch.clone(), last))
}
